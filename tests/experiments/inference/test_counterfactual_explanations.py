import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.counterfactual_explanations import explainers, readers
from experiments.inference.counterfactual_explanations.__main__ import PRESETS
from jaxlab import data

CONFIG = PRESETS["smoke"]
RNG = np.random.default_rng(0)


def test_edits_without_errors_are_the_true_counterfactuals():
  @jax.jit
  def edit():
    keys = jax.random.split(jax.random.key(0), 3)
    reviews = data.sample_reviews(keys[0], num_samples=20)
    concepts = [
      [(reviews.concepts[:, concept] + shift) % 3 for shift in readers.SHIFTS]
      for concept in range(4)
    ]
    true = [
      [data.intervene_reviews(reviews, concept=i, value=x).tokens for x in values]
      for i, values in enumerate(concepts)
    ]
    return readers.changed(keys[1:], reviews, jnp.array([0.0, 1.0])), true

  tokens, true = map(np.asarray, edit())
  assert tokens.shape == (2, 4, 2, 20, 32)
  np.testing.assert_array_equal(tokens[0], true)
  assert np.all(np.any(tokens[1] != true, axis=-1))


def test_naive_bayes_matches_a_loop():
  words, concepts = RNG.integers(0, 2, (30, 5)), RNG.integers(0, 3, (30, 4))
  known = RNG.random((30, 4)) < 0.7
  weights, constants = jax.jit(readers.fit_words)(words, concepts, known)
  for concept in range(4):
    for value in range(3):
      rows = words[known[:, concept] & (concepts[:, concept] == value)]
      rates = [(row.sum() + 0.5) / (len(rows) + 1) for row in rows.T]
      expected = np.log(len(rows) + 1) + sum(np.log(1 - rate) for rate in rates)
      np.testing.assert_allclose(constants[concept, value], expected, rtol=1e-5)
      logits = [np.log(rate / (1 - rate)) for rate in rates]
      np.testing.assert_allclose(weights[:, concept, value], logits, rtol=1e-4, atol=1e-5)


def test_directions_and_concepts_count_equally():
  test, values = RNG.integers(0, 3, (9, 4)), RNG.random((4, 2, 5, 9))
  values[0, 0, 0, 3] = values[2, 1, 0, :] = np.nan
  result = jax.jit(explainers.mean_of_directions)(test, values)
  concepts = []
  for concept in range(4):
    means = []
    for i in range(2):
      for value in range(3):
        chosen = values[concept, i, 0, test[:, concept] == value]
        if np.isfinite(chosen).any():
          means.append(np.nanmean(chosen))
    concepts.append(np.mean(means))
  assert result.shape == (5,)
  np.testing.assert_allclose(result[0], np.mean(concepts), rtol=1e-5)


def test_labels_that_agree_come_first():
  labels = {
    kind: {name: RNG.integers(0, 3, (40, 4)) for name in ("train", "test", "candidates")}
    for kind in ("few", "edits")
  }
  test, candidates = (RNG.integers(0, 3, (40, 4)) for _ in range(2))
  scores = jax.jit(explainers.label_scores)(jax.random.key(0), labels, test, candidates, 2)
  scores = dict(zip(explainers.BY_SCORE, np.asarray(scores)))
  agreements = {
    explainers.TRUE: (test, candidates),
    explainers.LABELS: (labels["few"]["test"], labels["few"]["candidates"]),
    explainers.WITH_EDITS: (labels["edits"]["test"], labels["edits"]["candidates"]),
  }
  others = [0, 1, 3]
  for name, (first, second) in agreements.items():
    agree = (first[:, None, others] == second[None][:, :, others]).sum(-1)
    np.testing.assert_array_equal(np.floor(scores[name]), agree)
  few = labels["few"]

  def propensity(row):
    same = (few["train"][:, others] == row[others]).all(1)
    counts = np.bincount(few["train"][same, 2], minlength=3) + 1
    return np.round(10 * counts.astype(np.float32) / counts.sum()) / 10

  first, second = ([propensity(row) for row in few[name]] for name in ("test", "candidates"))
  apart = np.abs(np.array(first)[:, None] - np.array(second)[None]).sum(-1)
  np.testing.assert_allclose(scores[explainers.PROPENSITY], -apart, atol=2e-4)


def test_sets_of_keys_are_those_of_the_labels():
  """If all texts have one place, the loss counts keys."""
  num = 12
  module = readers.reader(CONFIG, 4 * CONFIG.decoder[0])
  index = np.array([3, 5, 7])

  @jax.jit
  def values(labels, weights):
    rows = jnp.zeros((num, 32), jnp.int32)
    texts = {"train": rows, "edits": jnp.zeros((num, 4, 32), jnp.int32)}
    params = module.init(jax.random.key(0), rows[:1])["params"]
    loss = readers.space_loss(CONFIG, module, texts, labels, weights)
    return loss(params, {}, (rows[index], jnp.asarray(index)), jax.random.key(1)).values

  equal = np.zeros((num, 4), np.int32)
  # Counterfactual and two matches, two edits of confounders, no invalid match.
  np.testing.assert_allclose(
    values(equal, (1.0, 1.0, 1.0, 1.0)), np.log(5 / 3) * np.ones(3), rtol=1e-5
  )
  np.testing.assert_allclose(values(equal, (1.0, 0.0, 1.0, 1.0)), np.log(3) * np.ones(3), rtol=1e-5)
  # No two texts agree in three concepts: all others are invalid, also what stands in for matches.
  unique = np.repeat(np.arange(num)[:, None], 4, axis=1)
  matches = np.tile([0, 1], 3)
  num_invalid = [np.sum(np.concatenate([index, matches]) != i) for i in index]
  expected = [np.log(1 + 2 + n) for n in num_invalid]
  np.testing.assert_allclose(values(unique, (1.0, 1.0, 1.0, 1.0)), expected, rtol=1e-5)
