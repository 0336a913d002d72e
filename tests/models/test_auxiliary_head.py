"""The auxiliary head."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import models

FEATURES = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)


def norm(x, scale, bias):
  return scale * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + bias


def test_layers_match_numpy():
  for batch_norm in (False, True):
    head = models.AuxiliaryHead(5, batch_norm=batch_norm)
    variables = jax.jit(head.init)(jax.random.key(0), FEATURES)
    params = jax.device_get(variables["params"])
    assert params["Dense_0"]["kernel"].shape == (16, 4)
    hidden = FEATURES
    for i in range(2):
      layer = params[f"Dense_{i}"]
      hidden = hidden @ layer["kernel"] + layer["bias"]
      if batch_norm:
        hidden = norm(hidden, **params[f"GhostBatchNorm_{i}"])
      hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    expected = hidden @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    np.testing.assert_allclose(jax.jit(head.apply)(variables, FEATURES), expected, atol=1e-4)


def test_width_and_half_precision():
  head = models.AuxiliaryHead(5, width=3, batch_norm=False)
  shapes = jax.eval_shape(head.init, jax.random.key(0), FEATURES)
  assert shapes["params"]["Dense_0"]["kernel"].shape == (16, 3)
  logits = jax.eval_shape(head.apply, shapes, FEATURES[None].astype(jnp.bfloat16))
  assert logits.shape == (1, 6, 5)
