import jax
import numpy as np
import pytest

from jaxlab.samplers import answer_confidence

ROWS, N = 6, 12
RNG = np.random.default_rng(0)
ANSWERS = RNG.integers(-1, 4, (ROWS, N)).astype(np.int32)
ANSWERS[5] = -1
LOG_PROBS = -RNG.gamma(2, 0.2, (ROWS, N)).astype(np.float32)
IDS = RNG.integers(0, 6, (ROWS, N)).astype(np.int32)
MASK = RNG.random((ROWS, N)) < 0.8

self_consistency = jax.jit(answer_confidence.self_consistency_confidence)
perplexity = jax.jit(answer_confidence.perplexity_consistency_confidence)
pruned = jax.jit(answer_confidence.pruned_consistency_confidence, static_argnames="num_steps")


def slow_confidence(answers, weights, ids, mask):
  """One row: every text counts once."""
  seen, votes = set(), {}
  for answer, weight, text, counts in zip(answers, weights, ids, mask):
    if answer < 0 or not counts or text in seen:
      continue
    seen.add(text)
    votes[answer] = votes.get(answer, 0.0) + weight
  total = sum(votes.values())
  return [
    votes.get(a, 0.0) / total if total and a >= 0 and counts else 0.0
    for a, counts in zip(answers, mask)
  ]


def test_self_consistency_is_a_count():
  result = self_consistency(ANSWERS, mask=MASK)
  for row in range(ROWS):
    expected = slow_confidence(ANSWERS[row], np.ones(N), range(N), MASK[row])
    np.testing.assert_allclose(result[row], expected, rtol=1e-6)
  np.testing.assert_array_equal(result[5], np.zeros(N))


@pytest.mark.parametrize("ids", [IDS, np.broadcast_to(np.arange(N, dtype=np.int32), (ROWS, N))])
def test_perplexity_consistency_matches_a_slow_loop(ids):
  result = perplexity(ANSWERS, LOG_PROBS, path_ids=ids, mask=MASK)
  for row in range(ROWS):
    expected = slow_confidence(ANSWERS[row], np.exp(LOG_PROBS[row]), ids[row], MASK[row])
    np.testing.assert_allclose(result[row], expected, rtol=1e-5)


def test_distinct_paths_need_no_ids():
  ids = np.broadcast_to(np.arange(N, dtype=np.int32), (ROWS, N))
  expected = perplexity(ANSWERS, LOG_PROBS, path_ids=ids, mask=MASK)
  np.testing.assert_array_equal(perplexity(ANSWERS, LOG_PROBS, mask=MASK), expected)


def test_equal_probabilities_give_self_consistency():
  for value in (-0.3, -80.0, -1e4):
    result = perplexity(ANSWERS, np.full((ROWS, N), value, np.float32))
    np.testing.assert_allclose(result, self_consistency(ANSWERS), rtol=1e-6)


def test_scale_does_not_matter_and_distinct_answers_give_perplexity():
  result = perplexity(ANSWERS, LOG_PROBS - 200, path_ids=IDS)
  np.testing.assert_allclose(result, perplexity(ANSWERS, LOG_PROBS, path_ids=IDS), rtol=1e-3)
  distinct = np.broadcast_to(np.arange(N, dtype=np.int32), (ROWS, N))
  result = np.asarray(perplexity(distinct, LOG_PROBS))
  chosen = jax.jit(answer_confidence.perplexity_select)(LOG_PROBS)
  np.testing.assert_array_equal(np.argmax(result, axis=1), chosen)
  np.testing.assert_allclose(result.sum(1), np.ones(ROWS), rtol=1e-5)


def test_repeated_texts_add_nothing():
  once = perplexity(ANSWERS[:, :6], LOG_PROBS[:, :6])
  ids = np.broadcast_to(np.arange(N, dtype=np.int32) % 6, (ROWS, N))
  answers, scores = (np.tile(x[:, :6], 2) for x in (ANSWERS, LOG_PROBS))
  np.testing.assert_allclose(perplexity(answers, scores, path_ids=ids), np.tile(once, 2), rtol=1e-6)


def test_pruned_consistency_is_consistency_of_the_kept_paths():
  answers = np.broadcast_to(np.arange(N, dtype=np.int32) % 3, (ROWS, N))
  is_low = answers == 2
  spread = RNG.uniform(0, 0.1, (ROWS, N))
  scores = np.where(is_low, -3 - spread, -0.2 - spread).astype(np.float32)
  result = pruned(answers, scores)
  np.testing.assert_array_equal(np.asarray(result)[is_low], 0)
  np.testing.assert_allclose(result, perplexity(answers, scores, mask=~is_low), rtol=1e-5)
  # With fewer than four paths there is no fit.
  mask = np.broadcast_to(np.arange(N) < 3, (ROWS, N))
  expected = perplexity(answers, scores, mask=mask)
  np.testing.assert_array_equal(pruned(answers, scores, mask=mask), expected)


def test_pruning_keeps_the_best_path_and_sums_to_one():
  answers = np.broadcast_to(np.arange(N, dtype=np.int32), (ROWS, N))
  result = np.asarray(pruned(answers, LOG_PROBS))
  assert (result[np.arange(ROWS), LOG_PROBS.argmax(1)] > 0).all()
  np.testing.assert_allclose(result.sum(1), np.ones(ROWS), rtol=1e-5)
  assert (result == 0).any()


def test_impossible_paths_and_nan():
  scores = LOG_PROBS.copy()
  scores[0], scores[1, 0], scores[2, 3] = -np.inf, -np.inf, np.nan
  answers = np.abs(ANSWERS)
  for function in (perplexity, pruned):
    result = np.asarray(function(answers, scores))
    np.testing.assert_array_equal(result[0], np.zeros(N))
    np.testing.assert_array_equal(np.isnan(result).any(1), [0, 0, 1, 0, 0, 0])
  masked = np.ones((ROWS, N), bool)
  masked[2, 3] = False
  assert np.isfinite(pruned(answers, scores, mask=masked)).all()


def test_gradients_are_finite():
  def total(scores):
    consistency = answer_confidence.perplexity_consistency_confidence
    prune = answer_confidence.pruned_consistency_confidence
    args = np.abs(ANSWERS), scores
    return sum((LOG_PROBS * f(*args, path_ids=IDS)).sum() for f in (consistency, prune))

  scores = LOG_PROBS.copy()
  scores[0], scores[1, :3] = -np.inf, -1e4
  assert np.isfinite(jax.jit(jax.grad(total))(scores)).all()


def test_errors():
  confidence = answer_confidence.perplexity_consistency_confidence
  with pytest.raises(ValueError, match=r"path_log_probs must lie in \[-inf, 0\]"):
    confidence(ANSWERS, -LOG_PROBS)
  with pytest.raises(ValueError, match="path_log_probs must have shape"):
    confidence(ANSWERS, LOG_PROBS[:, :3])
  with pytest.raises(TypeError, match="path_ids must be of type int"):
    confidence(ANSWERS, LOG_PROBS, path_ids=LOG_PROBS)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    pruned(ANSWERS, LOG_PROBS, num_steps=0)
  with pytest.raises(ValueError, match="number of paths in path_log_probs must be at least 1"):
    answer_confidence.perplexity_select(np.zeros((2, 0)))
