import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models.vit import ViT

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def test_a_classifier(check_classifier):
  module = ViT(3, embed_dim=6, num_layers=2, num_heads=2)
  check_classifier(module, IMAGES, num_features=6, num_layers=3)


def test_patch_order_has_no_effect_without_positions():
  module = ViT(3, patch_size=4, embed_dim=6, num_layers=1, num_heads=2)
  variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
  apply = jax.jit(module.apply)
  blocks = IMAGES.reshape(4, 2, 4, 2, 4, 3)
  swapped = blocks[:, ::-1].reshape(IMAGES.shape)
  assert not np.allclose(apply(variables, swapped).logits, apply(variables, IMAGES).logits)
  params = variables["params"]
  params = params | {"positions": jnp.zeros_like(params["positions"])}
  bare = {"params": params}
  np.testing.assert_allclose(
    apply(bare, swapped).logits, apply(bare, IMAGES).logits, rtol=1e-4, atol=1e-5
  )


def test_size_of_the_tiny_model():
  module = ViT(1000, patch_size=16, embed_dim=192, num_layers=12, num_heads=3)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  assert sum(x.size for x in jax.tree.leaves(variables)) == 5_717_416


@pytest.mark.parametrize(
  ("module", "words"),
  [
    (ViT(2, patch_size=3), "patch_size 3 does not divide"),
    (ViT(2, embed_dim=7), "num_heads 3 does not divide embed_dim 7"),
  ],
)
def test_errors(module, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(module.init, jax.random.key(0), IMAGES)
