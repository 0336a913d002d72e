"""Methods that learn guesses, with thresholds or weights of their own."""

import jax
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# A network of two heads: logits, and those of an auxiliary head.
PARAMS = {x: (2 * RNG.normal(size=(3, 5))).astype(np.float32) for x in ("main", "extra")}
TARGETS = np.eye(5, dtype=np.float32)[[0, 1, 2, 3]]
INDICES = np.array([7, 2, 9, 0, 4, 1])


def apply_fn(params, inputs):
  return inputs @ params["main"]


def auxiliary_fn(params, inputs):
  return inputs @ params["extra"]


def make_views(rows):
  weak, strong = RNG.normal(size=(2, 1, rows, 3)).astype(np.float32)
  return algorithms.Views(weak[0], weak, strong)


BATCH = algorithms.SemiSupervisedBatch(make_views(4), TARGETS, make_views(6), INDICES)
WEAK, STRONG = BATCH.unlabeled.weak[0], BATCH.unlabeled.strong[0]


def log_probs(params, inputs, head="main"):
  z = np.float64(inputs) @ np.float64(params[head])
  return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def supervised(params):
  return -np.mean(np.sum(TARGETS * log_probs(params, BATCH.labeled.weak[0]), axis=-1))


def training(method):
  trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(0.1))
  return jax.jit(trainer.update), jax.jit(trainer.init)(PARAMS)


def test_flexmatch_lowers_thresholds_of_classes_that_lag():
  method = algorithms.flexmatch_method(10, num_classes=5, threshold=0.6, warmup=False)
  update, state = training(method)
  assert state.memory.shape == (10,) and np.all(state.memory == -1)
  selected = np.full(10, -1)
  for _ in range(3):
    params = jax.device_get(state.params)
    probs = np.exp(log_probs(params, WEAK))
    counts = np.bincount(selected[selected >= 0], minlength=5)
    status = counts / max(counts.max(), 1)
    thresholds = 0.6 * status / (2 - status)
    guess = probs.argmax(-1)
    used = probs.max(-1) >= thresholds[guess]
    rows = -log_probs(params, STRONG)[range(6), guess]
    confident = probs.max(-1) >= 0.6
    selected[INDICES[confident]] = guess[confident]
    state, info = update(KEY, state, BATCH)
    np.testing.assert_allclose(info.thresholds, thresholds, rtol=1e-5)
    np.testing.assert_array_equal(info.used, used)
    np.testing.assert_allclose(info.row_losses, rows, rtol=1e-3)
    np.testing.assert_allclose(info.loss, supervised(params) + np.mean(used * rows), rtol=1e-4)
    np.testing.assert_array_equal(state.memory, selected)
  assert np.any(selected >= 0)


@pytest.mark.parametrize("head", [auxiliary_fn, None])
def test_shrinkmatch_matches_its_formula(head):
  method = algorithms.shrinkmatch_method(head, num_classes=5, threshold=0.7, decay=0.5, history=2)
  update, state = training(method)
  means, share = [], None
  shrunk = jax.jit(lambda z, q: losses.shrunk_class_loss(z, q, threshold=0.7))
  for _ in range(3):
    params = jax.device_get(state.params)
    probs = np.exp(log_probs(params, WEAK))
    means = [*means, probs.mean(0)][-2:]
    aligned = probs / np.mean(means, axis=0)
    aligned = aligned / aligned.sum(-1, keepdims=True)
    certain = aligned.max(-1) >= 0.7
    share = certain.mean() if share is None else 0.5 * share + 0.5 * certain.mean()
    rows = -np.sum(aligned * log_probs(params, STRONG), axis=-1)
    expected, used = supervised(params) + np.mean(certain * rows), certain
    if head is not None:
      others = np.asarray(shrunk(STRONG @ params["extra"], aligned.astype(np.float32)))
      expected, used = expected + share * others.mean(), certain | (others > 0)
    state, info = update(KEY, state, BATCH)
    np.testing.assert_allclose(info.loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(info.used, used)
    np.testing.assert_array_equal(info.guesses, aligned.argmax(-1))
    np.testing.assert_allclose(state.memory.certain_share, share, rtol=1e-5)
  assert np.any(certain) and not np.all(certain)
  moved = np.any(state.params["extra"] != PARAMS["extra"])
  assert moved == (head is not None)


def test_given_labels_and_other_ones_in_the_next_round():
  given = np.arange(10) % 5, np.linspace(0, 0.9, 10, dtype=np.float32)
  update, state = training(algorithms.pseudo_label_method(*given))
  for labels, weights in (given, ((given[0] + 1) % 5, given[1][::-1])):
    state = state._replace(memory=algorithms.PseudoLabelMemory(np.int32(labels), weights))
    params = jax.device_get(state.params)
    rows = -log_probs(params, WEAK)[range(6), labels[INDICES]]
    state, info = update(KEY, state, BATCH)
    expected = supervised(params) + np.mean(weights[INDICES] * rows)
    np.testing.assert_allclose(info.loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(info.guesses, labels[INDICES])
    np.testing.assert_allclose(info.used, weights[INDICES])
    np.testing.assert_allclose(info.utilization, np.mean(weights[INDICES] > 0))


def test_errors():
  update, state = training(algorithms.flexmatch_method(10, num_classes=5))
  with pytest.raises(ValueError, match="batch.indices must say which unlabeled rows"):
    update(KEY, state, BATCH._replace(indices=None))
  with pytest.raises(ValueError, match="num_classes must be at least 2"):
    algorithms.flexmatch_method(10, num_classes=1)
  with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 0.0"):
    algorithms.shrinkmatch_method(None, num_classes=5, threshold=0.0)
  with pytest.raises(ValueError, match=r"weights must have shape \[n\]"):
    algorithms.pseudo_label_method(np.zeros(3, int), np.ones(2))
