import jax
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from experiments.mixing_adaptation.repri import base, coco, tasks
from experiments.mixing_adaptation.repri.__main__ import PRESETS
from jaxlab import data

SMOKE = PRESETS["smoke"]


def test_the_papers_data_must_be_on_disk(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="coco"):
    coco.scene_batches("train", 33, batch_size=1)


def test_tasks_show_their_class_in_distinct_scenes():
  rng = np.random.default_rng(0)
  masks = rng.choice([0, 9, 10, 11, 12], (60, 16, 16), p=[0.6, 0.1, 0.1, 0.1, 0.1])
  masks[:20][masks[:20] == 9] = 0
  novel = SMOKE.novel_classes
  drawn = tasks.draw_tasks(SMOKE, novel, 8, masks, 3, np.random.default_rng(1))
  assert drawn["scenes"].shape == (8, 4)
  assert set(drawn["class"]) == set(novel)
  for chosen, family in zip(drawn["scenes"], drawn["class"]):
    assert len(set(chosen)) == 4
    assert all(np.any(masks[i, ::2, ::2] == family + 1) for i in chosen)


def test_upsampling_is_bilinear_with_aligned_corners():
  maps = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  rows, columns = np.meshgrid(np.linspace(0, 3, 9), np.linspace(0, 4, 9), indexing="ij")
  np.testing.assert_allclose(
    jax.jit(tasks.upsample, static_argnums=1)(maps, 9),
    map_coordinates(maps, [rows, columns], order=1),
    atol=1e-5,
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
  scene = coco.to_scene(example, 6)
  np.testing.assert_array_equal(scene["mask"][::3, ::2], [[8, 8, 0], [255, 8, 0]])
  np.testing.assert_allclose(scene["image"], 1.0, rtol=1e-6)


def test_base_masks_number_the_base_classes_and_keep_what_is_ignored():
  masks = np.array([[[0, 9], [3, 3]], [[255, 1], [1, 1]]]).repeat(2, 1).repeat(2, 2)
  labels = base.base_batch(None, masks, SMOKE).labels
  np.testing.assert_array_equal(labels, [[[0, 0], [3, 3]], [[255, 1], [1, 1]]])


def test_batches_of_the_base_training_go_on_where_they_stopped(monkeypatch):
  def example(i):
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:8, :, 0] = 1
    objects = {"id": np.array([1]), "label": np.array([i % 8]), "is_crowd": np.array([False])}
    image = np.full((16, 16, 3), i, np.uint8)
    return {"image": image, "panoptic_image": rgb, "panoptic_objects": objects}

  monkeypatch.setattr(data, "load_source", lambda *_, **__: [example(i) for i in range(24)])
  unbroken = base.coco_batches(SMOKE, seed=0)
  next(unbroken)
  state, second = unbroken.get_state(), next(unbroken)
  resumed = base.coco_batches(SMOKE, seed=0)
  resumed.set_state(state)
  batch = next(resumed)
  np.testing.assert_array_equal(batch.inputs, second.inputs)
  np.testing.assert_array_equal(batch.labels, second.labels)
  assert batch.inputs.shape == (8, 16, 16, 3) and batch.labels.shape == (8, 8, 8)
  assert np.all(batch.labels[:, 0] > 0) and not np.any(batch.labels[:, -1])
