"""Methods of one door: each update is a step on its objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS, OTHERS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]


def apply_fn(params, inputs):
  return inputs @ params


def make_views():
  weak, strong = RNG.normal(size=(2, 2, 6, 3)).astype(np.float32)
  return algorithms.Views(RNG.normal(size=(6, 3)).astype(np.float32), weak, strong)


BATCH = algorithms.SemiSupervisedBatch(make_views(), TARGETS, make_views())
LABELED, UNLABELED = BATCH.labeled, BATCH.unlabeled


def mean(views):
  z = np.exp(views @ PARAMS)
  return np.mean(z / z.sum(-1, keepdims=True), axis=0)


def supervised(view):
  def objective(params):
    z = jax.nn.log_softmax(view @ params)
    return -(TARGETS * z).sum(-1).mean(), {}

  return objective


def mean_teacher(params, view):
  inputs = np.concatenate([getattr(v, view)[0] for v in (LABELED, UNLABELED)])
  clean = np.concatenate([LABELED.clean, UNLABELED.clean])
  arguments = (LABELED.weak[0], TARGETS, inputs, clean)
  return algorithms.mean_teacher_objective(apply_fn, params, PARAMS, *arguments, weight=0.3)


def co_training(pair, labeled, targets):
  return algorithms.co_training_objective(
    apply_fn, pair, labeled, targets, UNLABELED.weak[0], agreement_weight=0.5
  )


def remixmatch(params):
  return algorithms.remixmatch_objective(
    *(KEY, apply_fn, params, LABELED.strong[0], TARGETS, UNLABELED.weak[0], UNLABELED.strong),
    *(TARGETS.mean(0), mean(UNLABELED.weak[0])),
  )


def fixmatch(params, **arguments):
  return algorithms.fixmatch_objective(
    *(KEY, apply_fn, params, LABELED.weak[0], TARGETS, UNLABELED.weak[0], UNLABELED.strong[0]),
    **arguments,
  )


def mixmatch(params):
  return algorithms.mixmatch_objective(
    KEY, apply_fn, params, LABELED.weak[0], TARGETS, UNLABELED.weak, weight=0.5
  )


HALVES = (LABELED.weak[0][:3], LABELED.weak[1][3:]), (TARGETS[:3], TARGETS[3:])
CASES = {
  "supervised": (algorithms.supervised_method(), supervised(LABELED.weak[0]), 1),
  "supervised strong": (
    algorithms.supervised_method(view="strong"),
    supervised(LABELED.strong[0]),
    1,
  ),
  "mean teacher": (
    algorithms.mean_teacher_method(weight=lambda step: 0.3 + step),
    functools.partial(mean_teacher, view="weak"),
    1,
  ),
  "mean teacher, strong views": (
    algorithms.mean_teacher_method(weight=0.3, student_view="strong"),
    functools.partial(mean_teacher, view="strong"),
    1,
  ),
  "co-training": (
    algorithms.co_training_method(agreement_weight=0.5),
    functools.partial(co_training, labeled=tuple(LABELED.weak), targets=(TARGETS, TARGETS)),
    2,
  ),
  "co-training of halves": (
    algorithms.co_training_method(agreement_weight=0.5, split_labeled=True),
    functools.partial(co_training, labeled=HALVES[0], targets=HALVES[1]),
    2,
  ),
  "mixmatch": (
    algorithms.mixmatch_method(weight=lambda step: algorithms.linear_rampup(step + 5, 10)),
    mixmatch,
    1,
  ),
  "remixmatch": (algorithms.remixmatch_method(num_classes=4, history=3), remixmatch, 1),
  "fixmatch": (
    algorithms.fixmatch_method(threshold=0.6),
    functools.partial(fixmatch, threshold=0.6),
    1,
  ),
  "fixmatch with mixup": (
    algorithms.fixmatch_method(mixup_alpha=0.75),
    functools.partial(fixmatch, mixup_alpha=0.75),
    1,
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_a_step_on_the_objective(name):
  method, objective, num_networks = CASES[name]
  params = PARAMS if num_networks == 1 else (PARAMS, OTHERS)
  trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(1.0))
  state, info = jax.jit(trainer.update)(KEY, jax.jit(trainer.init)(params), BATCH)
  (loss, parts), slope = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
  np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
  expected = jax.tree.map(np.subtract, params, slope)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), state.params, expected
  )
  if parts:
    np.testing.assert_array_equal(info.guesses, np.argmax(parts["guesses"][-6:], axis=-1))
    np.testing.assert_allclose(info.row_losses, parts["row_losses"][-6:], rtol=1e-4)
    np.testing.assert_allclose(info.utilization, np.mean(parts["used"][-6:] > 0))
  else:
    assert info.utilization == 0 and info.unlabeled_loss == 0
  assert info.skipped == 0 and np.isnan(info.guess_accuracy)


def test_a_pair_predicts_by_the_mean():
  method = algorithms.co_training_method()
  trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(1.0))
  logits = jax.jit(trainer.predict)(trainer.init((PARAMS, OTHERS)), LABELED.clean)
  probs = [np.exp(LABELED.clean @ p) for p in (PARAMS, OTHERS)]
  expected = sum(p / p.sum(-1, keepdims=True) for p in probs) / 2
  np.testing.assert_allclose(jnp.exp(jax.nn.log_softmax(logits)), expected, rtol=1e-4)


def test_remixmatch_remembers_targets_and_guesses():
  method = algorithms.remixmatch_method(num_classes=4, history=3)
  trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(1.0))
  state, _ = jax.jit(trainer.update)(KEY, trainer.init(PARAMS), BATCH)
  np.testing.assert_allclose(state.memory.targets.means[0], TARGETS.mean(0), rtol=1e-6)
  np.testing.assert_allclose(state.memory.guesses.means[0], mean(UNLABELED.weak[0]), rtol=1e-4)
  assert state.memory.guesses.count == 1


def test_errors():
  with pytest.raises(ValueError, match="view must be one of"):
    algorithms.supervised_method(view="none")
  with pytest.raises(ValueError, match="threshold"):
    algorithms.fixmatch_method(threshold=2.0)
  short = BATCH._replace(
    labeled=algorithms.Views(LABELED.clean[:5], LABELED.weak[:, :5], LABELED.strong[:, :5]),
    targets=TARGETS[:5],
  )
  trainer = algorithms.semi_supervised_training(
    apply_fn, algorithms.co_training_method(split_labeled=True), optax.sgd(1.0)
  )
  with pytest.raises(ValueError, match="split_labeled needs an even number of labeled rows, got 5"):
    jax.eval_shape(trainer.update, KEY, trainer.init((PARAMS, OTHERS)), short)
