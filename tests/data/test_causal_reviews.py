import jax
import numpy as np
import pytest

from jaxlab import data
from jaxlab.data import causal_reviews

SIZE = 20_000


@pytest.fixture(scope="module")
def reviews():
  return jax.device_get(data.sample_reviews(jax.random.key(0), num_samples=SIZE))


def intervene(reviews, **intervention):
  return jax.device_get(data.intervene_reviews(reviews, **intervention))


def edit(seed, reviews, **intervention):
  return jax.device_get(data.noisy_review_edit(jax.random.key(seed), reviews, **intervention))


def same_rows(*batches):
  """Which rows of two batches are equal in everything."""
  return np.logical_and.reduce(
    [(a == b).reshape(SIZE, -1).all(1) for a, b in zip(*batches, strict=True)]
  )


def test_concepts_follow_the_model(reviews):
  kind, food, service = reviews.exogenous % 5, reviews.concepts[:, 0], reviews.concepts[:, 1]
  probs = causal_reviews._VALUE_PROBS
  for u in range(5):
    rows = reviews.concepts[kind == u]
    for concept in (0, 2, 3):
      shares = np.bincount(rows[:, concept], minlength=3) / len(rows)
      np.testing.assert_allclose(shares, probs[u, concept], atol=0.035)
    for value in range(3):
      own = probs[u, 1] * 0.5 + 0.5 * (np.arange(3) == value)
      chosen = service[(kind == u) & (food == value)]
      np.testing.assert_allclose(np.bincount(chosen, minlength=3) / len(chosen), own, atol=0.08)


def test_label_is_the_noisy_score(reviews):
  score = (reviews.concepts - 1) @ np.array([1.0, 0.8, 0.5, 0.3])
  clean = np.searchsorted([-1.2, -0.4, 0.4, 1.2], score)
  accuracy = (clean == reviews.label).mean()
  shares = np.bincount(reviews.label, minlength=5) / SIZE
  # A good classifier is neither perfect nor near the majority.
  assert 0.6 < accuracy < 0.9 and accuracy > shares.max() + 0.2 and shares.min() > 0.05
  assert abs((reviews.label - clean).mean()) < 0.02


def test_texts_show_each_mentioned_concept_once(reviews):
  first = causal_reviews._ADJECTIVE
  assert reviews.tokens.shape == (SIZE, 32) and reviews.tokens.max() < data.REVIEW_VOCAB_SIZE
  assert np.all(reviews.tokens[:, [0, -1]] == [1, 2])
  for row in range(300):
    adjectives = [token - first for token in reviews.tokens[row] if token >= first]
    shown = {token // 12: token // 4 % 3 for token in adjectives}
    assert len(shown) == len(adjectives)
    concepts = reviews.concepts[row]
    assert shown == {i: v for i, v in enumerate(concepts) if v != 1}
  paraphrases = {token for row in reviews.tokens for token in row if token >= first}
  assert len(paraphrases) == 4 * 2 * 4


def test_the_order_of_sentences_is_that_of_the_type(reviews):
  first = causal_reviews._ADJECTIVE
  full = np.flatnonzero((reviews.concepts != 1).all(1))
  for row in full[:200]:
    order = [(token - first) // 12 for token in reviews.tokens[row] if token >= first]
    assert order == list(causal_reviews._ORDERS[reviews.exogenous[row] % 5])


def test_interventions_change_one_concept_and_keep_the_noise(reviews):
  concept, value = np.arange(SIZE) % 4, np.arange(SIZE) % 3
  result = intervene(reviews, concept=concept, value=value)
  expected = reviews.concepts.copy()
  expected[np.arange(SIZE), concept] = value
  np.testing.assert_array_equal(result.concepts, expected)
  np.testing.assert_array_equal(result.exogenous, reviews.exogenous)
  # At most the five words of one sentence differ, and at least its adjective.
  differs = (result.tokens != reviews.tokens).sum(1)
  changed = reviews.concepts[np.arange(SIZE), concept] != value
  assert np.all(differs[~changed] == 0) and np.all((differs[changed] > 0) & (differs[changed] <= 5))
  np.testing.assert_array_equal(result.label[~changed], reviews.label[~changed])
  # The noise is the same, so a better concept never lowers the rating.
  better = value > reviews.concepts[np.arange(SIZE), concept]
  assert np.all(result.label[better] >= reviews.label[better])
  assert result.label[better].mean() > reviews.label[better].mean() + 0.3


def test_the_current_value_is_the_identity(reviews):
  for concept in range(4):
    result = intervene(reviews, concept=concept, value=reviews.concepts[:, concept])
    assert same_rows(result, reviews).all()


def test_edits_without_errors_are_interventions(reviews):
  for concept, value in ((0, 2), (3, 1)):
    exact = intervene(reviews, concept=concept, value=value)
    assert same_rows(edit(1, reviews, concept=concept, value=value, error_rate=0.0), exact).all()


def test_errors_of_edits(reviews):
  exact = intervene(reviews, concept=1, value=2)
  result = edit(1, reviews, concept=1, value=2, error_rate=0.4)
  moved = reviews.concepts[:, 1] != 2
  right, left = same_rows(result, exact), same_rows(result, reviews)
  for part, share in ((right & moved, 0.6), (left & moved, 0.2)):
    assert abs(part.sum() / moved.sum() - share) < 0.02
  others = (result.concepts != exact.concepts)[moved & ~right & ~left]
  np.testing.assert_array_equal(others.sum(1), 1)
  assert not others[:, 1].any() and np.all(np.abs(others[:, [0, 2, 3]].mean(0) - 1 / 3) < 0.04)
  np.testing.assert_array_equal(result.exogenous, reviews.exogenous)
  assert 0.02 < 1 - same_rows(edit(2, reviews, concept=1, value=2), exact).mean() < 0.11


def test_bad_arguments_are_named(reviews):
  few = jax.tree.map(lambda x: x[:4], reviews)
  for name, value, largest in (("concept", 4, 3), ("value", -1, 2)):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, {largest}\], got {value}"):
      data.intervene_reviews(few, **({"concept": 0, "value": 0} | {name: value}))
  with pytest.raises(ValueError, match="value must have shape"):
    data.intervene_reviews(few, concept=0, value=np.zeros(3, int))
  with pytest.raises(ValueError, match=r"error_rate must lie in \[0, 1\], got 1.5"):
    data.noisy_review_edit(jax.random.key(0), few, concept=0, value=0, error_rate=1.5)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    data.sample_reviews(jax.random.key(0), num_samples=0)
