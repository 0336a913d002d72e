import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = (-2 * RNG.random((2, 6))).astype(np.float32)
orpo = jax.jit(losses.orpo_loss)
log_odds = jax.jit(losses.log_odds_ratio)


def slow_log_odds(chosen, rejected):
  chosen, rejected = np.exp(np.float64(chosen)), np.exp(np.float64(rejected))
  return np.log(chosen / (1 - chosen)) - np.log(rejected / (1 - rejected))


def test_log_odds_match_the_definition():
  np.testing.assert_allclose(log_odds(CHOSEN, REJECTED), slow_log_odds(CHOSEN, REJECTED), rtol=1e-5)


def test_orpo_is_likelihood_plus_odds_term():
  odds = slow_log_odds(CHOSEN, REJECTED)
  for weight in (0.0, 0.1, 2.0):
    expected = -CHOSEN + weight * np.logaddexp(0, -odds)
    np.testing.assert_allclose(orpo(CHOSEN, REJECTED, weight=weight), expected, rtol=1e-5)
  np.testing.assert_allclose(orpo(CHOSEN, REJECTED), orpo(CHOSEN, REJECTED, weight=0.1), rtol=1e-6)


def test_orpo_of_equal_responses():
  np.testing.assert_allclose(orpo(CHOSEN, CHOSEN), -CHOSEN + 0.1 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-7, -1e4])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1.0, -1e4])
def test_certain_and_impossible_responses_are_finite(chosen, rejected):
  value, slope = jax.jit(
    jax.value_and_grad(lambda a, c: losses.orpo_loss(a, c).sum(), argnums=(0, 1))
  )(np.float32([chosen]), np.float32([rejected]))
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in slope)
  if chosen == -1e4 and rejected == -1.0:
    np.testing.assert_allclose(value, 1e4 + 0.1 * (1e4 - 1.0 - np.log(1 - np.exp(-1))), rtol=1e-5)


def test_without_weight_an_impossible_response_costs_its_likelihood_alone():
  assert orpo(np.float32([-np.inf] * 6), REJECTED, weight=0.0)[0] == np.inf


def test_half_precision_and_vmap():
  half = jnp.asarray(CHOSEN, jnp.bfloat16), jnp.asarray(REJECTED, jnp.bfloat16)
  result = orpo(*half)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, orpo(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)
  mapped = jax.jit(jax.vmap(losses.orpo_loss))(CHOSEN, REJECTED)
  np.testing.assert_allclose(mapped, orpo(CHOSEN, REJECTED), rtol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match=r"weight must lie in \[0, inf\), got -0.1"):
    losses.orpo_loss(CHOSEN, REJECTED, weight=-0.1)
  for loss in (losses.orpo_loss, losses.log_odds_ratio):
    with pytest.raises(ValueError, match="rejected_mean_log_probs must have shape"):
      loss(CHOSEN, REJECTED[:2])
