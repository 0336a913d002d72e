import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics

mean_class_accuracy = jax.jit(metrics.mean_class_accuracy, static_argnames="num_classes")


def test_accuracy_matches_a_loop():
  rng = np.random.default_rng(0)
  labels, predictions = rng.choice([0, 1, 3, 4], 40), rng.integers(0, 5, 40)
  slow = np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)])
  np.testing.assert_allclose(
    mean_class_accuracy(predictions, labels, num_classes=6), slow, rtol=1e-6
  )
  mapped = jax.vmap(lambda p: metrics.mean_class_accuracy(p, jnp.asarray(labels), num_classes=6))
  np.testing.assert_allclose(mapped(jnp.stack([predictions, labels])), [slow, 1.0], rtol=1e-6)


def test_accuracy_does_not_depend_on_class_counts():
  labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
  once = mean_class_accuracy(predictions, labels, num_classes=2)
  rows = np.array([0, 1, *[2, 3] * 50])
  often = mean_class_accuracy(predictions[rows], labels[rows], num_classes=2)
  assert once == often == 0.75


def test_other_labels_and_empty_classes_are_left_out():
  labels, predictions = np.array([0, 2, 7, -1]), np.array([0, 1, 0, 0])
  assert mean_class_accuracy(predictions, labels, num_classes=4) == 0.5
  assert mean_class_accuracy(predictions[2:], labels[2:], num_classes=4) == 0.0
  assert mean_class_accuracy(predictions[:1], labels[:1], num_classes=4) == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_narrow_labels(dtype):
  labels = np.array([0, 1, 100], dtype)
  assert mean_class_accuracy(labels, labels, num_classes=300) == 1


def test_errors():
  with pytest.raises(ValueError, match="num_classes"):
    mean_class_accuracy(jnp.zeros(1, int), jnp.zeros(1, int), num_classes=0)
  with pytest.raises(ValueError, match=r"labels must have shape \[n\] with n = 2, got \[1\]"):
    mean_class_accuracy(jnp.zeros(2, int), jnp.zeros(1, int), num_classes=2)
  with pytest.raises(TypeError, match="predictions must be of type int"):
    mean_class_accuracy(jnp.zeros((2, 3)), jnp.zeros(2, int), num_classes=3)
