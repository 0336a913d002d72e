import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.samplers import selection

N = 6
vote = jax.jit(selection.majority_vote)


def slow_vote(answers, weights):
  """One row; weights are 0 where a sample is masked."""
  votes = {}
  for answer, weight in zip(answers, weights):
    if answer >= 0 and weight is not None:
      votes[answer] = votes.get(answer, 0.0) + weight
  if not votes:
    return -1, 0.0, 0
  winner = max(votes, key=votes.get)  # The first of equal ones: dictionaries keep their order.
  first = next(i for i, (a, w) in enumerate(zip(answers, weights)) if a == winner and w is not None)
  total = sum(votes.values())
  return winner, votes[winner] / total if total else 0.0, first


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
  st.lists(st.integers(-2, 3), min_size=N, max_size=N),
  st.lists(st.integers(0, 4), min_size=N, max_size=N),
  st.lists(st.booleans(), min_size=N, max_size=N),
)
def test_vote_matches_a_slow_loop(answers, weights, mask):
  result = vote(np.array(answers), weights=np.float32(weights), mask=np.array(mask))
  expected = slow_vote(answers, [w if m else None for w, m in zip(weights, mask)])
  np.testing.assert_allclose([float(x) for x in result], expected, rtol=1e-6)


def test_votes_of_many_problems():
  answers = np.array([[[5, 7, 7, -1], [-1, -3, -1, -1]], [[3, 2, 2, 3], [10**9, 1, 10**9, 2]]])
  result = vote(answers)
  np.testing.assert_array_equal(result.answer, [[7, -1], [3, 10**9]])
  np.testing.assert_allclose(result.share, [[2 / 3, 0.0], [0.5, 0.5]], rtol=1e-6)
  np.testing.assert_array_equal(result.index, [[1, 0], [0, 0]])
  mapped = jax.vmap(jax.vmap(selection.majority_vote))(answers)
  jax.tree.map(np.testing.assert_array_equal, mapped, result)


def test_weights_change_the_winner_and_broadcast():
  answers = jnp.array([[1, 2, 2], [2, 1, 1]])
  result = vote(answers, weights=jnp.array([0.8, 0.3, 0.3]), mask=jnp.array([1, 1, 0]))
  np.testing.assert_array_equal(result.answer, [1, 2])
  np.testing.assert_allclose(result.share, 0.8 / 1.1, rtol=1e-6)


def test_valid_answers_without_weight():
  result = vote(jnp.array([-1, 4, 2]), weights=jnp.zeros(3))
  assert (int(result.answer), float(result.share), int(result.index)) == (4, 0.0, 1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.uint32])
def test_narrow_and_unsigned_answers(dtype):
  result = vote(np.array([[7, 7, 3], [2, 2, 2]], dtype), mask=np.array([[1, 1, 1], [0, 0, 0]]))
  np.testing.assert_array_equal(result.answer, [7, -1])
  assert result.answer.dtype == jnp.int32


def test_a_nan_weight_shows_in_its_row():
  weights = np.array([[1.0, np.nan, 1.0], [1.0, 2.0, 1.0]], np.float32)
  result = vote(np.array([[1, 2, 2], [1, 2, 1]]), weights=weights)
  np.testing.assert_array_equal(result.share, [np.nan, 0.5])


def test_best_of_large_integers():
  best = jax.jit(selection.best_of_n)
  large = 2**24
  np.testing.assert_array_equal(best(np.array([[large, large + 1, large], [-large, -1, -2]])), 1)
  lowest = np.array([-(2**31), -(2**31)], np.int32)
  assert best(lowest, mask=np.array([False, True])) == 1
  assert best(np.array([3, 255, 254], np.uint8)) == 1
  assert best(np.array([False, True])) == 1


def test_best_of_n():
  best = jax.jit(selection.best_of_n)
  scores = np.array([[1.0, 3.0, 3.0], [np.nan, -1.0, -2.0], [-np.inf, -np.inf, np.nan]])
  np.testing.assert_array_equal(best(scores), [1, 1, 0])
  mask = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1]])
  np.testing.assert_array_equal(best(scores, mask=mask), [2, 0, 1])
  np.testing.assert_array_equal(best(scores, mask=np.zeros(3)), [0, 0, 0])


def draw(key):
  return {"token": jax.random.randint(key, (4,), 0, 6), "row": jax.random.uniform(key, (4, 2))}


def is_small(sample):
  return sample["token"] < jnp.array([0, 1, 2, 6])


def test_resampling_matches_a_slow_loop():
  key, most = jax.random.key(3), 6
  attempt = lambda i: draw(jax.random.fold_in(key, i))  # noqa: E731
  draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(attempt))(np.arange(most)))
  output = selection.resample_until_accepted(key, draw, is_small, max_attempts=most)
  output = jax.tree.map(np.asarray, output)
  for row, limit in enumerate((0, 1, 2, 6)):
    tokens = draws["token"][:, row].tolist()
    hits = [i for i, token in enumerate(tokens) if token < limit]
    last = hits[0] if hits else most - 1
    assert bool(output.accepted[row]) == bool(hits)
    assert output.attempts[row] == last + 1
    assert output.sample["token"][row] == tokens[last]
    np.testing.assert_array_equal(output.sample["row"][row], draws["row"][last, row])
  assert not output.accepted[0] and output.attempts[3] == 1 < output.attempts.max()


def test_resampling_stops_once_all_rows_are_accepted():
  output = selection.resample_until_accepted(
    jax.random.key(0), draw, lambda sample: sample["token"] < 6, max_attempts=1000
  )
  np.testing.assert_array_equal(output.attempts, 1)
  expected = jax.jit(lambda key: draw(jax.random.fold_in(key, 0)))(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, output.sample, expected)


def test_resampling_errors():
  resample = selection.resample_until_accepted
  with pytest.raises(ValueError, match="max_attempts must be at least 1, got 0"):
    resample(jax.random.key(0), draw, is_small, max_attempts=0)
  with pytest.raises(TypeError, match="the result of verify_fn must be of type bool"):
    resample(jax.random.key(0), draw, lambda sample: sample["token"], max_attempts=2)
  with pytest.raises(
    ValueError, match=r"a sample of sample_fn must have shape \[b, ...\] with b = 8"
  ):
    resample(jax.random.key(0), draw, lambda sample: jnp.ones(8, bool), max_attempts=2)


def test_errors():
  with pytest.raises(ValueError, match="weights"):
    selection.majority_vote(jnp.array([1, 2]), weights=np.array([1.0, -0.5]))
  with pytest.raises(ValueError, match="answers must lie in"):
    selection.majority_vote(np.array([1, 2**40]))
  for name, function in (("answers", selection.majority_vote), ("scores", selection.best_of_n)):
    with pytest.raises(ValueError, match=f"samples in {name} must be at least 1, got 0"):
      function(np.zeros((3, 0), int))
  with pytest.raises(TypeError, match="answers must be of type int"):
    selection.majority_vote(jnp.array([1.0, 2.0]))
