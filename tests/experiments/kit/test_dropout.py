import jax
import numpy as np

from experiments.kit.dropout import DropoutNetwork

KEY = jax.random.key(0)


def test_units_are_dropped_where_asked():
  module = DropoutNetwork(2, (64,), dropout=0.5)
  x = np.ones((3, 4), np.float32)

  @jax.jit
  def outputs(key):
    params = module.init(KEY, x)
    apply = lambda **kwargs: module.apply(params, x, rngs={"dropout": key}, **kwargs)  # noqa: E731
    return [apply(**kwargs) for kwargs in ({}, {"drop": True}, {"train": True})]

  first, second = (jax.tree.map(np.asarray, outputs(k)) for k in jax.random.split(KEY))
  np.testing.assert_array_equal(first[0].logits, second[0].logits)
  for i in (1, 2):
    assert not np.array_equal(first[i].logits, second[i].logits)
    dropped = first[i].features == 0
    assert dropped.mean() > (first[0].features == 0).mean() + 0.1
    np.testing.assert_allclose(first[i].features[~dropped], 2 * first[0].features[~dropped])


def test_further_columns_join_the_features_of_an_image():
  module = DropoutNetwork(2, (), shape=(8, 8, 3))
  params = jax.eval_shape(lambda: module.init(KEY, np.zeros((1, 193), np.float32)))["params"]
  assert params["Dense_0"]["kernel"].shape == (513, 2)
