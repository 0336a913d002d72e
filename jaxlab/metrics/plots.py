"""Plots of metrics with matplotlib, on given axes or on a new figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import chex
import numpy as np

from jaxlab._extras import import_extra
from jaxlab.metrics.calibration import Reliability

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_LEVEL = 0.9


def plot_reliability(reliability: Reliability, *, ax: "Axes | None" = None) -> "Axes":
  """Draws accuracy over confidence, with intervals of the sampling error.

  Bars are the accuracies of the bins that are not empty, each with its count above. A point at the
  mean confidence has the exact binomial 90% interval of the accuracy: a bin whose interval misses
  the diagonal is miscalibrated.

  Args:
    reliability: the bins, from `metrics.reliability_diagram`.
    ax: where to draw; None makes a figure.

  Returns:
    The axes.

  Raises:
    ValueError: if every bin is empty.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, figure 1; intervals of
  Clopper and Pearson, Biometrika 1934, https://arxiv.org/abs/1706.04599.
  """
  from scipy.stats import binomtest

  confidence, accuracy, count = (np.asarray(array) for array in reliability)
  filled = np.flatnonzero(count)
  if not filled.size:
    raise ValueError("a reliability diagram needs a bin that is not empty, got counts of 0.")
  hits = np.rint(accuracy[filled] * count[filled]).astype(int)
  intervals = [
    binomtest(int(hit), int(total)).proportion_ci(_LEVEL) for hit, total in zip(hits, count[filled])
  ]
  low, high = np.transpose([(interval.low, interval.high) for interval in intervals])
  height = accuracy[filled]
  ax = _axes(ax)
  width = 1 / count.size
  whiskers = np.maximum([height - low, high - height], 0.0)
  middle = (filled + 0.5) * width
  ax.bar(middle, height, width, color="lightsteelblue", edgecolor="white", label="accuracy")
  ax.errorbar(
    confidence[filled], height, whiskers, fmt=".", color="black", capsize=2, label="90% interval"
  )
  ax.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
  for x, y, total in zip(middle, high, count[filled]):
    offset = dict(xytext=(0, 3), textcoords="offset points")
    ax.annotate(f"{total}", (x, y), **offset, rotation=90, ha="center", va="bottom", fontsize=6)
  ax.set(xlim=(0, 1), ylim=(0, 1.15), xlabel="confidence", ylabel="accuracy")
  ax.legend(fontsize=7, loc="upper left")
  return ax


def plot_stream_error(
  errors: chex.Array | Mapping[str, chex.Array],
  *,
  boundaries: Sequence[int],
  names: Sequence[str],
  ax: "Axes | None" = None,
) -> "Axes":
  """Draws the online error of test-time adaptation over a stream of changing domains.

  Args:
    errors: error of each batch, `[n]`, or a dict of such arrays by method.
    boundaries: index of the first batch of each domain, increasing.
    names: names of the domains, one per boundary.
    ax: where to draw; None makes a figure.

  Returns:
    The axes.

  Raises:
    ValueError: if the numbers of names and boundaries differ.

  Reference: Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022,
  https://arxiv.org/abs/2203.13591.
  """
  if len(boundaries) != len(names):
    raise ValueError(f"got {len(boundaries)} boundaries but {len(names)} names.")
  lines = errors if isinstance(errors, Mapping) else {"": errors}
  ax = _axes(ax)
  for name, line in lines.items():
    ax.plot(np.asarray(line), linewidth=1, label=name)
  for boundary, name in zip(boundaries, names):
    ax.axvline(boundary, color="lightgray", linewidth=0.7, zorder=0)
    # Along the top edge, independent of the errors.
    ax.text(
      boundary,
      1.0,
      f" {name}",
      transform=ax.get_xaxis_transform(),
      rotation=90,
      va="top",
      fontsize=6,
      color="gray",
    )
  ax.set(xlabel="batch", ylabel="error")
  if isinstance(errors, Mapping):
    ax.legend(fontsize=7)
  return ax


def plot_cost_accuracy(
  curves: Mapping[str, tuple[chex.Array, chex.Array]], *, ax: "Axes | None" = None
) -> "Axes":
  """Draws accuracy over cost, one curve per method.

  Args:
    curves: name -> (cost, accuracy), each `[m]`; drawn in the order of cost.
    ax: where to draw; None makes a figure.

  Returns:
    The axes.

  Raises:
    ValueError: if a curve's cost and accuracy differ in shape.

  Reference: Teerapittayanon et al., BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686.
  """
  ax = _axes(ax)
  for name, (cost, accuracy) in curves.items():
    cost, accuracy = np.asarray(cost), np.asarray(accuracy)
    if cost.shape != accuracy.shape or cost.ndim != 1:
      raise ValueError(
        f"curve {name!r} has cost of shape {cost.shape} and accuracy of shape {accuracy.shape}."
      )
    order = np.argsort(cost, kind="stable")
    ax.plot(cost[order], accuracy[order], ".-", label=name)
  ax.set(xlabel="cost", ylabel="accuracy")
  ax.legend(fontsize=7)
  return ax


def _axes(ax: "Axes | None") -> "Axes":
  if ax is not None:
    return ax
  return import_extra("matplotlib.pyplot", extra="plots").subplots()[1]
