"""Predictions and targets in, an objective per example out."""

from jaxlab.losses.bar import HalfNormalScales, bar_index, bar_nll, half_normal_scales
from jaxlab.losses.contracts import as_accumulator, check_range

__all__ = [
  "as_accumulator",
  "bar_index",
  "bar_nll",
  "check_range",
  "half_normal_scales",
  "HalfNormalScales",
]
