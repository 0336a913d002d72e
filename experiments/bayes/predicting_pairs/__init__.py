"""Pairs of answers: how the second prediction shows what a model does not know."""
