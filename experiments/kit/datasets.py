"""One description per data set: shapes, classes, and splits that every seed draws anew."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data


class Split(NamedTuple):
  """Inputs `[n, ...]` and labels `[n]` (or targets)."""

  inputs: chex.Array
  labels: chex.Array


# What dry runs and checks need of sets that are not on disk: the shape of an image, the classes,
# and the rows of the training and of the test part.
_TFDS_IMAGES = {
  "cifar10": ((32, 32, 3), 10, (50_000, 10_000)),
  "cifar100": ((32, 32, 3), 100, (50_000, 10_000)),
  "fashion_mnist": ((28, 28, 1), 10, (60_000, 10_000)),
  "mnist": ((28, 28, 1), 10, (60_000, 10_000)),
  "svhn_cropped": ((32, 32, 3), 10, (73_257, 26_032)),
}

# The fifteen corruptions of CIFAR-10-C, as tfds names them: `cifar10_corrupted/<kind>_<severity>`.
CIFAR10_CORRUPTIONS = (
  *("gaussian_noise", "shot_noise", "impulse_noise"),
  *("defocus_blur", "frosted_glass_blur", "motion_blur", "zoom_blur"),
  *("snow", "frost", "fog", "brightness"),
  *("contrast", "elastic", "pixelate", "jpeg_compression"),
)


class Dataset(NamedTuple):
  """A classification set.

  Attributes:
    name: `mnist1d` (signals made on demand), `digits` (shipped with scikit-learn), or an image set
      of tfds.
    shape: of one input: `(length, 1)` of signals, `(height, width, channels)` of images.
    num_classes: number of classes.
    num_rows: rows of each part that splits are drawn from; () if they are made on demand.
  """

  name: str
  shape: tuple[int, ...]
  num_classes: int
  num_rows: tuple[int, ...] = ()

  @property
  def is_image(self) -> bool:
    """Whether inputs are images; signals otherwise."""
    return len(self.shape) == 3

  def check_splits(self, *sizes: int) -> None:
    """Raises if there are not so many rows; reads no data.

    Args:
      *sizes: as of `splits`.

    Raises:
      ValueError: naming the set, the sizes and the rows that there are.
    """
    parts = (sizes[:-1], sizes[-1:]) if len(self.num_rows) > 1 else (sizes,)
    for wanted, rows in zip(parts, self.num_rows):
      if sum(wanted) > rows:
        raise ValueError(f"sizes {wanted} exceed the {rows} rows of {self.name}.")

  def splits(self, *sizes: int, seed: int = 0, **generator) -> tuple[Split, ...]:
    """Draws disjoint splits, standardized by what the first one holds.

    Signals lose the first split's mean and are divided by its deviation, images of tfds likewise by
    channel; digits are divided by 16. The last split of a tfds set comes from its test part, the
    others from its training part.

    Args:
      *sizes: rows of each split.
      seed: of the draw; another seed draws all splits anew.
      **generator: arguments of the generator of `mnist1d`.

    Returns:
      A `Split` for every size, NumPy arrays: inputs float32, labels int32.

    Raises:
      ValueError: if there are too few rows.
    """
    if self.name == "mnist1d":
      # 42 is the generator's own default.
      signals = data.load_mnist1d(sum(sizes), seed=42 + seed, **generator)
      first = signals.series[: sizes[0]]
      series = (signals.series - first.mean()) / first.std()
      return _cut(Split(series, signals.labels), sizes)
    if self.name == "digits":
      digits = data.as_arrays(data.load_source("digits", split="all"))
      images = digits["image"].astype(np.float32) / 16.0
      return _cut(_shuffled(Split(images, digits["label"].astype(np.int32)), seed), sizes)
    pool, test = (_shuffled(raw_images(self.name, part), seed) for part in ("train", "test"))
    parts = (*_cut(pool, sizes[:-1]), *_cut(test, sizes[-1:]))
    mean, std = parts[0].inputs.mean((0, 1, 2)), parts[0].inputs.std((0, 1, 2))
    return tuple(Split((part.inputs - mean) / std, part.labels) for part in parts)

  def batch(self, batch_size: int) -> Split:
    """The shapes of a batch, for a dry run."""
    return Split(
      jax.ShapeDtypeStruct((batch_size, *self.shape), jnp.float32),
      jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    )


def describe(name: str) -> Dataset:
  """The description of a data set; reads no data.

  Args:
    name: `mnist1d`, `digits`, or an image set of tfds.

  Returns:
    Its `Dataset`.

  Raises:
    ValueError: if there is no description of that name.
  """
  known = {"mnist1d": ((40, 1), 10, ()), "digits": ((8, 8, 1), 10, (1797,)), **_TFDS_IMAGES}
  if name not in known:
    raise ValueError(f"no data set {name!r}: there is {', '.join(known)}.")
  return Dataset(name, *known[name])


def digit_blocks(*sizes: int, seed: int = 0) -> tuple[Split, ...]:
  """Splits of `digits` that are blocks of consecutive images, which the same writers made.

  Args:
    *sizes: rows of each split.
    seed: of where the first block begins, and of the order within blocks.

  Returns:
    A `Split` for every size, as of `Dataset.splits`.
  """
  digits = data.as_arrays(data.load_source("digits", split="all"))
  images, labels = digits["image"].astype(np.float32) / 16.0, digits["label"].astype(np.int32)
  rng = np.random.default_rng(seed)
  start = rng.integers(len(labels))
  blocks = _cut(Split(np.roll(images, start, axis=0), np.roll(labels, start)), sizes)
  orders = [rng.permutation(size) for size in sizes]
  return tuple(Split(*(x[order] for x in block)) for block, order in zip(blocks, orders))


class FewLabels(NamedTuple):
  """What semi-supervised learning is compared on.

  Attributes:
    labeled: equally many rows of every class, class by class.
    unlabeled: rows whose labels a method must not see.
    validation: labeled rows that choose settings.
    test: test rows.
  """

  labeled: Split
  unlabeled: Split
  validation: Split
  test: Split


def few_labels(
  dataset: Dataset,
  seed: int,
  *,
  num_shots: int,
  num_unlabeled: int,
  num_validation: int,
  num_test: int,
  **generator,
) -> FewLabels:
  """Draws a few labeled rows of every class, and the other parts, anew for every seed.

  Args:
    dataset: the set.
    seed: of the draw.
    num_shots: labeled rows of a class.
    num_unlabeled: unlabeled rows.
    num_validation: validation rows.
    num_test: test rows.
    **generator: as of `Dataset.splits`.

  Raises:
    ValueError: if a class has too few rows.
  """
  num_labeled = num_shots * dataset.num_classes
  pool, test = dataset.splits(
    num_labeled + num_unlabeled + num_validation, num_test, seed=seed, **generator
  )
  drawn = data.few_shot_split(
    jax.random.key(seed),
    pool.labels,
    num_classes=dataset.num_classes,
    num_shots=num_shots,
    num_validation_shots=0,
  )
  rest = np.flatnonzero(drawn.rest)  # In the order of the pool, which is random.
  parts = drawn.train, rest[:num_unlabeled], rest[num_unlabeled:]
  return FewLabels(*(Split(*(array[rows] for array in pool)) for rows in parts), test)


def raw_images(name: str, part: str, *, limit: int | None = None) -> Split:
  """Images of a tfds set in [0, 1], and their labels.

  Args:
    name: name in tfds, with its configuration: `cifar10_corrupted/fog_3`.
    part: "train" or "test".
    limit: number of rows; None for all.
  """
  arrays = data.as_arrays(data.load_source(name, split=part), limit=limit)
  return Split(arrays["image"].astype(np.float32) / 255.0, arrays["label"].astype(np.int32))


def stack_seeds(draw: Callable[[int], Any], seeds: Iterable[int]) -> Any:
  """Draws of every seed, stacked: what `over_seeds` takes as `arguments`.

  Args:
    draw: `seed -> pytree of arrays`, all of the same shapes.
    seeds: numbers of the seeds, such as `context.seed_numbers`.

  Returns:
    The pytree with a leading axis of seeds.
  """
  return jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw, seeds))


def _shuffled(split: Split, seed: int) -> Split:
  order = np.random.default_rng(seed).permutation(len(split.labels))
  return Split(*(array[order] for array in split))


def _cut(split: Split, sizes: tuple[int, ...]) -> tuple[Split, ...]:
  if sum(sizes) > len(split.labels):
    raise ValueError(f"sizes {sizes} exceed the {len(split.labels)} rows.")
  ends = np.cumsum(sizes)
  return tuple(
    Split(*(array[end - size : end] for array in split)) for size, end in zip(sizes, ends)
  )
