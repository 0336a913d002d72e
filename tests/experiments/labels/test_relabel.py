import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.labels.relabel import scenes, students
from experiments.labels.relabel.__main__ import PRESETS, search_space, validate
from jaxlab import augment
from jaxlab.augment.crops import CropOutput

CONFIG = PRESETS["smoke"]
RNG = np.random.default_rng(0)


def test_canvases_are_those_of_their_seed():
  first, again, other = (scenes.draw(CONFIG, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first["test"].images, again["test"].images)
  assert not np.array_equal(first["test"].images, other["test"].images)
  assert [len(first[name].images) for name in ("own", "train", "validation", "test")] == [
    CONFIG.num_canvases,
    CONFIG.num_train,
    CONFIG.num_validation,
    CONFIG.num_test,
  ]
  assert (first["own"].label_sets.sum(1) == 1).all() and first["test"].label_sets.sum(1).max() > 1
  # Strokes are ink outside of the digit's square.
  assert (first["own"].images[..., 0] > 0)[first["own"].label_maps < 0].any()


def test_strokes_are_segments():
  images = jax.jit(lambda key: scenes.strokes(key, 5, size=24, num_strokes=1))(jax.random.key(0))
  centers = np.arange(24) + 0.5
  for image in np.asarray(images)[..., 0]:
    assert 0 < image.max() <= 1 and image.min() == 0
    places = np.stack(np.meshgrid(centers, centers, indexing="ij"), -1)[image > 0.9]
    spread = np.linalg.svd(places - places.mean(0))[1] / np.sqrt(len(places))
    # Two pixels wide at most where the ink is full, and up to eight long.
    assert spread[1] < 0.7 and spread[0] < 8 / np.sqrt(12)


def test_visible_areas_match_a_count_of_fine_pixels():
  label_maps = RNG.integers(-1, 10, (3, 4, 4))
  boxes = np.array([[0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9], [0.5, 0.5, 0.55, 0.55]], np.float32)
  found = jax.jit(scenes.visible_areas)(label_maps, boxes)
  fine = 100
  places = (np.arange(4 * fine) + 0.5) / (4 * fine)
  for row, (top, left, bottom, right) in enumerate(boxes):
    inside = np.outer((places > top) & (places < bottom), (places > left) & (places < right))
    classes = label_maps[row].repeat(fine, 0).repeat(fine, 1)
    expected = [(inside & (classes == c)).sum() / fine**2 for c in range(10)]
    np.testing.assert_allclose(found[row], expected, atol=0.02)


def test_objects_are_found_in_their_quarters():
  label_maps = np.full((2, 8, 8), -1, np.int8)
  label_maps[0, 0:3, 1:4] = 7  # Center (1.5, 2.5): cell (0, 1) of 4 by 4.
  label_maps[0, 5:8, 4:7] = 0  # Center (6.5, 5.5): cell (3, 2).
  label_maps[1, 1:4, 5:8] = 3  # Center (2.5, 6.5): cell (1, 3).
  classes, rows, columns = map(
    np.asarray, jax.jit(scenes.object_cells, static_argnums=1)(label_maps, 4)
  )
  np.testing.assert_array_equal(classes, [[7, -1, -1, 0], [-1, 3, -1, -1]])
  assert (rows[0, 0], columns[0, 0]) == (0, 1)
  assert (rows[0, 3], columns[0, 3]) == (3, 2)
  assert (rows[1, 1], columns[1, 1]) == (1, 3)


def test_labels_are_those_of_the_crop():
  """One object in one cell of the map: a crop of it sees it, a crop beside it sees nothing."""
  maps = np.zeros((2, 6, 6, 10), np.float32)
  maps[:, 1, 1, 4] = 10.0
  boxes = np.array([[1 / 6, 1 / 6, 2 / 6, 2 / 6], [0.5, 0.5, 1, 1]], np.float32)
  pixels = np.full((2, 24, 24), -1, np.int8)
  pixels[:, 4:8, 4:8] = 4
  sparse = augment.sparsify_label_map(maps, num_labels=5)
  single = np.array([9, 9])
  lesson = students.Lesson(np.zeros((2, 24, 24, 1), np.float32), single, pixels, *sparse)
  crop = CropOutput(lesson.images, boxes)
  init = jax.jit(students.SceneNet(CONFIG.annotator_widths).init)
  variables = init(jax.random.key(0), lesson.images)

  @jax.jit
  def label(kind):
    setting = {"smoothing": 0.1, "labels": kind}
    return students.targets_of(CONFIG, lesson, crop, setting, variables)

  found = {name: np.asarray(label(i)) for i, name in enumerate(students.LABELS)}
  everything = np.full(10, 0.1)
  seen = np.eye(10)[4]
  np.testing.assert_allclose(found[students.LOCAL_MULTI][1], everything, rtol=1e-5)
  assert found[students.LOCAL_MULTI][0, 4] > 0.99
  np.testing.assert_allclose(found[students.LOCAL_SINGLE][0], seen)
  np.testing.assert_allclose(found[students.GLOBAL_SINGLE], [seen, seen])
  whole = np.exp(maps[0].mean((0, 1)))
  np.testing.assert_allclose(found[students.GLOBAL_MULTI][1], whole / whole.sum(), rtol=1e-4)
  np.testing.assert_allclose(found[students.ORACLE], [seen, everything], rtol=1e-5)
  smoothed = 0.9 * np.eye(10)[9] + 0.01
  np.testing.assert_allclose(found[students.ONE_HOT], [smoothed, smoothed], rtol=1e-5)
  np.testing.assert_allclose(found[students.DISTILLED].sum(1), 1, rtol=1e-5)


def test_a_map_averages_to_the_logits():
  module = students.SceneNet((2, 3))
  images = RNG.random((3, 8, 8, 1)).astype(np.float32)

  @jax.jit
  def both(key):
    variables = module.init(key, images)
    maps = students.label_maps_of(module, variables, images)
    return maps, module.apply(variables, images).logits

  maps, logits = both(jax.random.key(0))
  assert maps.shape == (3, 2, 2, 10)
  np.testing.assert_allclose(np.mean(maps, axis=(1, 2)), logits, atol=1e-5)


def test_mean_average_precision_matches_a_loop():
  scores, sets = RNG.normal(size=(30, 4)), RNG.random((30, 4)) < 0.3
  sets[:, 2] = False
  values = []
  for c in (0, 1, 3):
    order = np.argsort(-scores[:, c])
    hits, precisions = 0, []
    for rank, row in enumerate(order):
      if sets[row, c]:
        hits += 1
        precisions.append(hits / (rank + 1))
    values.append(np.mean(precisions))
  np.testing.assert_allclose(students.mean_average_precision(scores, sets), np.mean(values))
  assert np.isnan(students.mean_average_precision(np.full((30, 4), np.nan), sets))


def test_all_rows_have_the_scales_and_one_hot_rows_whole_scenes():
  config = PRESETS["laptop"]
  space = search_space(config)
  pairs = {m: [(s["scale"], s["smoothing"]) for s in settings] for m, settings in space.items()}
  more = *config.scales, 1.0
  assert pairs.pop(students.SMOOTHED) == [*itertools.product(more, config.smoothing)]
  for method in (students.ONE_HOT, students.OWN):
    assert pairs.pop(method) == [(scale, 0.0) for scale in more]
  assert all(row == [(scale, 0.0) for scale in config.scales] for row in pairs.values())
  assert [m for m, settings in space.items() if settings[0]["cutmix"]] == [students.CUTMIX]


@pytest.mark.parametrize(
  "change", [{"scales": (0.5, 1.0)}, {"object_scale": (1.0, 2.0)}, {"size": 26}, {"num_labels": 11}]
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(PRESETS["laptop"], **change))
