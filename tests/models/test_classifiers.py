from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models.classifiers import MLP, ConvEncoder, ConvNet
from jaxlab.models.norm import GhostBatchNorm, GroupNorm
from jaxlab.models.vit import ViT

SIGNALS = np.random.default_rng(0).normal(size=(4, 12, 2)).astype(np.float32)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
GROUPS = partial(GroupNorm, num_groups=2)


@pytest.mark.parametrize(
  ("module", "inputs", "num_features", "num_layers"),
  [
    (MLP(3, (5, 6), norm=GhostBatchNorm), SIGNALS, 6, 3),
    (MLP(3, (5,)), SIGNALS, 5, 2),
    (ConvNet(3, (4, 6), strides=(2, 2)), SIGNALS, 6, 3),
    (ConvNet(3, (4, 6), (3, 3), strides=(1, 1), pool_after=0, norm=GROUPS), IMAGES, 6, 3),
  ],
  ids=["normalized mlp", "plain mlp", "signals", "images"],
)
def test_a_classifier(check_classifier, module, inputs, num_features, num_layers):
  check_classifier(module, inputs, num_features=num_features, num_layers=num_layers)


def test_mlp_by_hand():
  module = MLP(2, (4,), activation=jnp.tanh)
  variables = module.init(jax.random.key(1), SIGNALS)
  params = jax.tree.map(np.asarray, variables["params"])
  hidden = np.tanh(SIGNALS.reshape(4, -1) @ params["dense_0"]["kernel"])
  outputs = module.apply(variables, SIGNALS)
  np.testing.assert_allclose(outputs.features, hidden, rtol=1e-5, atol=1e-6)


def test_pooling_halves_the_image():
  shapes = []

  def mix(layer, hidden):
    shapes.append(hidden.shape[1:3])
    return hidden

  module = ConvNet(2, (4, 4), (3, 3), strides=(1, 2), pool_after=0)
  jax.eval_shape(lambda x: module.init(jax.random.key(0), x, mix=mix), IMAGES)
  assert shapes == [(8, 8), (4, 4), (2, 2)]


def test_mix_replaces_what_the_next_layer_sees():
  module = MLP(2, (4, 4))
  variables = module.init(jax.random.key(0), SIGNALS)
  order = np.array([1, 0, 3, 2])
  for layer in range(3):
    outputs = module.apply(
      variables, SIGNALS, mix=lambda i, h, layer=layer: h[order] if i == layer else h
    )
    np.testing.assert_allclose(
      outputs.logits, module.apply(variables, SIGNALS).logits[order], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("module", [MLP(3, (4,)), ViT(3, 4, 8, 1, 2)])
def test_empty_batches(module):
  images = jnp.zeros((0, 8, 8, 3))
  outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
  assert outputs.logits.shape == (0, 3)


def test_errors():
  with pytest.raises(ValueError, match="strides"):
    module = ConvNet(2, (4, 4), (3, 3), strides=(1,))
    jax.eval_shape(module.init, jax.random.key(0), IMAGES)
  with pytest.raises(ValueError, match=r"inputs must have shape \[b, t, c\]"):
    jax.eval_shape(ConvNet(2).init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize("inputs", [SIGNALS, IMAGES], ids=["signals", "images"])
def test_an_encoder_by_hand(inputs):
  """With flax's convolution and pooling; the odd position at the end is dropped."""
  inputs = inputs[:, :7]
  module = ConvEncoder((4, 6), dense=5, num_classes=3, projection=2)
  shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)["params"]
  rank, size = inputs.ndim - 2, (5,) if inputs.ndim == 3 else (3, 3)

  @jax.jit
  def expected(params):
    hidden = inputs
    for i, width in enumerate((4, 6)):
      hidden = nn.Conv(width, size).apply({"params": params[f"conv_{i}"]}, hidden)
      hidden = nn.max_pool(nn.relu(hidden), (2,) * rank, (2,) * rank)
    return hidden.reshape(4, -1)

  def dense(name, x):
    return x @ params[name]["kernel"] + params[name]["bias"]

  output = jax.jit(module.apply)({"params": params}, inputs)
  features = np.maximum(dense("embed", np.asarray(expected(params))), 0)
  np.testing.assert_allclose(output.features, features, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(output.logits, dense("head", features), rtol=1e-4, atol=1e-5)
  hidden = np.maximum(dense("projection_0", features), 0)
  np.testing.assert_allclose(output.projection, dense("projection_1", hidden), rtol=1e-4, atol=1e-5)


def test_an_encoder_without_head_and_projection():
  output = jax.eval_shape(ConvEncoder().init_with_output, jax.random.key(0), IMAGES)[0]
  assert output.logits is None and output.projection is None
  assert output.features.shape == (4, 64)
  with pytest.raises(ValueError, match="the sides of inputs must be at least 16, got 8"):
    jax.eval_shape(ConvEncoder((4,) * 4).init, jax.random.key(0), IMAGES)
  with pytest.raises(ValueError, match="inputs must have shape"):
    jax.eval_shape(ConvEncoder().init, jax.random.key(0), IMAGES[0, 0])
