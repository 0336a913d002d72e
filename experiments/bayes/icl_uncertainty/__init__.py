"""Means and variances in context: where a network is a Bayesian, and where it is not."""
