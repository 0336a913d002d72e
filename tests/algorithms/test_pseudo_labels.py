"""Labels from elsewhere, and which of them can be trusted."""

import functools

import jax
import numpy as np
import pytest

from jaxlab import algorithms

RNG = np.random.default_rng(0)
LABELED = RNG.normal(size=(12, 6)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
FEATURES = RNG.normal(size=(20, 6)).astype(np.float32)
_TRANSFER = jax.jit(functools.partial(algorithms.transfer_pseudo_labels, num_classes=4))


def transfer(*arrays, mask=None):
  return jax.device_get(_TRANSFER(*arrays, mask=mask))


def slow_transfer(features, labeled, labels, mask):
  """Scores of four classes, pair by pair."""
  scores = np.full((len(features), 4), -1.0)
  for i, x in enumerate(features.astype(np.float64)):
    for y, label, use in zip(labeled.astype(np.float64), labels, mask):
      if use:
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        scores[i, label] = max(scores[i, label], cosine)
  return scores


def test_transfer_matches_a_loop():
  mask = np.arange(12) != 4
  for use in (mask, np.ones(12, bool)):
    result = transfer(FEATURES, LABELED, LABELS, mask=use)
    scores = slow_transfer(FEATURES, LABELED, LABELS, use)
    np.testing.assert_allclose(result.scores, scores, atol=1e-5)
    np.testing.assert_array_equal(result.labels, scores.argmax(-1))
    ordered = np.sort(scores, axis=-1)
    np.testing.assert_allclose(result.weights, ordered[:, -1] - ordered[:, -2], atol=1e-5)
  assert np.all(np.asarray(result.scores)[:, 3] == -1) and result.labels.dtype == np.int32


def test_labeled_rows_are_nearest_to_themselves():
  own = transfer(LABELED, LABELED, LABELS)
  np.testing.assert_allclose(own.scores[range(12), LABELS], 1.0, atol=1e-6)
  np.testing.assert_array_equal(own.labels, LABELS)
  assert np.all(np.abs(own.scores) <= 1) and np.all(own.weights >= 0)


def test_rotations_and_repetitions_change_nothing_and_a_row_its_class_alone():
  base = transfer(FEATURES, LABELED, LABELS)
  rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
  turned = transfer(FEATURES @ rotation, LABELED @ rotation, LABELS)
  np.testing.assert_allclose(turned.weights, base.weights, atol=1e-5)
  without = transfer(FEATURES, LABELED, LABELS, mask=np.arange(12) != 4)
  np.testing.assert_array_equal(without.scores[:, [0, 2, 3]], base.scores[:, [0, 2, 3]])
  # A second copy of row 3 in the place of row 0, of the same class.
  repeated = LABELED.copy()
  repeated[0] = repeated[3]
  twice = transfer(FEATURES, repeated, LABELS)
  once = transfer(FEATURES, LABELED, LABELS, mask=np.arange(12) != 0)
  np.testing.assert_array_equal(twice.weights, once.weights)


def test_weights_tell_target_rows_from_unknown_ones():
  """Three orthogonal classes, and unknown rows halfway between two of them."""
  rng = np.random.default_rng(1)
  means = np.eye(6)[:3]
  target = means[np.arange(10) % 3] + 0.1 * rng.normal(size=(10, 6))
  unknown = (means[np.arange(10) % 3] + means[(np.arange(10) + 1) % 3]) / 2
  unknown = unknown + 0.1 * rng.normal(size=(10, 6))
  labeled = means[LABELS] + 0.05 * rng.normal(size=(12, 6))
  rows = np.concatenate([target, unknown]).astype(np.float32)
  result = transfer(rows, labeled.astype(np.float32), LABELS)
  auroc = np.mean(result.weights[:10][:, None] > result.weights[10:][None])
  is_unknown = np.arange(20) >= 10
  rates = jax.jit(algorithms.invasion_rates)
  truth = np.arange(20) % 3
  assert auroc >= 0.95
  assert rates(result.weights, result.labels, truth, is_unknown).invasion <= 0.25
  plain = rates(np.ones(20, np.float32), result.labels, truth, is_unknown)
  assert plain.invasion == 0.5 and plain.pseudo_label_error == 0


def test_invasion_rates():
  rates = jax.jit(algorithms.invasion_rates)
  labels, truth = np.array([0, 1, 2, 0]), np.array([0, 2, 7, 1])
  unknown = np.array([False, False, True, False])
  result = rates(np.float32([1, 2, 3, 4]), labels, truth, unknown)
  np.testing.assert_allclose(result, [6 / 10, 3 / 10], rtol=1e-6)
  assert rates(np.zeros(4, np.float32), labels, truth, unknown) == (0, 0)


def test_fewer_rows_move_every_round():
  rounds = np.arange(1, 8)
  shares = jax.jit(algorithms.selection_fraction)(rounds)
  np.testing.assert_allclose(shares, [0.064, 0.036, 0.016, 0.004, 0, 0, 0], atol=1e-7)


@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.5, 1.0])
def test_smallest_losses_are_selected(fraction):
  losses = np.round(np.random.default_rng(2).exponential(size=10), 1).astype(np.float32)
  losses[4], losses[7] = np.inf, losses[1]
  select = functools.partial(algorithms.select_reliable, fraction=fraction)
  mask = np.arange(10) % 2 == 1
  everything, some = jax.jit(lambda x, m: (select(x), select(x, mask=m)))(losses, mask)
  order = np.argsort(losses, kind="stable")
  expected = np.zeros(10, bool)
  expected[order[: int(fraction * 10)]] = True
  np.testing.assert_array_equal(everything, expected)
  allowed = [i for i in order if mask[i]][: int(fraction * 10)]
  np.testing.assert_array_equal(np.flatnonzero(some), np.sort(allowed))


def test_nan_is_never_reliable():
  losses = np.float32([np.nan, 1.0, np.inf, 2.0])
  everything = jax.jit(functools.partial(algorithms.select_reliable, fraction=1.0))(losses)
  np.testing.assert_array_equal(everything, [False, True, True, True])


def test_errors():
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    algorithms.transfer_pseudo_labels(FEATURES, LABELED, LABELS, num_classes=1)
  with pytest.raises(ValueError, match="labels must lie in"):
    algorithms.transfer_pseudo_labels(FEATURES, LABELED, LABELS, num_classes=2)
  with pytest.raises(ValueError, match=r"labeled_features must have shape \[l, d\] with d = 6"):
    algorithms.transfer_pseudo_labels(FEATURES, LABELED[:, :3], LABELS, num_classes=3)
  with pytest.raises(ValueError, match="initial"):
    algorithms.selection_fraction(1, initial=2.0)
  with pytest.raises(ValueError, match="num_rounds must be at least 1, got 0"):
    algorithms.selection_fraction(1, num_rounds=0)
  with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got 1.5"):
    algorithms.select_reliable(np.ones(4), fraction=1.5)
  with pytest.raises(ValueError, match="weights"):
    algorithms.invasion_rates(-np.ones(2), np.zeros(2, int), np.zeros(2, int), np.zeros(2, bool))
