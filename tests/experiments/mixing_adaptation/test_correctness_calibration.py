import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import correctness_calibration as experiment


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("correctness_calibration") / "run"
  arguments = [
    "correctness_calibration",
    "--preset=smoke",
    "--mesh=data:2",
    f"--workdir={directory}",
  ]
  assert common.execute(experiment, arguments) == 0
  return directory


def test_smoke_judges_every_calibrator(smoke):
  stored = json.loads((smoke / "results.json").read_text())
  rows = stored["quantities"]
  assert set(rows) == set(experiment.METHODS)
  for row in rows.values():
    for part in ("clean", "corrupted"):
      for quantity in ("ECE", "KS", "Brier", "AUROC", "SCE"):
        assert 0 <= row[f"MLP, {part}/{quantity}"]["mean"] <= 1
  assert rows["none"]["MLP, clean/mean temperature"]["mean"] == 1
  assert {claim["holds"] for claim in stored["claims"]} == {None}
  assert (smoke / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_the_step_of_a_preset_compiles_from_shapes(preset, capsys):
  arguments = ["correctness_calibration", f"--preset={preset}", "--dry_run", "--mesh=data:2"]
  assert common.execute(experiment, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_sets_are_the_clean_one_and_every_corruption():
  config = experiment.PRESETS["smoke"]
  test = experiment.load(config)[2]
  sets = dict(experiment.shifted(config, test, jax.random.key(0)))
  assert list(sets) == ["clean", "blur 4", "drift 4"]
  for split in sets.values():
    assert split.inputs.shape == test.inputs.shape
    np.testing.assert_array_equal(np.bincount(split.labels), np.bincount(test.labels))


def test_transforms_keep_shapes():
  signal = jnp.arange(5.0)[None, :, None]
  delayed, blurred, damped = experiment.transforms(signal)
  np.testing.assert_array_equal(delayed[0, :, 0], [0, 0, 0, 1, 2])
  np.testing.assert_allclose(damped, 0.7 * signal)
  assert blurred.shape == signal.shape
  images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
  turned, grey, _ = experiment.transforms(images)
  np.testing.assert_array_equal(turned[:, 0], images[:, :, -1])
  assert grey.shape == images.shape and np.all(grey[..., 0] == grey[..., 1])


def test_pooled_diagram_weighs_sets_by_their_counts():
  one = np.array([[0.5, 0.9], [0.0, 1.0], [1, 0]])
  two = np.array([[0.6, 0.9], [1.0, 0.5], [3, 2]])
  expected = [[0.575, 0.9], [0.75, 0.5], [4, 2]]
  np.testing.assert_allclose(experiment._pooled(np.stack([one, two])), expected)


def test_paper_data_say_how_to_get_them(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    experiment.load(experiment.PRESETS["paper"])
