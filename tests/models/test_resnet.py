from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models.norm import GhostBatchNorm, GroupNorm
from jaxlab.models.resnet import (
  ResNet,
  WideResNet,
  resnet18,
  resnet50,
  resnext29,
  resnext50,
  wide_resnet28_10,
  wide_resnet50_2,
)

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
GROUPS = partial(GroupNorm, num_groups=2)


@pytest.mark.parametrize(
  ("module", "num_features", "num_layers"),
  [
    (ResNet(3, (1, 2), width=4, stem="cifar", norm=partial(GhostBatchNorm, 2)), 8, 3),
    (ResNet(3, (1, 1), "bottleneck", 4, 2, 64), 32, 3),
    (ResNet(3, (1, 1), width=4, stem="cifar", norm=GROUPS), 8, 3),
    (WideResNet(3, depth=10, widen_factor=1), 64, 4),
  ],
  ids=["basic", "bottleneck", "group norm", "wide"],
)
def test_a_classifier(check_classifier, module, num_features, num_layers):
  check_classifier(module, IMAGES, num_features=num_features, num_layers=num_layers)


@pytest.mark.parametrize(
  ("module", "num_params"),
  [
    (resnet18(1000), 11_689_512),
    (resnet50(1000), 25_557_032),
    (resnext50(1000), 25_028_904),
    (wide_resnet50_2(1000), 68_883_240),
    (resnext29(100), 6_900_132),
    (wide_resnet28_10(10), 36_479_194),
  ],
)
def test_published_sizes(module, num_params):
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == num_params


def test_resolution_after_each_stage():
  shapes = []

  def mix(layer, hidden):
    shapes.append(hidden.shape[1])
    return hidden

  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  for module in (resnet18(10), resnet18(10, stem="cifar"), WideResNet(10, 10, 1)):
    jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x, mix=mix), images)
  assert shapes == [64, 16, 8, 4, 2] + [64, 64, 32, 16, 8] + [64, 64, 32, 16]


@pytest.mark.parametrize(
  ("module", "words"),
  [
    (ResNet(2, block="pre"), "block must be one of 'basic', 'bottleneck', got 'pre'"),
    (ResNet(2, stem="tiny"), "stem must be .* 'tiny'"),
    (ResNet(2, groups=2), "got 2 of 64"),
    (WideResNet(2, depth=12), "depth must be .* got 12"),
  ],
)
def test_errors(module, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(module.init, jax.random.key(0), IMAGES)
