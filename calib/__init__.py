"""INT8 and FP8 calibration: ranges and Q/DQ placement (imported as ``trtkp.calib``)."""
