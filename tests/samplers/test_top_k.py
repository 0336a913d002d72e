import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.samplers.top_k import row_top_k

VALUES = np.random.default_rng(0).integers(0, 6, (8, 12)).astype(np.float32)


def test_matches_a_stable_sort():
  values, indices = jax.jit(row_top_k, static_argnums=1)(VALUES, 5)
  order = np.argsort(-VALUES, axis=-1, kind="stable")[:, :5]
  np.testing.assert_array_equal(indices, order)
  np.testing.assert_array_equal(values, np.take_along_axis(VALUES, order, axis=-1))


def test_under_vmap_and_grad():
  batched = VALUES.reshape(2, 4, 12)
  actual = jax.vmap(jax.vmap(lambda row: row_top_k(row, 3)))(batched)
  for got, expected in zip(actual, row_top_k(VALUES, 3)):
    np.testing.assert_array_equal(got.reshape(8, 3), expected)
  slopes = jax.grad(lambda x: jnp.sum(jnp.where(x < row_top_k(x, 3)[0][..., -1:], 0.0, x)))(VALUES)
  np.testing.assert_array_equal(slopes, np.sort(VALUES, axis=-1)[:, -3:-2] <= VALUES)


@pytest.mark.shipping
@pytest.mark.parametrize("axes", [("data",), (None, "data")])
def test_rows_stay_on_their_devices(axes):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  values = VALUES if axes[0] else np.stack([VALUES, VALUES + 1])
  values = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*axes)))
  compiled = jax.jit(lambda x: row_top_k(2 * x, 3)).lower(values).compile()
  assert "all-gather" not in compiled.as_text()
  for got, expected in zip(compiled(values), jax.lax.top_k(2 * np.asarray(values), 3)):
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("k", [0, 13])
def test_errors(k):
  with pytest.raises(ValueError, match=f"k must lie in .*{k}"):
    row_top_k(VALUES, k)
