import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from experiments.bayes.gpicl import baselines, networks, tasks
from experiments.bayes.gpicl.__main__ import PRESETS, validate
from experiments.kit.datasets import Split
from jaxlab import samplers

CONFIG = PRESETS["smoke"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def task():
  return tasks.draw(CONFIG, 3)


def test_parts_share_neither_rows_nor_classes(task):
  assert [len(part.labels) for part in task] == [36, 18, 54, 18]
  assert task.signals.inputs.shape == (18, 40)
  np.testing.assert_array_equal(np.bincount(task.unseen.labels), [18] * 3)
  images = [{row.tobytes() for row in part.inputs} for part in task[:3]]
  assert sum(map(len, images)) == len(set.union(*images)) >= 106
  np.testing.assert_allclose(task.train.inputs.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(task.train.inputs.std(), 1, rtol=1e-5)
  other = {row.tobytes() for row in tasks.draw(CONFIG, 4).signals.inputs}
  assert not other & {row.tobytes() for row in task.signals.inputs}
  with pytest.raises(ValueError, match="rows"):
    tasks.draw(dataclasses.replace(CONFIG, train_per_class=170, held_out_per_class=9), 0)


def test_own_tasks_are_those_of_the_training(task):
  keys = tasks.keys_of(jax.random.key(0))

  @jax.jit
  def draw():
    known = jax.random.fold_in(keys.tasks, 0)
    sizes = {"input_dim": 64, "output_dim": 4, "num_classes": 3}
    return tasks.test_sequences(CONFIG, keys, task, 1), samplers.projection_task(known, **sizes)

  batch, (projection, permutation) = jax.tree.map(np.asarray, draw())
  assert tasks.conditions_of(1)[-1] == tasks.OWN and batch.inputs.shape == (4, 40, 6, 4)
  projected = task.held_out.inputs @ projection.T
  for inputs, labels in zip(batch.inputs[3].reshape(-1, 4), batch.labels[3].ravel()):
    row = np.argmin(((projected - inputs) ** 2).sum(1))
    np.testing.assert_allclose(projected[row], inputs, atol=1e-5)
    assert permutation[task.held_out.labels[row]] == labels
  new = batch.inputs[0].reshape(-1, 4)
  assert ((projected[None] - new[:, None]) ** 2).sum(-1).min(1).max() > 1e-3


@pytest.fixture(scope="module")
def sequence():
  """Twelve examples of three classes, and the scores of all baselines."""
  inputs = RNG.normal(size=(12, 3)).astype(np.float32)
  labels = np.array([0, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1, 2])

  @jax.jit
  def scores(inputs, labels):
    labels = jax.nn.one_hot(labels, 3)
    regression = [
      baselines.logistic_scores(inputs, labels, c, num_steps=300) for c in (0.1, 1.0, 10.0)
    ]
    few = baselines.logistic_scores(inputs, labels, 1.0, num_steps=20)
    return (
      baselines.neighbor_scores(inputs, labels),
      baselines.mean_scores(inputs, labels),
      regression,
      few,
    )

  return inputs, labels, jax.tree.map(np.asarray, scores(inputs, labels))


def test_neighbors_and_means_see_the_examples_before(sequence):
  inputs, labels, (nearest, means, *_) = sequence
  np.testing.assert_array_equal(nearest[0], 0)
  assert (means[0] == -np.inf).all()
  for i in range(1, 12):
    gaps = [np.sum((inputs[i] - inputs[j]) ** 2) for j in range(i)]
    np.testing.assert_array_equal(nearest[i], np.eye(3)[labels[np.argmin(gaps)]])
    for k in range(3):
      rows = [inputs[j] for j in range(i) if labels[j] == k]
      expected = -np.sum((inputs[i] - np.mean(rows, axis=0)) ** 2) if rows else -np.inf
      np.testing.assert_allclose(means[i, k], expected, rtol=1e-4)


def test_logistic_regression_is_that_of_scikit_learn(sequence):
  inputs, labels, (*_, regressions, few) = sequence
  for strength, found in zip((0.1, 1.0, 10.0), regressions):
    np.testing.assert_array_equal(found[0], 0)
    for i in range(6, 12):
      model = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(inputs[:i], labels[:i])
      expected = model.predict_proba(inputs[i : i + 1])[0]
      np.testing.assert_allclose(special.softmax(found[i]), expected, atol=0.01)
  # Fits that begin at the one before need few steps.
  gaps = special.softmax(few, axis=1) - special.softmax(regressions[1], axis=1)
  np.testing.assert_allclose(gaps[6:], 0, atol=0.01)


def test_names_are_kept_less_and_less():
  rows = networks.rows_of(PRESETS["laptop"])
  half = PRESETS["laptop"].num_steps / 2
  for name, expected in (
    (networks.BIASED, [0.8, 0.4, 0, 0]),
    (networks.UNLIMITED, [0, 0, 0, 0]),
    (networks.NAMED, [1, 1, 1, 1]),
  ):
    setting = rows[name].setting(1e-3)
    shares = networks.share_named(setting, np.array([0, half / 2, half, 2 * half]))
    np.testing.assert_allclose(shares, expected)


def test_sizes_are_those_of_the_networks():
  config = PRESETS["laptop"]
  sizes = {kind: networks.size_of(config, kind) for kind in (networks.LSTM, networks.OUTER)}
  assert [size["state"] for size in sizes.values()] == [256, 48**2]
  inputs, d = 8 + 3, 128
  expected = (inputs + d + 1) * 4 * d + (d + 1) * 3
  assert sizes[networks.LSTM]["parameters"] == expected > sizes[networks.OUTER]["parameters"]


def test_a_network_learns_to_learn_from_separated_clusters():
  """The implementation check: fresh clusters, six standard deviations apart, in fresh tasks."""
  config = dataclasses.replace(
    CONFIG, num_classes=2, sequence_length=16, window=8, output_dim=4, embed_dim=32, num_layers=2,
    num_steps=300, batch_size=32, eval_every=100, num_warmup=50, num_test=200, num_watched=64,
  )  # fmt: skip

  def clusters():
    direction = RNG.normal(size=4)
    labels = np.arange(200, dtype=np.int32) % 2
    means = np.outer(6 * labels - 3, direction / np.linalg.norm(direction))
    inputs = means + RNG.normal(size=(200, 4))
    return Split((inputs / inputs.std()).astype(np.float32), labels)

  setting = networks.Row().setting(2e-3)
  train = functools.partial(networks.measure, config, networks.TRANSFORMER, 0, setting=setting)

  @jax.jit
  def run(key, task):
    batch = tasks.test_sequences(config, tasks.keys_of(key), task)
    inputs, labels = batch.inputs[1], batch.labels[1]
    nearest = jax.vmap(baselines.neighbor_scores)(inputs, jax.nn.one_hot(labels, 2))
    return train(key, task), tasks.score(config, nearest, labels)

  task = tasks.Task(*(clusters() for _ in range(4)))
  found, nearest = jax.tree.map(np.asarray, run(jax.random.key(0), task))
  assert tasks.conditions_of()[1] == tasks.UNSEEN
  assert found["last accuracy"][1] >= 0.9
  assert nearest["last accuracy"] >= 0.95  # Few projections bring the means together.
  assert np.abs(found["first accuracy"] - 0.5).max() < 0.11
  assert found["leaves the plateau in time"] == 1 and found["bad_step"] == -1


@pytest.mark.parametrize(
  "change", [{"num_classes": 6}, {"window": 13}, {"num_tasks": (4, 4)}, {"eval_every": 7}]
)
def test_impossible_sizes_are_named(change):
  name = "num_steps" if "eval_every" in change else next(iter(change))
  with pytest.raises(ValueError, match=name):
    validate(dataclasses.replace(PRESETS["laptop"], **change))
