import json

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from experiments import common
from experiments.mixing_adaptation import repri, repri_coco

SMOKE = repri.PRESETS["smoke"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("repri") / "run"
  arguments = ["repri", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(repri, arguments) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method_at_every_number_of_shots(smoke):
  quantities = smoke["quantities"]
  assert set(quantities) == {*repri.variants(SMOKE, 1), repri.ORACLE, "base network"}
  for method in repri.variants(SMOKE, 1):
    for condition in ("clean", "shift"):
      for shots in SMOKE.shots:
        assert 0 <= quantities[method][f"{condition}/mean IoU, {shots} shots"]["mean"] <= 1
  assert len(smoke["claims"]) == 2 * len(SMOKE.shots) + 5
  assert all(claim["holds"] is None for claim in smoke["claims"])


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_the_step_of_a_preset_compiles_from_shapes(preset, capsys):
  arguments = ["repri", f"--preset={preset}", "--dry_run", "--mesh=data:2"]
  if preset == "paper":
    arguments += ["--size=33", "--batch_size=2"]
  assert common.execute(repri, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_the_papers_data_must_be_on_disk(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="coco"):
    repri_coco.scene_batches(split="train", batch_size=1, size=33, seed=0)


def test_tasks_show_their_class_in_distinct_scenes():
  rng = np.random.default_rng(0)
  masks = rng.choice([0, 9, 10, 11, 12], (60, 16, 16), p=[0.6, 0.1, 0.1, 0.1, 0.1])
  masks[:20][masks[:20] == 9] = 0
  tasks = repri.draw_tasks(SMOKE, masks, 3, np.random.default_rng(1))
  assert tasks["scenes"].shape == (SMOKE.num_tasks, 4)
  assert set(tasks["class"]) == set(SMOKE.novel_classes)
  for chosen, family in zip(tasks["scenes"], tasks["class"]):
    assert len(set(chosen)) == 4
    assert all(np.any(masks[i, ::2, ::2] == family + 1) for i in chosen)


def test_upsampling_is_bilinear_with_aligned_corners():
  maps = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  rows, columns = np.meshgrid(np.linspace(0, 3, 9), np.linspace(0, 4, 9), indexing="ij")
  np.testing.assert_allclose(
    repri.upsample(maps, 9), map_coordinates(maps, [rows, columns], order=1), atol=1e-5
  )


def test_panoptic_segments_become_classes():
  segments = np.array([[5, 5, 300], [70_000, 5, 0]])
  rgb = np.stack([segments % 256, segments // 256 % 256, segments // 256**2], -1)
  example = {
    "image": np.full((2, 3, 3), 255, np.uint8),
    "panoptic_image": rgb.astype(np.uint8),
    "panoptic_objects": {
      "id": np.array([5, 300, 70_000]),
      "label": np.array([7, 90, 2]),
      "is_crowd": np.array([False, False, True]),
    },
  }
  scene = repri_coco.to_scene(example, 6)
  np.testing.assert_array_equal(scene["mask"][::3, ::2], [[8, 8, 0], [255, 8, 0]])
  np.testing.assert_allclose(scene["image"], 1.0, rtol=1e-6)
