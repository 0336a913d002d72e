import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import data, losses, models, samplers
from jaxlab.algorithms.prior_fitted import (
  loss_by_context,
  prior_bar_borders,
  prior_fitting,
  prior_fitting_optimizer,
  query_losses,
  query_mean_loss,
  transformer_peak_learning_rate,
  warmup_cosine,
)

_B, _T = 4, 6


class _Batch(NamedTuple):
  x: chex.Array
  y: chex.Array
  targets: chex.Array


def _fixed_batch(key=None):
  del key
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(_B, _T, 2)), jnp.float32)
  y = jnp.asarray(rng.normal(size=(_B, _T)), jnp.float32)
  return _Batch(x, y, y + 1)


def _linear(params, x, y, num_context):
  """A weighted sum of inputs plus the mean of the context's targets."""
  is_context = jnp.arange(_T) < num_context
  mean = jnp.sum(jnp.where(is_context, y, 0), axis=1) / jnp.maximum(num_context, 1)
  return x @ params["w"] + mean[:, None]


def _squared_error(outputs, targets):
  return (outputs - targets) ** 2


_PARAMS = {"w": jnp.array([0.5, -0.3])}


def test_query_mean_loss_matches_a_loop():
  loss = np.random.default_rng(0).normal(size=(_B, _T)).astype(np.float32)
  traced = jax.jit(query_mean_loss)
  for num_context in range(_T):
    rows = [loss[b, j] for b in range(_B) for j in range(num_context, _T)]
    for value in (query_mean_loss(loss, num_context), traced(loss, num_context)):
      assert value.dtype == jnp.float32
      np.testing.assert_allclose(value, np.mean(rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      traced(loss.astype(jnp.bfloat16), num_context), np.mean(rows), atol=0.02
    )


def test_query_mean_loss_ignores_the_context():
  loss = jnp.ones((_B, _T)).at[:, :2].set(jnp.nan).at[0, 0].set(jnp.inf)
  value, gradient = jax.jit(jax.value_and_grad(query_mean_loss))(loss, 2)
  assert value == 1
  expected = np.where(np.arange(_T) >= 2, 1 / (_B * (_T - 2)), 0)
  np.testing.assert_allclose(gradient, np.broadcast_to(expected, (_B, _T)), rtol=1e-6)
  known = jnp.int32(2)  # closed over, which makes its comparisons traced
  assert jax.jit(lambda loss: query_mean_loss(loss, known))(loss) == 1
  value, gradient = jax.jit(jax.value_and_grad(query_mean_loss))(loss, _T)
  assert value == 0 and not gradient.any()


def test_query_mean_loss_errors():
  for num_context in (-1, _T + 1):
    with pytest.raises(ValueError, match="num_context"):
      query_mean_loss(jnp.zeros((_B, _T)), num_context)
  with pytest.raises(ValueError, match="loss must have shape"):
    query_mean_loss(jnp.zeros(_T), 1)


def test_update_is_one_gradient_step_on_the_queries():
  fitting = prior_fitting(_linear, optax.sgd(0.1), _fixed_batch, _squared_error, max_context=_T)
  state = fitting.init(_PARAMS)
  assert state.step == 0
  update = jax.jit(fitting.update)
  batch = jax.tree.map(np.asarray, _fixed_batch())
  sizes = set()
  for seed in range(8):
    new_state, info = update(jax.random.key(seed), state)
    c = int(info.num_context)
    sizes.add(c)
    mean = batch.y[:, :c].mean(axis=1, keepdims=True) if c else 0
    residual = (batch.x @ np.asarray(_PARAMS["w"]) + mean - batch.targets)[:, c:]
    gradient = 2 * np.einsum("bt,btf->f", residual, batch.x[:, c:]) / residual.size
    np.testing.assert_allclose(info.loss, (residual**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(new_state.params["w"], _PARAMS["w"] - 0.1 * gradient, rtol=1e-4)
    assert new_state.step == 1 and new_state.step.dtype == jnp.int32
  assert len(sizes) > 2
  eager = fitting.update(jax.random.key(0), state)
  chex.assert_trees_all_close(eager, update(jax.random.key(0), state), rtol=1e-5)


def test_fitting_finds_the_posterior_mean():
  # Targets are a constant of the data set plus noise; the minimizer shrinks the context's mean.
  def prior_fn(key):
    key_mean, key_noise = jax.random.split(key)
    y = jax.random.normal(key_mean, (512, 1)) + jax.random.normal(key_noise, (512, _T))
    return _Batch(jnp.zeros((512, _T, 1)), y, y)

  def apply_fn(params, x, y, num_context):
    total = jnp.sum(jnp.where(jnp.arange(_T) < num_context, y, 0), axis=1, keepdims=True)
    return jnp.broadcast_to(params[num_context] * total, y.shape)

  fitting = prior_fitting(
    apply_fn, optax.adam(0.02), prior_fn, _squared_error, max_context=_T, scheme="uniform"
  )

  @jax.jit
  def train(key):
    def step(state, key):
      state, info = fitting.update(key, state)
      return state, info.num_context

    return jax.lax.scan(step, fitting.init(jnp.zeros(_T)), jax.random.split(key, 400))

  state, sizes = train(jax.random.key(0))
  assert state.step == 400
  np.testing.assert_allclose(state.params[1:], [1 / (c + 1) for c in range(1, _T)], atol=0.06)
  counts = np.bincount(sizes, minlength=_T)
  assert counts.size == _T and (np.abs(counts - 400 / _T) < 5 * np.sqrt(400 / _T)).all()


def test_no_gradient_flows_into_the_data():
  def loss(shift):
    def prior_fn(key):
      batch = _fixed_batch(key)
      return _Batch(batch.x + shift, batch.y + shift, batch.targets + shift)

    fitting = prior_fitting(_linear, optax.sgd(0.1), prior_fn, _squared_error, max_context=_T)
    _, info = fitting.update(jax.random.key(0), fitting.init(_PARAMS))
    return info.loss

  assert jax.grad(loss)(0.3) == 0


def test_stochastic_networks_get_a_key():
  def noisy(params, x, y, num_context, *, key):
    return _linear(params, x, y, num_context) + jax.random.normal(key, y.shape)

  fitting = prior_fitting(
    noisy, optax.sgd(0.1), _fixed_batch, _squared_error, max_context=1, stochastic=True
  )
  update = jax.jit(fitting.update)
  state = fitting.init(_PARAMS)
  losses = [float(update(jax.random.key(seed), state)[1].loss) for seed in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


def _causal_mean(params, x, y, num_context):
  del num_context
  before = jnp.cumsum(y, axis=1) - y
  return params * before + x[..., 0]


def test_data_sets_are_cut_to_one_of_the_lengths():
  lengths = (2, _T)
  fitting = prior_fitting(
    _causal_mean, optax.sgd(0.1), _fixed_batch, _squared_error, max_context=4, lengths=lengths
  )
  update = jax.jit(fitting.update)
  state = fitting.init(np.float32(0.5))
  batch = jax.tree.map(np.asarray, _fixed_batch())
  before = np.cumsum(batch.y, axis=1) - batch.y
  residual = 0.5 * before + batch.x[..., 0] - batch.targets
  seen = set()
  for seed in range(24):
    new_state, info = update(jax.random.key(seed), state)
    c = int(info.num_context)
    means = {t: np.square(residual[:, c:t]).mean() for t in lengths if t > c}
    (length,) = (t for t, mean in means.items() if np.isclose(mean, info.loss, rtol=1e-5))
    gradient = 2 * (residual * before)[:, c:length].mean()
    np.testing.assert_allclose(new_state.params, 0.5 - 0.1 * gradient, rtol=1e-4)
    seen.add((length, c))
  assert {length for length, _ in seen} == set(lengths)
  assert max(c for length, c in seen if length == 2) == 1
  assert max(c for length, c in seen if length == _T) > 1


def test_a_prior_may_change_with_the_steps():
  def prior_fn(key, *, step):
    batch = _fixed_batch(key)
    return batch._replace(targets=batch.y + step)

  fitting = prior_fitting(
    lambda params, x, y, num_context: y + params,
    optax.sgd(0.0),
    prior_fn,
    _squared_error,
    max_context=1,
    scheduled=True,
  )
  update = jax.jit(fitting.update)
  state = fitting.init(np.float32(0))
  for step in range(3):
    state, info = update(jax.random.key(0), state)
    np.testing.assert_allclose(info.loss, step**2, atol=1e-5)


def _regression_prior(key):
  task_key, pair_key = jax.random.split(key)
  tasks = samplers.sample_linear_tasks(task_key, batch_size=_B, num_features=2)
  return samplers.sample_linear_regression(pair_key, tasks, num_points=_T)


def _regression(module):
  def apply_fn(params, x, y, num_context):
    del num_context
    tokens = models.interleave_pairs(x, y)
    return models.mean_and_variance(module.apply({"params": params}, tokens)[:, ::2])

  return apply_fn, lambda outputs, targets: losses.gaussian_nll(*outputs, targets)


_DIGITS = np.random.default_rng(0).uniform(size=(12, 5)).astype(np.float32)
_CLASSES = np.arange(12, dtype=np.int32) % 3
_classification_prior = functools.partial(
  samplers.sample_task_sequences,
  inputs=_DIGITS,
  labels=_CLASSES,
  batch_size=_B,
  sequence_length=_T,
  output_dim=2,
  num_classes=3,
)


def _classification(module):
  def apply_fn(params, x, y, num_context):
    del num_context
    previous = samplers.previous_label_one_hot(y, num_classes=3)
    return module.apply({"params": params}, jnp.concatenate([x, previous], axis=-1))

  return apply_fn, optax.losses.softmax_cross_entropy_with_integer_labels


def _pairs_prior(key):
  batch = data.ambiguous_digit_batch(key, _DIGITS, _CLASSES, batch_size=_B)
  labels = jnp.stack([batch.labels_a, batch.labels_b], axis=-1)[:, None]
  return samplers.PriorBatch(batch.inputs[:, None], labels[..., 0], labels)


def _pairs(module):
  def apply_fn(params, x, y, num_context):
    del y, num_context
    return module.apply({"params": params}, x[:, 0]).logits.reshape(len(x), 1, 10, 10)

  return apply_fn, lambda logits, labels: losses.pair_nll(logits, labels[..., 0], labels[..., 1])


@pytest.mark.parametrize(
  ("prior_fn", "kind", "module", "width"),
  [
    (_regression_prior, _regression, models.InContextLSTM(2, 4), (2 * _T, 3)),
    (_classification_prior, _classification, models.InContextLSTM(3, 4), (_T, 5)),
    (_pairs_prior, _pairs, models.MLP(100, (4,)), (6,)),
  ],
)
def test_one_trainer_for_networks_that_learn_in_context(prior_fn, kind, module, width):
  apply_fn, loss_fn = kind(module)
  fitting = prior_fitting(apply_fn, optax.adam(0.01), prior_fn, loss_fn, max_context=1)

  @jax.jit
  def train(key):
    def step(state, key):
      # The same data again and again.
      state, info = fitting.update(jax.random.key(1), state)
      return state, info.loss

    params = module.init(key, jnp.zeros((1, *width)))["params"]
    batch = prior_fn(jax.random.split(jax.random.key(1), 3)[0])
    first = loss_fn(apply_fn(params, batch.x, batch.y, 0), batch.targets)
    return first, jax.lax.scan(step, fitting.init(params), jax.random.split(key, 20))[1]

  first, values = train(jax.random.key(0))
  assert first.shape[0] == _B and first.ndim == 2
  np.testing.assert_allclose(values[0], np.mean(first), rtol=1e-4)
  assert np.isfinite(values).all() and values[-1] < values[0]


def test_prior_fitting_errors():
  def build(**options):
    return prior_fitting(_linear, optax.sgd(0.1), _fixed_batch, _squared_error, **options)

  with pytest.raises(ValueError, match="max_context"):
    build(max_context=0)
  with pytest.raises(ValueError, match="scheme"):
    build(max_context=2, scheme="none")
  fitting = build(max_context=_T + 1)
  with pytest.raises(ValueError, match=f"max_context .* {_T + 1} > {_T}"):
    jax.jit(fitting.update)(jax.random.key(0), fitting.init(_PARAMS))


def test_lengths_errors():
  build = functools.partial(
    prior_fitting, _linear, optax.sgd(0.1), _fixed_batch, _squared_error, max_context=2
  )
  with pytest.raises(ValueError, match="lengths must not be empty"):
    build(lengths=())
  with pytest.raises(ValueError, match=r"lengths\[1\] must be at least 1, got 0"):
    build(lengths=(3, 0))
  fitting = build(lengths=(3, _T + 1))
  state = jax.eval_shape(fitting.init, _PARAMS)
  with pytest.raises(ValueError, match=f"lengths .* {_T + 1} > {_T}"):
    jax.eval_shape(fitting.update, jax.random.key(0), state)


def test_loss_by_context_matches_single_calls():
  batch = _fixed_batch()
  sizes = [0, 3, 5, 1]
  expected = [
    query_mean_loss(_squared_error(_linear(_PARAMS, batch.x, batch.y, c), batch.targets), c)
    for c in sizes
  ]
  losses = loss_by_context(_linear, _PARAMS, batch, _squared_error, context_sizes=sizes)
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  traced = jax.jit(
    lambda s: loss_by_context(_linear, _PARAMS, batch, _squared_error, context_sizes=s)
  )
  np.testing.assert_allclose(traced(jnp.array(sizes)), expected, rtol=1e-5)
  known = jnp.array(sizes)
  closed = jax.jit(
    lambda p: loss_by_context(_linear, p, batch, _squared_error, context_sizes=known)
  )
  np.testing.assert_allclose(closed(_PARAMS), expected, rtol=1e-5)
  for size in (-1, _T):
    with pytest.raises(ValueError, match="context_sizes"):
      loss_by_context(_linear, _PARAMS, batch, _squared_error, context_sizes=[0, size])


@pytest.mark.parametrize("num_steps, fraction", [(20, 0.25), (10, 0.19), (5, 0.0), (4, 1.0)])
def test_warmup_cosine_matches_its_formula(num_steps, fraction):
  schedule = jax.jit(warmup_cosine(0.3, num_steps, warmup_fraction=fraction))
  warmup = math.floor(fraction * num_steps)
  for step in range(num_steps + 3):
    if step < warmup:
      expected = 0.3 * step / warmup
    elif step >= num_steps > warmup:
      expected = 0
    elif warmup == num_steps:
      continue
    else:
      expected = 0.15 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-7)
  assert np.isfinite(schedule(num_steps))


def test_warmup_cosine_takes_a_traced_peak_and_an_optimizer():
  rates = jax.vmap(lambda peak: warmup_cosine(peak, 8)(2))(jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(rates, [1.0, 2.0])
  optimizer = optax.sgd(warmup_cosine(1.0, 8))
  state = optimizer.init(jnp.zeros(()))
  updates = []
  for _ in range(3):
    update, state = optimizer.update(jnp.ones(()), state)
    updates.append(float(update))
  np.testing.assert_allclose(updates, [0, -0.5, -1.0])


def test_warmup_cosine_errors():
  with pytest.raises(ValueError, match="num_steps"):
    warmup_cosine(1.0, 0)
  for fraction in (-0.1, 1.1):
    with pytest.raises(ValueError, match="warmup_fraction"):
      warmup_cosine(1.0, 10, warmup_fraction=fraction)


def test_transformer_peak_learning_rate():
  np.testing.assert_allclose(transformer_peak_learning_rate(1), 0.003239)
  np.testing.assert_allclose(
    transformer_peak_learning_rate(25_000_000), 0.003239 - 0.0001395 * math.log(25e6)
  )
  for num_params in (0, 10**11):
    with pytest.raises(ValueError, match="num_params"):
      transformer_peak_learning_rate(num_params)


def test_query_losses_average_to_the_query_mean():
  batch = _fixed_batch()
  for num_context in (0, 2, _T - 1):
    losses = jax.jit(
      lambda c: query_losses(_linear, _PARAMS, batch, _squared_error, num_context=c)
    )(num_context)
    outputs = _linear(_PARAMS, batch.x, batch.y, num_context)
    np.testing.assert_allclose(losses.values, _squared_error(outputs, batch.targets), rtol=1e-5)
    assert losses.weights.dtype == jnp.float32
    np.testing.assert_array_equal(
      losses.weights, np.broadcast_to(np.arange(_T) >= num_context, (_B, _T))
    )
    np.testing.assert_allclose(
      np.average(losses.values, weights=losses.weights),
      query_mean_loss(losses.values, num_context),
      rtol=1e-5,
    )


def test_bars_hold_equal_shares_of_fresh_targets():
  def prior_fn(key):
    y = jax.random.normal(key, (2, 50))
    return _Batch(y[..., None], y, y + 3)

  borders = prior_bar_borders(jax.random.key(0), prior_fn, 8)
  values = np.random.default_rng(0).normal(3.0, 1.0, 20_000)
  shares, _ = np.histogram(values, np.asarray(borders))
  np.testing.assert_allclose(shares / values.size, 1 / 8, atol=0.015)
  few = prior_bar_borders(jax.random.key(0), prior_fn, 2, num_values=120)
  values = np.concatenate([prior_fn(key).targets for key in jax.random.split(jax.random.key(0), 2)])
  kept = values.reshape(-1)[:120]
  np.testing.assert_allclose(few, [kept.min(), np.median(kept), kept.max()], rtol=1e-5)


def test_prior_fitting_optimizer_clips_and_follows_the_schedule():
  optimizer = prior_fitting_optimizer(0.1, 8, warmup_fraction=0.5)
  schedule = warmup_cosine(0.1, 8, warmup_fraction=0.5)
  params = jnp.zeros(2)
  state = optimizer.init(params)
  first, second = np.zeros(2), np.zeros(2)
  for step, gradient in enumerate([np.array([30.0, 40.0]), np.array([0.3, -0.4])]):
    updates, state = jax.jit(optimizer.update)(jnp.asarray(gradient), state)
    clipped = gradient / max(1, np.linalg.norm(gradient))
    first, second = 0.9 * first + 0.1 * clipped, 0.999 * second + 0.001 * clipped**2
    unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
    expected = -schedule(step) * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    np.testing.assert_allclose(updates, expected, rtol=1e-4)
