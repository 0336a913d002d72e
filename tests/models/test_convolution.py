import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models import convolution
from jaxlab.models.convolution import Conv

# kernel_size and other attributes of the layer; inputs: 7 x 6 images, or sequences of 7, 4
# channels.
CASES = [
  ((3, 3), {}),
  ((3, 3), {"strides": 2}),
  ((3, 2), {"strides": (2, 1), "padding": "VALID"}),
  ((4, 4), {"strides": (2, 3)}),
  ((1, 1), {"use_bias": False}),
  ((3, 3), {"padding": 2, "kernel_dilation": (2, 1)}),
  ((2, 3), {"padding": ((0, 3), (1, 0)), "strides": (1, 2)}),
  ((3, 3), {"padding": ((-1, 0), (0, -2))}),
  ((3, 3), {"feature_group_count": 2, "strides": 2}),
  ((3, 3), {"feature_group_count": 4, "kernel_dilation": 2}),
  ((3,), {"kernel_dilation": 3}),
  (4, {"strides": 2, "padding": "VALID"}),
  ((2,), {"feature_group_count": 4, "padding": (1,)}),
  ((9,), {"padding": "VALID"}),  # no position fits
]


def inputs_for(kernel_size):
  shape = (2, 7, 6, 4) if np.size(kernel_size) == 2 else (2, 7, 4)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("kernel_size", "options"), CASES)
def test_equals_flax(kernel_size, options):
  ours, theirs = Conv(8, kernel_size, **options), nn.Conv(8, kernel_size, **options)
  inputs = inputs_for(kernel_size)
  params, expected = (
    jax.device_get(jax.jit(layer.init)(jax.random.key(1), inputs)) for layer in (ours, theirs)
  )
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  params = jax.tree.map(lambda x: x + np.float32(0.1), params)  # so that the bias is not 0

  def value_and_grad(layer):
    def loss(params, inputs):
      outputs = layer.apply(params, inputs)
      return jnp.sum(jnp.sin(outputs)), outputs

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, inputs)

  grads, outputs = value_and_grad(ours)
  expected_grads, expected = value_and_grad(theirs)
  assert outputs.shape == expected.shape and outputs.dtype == expected.dtype
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), grads, expected_grads
  )


def test_equals_a_loop():
  inputs = np.asarray(inputs_for((3, 2)))
  layer = Conv(5, (3, 2), strides=(2, 1), padding=((1, 0), (0, 2)), kernel_dilation=(1, 2))
  params = jax.jit(layer.init)(jax.random.key(1), inputs)
  kernel = np.asarray(params["params"]["kernel"])
  padded = np.pad(inputs, ((0, 0), (1, 0), (0, 2), (0, 0)))
  expected = np.zeros((2, 3, 6, 5), np.float32)
  for n, i, j, f in np.ndindex(expected.shape):
    for a, b, c in np.ndindex(3, 2, 4):
      expected[n, i, j, f] += padded[n, 2 * i + a, j + 2 * b, c] * kernel[a, b, c, f]
  np.testing.assert_allclose(jax.jit(layer.apply)(params, inputs), expected, rtol=1e-5, atol=1e-5)


def test_batch_dimensions_and_bfloat16():
  layer, inputs = Conv(3, (3, 3)), inputs_for((3, 3))
  params = jax.device_get(jax.jit(layer.init)(jax.random.key(1), inputs))
  apply = jax.jit(layer.apply)
  outputs = np.asarray(apply(params, inputs))
  np.testing.assert_allclose(apply(params, inputs[0]), outputs[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    apply(params, inputs[None, :, None]), outputs[None, :, None], rtol=1e-5, atol=1e-6
  )
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, inputs))
  low = apply(*half)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(low, np.float32), outputs, rtol=0.05, atol=0.05)


def test_scan_and_vmap_over_kernels():
  layer, inputs = Conv(4, (3, 3)), inputs_for((3, 3))
  init = jax.jit(jax.vmap(layer.init, in_axes=(0, None)))
  many = jax.device_get(init(jax.random.split(jax.random.key(1), 3), inputs))
  vmapped = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(many, inputs)
  _, scanned = jax.lax.scan(lambda _, params: (None, layer.apply(params, inputs)), None, many)
  apply = jax.jit(layer.apply)
  one = [apply(jax.tree.map(lambda x, i=i: x[i], many), inputs) for i in range(3)]
  np.testing.assert_allclose(vmapped, np.stack(one), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(scanned, np.stack(one), rtol=1e-5, atol=1e-5)


def lowered(kernel_size, platform):
  layer, inputs = Conv(4, kernel_size), inputs_for(kernel_size)
  params = jax.eval_shape(layer.init, jax.random.key(1), inputs)
  traced = jax.jit(layer.apply).trace(params, inputs)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_backend_and_the_size_choose_the_lowering(monkeypatch):
  assert "stablehlo.convolution" not in lowered((3, 3), "cpu")
  assert "stablehlo.convolution" in lowered((3, 3), "tpu")
  patches = 2 * 7 * 6 * 9 * 4 * 4
  monkeypatch.setattr(convolution, "MAX_PATCH_BYTES", patches - 1)
  assert "stablehlo.convolution" in lowered((3, 3), "cpu")
  monkeypatch.setattr(convolution, "MAX_PATCH_BYTES", patches)
  assert "stablehlo.convolution" not in lowered((3, 3), "cpu")


@pytest.mark.parametrize(
  ("layer", "words"),
  [
    (Conv(4, (3, 3, 3)), "one or two entries"),
    (Conv(4, (3, 3), strides=(1, 2, 3)), "strides must be one or 2"),
    (Conv(4, (3, 3), kernel_dilation=0), "kernel_dilation must be"),
    (Conv(4, (3, 3), padding="CIRCULAR"), "padding must be .* 'CIRCULAR'"),
    (Conv(4, (3, 3), padding=(1,)), "padding must have 2 entries"),
    (Conv(4, (3, 3), feature_group_count=3), "feature_group_count 3"),
    (Conv(6, (3, 3), feature_group_count=4), "feature_group_count 4"),
  ],
)
def test_errors(layer, words):
  with pytest.raises(ValueError, match=words):
    layer.init(jax.random.key(0), jnp.ones((2, 7, 6, 4)))


def test_too_few_dimensions():
  with pytest.raises(ValueError, match=r"shape \(6, 4\) lack dimensions"):
    Conv(4, (3, 3)).init(jax.random.key(0), jnp.ones((6, 4)))
