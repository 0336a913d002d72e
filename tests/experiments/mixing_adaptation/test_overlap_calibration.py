import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import classification, common
from experiments.mixing_adaptation import overlap_calibration as experiment
from experiments.mixing_adaptation import overlap_problems
from jaxlab import metrics

METHODS = (*experiment.methods(experiment.PRESETS["smoke"]), experiment.TUNED)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("overlap_calibration") / "run"
  arguments = ["overlap_calibration", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(experiment, arguments) == 0
  return directory


def test_smoke_measures_every_setting(smoke):
  stored = json.loads((smoke / "results.json").read_text())
  rows = stored["quantities"]
  assert set(rows) == {
    *(name + suffix for name in METHODS for suffix in ("", experiment.SCALED)),
    "closed form",
    "Bayes",
  }
  for title in ("digits, noise 0", "digits, noise 0.25", "gaussians, 3 classes"):
    scaled, raw = (rows[name][f"{title}/NLL"]["mean"] for name in ("ERM + temperature", "ERM"))
    assert scaled < raw + 0.05
    assert rows["ERM"][f"{title}/error"] == rows["ERM + temperature"][f"{title}/error"]
  assert rows["Bayes"]["digits, noise 0/NLL"]["mean"] == 0
  values = [entry["mean"] for row in rows.values() for entry in row.values()]
  assert np.isfinite(values).all()
  assert {claim["holds"] for claim in stored["claims"]} == {None}
  assert (smoke / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_the_step_of_a_preset_compiles_from_shapes(preset, capsys):
  arguments = ["overlap_calibration", f"--preset={preset}", "--dry_run", "--mesh=data:2"]
  assert common.execute(experiment, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_parts_of_a_noisy_problem_are_disjoint_and_share_a_law():
  config = dataclasses.replace(
    experiment.PRESETS["smoke"],
    datasets=("digits",),
    num_train=(900,),
    num_held_out=(300,),
    num_test=(500,),
  )
  setting = overlap_problems.settings(config)[0]
  problem = setting.draw(np.float32(0.5), jax.random.key(1))
  rows = np.concatenate([problem.train.inputs, problem.held_out.inputs]).reshape(1200, -1)
  pool = classification.digits_splits(1200, 500)[0].inputs.reshape(1200, -1)
  np.testing.assert_array_equal(np.sort(rows, 0), np.sort(pool, 0))
  labels, clean = np.asarray(problem.test.labels), np.asarray(problem.clean_labels)
  assert abs(np.mean(labels != clean) - 0.5) < 0.1
  for own in range(10):
    assert len(set(labels[clean == own]) - {own}) == 1
  np.testing.assert_allclose(problem.bayes_nll, np.log(2), rtol=1e-6)


def test_an_uninformed_miss_is_the_scaled_interpolators():
  overlap = np.linspace(0, 1, 5)
  np.testing.assert_allclose(
    experiment.uniform_miss_nll(overlap / 2, 7),
    metrics.interpolator_temperature_scaled_nll(overlap, 7),
    rtol=1e-5,
  )


def test_paper_data_say_how_to_get_them(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    overlap_problems.settings(experiment.PRESETS["paper"])


def test_tuned_mixup_is_chosen_on_held_out_rows():
  config = dataclasses.replace(experiment.PRESETS["smoke"], mixed=(2, 4))
  held_out = np.array([[0.1, 0.1, 0.5, 0.4], [0.1, 0.1, 0.3, 0.4]])
  scores = {
    "held-out NLL": np.stack([held_out, held_out], -1),
    "NLL": np.arange(16).reshape(2, 4, 2),
  }
  tuned = experiment._with_tuned_mixup(config, scores)["NLL"]
  np.testing.assert_array_equal(tuned[:, :4], scores["NLL"])
  np.testing.assert_array_equal(tuned[:, 4], [[6, 7], [12, 13]])
