"""Predictions and targets in, numbers for people out."""
