"""Problems whose comparisons cover a part of the responses: a bandit, and images of digits."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from jaxlab import data, losses, metrics

BANDIT, DIGITS = "bandit", "digits"
_THIRD = 599  # Digits in each part.
_HIGHEST = 5  # Of the digits that comparisons cover.
_COVERED_SHARE = 0.95  # Of the reference's mass, as in the bandit.


class Part(NamedTuple):
  """Prompts with all responses to each, and comparisons of some.

  Attributes:
    features: of the responses, `[X, Y, d]`.
    reference: their log-probabilities under the reference, `[X, Y]`.
    supported: which responses comparisons cover, `[X, Y]`.
    gold: true values in standard deviations, `[X, Y]`.
    unpenalized: what they would be if responses outside were no worse, `[X, Y]`.
    comparisons: prompt, chosen and rejected response, `[n, 3]`.
  """

  features: chex.Array
  reference: chex.Array
  supported: chex.Array
  gold: chex.Array
  unpenalized: chex.Array
  comparisons: chex.Array

  @property
  def prompt_probs(self) -> jax.Array:
    """Uniform over the prompts."""
    return jnp.full(len(self.reference), 1 / len(self.reference))

  def value(self, log_probs: chex.Array, gold: chex.Array) -> jax.Array:
    """Mean of the true values under a policy, without sampling."""
    return jnp.mean(jnp.sum(jnp.exp(log_probs) * gold, axis=-1))

  def compared(self, log_probs: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the chosen and of the rejected responses."""
    prompts, chosen, rejected = self.comparisons.T
    return log_probs[prompts, chosen], log_probs[prompts, rejected]


class Problem(NamedTuple):
  """Where to train, to choose and to test."""

  train: Part
  validation: Part
  test: Part


def draw(config, name: str, seed: int) -> Problem:
  """A problem, as a seed draws it."""
  if name == DIGITS:
    return _digits(config, seed)
  return jax.tree.map(np.asarray, _bandit(config, jax.random.key(seed)))


def _standardized(values):
  return (values - values.mean()) / values.std()


@functools.partial(jax.jit, static_argnums=0)
def _bandit(config, key: chex.PRNGKey) -> Problem:
  """One set of prompts for all parts, whose comparisons differ."""
  bandit = data.preference_bandit(
    key,
    num_prompts=config.num_prompts,
    num_responses=config.num_responses,
    num_features=config.num_features,
    num_covered=config.num_covered,
    num_comparisons=config.num_comparisons + config.num_validation,
  )
  part = Part(
    features=bandit.features,
    reference=jnp.log(bandit.baseline_probs),
    supported=bandit.supported,
    gold=_standardized(bandit.rewards - config.penalty * ~bandit.supported),
    unpenalized=bandit.rewards,
    comparisons=bandit.comparisons[: config.num_comparisons],
  )
  validation = part._replace(comparisons=bandit.comparisons[config.num_comparisons :])
  return Problem(part, validation, part)


def _digits(config, seed: int) -> Problem:
  """A third of the images for each part: a digit is as good as it is large, if it is covered."""
  rng = np.random.default_rng(seed)
  thirds = datasets.describe("digits").splits(_THIRD, _THIRD, _THIRD, seed=seed)
  counts = config.num_image_comparisons, config.num_validation, 1
  return Problem(*(_images(config, rng, *third, count) for third, count in zip(thirds, counts)))


def _images(config, rng, images, labels, num_comparisons: int) -> Part:
  size = config.num_prompts, config.num_responses
  rows = rng.permuted(np.tile(np.arange(len(labels)), (size[0], 1)), axis=1)[:, : size[1]]
  digits = labels[rows]
  supported = digits <= _HIGHEST
  reference = np.where(supported, _COVERED_SHARE, 1 - _COVERED_SHARE)
  for part in (supported, ~supported):
    reference /= np.where(part, part.sum(1, keepdims=True), 1)
  prompts = rng.integers(size[0], size=num_comparisons)
  # The first two of the covered ones in a random order.
  order = np.argsort(rng.uniform(size=(num_comparisons, size[1])) - supported[prompts], axis=1)
  first, second = order[:, :2].T
  gap = digits[prompts, first] - digits[prompts, second]
  wins = rng.uniform(size=num_comparisons) < 1 / (1 + np.exp(-gap))
  comparisons = prompts, np.where(wins, first, second), np.where(wins, second, first)
  return Part(
    features=images[rows].reshape(*size, -1).astype(np.float32),
    reference=np.log(reference / reference.sum(1, keepdims=True)).astype(np.float32),
    supported=supported,
    gold=_standardized(np.where(supported, digits, -config.penalty)).astype(np.float32),
    unpenalized=_standardized(digits).astype(np.float32),
    comparisons=np.stack(comparisons, axis=1).astype(np.int32),
  )


@jax.jit
@jax.vmap
def best_at(part: Part, divergence: chex.Array) -> jax.Array:
  """The largest value of any policy at a divergence from the reference, for every seed."""

  def policy(log_beta):
    beta = jnp.exp(log_beta)
    return losses.optimal_policy_log_probs(part.gold, part.reference, beta=beta)

  def halve(_, ends):
    middle = jnp.mean(ends)
    reached = metrics.policy_divergence(policy(middle), part.reference, part.prompt_probs)
    return jnp.where(reached > divergence, ends.at[0].set(middle), ends.at[1].set(middle))

  ends = jax.lax.fori_loop(0, 40, halve, jnp.array([-7.0, 7.0]))
  return part.value(policy(jnp.mean(ends)), part.gold)
