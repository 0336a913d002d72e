"""Reasoning paths: their votes, their probabilities, and both together."""
