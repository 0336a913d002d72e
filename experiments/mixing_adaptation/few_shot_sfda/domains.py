"""Domains with the source's classes, with unknown ones or with reversed counts; source models."""

import functools

import jax
import numpy as np
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import smoothed_loss
from experiments.kit.train import adamw_cosine, train
from jaxlab import augment, data, models

SCENARIOS = ("closed", "open set", "label shift")
IMAGE_SHAPE = (224, 224, 3)


def num_known(config, scenario: str) -> int:
  """Classes that the source model knows: the first ones."""
  return round(0.7 * config.num_classes) if scenario == "open set" else config.num_classes


def class_counts(config, scenario: str) -> tuple[np.ndarray, np.ndarray]:
  """Rows of each class in the source and in the target."""
  classes = np.arange(config.num_classes)
  known = classes < num_known(config, scenario)
  source, target = known / known.sum(), known / known.sum()
  if scenario == "open set":
    target = 0.6 * target + 0.4 * ~known / np.sum(~known)
  if scenario == "label shift":
    target = config.imbalance ** (-classes / (config.num_classes - 1))
    source = target[::-1]
  return _rounded(source, config.num_source), _rounded(target, config.num_target)


def _rounded(shares: np.ndarray, total: int) -> np.ndarray:
  """Whole numbers in proportion to the shares that sum to the total: largest remainders."""
  exact = total * shares / shares.sum()
  counts = np.floor(exact).astype(int)
  counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
  return counts


def make_domains(config, scenario: str, seed: int) -> tuple[Split, Split]:
  """Source rows `[n, ...]` and rows of all targets `[targets, n, ...]` of one seed.

  On signals, the targets are shifts of the same rows.
  """
  rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
  source_counts, target_counts = class_counts(config, scenario)
  if config.dataset == "domainnet":
    pools = [_images(config, domain) for domain in ("real", *config.targets)]
    drawn = [
      Split(*(array[draw_rows(rng, pool.labels, counts)] for array in pool))
      for pool, counts in zip(pools, [source_counts, *[target_counts] * len(config.targets)])
    ]
    return drawn[0], Split(*map(np.stack, zip(*drawn[1:])))
  pool = data.load_mnist1d(config.pool_size, seed=42 + seed)
  rows = draw_rows(rng, pool.labels, source_counts)
  others = np.setdiff1d(np.arange(config.pool_size), rows)
  others = others[draw_rows(rng, pool.labels[others], target_counts)]
  source = pool.series[rows]
  signals = (pool.series - source.mean()) / source.std()
  inputs = []
  for shift in config.targets:
    shifted = signals[others]
    for part in shift.split(" + "):
      kind, severity = part.split()
      key = jax.random.key(rng.integers(2**31))
      shifted = augment.corrupt_signals(key, shifted, kind=kind, severity=int(severity))
    inputs.append(np.asarray(shifted))
  labels = np.tile(pool.labels[others], (len(config.targets), 1))
  return Split(signals[rows], pool.labels[rows]), Split(np.stack(inputs), labels)


def draw_rows(rng: np.random.Generator, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Random rows, `counts[c]` of class c."""
  order = rng.permutation(len(labels))
  taken = [order[labels[order] == c][:count] for c, count in enumerate(counts)]
  for c, (rows, count) in enumerate(zip(taken, counts)):
    if len(rows) < count:
      raise ValueError(f"class {c} has {len(rows)} rows, {count} are needed.")
  return np.concatenate(taken)


def _images(config, domain: str) -> Split:
  """All images of a domain, resized and in [0, 1]."""
  source = data.load_source(f"domainnet/{domain}", split="train")
  images = np.empty((len(source), *IMAGE_SHAPE), np.float32)
  labels = np.empty(len(source), np.int32)
  for i in range(len(source)):
    example = source[i]
    images[i] = jax.image.resize(example["image"] / np.float32(255), IMAGE_SHAPE, "bilinear")
    labels[i] = example["label"]
  return Split(images, labels)


def network(config, scenario: str) -> nn.Module:
  """The network, with a head for the classes that the source knows."""
  classes = num_known(config, scenario)
  if config.dataset == "domainnet":
    return models.ResNet(classes, (3, 4, 6, 3), block="bottleneck")
  return models.ConvNet(classes, config.widths, strides=(2,) * len(config.widths))


def source_training(config, module: nn.Module):
  """The engine's loss and the optimizer of a source model."""
  loss = smoothed_loss(module, label_smoothing=0.1)
  return loss, adamw_cosine(config.source_learning_rate, config.source_steps)


@functools.cache  # The scenarios of one network are one program.
def train_source(config, module: nn.Module):
  """Builds `(key, source) -> variables`, and the bad step, of the training of a source model."""
  steps = {"num_steps": config.source_steps, "batch_size": config.source_batch_size}
  loss_and_optimizer = source_training(config, module)

  def fit(key, source):
    trained = train(key, module, *loss_and_optimizer, source, **steps)
    return {**trained.variables, "bad_step": trained.bad_step}

  return fit
