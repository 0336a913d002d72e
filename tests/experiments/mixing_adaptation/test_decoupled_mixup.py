import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.decoupled_mixup import policies, semi_supervised
from experiments.mixing_adaptation.decoupled_mixup.__main__ import Config
from jaxlab import models

ALL = ("mixup", "box", "manifold", "saliency")


@pytest.mark.parametrize("policy", [None, "mixup", "box", "manifold", "saliency"])
def test_every_policy_makes_one_loss_per_example(policy):
  config, digits = Config(crop=1, policies=ALL, alphas=(1.0,) * 4), datasets.describe("digits")
  batch = Split(np.ones((8, 8, 8, 1), np.float32), np.arange(8))
  module = policies.network(config, digits)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), batch.inputs))
  setting = {"alpha_scale": 1.0, "eta": 0.1, "coupled": 0.1}
  loss = policies.mixing_loss(config, digits, policy, setting)
  output = jax.eval_shape(loss, variables.pop("params"), variables, batch, jax.random.key(0))
  assert output.values.shape == (8,)
  assert jax.tree.structure(output.model_state) == jax.tree.structure(variables)


def test_decoupled_and_coupled_terms_add_to_the_loss_of_mixup():
  config, mnist1d = Config(), datasets.describe("mnist1d")
  rng = np.random.default_rng(0)
  batch = Split(rng.normal(size=(8, 40, 1)).astype(np.float32), np.arange(8) % 4)
  scores = rng.normal(size=(8, 10)).astype(np.float32)

  @jax.jit
  def values(eta, coupled):
    setting = {"alpha_scale": 1.0, "eta": eta, "coupled": coupled}
    apply = lambda inputs: models.ModelOutput(inputs, scores)  # noqa: E731
    mixture = policies.mix(config, mnist1d, "mixup", 1.0, apply, jax.random.key(0), batch)
    return policies.loss_of_labels(mixture, setting), mixture

  plain, (_, a, b, ratio) = jax.device_get(values(0.0, 0.0))
  log_probs = np.log(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))
  rows = np.arange(8)
  cost_a, cost_b = -log_probs[rows, a], -log_probs[rows, b]
  np.testing.assert_allclose(plain, ratio * cost_a + (1 - ratio) * cost_b, rtol=1e-5)
  coupled, decoupled = (np.asarray(values(*weights)[0]) for weights in ((0.0, 0.5), (0.5, 0.0)))
  extra = np.where(a == b, 0, 0.5 * (cost_a + cost_b))
  np.testing.assert_allclose(coupled - plain, extra, rtol=1e-4, atol=1e-5)
  assert (decoupled - plain <= extra + 1e-5).all() and (decoupled > plain)[a != b].all()


def test_a_probe_counts_mixtures_whose_labels_are_on_top(monkeypatch):
  config, mnist1d = Config(), datasets.describe("mnist1d")
  labels = np.arange(200) % 10
  test = Split(np.zeros((200, 40, 1), np.float32), labels)

  def mix(config, dataset, policy, alpha, apply, key, batch):
    other = (batch.labels + jnp.arange(100) % 3) % 10  # A third mixes a class with itself.
    scores = 2.0 * jax.nn.one_hot(batch.labels, 10) + jax.nn.one_hot(other, 10)
    wrong = jnp.arange(100) % 3 == 2
    scores += 3.0 * wrong[:, None] * jax.nn.one_hot((batch.labels + 5) % 10, 10)
    return policies.Mixture(scores, batch.labels, other, jnp.full(100, 0.5))

  monkeypatch.setattr(policies, "mix", mix)
  share = policies.both_on_top(config, mnist1d, "mixup", {}, jax.random.key(0), test)
  np.testing.assert_allclose(share, 0.5, atol=0.01)


def test_saliency_is_for_images():
  config = Config(policies=ALL, alphas=(1.0, 1.0, 2.0, 1.0))
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


@pytest.mark.parametrize("unlabeled, eta", [(False, None), (True, None), (True, 0.1)])
def test_the_averaged_network_has_the_shape_of_the_network(unlabeled, eta):
  module = models.ConvNet(10, widths=(2,), strides=(2,))
  signals = Split(np.zeros((8, 40, 1), np.float32), np.arange(8))
  config = Config(semi_batch=4, semi_steps=10)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), signals.inputs))
  state = {
    "step": jax.ShapeDtypeStruct((), jnp.int32),
    "average": variables,
    "batch_stats": variables["batch_stats"],
  }
  loss = semi_supervised.semi_supervised_loss(config, module, signals, unlabeled=unlabeled, eta=eta)
  batch = (signals.inputs[:4],)
  output = jax.eval_shape(loss, variables["params"], state, batch, jax.random.key(0))
  assert output.values.shape == (4,)
  assert jax.tree.structure(output.model_state) == jax.tree.structure(state)
