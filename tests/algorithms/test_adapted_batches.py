"""Methods that change the batch of another method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, augment

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = (0.3 * RNG.normal(size=(48, 4))).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
N = 12


def apply_fn(params, images):
  return images.reshape(images.shape[0], -1) @ params


def make_views(rows):
  weak, strong = RNG.normal(size=(2, 2, rows, 4, 6, 2)).astype(np.float32)
  return algorithms.Views(weak[0], weak, strong)


BATCH = algorithms.SemiSupervisedBatch(make_views(4), TARGETS, make_views(6), np.arange(6))


def training(method):
  trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(0.05))
  return jax.jit(trainer.update), jax.jit(trainer.init)(PARAMS)


def test_without_naive_rows_nothing_changes():
  fixmatch = algorithms.fixmatch_method(threshold=0.5)
  adaptive = algorithms.sample_adaptive_augmentation(N, start_step=100)
  plain, first = training(fixmatch)
  wrapped, second = training(algorithms.sample_adaptive_method(fixmatch, adaptive))
  for _ in range(2):
    first, info = plain(KEY, first, BATCH)
    second, other = wrapped(KEY, second, BATCH)
    np.testing.assert_array_equal(first.params, second.params)
    np.testing.assert_array_equal(info.row_losses, other.row_losses)
  inner, state = jax.device_get(second.memory)
  assert inner == () and state.step == 2 and not np.any(state.naive)
  np.testing.assert_allclose(state.history[:6], info.row_losses, rtol=0.1)
  assert not np.any(state.history[6:])


def test_naive_rows_are_pasted():
  adaptive = algorithms.sample_adaptive_augmentation(N)
  method = algorithms.sample_adaptive_method(algorithms.fixmatch_method(threshold=0.0), adaptive)
  update, state = training(method)
  naive = np.arange(N) % 2 == 0
  state = state._replace(memory=((), state.memory[1]._replace(naive=naive)))
  after, info = update(KEY, state, BATCH)
  first, second = BATCH.unlabeled.strong
  pasted = jax.jit(augment.paste_half)(jax.random.fold_in(KEY, 1), first, second)
  views = np.where(naive[:6, None, None, None], pasted, first)
  z = views.reshape(6, -1) @ PARAMS
  log_probs = z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
  guess = np.argmax(BATCH.unlabeled.weak[0].reshape(6, -1) @ PARAMS, axis=-1)
  rows = -log_probs[range(6), guess]
  np.testing.assert_allclose(info.row_losses, rows, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(after.memory[1].history[:6], 0.999 * rows, rtol=1e-3, atol=1e-5)


def test_mixup_mixes_all_views_of_a_row_alike():
  def show(key, step):
    """Remembers which mixtures the method sees."""
    del key
    views = step.batch.unlabeled
    seen = jnp.stack([views.clean, *views.weak, *views.strong])
    memory = seen, step.batch.labeled.weak[1], step.batch.targets
    zero = jnp.sum(step.params) * 0
    return algorithms.SemiSupervisedLoss(zero, zero, jnp.zeros((6, 4)), memory=memory)

  def start():
    return jnp.zeros((5, 6, 6)), jnp.zeros((4, 6)), jnp.zeros((4, 4))

  # Every view of row i is the unit vector i.
  labeled, unlabeled = (np.eye(n, 6, dtype=np.float32) for n in (4, 6))
  batch = BATCH._replace(
    labeled=algorithms.Views(labeled, *[np.stack([labeled] * 2)] * 2),
    unlabeled=algorithms.Views(unlabeled, *[np.stack([unlabeled] * 2)] * 2),
  )
  method = algorithms.SemiSupervisedMethod(show, start)
  update, state = training(algorithms.mixup_method(method, alpha=0.75))
  seen, labeled, targets = jax.device_get(update(KEY, state, batch)[0].memory)
  np.testing.assert_array_equal(seen, np.broadcast_to(seen[:1], seen.shape))
  for mixture in (seen[0], labeled[:, :4]):
    assert np.all(np.diag(mixture) >= 0.5)
    np.testing.assert_allclose(mixture.sum(0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(mixture.sum(1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(targets, labeled[:, :4] @ TARGETS, rtol=1e-6)
  update, state = training(algorithms.mixup_method(method, probability=0.0))
  alone, _, targets = jax.device_get(update(KEY, state, batch)[0].memory)
  np.testing.assert_array_equal(alone, np.broadcast_to(np.eye(6), alone.shape))
  np.testing.assert_array_equal(targets, TARGETS)


def test_errors():
  adaptive = algorithms.sample_adaptive_augmentation(N)
  update, state = training(
    algorithms.sample_adaptive_method(algorithms.fixmatch_method(), adaptive)
  )
  one = BATCH.unlabeled._replace(strong=BATCH.unlabeled.strong[:1])
  with pytest.raises(ValueError, match="the number of strong views must be at least 2, got 1"):
    update(KEY, state, BATCH._replace(unlabeled=one))
  with pytest.raises(ValueError, match="batch.indices"):
    update(KEY, state, BATCH._replace(indices=None))
  with pytest.raises(ValueError, match=r"alpha must lie in \(0, inf\), got 0.0"):
    algorithms.mixup_method(algorithms.fixmatch_method(), alpha=0.0)
  with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 2"):
    algorithms.mixup_method(algorithms.fixmatch_method(), probability=2)
