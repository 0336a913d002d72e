"""Calls of functions of weights."""

from jaxlab.weights import LowRankConfig
from tests.contracts.calls import KEY, call, f

_PARAMS = {"layers": {"attention": {name: {"kernel": f(2, 4, 4)} for name in "qv"}}}
_RANK = LowRankConfig(rank=2)
_ADAPTERS = {"layers/attention/q/kernel": {"a": f(2, 4, 2), "b": f(2, 2, 4)}}

TABLE = {
  "ema_update": call({"w": f(2, 4)}, {"w": f(2, 4)}).but(keeps=True),
  "init_low_rank": call(KEY, _PARAMS, _RANK).but(keeps=True, skip={"gradients": "steps"}),
  "interpolate": call({"w": f(2, 4)}, {"w": f(2, 4)}, 0.3).but(keeps=True),
  "low_rank_update": call(f(4, 2), f(2, 4), alpha=16.0),
  "merge_low_rank": call(_PARAMS, _ADAPTERS, _RANK).but(keeps=True),
}
