"""The training that all semi-supervised methods share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, augment, losses

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = (2 * RNG.normal(size=(3, 4))).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]


def apply_fn(params, inputs):
  return inputs @ params


def make_views(rows):
  weak, strong = RNG.normal(size=(2, 2, rows, 3)).astype(np.float32)
  return algorithms.Views(RNG.normal(size=(rows, 3)).astype(np.float32), weak, strong)


BATCH = algorithms.SemiSupervisedBatch(
  make_views(5), TARGETS, make_views(6), np.arange(6), np.array([0, 1, -1, 3, 0, 1])
)


def agreement(key, step):
  """Strong views learn the prediction on weak ones; what counts is remembered."""
  del key
  views = step.batch.unlabeled
  target = jax.lax.stop_gradient(jax.nn.softmax(step.forward(views.weak[0])))
  rows = losses.soft_cross_entropy(step.forward(views.strong[0]), target)
  used = (jnp.max(target, axis=-1) > 0.6).astype(jnp.float32)
  return algorithms.SemiSupervisedLoss(
    *(step.supervised_loss(), step.value_of(lambda i: 0.5 + i) * jnp.mean(used * rows)),
    *(target, used, rows, 0.6),
    memory=step.memory + 1,
  )


@pytest.fixture(scope="module")
def trainer():
  method = algorithms.SemiSupervisedMethod(agreement, lambda: jnp.zeros((), jnp.int32))
  training = algorithms.semi_supervised_training(
    apply_fn, method, optax.sgd(0.1, momentum=0.9), decay=0.6
  )
  return training._replace(init=jax.jit(training.init), update=jax.jit(training.update))


def slow_loss(params, step):
  log_probs = [
    jax.nn.log_softmax(x @ params) for x in (BATCH.labeled.weak[0], BATCH.unlabeled.strong[0])
  ]
  target = jax.lax.stop_gradient(jax.nn.softmax(BATCH.unlabeled.weak[0] @ params))
  used = target.max(-1) > 0.6
  rows = -(target * log_probs[1]).sum(-1)
  return -(TARGETS * log_probs[0]).sum(-1).mean() + (0.5 + step) * (used * rows).mean()


def test_updates_match_a_loop(trainer):
  slope = jax.jit(jax.value_and_grad(slow_loss))
  state, params, average, momentum = trainer.init(PARAMS), PARAMS, PARAMS, 0.0
  for i in range(4):
    loss, gradient = slope(params, i)
    momentum = 0.9 * momentum + np.asarray(gradient)
    params = params - 0.1 * momentum
    decay = min(1 - 1 / (i + 1), 0.6)
    average = decay * average + (1 - decay) * params
    state, info = trainer.update(KEY, state, BATCH)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(state.params, params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.average, average, rtol=1e-4, atol=1e-5)
    assert state.memory == state.step == i + 1 and info.skipped == 0
  logits = jax.jit(trainer.predict)(state, BATCH.labeled.clean)
  np.testing.assert_allclose(logits, BATCH.labeled.clean @ average, rtol=1e-3, atol=1e-5)


def test_report(trainer):
  _, info = trainer.update(KEY, trainer.init(PARAMS), BATCH)
  scores = np.exp(BATCH.unlabeled.weak[0] @ PARAMS)
  guesses, used = scores.argmax(-1), scores.max(-1) / scores.sum(-1) > 0.6
  assert 1 < used.sum() < 6
  right, known = guesses == BATCH.truth, BATCH.truth >= 0
  np.testing.assert_array_equal(info.guesses, guesses)
  np.testing.assert_array_equal(info.used, used)
  np.testing.assert_array_equal(info.thresholds, np.full(4, 0.6, np.float32))
  np.testing.assert_allclose(info.utilization, used.mean())
  np.testing.assert_allclose(info.pseudo_accuracy, right[known & used].mean(), rtol=1e-6)
  np.testing.assert_allclose(info.guess_accuracy, right[known].mean(), rtol=1e-6)
  np.testing.assert_allclose(info.loss, info.supervised_loss + info.unlabeled_loss, rtol=1e-6)
  assert info.row_losses.shape == (6,) and np.all(info.row_losses > 0)
  unknown = jax.eval_shape(trainer.update, KEY, trainer.init(PARAMS), BATCH._replace(truth=None))
  assert jax.tree.structure(unknown[1]) == jax.tree.structure(info)


def test_a_batch_that_is_not_finite_is_left_out(trainer):
  state, _ = trainer.update(KEY, trainer.init(PARAMS), BATCH)
  weak = np.where(np.arange(3) == 0, np.nan, BATCH.labeled.weak).astype(np.float32)
  bad = BATCH._replace(labeled=BATCH.labeled._replace(weak=weak))
  after, info = trainer.update(KEY, state, bad)
  assert info.skipped == 1
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_method_may_be_one_loss():
  def supervised(key, step):
    del key
    return algorithms.SemiSupervisedLoss(
      step.supervised_loss("clean"), jnp.zeros(()), step.forward(step.batch.unlabeled.clean)
    )

  trainer = algorithms.semi_supervised_training(
    apply_fn, algorithms.SemiSupervisedMethod(supervised), optax.sgd(1.0)
  )
  state, info = jax.jit(trainer.update)(KEY, trainer.init(PARAMS), BATCH)
  probs = np.exp(BATCH.labeled.clean @ PARAMS)
  errors = probs / probs.sum(-1, keepdims=True) - TARGETS
  np.testing.assert_allclose(PARAMS - state.params, BATCH.labeled.clean.T @ errors / 5, atol=1e-5)
  assert info.utilization == 1 and not np.any(info.thresholds) and not np.any(info.row_losses)


def test_views_do_not_depend_on_their_number():
  images = RNG.uniform(size=(6, 4, 4, 1)).astype(np.float32)
  draw = jax.jit(
    functools.partial(
      algorithms.draw_views, weak_fn=augment.random_flip, strong_fn=augment.rand_augment
    ),
    static_argnames=("num_weak", "num_strong"),
  )
  two = jax.device_get(draw(KEY, images))
  three = jax.device_get(draw(KEY, images, num_weak=1, num_strong=3))
  assert two.weak.shape == two.strong.shape == (2, *images.shape)
  np.testing.assert_array_equal(two.clean, images)
  np.testing.assert_array_equal(two.weak[:1], three.weak)
  np.testing.assert_allclose(two.strong, three.strong[:2], rtol=1e-5)
  assert np.any(two.strong[0] != two.strong[1])


def test_errors(trainer):
  state = trainer.init(PARAMS)
  update = functools.partial(trainer.update, KEY, state)
  with pytest.raises(ValueError, match=r"batch.truth must have shape \[nu\] with nu = 6"):
    update(BATCH._replace(truth=np.zeros(5, int)))
  with pytest.raises(ValueError, match="batch.labeled.weak must have shape"):
    update(BATCH._replace(labeled=BATCH.labeled._replace(weak=BATCH.labeled.clean)))
  with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
    algorithms.semi_supervised_training(apply_fn, None, optax.sgd(0.1), decay=1.0)
  with pytest.raises(ValueError, match="num_weak must be at least 1, got 0"):
    algorithms.draw_views(
      KEY, np.ones((2, 3)), weak_fn=lambda k, x: x, strong_fn=lambda k, x: x, num_weak=0
    )
