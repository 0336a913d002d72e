import itertools

import jax
import numpy as np
import pytest

from jaxlab import metrics

program = jax.jit(metrics.intra_class_spread, static_argnames="num_classes")


def spread(*args, **kwargs):
  return jax.device_get(program(*args, **kwargs))


FEATURES = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
FEATURES[4] = 0
LABELS = np.array([0, 1, 1, 0, 1, 3, 0, 1, 4], np.int32)


def slow(features, labels):
  values = []
  for c in range(5):
    rows = np.float64(features[labels == c])
    pairs = [
      x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-30)
      for x, y in itertools.combinations(rows, 2)
    ]
    values.append(1 - np.mean(pairs) if pairs else 0.0)
  return values


def test_it_is_one_minus_the_mean_cosine_of_pairs():
  values = spread(FEATURES, LABELS, num_classes=5)
  np.testing.assert_allclose(values, slow(FEATURES, LABELS), rtol=1e-5)
  assert values[2] == values[3] == 0
  scaled = FEATURES * np.arange(1, 10, dtype=np.float32)[:, None]
  np.testing.assert_allclose(spread(scaled, LABELS, num_classes=5), values, rtol=1e-5)


def test_points_and_opposite_directions():
  same = np.broadcast_to(FEATURES[:1], (9, 3))
  collapsed = spread(same, LABELS, num_classes=5)
  np.testing.assert_allclose(collapsed, 0, atol=1e-6)
  assert np.all(collapsed >= 0)
  near = same + 1e-3 * FEATURES
  np.testing.assert_allclose(spread(near, LABELS, num_classes=5), slow(near, LABELS), rtol=0.01)
  opposite = FEATURES[:1] * np.where(np.arange(9) == 0, 1, -1)[:, None]
  values = spread(np.float32(opposite), np.where(np.arange(9) < 2, 0, 5), num_classes=5)
  np.testing.assert_allclose(values, [2, 0, 0, 0, 0], rtol=1e-6)


def test_a_nan_spoils_its_class_alone():
  spoiled = np.where((LABELS == 1)[:, None] & (np.arange(9) == 7)[:, None], np.nan, FEATURES)
  values = spread(spoiled, LABELS, num_classes=5)
  np.testing.assert_array_equal(np.isnan(values), [False, True, False, False, False])


def test_errors():
  with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
    metrics.intra_class_spread(FEATURES, LABELS, num_classes=0)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
    metrics.intra_class_spread(FEATURES, LABELS, num_classes=4)
  with pytest.raises(ValueError, match="labels must have shape"):
    metrics.intra_class_spread(FEATURES, LABELS[:4], num_classes=5)
