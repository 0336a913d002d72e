import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import beta

from jaxlab import metrics


@pytest.fixture
def ax():
  fig, ax = plt.subplots()
  yield ax
  plt.close(fig)


def test_reliability_draws_filled_bins_with_exact_binomial_intervals(ax):
  diagram = metrics.Reliability(
    np.array([0.0, 0.3, 0.7, 0.95]), np.array([0.0, 0.5, 0.6, 1.0]), np.array([0, 4, 10, 20])
  )
  assert metrics.plot_reliability(diagram, ax=ax) is ax
  bars = ax.containers[0]
  np.testing.assert_allclose([bar.get_height() for bar in bars], [0.5, 0.6, 1.0])
  np.testing.assert_allclose([bar.get_x() for bar in bars], [0.25, 0.5, 0.75])
  assert [text.get_text() for text in ax.texts] == ["4", "10", "20"]
  segments = ax.collections[0].get_segments()
  hits, counts = np.array([2, 6, 20]), np.array([4, 10, 20])
  low = beta.ppf(0.05, hits, counts - hits + 1)
  high = np.append(beta.ppf(0.95, hits[:2] + 1, counts[:2] - hits[:2]), 1.0)
  np.testing.assert_allclose([s[0, 1] for s in segments], low, rtol=1e-6)
  np.testing.assert_allclose([s[1, 1] for s in segments], high, rtol=1e-6)
  with pytest.raises(ValueError, match="not empty"):
    metrics.plot_reliability(metrics.Reliability(np.zeros(2), np.zeros(2), np.zeros(2, int)))


def test_stream_error_draws_one_line_per_method_and_names_the_domains(ax):
  errors = {"source": np.linspace(0, 1, 6), "adapted": np.zeros(6)}
  metrics.plot_stream_error(errors, boundaries=[0, 3], names=["noise", "blur"], ax=ax)
  np.testing.assert_array_equal(ax.lines[0].get_ydata(), errors["source"])
  assert [line.get_xdata()[0] for line in ax.lines[2:]] == [0, 3]
  assert [text.get_text().strip() for text in ax.texts] == ["noise", "blur"]
  assert [text.get_text() for text in ax.get_legend().get_texts()] == ["source", "adapted"]
  with pytest.raises(ValueError, match="1 boundaries but 0 names"):
    metrics.plot_stream_error(np.zeros(3), boundaries=[0], names=[], ax=ax)


def test_single_stream_creates_its_own_axes():
  ax = metrics.plot_stream_error(np.arange(3.0), boundaries=[0], names=["noise"])
  np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 1, 2])
  assert ax.get_legend() is None
  plt.close(ax.figure)


def test_cost_accuracy_is_drawn_in_the_order_of_cost(ax):
  curves = {"exits": ([3, 1, 2], [0.9, 0.5, 0.7]), "full": ([4], [0.92])}
  metrics.plot_cost_accuracy(curves, ax=ax)
  np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
  np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.7, 0.9])
  assert len(ax.lines) == 2
  with pytest.raises(ValueError, match="'bad'"):
    metrics.plot_cost_accuracy({"bad": ([1, 2], [0.5])}, ax=ax)
