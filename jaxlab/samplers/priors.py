"""Priors over whole data sets for prior fitting: Gaussian processes, lines, random networks.

Every prior is one pure program of static shapes, so that a training step can draw its own data
under `jit`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once


class PriorBatch(NamedTuple):
  """Data sets drawn from a prior.

  Attributes:
    x: inputs, `[b, T, f]`.
    y: values that a context shows, `[b, T]`.
    targets: values that a query is scored on, `[b, T]`.
  """

  x: chex.Array
  y: chex.Array
  targets: chex.Array


def ridge_prior(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  num_points: int,
  num_features: int = 1,
  weight_std: chex.Numeric = 0.1,
  noise_std: chex.Numeric = 0.1,
) -> PriorBatch:
  """Noisy linear functions without intercept, whose Bayes predictor is ridge regression.

  Args:
    key: random key.
    batch_size: number of data sets, b.
    num_points: points of each, T, uniform on the unit cube.
    num_features: features of each point, f.
    weight_std: prior standard deviation of each weight.
    noise_std: standard deviation of the observation noise.

  Returns:
    `PriorBatch` whose targets are the noiseless values.

  Raises:
    ValueError: if a size is below 1 or a standard deviation is negative.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  check_at_least(1, batch_size=batch_size, num_points=num_points, num_features=num_features)
  check_range("weight_std", weight_std, "[0, inf)")
  check_range("noise_std", noise_std, "[0, inf)")
  x_key, weight_key, noise_key = jax.random.split(key, 3)
  x = jax.random.uniform(x_key, (batch_size, num_points, num_features))
  weights = weight_std * jax.random.normal(weight_key, (batch_size, num_features))
  targets = jnp.einsum("btf,bf->bt", x, weights)
  noise = noise_std * jax.random.normal(noise_key, (batch_size, num_points))
  return PriorBatch(x, targets + noise, targets)


def bnn_prior(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  num_points: int,
  num_features: int = 1,
  max_hidden: int = 150,
  weight_std_gamma: tuple[float, float] = (3.6188, 0.067737),
  noise_std_gamma: tuple[float, float] = (1.8663, 0.052755),
  group_size: int = 8,
  binary: bool = True,
  num_classes: int = 2,
) -> PriorBatch:
  """Tabular data sets labeled by random noisy networks of random size.

  Three linear layers with tanh before the second and third, every weight and bias normal, and
  noise added after the second and third. Number of used features, width, scale of the weights
  and of the noise, and the weights are shared by the data sets of a group; inputs and noise are
  not. Inputs and outputs are standardized over the points of a data set; unused features are 0.

  Args:
    key: random key.
    batch_size: number of data sets, b.
    num_points: points of each, T, at least 2.
    num_features: features of each point, f, of which a data set may use fewer.
    max_hidden: largest width of the network, at least 2.
    weight_std_gamma: shape and scale of the gamma distribution of the weights' standard
      deviation.
    noise_std_gamma: shape and scale of that of the noise.
    group_size: data sets that share a network; the last group may have fewer.
    binary: whether `y` is a class index; the standardized output of the network otherwise.
    num_classes: with 2 the class is 1 above the (lower) median; with more, the output is cut at
      equal quantiles and the classes are numbered in a random order per data set.

  Returns:
    `PriorBatch` with targets equal to `y`; class indices are floats.

  Raises:
    ValueError: if a size is below its minimum, a shape or scale is negative, `num_classes` lies
      outside `[2, num_points]`, or more than two classes are asked for without `binary`.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 6 and
  appendix, https://arxiv.org/abs/2112.10510.
  """
  check_at_least(1, batch_size=batch_size, num_features=num_features, group_size=group_size)
  check_at_least(2, num_points=num_points, max_hidden=max_hidden)
  check_range("weight_std_gamma", weight_std_gamma, "(0, inf)")
  check_range("noise_std_gamma", noise_std_gamma, "[0, inf)")
  check_range("num_classes", num_classes, f"[2, {num_points}]")
  if not binary and num_classes > 2:
    raise ValueError(f"num_classes={num_classes} needs binary=True.")
  network_key, hyper_key, x_key, label_key = jax.random.split(key, 4)
  num_groups = math.ceil(batch_size / group_size)
  x = jax.random.normal(x_key, (num_groups, group_size, num_points, num_features))
  used, hidden, weight_std, noise_std = _network_hyperparameters(
    hyper_key, num_groups, num_features, max_hidden, weight_std_gamma, noise_std_gamma
  )
  x *= (jnp.arange(num_features)[None] < used[:, None])[:, None, None, :]
  units = jnp.arange(max_hidden)[None] < hidden[:, None]
  network_keys = jax.random.split(network_key, num_groups)
  y = jax.vmap(_random_network)(network_keys, x, units, weight_std, noise_std)
  x = _standardize(x.reshape(-1, num_points, num_features)[:batch_size], axis=1)
  y = _standardize(y.reshape(-1, num_points)[:batch_size], axis=1)
  if binary:
    # By rank: XLA may compute y twice, and the median's own value then exceeds the median.
    ranks = jnp.argsort(jnp.argsort(y, axis=1), axis=1)
    if num_classes == 2:
      y = (ranks > (num_points - 1) // 2).astype(y.dtype)
    else:
      order = jnp.broadcast_to(jnp.arange(num_classes), (batch_size, num_classes))
      order = jax.random.permutation(label_key, order, axis=1, independent=True)
      y = jnp.take_along_axis(order, ranks * num_classes // num_points, axis=1).astype(y.dtype)
  return PriorBatch(x, y, y)


def _network_hyperparameters(
  key, num_groups, num_features, max_hidden, weight_std_gamma, noise_std_gamma
):
  """Used features, used units, scale of the weights and of the noise, `[num_groups]` each."""
  # One call for all gammas, since each compiles a rejection loop; two gamma variables make a beta
  # variable.
  shapes = jnp.array([1.0, 1.6, 2.0, 4.0, weight_std_gamma[0], noise_std_gamma[0]])
  gammas = jax.random.gamma(key, shapes, (num_groups, len(shapes)))
  beta_features = gammas[:, 0] / (gammas[:, 0] + gammas[:, 1])
  beta_hidden = gammas[:, 2] / (gammas[:, 2] + gammas[:, 3])
  used = 2 + jnp.round(beta_features * (num_features - 1) - 0.5)
  hidden = 2 + jnp.round(beta_hidden * (max_hidden - 1) - 0.5)
  return (
    jnp.clip(used, 1, num_features),
    jnp.clip(hidden, 2, max_hidden),
    gammas[:, 4] * weight_std_gamma[1],
    gammas[:, 5] * noise_std_gamma[1],
  )


def _random_network(key, x, units, weight_std, noise_std):
  """Draws one network and applies it to a group, x `[s, T, f]` -> y `[s, T]`.

  Masking the units beyond the drawn width lets all widths share one program.
  """
  weight_key, noise_key = jax.random.split(key)
  num_inputs, num_units = x.shape[-1], units.shape[-1]
  # Few large draws, since each random call costs a second of compilation.
  sizes = ((num_inputs + 1, num_units), (num_units + 1, num_units), (num_units + 1, 1))
  ends = np.cumsum([rows * columns for rows, columns in sizes])
  weights = jnp.split(weight_std * jax.random.normal(weight_key, (ends[-1],)), ends[:-1])
  first, second, third = (w.reshape(size) for w, size in zip(weights, sizes))
  noise = noise_std * jax.random.normal(noise_key, (*x.shape[:-1], num_units + 1))

  def linear(inputs, weights):
    return inputs @ weights[:-1] + weights[None, -1:]

  values = linear(x, first)
  units = units[None, None]
  values = linear(jnp.tanh(values) * units, second) + noise[..., 1:]
  return linear(jnp.tanh(values) * units, third)[..., 0] + noise[..., 0]


def _standardize(values, axis):
  mean = jnp.mean(values, axis=axis, keepdims=True)
  std = jnp.std(values, axis=axis, keepdims=True, ddof=1)
  return (values - mean) / (std + 1e-6)


def draw_data_sets(
  keys: chex.PRNGKey,
  prior_fn: Callable[[chex.PRNGKey], PriorBatch],
  *,
  one_by_one: bool = False,
) -> PriorBatch:
  """Draws a prior once per key, and joins the draws along the batch axis.

  With a key per draw the data sets do not depend on how a batch is cut over devices.

  Args:
    keys: random keys, `[k]`.
    prior_fn: `prior_fn(key)` draws g data sets, for example `gp_prior` with its sizes bound.
    one_by_one: whether one draw follows the other, which bounds memory; otherwise all at once.

  Returns:
    `PriorBatch` of k * g data sets.

  Raises:
    ValueError: if `keys` is not a vector of keys.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, algorithm 1,
  https://arxiv.org/abs/2112.10510.
  """
  check_arrays(keys=(keys, "[k]"))
  draws = _one_by_one(prior_fn, keys) if one_by_one else jax.vmap(prior_fn)(keys)
  return jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:]), draws)


_one_by_one = compiled_once(jax.lax.map)
