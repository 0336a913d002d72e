"""Reward for compliance where a model knows that it is trained."""
