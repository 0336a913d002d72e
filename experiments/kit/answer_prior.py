"""A network fitted to a prior over tables with uncertain answers, for the epistemic table.

It is scored on the probabilities themselves, which a prior knows, and not on answers: the variance
of what it predicts is then epistemic as it stands.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.prior_fitting import fit_prior
from jaxlab import algorithms, losses, models, samplers, uncertainty

_NUM_BARS = 64
_BORDERS = np.linspace(0, 1, _NUM_BARS + 1, dtype=np.float32)
_NUM_QUERIES = 60  # Of a table, and as many points as there may be context.
_BATCH_SIZE = 4  # Tables per update.
_LEARNING_RATE = 1e-3
_NUM_WAVES = 200  # Of a random function.


def network() -> models.PFN:
  """The network, whose outputs are bars over a probability."""
  sizes = {"embed_dim": 64, "num_layers": 2, "num_heads": 4}
  return models.PFN(_NUM_BARS, **sizes, norm="pre", input_shift=0.0, input_scale=1.0)


def answered_tables(
  key: chex.PRNGKey, *, batch_size: int, num_points: int, width: int
) -> samplers.PriorBatch:
  """Draws tables whose points have two answers each.

  The logit of an answer 1 is a sum of random waves, nearly a Gaussian process of squared
  exponential covariance (Rahimi and Recht, 2007). Each table has a length, a scale and a shift of
  its own. Columns are standard normal; the logarithm of their number is uniform, from that of 2 on.

  Args:
    key: random key.
    batch_size: tables b.
    num_points: points T of each.
    width: columns, with zeros where a table has fewer.

  Returns:
    `PriorBatch` of `x` `[b, T, width]`, `y`, the mean of the two answers, and `targets`, the
    probability of an answer 1.
  """
  keys = jax.random.split(key, 7)

  def log_uniform(key, low, high):
    return jnp.exp(jax.random.uniform(key, (batch_size,), minval=np.log(low), maxval=np.log(high)))

  num_inputs = jnp.floor(log_uniform(keys[0], 2, width + 1))
  shape = batch_size, num_points
  used = jnp.arange(width) < num_inputs[:, None, None]
  x = jnp.where(used, jax.random.normal(keys[1], (*shape, width)), 0.0)
  lengths = log_uniform(keys[2], 0.3, 3.0) * jnp.sqrt(num_inputs)
  scales, shifts = log_uniform(keys[3], 0.5, 8.0), jax.random.normal(keys[4], (batch_size,))

  wave_key, phase_key, height_key = jax.random.split(keys[5], 3)
  waves = jax.random.normal(wave_key, (batch_size, width, _NUM_WAVES)) / lengths[:, None, None]
  phases = jax.random.uniform(phase_key, (batch_size, 1, _NUM_WAVES), maxval=2 * np.pi)
  heights = jax.random.normal(height_key, (batch_size, _NUM_WAVES)) * np.sqrt(2 / _NUM_WAVES)
  values = jnp.einsum("btw,bw->bt", jnp.cos(x @ waves + phases), heights)
  probs = jax.nn.sigmoid(scales[:, None] * values + shifts[:, None])
  answers = jax.random.bernoulli(keys[6], probs, (2, *shape))
  return samplers.PriorBatch(x, jnp.mean(answers, axis=0), probs)


def fit(key: chex.PRNGKey, *, num_context: int, width: int, num_steps: int) -> dict:
  """Fits the network to tables of up to `num_context` points: its "params" and a "loss"."""
  module, num_points = network(), num_context + _NUM_QUERIES
  sizes = {"batch_size": _BATCH_SIZE, "num_points": num_points, "width": width}
  prior = functools.partial(answered_tables, **sizes)
  init_key, fit_key = jax.random.split(key)
  loss = functools.partial(losses.bar_nll, borders=jnp.asarray(_BORDERS), full_support=False)
  apply = lambda params, *table: module.apply({"params": params}, *table)  # noqa: E731
  fitting = algorithms.prior_fitting(
    apply,
    algorithms.prior_fitting_optimizer(_LEARNING_RATE, num_steps),
    prior,
    loss,
    max_context=num_points,
    scheme="uniform",
  )
  params = module.init(init_key, jnp.zeros((1, 2, width)), jnp.zeros((1, 2)), 1)["params"]
  found = fit_prior(fit_key, fitting, params, num_steps=num_steps)
  late = jnp.mean(found.losses[-max(1, num_steps // 10) :])
  return {"params": found.params, "loss": late, "bad_step": found.bad_step}


def posterior(
  params: chex.ArrayTree, x: chex.Array, y: chex.Array
) -> Callable[[chex.Array], tuple[jax.Array, jax.Array]]:
  """`queries [m, width] -> ` mean and variance of their probabilities, `[m]`, given a table."""

  def predict(queries):
    points = jnp.concatenate([x, queries])[None]
    answers = jnp.pad(y, (0, len(queries)))[None]
    options = {"max_context": len(x)}
    logits = network().apply({"params": params}, points, answers, len(x), **options)[0, len(x) :]
    bars = logits, jnp.asarray(_BORDERS)
    return tuple(
      moment(*bars, full_support=False)
      for moment in (uncertainty.bar_mean, uncertainty.bar_variance)
    )

  return predict
