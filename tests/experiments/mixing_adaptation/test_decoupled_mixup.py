import json

import jax
import numpy as np
import pytest
from experiments.classification import Split

from experiments import common, report
from experiments.mixing_adaptation import decoupled_mixup as experiment
from jaxlab import training

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


def test_pairs_mix_two_classes_equally():
  rng = np.random.default_rng(0)
  test = Split(rng.normal(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8) % 4)
  pairs = experiment._test_pairs(experiment.Config(num_pairs=30), test)
  assert pairs.inputs.shape == (30, 8, 8, 1)
  assert (pairs.labels[:, 0] != pairs.labels[:, 1]).all()
  means = (test.inputs[:, None] + test.inputs[None]) / 2
  gaps = np.abs(means[None] - pairs.inputs[:, None, None]).max((3, 4, 5))
  assert (gaps.min((1, 2)) < 1e-6).all()


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
