"""Rewards that are transformed and combined before a language model is aligned."""
