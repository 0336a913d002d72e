"""Objectives of one network: FixMatch, MixMatch, ReMixMatch."""

import jax
import numpy as np
import pytest

from jaxlab import algorithms, augment

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = (1.5 * RNG.normal(size=(3, 4))).astype(np.float32)
LABELED, WEAK, STRONG, OTHER = RNG.normal(size=(4, 5, 3)).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
VIEWS = np.stack([WEAK, OTHER])


def apply_fn(params, inputs):
  return inputs @ params


def log_probs(inputs):
  z = np.float64(inputs) @ np.float64(PARAMS)
  return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def cross_entropy(targets, inputs):
  return -np.sum(targets * log_probs(inputs), axis=-1)


def sharpen(probs):
  return probs**2 / np.sum(probs**2, axis=-1, keepdims=True)


def check_parts(loss, parts):
  loss, parts = jax.device_get((loss, parts))
  assert loss.shape == () and set(parts) == {
    *("supervised_loss", "unlabeled_loss", "guesses", "used", "row_losses")
  }
  np.testing.assert_allclose(loss, parts["supervised_loss"] + parts["unlabeled_loss"], rtol=1e-6)
  np.testing.assert_allclose(np.sum(parts["guesses"], axis=-1), 1.0, rtol=1e-5)


def supervised_gradient():
  def loss(params):
    z = jax.nn.log_softmax(LABELED @ params)
    return -(TARGETS * z).sum(-1).mean()

  return jax.jit(jax.grad(loss))(PARAMS)


def test_fixmatch_matches_its_formula_and_stops_guesses():
  @jax.jit
  def objective(params, weight):
    return jax.value_and_grad(
      lambda p: algorithms.fixmatch_objective(
        KEY, apply_fn, p, LABELED, TARGETS, WEAK, STRONG, weight=weight, threshold=0.6
      ),
      has_aux=True,
    )(params)

  (loss, parts), slope = objective(PARAMS, 0.7)
  check_parts(loss, parts)
  probs = np.exp(log_probs(WEAK))
  used = probs.max(-1) >= 0.6
  assert 0 < used.sum() < 5
  rows = cross_entropy(np.eye(4)[probs.argmax(-1)], STRONG)
  np.testing.assert_allclose(
    parts["supervised_loss"], cross_entropy(TARGETS, LABELED).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(parts["unlabeled_loss"], 0.7 * np.mean(used * rows), rtol=1e-5)
  np.testing.assert_array_equal(parts["used"], used)
  np.testing.assert_allclose(parts["row_losses"], rows, rtol=1e-5)
  # Gradients of rows that count, to guesses that do not move.
  errors = used[:, None] * (np.exp(log_probs(STRONG)) - np.eye(4)[probs.argmax(-1)])
  expected = supervised_gradient() + 0.7 * STRONG.T @ errors / 5
  np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(objective(PARAMS, 0.0)[1], supervised_gradient(), atol=1e-6)


@pytest.mark.parametrize("mix_targets", [True, False])
def test_fixmatch_with_mixup(mix_targets):
  loss, parts = jax.jit(
    lambda params: algorithms.fixmatch_objective(
      *(KEY, apply_fn, params, LABELED, TARGETS, WEAK, STRONG),
      threshold=0.6,
      mixup_alpha=0.75,
      mix_targets=mix_targets,
    )
  )(PARAMS)
  check_parts(loss, parts)
  probs = np.exp(log_probs(WEAK))
  guess = np.eye(4, dtype=np.float32)[probs.argmax(-1)]

  @jax.jit
  def pairs(key):
    keys = jax.random.split(key)
    first = augment.mixup_pairs(keys[0], LABELED, STRONG, TARGETS, guess)
    return first, augment.mixup_pairs(keys[1], STRONG, LABELED, guess, TARGETS)

  first, second = jax.device_get(pairs(KEY))
  ours, theirs = (first.targets, second.targets) if mix_targets else (TARGETS, guess)
  used = probs.max(-1) >= 0.6
  np.testing.assert_allclose(
    parts["supervised_loss"], cross_entropy(ours, first.inputs).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    parts["unlabeled_loss"], np.mean(used * cross_entropy(theirs, second.inputs)), rtol=1e-5
  )


def test_mixmatch_mixes_a_permutation_of_all_rows():
  guesses = RNG.dirichlet(np.ones(4), 5).astype(np.float32)
  # Numbered rows, so that a mixture tells its two parents.
  labeled, views = np.arange(5.0)[:, None], np.arange(5.0, 15.0).reshape(2, 5, 1)
  identity = np.eye(15)

  def mixed(key):
    shares = algorithms.mixmatch_batch(
      key, identity[:5], TARGETS, identity[5:].reshape(2, 5, 15), guesses
    )
    values = algorithms.mixmatch_batch(key, labeled, TARGETS, views, guesses)
    return shares, values

  shares, values = jax.device_get(jax.jit(mixed)(KEY))
  matrix = np.concatenate([shares.labeled, shares.unlabeled])
  own = np.diag(matrix)
  assert own.min() >= 0.5
  np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-5)
  partners = np.argmax(matrix - np.diag(own), axis=-1)
  partners = np.where(own > 1 - 1e-6, np.arange(15), partners)
  np.testing.assert_array_equal(np.sort(partners), np.arange(15))
  np.testing.assert_allclose(values.unlabeled[:, 0], matrix[5:] @ np.arange(15.0), rtol=1e-5)
  targets = np.concatenate([TARGETS, guesses, guesses])
  mixed_targets = np.concatenate([shares.targets, shares.unlabeled_targets])
  np.testing.assert_allclose(mixed_targets, matrix @ targets, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(mixed_targets.sum(-1), 1.0, rtol=1e-5)


def test_mixmatch_objective_matches_its_formula():
  @jax.jit
  def objective(params, weight):
    return jax.value_and_grad(
      lambda p: algorithms.mixmatch_objective(
        KEY, apply_fn, p, LABELED, TARGETS, VIEWS, weight=weight
      ),
      has_aux=True,
    )(params)

  (loss, parts), _ = jax.device_get(objective(PARAMS, 0.3))
  check_parts(loss, parts)
  guesses = sharpen(np.mean(np.exp(log_probs(VIEWS)), axis=0))
  np.testing.assert_allclose(parts["guesses"], guesses, rtol=1e-4)
  mix = jax.jit(algorithms.mixmatch_batch)
  batch = jax.device_get(mix(KEY, LABELED, TARGETS, VIEWS, guesses.astype(np.float32)))
  rows = cross_entropy(batch.unlabeled_targets, batch.unlabeled)
  expected = cross_entropy(batch.targets, batch.labeled).mean() + 0.3 * rows.mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  np.testing.assert_allclose(parts["row_losses"], rows.reshape(2, 5).mean(0), rtol=1e-4)


def test_remixmatch_objective_matches_its_formula():
  means = RNG.dirichlet(np.ones(4), 2).astype(np.float32)
  loss, parts = jax.jit(
    lambda params: algorithms.remixmatch_objective(
      KEY, apply_fn, params, LABELED, TARGETS, WEAK, np.stack([STRONG, OTHER]), *means
    )
  )(PARAMS)
  check_parts(loss, parts)
  aligned = np.exp(log_probs(WEAK)) * (means[0] + 1e-6) / (means[1] + 1e-6)
  guesses = sharpen(aligned / aligned.sum(-1, keepdims=True))
  np.testing.assert_allclose(parts["guesses"], guesses, rtol=1e-3)
  views, mix = np.stack([WEAK, STRONG, OTHER]), jax.jit(algorithms.mixmatch_batch)
  batch = jax.device_get(mix(KEY, LABELED, TARGETS, views, guesses.astype(np.float32)))
  rows = cross_entropy(guesses, STRONG)
  mixed = cross_entropy(batch.unlabeled_targets, batch.unlabeled).mean()
  expected = cross_entropy(batch.targets, batch.labeled).mean() + 1.5 * mixed + 0.5 * rows.mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  np.testing.assert_allclose(parts["row_losses"], rows, rtol=1e-4)


def test_errors():
  with pytest.raises(ValueError, match=r"strong must have shape \[nu, ...\]"):
    algorithms.fixmatch_objective(KEY, apply_fn, PARAMS, LABELED, TARGETS, WEAK, STRONG[:2])
  with pytest.raises(ValueError, match="strong must have shape"):
    algorithms.fixmatch_objective(
      KEY, apply_fn, PARAMS, LABELED, TARGETS, WEAK[:2], STRONG[:2], mixup_alpha=1.0
    )
  with pytest.raises(ValueError, match="weight"):
    algorithms.mixmatch_objective(KEY, apply_fn, PARAMS, LABELED, TARGETS, VIEWS, weight=-1.0)
  with pytest.raises(ValueError, match=r"alpha must lie in \(0, inf\), got 0"):
    algorithms.mixmatch_batch(KEY, LABELED, TARGETS, VIEWS, TARGETS, alpha=0)
