"""Confident learning against exact fractions and loops over examples."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxlab import metrics

N, K = 200, 6


@jax.jit
def estimate(probs, labels):
  raw = metrics.confident_joint(probs, labels, calibrate=False)
  joint = metrics.confident_joint(probs, labels)
  thresholds = metrics.confident_thresholds(probs, labels)
  return thresholds, raw, joint, metrics.estimate_joint(joint), metrics.noise_matrices(joint)


CALIBRATE = jax.jit(metrics.calibrate_confident_joint)
ROUND = jax.jit(metrics.round_preserving_row_sums)


def draw(seed, sharpness=2.0, num=N, classes=K):
  """Probabilities, and labels of which some are wrong."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, num).astype(np.int32)
  logits = rng.normal(size=(num, classes)) * sharpness
  logits[np.arange(num), labels] += 1
  probs = np.exp(logits)
  return (probs / probs.sum(1, keepdims=True)).astype(np.float32), labels


def slow_thresholds(probs, labels):
  probs = probs.astype(np.float64)
  means = [
    probs[labels == c, c].mean() if (labels == c).any() else 2.0 for c in range(probs.shape[1])
  ]
  return np.maximum(means, 2e-6)


def slow_guesses(probs, thresholds):
  guesses = []
  for row in probs.astype(np.float64):
    confident = [c for c, p in enumerate(row) if p >= thresholds[c] - 1e-6]
    guesses.append(
      -1 if not confident else confident[0] if len(confident) == 1 else int(np.argmax(row))
    )
  return np.array(guesses)


def slow_joint(probs, labels, thresholds):
  joint = np.zeros((probs.shape[1],) * 2, int)
  for given, guess in zip(labels, slow_guesses(probs, thresholds)):
    if guess >= 0:
      joint[given, guess] += 1
  np.fill_diagonal(joint, np.maximum(np.diag(joint), 1))
  return joint


def slow_round(row, total):
  """One row of exact fractions or floats."""
  rounded = [round(x) for x in row]
  gap = total - sum(rounded)
  order = sorted(range(len(row)), key=lambda i: (row[i] - rounded[i], i))
  for i in order[len(row) - gap :] if gap > 0 else order[:-gap]:
    rounded[i] += 1 if gap > 0 else -1
  return rounded


def slow_calibrate(joint, labels):
  counts = np.bincount(labels, minlength=len(joint))
  rows = [
    [Fraction(int(x) * int(n), max(int(sum(row)), 1)) for x in row] for row, n in zip(joint, counts)
  ]
  return np.array([slow_round(row, int(sum(row))) for row in rows])


@pytest.mark.parametrize("seed", range(6))
def test_estimates_match_loops(seed):
  probs, labels = draw(seed, sharpness=(0.5, 2.0)[seed % 2])
  if seed == 5:
    labels[labels == 3] = 2  # A class without examples.
  thresholds, raw, joint, shares, noise = jax.tree.map(np.asarray, estimate(probs, labels))
  expected = slow_thresholds(probs, labels)
  np.testing.assert_allclose(thresholds, expected, rtol=1e-6)
  np.testing.assert_array_equal(raw, slow_joint(probs, labels, expected))
  np.testing.assert_array_equal(joint, slow_calibrate(raw, labels))
  np.testing.assert_array_equal(joint.sum(1), np.bincount(labels, minlength=K))
  np.testing.assert_allclose(shares, joint / N, rtol=1e-6)
  assert all(np.isfinite(x).all() for x in noise)


def test_names_of_classes_do_not_matter():
  probs, labels = draw(0)
  order = np.array([3, 0, 4, 1, 5, 2])
  thresholds, raw, *_ = jax.tree.map(np.asarray, estimate(probs, labels))
  other = estimate(probs[:, order], np.argsort(order)[labels].astype(np.int32))
  np.testing.assert_allclose(other[0], thresholds[order], rtol=1e-6)
  np.testing.assert_array_equal(other[1], raw[order][:, order])


@pytest.mark.parametrize("seed", range(4))
def test_noise_matrices_follow_bayes_rule(seed):
  probs, labels = draw(seed)
  joint, _, noise = jax.tree.map(np.asarray, estimate(probs, labels)[2:])
  np.testing.assert_allclose(noise.noise, joint / joint.sum(0), rtol=1e-5)
  np.testing.assert_allclose(noise.inverse_noise, (joint / joint.sum(1)[:, None]).T, rtol=1e-5)
  np.testing.assert_allclose(noise.prior, joint.sum(0) / N, rtol=1e-5)
  forward = noise.noise * noise.prior
  np.testing.assert_allclose(
    forward, noise.inverse_noise.T * (joint.sum(1) / N)[:, None], rtol=1e-4
  )
  for matrix in noise.noise, noise.inverse_noise:
    np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-6)


def test_noise_matrices_of_empty_classes_and_of_certain_noise():
  joint = np.zeros((K, K), np.int32)
  joint[0, 1] = joint[2, 2] = 10
  noise = jax.tree.map(np.asarray, jax.jit(metrics.noise_matrices)(joint))
  np.testing.assert_allclose(noise.noise.sum(0), [0, 1, 1, 0, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(noise.inverse_noise.sum(0), [1, 0, 1, 0, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(noise.prior.sum(), 1, rtol=1e-6)
  # A cut to 0.9999 is undone where the column has nothing else.
  assert noise.noise[0, 1] == 1


def test_certain_and_right_probabilities_give_a_diagonal_joint():
  labels = np.arange(N, dtype=np.int32) % K
  _, raw, joint, _, _ = estimate(np.eye(K, dtype=np.float32)[labels], labels)
  np.testing.assert_array_equal(joint, np.diag(np.bincount(labels)))
  np.testing.assert_array_equal(raw, joint)


def test_planted_noise_is_found():
  """Inputs that determine the true class: probabilities are columns of the noise matrix."""
  rng = np.random.default_rng(0)
  noise = np.full((K, K), 0.04) + np.eye(K) * (1 - 0.04 * K)
  true = rng.integers(0, K, 20 * N)
  labels = (rng.random((20 * N, 1)) > np.cumsum(noise.T[true], 1)).sum(1).astype(np.int32)
  estimate = jax.jit(lambda *x: metrics.estimate_joint(metrics.confident_joint(*x)))
  joint = np.asarray(estimate(noise.T[true].astype(np.float32), labels))
  expected = noise / K
  error = np.sqrt(expected * (1 - expected) / (20 * N))
  assert (abs(joint - expected) < 4 * error).all()
  counts = np.zeros((K, K))
  np.add.at(counts, (labels, true), 1)
  np.testing.assert_allclose(joint, counts / (20 * N), atol=1e-6)


def test_given_thresholds_count_differently():
  probs, labels = draw(0)
  thresholds = np.full(K, 0.5, np.float32)
  joint = metrics.confident_joint(probs, labels, thresholds=thresholds, calibrate=False)
  np.testing.assert_array_equal(joint, slow_joint(probs, labels, thresholds))


def test_calibration_is_exact_for_large_counts():
  rng = np.random.default_rng(0)
  joint = rng.integers(0, 200_000, (3, 3)).astype(np.int32)
  joint[2] = 0
  labels = np.repeat(np.arange(3), (300_000, 1_000_003, 7)).astype(np.int32)
  calibrated = CALIBRATE(joint, labels)
  np.testing.assert_array_equal(calibrated[:2], slow_calibrate(joint, labels)[:2])
  np.testing.assert_array_equal(calibrated.sum(1), [300_000, 1_000_003, 0])


@pytest.mark.parametrize("seed", range(8))
def test_rounding_matches_a_loop(seed):
  rng = np.random.default_rng(seed)
  matrix = rng.random((7, K)) * 10
  if seed % 2:  # Ties, and halves.
    matrix = np.round(matrix * 4) / 4
  matrix = matrix.astype(np.float32)
  expected = [slow_round(row.tolist(), round(sum(row.tolist()))) for row in matrix]
  np.testing.assert_array_equal(ROUND(matrix), expected)


def test_mistakes_in_long_sums_do_not_move_thresholds():
  """A plain float32 sum of so many is wrong in the fifth digit."""
  rng = np.random.default_rng(0)
  first = (0.9 + 0.1 * rng.random(300_000)).astype(np.float32)
  probs, labels = np.stack([first, 1 - first], 1), np.zeros(300_000, np.int32)
  value = metrics.confident_thresholds(probs, labels)
  np.testing.assert_allclose(value, [first.astype(np.float64).mean(), 2], atol=1e-7)


def test_traced_labels_outside_the_classes_and_nan_rows_count_nowhere():
  probs, labels = draw(1)
  expected = estimate(probs[:-2], labels[:-2])[:3]
  changed, spoiled = labels.copy(), probs.copy()
  changed[-2:] = [-1, K]
  for ours, theirs in zip(estimate(probs, changed)[:3], expected):
    np.testing.assert_array_equal(ours, theirs)
  spoiled[-1, 0] = np.nan
  thresholds = metrics.confident_thresholds(jax.device_put(spoiled), labels)
  assert np.isnan(thresholds).sum() == (labels[-1] == 0)
  counts = metrics.confident_joint(
    jax.device_put(spoiled), labels, thresholds=expected[0], calibrate=False
  )
  slow = slow_joint(probs[:-1], labels[:-1], np.asarray(expected[0], np.float64))
  np.testing.assert_array_equal(counts, slow)


def test_errors_name_the_row():
  probs, labels = draw(0)
  for at, value, text in (3, 0.9, "sum to 1, got"), (5, np.nan, "sum to 1, got nan"):
    wrong = probs.copy()
    wrong[at, 0] = value + 0.5
    with pytest.raises(ValueError, match=rf"probs must {text}.* in row {at}\."):
      metrics.confident_joint(wrong, labels)
  wrong = probs.copy()
  wrong[7, :2] = [-0.5, wrong[7, :2].sum() + 0.5]
  with pytest.raises(ValueError, match=r"probs must not be negative, got -0.5 in row 7\."):
    metrics.confident_thresholds(wrong, labels)
  labels[9] = K
  with pytest.raises(ValueError, match=rf"labels must lie in \[0, {K}\), got 0 to {K};.*\[9\]"):
    metrics.confident_joint(probs, labels)
  with pytest.raises(ValueError, match="number of classes in probs must be at least 2, got 1"):
    metrics.confident_thresholds(np.ones((4, 1), np.float32), np.zeros(4, np.int32))
  with pytest.raises(ValueError, match=r"labels must have shape \[n\] with n = 200, got \[4\]"):
    metrics.confident_joint(probs, np.zeros(4, np.int32))
  with pytest.raises(ValueError, match=r"joint must lie in \[0, inf\)"):
    metrics.calibrate_confident_joint(-np.eye(K, dtype=np.int32), labels[:9])
