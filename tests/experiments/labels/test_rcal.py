import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.kit.datasets import Split
from experiments.labels.rcal import encoder, heads, problems
from experiments.labels.rcal.__main__ import PRESETS, validate
from jaxlab import algorithms, metrics

CONFIG = PRESETS["smoke"]
COUNTS = problems.gaussian_counts(CONFIG)
RNG = np.random.default_rng(0)


def test_tasks_are_long_tailed_with_clean_rows_beside():
  for counts, draw in (
    (COUNTS, problems.gaussian_task),
    (problems.image_counts(CONFIG), problems.image_task),
  ):
    task, again, other = (draw(CONFIG, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.bincount(task.truth), counts)
    np.testing.assert_array_equal(task.given[0], task.truth)
    assert 0 < np.mean(task.given[1] != task.truth) < 0.6
    assert len(set(np.bincount(task.validation.labels))) == 1
    np.testing.assert_array_equal(task.given, again.given)
    np.testing.assert_array_equal(task.test.inputs, again.test.inputs)
    assert not np.array_equal(task.inputs, other.inputs)
  # The sets of digits have no image in common, and are all that there are.
  parts = task.inputs, task.validation.inputs, task.test.inputs
  assert sum(map(len, parts)) == 1797


def test_tail_classes_have_nearly_the_covariance_of_a_head():
  config = dataclasses.replace(
    PRESETS["laptop"], num_dims=4, max_count=4000, imbalance=8.0, num_classes=3
  )
  task = problems.gaussian_task(config, 0)
  covariances = [np.cov(task.inputs[task.truth == c].T) for c in range(3)]
  size = np.linalg.norm(covariances[0])
  assert all(np.linalg.norm(x - covariances[0]) < 0.6 * size for x in covariances[1:])
  config = dataclasses.replace(config, perturbation=0.0)
  task = problems.gaussian_task(config, 0)
  covariances = [np.cov(task.inputs[task.truth == c].T) for c in range(3)]
  assert np.linalg.norm(covariances[2] - covariances[0]) < 0.15 * np.linalg.norm(covariances[0])


def test_a_head_minimizes_its_weighted_cross_entropy():
  features, labels = RNG.normal(size=(60, 3)).astype(np.float32), RNG.integers(0, 3, 60)
  weights = RNG.uniform(size=60).astype(np.float32) * (np.arange(60) % 3 > 0)
  offsets = np.array([0.5, 0.0, -1.0], np.float32)
  points = heads.Points(features, labels, weights, offsets)
  fit = lambda points, x: heads.fit_head(points, 0.02, num_steps=400, learning_rate=0.1)(x)  # noqa: E731
  found = jax.jit(fit)(points, features)

  def objective(flat):
    kernel, bias = flat[:9].reshape(3, 3), flat[9:]
    total = 0.0
    for x, label, weight in zip(features, labels, weights):
      logits = x @ kernel + bias + offsets
      total += weight * (np.log(np.exp(logits).sum()) - logits[label])
    return total / weights.sum() + 0.01 * (kernel**2).sum()

  best = minimize(objective, np.zeros(12)).x
  expected = features @ best[:9].reshape(3, 3) + best[9:]
  centered = lambda x: x - x.mean(1, keepdims=True)  # noqa: E731
  np.testing.assert_allclose(centered(np.asarray(found)), centered(expected), atol=0.02)


def test_neighbors_vote_for_their_size():
  features, labels = (
    RNG.normal(size=(40, 2)).astype(np.float32),
    RNG.choice(3, 40, p=[0.7, 0.2, 0.1]),
  )
  relabel = jax.jit(lambda x, y: heads.neighbor_labels(x, y, num_classes=3, num_neighbors=5))
  for row, found in enumerate(np.asarray(relabel(features, labels))):
    distances = ((features - features[row]) ** 2).sum(1)
    distances[row] = np.inf
    votes = np.zeros(3)
    for near in np.argsort(distances)[:5]:
      votes[labels[near]] += 1 / (labels == labels[near]).sum()
    assert found == votes.argmax()


def test_draws_fill_all_classes_and_an_oracle_removes_wrong_labels():
  task = problems.gaussian_task(CONFIG, 0)
  given, space = task.given[1], heads.search_space(CONFIG)

  @jax.jit
  def points(setting):
    return heads.sampled_points(CONFIG, jax.random.key(0), task, given, setting, COUNTS)

  raw, noted = points(space[heads.RAW][0])
  assert noted["wrong labels found"] == noted["removed labels that are wrong"] == 0
  sizes = np.bincount(raw.labels, weights=raw.weights)
  np.testing.assert_array_equal(sizes, np.maximum(COUNTS[0], np.bincount(given)))
  np.testing.assert_array_equal(raw.features[: len(given)], task.inputs)
  chosen, noted = points(space[heads.ORACLE][0])
  np.testing.assert_array_equal(chosen.weights[: len(given)], given == task.truth)
  assert noted["wrong labels found"] == noted["removed labels that are wrong"] == 1
  clean, _ = points(space[heads.CLEAN][0])
  np.testing.assert_array_equal(clean.labels[: len(given)], task.truth)


def test_all_classes_count_equally():
  labels = np.repeat(np.arange(7), [9, 8, 7, 5, 4, 2, 1]).astype(np.int32)
  guesses = np.where(RNG.random(len(labels)) < 0.6, labels, 0)
  split = Split(np.eye(7, dtype=np.float32)[guesses], labels)
  task = problems.Task(split.inputs, labels, labels[None], split, split)
  scores = jax.jit(lambda task: heads.score(lambda x: 2 * x, task, 7))(task)
  shares = np.array([(guesses[labels == c] == c).mean() for c in range(7)])
  np.testing.assert_allclose(scores["classes"], shares, rtol=1e-6)
  for name, part in (("accuracy", shares), ("head", shares[:2]), ("middle", shares[2:5])):
    np.testing.assert_allclose(scores[name], part.mean(), rtol=1e-5)
  np.testing.assert_allclose(scores["tail"], shares[5:].mean(), rtol=1e-5)


def test_principal_components_are_white():
  features = (RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 5)) + 3).astype(np.float32)
  mean, basis = jax.jit(encoder.principal_axes, static_argnums=1)(features, 3)
  found = (features - mean) @ basis
  np.testing.assert_allclose(found.T @ found / 200, np.eye(3), atol=1e-3)


def test_heads_lend_a_covariance_and_outliers_go():
  """What the method promises, where it has to hold."""
  dim, counts = 16, [500, 500, 6]
  root = RNG.normal(size=(dim, dim)) / 4
  labels = np.repeat(np.arange(3), counts)
  features = (8 * RNG.normal(size=(3, dim)))[labels] + RNG.normal(size=(1006, dim)) @ root.T
  group, far = RNG.normal(size=(61, dim)), np.zeros(dim)
  far[0] = 10 * np.sqrt(dim)
  group[60] = far

  @jax.jit
  def measure(features, labels, group):
    fitted = algorithms.fit_class_gaussians(features, labels, num_classes=3)
    is_tail = algorithms.tail_classes(fitted.count)
    calibrated = algorithms.calibrate_tail_gaussians(*fitted, is_tail)
    errors = [jnp.linalg.norm(x.covariance[2] - root @ root.T) for x in (fitted, calibrated)]
    kept = metrics.class_inlier_weights(features, labels, num_classes=3)
    alone = metrics.class_inlier_weights(group, jnp.zeros(61, jnp.int32), num_classes=2)
    return errors, kept, alone

  (raw, calibrated), kept, alone = measure(features.astype(np.float32), labels, group)
  assert calibrated < 0.6 * raw
  assert np.mean(np.asarray(kept)[:500]) >= 0.98
  assert alone[60] == 0


@pytest.mark.parametrize(
  "change", [{"noise_rates": (0.2, 0.4)}, {"num_classes": 2}, {"image_count": 170}]
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(PRESETS["laptop"], **change))
