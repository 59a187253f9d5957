"""Planning: choose, for every packed layer, the fastest exact lowering to standard operators, dense included."""
