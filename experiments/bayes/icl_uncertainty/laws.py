"""Laws of linear tasks, sequences of them, and the exact predictor of each law."""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jaxlab import samplers, uncertainty
from jaxlab.samplers import LinearTasks, RegressionSequences
from jaxlab.uncertainty import GaussianPredictive

# Laws of the training, which are conditions too.
FRESH, WIDE, POOL = "fresh", "wide", "pool"
LAWS = FRESH, WIDE, POOL
# Other conditions.
NOISE, SCALE = "noise shift", "input shift"
CONDITIONS = *LAWS, NOISE, SCALE


def of_prior(config) -> dict[str, float]:
  """The arguments of the prior."""
  return {name: getattr(config, name) for name in ("shape", "rate", "weight_precision")}


def draw_tasks(config, key: chex.PRNGKey, number: int) -> LinearTasks:
  """Tasks of the prior."""
  sizes = {"batch_size": number, "num_features": config.num_features}
  return samplers.sample_linear_tasks(key, **sizes, **of_prior(config))


def draw(
  config, conditions: Sequence[str], key: chex.PRNGKey, pool: LinearTasks, number: int
) -> RegressionSequences:
  """Sequences of some conditions, `[conditions, b, T, ...]`, of one draw of the prior."""
  task_key, change_key, key = jax.random.split(key, 3)
  drawn, changed = draw_tasks(config, task_key, len(conditions) * number), []
  for i, condition in enumerate(conditions):
    own = jax.tree.map(lambda x, i=i: x[i * number : (i + 1) * number], drawn)
    changed.append(_change(config, condition, jax.random.fold_in(change_key, i), own, pool))
  tasks, scale = jax.tree.map(lambda *x: jnp.concatenate(x), *changed)
  options = {"num_points": config.num_points, "input_scale": scale}
  batch = samplers.sample_linear_regression(key, tasks, **options)
  return jax.tree.map(lambda x: x.reshape(len(conditions), number, *x.shape[1:]), batch)


def _change(config, condition: str, key: chex.PRNGKey, tasks: LinearTasks, pool: LinearTasks):
  """What a condition makes of tasks of the prior, and the scales of its inputs.

  Half of the wide law has louder noise and weights of the same variance.
  """
  number, scale = len(tasks.noise_stds), jnp.ones_like(tasks.noise_stds)
  if condition == POOL:
    tasks = samplers.sample_from_pool(key, pool, batch_size=number)
  elif condition == WIDE:
    coin_key, scale_key = jax.random.split(key)
    louder = jnp.where(jax.random.bernoulli(coin_key, 0.5, (number,)), config.loudness, 1.0)
    tasks = tasks._replace(noise_stds=tasks.noise_stds * louder)
    scale = jax.random.choice(scale_key, jnp.array(config.input_scales), (number,))
  elif condition == NOISE:
    deviation = (config.rate / (config.shape - 1) / config.weight_precision) ** 0.5
    weights = deviation * jax.random.normal(key, tasks.weights.shape)
    tasks = LinearTasks(weights, jnp.full(number, config.shifted_noise))
  elif condition == SCALE:
    scale = config.shifted_scale * scale
  return tasks, scale


def exact(config, law: str, batch: RegressionSequences, pool: LinearTasks) -> GaussianPredictive:
  """Mean and variance of the Bayes predictor of a law, `[b, T]`; entry i knows i pairs."""
  if law == POOL:
    predict = functools.partial(
      uncertainty.task_pool_predictive, weights=pool.weights, noise_stds=pool.noise_stds
    )
    return uncertainty.prefix_predictives(predict, *batch)
  levels = [of_prior(config)]
  if law == WIDE:
    louder = {name: levels[0][name] * config.loudness**2 for name in ("rate", "weight_precision")}
    levels.append(levels[0] | louder)
  predictives, evidence = zip(*(_level(level, batch) for level in levels))
  means, variances = (jnp.stack(moments) for moments in zip(*predictives))
  weights = jax.nn.softmax(jnp.stack(evidence), axis=0)
  mean = jnp.sum(weights * means, axis=0)
  return GaussianPredictive(mean, jnp.sum(weights * (variances + jnp.square(means - mean)), axis=0))


def _level(level, batch: RegressionSequences):
  """What one prior predicts, and its log-evidence by the pairs before each, `[b, T]`."""
  predict = functools.partial(uncertainty.nig_predictive, **level)
  log_probs = student_log_probs(level, batch)
  before = jnp.pad(jnp.cumsum(log_probs, axis=1), ((0, 0), (1, 0)))[:, :-1]
  return uncertainty.prefix_predictives(predict, *batch), before


def student_log_probs(level, batch: RegressionSequences) -> jax.Array:
  """Log-densities of the values under the exact predictive distribution of a prior, `[b, T]`."""
  places = jnp.arange(batch.x.shape[1])

  def of_place(x, y, place):
    known = {"mask": places < place, **level}
    return uncertainty.nig_log_predictive(x, y, x[place][None], y[place][None], **known)[0]

  return jax.vmap(lambda x, y: jax.vmap(of_place, (None, None, 0))(x, y, places))(*batch)


def ridge(config, batch: RegressionSequences, penalty: chex.Numeric) -> jax.Array:
  """Predictions of ridge regression on the pairs before each, `[b, T]`."""
  predict = functools.partial(uncertainty.gaussian_predictive, weight_std=penalty**-0.5)
  return uncertainty.prefix_predictives(predict, *batch).mean
