"""JAX functions for training that fits how a model will be used.

The rooms are imported when first used, so that `import jaxlab` costs little::

  from jaxlab import losses
  losses.bar_nll(logits, targets, borders)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxlab import (
    algorithms,
    augment,
    data,
    experiment,
    losses,
    metrics,
    models,
    samplers,
    training,
    uncertainty,
    weights,
  )

__version__ = "0.1.0"

__all__ = [
  "__version__",
  "algorithms",
  "augment",
  "data",
  "experiment",
  "losses",
  "metrics",
  "models",
  "samplers",
  "training",
  "uncertainty",
  "weights",
]


def __getattr__(name: str):
  """Imports a room on first use."""
  if name in __all__:
    return importlib.import_module(f"jaxlab.{name}")
  raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")


def __dir__():
  return __all__
