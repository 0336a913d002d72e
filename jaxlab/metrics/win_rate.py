"""Win rates of policies that choose among samples: exact on a grid, or estimated from pools.

A reward that is calibrated by a reference policy is uniform on [0, 1] under that policy. Another
policy is then one density on [0, 1], given here by its values in G cells of equal width, worst
reward first, whose mean is 1. Both policies are decoded by the same procedure, "best_of_n" or
"worst_of_n": the response with the highest, or lowest, reward among N samples.
"""

import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_broadcast,
  check_choice,
  check_filled,
  check_range,
)
from jaxlab._programs import sum_over_pairs, varying_carry

_PROCEDURES = ("best_of_n", "worst_of_n")


class OptimalTransform(NamedTuple):
  """The best transformation of a calibrated reward.

  Attributes:
    transform: the transformed reward in every cell, `[G]`.
    density: the best policy, `[G]`.
  """

  transform: chex.Array
  density: chex.Array


class Frontier(NamedTuple):
  """What policies of several divergences reach.

  Attributes:
    kl: divergence from the reference in nats, `[k]`.
    win_rate: win rate against the reference, `[k]`.
  """

  kl: chex.Array
  win_rate: chex.Array


def tilted_density(transformed: chex.Array, *, beta: chex.Numeric) -> jax.Array:
  """The policy of the largest mean transformed reward less `beta` times its divergence.

  Args:
    transformed: transformed reward in every cell, `[G]`.
    beta: weight of the divergence from the reference, > 0.

  Returns:
    `G * softmax(transformed / beta)`, `[G]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(transformed=(transformed, "[G]"))
  scores = as_accumulator(transformed)
  # Divided last: the largest must be exactly 0, whatever the compiler makes of a division.
  scores = scores - jnp.max(jax.lax.stop_gradient(scores), initial=-jnp.inf)
  return scores.size * jax.nn.softmax(scores / beta)


def density_kl(density: chex.Array) -> jax.Array:
  """Divergence of a policy from the reference, both as densities of the calibrated reward.

  Args:
    density: the policy, `[G]`, at least 0.

  Returns:
    Nats, a scalar, in float32 or wider; empty cells add 0.

  Raises:
    ValueError: if there is no cell.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  density = _checked(density)
  empty = density == 0
  return jnp.mean(jnp.where(empty, 0.0, density * jnp.log(jnp.where(empty, 1.0, density))))


def best_of_n_win_rate(density: chex.Array, *, num_samples: int) -> jax.Array:
  """Probability that the best of N samples of a policy beats the best of N of the reference.

  Args:
    density: the policy, `[G]`, at least 0, of mean 1.
    num_samples: number of samples N. The grid's error grows as (N / G)^2.

  Returns:
    A scalar, in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1 or there is no cell.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  return 1.0 - _reference_wins(_checked(density), num_samples)


def worst_of_n_win_rate(density: chex.Array, *, num_samples: int) -> jax.Array:
  """Probability that the worst of N samples of a policy beats the worst of N of the reference.

  Args:
    density: the policy, `[G]`, at least 0, of mean 1.
    num_samples: number of samples N. The grid's error grows as (N / G)^2.

  Returns:
    A scalar, in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1 or there is no cell.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  # With the scale turned round, the worst are the best, and the reference wins where we do.
  return _reference_wins(_checked(density)[::-1], num_samples)


def _checked(density: chex.Array) -> jax.Array:
  check_arrays(density=(density, "[G]"))
  check_filled(density=density)
  return as_accumulator(density)


def _reference_wins(density: jax.Array, num_samples: int) -> jax.Array:
  """Probability that the best of N samples of the reference beats the best of N of the policy."""
  check_at_least(1, num_samples=num_samples)
  # The reference's best sample is in a cell with the difference of two powers, in double precision.
  shares = np.diff((np.arange(density.size + 1) / density.size) ** num_samples)
  return jnp.sum(jnp.asarray(shares, density.dtype) * _distribution(density) ** num_samples)


def _distribution(density: jax.Array) -> jax.Array:
  """Distribution function of a density, averaged over each cell."""
  return (jnp.cumsum(density) - 0.5 * density) / density.size


def optimal_transform(
  *,
  num_samples: int,
  beta: chex.Numeric,
  procedure: Literal["best_of_n", "worst_of_n"] = "best_of_n",
  grid_size: int = 1000,
  damping: chex.Numeric = 0.1,
  num_iterations: int = 2000,
) -> OptimalTransform:
  """The transformation whose tilted policy has the best win rate less `beta` times its divergence.

  The first-order condition of that objective is a fixed point, which is iterated with damping. For
  best-of-N the objective is concave, and the fixed point its only maximum; for worst-of-N it is a
  stationary point.

  Args:
    num_samples: number of samples N of the procedure.
    beta: weight of the divergence, > 0.
    procedure: "best_of_n" or "worst_of_n".
    grid_size: number of cells G.
    damping: share of the new policy in an iteration, in (0, 1]. The default settles for N up to 4
      and `beta` down to 0.005; larger N with small `beta` need 0.03.
    num_iterations: number of iterations.

  Returns:
    An `OptimalTransform`, float32.

  Raises:
    ValueError: if `num_samples` < 1, `beta` <= 0, the procedure is unknown, `grid_size` < 2,
      `damping` lies outside (0, 1] or `num_iterations` < 1.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792; the
  fixed point follows from the objective by variation of the density.
  """
  check_at_least(1, num_samples=num_samples, num_iterations=num_iterations)
  check_at_least(2, grid_size=grid_size)
  check_range("beta", beta, "(0, inf)")
  check_range("damping", damping, "(0, 1]")
  check_choice("procedure", procedure, _PROCEDURES)
  worst = procedure == "worst_of_n"
  transform, density = _fixed_point(
    jnp.asarray(beta, float),
    jnp.asarray(damping, float),
    num_samples=num_samples,
    sign=1.0 if worst else -1.0,
    grid_size=grid_size,
    num_iterations=num_iterations,
  )
  order = slice(None, None, -1 if worst else 1)
  return OptimalTransform(transform[order], density[order])


@functools.partial(jax.jit, static_argnames=("num_samples", "sign", "grid_size", "num_iterations"))
def _fixed_point(beta, damping, *, num_samples, sign, grid_size, num_iterations):
  """Transform and density over cells, in which 1 is the side that the procedure looks for."""
  places = jnp.asarray((np.arange(grid_size) + 0.5) / grid_size, beta.dtype)

  def iterate(carry, _):
    log_density, _ = carry
    slope = (places * _distribution(jnp.exp(log_density))) ** (num_samples - 1)
    above = jnp.cumsum(slope[::-1])[::-1] - 0.5 * slope
    transform = sign * num_samples**2 / grid_size * above
    tilted = _normalized(transform / beta)
    return (_normalized((1.0 - damping) * log_density + damping * tilted), transform), None

  start = jnp.zeros_like(places), jnp.zeros_like(places)
  steps = jnp.arange(num_iterations)
  start = varying_carry(iterate, start, steps)
  (log_density, transform), _ = jax.lax.scan(iterate, start, steps)
  return transform, jnp.exp(log_density)


def _normalized(log_density: jax.Array) -> jax.Array:
  return log_density - jax.nn.logsumexp(log_density) + np.log(log_density.size)


def win_rate_frontier(
  transformed: chex.Array,
  betas: chex.Array,
  *,
  num_samples: int,
  procedure: Literal["best_of_n", "worst_of_n"] = "best_of_n",
) -> Frontier:
  """Divergence and win rate of the policies that a transformed reward gives.

  Args:
    transformed: transformed reward in every cell, `[G]`.
    betas: weights of the divergence, `[k]`, > 0.
    num_samples: number of samples N of the procedure.
    procedure: "best_of_n" or "worst_of_n".

  Returns:
    A `Frontier`, in float32 or wider.

  Raises:
    ValueError: if a known beta <= 0, `num_samples` < 1 or the procedure is unknown.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_choice("procedure", procedure, _PROCEDURES)
  check_range("betas", betas, "(0, inf)")
  check_arrays(transformed=(transformed, "[G]"), betas=(betas, "[k]"))
  check_filled(transformed=transformed)
  check_at_least(1, num_samples=num_samples)
  return _frontier(
    *as_accumulator(transformed, betas),
    num_samples=num_samples,
    win_rate=best_of_n_win_rate if procedure == "best_of_n" else worst_of_n_win_rate,
  )


@functools.partial(jax.jit, static_argnames=("num_samples", "win_rate"))
def _frontier(transformed, betas, *, num_samples, win_rate):
  def point(beta):
    density = tilted_density(transformed, beta=beta)
    return Frontier(density_kl(density), win_rate(density, num_samples=num_samples))

  return jax.vmap(point)(betas)


def pool_win_rate(
  policy_rewards: chex.Array,
  reference_rewards: chex.Array,
  *,
  num_samples: int = 1,
  procedure: Literal["best_of_n", "worst_of_n"] = "best_of_n",
) -> jax.Array:
  """Win rate of a policy against a reference from pools of rewards for the same prompt.

  It is exact for N samples that are drawn from each pool with replacement; ties count half.

  Args:
    policy_rewards: rewards of m responses of the policy, `[..., m]`.
    reference_rewards: rewards of k responses of the reference, `[..., k]`.
    num_samples: number of samples N of the procedure; with 1 both procedures are the same.
    procedure: "best_of_n" or "worst_of_n".

  Returns:
    Win rates, `[...]`, in float32 or wider, without gradient; NaN for a prompt with a reward of
    NaN.

  Raises:
    ValueError: if a pool is empty, `num_samples` < 1 or the procedure is unknown.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_at_least(1, num_samples=num_samples)
  check_choice("procedure", procedure, _PROCEDURES)
  check_arrays(
    policy_rewards=(policy_rewards, "[..., m]"), reference_rewards=(reference_rewards, "[..., k]")
  )
  check_filled(policy_rewards=policy_rewards, reference_rewards=reference_rewards)
  pools = jax.lax.stop_gradient(as_accumulator(policy_rewards, reference_rewards))
  if procedure == "best_of_n":
    return _best_of_pools(*pools, num_samples=num_samples)
  return 1.0 - _best_of_pools(-pools[0], -pools[1], num_samples=num_samples)


@functools.partial(jax.jit, static_argnames="num_samples")
def _best_of_pools(policy: jax.Array, reference: jax.Array, *, num_samples: int) -> jax.Array:
  def shares(pool):
    """Of the pool's rewards, those that are below and not above each reward of the policy."""
    compare = lambda ours, theirs: (theirs < ours, theirs <= ours)  # noqa: E731
    return [n / pool.shape[-1] for n in sum_over_pairs(compare, (policy,), (pool,))]

  lower, upper = shares(policy)
  ties = jnp.maximum(policy.shape[-1] * (upper - lower), 1.0)
  weights = (upper**num_samples - lower**num_samples) / ties
  below, at_most = shares(reference)
  wins = 0.5 * (below**num_samples + at_most**num_samples)
  missing = jnp.any(jnp.isnan(policy), axis=-1) | jnp.any(jnp.isnan(reference), axis=-1)
  win_rate = jnp.sum(weights * wins, axis=-1).astype(policy.dtype)
  return jnp.where(missing, jnp.nan, win_rate)


def best_of_n_kl(num_samples: chex.Numeric) -> jax.Array:
  """Divergence of the best of N samples from the policy that draws them, if no two are equal.

  Args:
    num_samples: numbers of samples N, `[...]`, at least 1.

  Returns:
    `log(N) - (N - 1) / N` in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known number is less than 1.

  Reference: Beirami et al., Theoretical guarantees on the best-of-n alignment policy, ICML 2025,
  https://arxiv.org/abs/2401.01879.
  """
  check_range("num_samples", num_samples, "[1, inf)")
  num_samples = as_accumulator(num_samples)
  return jnp.log(num_samples) - (num_samples - 1.0) / num_samples


def joint_success(rewards: chex.Array, thresholds: chex.Array) -> jax.Array:
  """Whether responses are strictly above their thresholds in every property.

  Args:
    rewards: rewards of responses for c properties, `[..., c]`.
    thresholds: what they have to exceed, `[..., c]`; the leading axes broadcast with those of the
      rewards.

  Returns:
    bool `[...]`; False where a reward or a threshold is NaN.

  Raises:
    ValueError: if the shapes do not fit.

  Reference: Wang et al., Transforming and Combining Rewards for Aligning Large Language Models,
  ICML 2024, https://arxiv.org/abs/2402.00742.
  """
  check_arrays(rewards=(rewards, "[..., c]"))
  check_arrays(thresholds=(thresholds, f"[..., {np.shape(rewards)[-1]}]"))
  check_broadcast(rewards=rewards, thresholds=thresholds)
  rewards, thresholds = jnp.broadcast_arrays(*as_accumulator(rewards, thresholds))
  return jnp.all(rewards > thresholds, axis=-1)


def value_at_kl(kl: chex.Array, value: chex.Array, *, at: chex.Array) -> jax.Array:
  """What policies reach at given divergences, interpolated linearly between measured ones.

  Args:
    kl: measured divergences, `[k]`, in any order.
    value: what was measured at them, `[k]`.
    at: divergences of interest, `[j]`.

  Returns:
    Values, `[j]`, in float32 or wider; NaN outside the measured range, and everywhere if a measured
    divergence is NaN.

  Raises:
    ValueError: if nothing was measured.
  """
  check_arrays(kl=(kl, "[k]"), value=(value, "[k]"), at=(at, "[j]"))
  check_filled(kl=kl)
  kl, value, at = as_accumulator(kl, value, at)
  order = jnp.argsort(kl)
  values = jnp.interp(at, kl[order], value[order], left=jnp.nan, right=jnp.nan)
  return jnp.where(jnp.any(jnp.isnan(kl)), jnp.nan, values)
