"""Objectives of two networks: a mean teacher, deep co-training."""

import jax
import numpy as np
import pytest

from jaxlab import algorithms

RNG = np.random.default_rng(0)
PARAMS, OTHERS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
LABELED, SECOND, UNLABELED, CLEAN = RNG.normal(size=(4, 5, 3)).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]


def apply_fn(params, inputs):
  return inputs @ params


def log_probs(params, inputs):
  z = np.float64(inputs) @ np.float64(params)
  return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def cross_entropy(targets, params, inputs):
  return -np.sum(targets * log_probs(params, inputs), axis=-1)


def entropy(p):
  return -np.sum(p * np.log(p), axis=-1)


def test_mean_teacher_matches_its_formula():
  student = np.concatenate([LABELED, UNLABELED])
  teacher = np.concatenate([SECOND, CLEAN])

  @jax.jit
  def objective(params, teacher_params, weight):
    return jax.value_and_grad(
      lambda p, t: algorithms.mean_teacher_objective(
        apply_fn, p, t, LABELED, TARGETS, student, teacher, weight=weight
      ),
      argnums=(0, 1),
      has_aux=True,
    )(params, teacher_params)

  (loss, parts), (slope, of_teacher) = objective(PARAMS, OTHERS, 0.6)
  target = np.exp(log_probs(OTHERS, teacher))
  rows = np.mean((np.exp(log_probs(PARAMS, student)) - target) ** 2, axis=-1)
  expected = cross_entropy(TARGETS, PARAMS, LABELED).mean() + 0.6 * rows.mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(parts["guesses"], target, rtol=1e-4)
  np.testing.assert_allclose(parts["row_losses"], rows, rtol=1e-4)
  assert np.any(slope) and not np.any(of_teacher)
  (plain, _), (alone, _) = objective(PARAMS, OTHERS, 0.0)
  np.testing.assert_allclose(plain, cross_entropy(TARGETS, PARAMS, LABELED).mean(), rtol=1e-5)
  errors = np.exp(log_probs(PARAMS, LABELED)) - TARGETS
  np.testing.assert_allclose(alone, LABELED.T @ errors / 5, rtol=1e-4, atol=1e-6)


@jax.jit
def co_training(pair, weights):
  def objective(pair):
    return algorithms.co_training_objective(
      *(apply_fn, pair, (LABELED, SECOND), (TARGETS, TARGETS[::-1]), UNLABELED),
      agreement_weight=weights[0],
      difference_weight=weights[1],
    )

  return jax.value_and_grad(objective, has_aux=True)(pair)


def attacked(params, inputs, labels):
  """The inputs, moved along the sign of the gradient of the cross-entropy."""
  errors = np.exp(log_probs(params, inputs)) - labels
  return inputs + 0.02 * np.sign(errors @ params.T)


def test_co_training_matches_its_formula():
  (loss, parts), slopes = co_training((PARAMS, OTHERS), np.float32([0.8, 0.3]))
  f, g = (np.exp(log_probs(p, UNLABELED)) for p in (PARAMS, OTHERS))
  supervised = (
    cross_entropy(TARGETS, PARAMS, LABELED).mean()
    + cross_entropy(TARGETS[::-1], OTHERS, SECOND).mean()
  )
  rows = entropy((f + g) / 2) - (entropy(f) + entropy(g)) / 2
  difference = 0.0
  for mine, other, labeled, targets, guess in (
    (PARAMS, OTHERS, LABELED, TARGETS, f),
    (OTHERS, PARAMS, SECOND, TARGETS[::-1], g),
  ):
    inputs = np.concatenate([labeled, UNLABELED])
    labels = np.concatenate([targets, np.eye(4)[guess.argmax(-1)]])
    views = attacked(mine, inputs, labels)
    difference += cross_entropy(np.exp(log_probs(mine, inputs)), other, views).sum() / 10
  np.testing.assert_allclose(parts["supervised_loss"], supervised, rtol=1e-5)
  np.testing.assert_allclose(
    parts["unlabeled_loss"], 0.8 * rows.mean() + 0.3 * difference, rtol=1e-4
  )
  np.testing.assert_allclose(loss, parts["supervised_loss"] + parts["unlabeled_loss"], rtol=1e-6)
  np.testing.assert_allclose(parts["guesses"], (f + g) / 2, rtol=1e-4)
  np.testing.assert_allclose(parts["row_losses"], rows, rtol=1e-3)
  assert all(np.any(slope) for slope in slopes)


def test_co_training_without_weights_is_supervised():
  _, (of_first, of_second) = co_training((PARAMS, OTHERS), np.zeros(2, np.float32))
  for slope, params, inputs, targets in (
    (of_first, PARAMS, LABELED, TARGETS),
    (of_second, OTHERS, SECOND, TARGETS[::-1]),
  ):
    errors = np.exp(log_probs(params, inputs)) - targets
    np.testing.assert_allclose(slope, inputs.T @ errors / 5, rtol=1e-4, atol=1e-6)


def test_adversarial_inputs_are_constants():
  """With constants in their place the gradients are the same."""

  @jax.jit
  def expected(pair, views):
    def objective(pair):
      total = 0.0
      for mine, other, inputs, view in (
        (0, 1, np.concatenate([LABELED, UNLABELED]), views[0]),
        (1, 0, np.concatenate([SECOND, UNLABELED]), views[1]),
      ):
        clean = jax.nn.softmax(inputs @ pair[mine])
        total -= (clean * jax.nn.log_softmax(view @ pair[other])).sum() / 10
      return total

    return jax.grad(objective)(pair)

  views = []
  for params, labeled, targets in ((PARAMS, LABELED, TARGETS), (OTHERS, SECOND, TARGETS[::-1])):
    inputs = np.concatenate([labeled, UNLABELED])
    guess = np.eye(4)[log_probs(params, UNLABELED).argmax(-1)]
    views.append(attacked(params, inputs, np.concatenate([targets, guess])).astype(np.float32))
  _, plain = co_training((PARAMS, OTHERS), np.zeros(2, np.float32))
  _, full = co_training((PARAMS, OTHERS), np.float32([0, 1]))
  slopes = expected((PARAMS, OTHERS), views)
  for a, b, c in zip(full, plain, slopes):
    np.testing.assert_allclose(np.asarray(a) - b, c, rtol=1e-3, atol=1e-5)


def test_errors():
  arguments = (apply_fn, (PARAMS, OTHERS), (LABELED, SECOND), (TARGETS, TARGETS), UNLABELED)
  with pytest.raises(ValueError, match=r"epsilon must lie in \[0, inf\), got -1"):
    algorithms.co_training_objective(*arguments, epsilon=-1.0)
  with pytest.raises(ValueError, match="targets_pair must have shape"):
    algorithms.co_training_objective(*arguments[:3], (TARGETS, TARGETS[:2]), UNLABELED)
  with pytest.raises(ValueError, match="teacher_inputs must have shape"):
    algorithms.mean_teacher_objective(
      apply_fn, PARAMS, OTHERS, LABELED, TARGETS, UNLABELED, UNLABELED[:2], weight=1.0
    )
