"""The backends ``tensorrt`` and ``tensorrt-rtx``, and the code they share."""
