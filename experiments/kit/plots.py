"""Pictures of records: intervals over seeds, curves with bands, histograms.

What colors tell apart has one color in all panels of a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.experiment import Record, Results, t_interval


def panels(num: int, *, width: float = 4.4, height: float = 3.4, columns: int | None = None):
  """A figure with `num` axes, and the axes: side by side, or in rows of `columns`."""
  import matplotlib.pyplot as plt

  columns = min(num, columns or num)
  rows = -(-num // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
  )
  for ax in axes.flat[num:]:
    ax.set_axis_off()
  return figure, axes.flat[:num]


def legend_below(figure, ax, *, columns: int) -> None:
  """One legend for all panels, below them, of what is drawn in one of them."""
  handles, labels = ax.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7)


def log_axis(ax, label: str) -> None:
  """Makes the x-axis of drawn lines logarithmic, with ticks where they have points."""
  values = sorted({x for line in ax.lines for x in line.get_xdata()})
  ax.set(xscale="log", xlabel=label)
  ax.set_xticks(values, [f"{value:g}" for value in values])
  ax.minorticks_off()


def intervals(ax, results: Results, quantity: str, *, by: str, color: str = "method", **where):
  """Means with 95% t-intervals over seeds: one group of points per value of `by`.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is drawn.
    by: "method" or the setting along x.
    color: "method" or the setting that colors tell apart.
    **where: what the records must have.
  """
  groups = results.distinct(by, quantity=quantity, **where)
  colors = _colors(results, color, quantity, where)
  for i, (label, shade) in enumerate(colors.items()):
    offset = 0.6 * ((i + 0.5) / len(colors) - 0.5)
    xs, means, errors = [], [], []
    for x, group in enumerate(groups):
      # A method may lack a setting.
      records = results.matching(quantity=quantity, **{**where, by: group})
      for record in (record for record in records if record.field(color) == label):
        mean, error = _mean_and_half_width(record)
        xs.append(x + offset)
        means.append(mean)
        errors.append(error)
    ax.errorbar(xs, means, errors, fmt="o", capsize=3, color=shade, label=str(label))
  ax.set_xticks(range(len(groups)), [str(group) for group in groups], rotation=20, ha="right")
  ax.set_ylabel(quantity)


def differences(results: Results, quantity: str, *, baseline: str, **where) -> Results:
  """Paired differences of all other methods to one, in every setting that both have.

  Args:
    results: the records.
    quantity: what is compared.
    baseline: the method.
    **where: what the records must have.

  Returns:
    Records of a quantity "`quantity` above `baseline`", for `intervals` and `curves`.
  """
  chosen, found = results.matching(quantity=quantity, **where), Results()
  base = {tuple(sorted(r.setting.items())): r.values for r in chosen if r.method == baseline}
  for record in chosen:
    key = tuple(sorted(record.setting.items()))
    if record.method != baseline and key in base:
      difference = {f"{quantity} above {baseline}": record.values - base[key]}
      found.add({record.method: difference}, **record.setting)
  return found


def above_baseline(ax, results: Results, quantity: str, *, baseline: str) -> None:
  """Intervals of paired differences by method, every seed as a dot; a color per data set.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is compared.
    baseline: the method that the others are compared with.
  """
  found = differences(results, quantity, baseline=baseline)
  intervals(ax, found, f"{quantity} above {baseline}", by="method", color="dataset")
  places = {method: x for x, method in enumerate(found.distinct("method"))}
  for record in found:
    x = np.full(np.size(record.values), places[record.method])
    ax.plot(x, np.ravel(record.values), ".", color="gray", ms=2)
  ax.axhline(0.0, color="gray", ls=":")
  ax.tick_params("x", labelsize=6, rotation=60)
  ax.legend(fontsize=6)


def dots(ax, results: Results, quantity: str, *, by: str = "method", **where):
  """Every seed as a dot and the mean as a bar, one line per value of `by`, from top to bottom.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is drawn, along x.
    by: "method" or the setting that has a line per value.
    **where: what the records must have.
  """
  labels = results.distinct(by, quantity=quantity, **where)
  for place, label in enumerate(labels):
    values = np.atleast_1d(results.select(quantity, **{**where, by: label}))
    ax.plot(values, np.full(values.shape, place), ".", color="tab:gray", markersize=4)
    ax.plot(values.mean(), place, "|", color="black", markersize=14, markeredgewidth=2)
  ax.set_yticks(range(len(labels)), [str(label) for label in labels])
  ax.set(ylim=(len(labels) - 0.5, -0.5), xlabel=quantity)


def curves(ax, results: Results, quantity: str, *, x: str, color: str = "method", **where):
  """Means over seeds along a setting, with bands of 95% t-intervals where three seeds have run.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is drawn.
    x: the setting along x, a number.
    color: "method" or the setting that colors tell apart.
    **where: what the records must have.
  """
  for label, shade in _colors(results, color, quantity, where).items():
    records = results.matching(quantity=quantity, **{**where, color: label})
    records = sorted((r for r in records if r.field(x) is not None), key=lambda r: r.field(x))
    xs = [record.field(x) for record in records]
    means, errors = np.transpose([_mean_and_half_width(record) for record in records])
    ax.plot(xs, means, ".-", color=shade, label=str(label))
    ax.fill_between(xs, means - errors, means + errors, color=shade, alpha=0.2)
  ax.set(xlabel=x, ylabel=quantity)


def paths(ax, results: Results, x: str, y: str, *, along: str, color: str = "method", **where):
  """Means over seeds of one quantity against those of another, joined in the order of a setting.

  Args:
    ax: the axes.
    results: the records.
    x: the quantity along x.
    y: the quantity along y.
    along: the setting that orders the points, a number; the last of them is marked.
    color: "method" or the setting that colors tell apart.
    **where: what the records must have.
  """
  for label, shade in _colors(results, color, y, where).items():
    own = {**where, color: label}
    places = sorted(results.distinct(along, quantity=y, **own))
    points = [
      [results.select(quantity, **own, **{along: place}).mean() for quantity in (x, y)]
      for place in places
    ]
    ax.plot(*np.transpose(points), color=shade, label=str(label))
    ax.plot(*points[-1], "o", color=shade)
  ax.set(xlabel=x, ylabel=y)


def matrix(ax, results: Results, quantity: str, *, rows: str, columns: str, **where):
  """Means over seeds as numbers in a matrix; the best of each column is the brightest.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is written.
    rows: "method" or the setting along the rows.
    columns: "method" or the setting along the columns.
    **where: what the records must have.
  """
  ys, xs = (results.distinct(name, quantity=quantity, **where) for name in (rows, columns))
  means = [
    [results.select(quantity, **{**where, rows: y, columns: x}).mean() for x in xs] for y in ys
  ]
  shares = np.divide(means, np.max(means, axis=0))
  ax.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
  for (i, j), share in np.ndenumerate(shares):
    color = "black" if share > 0.6 else "white"
    ax.text(j, i, f"{means[i][j]:.3g}", ha="center", va="center", color=color, fontsize=8)
  ax.set_xticks(range(len(xs)), [str(x) for x in xs])
  ax.set_yticks(range(len(ys)), [str(y) for y in ys])
  ax.set(xlabel=columns, ylabel=rows)


def histograms(ax, values: Mapping[str, Any], bins: Sequence[float] | int = 30):
  """Outlines of histograms, as densities.

  Args:
    ax: the axes.
    values: label -> numbers.
    bins: borders or number of bins.
  """
  for label, numbers in values.items():
    ax.hist(np.ravel(numbers), bins, histtype="step", density=True, label=label)
  ax.set_ylabel("density")


def prediction(ax, x, low, median, high, *, color: str, label: str):
  """A median and the interval around it, along x."""
  ax.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
  ax.plot(x, median, color=color, label=label)


def _colors(results: Results, color: str, quantity: str, where: Mapping[str, Any]) -> dict:
  """The values that colors tell apart, or the one that `where` names -> color, by its place."""
  import matplotlib

  labels = [where[color]] if color in where else results.distinct(color, quantity=quantity, **where)
  places = {label: i for i, label in enumerate(results.distinct(color))}
  twenty = matplotlib.colormaps["tab20"].colors  # In pairs of a strong and a pale one.
  shades = twenty[::2] + twenty[1::2]
  return {label: shades[places[label] % len(shades)] for label in labels}


def _mean_and_half_width(record: Record) -> tuple[float, float]:
  """A mean and half its interval; 0 where one or two seeds say next to nothing of the spread."""
  low, high = t_interval(record.values)
  half = (high - low) / 2
  is_known = np.size(record.values) > 2 and np.isfinite(half)
  return float(record.values.mean()), half if is_known else 0.0
