import json

import jax
import numpy as np
import pytest

from experiments import common, report
from experiments.mixing_adaptation import ghost_batch_norm as experiment


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("ghost_batch_norm") / "run"
  arguments = ["ghost_batch_norm", "--preset=smoke", "--mesh=data:1", f"--workdir={directory}"]
  assert common.execute(experiment, arguments) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_recipe(smoke):
  assert set(smoke["quantities"]) == set(experiment.recipes(experiment.Config()))
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert len(smoke["claims"]) == 10
  assert all(claim["holds"] is None for claim in smoke["claims"])


def results_of(accuracies, slopes):
  rows = {}
  for i, method in enumerate(experiment.recipes(experiment.Config())):
    seeds = np.array([-1e-3, 0.0, 1e-3])
    rows[method] = {
      "accuracy/test": accuracies[i] + seeds * (i + 1),
      "drift/slope": np.full(3, slopes[i]),
      "drift/R2 of the log law": np.full(3, 0.99),
    }
  return report.Results(rows)


def test_claims_judge_what_the_paper_says():
  good = results_of([0.9, 0.8, 0.84, 0.87, 0.899, 0.8, 0.8], [1.0, 0.5, 0.9, 1.2, 1.2, 2.0, 1.0])
  assert all(claim.holds for claim in experiment.claims(good))
  bad = results_of([0.8, 0.9, 0.84, 0.83, 0.79, 0.8, 0.8], [1.0, 1.5, 0.9, 1.3, 1.2, 2.0, 1.0])
  holds = [claim.holds for claim in experiment.claims(bad)]
  assert holds == [False] * 4 + [True] * 4 + [False] * 2


def test_regimes():
  config = experiment.Config()
  recipes = experiment.recipes(config)
  small, large, regime = (
    experiment._schedule(config, recipes[name])
    for name in (experiment.SMALL, experiment.LARGE, experiment.REGIME)
  )
  assert small == regime
  assert large[1] * config.large_batch == small[1] * config.small_batch
  np.testing.assert_array_equal(experiment._logged_steps(17), [1, 2, 3, 4, 6, 8, 11, 16])


def test_augmentation_crops_and_mirrors():
  images = np.random.default_rng(0).uniform(1.0, 2.0, (4, 5, 5, 1)).astype(np.float32)
  crops = np.asarray(experiment._augmented(jax.random.key(0), images, pad=1))
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for n in range(4):
    candidates = [padded[n, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    candidates += [c[:, ::-1] for c in candidates]
    assert any(np.array_equal(crops[n], c) for c in candidates)


def test_the_step_of_the_laptop_compiles_from_shapes(capsys):
  arguments = ["ghost_batch_norm", "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(experiment, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_the_paper_trains_a_resnet_44():
  update, state, batch = experiment.abstract(experiment.PRESETS["paper"], None)
  after, metrics = jax.eval_shape(update, state, batch)
  assert sum(x.size for x in jax.tree.leaves(after.params)) == 661_338
  assert "loss" in metrics
