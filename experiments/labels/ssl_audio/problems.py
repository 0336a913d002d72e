"""Sounds and spoken vowels with few labels: what a seed draws, and views of them."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.datasets import Split
from experiments.kit.views import ViewFns, shift_signals
from jaxlab import augment, data
from jaxlab.data.sources import data_root

EVENTS, VOWELS = "sound_events", "vowels"
# Layouts of `load_wav_folders`: classes, and parts of which every seed tests on another one.
FOLDERS = {"esc10": (10, 5), "urbansound8k": (10, 10)}
_VOWELS, _ARCHIVE = (25, 12), 270  # Frames and coefficients; the archive's training rows.
# Of weak and strong views of sounds: how often anything is changed, the longest part silenced, how
# far from 1 speeds are, and the least and most of each axis of the spectrogram that is cut.
VIEWS = {
  "mild": ((0.5, 0.25, 0.3, (0.1, 0.5)), (1.0, 0.5, 0.3, (0.1, 0.5))),
  "paper": ((0.5, 0.25, 0.5, (0.1, 0.5)), (1.0, 0.75, 0.75, (0.5, 1.0))),
}


class Splits(NamedTuple):
  """Labeled and unlabeled rows to train on; rows as the network sees them, to evaluate on.

  Rows to train on are sounds or series. With `num_views` they hold views instead, `[1 + 2
  num_views, ...]`: the clean one, weak and strong ones; and labeled rows are repeated, with other
  views, until they are as many as unlabeled ones.
  """

  labeled: Split
  unlabeled: Split
  validation: Split
  test: Split


def num_classes(name: str) -> int:
  """Classes of a set."""
  return {EVENTS: len(data.SOUND_EVENTS), VOWELS: 9}.get(name) or FOLDERS[name][0]


def shape_of(config, name: str) -> tuple[int, ...]:
  """The shape of a row to train on."""
  shape = _VOWELS if name == VOWELS else (round(config.seconds * config.sample_rate),)
  if not config.num_views:
    return shape
  row = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  seen = jax.eval_shape(fresh_views(config, name).clean, row).shape[1:]
  return 1 + 2 * config.num_views, *seen


def views_of(config, name: str) -> ViewFns:
  """Views of a set's rows: picks of those that rows hold, or fresh ones."""
  if not config.num_views:
    return fresh_views(config, name)

  def pick(first, key, rows):
    place = jax.random.randint(key, rows.shape[:1], first, first + config.num_views)
    return rows[jnp.arange(len(rows)), place]

  weak, strong = (functools.partial(pick, first) for first in (1, 1 + config.num_views))
  return ViewFns(weak, strong, lambda rows: rows[:, 0])


def fresh_views(config, name: str) -> ViewFns:
  """Views of sounds, which are spectrograms, or of series."""
  if name == VOWELS:
    return ViewFns(weak_series, strong_series)
  weak, strong = (functools.partial(perturbed, config, x) for x in VIEWS[config.views])
  return ViewFns(weak, strong, lambda waveforms: as_image(decibels(config, waveforms)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_views(config, name: str, seed: chex.Numeric, inputs: chex.Array) -> jax.Array:
  """Rows that hold their views."""
  fns = fresh_views(config, name)
  keys = jax.random.split(jax.random.key(seed), (2, config.num_views))
  drawn = [
    jax.lax.map(lambda key, view=view: view(key, inputs), own)
    for view, own in zip((fns.weak, fns.strong), keys)
  ]
  return jnp.moveaxis(jnp.concatenate([fns.clean(inputs)[None], *drawn]), 0, 1)


def decibels(config, waveforms: chex.Array) -> jax.Array:
  """Log-mel spectrograms in decibels below the peak, `[n, frames, bands]`."""
  sizes = {name: getattr(config, name) for name in ("sample_rate", "fft_size", "hop", "num_mels")}
  options = {"scale": "htk", "power": 2, "padding": "end", "floor": 1e-10}
  return augment.decibels_below_peak(augment.log_mel_spectrogram(waveforms, **sizes, **options))


def as_image(spectrograms: chex.Array) -> jax.Array:
  """What the network sees: -1 is silence, and 1 the peak."""
  return spectrograms[..., None] / 40 + 1


def perturbed(config, changes, key, waveforms) -> jax.Array:
  """A view of waveforms: a piece silenced, another speed, a rectangle of the spectrogram cut."""
  probability, longest, speed, cut = changes
  keys, often = jax.random.split(key, 3), {"probability": probability}
  sounds = augment.occlude(keys[0], waveforms, scales=(0.0, longest), **often)
  sounds = augment.speed_perturb(keys[1], sounds, rates=(1 - speed, 1 + speed), **often)
  cuts = {"freq_scales": cut, "time_scales": cut}
  return as_image(augment.cutout(keys[2], decibels(config, sounds), **cuts, **often))


def weak_series(key: chex.PRNGKey, series: chex.Array) -> jax.Array:
  """Moved by up to two frames, and a tenth of the frames zeroed."""
  shift_key, drop_key = jax.random.split(key)
  dropped = jax.random.bernoulli(drop_key, 0.1, (*series.shape[:2], 1))
  return jnp.where(dropped, 0.0, shift_signals(shift_key, series))


def strong_series(key: chex.PRNGKey, series: chex.Array) -> jax.Array:
  """Another speed, a window of up to half of the frames zeroed, and three coefficients zeroed."""
  speed_key, window_key, channel_key = jax.random.split(key, 3)

  def one(channel):
    # With one key, all coefficients of a row are perturbed alike.
    channel = augment.speed_perturb(speed_key, channel, rates=(0.7, 1.3), probability=1.0)
    return augment.occlude(window_key, channel, scales=(0.0, 0.5), probability=1.0)

  views = jax.vmap(one, in_axes=-1, out_axes=-1)(series)
  order = jnp.argsort(jax.random.uniform(channel_key, (len(series), 1, series.shape[2])), axis=-1)
  return jnp.where(order < 3, 0.0, views)


def draw(config, name: str, seed: int) -> Splits:
  """The rows of a seed; validation and test rows are clean views."""
  place = config.datasets.index(name)
  fields = "num_labeled", "num_unlabeled", "num_validation", "num_test"
  sizes = [getattr(config, field)[place] for field in fields]
  draw_rows = {EVENTS: _events, VOWELS: _vowels}.get(name) or functools.partial(_sounds, name)
  pool, test = draw_rows(config, sizes, seed)
  labeled, rest = _balanced(pool.labels, num_classes(name), sizes[0], seed)
  rows = labeled, rest[: sizes[1]], rest[sizes[1] : sum(sizes[1:3])]
  parts = [Split(pool.inputs[row], pool.labels[row]) for row in rows]
  clean = jax.jit(fresh_views(config, name).clean)
  seen = (part._replace(inputs=np.asarray(clean(part.inputs))) for part in (parts[2], test))
  known, other, _ = parts
  if config.num_views:
    times = max(1, len(other.labels) // len(known.labels))
    known = Split(*(np.concatenate([x] * times) for x in known))
    seeds = np.random.default_rng([seed, 1]).integers(2**31, size=2)  # Not those of the sounds.
    known, other = (
      part._replace(inputs=np.asarray(with_views(config, name, own, part.inputs)))
      for own, part in zip(seeds, (known, other))
    )
  return Splits(known, other, *seen)


def _balanced(labels, classes: int, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of random rows, of all classes equally many or one less; and of the others."""
  order = np.random.default_rng(seed).permutation(len(labels))
  rank = np.zeros(len(labels), int)  # Of a row among those of its class.
  for label in range(classes):
    own = order[labels[order] == label]
    rank[own] = np.arange(len(own))
  chosen = rank[order] < num // classes + (labels[order] < num % classes)
  if np.sum(chosen) < num:
    raise ValueError(f"num_labeled={num} exceeds what some class has, of {classes} alike.")
  return order[chosen], order[~chosen]


def _events(config, sizes, seed: int) -> tuple[Split, Split]:
  num = sum(sizes)
  labels = np.random.default_rng(seed).integers(0, len(data.SOUND_EVENTS), num, np.int32)
  labels[: sizes[0]] = np.arange(sizes[0]) % len(data.SOUND_EVENTS)  # Enough of every class.
  snr = tuple(-20 * np.log10(config.noise[::-1]))
  limits = {"sample_rate": config.sample_rate, "seconds": config.seconds, "snr_db": snr}
  sounds = np.asarray(data.sample_sound_events(jax.random.key(seed), labels, **limits))
  first = num - sizes[3]
  return Split(sounds[:first], labels[:first]), Split(sounds[first:], labels[first:])


@functools.cache
def _archive() -> Split:
  rows = data.as_arrays(data.load_source("aeon/JapaneseVowels", split="all"))
  order = np.argsort(rows["index"])
  series = rows["series"][order]
  known = series[:_ARCHIVE]
  series = (series - known.mean((0, 1))) / known.std((0, 1))
  return Split(series.astype(np.float32), rows["label"][order].astype(np.int32))


def _vowels(config, sizes, seed: int) -> tuple[Split, Split]:
  """The archive's own parts; no seed changes the test rows."""
  del config, seed
  series, labels = _archive()
  parts = np.s_[:_ARCHIVE], np.s_[_ARCHIVE : _ARCHIVE + sizes[3]]
  return tuple(Split(series[part], labels[part]) for part in parts)


def _sounds(name: str, config, sizes, seed: int) -> tuple[Split, Split]:
  """Files of a folder; every seed tests on another fold."""
  options = {"layout": name, "sample_rate": config.sample_rate, "seconds": config.seconds}
  folds = [f"fold{i + 1}" for i in range(FOLDERS[name][1])]
  test = folds.pop(seed % len(folds))

  def load(split):
    found = data.load_wav_folders(data_root() / name, split=split, skip_unreadable=True, **options)
    rows = data.as_arrays(found)
    return Split(rows["waveform"], rows["label"].astype(np.int32))

  return load("+".join(folds)), Split(*(x[: sizes[3]] for x in load(test)))
