"""Pictures say what the records say."""

import matplotlib
import numpy as np
import pytest

from experiments.kit import plots
from jaxlab.experiment import Results, t_interval

matplotlib.use("Agg")


@pytest.fixture
def results():
  made = Results()
  for step in (30, 10, 20):
    made.add({"a": {"loss": [step, step + 1, step + 2.0]}, "b": {"loss": [0.0] * 3}}, step=step)
    made.add({"a": {"few": [step, step + 2.0]}}, step=step)
  made.add({"a": {"accuracy": [0.5, 0.7]}}, dataset="x")
  made.add({"a": {"accuracy": [0.1, 0.3]}, "b": {"accuracy": [0.2, 0.2]}}, dataset="y")
  return made


def test_curves_are_sorted_means_with_interval_bands(results):
  _, (ax,) = plots.panels(1)
  plots.curves(ax, results, "loss", x="step")
  ours, other = ax.get_lines()
  np.testing.assert_array_equal(ours.get_xdata(), [10, 20, 30])
  np.testing.assert_array_equal(ours.get_ydata(), [11, 21, 31])
  assert [ours.get_label(), other.get_label()] == ["a", "b"]
  low, high = t_interval([10.0, 11.0, 12.0])
  band = ax.collections[0].get_datalim(ax.transData)
  np.testing.assert_allclose([band.y0, band.y1], [low, high + 20], rtol=1e-6)
  _, (ax,) = plots.panels(1)
  plots.curves(ax, results, "few", x="step")
  band = ax.collections[0].get_datalim(ax.transData)
  np.testing.assert_allclose([band.y0, band.y1], [11, 31])  # Two seeds have no band.
  results = Results()
  for step in (1, 2):
    results.add({"exact": {"loss": float(step)}}, step=step)  # One number for all seeds.
  _, (ax,) = plots.panels(1)
  plots.curves(ax, results, "loss", x="step")
  np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [1, 2])


def test_paths_join_means_in_the_order_of_a_setting():
  results = Results()
  for step in (3, 1, 2):
    results.add({"a": {"far": [step, step + 2.0], "worth": [-step, -step]}}, step=step)
  _, (ax,) = plots.panels(1)
  plots.paths(ax, results, "far", "worth", along="step")
  line, end = ax.get_lines()
  np.testing.assert_array_equal(line.get_xdata(), [2, 3, 4])
  np.testing.assert_array_equal(line.get_ydata(), [-1, -2, -3])
  assert (end.get_xdata(), end.get_ydata()) == ([4], [-3])
  assert line.get_color() == end.get_color() and line.get_label() == "a"


def test_intervals_place_every_record_in_its_group(results):
  _, (ax,) = plots.panels(1)
  plots.intervals(ax, results, "accuracy", by="dataset")
  first, second = (container[0] for container in ax.containers)
  np.testing.assert_allclose(np.float64(first.get_ydata()), [0.6, 0.2])
  np.testing.assert_allclose(np.float64(second.get_ydata()), [0.2])  # It lacks the first data set.
  assert [round(x) for x in (*first.get_xdata(), *second.get_xdata())] == [0, 1, 1]
  assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]


def test_dots_show_every_seed_and_the_mean_from_top_to_bottom(results):
  _, (ax,) = plots.panels(1)
  plots.dots(ax, results, "accuracy", dataset="y")
  seeds, mean, *_ = ax.get_lines()
  np.testing.assert_array_equal(seeds.get_xdata(), [0.1, 0.3])
  np.testing.assert_array_equal(seeds.get_ydata(), [0, 0])
  np.testing.assert_allclose([*mean.get_xdata(), *mean.get_ydata()], [0.2, 0])
  assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
  assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_one_color_may_be_named(results):
  _, (ax,) = plots.panels(1)
  plots.intervals(ax, results, "accuracy", by="dataset", method="b")
  (container,) = ax.containers
  assert container.get_label() == "b" and len(container[0].get_ydata()) == 1


def test_groups_may_be_the_colors(results):
  _, (ax,) = plots.panels(1)
  plots.intervals(ax, results, "accuracy", by="method", dataset="y")
  assert [list(container[0].get_ydata()) for container in ax.containers] == [[0.2], [0.2]]


def test_histograms_have_a_label_each():
  _, axes = plots.panels(2)
  plots.histograms(axes[0], {"a": np.arange(10.0), "b": np.ones((2, 3))}, bins=4)
  assert len(axes) == 2 and axes[0].get_legend_handles_labels()[1] == ["a", "b"]


def test_a_method_has_one_color_in_all_panels(results):
  _, axes = plots.panels(3)
  plots.curves(axes[0], results, "loss", x="step")
  plots.curves(axes[1], results, "loss", x="step", method="b")
  plots.intervals(axes[2], results, "accuracy", by="dataset", method="b")
  (drawn,) = (line for line in axes[0].get_lines() if line.get_label() == "b")
  assert axes[1].get_lines()[0].get_color() == drawn.get_color()
  assert axes[2].containers[0][0].get_color() == drawn.get_color()


def test_differences_are_paired_by_setting(results):
  found = plots.differences(results, "accuracy", baseline="b")
  assert [(r.method, dict(r.setting)) for r in found] == [("a", {"dataset": "y"})]
  values = found.select("accuracy above b", method="a", dataset="y")
  np.testing.assert_allclose(values, [-0.1, 0.1])


def test_differences_are_drawn_with_every_seed(results):
  _, (ax,) = plots.panels(1)
  plots.above_baseline(ax, results, "accuracy", baseline="b")
  dots = [line for line in ax.lines if line.get_marker() == "."]
  assert len(dots) == 1
  np.testing.assert_allclose(dots[0].get_ydata(), [-0.1, 0.1])
  np.testing.assert_array_equal(dots[0].get_xdata(), [0, 0])
  assert [label.get_text() for label in ax.get_xticklabels()] == ["a"]
  assert any(list(line.get_ydata()) == [0.0, 0.0] for line in ax.lines)


def test_a_logarithmic_axis_has_ticks_where_lines_have_points(results):
  _, (ax,) = plots.panels(1)
  plots.curves(ax, results, "loss", x="step")
  plots.log_axis(ax, "updates")
  assert ax.get_xscale() == "log" and ax.get_xlabel() == "updates"
  np.testing.assert_array_equal(ax.get_xticks(), [10, 20, 30])
  assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "20", "30"]
  assert len(ax.get_xticks(minor=True)) == 0


def test_one_legend_below_names_what_one_panel_shows(results):
  figure, (ax, other) = plots.panels(2)
  plots.curves(ax, results, "loss", x="step")
  plots.legend_below(figure, ax, columns=2)
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
  assert other.get_legend() is None
