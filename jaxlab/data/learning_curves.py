"""Learning curves: draws from a parametric prior, and metric normalization."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_at_least, check_range
from jaxlab._programs import varying_carry
from jaxlab.uncertainty.curve_families import ParameterPrior, curve_priors
from jaxlab.uncertainty.learning_curves import (
  CURVE_COMPONENTS,
  LOG_NOISE_PRIOR,
  WEIGHT_PRIOR,
  combined_curve,
  is_learning_curve,
)

_MAX_ROUNDS = 500
# On average one of five candidates is accepted (default families), so eight per row almost always
# fill a batch of 32 or more in the first round.
_CANDIDATES_PER_ROW = 8


class AcceptedCurves(NamedTuple):
  """Prior draws `[b, p]`, their noiseless curves `[b, T]`, and which rows were ever accepted."""

  params: chex.Array
  clean: chex.Array
  accepted: chex.Array


class LearningCurveBatch(NamedTuple):
  """Steps `[b, T, 1]`, noisy values and targets `[b, T]`, noiseless values, noise std `[b]`."""

  x: chex.Array
  y: chex.Array
  targets: chex.Array
  clean: chex.Array
  noise_std: chex.Array


def normalize_curve(
  values: chex.Array,
  *,
  lower: float | None = 0.0,
  upper: float | None = 1.0,
  soft_lower: float = 0.0,
  soft_upper: float = 1.0,
  minimize: bool = False,
) -> chex.Array:
  """Maps a metric to [0, 1], larger is better, by a sigmoid centered on its usual range.

  Unbounded metrics become comparable and the resolution goes where values are expected. Accuracies
  need no normalization: with the default bounds the map is a mild sigmoid, not the identity. For a
  log-loss: lower 0, upper None, soft_lower 0, soft_upper = ln(classes), minimize.

  Args:
    values: values of the metric, `[...]`.
    lower: smallest possible value, mapped to 0 (1 if `minimize`); None if unbounded.
    upper: largest possible value, mapped to 1 (0 if `minimize`); None if unbounded.
    soft_lower: lower end of the usual range.
    soft_upper: upper end of the usual range.
    minimize: whether smaller values of the metric are better.

  Returns:
    Normalized values, `[...]`, at least float32; beyond [0, 1] only for values beyond the bounds.
    In float32 an unbounded metric is rounded to 0 some 44 usual ranges beyond the usual one.

  Raises:
    ValueError: unless lower <= soft_lower < soft_upper <= upper.

  Reference: Adriaensen et al., Efficient Bayesian Learning Curve Extrapolation using Prior-Data
  Fitted Networks, NeurIPS 2023, appendix, https://arxiv.org/abs/2310.20447.
  """
  scale = _sigmoid_scale(lower, upper, soft_lower, soft_upper)
  values = jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))
  z = 2 * (values - soft_lower) / (soft_upper - soft_lower) - 1
  # The complement has its own formula: 1 - y would round small values away.
  if minimize:
    return (jax.nn.sigmoid(-z) - scale.above) / scale.width
  return (jax.nn.sigmoid(z) - scale.below) / scale.width


def denormalize_curve(
  values: chex.Array,
  *,
  lower: float | None = 0.0,
  upper: float | None = 1.0,
  soft_lower: float = 0.0,
  soft_upper: float = 1.0,
  minimize: bool = False,
) -> chex.Array:
  """Maps normalized values back to the metric; the inverse of `normalize_curve`.

  Args:
    values: normalized values, `[...]`; 0 and 1 map to the bounds (infinite where None).
    lower: as in `normalize_curve`.
    upper: as in `normalize_curve`.
    soft_lower: as in `normalize_curve`.
    soft_upper: as in `normalize_curve`.
    minimize: as in `normalize_curve`.

  Returns:
    Values of the metric, `[...]`, at least float32; NaN outside the range of the sigmoid.

  Raises:
    ValueError: unless lower <= soft_lower < soft_upper <= upper.

  Reference: Adriaensen et al., NeurIPS 2023, appendix, https://arxiv.org/abs/2310.20447.
  """
  scale = _sigmoid_scale(lower, upper, soft_lower, soft_upper)
  values = jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))
  rest = 1 - values
  high, low = (rest, values) if minimize else (values, rest)
  logit = jnp.log(high * scale.width + scale.below) - jnp.log(low * scale.width + scale.above)
  return (logit + 1) / 2 * (soft_upper - soft_lower) + soft_lower


def sample_curve_params(
  key: chex.PRNGKey, *, batch_size: int, distribution: str = "peaked"
) -> chex.Array:
  """Draws curve parameters from their prior, without checking their curves.

  Args:
    key: random key.
    batch_size: number of draws b.
    distribution: "peaked" or "uniform" priors.

  Returns:
    Parameters as `jaxlab.uncertainty.learning_curve_log_density` takes them, `f32[b, 13]`.

  Raises:
    ValueError: if the distribution is unknown.

  Reference: Adriaensen et al., NeurIPS 2023, appendix, https://arxiv.org/abs/2310.20447.
  """
  return _draw_params(key, batch_size, CURVE_COMPONENTS, distribution)


def sample_accepted_curves(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  length: int = 100,
  components: tuple[str, ...] = CURVE_COMPONENTS,
  distribution: str = "peaked",
  steps: Sequence[float] | None = None,
) -> AcceptedCurves:
  """Draws curve parameters from the prior restricted to curves that rise and stay in [0, 1].

  Exact rejection sampling: every round draws a pool of candidates, and the accepted ones fill, in
  order, the rows that are still empty, so each accepted draw is used once and no row needs its own
  rejection loop. The accepted draws are also what a Markov chain starts from, see
  `jaxlab.samplers.initial_walkers`.

  Args:
    key: random key.
    batch_size: number of curves b.
    length: number of steps T, at least 2.
    components: names of the families that are summed, see
      `jaxlab.uncertainty.basis_curve`.
    distribution: "peaked" or "uniform" priors.
    steps: the T positive steps of the curves, in increasing order; None is 1..T.

  Returns:
    `AcceptedCurves(params[b, p], clean[b, T], accepted[b])`: the parameters of every component in
    turn, the weights and log sigma; the noiseless curve. A row that is still empty after 500 rounds
    is not accepted: NaN parameters and the constant curve 1/2.

  Raises:
    ValueError: if `length` < 2, a component or the distribution is unknown, or `steps` are not
      `length` positive numbers.

  Reference: Adriaensen et al., NeurIPS 2023, section 3, https://arxiv.org/abs/2310.20447.
  """
  check_at_least(1, batch_size=batch_size)
  check_at_least(2, length=length)
  steps = None if steps is None else tuple(float(step) for step in steps)
  return _reject(key, batch_size, length, tuple(components), distribution, steps)


def sample_learning_curves(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  length: int = 100,
  components: tuple[str, ...] = CURVE_COMPONENTS,
  distribution: str = "peaked",
  log_noise_mean: chex.Numeric = -4.0,
  log_noise_std: chex.Numeric = 1.0,
  steps: Sequence[float] | None = None,
) -> LearningCurveBatch:
  """Draws noisy learning curves from the prior that a curve-extrapolating network is fitted to.

  Noiseless curves are those of `sample_accepted_curves`; every curve has one noise level and its
  noisy values are not clipped. Input and target are the same noisy curve.

  Args:
    key: random key.
    batch_size: number of curves b.
    length: number of steps T, at least 2.
    components: names of the families that are summed.
    distribution: "peaked" or "uniform" priors of their parameters.
    log_noise_mean: mean of the log of the noise std.
    log_noise_std: standard deviation of the log of the noise std.
    steps: the T positive steps of the curves, in increasing order, for example training-set sizes;
      None is 1..T.

  Returns:
    `LearningCurveBatch(x[b, T, 1], y[b, T], targets[b, T], clean[b, T], noise_std[b])`, float32,
    where x holds the steps.

  Raises:
    ValueError: if `length` < 2, `log_noise_std` < 0, a component or the distribution is unknown, or
      `steps` are not `length` positive numbers.

  Reference: Adriaensen et al., NeurIPS 2023, section 3, https://arxiv.org/abs/2310.20447.
  """
  check_range("log_noise_mean", log_noise_mean, "(-inf, inf)")
  check_range("log_noise_std", log_noise_std, "[0, inf)")
  curve_key, level_key, noise_key = jax.random.split(key, 3)
  clean = sample_accepted_curves(
    curve_key,
    batch_size=batch_size,
    length=length,
    components=components,
    distribution=distribution,
    steps=steps,
  ).clean
  level = jax.random.normal(level_key, (batch_size,), jnp.float32)
  noise_std = jnp.exp(log_noise_mean + log_noise_std * level)
  y = clean + noise_std[:, None] * jax.random.normal(noise_key, clean.shape, clean.dtype)
  x = jnp.asarray(np.arange(1, length + 1) if steps is None else steps, jnp.float32)
  x = jnp.broadcast_to(x[:, None], (batch_size, length, 1))
  return LearningCurveBatch(x, y, y, clean, noise_std)


class _SigmoidScale(NamedTuple):
  """Sigmoid mass below the lower bound, above the upper bound, and between the two."""

  below: float
  above: float
  width: float


def _sigmoid_scale(
  lower: float | None, upper: float | None, soft_lower: float, soft_upper: float
) -> _SigmoidScale:
  bounds = [soft_lower, soft_upper]
  if lower is not None:
    bounds = [lower, *bounds]
  if upper is not None:
    bounds = [*bounds, upper]
  if not (soft_lower < soft_upper and all(a <= b for a, b in zip(bounds, bounds[1:]))):
    raise ValueError(
      "bounds must satisfy lower <= soft_lower < soft_upper <= upper, got "
      f"lower={lower}, soft_lower={soft_lower}, soft_upper={soft_upper}, upper={upper}."
    )

  def tail(distance):
    """Sigmoid of minus a distance of at least 1; 0 where double precision would overflow."""
    return 0.0 if distance > math.log(1e300) else 1 / (1 + math.exp(distance))

  def standardize(bound):
    return 2 * (bound - soft_lower) / (soft_upper - soft_lower) - 1

  below = 0.0 if lower is None else tail(-standardize(lower))
  above = 0.0 if upper is None else tail(standardize(upper))
  return _SigmoidScale(below, above, 1 - below - above)


def _draw_params(
  key: chex.PRNGKey, num_draws: int, components: tuple[str, ...], distribution: str
) -> jax.Array:
  families = [
    prior for name in components for prior in curve_priors(name, distribution=distribution)
  ]
  priors = [*families, *[WEIGHT_PRIOR] * len(components), LOG_NOISE_PRIOR]
  # One call for all parameters: a call for each would cost more than the curves.
  tiny = jnp.finfo(jnp.float32).epsneg
  uniforms = jax.random.uniform(
    key, (len(priors), num_draws), jnp.float32, minval=tiny - 1, maxval=1.0
  )
  return jnp.stack([_from_uniform(u, prior) for u, prior in zip(uniforms, priors)], axis=1)


def _from_uniform(u: jax.Array, prior: ParameterPrior) -> jax.Array:
  """Turns uniforms on (-1, 1) into draws from a parameter's prior."""
  kind, first, second = prior
  if kind in ("normal", "log_normal"):
    draw = first + second * math.sqrt(2) * jax.lax.erf_inv(u)
  else:
    draw = first + (second - first) * (u + 1) / 2
  match kind:
    case "uniform" | "normal":
      return draw
    case "log_normal" | "exp_uniform":
      return jnp.exp(draw)
    case "one_minus_exp_uniform":
      return 1 - jnp.exp(draw)
  raise ValueError(f"cannot draw from a prior of kind {kind!r}.")


@functools.partial(
  jax.jit, static_argnames=("batch_size", "length", "components", "distribution", "steps")
)
def _reject(
  key: chex.PRNGKey,
  batch_size: int,
  length: int,
  components: tuple[str, ...],
  distribution: str,
  steps: tuple[float, ...] | None,
) -> AcceptedCurves:
  def unfinished(state):
    round_index, rows = state
    return (round_index < _MAX_ROUNDS) & ~jnp.all(rows.accepted)

  def fill(state):
    round_index, rows = state
    round_key = jax.random.fold_in(key, round_index)
    num_candidates = _CANDIDATES_PER_ROW * batch_size
    params = _draw_params(round_key, num_candidates, components, distribution)
    curves = combined_curve(params, length=length, components=components, steps=steps)
    # The k-th empty row takes the k-th accepted candidate, if there are that many.
    num_accepted = jnp.cumsum(is_learning_curve(curves))
    rank = jnp.cumsum(~rows.accepted)
    candidate = jnp.searchsorted(num_accepted, rank)
    new = ~rows.accepted & (rank <= num_accepted[-1])
    return round_index + 1, AcceptedCurves(
      params=jnp.where(new[:, None], params[candidate], rows.params),
      clean=jnp.where(new[:, None], curves[candidate], rows.clean),
      accepted=rows.accepted | new,
    )

  num_params = sum(len(curve_priors(name)) for name in components) + len(components) + 1
  empty = AcceptedCurves(
    params=jnp.full((batch_size, num_params), jnp.nan, jnp.float32),
    clean=jnp.full((batch_size, length), 0.5, jnp.float32),
    accepted=jnp.zeros(batch_size, bool),
  )
  start = varying_carry(fill, (jnp.int32(0), empty))
  return jax.lax.while_loop(unfinished, fill, start)[1]
