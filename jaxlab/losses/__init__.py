"""Predictions and targets in, an objective per example out."""

from jaxlab.losses.bar import HalfNormalScales, bar_index, bar_nll, half_normal_scales

__all__ = ["bar_index", "bar_nll", "half_normal_scales", "HalfNormalScales"]
