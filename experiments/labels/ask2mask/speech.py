"""Target speech, and speech to pretrain on that is partly foreign or noise."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab import data

SILENCE, NUM_DIGITS = 0, 10  # Labels of frames: silence, or a digit from 1 on.
MISMATCHED, MATCHED = SETS = "mismatched", "matched"
_FIRST_DIGIT = 3  # Its token.
_FAINT = 0.3  # Of the loudest frame of a digit: below, a frame is silent.


class Speech(NamedTuple):
  """Utterances.

  Attributes:
    frames: `[n, T, 16]`; 0 after the end.
    lengths: int32 `[n]`.
    labels: the digits that are said, from 1 on, then 0, int32 `[n, most digits]`.
    sounds: the digit in each frame, or silence, int32 `[n, T]`.
    is_corrupted: which frames are noise or foreign, bool `[n, T]`.
  """

  frames: chex.Array
  lengths: chex.Array
  labels: chex.Array
  sounds: chex.Array
  is_corrupted: chex.Array


def inside(frames: chex.Array, lengths: chex.Array) -> jax.Array:
  """Which frames are before the end, bool `[n, T]`."""
  return jnp.arange(frames.shape[1])[None] < lengths[:, None]


def draw(config, key: chex.PRNGKey) -> dict[str, Speech]:
  """All speech of a seed, of tones of its own.

  There are `labeled`, `validation` and `test` utterances of the target; and to pretrain on, those
  that are `matched`, and `mismatched` ones: foreign ones first, then corrupted ones.
  """
  tone_key, broken_key, other_key, *keys = jax.random.split(key, 7)
  tones, num = data.sample_tone_tables(tone_key), config.num_pretraining
  nums = config.num_labeled, config.num_validation, config.num_test, num
  names = "labeled", "validation", "test", MATCHED
  read = functools.partial(_utterances, config)
  parts = {name: read(*x, tones.own) for name, *x in zip(names, keys, nums)}
  other = read(other_key, num, tones.foreign)
  whole = parts[MATCHED]
  options = {"share": config.corrupted_share, "foreign_tones": tones.foreign}
  broken = data.corrupt_segments(broken_key, whole.frames, whole.lengths, **options)
  strange = round(config.foreign_share * num)
  join = lambda x, y: jnp.concatenate([x[:strange], y[strange:]])  # noqa: E731
  mixed = other._replace(is_corrupted=inside(*other[:2])), whole._replace(**broken._asdict())
  return parts | {MISMATCHED: jax.tree.map(join, *mixed)}


def _utterances(config, key: chex.PRNGKey, num: int, tones: chex.Array) -> Speech:
  limits = {"min_digits": config.digits[0], "max_digits": config.digits[1]}
  limits |= {"rate_spread": config.rate_spread, "num_frames": config.num_frames}
  spoken = data.sample_aligned_utterances(key, num_samples=num, tones=tones, **limits)
  (frames, lengths, tokens, _), sounding, phases = spoken
  labels, sounds = (jnp.maximum(x - _FIRST_DIGIT + 1, 0) for x in (tokens[:, 1:-1], sounding))
  sounds = jnp.where(jnp.sin(jnp.pi * phases) < _FAINT, SILENCE, sounds)
  return Speech(frames, lengths, labels, sounds, jnp.zeros(sounds.shape, bool))
