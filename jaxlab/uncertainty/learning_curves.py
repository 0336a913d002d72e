"""Sums of parametric learning curves: their posterior density and predictions.

A curve model is `g(t) = sum_i w_i f_i(t)` at t = 1..T with Gaussian noise of standard deviation
`sigma`. With the default families its 13 parameters are, in this order: pow3 (c, a, alpha);
ilog2 (c, a); janoschek (a, beta, k, delta); the three weights; log sigma.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled
from jaxlab.uncertainty.curve_families import ParameterPrior, curve_family, curve_priors

CURVE_COMPONENTS = ("pow3", "ilog2", "janoschek")


WEIGHT_PRIOR = ParameterPrior("uniform", 0.0, 1.0)
LOG_NOISE_PRIOR = ParameterPrior("normal", -4.0, 1.0)


def combined_curve(
  params: chex.Array,
  *,
  length: int,
  components: tuple[str, ...] = CURVE_COMPONENTS,
  steps: Sequence[float] | None = None,
) -> chex.Array:
  """Evaluates the noiseless weighted sum of the component families, by default at t = 1..length.

  Args:
    params: parameters of every component in turn, their weights (not normalized), and log sigma
      (which the noiseless curve ignores), `[..., p]`; p = 13 for the default components.
    length: number of steps T.
    components: names of the families that are summed.
    steps: the T positive steps, for example training-set sizes; None is 1..T.

  Returns:
    Curve values, `[..., length]`, at least float32.

  Raises:
    ValueError: if `length` < 1, there are no components, one is unknown, or `steps` are not
      `length` positive numbers.

  Reference: Adriaensen et al., NeurIPS 2023, section 3, https://arxiv.org/abs/2310.20447.
  """
  check_at_least(1, length=length)
  if not components:
    raise ValueError(f"components must name at least one family, got {components!r}.")
  families = [curve_family(name) for name in components]
  sizes = [len(family.peaked) for family in families]
  check_arrays(params=(params, f"[..., {sum(sizes) + len(sizes) + 1}]"))
  params = as_accumulator(params)
  # Constants of the program: the density is evaluated millions of times on the same steps.
  steps = np.asarray(range(1, length + 1) if steps is None else steps, np.float64)
  if steps.shape != (length,) or not np.all(steps > 0):
    raise ValueError(f"steps must be length={length} positive numbers, got {steps}.")
  shape = (1,) * (params.ndim - 1) + (length,)
  steps, log_steps = (x.astype(params.dtype).reshape(shape) for x in (steps, np.log(steps)))
  columns = [params[..., i : i + 1] for i in range(params.shape[-1])]
  weights = columns[sum(sizes) : -1]
  total, start = 0.0, 0
  for family, size, weight in zip(families, sizes, weights):
    total += weight * family.fn(steps, log_steps, *columns[start : start + size])
    start += size
  return total


def is_learning_curve(curve: chex.Array) -> chex.Array:
  """Tells whether noiseless curves end above their start and never leave [0, 1].

  The prior over learning curves is the parameters' prior restricted to this event. NaN anywhere
  fails it.

  Args:
    curve: noiseless values, `[..., T]`.

  Returns:
    Truth values, `[...]`.

  Reference: Adriaensen et al., NeurIPS 2023, section 3, https://arxiv.org/abs/2310.20447.
  """
  check_arrays(curve=(curve, "[..., T]"))
  curve = jnp.asarray(curve)
  check_at_least(1, T=curve.shape[-1])
  inside = jnp.all((curve >= 0) & (curve <= 1), axis=-1)
  return inside & (curve[..., -1] > curve[..., 0])


def learning_curve_log_likelihood(
  params: chex.Array, values: chex.Array, *, length: int
) -> chex.Array:
  """Log-likelihood of the first n steps of a curve, without prior or restriction.

  It weights the starting points of a Markov chain if these are draws from the prior.

  Args:
    params: parameters of one curve model, `[13]`.
    values: observed values at t = 1..n, `[n]`.
    length: number of steps T of the whole curve, n <= T.

  Returns:
    `sum_t log N(values_t; g(t), sigma)` in nats, a scalar; -inf where it is undefined.

  Raises:
    ValueError: if there are more values than steps.

  Reference: Adriaensen et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2310.20447.
  """
  check_arrays(params=(params, "[*]"), values=(values, "[n]"))
  _check_length(values, length)
  log_prob = _log_likelihood(
    combined_curve(params, length=length), as_accumulator(params)[-1], values
  )
  return jnp.where(jnp.isnan(log_prob), -jnp.inf, log_prob)


def learning_curve_log_density(
  params: chex.Array, values: chex.Array, *, length: int
) -> chex.Array:
  """Unnormalized log posterior density of the 13 parameters given a partial curve.

  Likelihood of the first n steps times the peaked priors, restricted to parameters whose curve
  ends above its start and stays in [0, 1] on all T steps. The log-normal priors are densities on
  the parameters themselves, with their 1/value factor; log sigma ~ N(-4, 1) is a density in
  log sigma. The normalizer of the restriction is left out; it does not depend on the parameters.

  Args:
    params: parameters of one curve model, `[13]`; map over walkers and curves with `jax.vmap`.
    values: observed values at t = 1..n, `[n]`.
    length: number of steps T of the restriction, n <= T.

  Returns:
    Log density in nats, a scalar, at least float32; -inf outside the support, never NaN.

  Raises:
    ValueError: if there are more values than steps.

  Reference: Adriaensen et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2310.20447.
  """
  check_arrays(params=(params, "[*]"), values=(values, "[n]"))
  _check_length(values, length)
  params = as_accumulator(params)
  curve = combined_curve(params, length=length)
  log_prob = _log_likelihood(curve, params[-1], values) + _log_prior(params)
  return jnp.where(is_learning_curve(curve) & ~jnp.isnan(log_prob), log_prob, -jnp.inf)


def curve_predictive_log_prob(
  samples: chex.Array, values: chex.Array, *, length: int
) -> chex.Array:
  """Log predictive density of every step under posterior samples of the parameters.

  Args:
    samples: parameter samples, `[s, 13]`.
    values: values to score at t = 1..T, `[T]`.
    length: number of steps, at least T.

  Returns:
    `logmeanexp_s log N(values_t; g_s(t), sigma_s)` in nats, `f32[T]`.

  Raises:
    ValueError: if there are more values than steps, or no samples.

  Reference: Adriaensen et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2310.20447.
  """
  check_arrays(samples=(samples, "[s, *]"), values=(values, "[n]"))
  check_filled(samples=samples)
  _check_length(values, length)
  samples, values = as_accumulator(samples), as_accumulator(values)
  means = combined_curve(samples, length=length)[:, : values.shape[0]]
  log_probs = _normal_log_density(values[None], means, samples[:, -1:])
  return jax.nn.logsumexp(log_probs, axis=0) - math.log(samples.shape[0])


def curve_exceedance(samples: chex.Array, threshold: chex.Numeric, *, length: int) -> chex.Array:
  """Probability that the noisy curve lies above a threshold, at every step.

  Predictive termination compares this probability with its confidence threshold.

  Args:
    samples: parameter samples, `[s, 13]`.
    threshold: value to exceed, a scalar or `[length]`; may be infinite.
    length: number of steps T.

  Returns:
    `mean_s Phi((g_s(t) - threshold) / sigma_s)`, `f32[length]`.

  Raises:
    ValueError: if `length` < 1 or there are no samples.

  Reference: Adriaensen et al., NeurIPS 2023, section 5, https://arxiv.org/abs/2310.20447.
  """
  check_arrays(samples=(samples, "[s, *]"))
  check_filled(samples=samples)
  form = f"[{length}]" if np.ndim(threshold) else "[]"
  check_arrays(threshold=(threshold, form))
  samples = as_accumulator(samples)
  curves = combined_curve(samples, length=length)
  gaps = curves - jnp.broadcast_to(as_accumulator(threshold), curves.shape)
  return jnp.mean(jax.scipy.special.ndtr(gaps * _inverse_std(samples[:, -1:])), axis=0)


def _check_length(values: chex.Array, length: int) -> None:
  if len(values) > length:
    raise ValueError(f"length must be at least the {len(values)} values, got {length}.")


def _inverse_std(log_std: jax.Array) -> jax.Array:
  # Finite, so that a residual of exactly 0 stays 0 at any noise level.
  return jnp.minimum(jnp.exp(-log_std), jnp.finfo(log_std.dtype).max)


def _normal_log_density(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
  z = (x - mean) * _inverse_std(log_std)
  return -0.5 * (z * z + math.log(2 * math.pi)) - log_std


def _log_likelihood(curve: jax.Array, log_std: jax.Array, values: chex.Array) -> jax.Array:
  values = as_accumulator(values)
  return jnp.sum(_normal_log_density(values, curve[: values.shape[0]], log_std))


def _log_prior(params: jax.Array) -> jax.Array:
  """Log density of the 13 parameters under the peaked priors; -inf or NaN outside the support."""
  families = [prior for name in CURVE_COMPONENTS for prior in curve_priors(name)]
  priors = [*families, *[WEIGHT_PRIOR] * len(CURVE_COMPONENTS), LOG_NOISE_PRIOR]
  return sum(_prior_log_density(params[i], prior) for i, prior in enumerate(priors))


def _prior_log_density(value: jax.Array, prior: ParameterPrior) -> jax.Array:
  kind, first, second = prior
  match kind:
    case "uniform":
      return jnp.where((value >= first) & (value <= second), -math.log(second - first), -jnp.inf)
    case "normal":
      return _normal_log_density(value, first, jnp.full_like(value, math.log(second)))
    case "log_normal":
      log_value = jnp.log(jnp.where(value > 0, value, 1.0))
      log_density = _normal_log_density(log_value, first, jnp.full_like(value, math.log(second)))
      return jnp.where(value > 0, log_density - log_value, -jnp.inf)
  raise ValueError(f"no density for a prior of kind {kind!r}.")
