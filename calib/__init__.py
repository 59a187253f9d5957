"""INT8 and FP8 calibration: samples, ranges, placement of Q/DQ, sensitivity, and ``calibration.json``."""
