"""Learning-curve extrapolation with prior-data fitted networks."""
