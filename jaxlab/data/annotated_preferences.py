"""Pairs of responses that people rated and compared: their labels, and a synthetic set of them."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range

_MOST_ANNOTATIONS = 5
_WINDOW = 3
_NUM_ATTRIBUTES = 5
_HIDDEN = 16
_NUM_RATERS = 3
_RATER_BIAS = 0.3
_DOMAIN_SPREAD = 0.5
# Of helpfulness, correctness, coherence, complexity and verbosity.
_UTILITY_WEIGHTS = np.array([0.65, 0.8, 0.45, 0.55, -0.4], np.float32)
_INTERACTION = 0.3


class AggregatedPreferences(NamedTuple):
  """Strengths in -3 to 3, 0 where not kept, int32 `[n]`; which pairs are kept, bool `[n]`."""

  strength: chex.Array
  keep: chex.Array


class OrientedPairs(NamedTuple):
  """The chosen response of each pair, 0 or 1, and by how much it is preferred; int32 `[n]`."""

  chosen_index: chex.Array
  magnitude: chex.Array


class AnnotatedPairs(NamedTuple):
  """Pairs of responses with ratings and preferences.

  Attributes:
    first: features of the first responses, `[n, d]`.
    second: features of the second ones, `[n, d]`.
    first_ratings: mean ratings of five attributes in [0, 4], `[n, 5]`.
    second_ratings: those of the second responses, `[n, 5]`.
    strengths: annotations in -3 to 3, below 0 where the first is better, int32 `[n, 5]`; 0 past the
      number of annotations.
    counts: number of annotations, 3 to 5, int32 `[n]`.
    utilities: true utilities of both responses, `[n, 2]`.
    domains: domain of each pair, int32 `[n]`.
  """

  first: chex.Array
  second: chex.Array
  first_ratings: chex.Array
  second_ratings: chex.Array
  strengths: chex.Array
  counts: chex.Array
  utilities: chex.Array
  domains: chex.Array


def aggregate_preferences(annotations: chex.Array, counts: chex.Array) -> AggregatedPreferences:
  """Combines the three annotations of a pair that are closest to each other.

  They are the three neighbors in order of the smallest range; on ties those whose mean is nearest
  to the median of all; then the lowest. A pair is dropped if it has fewer than three annotations,
  if the three differ by more than 2, or if their mean rounds to 0.

  Args:
    annotations: strength of the preference for the second response, int `[n, 5]`; the first
      `counts` entries of a row are valid.
    counts: number of annotations, 0 to 5, int `[n]`.

  Returns:
    The mean of the three, rounded to the nearest integer, and which pairs are kept.

  Raises:
    ValueError: if a known count lies outside [0, 5].

  Reference: Wang et al., HelpSteer2-Preference, ICLR 2025, section 3 (ties are ours),
  https://arxiv.org/abs/2410.01257.
  """
  check_arrays(
    annotations=(annotations, f"int [n, {_MOST_ANNOTATIONS}]"), counts=(counts, "int [n]")
  )
  check_range("counts", counts, f"[0, {_MOST_ANNOTATIONS}]")
  annotations, counts = (jnp.asarray(x).astype(jnp.int32) for x in (annotations, counts))
  last = jnp.iinfo(jnp.int32).max
  places = jnp.arange(_MOST_ANNOTATIONS)[None]
  ordered = jnp.sort(jnp.where(places < counts[:, None], annotations, last), axis=1)

  def at(place):
    return jnp.take_along_axis(ordered, jnp.maximum(place, 0)[:, None], axis=1)[:, 0]

  twice_median = at((counts - 1) // 2) + at(counts // 2)
  ends = np.arange(_WINDOW - 1, _MOST_ANNOTATIONS)
  valid = ends[None] < counts[:, None]
  spread = jnp.where(valid, ordered[:, ends] - ordered[:, ends - _WINDOW + 1], last)
  total = sum(ordered[:, ends - i] for i in range(_WINDOW))
  distance = jnp.abs(2 * total - _WINDOW * twice_median[:, None])
  least = jnp.min(spread, axis=1)
  nearest = jnp.argmin(jnp.where(spread == least[:, None], distance, last), axis=1)
  chosen = jnp.take_along_axis(total, nearest[:, None], axis=1)[:, 0]
  strength = (chosen + 1) // _WINDOW  # A third is never halfway between integers.
  keep = (counts >= _WINDOW) & (least <= 2) & (strength != 0)
  return AggregatedPreferences(jnp.where(keep, strength, 0), keep)


def orient_pairs(strength: chex.Array) -> OrientedPairs:
  """Which response of a pair is the chosen one, and how strongly.

  Args:
    strength: of the preference for the second response, negative for the first, int `[n]`.

  Returns:
    The chosen response: 0, the first, for negative strengths, else 1; and the absolute strength.
  """
  check_arrays(strength=(strength, "int [n]"))
  strength = jnp.asarray(strength).astype(jnp.int32)
  return OrientedPairs((strength >= 0).astype(jnp.int32), jnp.abs(strength))


def ratings_to_strength(
  first: chex.Array, second: chex.Array, *, max_strength: chex.Numeric = 3
) -> jax.Array:
  """Turns two ratings into a preference: their difference, rounded and clipped.

  Args:
    first: ratings of the first responses, `[n]`.
    second: ratings of the second ones, `[n]`.
    max_strength: the largest strength, at least 1.

  Returns:
    Strength of the preference for the second response, int32 `[n]`; halves are rounded to even. 0,
    which is no preference, where a rating is NaN.

  Raises:
    ValueError: if `max_strength` < 1.

  Reference: Wang et al., HelpSteer2-Preference, ICLR 2025, https://arxiv.org/abs/2410.01257.
  """
  check_range("max_strength", max_strength, "[1, inf)")
  check_arrays(first=(first, "[n]"), second=(second, "[n]"))
  first, second = as_accumulator(first, second)
  strength = jnp.clip(jnp.round(second - first), -max_strength, max_strength)
  return jnp.where(jnp.isnan(strength), 0.0, strength).astype(jnp.int32)


def annotated_pairs(
  key: chex.PRNGKey,
  *,
  num_pairs: int,
  num_features: int = 32,
  num_domains: int = 4,
  rating_noise: chex.Numeric = 0.8,
  shifted: bool = False,
) -> AnnotatedPairs:
  """Draws pairs of responses that noisy raters rate and noisy annotators compare.

  Features are normal around a mean of the pair's domain. Five attributes are random networks of
  them (16 hidden units with tanh, outputs of mean 0 and variance 1), and the utility is .65, .8,
  .45, .55 and -.4 times the attributes plus .3 times the product of the first two. Each of three
  raters, with a bias of deviation .3 toward the pair, rates 2 + attribute + noise, rounded and
  clipped to 0 to 4. Each of three to five annotators gives 1.5 times the difference of utilities
  plus noise, rounded and clipped to -3 to 3. Domains and networks are always the same ones.

  Args:
    key: random key of responses and labels.
    num_pairs: number n of pairs.
    num_features: number d of features.
    num_domains: number of domains, drawn uniformly.
    rating_noise: deviation of the noise of ratings, and of that of the difference of utilities.
    shifted: whether domains have twice their means.

  Returns:
    An `AnnotatedPairs`, in float32.

  Raises:
    ValueError: if a count is less than 1 or `rating_noise` negative.

  Reference: a setting for Wang et al., HelpSteer2-Preference, ICLR 2025,
  https://arxiv.org/abs/2410.01257.
  """
  check_at_least(1, num_pairs=num_pairs, num_features=num_features, num_domains=num_domains)
  check_range("rating_noise", rating_noise, "[0, inf)")
  world = _world(num_features, num_domains)
  keys = jax.random.split(key, 6)
  domains = jax.random.randint(keys[0], (num_pairs,), 0, num_domains)
  means = jnp.asarray(world.means)[domains] * (2.0 if shifted else 1.0)
  features = jax.random.normal(keys[1], (2, num_pairs, num_features)) + means[None]
  attributes = _attributes(world, features, jnp)
  utilities = attributes @ _UTILITY_WEIGHTS
  utilities += _INTERACTION * attributes[..., 0] * attributes[..., 1]

  bias = _RATER_BIAS * jax.random.normal(keys[2], (1, _NUM_RATERS, num_pairs, 1))
  noise = rating_noise * jax.random.normal(keys[3], (2, _NUM_RATERS, num_pairs, _NUM_ATTRIBUTES))
  ratings = jnp.clip(jnp.round(2.0 + attributes[:, None] + bias + noise), 0.0, 4.0).mean(1)

  counts = jax.random.randint(keys[4], (num_pairs,), _WINDOW, _MOST_ANNOTATIONS + 1)
  noise = rating_noise * jax.random.normal(keys[5], (num_pairs, _MOST_ANNOTATIONS))
  difference = (utilities[1] - utilities[0])[:, None] + noise
  strengths = jnp.clip(jnp.round(1.5 * difference), -3.0, 3.0).astype(jnp.int32)
  given = jnp.arange(_MOST_ANNOTATIONS)[None] < counts[:, None]
  strengths = jnp.where(given, strengths, 0)
  return AnnotatedPairs(*features, *ratings, strengths, counts, utilities.T, domains)


class _World(NamedTuple):
  """What all draws share: means of domains, and networks of attributes."""

  means: np.ndarray
  inner: np.ndarray
  outer: np.ndarray
  center: np.ndarray


@functools.cache
def _world(num_features: int, num_domains: int) -> _World:
  rng = np.random.default_rng(0)
  shape = num_features, _NUM_ATTRIBUTES, _HIDDEN
  means = _DOMAIN_SPREAD * rng.normal(size=(num_domains, num_features))
  inner = rng.normal(size=shape) / np.sqrt(num_features)
  outer = rng.normal(size=shape[1:])
  rows = means[rng.integers(num_domains, size=20_000)]
  world = _World(means, inner, outer, np.zeros(_NUM_ATTRIBUTES))
  values = _attributes(world, rows + rng.normal(size=rows.shape), np)
  outer /= values.std(0)[:, None]
  world = world._replace(center=values.mean(0) / values.std(0))
  return _World(*(array.astype(np.float32) for array in world))


def _attributes(world: _World, features, module):
  """The networks' outputs, `[..., 5]`."""
  hidden = module.tanh(module.einsum("...d,dah->...ah", features, world.inner))
  outputs = module.einsum("...ah,ah->...a", hidden, world.outer)
  return outputs - module.broadcast_to(world.center, outputs.shape)
