"""INT8 and FP8: find ranges on samples, choose the layers to quantise, and insert Q/DQ pairs into the graph."""
