import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, report
from experiments.classification import Split
from experiments.mixing_adaptation import decoupled_mixup as experiment
from jaxlab import losses, models, training

ROWS = {"no mixing", "mixup, mixup's loss", "mixup, decoupled 0.1"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("decoupled_mixup") / "run"
  arguments = ["decoupled_mixup", "--preset=smoke", f"--workdir={directory}"]
  assert common.execute(experiment, arguments) == 0
  assert (directory / "figure.png").exists()
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_losses_and_the_panel(smoke):
  semi = {f"FixMatch{mix}" for mix in ("", " + mixup, mixup's loss", " + mixup, decoupled 0.1")}
  assert set(smoke["quantities"]) == ROWS | semi
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())


def test_claims_are_made_and_not_judged_on_one_seed(smoke):
  texts = [claim["text"] for claim in smoke["claims"]]
  assert len(texts) == 4
  assert report.is_timing(texts[2])
  assert all(claim["holds"] is None for claim in smoke["claims"])


def test_the_step_of_the_paper_compiles_from_shapes(capsys):
  arguments = ["decoupled_mixup", "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(experiment, arguments) == 0
  assert "parameters" in capsys.readouterr().out
  mesh = training.make_mesh({"data": 2})
  update, state, batch = experiment.abstract(experiment.PRESETS["paper"], mesh)
  metrics = jax.eval_shape(update, state, batch)[1]
  assert metrics["loss"].shape == ()


def images_task():
  rng = np.random.default_rng(0)
  split = Split(rng.normal(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8) % 4)
  module = models.ConvNet(4, widths=(2, 2), kernel_size=(3, 3), strides=(1, 1))
  return experiment.Task("digits", split, split, module, 1)


@pytest.mark.parametrize("name", ["mixup", "box", "manifold", "saliency"])
def test_every_policy_makes_a_batch_of_losses(name):
  task = images_task()
  variables = dict(jax.eval_shape(task.module.init, jax.random.key(0), task.train.inputs))
  objective = functools.partial(losses.decoupled_mixup_loss, eta=0.1)
  policy = experiment.Policy(name, 1.0, ())
  config = experiment.Config(crop=1)
  loss = experiment.mixing_loss(config, task, policy, objective)
  found = jax.eval_shape(loss, variables.pop("params"), variables, task.train, jax.random.key(0))
  assert found.values.shape == (8,)
  assert jax.tree.structure(found.model_state) == jax.tree.structure(variables)


def test_saliency_is_for_images():
  config = experiment.Config()
  assert [p.name for p in experiment.policies(config, images_task())][-1] == "saliency"
  signals = images_task()._replace(train=Split(np.zeros((8, 40, 1)), np.zeros(8)))
  found = experiment.policies(config, signals)
  assert [p.name for p in found] == ["mixup", "box", "manifold"]
  assert found[0].etas == (0.0, 0.1, 0.01, 0.5, 1.0) and found[1].etas == (0.0, 0.1)


def test_pairs_mix_two_classes_equally():
  test = images_task().test
  pairs = experiment._test_pairs(experiment.Config(num_pairs=30), test)
  assert pairs.inputs.shape == (30, 8, 8, 1)
  assert (pairs.labels[:, 0] != pairs.labels[:, 1]).all()
  means = (test.inputs[:, None] + test.inputs[None]) / 2
  gaps = np.abs(means[None] - pairs.inputs[:, None, None]).max((3, 4, 5))
  assert (gaps.min((1, 2)) < 1e-6).all()


def test_weak_views_shift_and_strong_views_blank():
  signals = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40, 1)), jnp.float32)
  weak = experiment._shifted(jax.random.key(0), signals)
  shifts = {
    next(s for s in range(-2, 3) if np.array_equal(np.roll(x, s, 0), y))
    for x, y in zip(np.asarray(signals), np.asarray(weak))
  }
  assert shifts == set(range(-2, 3))
  blank = (experiment._strong_view(jax.random.key(0), signals) == 0).sum((1, 2))
  assert blank.min() == 0 and 8 <= blank.max() <= 10  # A quarter of 40 at most.


def test_crops_shift_and_flip():
  images = jnp.asarray(np.random.default_rng(0).normal(size=(60, 4, 4, 1)), jnp.float32)
  found = experiment._crop_and_flip(jax.random.key(0), images, 1)
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


def test_claims_compare_a_loss_with_a_loss():
  rng = np.random.default_rng(0)
  better, worse = 0.8 + 0.01 * rng.random((2, 4))
  rows = {
    "no mixing": {"digits/accuracy": worse},
    "mixup, mixup's loss": {
      "digits/accuracy": worse,
      "digits/top-2 of mixtures": worse,
      "digits/step seconds": worse,
    },
    "mixup, decoupled 0.1": {
      "digits/accuracy": better + 0.05,
      "digits/top-2 of mixtures": better + 0.05,
      "digits/step seconds": worse * 1.2,
    },
    "mixup, decoupled 1": {"digits/accuracy": worse, "digits/top-2 of mixtures": worse},
    "FixMatch": {"semi-supervised/accuracy": worse},
    "FixMatch + mixup, mixup's loss": {"semi-supervised/accuracy": better},
    "FixMatch + mixup, decoupled 0.1": {"semi-supervised/accuracy": better + 0.1},
  }
  holds = [claim.holds for claim in experiment.claims(common.Results(rows))]
  assert holds == [True, True, False, True]


def test_the_averaged_network_follows_the_network():
  module = models.ConvNet(10, widths=(2,), strides=(2,))
  signals = Split(np.random.default_rng(0).normal(size=(8, 40, 1)).astype(np.float32), np.arange(8))
  config = experiment.Config(semi_batch=4, semi_steps=10)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), signals.inputs))
  state = {
    "step": jax.ShapeDtypeStruct((), jnp.int32),
    "average": variables,
    "batch_stats": variables["batch_stats"],
  }
  for eta in (None, 0.1):
    loss = experiment.semi_supervised_loss(config, module, signals, eta)
    batch = (signals.inputs[:4],)
    found = jax.eval_shape(loss, variables["params"], state, batch, jax.random.key(0))
    assert found.values.shape == (4,)
    assert jax.tree.structure(found.model_state) == jax.tree.structure(state)
