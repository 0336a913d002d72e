from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses


class Output(NamedTuple):
  features: chex.Array
  logits: chex.Array


def forward(params, inputs):
  features = jnp.tanh(inputs * params["norm"]["scale"] + params["norm"]["bias"])
  return Output(features, features @ params["head"]["kernel"])


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  return {
    "norm": {"scale": np.ones(4, np.float32), "bias": -np.zeros(4, np.float32)},
    "head": {"kernel": rng.normal(size=(4, 3)).astype(np.float32)},
    "steps": np.int32(7),
  }


@pytest.fixture(scope="module")
def batches():
  return np.random.default_rng(1).normal(size=(5, 6, 4)).astype(np.float32)


def entropy(key, batch):
  del key
  return algorithms.AdaptLoss(losses.softmax_entropy(batch.outputs.logits))


def adapter(loss_fn=entropy, optimizer=None, trainable=lambda path: "norm" in path, **kwargs):
  optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
  return algorithms.loss_adapter(forward, loss_fn, optimizer, trainable=trainable, **kwargs)


def test_update_predicts_and_then_makes_one_optimizer_step(params, batches):
  made = adapter()
  state = made.init(params)
  new, info = jax.jit(made.update)(jax.random.key(0), state, batches[0])
  np.testing.assert_allclose(info.logits, forward(params, batches[0]).logits, rtol=1e-6)
  np.testing.assert_allclose(info.loss, losses.softmax_entropy(info.logits).mean(), rtol=1e-6)
  np.testing.assert_array_equal(info.selected, np.ones(6))
  assert info.skipped == 0

  def loss(norm):
    return losses.softmax_entropy(forward({**params, "norm": norm}, batches[0]).logits).mean()

  grads = jax.grad(loss)(params["norm"])
  for name in ("scale", "bias"):
    expected = params["norm"][name] - 0.1 * grads[name]
    np.testing.assert_allclose(new.params["norm"][name], expected, rtol=1e-5, atol=1e-7)


def test_frozen_leaves_stay_bitwise_equal_and_have_no_optimizer_state(params, batches):
  decaying = optax.adamw(0.1, weight_decay=0.5)
  made = adapter(optimizer=decaying)
  state, _ = algorithms.adapt_stream(jax.random.key(0), made, made.init(params), batches)
  kernel = np.asarray(state.params["head"]["kernel"])
  assert kernel.tobytes() == params["head"]["kernel"].tobytes()
  assert state.params["steps"] == 7
  assert not np.array_equal(state.params["norm"]["scale"], params["norm"]["scale"])
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * 8


def test_stream_matches_a_loop_of_updates(params, batches):
  def noisy(key, batch):
    noise = jax.random.normal(key, batch.inputs.shape)
    return algorithms.AdaptLoss(losses.softmax_entropy(batch.forward(batch.inputs + noise).logits))

  made = adapter(noisy)
  key = jax.random.key(3)
  last, infos = jax.jit(lambda s: algorithms.adapt_stream(key, made, s, batches))(made.init(params))
  state, update = made.init(params), jax.jit(made.update)
  for i, k in enumerate(jax.random.split(key, 5)):
    state, info = update(k, state, batches[i])
    for stacked, single in zip(infos, info):
      np.testing.assert_allclose(stacked[i], single, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), last, state)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_batch_is_skipped_and_counted(params, batches, broken):
  made = adapter()
  bad = batches.copy()
  bad[2, 1, 0] = broken
  # tanh maps inf to a finite number: the loss is finite, the inputs are not.
  run = jax.jit(lambda b: algorithms.adapt_stream(jax.random.key(0), made, made.init(params), b))
  state, infos = run(bad)
  np.testing.assert_array_equal(infos.skipped, [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(infos.selected.mean(1), [1, 1, 0, 1, 1])
  without, expected = run(np.delete(bad, 2, axis=0)[[0, 1, 2, 3, 3]])
  del without
  np.testing.assert_allclose(np.delete(infos.logits, 2, 0), expected.logits[:4], rtol=1e-5)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_non_finite_gradient_of_a_finite_loss_is_skipped(params, batches):
  def kinked(key, batch):
    del key
    return algorithms.AdaptLoss(jnp.sqrt(0.0 * batch.outputs.logits[:, 0]))

  made = adapter(kinked)
  state = made.init(params)
  new, info = jax.jit(made.update)(jax.random.key(0), state, batches[0])
  assert np.isfinite(info.loss) and info.skipped == 1
  jax.tree.map(np.testing.assert_array_equal, new, state)


def test_losses_can_be_summed(params, batches):
  def both(key, batch):
    diversity = losses.marginal_entropy(batch.outputs.logits)
    return algorithms.AdaptLoss(entropy(key, batch).values - 0.3 * diversity, jnp.zeros(6))

  made = adapter(both)
  _, info = jax.jit(made.update)(jax.random.key(0), made.init(params), batches[0])
  logits = forward(params, batches[0]).logits
  expected = losses.softmax_entropy(logits).mean() - 0.3 * losses.marginal_entropy(logits)
  np.testing.assert_allclose(info.loss, expected, rtol=1e-5)
  assert not np.any(info.selected)


def test_keep_source_stores_the_source_parameters(params, batches):
  def drift(key, batch):
    del key
    gap = batch.outputs.logits - batch.source_outputs.logits + 1.0
    return algorithms.AdaptLoss(jnp.sum(gap**2, -1))

  made = adapter(drift, keep_source=True)
  state, infos = algorithms.adapt_stream(jax.random.key(0), made, made.init(params), batches)
  np.testing.assert_allclose(infos.loss[0], 3.0, rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, state.source_params, params)
  assert adapter().init(params)._fields == ("params", "opt_state")


def test_batch_of_one_and_bfloat16(params, batches):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x, params)
  made = adapter()
  inputs = batches[:, :1].astype(jnp.bfloat16)
  state, infos = algorithms.adapt_stream(jax.random.key(0), made, made.init(half), inputs)
  assert state.params["norm"]["scale"].dtype == jnp.bfloat16
  assert infos.loss.dtype == jnp.float32 and np.all(np.isfinite(infos.loss))


def test_no_trainable_leaf_raises(params):
  for trainable in (lambda path: False, lambda path: path == ("steps",)):
    with pytest.raises(ValueError, match="head.*norm"):
      adapter(trainable=trainable).init(params)


def test_loss_must_have_one_value_per_row(params, batches):
  made = adapter(lambda key, batch: algorithms.AdaptLoss(batch.outputs.logits))
  with pytest.raises(ValueError, match="AdaptLoss.values must have shape"):
    made.update(jax.random.key(0), made.init(params), batches[0])


def test_paths_are_names_for_any_container():
  class Pair(NamedTuple):
    left: chex.Array
    right: chex.Array

  seen = []

  def note(path):
    seen.append(path)
    return True

  algorithms.init_optimizer(
    optax.sgd(0.1), {"a": [jnp.ones(1), Pair(jnp.ones(1), jnp.ones(1))]}, trainable=note
  )
  assert seen == [("a", "0"), ("a", "1", "left"), ("a", "1", "right")]
