from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from experiments.kit.contrastive import contrastive_loss, pair_loss


class Output(NamedTuple):
  projection: jax.Array


class Numbered(nn.Module):
  """Maps both views of an image to the unit vector of its number."""

  def __call__(self, images):
    return Output(jax.nn.one_hot(np.arange(len(images)) % (len(images) // 2), 4))


def test_every_view_finds_the_other_one_of_its_image():
  images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
  loss = jax.jit(contrastive_loss(Numbered(), temperature=0.5))
  values = loss({}, {}, (images,), jax.random.key(0)).values
  # Of the seven others one has cosine 1, and six have cosine 0.
  np.testing.assert_allclose(values, np.full(4, np.log(np.exp(2) + 6) - 2), rtol=1e-5)


class Features(NamedTuple):
  logits: jax.Array


class Flat(nn.Module):
  """Features are pixels."""

  @nn.compact
  def __call__(self, images, *, train):
    return Features(images.reshape(len(images), -1))


def test_pairs_are_views_of_one_image_or_of_neighbors_in_the_batch():
  images = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
  loss = jax.jit(pair_loss(Flat(), lambda key, images: images))
  found = loss({}, {}, (images,), jax.random.key(0)).values
  flat = images.reshape(3, 4)
  for i in range(3):
    same, other = flat[i] @ flat[i], flat[i] @ flat[i - 1]
    expected = (np.log1p(np.exp(-same)) + np.log1p(np.exp(other))) / 2
    np.testing.assert_allclose(found[i], expected, rtol=1e-5)
