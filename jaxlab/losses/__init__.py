"""Predictions and targets in, an objective per example out."""
