"""Markov chain Monte Carlo with an ensemble of walkers, invariant to affine maps of the space."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry


class StretchProposal(NamedTuple):
  """Proposed positions `[n, d]` and the log of their volume factor, `[n]`."""

  proposals: chex.Array
  log_factor: chex.Array


class McmcResult(NamedTuple):
  """Kept walkers step by step `[k n, d]`, their log densities `[k n]`, and the acceptance rate."""

  samples: chex.Array
  log_probs: chex.Array
  acceptance_rate: chex.Array


def stretch_proposal(walkers: chex.Array, partners: chex.Array, z: chex.Array) -> StretchProposal:
  """Stretches every walker along the line through its partner.

  The move commutes with affine maps, so a badly scaled density costs nothing.

  Args:
    walkers: positions, `[n, d]`.
    partners: positions of the walkers' partners, `[n, d]`.
    z: positive stretch factors, `[n]`.

  Returns:
    `partner + z (walker - partner)`, `[n, d]`, and `(d - 1) ln z`, `[n]`.

  Raises:
    ValueError: if the shapes do not agree.

  Reference: Goodman and Weare, Ensemble samplers with affine invariance, 2010, equation 7,
  https://doi.org/10.2140/camcos.2010.5.65.
  """
  check_arrays(walkers=(walkers, "[n, d]"), partners=(partners, "[n, d]"), z=(z, "[n]"))
  walkers, partners, z = as_accumulator(walkers, partners, z)
  proposals = partners + z[:, None] * (walkers - partners)
  return StretchProposal(proposals, (walkers.shape[1] - 1) * jnp.log(z))


def initial_walkers(
  key: chex.PRNGKey, candidates: chex.Array, log_weights: chex.Array, *, num_walkers: int
) -> chex.Array:
  """Draws distinct starting points from weighted candidates.

  With draws from the prior as candidates and their log-likelihoods as log-weights, the walkers
  start as an approximate posterior sample. Sampling is without replacement (Gumbel top-k), because
  walkers that coincide span no space for the ensemble to move in.

  Args:
    key: random key.
    candidates: candidate positions, `[m, d]`.
    log_weights: unnormalized log-weights, `[m]`; NaN counts as -inf, and candidates of weight zero
      are drawn only when the others run out.
    num_walkers: number of positions to draw, at most m.

  Returns:
    Positions, `[num_walkers, d]`.

  Raises:
    ValueError: if the shapes do not agree, or `num_walkers` is below 1 or above the number of
      candidates.

  Reference: Kool et al., Stochastic beams and where to find them, ICML 2019, section 2,
  https://arxiv.org/abs/1903.06059.
  """
  candidates, log_weights = jnp.asarray(candidates), as_accumulator(log_weights)
  check_arrays(candidates=(candidates, "[m, d]"), log_weights=(log_weights, "[m]"))
  if not 1 <= num_walkers <= candidates.shape[0]:
    raise ValueError(f"num_walkers must lie in [1, {candidates.shape[0]}], got {num_walkers}.")
  log_weights = _nan_to_minus_inf(log_weights)
  gumbel = jax.random.gumbel(key, log_weights.shape, log_weights.dtype)
  _, chosen = jax.lax.top_k(log_weights + gumbel, num_walkers)
  return candidates[chosen]


def affine_invariant_mcmc(
  key: chex.PRNGKey,
  log_prob_fn: Callable[[chex.Array], chex.Array],
  walkers: chex.Array,
  *,
  num_steps: int,
  burn_in: int = 0,
  thin: int = 1,
  stretch: float = 2.0,
) -> McmcResult:
  """Samples a density with the affine-invariant ensemble of stretch moves.

  One step moves the first half of the walkers, each with a partner drawn with replacement from the
  second half, then the second half with partners from the updated first. It is one `lax.scan` that
  stores the kept walkers only; `jax.vmap` over keys, walkers and what `log_prob_fn` closes over
  samples many problems at once::

    sample = lambda key, walkers, data: affine_invariant_mcmc(
      key, lambda theta: log_density(theta, data), walkers, num_steps=1000, burn_in=500
    )
    results = jax.jit(jax.vmap(sample))(keys, walkers, data)

  Args:
    key: random key.
    log_prob_fn: maps one position `[d]` to its unnormalized log density, a scalar; NaN counts as
      -inf. A walker never moves to -inf, and always leaves it for a finite value.
    walkers: starting positions, `[n, d]`, not all in one hyperplane.
    num_steps: number of steps of the whole ensemble, burn-in included.
    burn_in: steps before the first block of `thin` that is kept.
    thin: every `thin`-th step after the burn-in is kept.
    stretch: the constant a > 1 of `z = ((a - 1) u + 1)^2 / a`, u uniform.

  Returns:
    `McmcResult(samples[k n, d], log_probs[k n], acceptance_rate)`: the n walkers after step
    burn_in + thin, after burn_in + 2 thin, ..., one step after the other, with
    k = (num_steps - burn_in) // thin; the rate is over all proposals of all steps.

  Raises:
    ValueError: if the number of walkers is odd or below 2 d, `stretch` <= 1, `burn_in` < 0,
      `thin` < 1, or no step would be kept.

  Reference: Goodman and Weare, Ensemble samplers with affine invariance, 2010, section 2,
  https://doi.org/10.2140/camcos.2010.5.65; Foreman-Mackey et al., emcee: The MCMC Hammer, 2013,
  algorithm 3, https://arxiv.org/abs/1202.3665.
  """
  walkers = as_accumulator(walkers)
  check_arrays(walkers=(walkers, "[n, d]"))
  num_walkers, dim = walkers.shape
  if num_walkers % 2 or num_walkers < 2 * dim:
    raise ValueError(f"walkers must be even in number and at least {2 * dim}, got {num_walkers}.")
  check_at_least(0, burn_in=burn_in)
  check_at_least(1, thin=thin)
  if num_steps - burn_in < thin:
    raise ValueError(f"num_steps must be at least burn_in + thin, got {num_steps}.")
  check_range("stretch", stretch, "(1, inf)")
  return _mcmc(key, log_prob_fn, walkers, num_steps, burn_in, thin, stretch)


@compiled_once
def _mcmc(key, log_prob_fn, walkers, num_steps, burn_in, thin, stretch) -> McmcResult:
  num_walkers, dim = walkers.shape
  num_kept = (num_steps - burn_in) // thin

  def log_probs_fn(positions):
    return _nan_to_minus_inf(as_accumulator(jax.vmap(log_prob_fn)(positions)))

  def move(key, walkers, log_probs, others):
    partner_key, stretch_key, accept_key = jax.random.split(key, 3)
    half = walkers.shape[0]
    partners = others[jax.random.randint(partner_key, (half,), 0, half)]
    uniform = jax.random.uniform(stretch_key, (half,), walkers.dtype)
    proposals, log_factor = stretch_proposal(
      walkers, partners, ((stretch - 1) * uniform + 1) ** 2 / stretch
    )
    new_log_probs = log_probs_fn(proposals)
    # From -inf to -inf the ratio is NaN, and the comparison rejects.
    log_ratio = log_factor + new_log_probs - log_probs
    accept = jnp.log(jax.random.uniform(accept_key, (half,), walkers.dtype)) < log_ratio
    walkers = jnp.where(accept[:, None], proposals, walkers)
    return walkers, jnp.where(accept, new_log_probs, log_probs), jnp.sum(accept)

  def step(state, inputs):
    first, second, num_accepted, kept = state
    index, key = inputs
    first_key, second_key = jax.random.split(key)
    *first, first_accepted = move(first_key, *first, second[0])
    *second, second_accepted = move(second_key, *second, first[0])
    # Every step of a block overwrites the block's slot, so its last one stays; burn-in and an
    # unfinished last block go to one spare slot.
    slot = jnp.where(index < burn_in, num_kept, (index - burn_in) // thin)
    current = jax.tree.map(lambda *halves: jnp.concatenate(halves), first, second)
    kept = jax.tree.map(
      lambda slots, new: jax.lax.dynamic_update_index_in_dim(slots, new, slot, 0), kept, current
    )
    return (first, second, num_accepted + first_accepted + second_accepted, kept), None

  log_probs = log_probs_fn(walkers)
  half = num_walkers // 2
  kept = [jnp.zeros((num_kept + 1, *x.shape), x.dtype) for x in (walkers, log_probs)]
  state = (
    [walkers[:half], log_probs[:half]],
    [walkers[half:], log_probs[half:]],
    jnp.int32(0),
    kept,
  )
  inputs = (jnp.arange(num_steps), jax.random.split(key, num_steps))
  state = varying_carry(step, state, inputs)
  (_, _, num_accepted, (samples, log_probs)), _ = jax.lax.scan(step, state, inputs)
  return McmcResult(
    samples[:num_kept].reshape(-1, dim),
    log_probs[:num_kept].reshape(-1),
    num_accepted / (num_steps * num_walkers),
  )


def _nan_to_minus_inf(log_prob: jax.Array) -> jax.Array:
  return jnp.where(jnp.isnan(log_prob), -jnp.inf, log_prob)
