"""Parameter pytrees in, parameter pytrees and scalars out."""

from jaxlab.weights.ema import ema_update

__all__ = [
  "ema_update",
]
