"""The bar (Riemann) distribution: a density on the real line made of K adjacent bars.

The K logits of a network give the masses of the bars, so that regression becomes classification and
still yields a density. The bars lie between K + 1 strictly increasing borders; with full support
the two outer bars are half-normals that extend to infinity.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_increasing

# The third quartile of the standard normal: a half-normal of scale w / _Z75 has half its mass
# within w.
_Z75 = 0.6744897501960817
_LOG_TWO_OVER_PI = -0.4515827052894548
_MIN_TAIL_DISTANCE = 1e-8


class HalfNormalScales(NamedTuple):
  """Scales of the half-normals that replace the outer bars.

  Attributes:
    left: scale of the first bar, in units of the borders.
    right: scale of the last bar, in units of the borders.
  """

  left: chex.Array
  right: chex.Array


def bar_nll(
  logits: chex.Array, targets: chex.Array, borders: chex.Array, *, full_support: bool = True
) -> chex.Array:
  """Negative log-density of targets under bar distributions.

  A proper loss for prior-fitted networks: its minimizer is the posterior predictive density, up to
  the width of the bars. Missing targets (NaN) have loss 0 and no gradient.

  Args:
    logits: scores of the bars, `[..., K]`.
    targets: real targets, `[...]`. Without full support a target outside the borders is scored
      by the nearest bar.
    borders: strictly increasing, `[K + 1]`, in units of the targets.
    full_support: whether the outer bars are half-normals over the two half-lines.

  Returns:
    Loss per target in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if known borders do not increase, or `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 4,
  https://arxiv.org/abs/2112.10510.
  """
  check_arrays(logits=(logits, "[..., K]"), targets=(targets, "[...]"))
  logits = jnp.asarray(logits)
  check_arrays(borders=(borders, f"[{logits.shape[-1] + 1}]"))
  check_increasing("borders", borders)
  scores, targets, borders = as_accumulator(logits, targets, borders)
  missing = jnp.isnan(targets)
  targets = jnp.where(missing, borders[0], targets)
  index = bar_index(borders, targets)
  log_density = -jnp.log(jnp.diff(borders))[index]
  if full_support:
    scales = half_normal_scales(borders)
    left, right = index == 0, index == logits.shape[-1] - 1
    distance = jnp.where(left, borders[1] - targets, targets - borders[-2])
    scale = jnp.where(left, scales.left, scales.right)
    standardized = jnp.maximum(distance, _MIN_TAIL_DISTANCE) / scale
    log_tail = (_LOG_TWO_OVER_PI - jnp.square(standardized)) / 2 - jnp.log(scale)
    log_density = jnp.where(left | right, log_tail, log_density)
  # Gathering the raw logit keeps normalized or widened copies of all K from being stored.
  chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
  nll = jax.nn.logsumexp(scores, axis=-1) - chosen - log_density
  return jnp.where(missing, 0.0, nll)


def half_normal_scales(borders: chex.Array) -> HalfNormalScales:
  """Scales for which each outer half-normal keeps half of its mass inside its bar.

  Args:
    borders: strictly increasing, `[K + 1]` with K at least 2.

  Returns:
    `HalfNormalScales` of scalars, in units of the borders.

  Raises:
    ValueError: if there are fewer than two bars, so that one bar would be both tails, or known
      borders do not increase.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, appendix,
  https://arxiv.org/abs/2112.10510.
  """
  check_arrays(borders=(borders, "[*]"))
  check_increasing("borders", borders)
  borders = as_accumulator(borders)
  if borders.shape[0] < 3:
    raise ValueError(f"full support needs at least two bars, got {borders.shape[0] - 1}.")
  return HalfNormalScales(
    left=(borders[1] - borders[0]) / _Z75, right=(borders[-1] - borders[-2]) / _Z75
  )


def bar_index(borders: chex.Array, targets: chex.Array) -> chex.Array:
  """Index of the bar that holds each target.

  A target on an inner border belongs to the bar on its left; targets beyond the borders belong
  to the outer bars.

  Args:
    borders: strictly increasing, `[K + 1]`.
    targets: real values, `[...]`.

  Returns:
    Indices in `[0, K - 1]`, int32, `[...]`.

  Raises:
    ValueError: if known borders do not increase.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  check_arrays(borders=(borders, "[*]"))
  check_increasing("borders", borders)
  borders, targets = as_accumulator(borders, targets)
  index = jnp.searchsorted(borders, targets, side="left", method="scan_unrolled") - 1
  return jnp.clip(index, 0, borders.shape[0] - 2).astype(jnp.int32)
