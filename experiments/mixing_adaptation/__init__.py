"""Mixing, calibration and adaptation."""
