"""Families of parametric learning curves, and the priors of their parameters."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_choice


class ParameterPrior(NamedTuple):
  """Prior of one parameter: a kind and its two constants.

  Kinds: `uniform` (low, high), `normal` (mean, std), `log_normal` (mean and std of the log),
  `exp_uniform` (exp of a uniform) and `one_minus_exp_uniform` (1 - exp of a uniform).
  """

  kind: str
  first: float
  second: float


class CurveFamily(NamedTuple):
  """A curve as a function of (x, ln x, *params), and the priors of its parameters."""

  fn: Callable[..., chex.Array]
  peaked: tuple[ParameterPrior, ...]
  uniform: tuple[ParameterPrior, ...] | None = None


def basis_curve(family: str, x: chex.Array, params: chex.Array) -> chex.Array:
  """Evaluates one parametric learning-curve family.

  These are eleven saturating shapes that are commonly fitted to learning curves. Powers are taken
  in log space, so that steep curves saturate instead of dividing infinity by infinity.
  `pow3(c, a, alpha)` = c - a x^-alpha; `ilog2(c, a)` = c - a / ln(x + 1);
  `janoschek(a, beta, k, delta)` = a - (a - beta) exp(-k x^delta);
  `log_power(a, b, c)` = a / (1 + (x / e^b)^c);
  `weibull(alpha, beta, kappa, delta)` = alpha - (alpha - beta) exp(-(kappa x)^delta);
  `mmf(alpha, beta, kappa, delta)` = alpha - (alpha - beta) / (1 + (kappa x)^delta);
  `vap(a, b, c)` = exp(a + b / x + c ln x); `loglog_linear(a, b)` = ln(a ln x + b);
  `exp4(c, a, b, alpha)` = c - exp(-a x^alpha + b); `pow4(c, a, b, alpha)` = c - (a x + b)^-alpha;
  `dr_hill_zero_background(theta, eta, kappa)` = theta x^eta / (kappa^eta + x^eta).

  Args:
    family: name of the family.
    x: positive steps, `[...]`.
    params: parameters in the order above, `[..., p]`; the leading axes broadcast against `x`.

  Returns:
    Values of the curve, `[...]`, at least float32. Arguments outside a family's domain give NaN or
    infinity.

  Raises:
    ValueError: if the family is unknown.

  Reference: Adriaensen et al., Efficient Bayesian Learning Curve Extrapolation using Prior-Data
  Fitted Networks, NeurIPS 2023, appendix, https://arxiv.org/abs/2310.20447.
  """
  curve = curve_family(family)
  check_arrays(params=(params, f"[..., {len(curve.peaked)}]"))
  x, params = as_accumulator(x), as_accumulator(params)
  columns = jnp.moveaxis(params, -1, 0)
  rank = max(x.ndim, params.ndim - 1)
  x, *columns = (jnp.expand_dims(a, tuple(range(rank - a.ndim))) for a in (x, *columns))
  return curve.fn(x, jnp.log(x), *columns)


def curve_priors(family: str, *, distribution: str = "peaked") -> tuple[ParameterPrior, ...]:
  """Returns the prior of every parameter of a family, in the order `basis_curve` takes them.

  Args:
    family: name of the family.
    distribution: "peaked", or "uniform" for the wide variant that pow3, ilog2 and janoschek have;
      the other families have the same prior for both.

  Returns:
    One `ParameterPrior` per parameter.

  Raises:
    ValueError: if the family or the distribution is unknown.

  Reference: Adriaensen et al., NeurIPS 2023, appendix, https://arxiv.org/abs/2310.20447.
  """
  check_choice("distribution", distribution, ("peaked", "uniform"))
  curve = curve_family(family)
  if distribution == "uniform" and curve.uniform:
    return curve.uniform
  return curve.peaked


_uniform = functools.partial(ParameterPrior, "uniform")
_normal = functools.partial(ParameterPrior, "normal")
_log_normal = functools.partial(ParameterPrior, "log_normal")
_exp_uniform = functools.partial(ParameterPrior, "exp_uniform")
_one_minus_exp_uniform = functools.partial(ParameterPrior, "one_minus_exp_uniform")

_FAMILIES: Mapping[str, CurveFamily] = MappingProxyType(
  {
    "pow3": CurveFamily(
      lambda x, log_x, c, a, alpha: c - a * jnp.exp(-alpha * log_x),
      peaked=(_uniform(0.0, 1.25), _uniform(-0.6, 0.6), _log_normal(0.0, 2.0)),
      uniform=(_uniform(0.0, 1.0), _uniform(-1.0, 1.0), _uniform(0.0, 1.0)),
    ),
    "ilog2": CurveFamily(
      lambda x, log_x, c, a: c - a / jnp.log1p(x),
      peaked=(_uniform(0.0, 1.0), _uniform(-0.5, 0.5)),
      uniform=(_uniform(0.0, 1.0), _uniform(-1.0, 1.0)),
    ),
    "janoschek": CurveFamily(
      lambda x, log_x, a, beta, k, delta: a - (a - beta) * jnp.exp(-k * jnp.exp(delta * log_x)),
      peaked=(
        _uniform(0.0, 1.0),
        _uniform(0.0, 2.0),
        _log_normal(-2.0, 1.0),
        _log_normal(0.0, 0.5),
      ),
      uniform=(_uniform(0.0, 1.0), _uniform(0.0, 2.0), _uniform(0.0, 1.0), _uniform(-5.0, 5.0)),
    ),
    "log_power": CurveFamily(
      lambda x, log_x, a, b, c: a * jax.nn.sigmoid(c * (b - log_x)),
      peaked=(_normal(0.8, 0.1), _normal(1.0, 1.0), _uniform(-3.0, 0.0)),
    ),
    "weibull": CurveFamily(
      lambda x, log_x, alpha, beta, kappa, delta: (
        alpha - (alpha - beta) * jnp.exp(-jnp.exp(delta * (jnp.log(kappa) + log_x)))
      ),
      peaked=(
        _uniform(0.0, 1.5),
        _uniform(0.0, 1.0),
        _log_normal(-2.0, 1.0),
        _log_normal(0.0, 0.5),
      ),
    ),
    "mmf": CurveFamily(
      lambda x, log_x, alpha, beta, kappa, delta: (
        alpha - (alpha - beta) * jax.nn.sigmoid(-delta * (jnp.log(kappa) + log_x))
      ),
      peaked=(_normal(0.8, 0.1), _normal(0.2, 0.1), _log_normal(0.0, 2.0), _log_normal(0.0, 1.0)),
    ),
    "vap": CurveFamily(
      lambda x, log_x, a, b, c: jnp.exp(a + b / x + c * log_x),
      peaked=(_uniform(-2.0, 0.0), _uniform(-4.0, 0.0), _exp_uniform(-8.0, 0.0)),
    ),
    "loglog_linear": CurveFamily(
      lambda x, log_x, a, b: jnp.log(a * log_x + b),
      peaked=(_log_normal(-2.0, 1.0), _exp_uniform(0.0, 1.0)),
    ),
    "exp4": CurveFamily(
      lambda x, log_x, c, a, b, alpha: c - jnp.exp(b - a * jnp.exp(alpha * log_x)),
      peaked=(
        _normal(0.8, 0.1),
        _log_normal(-2.0, 1.0),
        _log_normal(0.0, 0.5),
        _log_normal(0.0, 1.0),
      ),
    ),
    "pow4": CurveFamily(
      lambda x, log_x, c, a, b, alpha: c - jnp.exp(-alpha * jnp.log(a * x + b)),
      peaked=(
        _one_minus_exp_uniform(-5.0, 0.0),
        _log_normal(-3.0, 2.0),
        _exp_uniform(0.0, 1.0),
        _log_normal(0.0, 1.0),
      ),
    ),
    "dr_hill_zero_background": CurveFamily(
      lambda x, log_x, theta, eta, kappa: theta * jax.nn.sigmoid(eta * (log_x - jnp.log(kappa))),
      peaked=(_normal(0.8, 0.1), _log_normal(1.0, 1.0), _log_normal(1.0, 2.0)),
    ),
  }
)


def curve_family(name: str) -> CurveFamily:
  """A family by its name; ValueError if there is none."""
  check_choice("family", name, _FAMILIES)
  return _FAMILIES[name]
