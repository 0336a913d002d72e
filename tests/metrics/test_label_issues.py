"""Label issues and scores against loops over classes and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics
from jaxlab.metrics import label_issues

N, K = 150, 5
METHODS = (
  "prune_by_noise_rate",
  "prune_by_class",
  "both",
  "confident_learning",
  "predicted_neq_given",
)


@jax.jit
def find(probs, labels, fraction=1.0):
  masks = [metrics.find_label_issues(probs, labels, method=m, fraction=fraction) for m in METHODS]
  return masks, metrics.num_label_issues(probs, labels), metrics.confident_joint(probs, labels)


@jax.jit
def score(probs, labels):
  return [
    metrics.label_quality(probs, labels, method=m)
    for m in ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
  ]


def draw(seed, num=N, classes=K, grid=None):
  """Probabilities, and labels of which a quarter is wrong; on a grid there are many ties."""
  rng = np.random.default_rng(seed)
  true = rng.integers(0, classes, num)
  labels = np.where(rng.random(num) < 0.25, rng.integers(0, classes, num), true).astype(np.int32)
  logits = rng.normal(size=(num, classes)) * 1.5
  logits[np.arange(num), true] += 2
  probs = np.exp(logits)
  probs /= probs.sum(1, keepdims=True)
  if grid:
    probs = np.floor(probs * grid) / grid
    probs[:, 0] += 1 - probs.sum(1)
  return probs.astype(np.float32), labels


def slow_issues(probs, labels, joint, method, fraction=1.0, minimum=1):
  """The definition, in the order of the specification of cleanlab: rows true, columns given."""
  num, classes = probs.shape
  exact = probs.astype(np.float64)
  sizes = np.bincount(labels, minlength=classes)
  counts = joint.T.astype(np.float64)
  diagonal = np.diag(counts).copy()
  raised = np.maximum(diagonal, minimum)
  counts = counts - (raised - diagonal) / np.maximum((counts != 0).sum(0) - 1, 1)
  counts[counts < 0] = 0
  np.fill_diagonal(counts, 0)
  np.fill_diagonal(reduced := counts * fraction, raised + (counts - counts * fraction).sum(0))
  counts = reduced.astype(int)

  def by_class():
    flagged = np.zeros(num, bool)
    for k in range(classes):
      rows = np.flatnonzero(labels == k)
      if sizes[k] > minimum and (wrong := sizes[k] - counts[k, k]) > 0:
        flagged[rows[np.argsort(exact[rows, k], kind="stable")[:wrong]]] = True
    return flagged

  def by_noise_rate():
    flagged = np.zeros(num, bool)
    for k in range(classes):
      rows = np.flatnonzero(labels == k)
      for j in range(classes):
        if j != k and sizes[k] > minimum:
          order = np.argsort(-(exact[rows, j] - exact[rows, k]), kind="stable")
          flagged[rows[order[: counts[j, k]]]] = True
    return flagged

  def confident():
    thresholds = np.array([exact[labels == k, k].mean() if sizes[k] else 2 for k in range(classes)])
    flagged = np.zeros(num, bool)
    for i, row in enumerate(exact):
      above = np.flatnonzero(row >= thresholds - 1e-6)
      if len(above):
        flagged[i] = (above[0] if len(above) == 1 else np.argmax(row)) != labels[i]
    return flagged

  flagged = {
    "prune_by_noise_rate": by_noise_rate,
    "prune_by_class": by_class,
    "both": lambda: by_class() & by_noise_rate(),
    "confident_learning": confident,
    "predicted_neq_given": lambda: exact.argmax(1) != labels,
  }[method]()
  right = np.argmax(exact + 1e-6 * np.eye(classes)[labels], axis=1) == labels
  return flagged & ~right


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_issues_match_loops(seed, fraction):
  probs, labels = draw(seed, grid=16 if seed == 3 else None)
  if seed == 2:  # A class of one example, and one of none.
    labels[labels >= 3] = 0
    labels[7] = 3
  masks, num, joint = find(probs, labels, fraction)
  for method, mask in zip(METHODS, masks):
    expected = slow_issues(probs, labels, np.asarray(joint), method, fraction)
    np.testing.assert_array_equal(mask, expected, method)
  assert num == masks[3].sum() and num.dtype == np.int32


@jax.jit
def prune(probs, labels):
  return [
    metrics.find_label_issues(probs, labels, method=m, min_examples_per_class=least)
    for m in METHODS[:2]
    for least in (1, 26)
  ]


def test_examples_are_left_in_each_class():
  probs, labels = draw(0)
  joint = np.asarray(find(probs, labels)[2])
  rate, left, pruned, kept = prune(probs, labels)
  np.testing.assert_array_equal(left, slow_issues(probs, labels, joint, METHODS[0], minimum=26))
  np.testing.assert_array_equal(kept, slow_issues(probs, labels, joint, METHODS[1], minimum=26))
  assert left.sum() < rate.sum() and kept.sum() < pruned.sum()


def test_blocks_of_rows_change_nothing():
  probs, labels = draw(0, num=3000, classes=100)
  issues, joint = jax.jit(lambda *x: (metrics.find_label_issues(*x), metrics.confident_joint(*x)))(
    probs, labels
  )
  expected = slow_issues(probs, labels, np.asarray(joint), "prune_by_noise_rate")
  np.testing.assert_array_equal(issues, expected)


@pytest.mark.shipping
@pytest.mark.parametrize("method", METHODS)
def test_a_million_rows_of_a_thousand_classes_are_not_copied(method):
  probs = jax.ShapeDtypeStruct((10**6, 1000), np.float32)
  labels = jax.ShapeDtypeStruct((10**6,), np.int32)
  find = jax.jit(lambda *x: metrics.find_label_issues(*x, method=method))
  memory = find.lower(probs, labels).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.05 * memory.argument_size_in_bytes


def test_classes_may_be_compared_with_any_number_of_others_at_a_time(monkeypatch):
  probs, labels = draw(3, grid=8)
  expected = find(probs, labels)[0][0]
  for size in (1, 2):
    monkeypatch.setattr(label_issues, "_COLUMNS", size)
    flagged = jax.jit(lambda *x: metrics.find_label_issues(*x))(probs, labels)
    np.testing.assert_array_equal(flagged, expected)
  assert 0 < np.sum(expected) < N


def test_certain_and_right_probabilities_give_no_issue():
  labels = np.arange(N, dtype=np.int32) % K
  masks, num, _ = find(np.eye(K, dtype=np.float32)[labels], labels)
  assert num == 0 and not np.any(masks)


@pytest.mark.parametrize("seed", range(4))
def test_names_of_classes_do_not_matter(seed):
  # Two of the classes are in use: rounding has no ties then, which go by the order of the classes.
  probs, labels = draw(seed, classes=2)
  probs = np.pad(probs, ((0, 0), (0, K - 2)))
  order = np.array([3, 0, 4, 1, 2])
  masks, num, joint = find(probs, labels)
  other = find(probs[:, order], np.argsort(order)[labels].astype(np.int32))
  np.testing.assert_array_equal(other[2], np.asarray(joint)[order][:, order])
  np.testing.assert_array_equal(other[0], masks)
  assert other[1] == num > 0


def test_extreme_and_unknown_rows():
  probs, labels = draw(2)
  probs[0], labels[0] = np.eye(K)[1], 2
  labels[1], spoiled = -1, probs.copy()
  spoiled[2, 1] = np.nan
  masks, _, _ = find(spoiled, labels)
  assert np.all([mask[0] for mask in masks]) and not np.any([mask[1] for mask in masks])


def test_scores_match_loops():
  probs, labels = draw(0)
  probs[0], probs[1] = np.eye(K)[labels[0]], np.eye(K)[labels[1] - 1]
  exact = probs.astype(np.float64)
  own = exact[np.arange(N), labels]
  others = [max(p for k, p in enumerate(row) if k != y) for row, y in zip(exact, labels)]
  entropy = [-sum(p * np.log(p) for p in row if p > 0) / np.log(K) for row in exact]
  weight = entropy / np.maximum(own, 1e-6)
  confidence, margin, weighted = score(probs, labels)
  np.testing.assert_allclose(confidence, own, rtol=1e-6)
  np.testing.assert_allclose(margin, (own - others + 1) / 2, rtol=1e-5, atol=1e-7)
  expected = np.log1p(weight) / np.maximum(weight, 1e-6)
  np.testing.assert_allclose(weighted, expected, rtol=1e-5, atol=1e-7)
  assert weighted[0] == 0 and margin[1] == 0 and margin[0] == 1
  assert np.all([(x >= 0) & (x <= 1) for x in (confidence, margin, weighted)])


def test_scores_of_labels_outside_the_classes_are_nan_and_gradients_are_finite():
  probs, labels = draw(0)
  probs[0] = np.eye(K)[labels[0]]
  outside = labels.copy()
  outside[:2] = [-1, K]
  for values in score(probs, outside):
    np.testing.assert_array_equal(np.isnan(values), np.arange(N) < 2)
  gradient = jax.jit(jax.grad(lambda x: sum(jnp.sum(y) for y in score(x, labels))))(probs)
  assert np.isfinite(gradient).all()


def test_errors():
  probs, labels = draw(0)
  with pytest.raises(ValueError, match="method must be one of .*'both'.*, got 'all'"):
    metrics.find_label_issues(probs, labels, method="all")
  with pytest.raises(ValueError, match="method must be one of 'self_confidence'.*, got 'margin'"):
    metrics.label_quality(probs, labels, method="margin")
  for fraction in (0.0, 1.5):
    with pytest.raises(ValueError, match=rf"fraction must lie in \(0, 1\], got {fraction}"):
      metrics.find_label_issues(probs, labels, fraction=fraction)
  with pytest.raises(ValueError, match="min_examples_per_class must be at least 0, got -1"):
    metrics.find_label_issues(probs, labels, min_examples_per_class=-1)
  with pytest.raises(ValueError, match=r"probs must sum to 1, got .* in row 0"):
    metrics.find_label_issues(2 * probs, labels)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
    metrics.num_label_issues(probs, labels - 1)
