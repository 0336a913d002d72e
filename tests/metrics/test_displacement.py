import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, metrics

N, T, U, D = 6, 5, 7, 3
RNG = np.random.default_rng(0)
HIDDEN = tuple(RNG.normal(size=(N, t, D)).astype(np.float32) for t in (T, U))
# Prompts of one token; the last rows have an empty response, and one that fills the array.
LENGTHS = np.array([1, 2, 3, 2, 0, 4]), np.array([3, 1, 6, 2, 0, 5])
MASKS = tuple(
  (np.arange(t) >= 1) & (np.arange(t) < 1 + n[:, None]) for t, n in zip((T, U), LENGTHS)
)

similarity = jax.jit(metrics.centered_hidden_similarity, static_argnames="normalize_length")
last_similarity = jax.jit(metrics.last_hidden_similarity)
edit_distance = jax.jit(metrics.normalized_edit_distance)
alignment = jax.jit(metrics.token_alignment)
lowest = jax.jit(metrics.lowest_scores_mask, static_argnames="fraction")
displacement = jax.jit(metrics.likelihood_displacement)


def states(hidden, mask):
  """The states that predict the tokens of a response, of one row."""
  return [hidden[t - 1] for t in range(1, len(mask)) if mask[t]]


def slow_similarity(chosen, rejected, normalize):
  sums = []
  for used in (chosen, rejected):
    total = np.sum(np.float64(used), axis=0) if used else np.zeros(D)
    sums.append(total / max(len(used), 1) if normalize else total)
  return sums[0] @ sums[1] - sums[0] @ sums[0]


@pytest.mark.parametrize("normalize", [False, True])
def test_similarities_match_a_loop_over_pairs(normalize):
  rows = [[states(h, m) for h, m in zip(HIDDEN[i], MASKS[i])] for i in (0, 1)]
  expected = [slow_similarity(a, b, normalize) for a, b in zip(*rows)]
  result = similarity(*HIDDEN, *MASKS, normalize_length=normalize)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
  assert expected[4] == result[4] == 0
  last = [a[-1] @ b[-1] if a and b else 0.0 for a, b in zip(*rows)]
  np.testing.assert_allclose(last_similarity(*HIDDEN, *MASKS), last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_similarity_of_equal_responses_is_0_and_scales_with_the_square(normalize):
  score = functools.partial(similarity, normalize_length=normalize)
  longer = np.pad(HIDDEN[0], ((0, 0), (0, U - T), (0, 0)), constant_values=np.nan)
  mask = np.pad(MASKS[0], ((0, 0), (0, U - T)))
  np.testing.assert_allclose(score(HIDDEN[0], longer, MASKS[0], mask), np.zeros(N), atol=1e-5)
  for factor in (3.0, 1e4):
    scaled = [np.float32(factor) * hidden for hidden in HIDDEN]
    expected = factor**2 * np.asarray(score(*HIDDEN, *MASKS))
    np.testing.assert_allclose(score(*scaled, *MASKS), expected, rtol=1e-4)


def test_responses_of_one_token_share_the_state_that_predicts_them():
  same = HIDDEN[0], np.pad(HIDDEN[0], ((0, 0), (0, U - T), (0, 0)))
  masks = [np.broadcast_to(np.arange(t) == 2, (N, t)) for t in (T, U)]
  np.testing.assert_array_equal(similarity(*same, *masks), np.zeros(N))
  expected = np.sum(HIDDEN[0][:, 1] ** 2, axis=-1)
  np.testing.assert_allclose(last_similarity(*same, *masks), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", [similarity, last_similarity])
def test_states_that_do_not_count_reach_neither_values_nor_gradients(metric):
  # The state of the last response token predicts nothing that counts.
  hidden = []
  for h, m in zip(HIDDEN, MASKS):
    used = np.pad(m[:, 1:], ((0, 0), (0, 1)))
    hidden.append(np.where(used[..., None], h, np.nan))
  np.testing.assert_array_equal(metric(*hidden, *MASKS), metric(*HIDDEN, *MASKS))
  slope = jax.jit(jax.grad(lambda *h: metric(*h, *MASKS).sum(), argnums=(0, 1)))
  for ours, expected in zip(slope(*hidden), slope(*HIDDEN)):
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(ours, expected)


def test_derivatives_in_both_directions():
  """The score is quadratic in the states, so that central differences are exact."""
  direction = np.float32(RNG.normal(size=(N, T, D)))
  score = jax.jit(lambda h: metrics.centered_hidden_similarity(h, HIDDEN[1], *MASKS))
  _, forward = jax.jit(lambda h, t: jax.jvp(score, (h,), (t,)))(HIDDEN[0], direction)
  expected = (score(HIDDEN[0] + direction) - score(HIDDEN[0] - direction)) / 2
  np.testing.assert_allclose(forward, expected, rtol=1e-4, atol=1e-4)
  slope = jax.jit(jax.grad(lambda h: score(h).sum()))(HIDDEN[0])
  np.testing.assert_allclose(np.sum(slope * direction, (1, 2)), forward, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0, 1])
def test_sequences_that_hold_no_response(length):
  empty = HIDDEN[0][:, :length], HIDDEN[1], MASKS[0][:, :length], MASKS[1]
  for metric in similarity, last_similarity:
    np.testing.assert_array_equal(metric(*empty), np.zeros(N))


def test_half_precision_and_masks_of_numbers():
  half = [jnp.asarray(h, jnp.bfloat16) for h in HIDDEN]
  wide = [h.astype(jnp.float32) for h in half]
  numbers = [m.astype(np.float32) for m in MASKS]
  for metric in similarity, last_similarity:
    result = metric(*half, *numbers)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, metric(*wide, *MASKS), rtol=1e-6)


def slow_edit_distance(a, b):
  @functools.cache
  def distance(i, j):
    if min(i, j) == 0:
      return max(i, j)
    replaced = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
    return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

  return distance(len(a), len(b)) / max(len(a), len(b), 1)


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_edit_distance_matches_the_recursion(num_tokens):
  rng = np.random.default_rng(num_tokens)
  a, b = rng.integers(0, num_tokens, (64, T)), rng.integers(0, num_tokens, (64, U))
  lengths = rng.integers(0, T + 1, 64), rng.integers(0, U + 1, 64)
  lengths[0][:3], lengths[1][1:4] = 0, 0
  expected = [slow_edit_distance(x[:n], y[:m]) for x, n, y, m in zip(a, lengths[0], b, lengths[1])]
  result = edit_distance(a, lengths[0], b, lengths[1])
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  np.testing.assert_array_equal(edit_distance(b, lengths[1], a, lengths[0]), result)
  assert result[1] == 0 and np.min(result) >= 0 and np.max(result) <= 1


def test_edit_distance_of_known_words_and_of_bad_lengths():
  kitten, sitting = (np.array([[*map(ord, word)]] * 3) for word in ("kitten.", "sitting"))
  distance = edit_distance(kitten, np.array([6, 8, 6]), sitting, np.array([7, 7, -1]))
  np.testing.assert_allclose(distance, [3 / 7, np.nan, np.nan], rtol=1e-6)


@pytest.mark.parametrize("chosen", [0, 3])
def test_a_step_on_one_token_moves_scores_by_the_alignment(chosen):
  """A softmax without bias, of which one step moves only the hidden state."""
  rng = np.random.default_rng(chosen)
  vectors, state = rng.normal(size=(5, D)).astype(np.float32), rng.normal(size=D).astype(np.float32)
  rejected, beta, rate = 2, 0.3, 0.1
  reference = np.float32([-1.0, -2.0])

  def loss(state):
    log_probs = jax.nn.log_softmax(vectors @ state)
    return losses.dpo_loss(log_probs[chosen], log_probs[rejected], *reference, beta=beta)

  moved = state - rate * jax.jit(jax.grad(loss))(state)
  margin = beta * ((vectors[chosen] - vectors[rejected]) @ state - 1.0)
  weight = rate * beta / (1 + np.exp(margin))
  np.testing.assert_allclose(
    moved - state, weight * (vectors[chosen] - vectors[rejected]), rtol=1e-4, atol=1e-7
  )
  gains = alignment(vectors, np.array(chosen), np.array(rejected))
  np.testing.assert_allclose(vectors @ (moved - state), weight * gains, rtol=1e-4, atol=1e-6)


def test_alignment_of_many_pairs():
  vectors = RNG.normal(size=(5, D)).astype(np.float32)
  chosen, rejected = RNG.integers(0, 5, (2, 3, 2))
  result = alignment(vectors, chosen, rejected)
  for i in np.ndindex(3, 2):
    expected = [v @ (vectors[chosen[i]] - vectors[rejected[i]]) for v in vectors]
    np.testing.assert_allclose(result[i], expected, rtol=1e-4, atol=1e-6)
  outside = np.asarray(alignment(vectors, np.where(chosen == 0, -1, chosen), rejected))
  np.testing.assert_array_equal(np.isnan(outside).all(-1), chosen == 0)
  np.testing.assert_array_equal(np.isnan(outside).any(-1), chosen == 0)


@pytest.mark.parametrize(
  ("fraction", "count"), [(0.05, 1), (0.1, 1), (0.25, 3), (0.5, 5), (0.35, 4), (0.44, 4), (1, 10)]
)
def test_filter_keeps_the_lowest_scores(fraction, count):
  scores = np.float32([3, 1, 2, 1, np.nan, 1, np.inf, -np.inf, 0, 2])
  order = [7, 8, 1, 3, 5, 2, 9, 0, 6, 4]
  np.testing.assert_array_equal(
    np.flatnonzero(lowest(scores, fraction=fraction)), sorted(order[:count])
  )


def test_filter_rounds_halves_up_and_counts_integers_exactly():
  scores = np.arange(200)[::-1] + 2**24
  for fraction, count in ((0.145, 29), (0.1425, 29), (0.142, 28), (1e-9, 1)):
    kept = lowest(scores, fraction=fraction)
    np.testing.assert_array_equal(kept, np.arange(200) >= 200 - count)
  traced = jax.jit(lambda f: metrics.lowest_scores_mask(scores, fraction=f))(0.145)
  assert np.sum(traced) == 29


def test_displacement():
  before, after = -np.float32([1, 2, 3, 4]), -np.float32([2, 2, 1, 4.5])
  result = displacement(before, after)
  np.testing.assert_allclose(result.mean_change, 0.125)
  np.testing.assert_allclose(result.share_decreased, 0.5)
  assert (
    displacement(np.float32([0, -1, 1, 1]), np.float32([-np.inf, -1, 1, 1])).mean_change == -np.inf
  )
  assert np.isnan(displacement(before, after * np.float32([1, 1, 1, np.nan]))).all()


def test_errors():
  hidden, mask = np.zeros((N, T, D)), np.zeros((N, T))
  for metric in metrics.centered_hidden_similarity, metrics.last_hidden_similarity:
    with pytest.raises(ValueError, match="^rejected_hidden must have shape"):
      metric(hidden, np.zeros((N, T, D + 1)), mask, mask)
    with pytest.raises(ValueError, match="^rejected_mask must have shape"):
      metric(hidden, hidden, mask, mask[:, 1:])
  tokens, lengths = np.zeros((N, T), int), np.zeros(N, int)
  with pytest.raises(ValueError, match=r"lengths_a must lie in \[0, 5\]"):
    metrics.normalized_edit_distance(tokens, lengths + 6, tokens, lengths)
  with pytest.raises(ValueError, match=r"lengths_b must lie in \[0, 5\]"):
    metrics.normalized_edit_distance(tokens, lengths, tokens, lengths - 1)
  with pytest.raises(TypeError, match="tokens_b must be of type int"):
    metrics.normalized_edit_distance(tokens, lengths, tokens * 1.0, lengths)
  with pytest.raises(ValueError, match=r"rejected_tokens must lie in \[0, 5\), got 0 to 5"):
    metrics.token_alignment(np.zeros((5, D)), np.arange(5), np.array([0, 1, 2, 3, 5]))
  for fraction in (0.0, 1.1, np.nan):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
      metrics.lowest_scores_mask(np.zeros(3), fraction=fraction)
  with pytest.raises(ValueError, match="scores must not be empty"):
    metrics.lowest_scores_mask(np.zeros(0), fraction=0.5)
  with pytest.raises(ValueError, match="^after must have shape"):
    metrics.likelihood_displacement(np.zeros(3), np.zeros(2))
