import jax
import numpy as np
import pytest

from jaxlab.metrics import segmentation

C = 3
intersection_and_union = jax.jit(
  segmentation.intersection_and_union, static_argnames=("num_classes", "ignore")
)
mean_iou_by_class = jax.jit(segmentation.mean_iou_by_class, static_argnames="num_classes")


def test_counts_match_a_slow_loop():
  rng = np.random.default_rng(0)
  predictions, targets = rng.integers(0, C, (4, 5, 6)), rng.choice([0, 1, 2, 255], (4, 5, 6))
  got = intersection_and_union(predictions, targets, num_classes=C)
  for n in range(4):
    for c in range(C):
      pairs = [(p, t) for p, t in zip(predictions[n].ravel(), targets[n].ravel()) if t != 255]
      assert got.intersection[n, c] == sum(p == c and t == c for p, t in pairs)
      assert got.union[n, c] == sum(p == c or t == c for p, t in pairs)
  assert got.union.dtype == np.int32


def test_equal_masks_have_iou_one():
  masks = np.array([[[0, 1], [1, 0]]])
  counts = intersection_and_union(masks, masks, num_classes=2)
  iou = mean_iou_by_class(
    counts.intersection[:, 1], counts.union[:, 1], np.array([0]), num_classes=1
  )
  assert iou.mean == 1 and iou.per_class[0] == 1


def test_ignore_may_be_another_value():
  got = intersection_and_union(np.zeros((1, 1, 2), int), np.array([[[0, 7]]]), num_classes=1)
  assert got.union[0, 0] == 2
  got = intersection_and_union(
    np.zeros((1, 1, 2), int), np.array([[[0, 7]]]), num_classes=1, ignore=7
  )
  assert got.union[0, 0] == 1


def test_counts_are_summed_per_class_before_division():
  intersection, union = np.array([1, 3, 2, 0, 9]), np.array([2, 10, 2, 0, 9])
  ids = np.array([0, 0, 2, 3, 7])
  got = mean_iou_by_class(intersection, union, ids, num_classes=5)
  np.testing.assert_allclose(got.per_class, [4 / 12, 0, 1, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(got.mean, (4 / 12 + 1) / 2, rtol=1e-6)


def test_large_counts_are_exact_and_no_seen_class_gives_0():
  big = np.full(3, 2**24 + 1)
  assert mean_iou_by_class(big, big, np.zeros(3, int), num_classes=1).mean == 1
  none = mean_iou_by_class(np.zeros(2, int), np.zeros(2, int), np.zeros(2, int), num_classes=2)
  assert none.mean == 0 and np.all(np.asarray(none.per_class) == 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_narrow_classes(dtype):
  targets = np.array([[[0, 1, 100, 255]]]).astype(dtype)
  got = intersection_and_union(targets, targets, num_classes=101)
  assert got.union.sum() == 3 and got.intersection[0, 100] == 1


def test_sums_beyond_int32():
  counts = np.full(40, 2**30)
  iou = mean_iou_by_class(counts // 4, counts, np.zeros(40, int), num_classes=1)
  assert iou.mean == 0.25


def test_eager_calls_store_nothing_by_class_and_pixel():
  targets = np.zeros((2, 32, 32), np.int32)
  jaxpr = jax.make_jaxpr(lambda t: segmentation.intersection_and_union(t, t, num_classes=50))(
    targets
  )
  assert max(var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars) <= targets.size
  memory = (
    intersection_and_union.lower(targets, targets, num_classes=50).compile().memory_analysis()
  )
  assert memory.temp_size_in_bytes < 4 * targets.nbytes


def test_errors():
  masks = np.zeros((1, 2, 2), int)
  with pytest.raises(ValueError, match="num_classes.*0"):
    segmentation.intersection_and_union(masks, masks, num_classes=0)
  with pytest.raises(ValueError, match="num_classes.*-1"):
    mean_iou_by_class(np.ones(1), np.ones(1), np.zeros(1, int), num_classes=-1)
  with pytest.raises(ValueError, match=r"targets must .* with n = 1, h = 2.* got \[1, 1, 2\]"):
    intersection_and_union(masks, masks[:, :1], num_classes=2)
  with pytest.raises(TypeError, match="predictions must be of type int, got float"):
    intersection_and_union(masks / 2, masks, num_classes=2)
  with pytest.raises(TypeError, match="class_ids must be of type int"):
    mean_iou_by_class([1], [1], [0.5], num_classes=1)
