"""Signals of two grades of noise, and digits as they are."""

import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import FewLabels, Split


def draw(config, index: int, seed: int) -> FewLabels:
  """The data of a seed on one of the sets; of signals, half of every part has either grade."""
  dataset = datasets.describe(config.datasets[index])
  sizes = {
    "num_shots": config.num_shots[index],
    "num_unlabeled": config.num_unlabeled[index],
    "num_validation": config.num_validation,
    "num_test": config.num_test[index],
  }
  if dataset.is_image:
    return datasets.few_labels(dataset, seed, **sizes)
  grades = len(config.noise_grades)
  share = {name: size // grades for name, size in sizes.items()}
  drawn = []
  for i, grade in enumerate(config.noise_grades):
    noise = {
      "corr_noise_scale": grade * config.correlated_noise,
      "iid_noise_scale": grade * config.independent_noise,
    }
    # A seed of its own, or the grades would hold the same signals.
    drawn.append(datasets.few_labels(dataset, grades * seed + i, **share, **noise))
  return FewLabels(*(Split(*map(np.concatenate, zip(*parts))) for parts in zip(*drawn)))
