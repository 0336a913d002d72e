import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.classification import Split

from experiments.mixing_adaptation import decoupled_mixup
from experiments.mixing_adaptation import decoupled_mixup_policies as policies
from jaxlab import losses, models


def images_task():
  rng = np.random.default_rng(0)
  split = Split(rng.normal(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8) % 4)
  module = models.ConvNet(4, widths=(2, 2), kernel_size=(3, 3), strides=(1, 1))
  return policies.Task("digits", split, split, module, 1)


@pytest.mark.parametrize("name", ["mixup", "box", "manifold", "saliency"])
def test_every_policy_makes_a_batch_of_losses(name):
  task = images_task()
  variables = dict(jax.eval_shape(task.module.init, jax.random.key(0), task.train.inputs))
  objective = functools.partial(losses.decoupled_mixup_loss, eta=0.1)
  policy = policies.Policy(name, 1.0, ())
  config = decoupled_mixup.Config(crop=1)
  loss = policies.mixing_loss(config, task, policy, objective)
  found = jax.eval_shape(loss, variables.pop("params"), variables, task.train, jax.random.key(0))
  assert found.values.shape == (8,)
  assert jax.tree.structure(found.model_state) == jax.tree.structure(variables)


def test_saliency_is_for_images():
  config = decoupled_mixup.Config()
  assert [p.name for p in policies.policies(config, images_task())][-1] == "saliency"
  signals = images_task()._replace(train=Split(np.zeros((8, 40, 1)), np.zeros(8)))
  found = policies.policies(config, signals)
  assert [p.name for p in found] == ["mixup", "box", "manifold"]
  assert found[0].etas == (0.0, 0.1, 0.01, 0.5, 1.0) and found[1].etas == (0.0, 0.1)


def test_crops_shift_and_flip():
  images = jnp.asarray(np.random.default_rng(0).normal(size=(60, 4, 4, 1)), jnp.float32)
  found = policies._crop_and_flip(jax.random.key(0), images, 1)
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kinds = set()
  for image, view in zip(padded, np.asarray(found)):
    options = {
      (y, x, flip): image[y : y + 4, x : x + 4][:, :: -1 if flip else 1]
      for y in range(3)
      for x in range(3)
      for flip in (0, 1)
    }
    kinds.add(next(kind for kind, option in options.items() if np.array_equal(option, view)))
  assert len(kinds) > 12  # Of 18.
