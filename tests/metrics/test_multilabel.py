import jax
import numpy as np
import pytest

from jaxlab import metrics

top1 = jax.jit(metrics.multilabel_top1)


def test_any_of_the_labels_is_right():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(20, 4)).astype(np.float32)
  sets = rng.uniform(size=(20, 4)) < 0.4
  sets[0] = False
  expected = [float(np.argmax(row) in np.flatnonzero(labels)) for row, labels in zip(logits, sets)]
  assert expected[0] == 0 < sum(expected)
  value = top1(logits, sets)
  assert value.dtype == np.float32
  np.testing.assert_array_equal(value, expected)
  spoiled = np.where((np.arange(20) == 3)[:, None] & [True, False, False, False], np.nan, logits)
  np.testing.assert_array_equal(np.isnan(top1(spoiled, sets)), np.arange(20) == 3)


def test_ties_go_to_the_lowest_class():
  logits = np.zeros((20, 4), np.float32)
  sets = np.eye(4, dtype=bool)[np.arange(20) % 4]
  np.testing.assert_array_equal(top1(logits, sets), np.arange(20) % 4 == 0)


def test_errors():
  logits = np.zeros((20, 4), np.float32)
  with pytest.raises(TypeError, match="label_sets must be of type bool"):
    metrics.multilabel_top1(logits, np.zeros((20, 4), np.int32))
  with pytest.raises(ValueError, match="label_sets must have shape"):
    metrics.multilabel_top1(logits, np.zeros((20, 3), bool))
