import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.datasets import Dataset, Split, describe
from experiments.labels.trilateral_kd import given, learned, problems
from experiments.labels.trilateral_kd.__main__ import PRESETS

CONFIG = dataclasses.replace(PRESETS["smoke"], clean_weights=(1.0, 4.0), virtual_rates=(0.1, 1.0))
DIGITS = describe("digits")
SIZES = 300, 40, 20, 50


def problem_of(seed=0):
  return problems.draw_problem(DIGITS, *SIZES, error_rate=0.9, seed=seed)


def test_half_of_the_classes_have_wrong_labels_and_the_others_a_wrong_teacher():
  problem = problem_of()
  num = len(problem.truth)
  errors = np.zeros((10, 2), int)
  for truth, label, target in zip(problem.truth, problem.labels[:num], problem.targets):
    assert label in (truth, (truth + 1) % 10) and target in (truth, (truth + 1) % 10)
    errors[truth] += label != truth, target != truth
  counts = np.bincount(problem.truth)
  np.testing.assert_array_equal(errors[5:, 0], 0)
  np.testing.assert_array_equal(errors[:5, 1], 0)
  erring = np.concatenate([errors[:5, 0], errors[5:, 1]])
  assert abs(erring.sum() / counts.sum() - 0.9) < 0.06
  assert problem.clean.inputs.shape == (40, 8, 8, 1)
  images = [
    x.tobytes() for x in (*problem.inputs, *problem.validation.inputs, *problem.test.inputs)
  ]
  assert len(images) == sum(SIZES) and len(set(images)) > 0.99 * len(images)


def test_arms_match_a_loop():
  problem, rng = problem_of(), np.random.default_rng(0)
  num, logits = 300, rng.normal(size=(340, 10)).astype(np.float32)
  arms = given.draw_arms(CONFIG, problem, logits)
  assert len(arms) == 1 + 2 * 3 + 4 * 2
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  says, clean = logits.argmax(-1), problem.labels[num:]
  for i in range(num):
    made = [says[num + j] == says[i] for j in range(40)]
    right = [m and says[num + j] == clean[j] for j, m in enumerate(made)]
    expected = {
      given.CONFIDENCE: probs[i, problem.labels[i]],
      given.LOOKUP: (sum(right) + 0.5) / (sum(made) + 1),
      given.ORACLE: says[i] == problem.truth[i] != problem.labels[i],
      given.CLEAN_LABELS: 0,
    }
    for method, ratio in expected.items():
      np.testing.assert_allclose(arms[method, None, 4.0].ratio[i], ratio, rtol=1e-5)
  for (method, _, weight), arm in arms.items():
    noisy = 0 if method == given.CLEAN_ONLY else 1
    np.testing.assert_array_equal(arm.weight, [*[noisy] * num, *[weight] * 40])
    np.testing.assert_array_equal(arm.ratio[num:], 0)
    true = problem.truth if method == given.CLEAN_LABELS else problem.labels[:num]
    np.testing.assert_array_equal(arm.labels, [*true, *clean])


def test_validation_chooses_among_arms_and_settings():
  config = dataclasses.replace(CONFIG, learning_rates=(1e-3, 3e-3), ratios=(0.0, 0.5, 1.0))
  rng = np.random.default_rng(0)
  arms = list(given.draw_arms(config, problem_of(), np.zeros((340, 10), np.float32)))
  scores = {name: rng.random((3, 2, len(arms))) for name in ("validation", "accuracy")}
  table, fixed = given.compare(config, scores, arms)
  for seed in range(3):
    pairs = [
      (scores["validation"][seed, s, a], scores["accuracy"][seed, s, a], *arm[1:])
      for s in range(2)
      for a, arm in enumerate(arms)
      if arm[0] == given.FIXED
    ]
    best = max(pair for pair in pairs if pair[3] > 0)
    np.testing.assert_allclose(table[given.BEST]["accuracy"][seed], best[1])
    np.testing.assert_allclose(table[given.BEST]["chosen/ratio"][seed], best[2])
    best = max(pair for pair in pairs if pair[3] == 0 and pair[2] == 0.5)
    np.testing.assert_allclose(fixed[0.5, given.NOISY]["accuracy"][seed], best[1])


def test_separation_is_the_share_of_pairs_in_order():
  rng = np.random.default_rng(0)
  scores, kind = rng.integers(0, 5, 60) / 5, rng.integers(0, 3, 60)
  pairs = [(a > b) + 0.5 * (a == b) for a in scores[kind == 1] for b in scores[kind == 2]]
  found = jax.jit(problems.separation)(scores, kind == 1, kind == 2)
  np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-5)


def test_a_ratio_that_stays_a_half_is_a_fixed_one():
  problem, rng = problem_of(), np.random.default_rng(0)
  logits = rng.normal(size=(340, 10)).astype(np.float32)
  config = dataclasses.replace(CONFIG, ratios=(0.5,), clean_weights=(4.0,), num_steps=8)
  arms = given.draw_arms(config, problem, logits)
  arm = jax.tree.map(lambda x: x[None], arms[given.FIXED, 0.5, 4.0])
  setting = {**given.settings(config)[0], "virtual rate": 0.1, "ratio rate": 0.0}
  grid = {name: np.array([x]) for name, x in (setting | {"clean weight": 4.0}).items()}

  @jax.jit
  def both(key):
    fixed = given.learn_given(config, DIGITS, key, problem, logits, arm)
    return fixed, learned.learn_ratios(config, DIGITS, "table", key, problem, logits, grid)

  fixed, table = jax.device_get(both(jax.random.key(0)))
  for name in ("accuracy", "validation"):
    np.testing.assert_allclose(table[name], fixed[name][0])
  for values in table["ratios"].values():
    np.testing.assert_allclose(values, 0.5)


def test_ratios_find_who_is_right():
  """Two clusters: of one all labels are wrong, of the other all that the teacher says is."""
  rng = np.random.default_rng(0)
  truth = np.repeat([0, 2], 200).astype(np.int32)

  def draw(truth):
    centers = np.array([[2.0, 0.0], [-2.0, 0.0]], np.float32)
    return centers[truth // 2] + rng.normal(size=(len(truth), 2)).astype(np.float32) / 2

  says, labels = np.where(truth == 2, 3, 0), np.where(truth == 0, 1, 2).astype(np.int32)
  clean = np.tile([0, 2], 20).astype(np.int32)
  split = Split(draw(clean), clean)
  inputs = np.concatenate([draw(truth), split.inputs])
  labels = np.concatenate([labels, clean])
  problem = problems.Problem(inputs, labels, says, truth, split, split)
  logits = 8 * jax.nn.one_hot(np.concatenate([says, clean]), 4)
  sizes = {"num_steps": 300, "num_evaluations": 1, "student": (), "batch_size": 64}
  config = dataclasses.replace(CONFIG, **sizes, learning_rates=(1e-2,), virtual_rates=(1.0,))
  grid = {name: jnp.array([x]) for name, x in learned.grid(config, learned.TGEO)[0].items()}
  run = jax.jit(learned.learn_ratios, static_argnums=(0, 1, 2))
  found = run(config, Dataset("clusters", (2,), 4), "all", jax.random.key(0), problem, logits, grid)
  assert found["ratios"][problems.TEACHER] >= 0.9
  assert found["ratios"][problems.LABEL] <= 0.1
  np.testing.assert_allclose(found["AUROC"], 1)
  np.testing.assert_allclose(found["accuracy"], 1)
