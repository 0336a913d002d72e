import jax
import numpy as np
import pytest

from jaxlab.metrics import votes

ROWS, N = 8, 6
RNG = np.random.default_rng(0)
ANSWERS = RNG.integers(-1, 3, (ROWS, N)).astype(np.int32)
ANSWERS[3] = -1
TARGETS = RNG.integers(0, 3, ROWS).astype(np.int32)
# Few values, so that answers tie.
CONFIDENCE = RNG.integers(1, 4, (ROWS, N)).astype(np.float32) / 4

accuracy = jax.jit(votes.vote_accuracy)
calibration = jax.jit(votes.vote_calibration_error, static_argnames="num_bins")
counting_error, path_error = map(jax.jit, (votes.self_consistency_error, votes.perplexity_error))


def winners(confidence, answers):
  """Distinct answers of the highest confidence, and this confidence."""
  valid = [(c, a) for c, a in zip(confidence, answers) if a >= 0]
  best = max((c for c, _ in valid), default=0.0)
  return {a for c, a in valid if c == best}, best


def test_tied_answers_share_the_credit():
  result = accuracy(CONFIDENCE, ANSWERS, TARGETS)
  tied = [winners(c, a)[0] for c, a in zip(CONFIDENCE.tolist(), ANSWERS.tolist())]
  expected = [(t in w) / max(len(w), 1) for w, t in zip(tied, TARGETS.tolist())]
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert {0.0, 0.5} <= set(expected) and max(map(len, tied)) > 1


@pytest.mark.parametrize("num_bins", [4, 10])
def test_calibration_error_matches_a_slow_loop(num_bins):
  items = []
  for c, a, target in zip(CONFIDENCE.tolist(), ANSWERS.tolist(), TARGETS.tolist()):
    tied, best = winners(c, a)
    items += [(1 / len(tied), answer == target, best) for answer in tied] or [(1.0, False, 0.0)]
  bins = {}
  for weight, hit, best in items:
    place = max(int(np.ceil(best * num_bins)) - 1, 0)
    bins[place] = bins.get(place, 0.0) + weight * (hit - best)
  expected = sum(map(abs, bins.values())) / sum(weight for weight, *_ in items)
  result = calibration(CONFIDENCE, ANSWERS, TARGETS, num_bins=num_bins)
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_nan_shows_in_its_row():
  confidence = CONFIDENCE.copy()
  confidence[1, 2] = np.nan
  result = accuracy(confidence, ANSWERS, TARGETS)
  np.testing.assert_array_equal(np.isnan(result), np.arange(ROWS) == 1)
  assert np.isnan(calibration(confidence, ANSWERS, TARGETS))


@pytest.mark.parametrize("p, is_right, num_samples", [(0.1, 1, 5), (0.3, 0, 8), (0.02, 1, 64)])
def test_errors_match_simulation(p, is_right, num_samples):
  counts = RNG.binomial(num_samples, p, 100_000)
  for function, estimate in (
    (counting_error, counts / num_samples),
    (path_error, p * (counts > 0)),
  ):
    squares = np.square(estimate - is_right)
    error = float(function(np.float32(p), np.float32(is_right), num_samples=num_samples))
    assert abs(error - squares.mean()) < 3 * squares.std() / np.sqrt(len(squares)) + 1e-6


def test_errors_broadcast_and_are_finite_at_the_edges():
  p = np.array([[0.0], [0.5], [1.0]], np.float32)
  right = np.array([0.0, 1.0], np.float32)
  for function in (counting_error, path_error):
    result = function(p, right, num_samples=1000)
    assert result.shape == (3, 2)
    np.testing.assert_array_equal(result[2], [1.0, 0.0])
    np.testing.assert_array_equal(result[0], [0.0, 1.0])
    total = lambda p, f=function: f(p, right, num_samples=1000).sum()  # noqa: E731
    assert np.isfinite(jax.jit(jax.grad(total))(p)).all()


def test_errors():
  with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 1.5"):
    votes.self_consistency_error(1.5, 1, num_samples=4)
  with pytest.raises(ValueError, match=r"num_samples must lie in \[1, inf\), got 0"):
    votes.perplexity_error(0.5, 1, num_samples=0)
  with pytest.raises(ValueError, match="indicator must be 0 or 1"):
    votes.perplexity_error(0.5, 0.7, num_samples=2)
  with pytest.raises(ValueError, match="targets must have shape"):
    votes.vote_accuracy(CONFIDENCE, ANSWERS, TARGETS[:3])
  with pytest.raises(ValueError, match="answers must not be empty"):
    votes.vote_accuracy(CONFIDENCE[:, :0], ANSWERS[:, :0], TARGETS)
  with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
    calibration(CONFIDENCE, ANSWERS, TARGETS, num_bins=0)
