"""Bayesian and in-context learning."""
