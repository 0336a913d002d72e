"""Calls of the engine."""

import jax.numpy as jnp
import optax

from jaxlab.training import LossOutput, init_state
from tests.contracts.calls import KEY, call, f

_STEP = {"gradients": "step", "compiles_once": "step", "shard_map": "mesh"}
_SGD = optax.sgd(0.1, momentum=0.9)


def _loss(params, model_state, batch, key):
  del model_state, key
  return LossOutput(jnp.square(batch["x"] @ params["w"] - batch["y"]))


def _update(function, key, params, batch, **kwargs):
  return function(_loss, _SGD, **kwargs)(init_state(key, params, _SGD), batch)


TABLE = {
  "build_update": call(KEY, {"w": f(2)}, {"x": f(4, 2), "y": f(4)}, accumulate=2).but(
    use=_update,
    keeps=True,
    skip=_STEP,
  ),
  "init_state": call(KEY, {"w": f(2)}, _SGD).but(keeps=True),
}
