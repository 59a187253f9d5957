"""Index sets: which weights a pruned convolution keeps, how they are stored, and what remains of the net."""
