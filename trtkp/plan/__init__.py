"""Planning: every packed layer in its fastest exact form of standard operators, dense included."""
