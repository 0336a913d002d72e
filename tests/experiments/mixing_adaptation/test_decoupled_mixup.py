import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.decoupled_mixup import __main__ as experiment
from experiments.mixing_adaptation.decoupled_mixup import policies, semi_supervised
from jaxlab import losses, models


def test_pairs_mix_two_classes_equally():
  rng = np.random.default_rng(0)
  test = Split(rng.normal(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8) % 4)
  config = experiment.Config(num_pairs=30)
  *unchanged, pairs = experiment.splits_and_pairs(config, (test, test))
  assert unchanged == [test, test]
  assert pairs.inputs.shape == (30, 8, 8, 1)
  assert (pairs.labels[:, 0] != pairs.labels[:, 1]).all()
  halves = (test.inputs[:, None] + test.inputs[None]) / 2
  gaps = np.abs(halves[None] - pairs.inputs[:, None, None]).max((3, 4, 5))
  assert (gaps.min((1, 2)) < 1e-6).all()
  for gap, labels in zip(gaps, pairs.labels):
    first, second = np.unravel_index(gap.argmin(), gap.shape)
    assert {test.labels[first], test.labels[second]} == set(labels)


@pytest.mark.parametrize("policy", [None, "mixup", "box", "manifold", "saliency"])
def test_every_policy_makes_one_loss_per_example(policy):
  config, digits = experiment.Config(crop=1), datasets.describe("digits")
  batch = Split(np.ones((8, 8, 8, 1), np.float32), np.arange(8))
  module = policies.network(config, digits)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), batch.inputs))
  objective = functools.partial(losses.decoupled_mixup_loss, eta=0.1)
  loss = policies.mixing_loss(config, digits, policy, objective)
  output = jax.eval_shape(loss, variables.pop("params"), variables, batch, jax.random.key(0))
  assert output.values.shape == (8,)
  assert jax.tree.structure(output.model_state) == jax.tree.structure(variables)


def test_saliency_is_for_images():
  config = experiment.Config()
  images = policies.policies(config, datasets.describe("digits"))
  assert list(images) == [None, "mixup", "box", "manifold", "saliency"]
  assert images["manifold"] == 2.0
  signals = policies.policies(config, datasets.describe("mnist1d"))
  assert list(signals) == [None, "mixup", "box", "manifold"]


def test_weak_views_shift_and_strong_views_blank():
  signals = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40, 1)), jnp.float32)
  weak = np.asarray(jax.jit(semi_supervised.shifted)(jax.random.key(0), signals))
  shifts = {
    next(s for s in range(-2, 3) if np.array_equal(np.roll(x, s, 0), y))
    for x, y in zip(np.asarray(signals), weak)
  }
  assert shifts == set(range(-2, 3))
  strong = np.asarray(jax.jit(semi_supervised.strong_view)(jax.random.key(0), signals))
  blank = (strong == 0).sum((1, 2))
  assert blank.min() == 0 and 8 <= blank.max() <= 10  # A quarter of 40 at most.


@pytest.mark.parametrize("eta", [None, 0.1])
def test_the_averaged_network_has_the_shape_of_the_network(eta):
  module = models.ConvNet(10, widths=(2,), strides=(2,))
  signals = Split(np.zeros((8, 40, 1), np.float32), np.arange(8))
  config = experiment.Config(semi_batch=4, semi_steps=10)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), signals.inputs))
  state = {
    "step": jax.ShapeDtypeStruct((), jnp.int32),
    "average": variables,
    "batch_stats": variables["batch_stats"],
  }
  loss = semi_supervised.semi_supervised_loss(config, module, signals, eta)
  batch = (signals.inputs[:4],)
  output = jax.eval_shape(loss, variables["params"], state, batch, jax.random.key(0))
  assert output.values.shape == (4,)
  assert jax.tree.structure(output.model_state) == jax.tree.structure(state)
