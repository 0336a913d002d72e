import jax
import numpy as np
import pytest

from jaxlab.models import FusionRatioNet

INPUTS = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)


def test_ratios_by_hand():
  module = FusionRatioNet((4, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), INPUTS)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  hidden = INPUTS
  for name in ("dense_0", "dense_1", "ratio"):
    layer = variables["params"][name]
    hidden = hidden @ layer["kernel"] + layer["bias"]
    if name != "ratio":
      hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
  ratio = jax.jit(module.apply)(variables, INPUTS)
  np.testing.assert_allclose(ratio, 1 / (1 + np.exp(-hidden[:, 0])), rtol=1e-4)
  assert np.all((ratio > 0) & (ratio < 1))


def test_default_sizes_and_errors():
  shapes = jax.eval_shape(FusionRatioNet().init, jax.random.key(0), INPUTS)["params"]
  assert [shapes[name]["kernel"].shape for name in ("dense_0", "dense_1", "ratio")] == [
    (9, 32),
    (32, 16),
    (16, 1),
  ]
  with pytest.raises(ValueError, match="features must have shape"):
    jax.eval_shape(FusionRatioNet().init, jax.random.key(0), INPUTS[0])
