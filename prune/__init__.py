"""Offline pruning: the methods, the trainer and the steps of ``trtkp prune`` (imported as ``trtkp.pruning``)."""
