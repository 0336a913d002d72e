"""Parameter pytrees in, parameter pytrees and scalars out."""

from jaxlab.weights.ema import ema_update
from jaxlab.weights.low_rank import LowRankConfig, init_low_rank, low_rank_update, merge_low_rank
from jaxlab.weights.soups import interpolate

__all__ = [
  "ema_update",
  "init_low_rank",
  "interpolate",
  "low_rank_update",
  "LowRankConfig",
  "merge_low_rank",
]


def __dir__():
  return __all__
