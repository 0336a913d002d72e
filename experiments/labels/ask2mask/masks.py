"""Which frames are hidden: at random, or where a score is high, and equally many of them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.labels.ask2mask.speech import SILENCE, Speech, inside
from jaxlab import augment, metrics

# What frames are chosen by.
SCORES = "confidence", "doubt", "energy", "CTC confidence", "truth", "confidence in sounds"
_TIES = 1e-6  # Noise that puts equal scores in a random order.


class Guide(NamedTuple):
  """Numbers of the utterances, int32 `[n]`; scores of their frames, `[n, T]`; weights, `[n]`."""

  order: chex.Array
  scores: chex.Array
  weights: chex.Array


def guide(speech: Speech, heard: dict[str, chex.Array], setting) -> Guide:
  """What a row of the table goes by, of `confidence` and guessed `sounds` that scorers heard.

  The setting says which of `SCORES` it is, whether utterances weigh as much as their frames are
  trusted, and whether those of the upper half alone are used, twice.
  """
  sure, ctc, truth = heard["confidence"], heard["CTC confidence"], 1.0 - speech.is_corrupted
  energy = jnp.linalg.norm(speech.frames, axis=-1)
  scores = sure, 1 - sure, energy / jnp.max(energy), ctc, truth, sure - (heard["sounds"] == SILENCE)
  trust = sure, sure, sure, ctc, truth, sure
  scores, trust = (jnp.stack(x)[setting["score"]] for x in (scores, trust))
  weights = metrics.utterance_confidence(trust, inside(*speech[:2]))
  everything = jnp.arange(len(weights))
  order = jnp.where(setting["half"], jnp.argsort(-weights)[everything // 2], everything)
  return Guide(order, scores, jnp.where(setting["weighted"], weights, jnp.ones_like(weights)))


def expected_masked(config) -> np.ndarray:
  """How many frames random starts mask on average, of utterances of 0 to T frames."""
  reach = np.minimum(np.arange(config.num_frames) + 1, config.span_length)
  return np.cumsum(np.append(0.0, 1 - (1 - config.start_probability) ** reach))


def draw_mask(config, key: chex.PRNGKey, scores, lengths, *, guided) -> jax.Array:
  """Masks of utterances, int32 `[b, T]`: by scores `[b, T]`, or at random; `guided` may be traced.

  By scores, as many frames are masked as random starts mask on average.
  """

  def by_scores(key):
    key, tie_key = jax.random.split(key)
    wanted = jnp.asarray(expected_masked(config), scores.dtype)[lengths]
    options = {"span_length": config.span_length, "pool": config.pool}
    options |= {"num_masked": wanted, "sharpness": config.sharpness}
    noisy = scores + _TIES * jax.random.uniform(tie_key, scores.shape)
    return augment.confident_span_mask(key, noisy, lengths, **options)

  def at_random(key):
    options = {"max_length": config.num_frames, "probability": config.start_probability}
    starts = augment.random_starts(key, lengths, **options)
    return augment.expand_spans(starts, lengths, span_length=config.span_length)

  return jax.lax.cond(guided, by_scores, at_random, key)
