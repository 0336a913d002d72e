"""Unknown rows, and rounds of distillation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit.datasets import FewLabels, Split
from experiments.kit.views import ViewFns
from experiments.labels.wad import problems, students
from experiments.labels.wad.__main__ import Config
from experiments.labels.wad.problems import UNKNOWN
from jaxlab import algorithms, metrics

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_unknown_rows_change_nothing_else(problem):
  config = Config()
  clean, mixed = (problems.draw(config, problem, m, 3) for m in (0.0, 0.8))
  sizes = [[len(part.labels) for part in parts] for parts in (clean, mixed)]
  assert sizes == [[10, 200, 200, 460], [10, 1000, 200, 460]]
  for name in ("labeled", "validation", "test"):
    for a, b in zip(getattr(clean, name), getattr(mixed, name)):
      np.testing.assert_array_equal(a, b)
    assert set(getattr(clean, name).labels) == set(range(5))
  known = mixed.unlabeled.labels != UNKNOWN
  rows = {row.tobytes(): label for row, label in zip(*clean.unlabeled)}
  found = {x.tobytes(): y for x, y, k in zip(*mixed.unlabeled, known) if k}
  assert rows == found and known.sum() == 200 and not known[:200].all()
  if problem == problems.BRIDGES:
    parts = clean.unlabeled.inputs
    for image in mixed.unlabeled.inputs[~known][:5]:
      below = [i for i, part in enumerate(parts) if np.all(part <= image)]
      pairs = [(i, j) for i in below for j in below if i < j]
      assert any(
        np.array_equal(np.maximum(parts[i], parts[j]), image)
        and clean.unlabeled.labels[i] != clean.unlabeled.labels[j]
        for i, j in pairs
      )


def test_bridges_may_be_of_one_pair():
  images = np.eye(6, dtype=np.float32)
  split = Split(images, np.array([0, 1, 2, 0, 1, 2]))
  made = problems.bridges(np.random.default_rng(0), split, 50, 2)
  assert set(made.labels) == {UNKNOWN} and not made.inputs[:, [2, 5]].any()
  np.testing.assert_array_equal(made.inputs[:, [0, 3]].sum(1), 1)
  np.testing.assert_array_equal(made.inputs[:, [1, 4]].sum(1), 1)


def test_midpoints_of_orthogonal_classes_get_little_weight():
  rng = np.random.default_rng(0)
  centers = np.eye(3, 8)
  labels = np.arange(90) % 3
  pairs = (centers[labels] + centers[(labels + 1) % 3]) / np.sqrt(2)

  def near(points):
    return (points + 0.05 * rng.normal(size=points.shape)).astype(np.float32)

  features = np.concatenate([near(centers[labels]), near(pairs)])
  anchors, unknown = near(centers[labels[:12]]), np.arange(180) >= 90

  @jax.jit
  def measure():
    found = algorithms.transfer_pseudo_labels(features, anchors, labels[:12], num_classes=3)
    truth = np.where(unknown, UNKNOWN, np.tile(labels, 2))
    rates = [
      algorithms.invasion_rates(w, found.labels, truth, unknown)
      for w in (found.weights, jnp.ones(180))
    ]
    return metrics.auroc(found.weights, ~unknown), rates

  area, (ours, equal) = measure()
  assert area >= 0.95 and ours.invasion <= 0.25 and equal.invasion == 0.5


def test_rounds_match_a_loop():
  centers = 3 * np.eye(5, 6)

  def rows(labels):
    noise = RNG.normal(size=(len(labels), 6))
    return Split((centers[labels] + noise).astype(np.float32), labels.astype(np.int32))

  labeled, unlabeled = rows(np.arange(5)), rows(np.arange(20) % 5)
  splits = FewLabels(labeled, unlabeled, None, None)
  projections = {"labeled": labeled.inputs, "unlabeled": unlabeled.inputs}
  fractions = (0.2, 0.1)
  method = algorithms.pseudo_label_method(np.zeros(20, np.int32), np.zeros(20))
  trainer = algorithms.semi_supervised_training(
    lambda params, inputs: inputs @ params, method, optax.sgd(0.1), decay=0.5
  )

  views = ViewFns(lambda key, x: x, lambda key, x: x)

  @functools.partial(jax.jit, static_argnums=0)
  def run(num_rounds):
    rounds_config = Config(num_targets=5, num_rounds=num_rounds, round_steps=2, labeled_batch=4,
                           unlabeled_batch=8)  # fmt: skip
    run = students.learn_in_rounds(rounds_config, fractions, students.MARGIN, trainer, views=views)
    return run(jax.random.key(0), trainer.init(jnp.zeros((6, 5))), splits, projections)

  (first, counts), (last, more) = run(1), run(2)
  assert counts["unknown among moved rows"] == more["unknown among moved rows"] == 0
  np.testing.assert_allclose([counts["moved rows"], more["moved rows"]], [0.2, 0.3], rtol=1e-6)
  # What moved in the first round: the rows whose label the averaged student fits best.
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731

  def transferred(anchors, anchor_labels):
    scores = np.full((20, 5), -1.0)
    for c in range(5):
      scores[:, c] = (unit(unlabeled.inputs) @ unit(anchors[anchor_labels == c]).T).max(1)
    ordered = np.sort(scores, axis=1)
    return scores.argmax(1), ordered[:, -1] - ordered[:, -2]

  guess, weights = transferred(labeled.inputs, labeled.labels)
  np.testing.assert_array_equal(first.state.memory.labels, guess)
  np.testing.assert_allclose(first.state.memory.weights, weights, atol=1e-5)
  logits = unlabeled.inputs @ np.asarray(first.state.average)
  costs = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), guess]
  moved = np.argsort(costs)[:4]
  anchors = np.concatenate([labeled.inputs, unlabeled.inputs[moved]])
  guess, weights = transferred(anchors, np.concatenate([labeled.labels, guess[moved]]))
  weights[moved] = 0
  np.testing.assert_array_equal(last.state.memory.labels, guess)
  np.testing.assert_allclose(last.state.memory.weights, weights, atol=1e-5)
