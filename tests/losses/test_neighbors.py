import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses
from jaxlab.losses import neighbors


def evaluated(function, *static):
  """The function as one program that gives NumPy arrays."""
  program = jax.jit(function, static_argnames=static)
  return lambda *args, **kwargs: jax.device_get(program(*args, **kwargs))


knn = evaluated(losses.knn_classification_loss, "num_neighbors", "missing")
leave_one_out = evaluated(losses.leave_one_out_knn_loss, "num_neighbors", "missing")
probabilities = evaluated(losses.knn_probabilities, "num_neighbors", "num_classes")
contrastive = evaluated(losses.supervised_contrastive_loss)

RNG = np.random.default_rng(0)
KEYS = RNG.normal(size=(12, 3)).astype(np.float32)
QUERIES = RNG.normal(size=(12, 3)).astype(np.float32)
# One empty slot, one class of a single key; one query of a class without keys.
KEY_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, -1, 0, 3, 1], np.int32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 3, 4], np.int32)
MASK = RNG.uniform(size=(12, 12)) < 0.8


def cosines(queries, keys):
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in np.float64([queries, keys])]
  return unit[0] @ unit[1].T


def neighbors_of(similarity, allowed, num):
  return sorted(np.flatnonzero(allowed), key=lambda j: (-similarity[j], j))[:num]


def slow_knn(queries, labels, keys, key_labels, num, temperature, missing, mask):
  values = []
  for similarity, label, allowed in zip(cosines(queries, keys), labels, mask):
    allowed = allowed & (key_labels >= 0)
    voters = neighbors_of(similarity, allowed, num)
    right = [j for j in voters if key_labels[j] == label]
    others = neighbors_of(similarity, allowed & (key_labels == label), 1)
    if not right and missing == "nearest_positive":
      voters, right = voters + others, others
    votes = np.exp(similarity / temperature)
    values.append(-np.log(votes[right].sum() / votes[voters].sum()) if right else 0.0)
  return values


@pytest.mark.parametrize("missing", ["nearest_positive", "skip"])
@pytest.mark.parametrize(("num", "temperature"), [(1, 0.1), (3, 0.5), (50, 0.2)])
def test_knn_loss_matches_a_loop(num, temperature, missing):
  batch = (QUERIES, LABELS, KEYS, KEY_LABELS)
  given = {"num_neighbors": num, "temperature": temperature, "missing": missing, "mask": MASK}
  value = knn(*batch, **given)
  np.testing.assert_allclose(
    value, slow_knn(*batch, num, temperature, missing, MASK), rtol=1e-4, atol=1e-5
  )
  assert value[-1] == 0
  order = RNG.permutation(12)
  moved = knn(QUERIES, LABELS, KEYS[order], KEY_LABELS[order], **given | {"mask": MASK[:, order]})
  np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
  scaled = knn(3 * QUERIES, LABELS, 0.01 * KEYS, KEY_LABELS, **given)
  np.testing.assert_allclose(scaled, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num", [2, 5, 11])
def test_leave_one_out_is_the_general_loss_without_the_row_itself(num):
  value = leave_one_out(KEYS, LABELS, num_neighbors=num)
  batch, others = (KEYS, LABELS, KEYS, LABELS), ~np.eye(12, dtype=bool)
  np.testing.assert_allclose(
    value, slow_knn(*batch, num, 0.1, "nearest_positive", others), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    value, knn(*batch, num_neighbors=num, mask=others), rtol=1e-5, atol=1e-6
  )


def test_neighbors_of_the_right_class_cost_nothing():
  alike = np.zeros(12, np.int32)
  np.testing.assert_array_equal(leave_one_out(KEYS, alike, num_neighbors=3), 0)
  np.testing.assert_array_equal(contrastive(KEYS, np.arange(12)), 0)
  # Padding has no vote, and no loss.
  padded = np.where(np.arange(12) < 6, 0, -1)
  np.testing.assert_array_equal(leave_one_out(KEYS, padded, num_neighbors=11), 0)


def test_one_neighbor_is_right_or_competes_with_the_nearest_positive():
  similarity = cosines(QUERIES, KEYS)
  key_labels = np.where(KEY_LABELS < 0, 2, KEY_LABELS)
  given = {"num_neighbors": 1, "temperature": 0.3}
  value = knn(QUERIES, LABELS, KEYS, key_labels, **given)
  skipped = knn(QUERIES, LABELS, KEYS, key_labels, missing="skip", **given)
  for i in range(11):
    nearest = np.argmax(similarity[i])
    positive = similarity[i][key_labels == LABELS[i]].max()
    expected = np.log1p(np.exp((similarity[i, nearest] - positive) / 0.3))
    right = key_labels[nearest] == LABELS[i]
    np.testing.assert_allclose(value[i], 0 if right else expected, rtol=1e-4, atol=1e-6)
    assert skipped[i] == 0


def test_probabilities():
  given = {"num_neighbors": 4, "num_classes": 5}
  probs = probabilities(QUERIES, KEYS, KEY_LABELS, temperature=0.2, **given)
  votes = np.exp(cosines(QUERIES, KEYS) / 0.2)
  for i, row in enumerate(votes):
    voters, expected = neighbors_of(row, KEY_LABELS >= 0, 4), np.zeros(5)
    for j in voters:
      expected[KEY_LABELS[j]] += row[j] / row[voters].sum()
    np.testing.assert_allclose(probs[i], expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
  value = knn(QUERIES, LABELS, KEYS, KEY_LABELS, num_neighbors=4, temperature=0.2)
  chosen = probs[np.arange(12), LABELS]
  voted = chosen > 0
  assert voted.any() and not voted.all()
  np.testing.assert_allclose(value[voted], -np.log(chosen[voted]), rtol=1e-4, atol=1e-5)
  # Cold it is the class of the nearest key, hot the majority.
  cold, hot = (
    (probabilities(QUERIES, KEYS, KEY_LABELS, temperature=t, **given)) for t in (1e-3, 1e6)
  )
  for i, row in enumerate(votes):
    voters = KEY_LABELS[neighbors_of(row, KEY_LABELS >= 0, 4)]
    assert np.argmax(cold[i]) == voters[0]
    np.testing.assert_allclose(hot[i], np.bincount(voters, minlength=5) / 4, atol=1e-4)


def test_probabilities_without_votes_and_outside_the_classes():
  given = {"num_neighbors": 4, "num_classes": 5}
  empty = probabilities(QUERIES, KEYS, np.full(12, -1), **given)
  np.testing.assert_allclose(empty, 0.2, rtol=1e-6)
  near = [11 in neighbors_of(row, KEY_LABELS >= 0, 4) for row in cosines(QUERIES, KEYS)]
  outside = probabilities(QUERIES, KEYS, np.where(np.arange(12) == 11, 5, KEY_LABELS), **given)
  np.testing.assert_array_equal(np.isnan(outside).all(1), near)
  np.testing.assert_array_equal(np.isnan(outside).any(1), near)


def slow_contrastive(features, labels, temperature):
  values = []
  for i, similarity in enumerate(cosines(features, features) / temperature):
    others = np.arange(12) != i
    positive = similarity[others & (labels == labels[i])]
    log_total = np.log(np.exp(similarity[others]).sum())
    values.append(log_total - positive.mean() if positive.size else 0.0)
  return values


def test_supervised_contrastive_loss_matches_a_loop():
  np.testing.assert_allclose(
    contrastive(KEYS, LABELS, temperature=0.4), slow_contrastive(KEYS, LABELS, 0.4), rtol=1e-4
  )


def test_a_class_may_keep_two_modes():
  """Six rows along each of two axes are one class, and opposite rows two others."""
  axes = np.repeat(np.eye(3, dtype=np.float32)[:2], 3, axis=0)
  features, labels = np.concatenate([axes, -axes]), np.repeat([0, 0, 1, 2], 3)
  assert leave_one_out(features, labels, num_neighbors=2).max() < 1e-3
  assert contrastive(features, labels)[:6].min() > 0.5


def test_gradients_reach_the_selected_pairs_alone():
  def total(queries, keys):
    return losses.knn_classification_loss(
      queries, LABELS, keys, KEY_LABELS, num_neighbors=2, temperature=0.3, mask=MASK
    ).sum()

  of_queries, of_keys = evaluated(jax.grad(total, argnums=(0, 1)))(QUERIES, KEYS)
  assert np.all(of_queries[-1] == 0) and np.all(of_keys[8] == 0)
  step = 1e-3 * RNG.normal(size=(12, 3)).astype(np.float32)
  values = evaluated(total)
  for grad, ends in (
    (of_queries, [(QUERIES + sign * step, KEYS) for sign in (1, -1)]),
    (of_keys, [(QUERIES, KEYS + sign * step) for sign in (1, -1)]),
  ):
    change = (values(*ends[0]) - values(*ends[1])) / 2
    np.testing.assert_allclose(change, np.sum(grad * step), rtol=0.02, atol=2e-5)


GRADIENT = evaluated(
  jax.value_and_grad(
    lambda x, labels, temperature: sum(
      losses.leave_one_out_knn_loss(x, labels, num_neighbors=2, temperature=temperature)
      + losses.supervised_contrastive_loss(x, labels, temperature=temperature)
    )
  )
)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_extreme_values(scale):
  features = np.concatenate([scale * KEYS[:10], np.zeros((2, 3), np.float32)])
  for labels in (LABELS, np.arange(12, dtype=np.int32), np.full(12, -1, np.int32)):
    value, gradient = GRADIENT(features, labels, 0.01)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if labels[-1] != 4:  # No row has a positive.
      assert value == 0 and np.all(gradient == 0)


def test_what_may_not_vote_may_be_nan():
  keys = np.where((np.arange(12) == 8)[:, None], np.nan, KEYS)
  slope = evaluated(
    jax.value_and_grad(
      lambda x: losses.knn_classification_loss(
        x, LABELS, keys, KEY_LABELS, num_neighbors=3, missing="skip"
      ).sum()
    )
  )
  value, gradient = slope(QUERIES)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  spoiled = np.where((np.arange(12) == 1)[:, None], np.nan, QUERIES)
  for missing in ("nearest_positive", "skip"):
    value = knn(spoiled, LABELS, KEYS, KEY_LABELS, num_neighbors=3, missing=missing)
    np.testing.assert_array_equal(np.isnan(value), np.arange(12) == 1)


@pytest.mark.parametrize("pairs", [12, 60])
def test_chunks_change_no_value(monkeypatch, pairs):
  """One row at a time, and five, which do not divide twelve."""

  def results(x):
    def total(x):
      both = (
        losses.knn_classification_loss(
          x, LABELS, KEYS, KEY_LABELS, num_neighbors=3, mask=jnp.asarray(MASK)
        ),
        losses.leave_one_out_knn_loss(x, LABELS, num_neighbors=3),
        losses.supervised_contrastive_loss(x, LABELS),
      )
      return sum(y.sum() for y in both), both

    votes = losses.knn_probabilities(x, KEYS, KEY_LABELS, num_neighbors=3, num_classes=5)
    return jax.grad(total, has_aux=True)(x), votes

  whole = jax.jit(lambda x: results(x))(QUERIES)
  monkeypatch.setattr(neighbors, "_PAIRS", pairs)
  parts = jax.jit(lambda x: results(x))(QUERIES)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), parts, whole)


def test_memory_grows_with_the_rows_and_not_with_the_pairs():
  features = jax.ShapeDtypeStruct((20000, 8), jnp.float32)
  labels = jax.ShapeDtypeStruct((20000,), jnp.int32)
  for loss in (
    functools.partial(losses.leave_one_out_knn_loss, num_neighbors=16),
    losses.supervised_contrastive_loss,
  ):
    traced = jax.make_jaxpr(jax.grad(lambda x, y, loss=loss: loss(x, y).sum()))(features, labels)
    assert largest_array(traced.jaxpr) <= neighbors._PAIRS


def largest_array(jaxpr):
  """Entries of the largest array that a program computes, in its loops too."""
  sizes = [1]
  for equation in jaxpr.eqns:
    sizes += [x.aval.size for x in equation.outvars]
    for leaf in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(leaf, "jaxpr", leaf)
      if hasattr(inner, "eqns"):
        sizes.append(largest_array(inner))
  return max(sizes)


def test_half_precision():
  half = jnp.asarray(KEYS, jnp.bfloat16)
  value = leave_one_out(half, LABELS, num_neighbors=11, temperature=1.0)
  assert value.dtype == jnp.float32
  exact = leave_one_out(KEYS, LABELS, num_neighbors=11, temperature=1.0)
  np.testing.assert_allclose(value, exact, atol=0.05)


def test_errors():
  batch = (QUERIES, LABELS, KEYS, KEY_LABELS)
  with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
    losses.knn_classification_loss(*batch, num_neighbors=0)
  with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\), got 0"):
    losses.leave_one_out_knn_loss(KEYS, LABELS, num_neighbors=1, temperature=0)
  with pytest.raises(ValueError, match="temperature"):
    losses.supervised_contrastive_loss(KEYS, LABELS, temperature=-1.0)
  with pytest.raises(ValueError, match="missing must be one of .* got 'drop'"):
    losses.leave_one_out_knn_loss(KEYS, LABELS, num_neighbors=1, missing="drop")
  with pytest.raises(ValueError, match=r"mask must have shape \[n, m\]"):
    losses.knn_classification_loss(*batch, num_neighbors=1, mask=MASK[:5])
  with pytest.raises(ValueError, match="keys must have shape"):
    losses.knn_classification_loss(QUERIES, LABELS, KEYS[:, :2], KEY_LABELS, num_neighbors=1)
  with pytest.raises(ValueError, match="keys must not be empty"):
    losses.knn_probabilities(QUERIES, KEYS[:0], KEY_LABELS[:0], num_neighbors=1, num_classes=5)
  with pytest.raises(ValueError, match="key_labels must be less than 3, got 3"):
    losses.knn_probabilities(QUERIES, KEYS, KEY_LABELS, num_neighbors=1, num_classes=3)
  with pytest.raises(TypeError, match="labels must be of type int"):
    losses.leave_one_out_knn_loss(KEYS, LABELS.astype(np.float32), num_neighbors=1)
