"""Series of many channels of which few are informative, and the archive's."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.kit.datasets import Split
from jaxlab import augment, data

NUM_CLASSES, MOTIF_STEPS = 4, 12  # Of the synthetic series.
# The archive's sets: channels and classes.
ARCHIVE = {
  "japanese_vowels": (12, 9), "italy_power_demand": (1, 2), "arrow_head": (1, 3),
  "osu_leaf": (1, 6), "basic_motions": (6, 4), "gun_point": (1, 2),
}  # fmt: skip


class Problem(NamedTuple):
  """Series to be classified.

  Attributes:
    train: series `[n, C, T]`, standardized by channel, and their classes.
    test: the same of others, standardized by the training series.
    informative: the channels that depend on the class; None if nobody knows.
  """

  train: Split
  test: Split
  informative: np.ndarray | None = None


def synthetic(config) -> dict[str, int]:
  """Names of the synthetic problems, and their numbers of informative channels."""
  return {f"{k} of {config.num_channels} channels": k for k in config.num_informative}


def sizes(config, name: str) -> tuple[int, int]:
  """The channels and classes of a problem."""
  return ARCHIVE.get(name, (config.num_channels, NUM_CLASSES))


def draw(config, name: str, seed: int) -> Problem:
  """Draws a problem anew.

  Args:
    config: of the experiment.
    name: of a synthetic problem, or of one of the archive.
    seed: of the draw; of an archive's problem, that of the stratified split.
  """
  if name in synthetic(config):
    return draw_channels(config, synthetic(config)[name], seed)
  drawn = data.load_series(name, split=seed)
  train, test = _standardized(
    drawn.train_values, drawn.test_values, drawn.train_lengths, drawn.test_lengths
  )
  return Problem(Split(train, drawn.train_labels), Split(test, drawn.test_labels))


def motifs() -> np.ndarray:
  """Four waves of one energy, `[4, 12]`, their norm the root of 6.

  One and two periods of a sine, half a period, and two periods of a cosine.
  """
  turn = 2 * np.pi * (np.arange(MOTIF_STEPS) + 0.5) / MOTIF_STEPS
  return np.stack([np.sin(turn), np.sin(2 * turn), np.sin(turn / 2), np.cos(2 * turn)])


def draw_channels(config, num_informative: int, seed: int) -> Problem:
  """Autoregressive noise, and a motif at some place in the informative channels of every series.

  Which motif it is follows from class and channel. That of half a period comes with both signs: its
  mean would give it away.
  """
  rng = np.random.default_rng([seed, num_informative])
  sizes = config.num_train, config.num_test
  labels = np.concatenate([rng.permutation(np.arange(size) % NUM_CLASSES) for size in sizes])
  num_rows, length = sum(sizes), config.num_steps
  innovations = rng.normal(size=(length, num_rows, config.num_channels))
  values, scale = innovations.copy(), np.sqrt(1 - config.autocorrelation**2)
  for t in range(1, length):
    values[t] = config.autocorrelation * values[t - 1] + scale * innovations[t]
  values = values.transpose(1, 2, 0)
  informative = np.sort(rng.permutation(config.num_channels)[:num_informative])
  waves, rows = config.amplitude * motifs(), np.arange(num_rows)[:, None]
  for channel in informative:
    kind = (labels + channel) % NUM_CLASSES
    signs = np.where(kind == 2, rng.choice([-1, 1], num_rows), 1)
    starts = rng.integers(0, length - MOTIF_STEPS + 1, num_rows)
    values[rows, channel, starts[:, None] + np.arange(MOTIF_STEPS)] += signs[:, None] * waves[kind]
  parts = np.split(values.astype(np.float32), [config.num_train])
  train, test = _standardized(*parts, *(np.full(size, length, np.int32) for size in sizes))
  train_labels, test_labels = np.split(labels.astype(np.int32), [config.num_train])
  return Problem(Split(train, train_labels), Split(test, test_labels), informative)


@jax.jit
def _scale(train, test, train_lengths, test_lengths):
  statistics = augment.channel_statistics(train, lengths=train_lengths)
  parts = (train, train_lengths), (test, test_lengths)
  return [augment.standardize_channels(x, statistics=statistics, lengths=n) for x, n in parts]


def _standardized(*arrays) -> list[np.ndarray]:
  return jax.device_get(_scale(*arrays))
