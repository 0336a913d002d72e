import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import silhouette_score

from experiments.kit.datasets import Split, describe
from experiments.kit.sweep import by_seed
from experiments.kit.train import first_reaching
from experiments.labels.look import data, pretraining, probes
from experiments.labels.look.__main__ import PRESETS, table
from jaxlab import losses

CONFIG = PRESETS["smoke"]
DIGITS = describe("digits")


def test_halves_and_probes_are_balanced():
  problem = data.draw_problem(DIGITS, 30, 10, 20, 70, seed=2)
  assert sorted(problem.halves) == [0] * 5 + [1] * 5
  np.testing.assert_array_equal(np.bincount(problem.probe.labels), 2)
  splits = problem.train, problem.validation, problem.probe, problem.test
  assert [len(split.labels) for split in splits] == [30, 10, 20, 70]
  assert len({x.tobytes() for split in splits for x in split.inputs}) == 130
  other = data.draw_problem(DIGITS, 30, 10, 20, 70, seed=3)
  assert (problem.halves != other.halves).any()


@pytest.mark.parametrize("shape", [(40, 7, 2), (40, 5, 6, 1)])
def test_shifts_move_whole_inputs(shape):
  inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  moved = np.asarray(
    jax.jit(lambda key, x: data.shift(key, x, max_shift=1))(jax.random.key(0), inputs)
  )
  axes = range(1, len(shape) - 1)
  padded = np.pad(inputs, [(0, 0), *[(1, 1) for _ in axes], (0, 0)])
  seen = set()
  for before, after in zip(padded, moved):
    fits = [
      start
      for start in np.ndindex(*[3 for _ in axes])
      if np.array_equal(after, before[tuple(slice(s, s + n) for s, n in zip(start, shape[1:-1]))])
    ]
    assert len(fits) == 1
    seen.add(fits[0])
  assert len(seen) == 3 ** len(axes)


def test_losses_are_those_of_their_names():
  rng = np.random.default_rng(0)
  config = dataclasses.replace(CONFIG, channels=(8,), projection=8, max_shift=0)
  inputs = rng.normal(size=(12, 8, 8, 1)).astype(np.float32)
  labels = rng.integers(0, 2, 12)
  rows = [pretraining.Row(pretraining.PROJECTED, 3, 8), pretraining.Row(pretraining.BOTH, 3, 8)]
  rows += [pretraining.Row(name, 3, 8) for name in (pretraining.LOOK, pretraining.SMOOTHED)]

  @jax.jit
  def run(key):
    found = []
    for row in rows:
      module = pretraining.network(config, DIGITS, row)
      params = module.init(key, inputs)["params"]
      loss = pretraining.row_loss(config, module, row)
      batch = Split(inputs, labels)
      out = module.apply({"params": params}, inputs)
      head = params["head"]
      scored = out.projection if row.loss == pretraining.PROJECTED else out.features
      logits = scored @ head["kernel"] + head["bias"]
      found.append((loss(params, {}, batch, key).values, out.projection, logits))
    return found

  found = jax.device_get(run(jax.random.key(0)))
  smooth = 0.9 * np.eye(2)[labels] + 0.1 / 2
  for (values, projection, logits), row in zip(found, rows):
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    plain = -log_probs[np.arange(12), labels]
    if row.loss == pretraining.PROJECTED:
      np.testing.assert_allclose(values, plain, rtol=1e-4, atol=1e-5)
    if row.loss == pretraining.SMOOTHED:
      np.testing.assert_allclose(values, -(smooth * log_probs).sum(-1), rtol=1e-4, atol=1e-5)
    units = projection / np.linalg.norm(projection, axis=-1, keepdims=True)
    votes = np.exp(units @ units.T / config.temperature)
    if row.loss == pretraining.BOTH:  # Without shifts, both views are one.
      twice = votes.sum(1) * 2 - np.diag(votes)
      expected = plain - np.log(np.diag(votes) / twice)
      np.testing.assert_allclose(values, np.tile(expected, 2), rtol=1e-3, atol=1e-3)
    if row.loss == pretraining.LOOK:
      np.fill_diagonal(votes, -1)
      for i in range(12):
        near = np.argsort(-votes[i])[:3]
        right = near[labels[near] == labels[i]]
        if len(right):
          expected = -np.log(votes[i, right].sum() / votes[i, near].sum())
          np.testing.assert_allclose(values[i], expected, rtol=1e-3, atol=1e-4)


def test_rows_without_a_positive_match_a_loop():
  rng = np.random.default_rng(0)
  features, labels = rng.normal(size=(20, 3)), rng.integers(0, 4, 20)
  units = features / np.linalg.norm(features, axis=1, keepdims=True)
  alone = 0
  for i in range(20):
    near = sorted((j for j in range(20) if j != i), key=lambda j: -(units[i] @ units[j]))[:2]
    alone += not any(labels[j] == labels[i] for j in near)
  share = jax.jit(pretraining.without_positive, static_argnums=2)(features, labels, 2)
  np.testing.assert_allclose(share, alone / 20)


def test_evaluations_begin_with_the_random_network():
  problem = data.draw_problem(DIGITS, 30, 10, 10, 70, seed=0)
  row = pretraining.Row(pretraining.CE, 2, 4, followed=True)
  config = dataclasses.replace(CONFIG, learning_rates=(0.0, 1e-3))

  @jax.jit
  def run(key):
    found = pretraining.pretrain(config, DIGITS, row, 4, key, problem)
    module = pretraining.network(config, DIGITS, row)
    start = module.init(jax.random.split(key)[0], problem.train.inputs[:1])
    inputs = jnp.concatenate([problem.probe.inputs, problem.test.inputs])
    return found, module.apply(start, inputs).features

  found, features = jax.device_get(run(jax.random.key(0)))
  assert found["features"].shape == (3, 80, 4)
  np.testing.assert_allclose(found["features"][0], features, rtol=1e-4, atol=1e-5)
  moved = np.abs(found["features"][-1] - features).max() > 1e-6
  assert moved == (found["rate"] > 0)


def test_probes_and_stops():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), 10)
  features = np.eye(3)[np.tile(labels, 2)] + 0.01 * rng.normal(size=(60, 3))
  assert probes.probe_accuracy((0.1, 10.0), features, labels, labels) == 1
  assert np.isnan(probes.probe_accuracy((1.0,), features * np.nan, labels, labels))
  scores = np.array([[0.1, 0.5, 0.4, 0.9], [0.1, 0.2, 0.3, 0.3]])
  np.testing.assert_array_equal(by_seed(first_reaching, scores, np.array([0.5, 0.5])), [1, 3])


def test_every_row_of_the_laptop_has_a_loss():
  config = PRESETS["laptop"]
  rows = table(config, "digits")
  assert len(rows) == 13 and len(set(rows.values())) == 13
  assert len(table(config, "mnist1d")) == 3


def test_look_keeps_the_modes_of_a_class_apart():
  """Four modes, two a class, in the order of XOR; free features of two numbers."""
  rng = np.random.default_rng(0)
  modes = np.repeat(np.arange(4), 24)
  labels = jnp.asarray(modes % 2)
  angles = modes * np.pi / 2 + 0.25 * rng.normal(size=96)
  start = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
  values = {
    "look": lambda x: losses.leave_one_out_knn_loss(x, labels, num_neighbors=10),
    "contrastive": lambda x: losses.supervised_contrastive_loss(x, labels),
  }
  optimizer = optax.adam(0.03)

  @jax.jit
  def learn(features):
    found = {}
    for name, value in values.items():

      def step(carry, _, value=value):
        features, state = carry
        slopes = jax.grad(lambda x: jnp.mean(value(x)))(features)
        changes, state = optimizer.update(slopes, state)
        return (optax.apply_updates(features, changes), state), None

      (end, _), _ = jax.lax.scan(step, (features, optimizer.init(features)), length=400)
      found[name] = end / jnp.linalg.norm(end, axis=1, keepdims=True)
    return found

  for name, features in jax.device_get(learn(start)).items():
    cosines = features @ features.T - 9 * np.eye(96)
    assert (modes[cosines.argmax(1)] % 2 == modes % 2).all()
    for label in range(2):
      own = modes % 2 == label
      kept = silhouette_score(features[own], modes[own])
      assert kept >= 0.7 if name == "look" else kept <= 0.3
