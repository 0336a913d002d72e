import jax
import numpy as np
import pytest

from jaxlab import metrics

RNG = np.random.default_rng(0)
L, S = 4, 2
INITIAL = RNG.dirichlet(np.ones(S)).astype(np.float32)
TRANSITIONS = RNG.dirichlet(np.ones(S), (L, S)).astype(np.float32)
_ENDS = {"static_argnums": (2, 3)}
conditional = jax.jit(metrics.chain_conditional, **_ENDS)
gap = jax.jit(metrics.chain_reasoning_gap, **_ENDS)


def joint():
  """Probabilities of all states of the five variables."""
  table = INITIAL.astype(np.float64)
  for matrix in TRANSITIONS:
    table = table[..., None] * matrix
  return table


@pytest.mark.parametrize("source, destination", [(0, 4), (3, 1)])
def test_conditionals_and_gaps_match_enumeration(source, destination):
  others = tuple(i for i in range(L + 1) if i not in (source, destination))
  pair = joint().sum(others)
  pair = pair if source < destination else pair.T
  rows = pair / pair.sum(1, keepdims=True)
  ours = np.asarray(conditional(INITIAL, TRANSITIONS, source, destination))
  np.testing.assert_allclose(ours, rows, atol=1e-6)
  np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-6)
  errors = np.square(rows - pair.sum(0)).mean(1)
  expected = (pair.sum(1) * errors).sum()
  np.testing.assert_allclose(gap(INITIAL, TRANSITIONS, source, destination), expected, atol=1e-7)


def test_a_variable_given_itself():
  np.testing.assert_array_equal(conditional(INITIAL, TRANSITIONS, 0, 0), np.eye(S))
  np.testing.assert_allclose(gap(INITIAL, TRANSITIONS, 0, 0), INITIAL.prod(), rtol=1e-5)


def test_no_gap_where_nothing_is_learned():
  rank_one = TRANSITIONS.copy()
  rank_one[2] = rank_one[2, 0]
  np.testing.assert_allclose(gap(INITIAL, rank_one, 0, 4), 0, atol=1e-12)
  assert gap(INITIAL, TRANSITIONS, 0, 4) > 1e-8
  # A value that never occurs says nothing about what came before it.
  never = TRANSITIONS.copy()
  never[:3] = [1.0, 0.0]
  ours = np.asarray(conditional(INITIAL, never, 3, 1))
  np.testing.assert_allclose(ours, [[1, 0], [1, 0]])


def test_flips_of_a_tenth():
  flips = np.tile(np.array([[0.9, 0.1], [0.1, 0.9]], np.float32), (L, 1, 1))
  half = np.full(S, 0.5, np.float32)
  np.testing.assert_allclose(gap(half, flips, 0, 4), (0.8**4 / 2) ** 2, rtol=1e-5)


def test_errors_of_estimates():
  estimates, conditionals, marginals = RNG.random((3, 6)).astype(np.float32)
  errors = jax.jit(metrics.conditional_errors)(estimates, conditionals, marginals)
  np.testing.assert_allclose(errors.mse, np.square(estimates - conditionals).mean(), rtol=1e-5)
  expected = np.square(estimates - marginals).mean()
  np.testing.assert_allclose(errors.mse_to_marginal, expected, rtol=1e-5)


def test_bad_arguments():
  with pytest.raises(ValueError, match=r"destination must lie in \[0, 4\], got 5"):
    metrics.chain_conditional(INITIAL, TRANSITIONS, 0, 5)
  with pytest.raises(ValueError, match=r"transitions must have shape \[L, S, S\]"):
    metrics.chain_reasoning_gap(INITIAL, TRANSITIONS[..., :1], 0, 1)
  with pytest.raises(ValueError, match="estimates must not be empty"):
    metrics.conditional_errors(*np.ones((3, 0)))
