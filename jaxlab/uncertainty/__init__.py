"""Predictive distributions and what is read from them."""
