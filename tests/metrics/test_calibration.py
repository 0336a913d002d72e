import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from jaxlab import metrics

N, K = 300, 4
RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(K, 0.4), N).astype(np.float32)
LABELS = np.where(RNG.random(N) < 0.5, PROBS.argmax(1), RNG.integers(0, K, N))
BINNED = (
  metrics.expected_calibration_error,
  metrics.average_calibration_error,
  metrics.maximum_calibration_error,
  metrics.static_calibration_error,
)
jitted = {fn: jax.jit(fn, static_argnames="num_bins") for fn in BINNED}
confidence_calibration_error = jax.jit(
  metrics.confidence_calibration_error, static_argnames="num_bins"
)
reliability_diagram = jax.jit(metrics.reliability_diagram, static_argnames="num_bins")


def slow_gaps(confidence, correct, num_bins):
  """(count, gap) of the bins that are not empty, one prediction at a time."""
  edges = np.linspace(0, 1, num_bins + 1).astype(np.float32)
  bins = [sum(edge < c for edge in edges[1:-1]) for c in confidence]
  gaps = []
  for b in set(bins):
    rows = [i for i, own in enumerate(bins) if own == b]
    gaps.append((len(rows), abs(np.mean(confidence[rows]) - np.mean(correct[rows]))))
  return gaps


def slow_ece(confidence, correct, num_bins):
  return sum(n * gap for n, gap in slow_gaps(confidence, correct, num_bins)) / len(confidence)


@pytest.mark.parametrize("num_bins", [1, 15])
def test_binned_errors_match_a_loop_over_predictions(num_bins):
  confidence, correct = PROBS.max(1), PROBS.argmax(1) == LABELS
  gaps = [gap for _, gap in slow_gaps(confidence, correct, num_bins)]
  expected = (
    slow_ece(confidence, correct, num_bins),
    np.mean(gaps),
    np.max(gaps),
    np.mean([slow_ece(PROBS[:, c], c == LABELS, num_bins) for c in range(K)]),
  )
  for fn, value in zip(BINNED, expected):
    np.testing.assert_allclose(jitted[fn](PROBS, LABELS, num_bins=num_bins), value, atol=2e-6)
  ece = confidence_calibration_error(confidence, correct, num_bins=num_bins)
  np.testing.assert_allclose(ece, expected[0], atol=2e-6)
  if num_bins == 1:
    np.testing.assert_allclose(expected[0], abs(confidence.mean() - correct.mean()), atol=1e-6)


def test_largest_gap_bounds_the_averages():
  ece, ace, mce, _ = (float(jitted[fn](PROBS, LABELS, num_bins=15)) for fn in BINNED)
  assert ece <= mce and ace <= mce


def test_diagram_matches_scikit_learn():
  confidence, correct = PROBS.max(1), PROBS.argmax(1) == LABELS
  diagram = jax.device_get(reliability_diagram(PROBS, LABELS, num_bins=10))
  accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
  filled = np.asarray(diagram.count) > 0
  np.testing.assert_allclose(diagram.accuracy[filled], accuracy, atol=1e-6)
  np.testing.assert_allclose(diagram.confidence[filled], mean, atol=1e-6)
  assert diagram.count.sum() == N and diagram.count.dtype == jnp.int32
  assert not np.any(diagram.accuracy[~filled]) and not np.any(diagram.confidence[~filled])


def test_bins_are_closed_on_the_right():
  probs = np.array([[0.5, 0.5], [0.5 + 1e-6, 0.5 - 1e-6], [1.0, 0.0]], np.float32)
  diagram = jax.device_get(reliability_diagram(probs, np.zeros(3, int), num_bins=2))
  np.testing.assert_array_equal(diagram.count, [1, 2])
  # The first class is predicted on ties.
  np.testing.assert_array_equal(diagram.accuracy, [1, 1])
  assert confidence_calibration_error(np.zeros(1), np.zeros(1)) == 0


def test_calibrated_and_one_hot_predictions():
  confidence = np.repeat([0.55, 0.75, 0.95], 20).astype(np.float32)
  correct = np.concatenate([np.arange(20) < round(20 * c) for c in (0.55, 0.75, 0.95)])
  probs = np.stack([confidence, 1 - confidence], 1)
  for fn in BINNED:
    value = jitted[fn](probs, np.where(correct, 0, 1), num_bins=15)
    np.testing.assert_allclose(value, 0, atol=1e-6)
  one_hot = np.eye(K, dtype=np.float32)[LABELS[::-1]]
  error = 1 - np.mean(one_hot.argmax(1) == LABELS)
  for fn in BINNED[:3]:
    np.testing.assert_allclose(jitted[fn](one_hot, LABELS, num_bins=15), error, atol=1e-6)


def test_static_error_is_symmetric_in_two_classes():
  # With the default number of bins, rounding moves no complement 1 - p across an edge.
  probs = np.stack([PROBS[:, 0], 1 - PROBS[:, 0]], 1)
  labels = (LABELS > 0).astype(int)
  both = jitted[metrics.static_calibration_error](probs, labels)
  swapped = jitted[metrics.static_calibration_error](probs[:, ::-1], 1 - labels)
  first = confidence_calibration_error(probs[:, 0], labels == 0, num_bins=15)
  np.testing.assert_allclose([both, swapped], first, atol=1e-6)


def test_kolmogorov_smirnov_error_matches_its_definition():
  confidence, correct = PROBS.max(1), PROBS.argmax(1) == LABELS
  order = np.argsort(confidence, kind="stable")
  surplus = np.cumsum(confidence[order].astype(np.float64) - correct[order])
  error = jax.jit(metrics.kolmogorov_smirnov_error)
  np.testing.assert_allclose(error(confidence, correct), np.abs(surplus).max() / N, atol=1e-6)
  shuffled = RNG.permutation(N)
  np.testing.assert_allclose(
    error(confidence[shuffled], correct[shuffled]), error(confidence, correct), atol=1e-6
  )
  # Overconfident in every prefix: the error is the gap of the means.
  np.testing.assert_allclose(error(confidence, np.zeros(N)), confidence.mean(), atol=1e-6)
  assert error(np.ones(N), np.zeros(N)) == 1


def test_nll_matches_scikit_learn_and_is_finite_at_extremes():
  logits = np.log(PROBS)
  nll = jax.jit(metrics.negative_log_likelihood)
  np.testing.assert_allclose(np.mean(nll(logits, LABELS)), log_loss(LABELS, PROBS), rtol=1e-5)
  extreme = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
  np.testing.assert_array_equal(nll(extreme, np.zeros(2, int)), [0, 2e4])
  grad = jax.jit(jax.grad(lambda z: jnp.sum(nll(z, np.zeros(2, int)))))(extreme)
  np.testing.assert_allclose(grad, [[0, 0, 0], [-1, 1, 0]], atol=1e-6)


def test_brier_score_of_the_confidence_matches_scikit_learn():
  confidence, correct = PROBS.max(1), PROBS.argmax(1) == LABELS
  np.testing.assert_allclose(
    np.mean((confidence - correct) ** 2), brier_score_loss(correct, confidence), rtol=1e-5
  )


def test_interpolator_nll_at_known_values():
  nll = jax.jit(metrics.interpolator_temperature_scaled_nll)
  np.testing.assert_allclose(nll(1.0, 2), np.log(2), rtol=1e-6)
  np.testing.assert_array_equal(nll(0.0, np.array([2, 10])), 0)
  overlap = np.linspace(0, 1, 21)[:, None]
  table = np.asarray(nll(overlap, np.array([2, 5, 10, 100])))
  assert np.all(np.diff(table[1:], axis=1) > 0) and np.all(table >= overlap * np.log(2) - 1e-6)
  assert jnp.isfinite(jax.grad(nll)(1.0, 2.0))


def test_interpolator_nll_matches_the_best_temperature_of_a_simulation():
  overlap, num_classes, n = 0.4, 5, 1_000_000
  wrong = np.random.default_rng(0).random(n) < overlap / 2

  def nll(log_margin):
    margin = np.exp(log_margin)  # Margin of the predicted logit over all others.
    normalizer = np.log1p((num_classes - 1) * np.exp(-margin))
    return np.mean(normalizer + margin * wrong)

  best = minimize_scalar(nll, bounds=(-3, 3), method="bounded").fun
  closed = jax.jit(metrics.interpolator_temperature_scaled_nll)(overlap, num_classes)
  np.testing.assert_allclose(closed, best, atol=1e-2)


def test_sums_of_many_equal_terms_keep_their_digits():
  n = 1_000_000
  confidence = jnp.full(n, 0.9)
  error = confidence_calibration_error(confidence, jnp.ones(n))
  np.testing.assert_allclose(error, 0.1, atol=2e-5)


def test_half_precision_and_vmap():
  halves = jnp.asarray(PROBS, jnp.bfloat16)
  wide = jnp.asarray(halves, jnp.float32)
  for fn in BINNED:
    value = jitted[fn](halves, LABELS, num_bins=15)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, jitted[fn](wide, LABELS, num_bins=15), atol=1e-6)
  parts = PROBS.reshape(3, -1, K), LABELS.reshape(3, -1)
  error = jitted[metrics.expected_calibration_error]
  mapped = jax.vmap(error)(*parts)
  single = [error(*part) for part in zip(*parts)]
  np.testing.assert_allclose(mapped, single, atol=1e-6)


def test_nan_predictions_give_nan():
  probs = PROBS.copy()
  probs[0] = np.nan
  for fn in BINNED:
    assert np.isnan(jitted[fn](probs, LABELS, num_bins=15))
  assert np.isnan(jax.jit(metrics.kolmogorov_smirnov_error)(probs[:, 0], LABELS == 0))


@pytest.mark.parametrize("label", [-1, K])
def test_traced_labels_outside_the_classes_give_nan(label):
  labels = np.where(np.arange(N) == 0, label, LABELS)
  for fn in BINNED:
    assert np.isnan(jitted[fn](PROBS, labels, num_bins=15))


def test_rank_promotion_may_be_forbidden():
  nll = metrics.interpolator_temperature_scaled_nll
  with jax.numpy_rank_promotion("raise"):
    for fn in (*BINNED, metrics.negative_log_likelihood):
      jax.eval_shape(fn, PROBS, LABELS)
    assert jax.eval_shape(nll, np.ones((2, 1)), np.array([2, 3, 4])).shape == (2, 3)


def test_lists_are_accepted():
  for fn in (*BINNED, metrics.negative_log_likelihood):
    jax.eval_shape(lambda: fn([[0.2, 0.8], [0.6, 0.4], [1, 0]], [1, 0, 0]))  # noqa: B023


def test_errors():
  for fn in BINNED:
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
      fn(PROBS, LABELS, num_bins=0)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
      fn(PROBS, LABELS + 3)
    with pytest.raises(ValueError, match=r"probs must not be empty, got shape \[0, 4\]"):
      fn(PROBS[:0], LABELS[:0])
    with pytest.raises(ValueError, match="labels must have shape"):
      fn(PROBS, LABELS[:-1])
    with pytest.raises(TypeError, match="labels must be of type int, got float"):
      fn(PROBS, LABELS / 2)
  with pytest.raises(ValueError, match="confidence must not be empty"):
    metrics.kolmogorov_smirnov_error(PROBS[:0, 0], LABELS[:0])
  with pytest.raises(ValueError, match="labels"):
    metrics.negative_log_likelihood(PROBS, LABELS - 1)
  with pytest.raises(ValueError, match=r"overlap must lie in \[0, 1\], got 1.5"):
    metrics.interpolator_temperature_scaled_nll(1.5, 3)
  with pytest.raises(ValueError, match="num_classes"):
    metrics.interpolator_temperature_scaled_nll(0.5, 1)
