import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxlab import losses

J, K, B = 2, 5, 3
RNG = np.random.default_rng(0)
LOG_P_Y, LOG_P_MASK, LOG_P_DROPOUT = -RNG.gamma(2.0, size=(3, J, K, B)).astype(np.float32)
LOG_P_X, LOG_P_Z, LOG_Q_Z = RNG.normal(-3, 2, size=(3, K, B)).astype(np.float32)
TERMS = LOG_P_X, LOG_P_Z, LOG_Q_Z
weigh = jax.jit(losses.importance_log_weights)
loss_of = jax.jit(losses.supervised_not_miwae_loss)


def slow_loss(log_p_y, log_p_mask, log_p_x, log_p_z, log_q_z, log_p_dropout):
  total = np.zeros(B)
  for b in range(B):
    for j in range(J):
      terms = [
        np.exp(
          float(log_p_y[j, k, b])
          + log_p_mask[j, k, b]
          + log_p_x[k, b]
          + log_p_z[k, b]
          - log_q_z[k, b]
          + log_p_dropout[j, k, b]
        )
        for k in range(K)
      ]
      total[b] -= np.log(np.mean(terms)) / J
  return total


def test_loss_and_weights_match_loops():
  loss = loss_of(LOG_P_Y, LOG_P_MASK, *TERMS, log_p_dropout=LOG_P_DROPOUT)
  np.testing.assert_allclose(loss, slow_loss(LOG_P_Y, LOG_P_MASK, *TERMS, LOG_P_DROPOUT), rtol=1e-5)
  ratio = LOG_P_X + LOG_P_Z - LOG_Q_Z
  np.testing.assert_allclose(weigh(*TERMS), ratio - logsumexp(ratio, axis=0), atol=1e-5)
  with_dropout = ratio + LOG_P_DROPOUT
  expected = with_dropout - logsumexp(with_dropout, axis=1, keepdims=True)
  np.testing.assert_allclose(weigh(*TERMS, log_p_dropout=LOG_P_DROPOUT), expected, atol=1e-5)
  none = loss_of(LOG_P_Y, LOG_P_MASK, *TERMS)
  expected = slow_loss(LOG_P_Y, LOG_P_MASK, *TERMS, np.zeros((J, K, B)))
  np.testing.assert_allclose(none, expected, rtol=1e-5)


def test_one_draw_has_weight_1_and_the_sum_of_its_terms():
  one = [x[:1] for x in TERMS]
  np.testing.assert_array_equal(weigh(*one), 0)
  terms = LOG_P_Y[:, :1], LOG_P_MASK[:, :1]
  loss = loss_of(*terms, *one, log_p_dropout=LOG_P_DROPOUT[:, :1])
  total = sum(terms) + LOG_P_DROPOUT[:, :1] + (one[0] + one[1] - one[2])
  np.testing.assert_allclose(loss, -total[:, 0].mean(0), rtol=1e-5)


def test_equal_ratios_and_constants():
  equal = np.full((K, B), -2.0, np.float32)
  np.testing.assert_allclose(weigh(equal, equal, equal), -np.log(K), rtol=1e-6)
  shift = np.array([0.0, 5.0, -7.0], np.float32)
  moved = (LOG_P_X + shift, *TERMS[1:])
  np.testing.assert_allclose(weigh(*moved), weigh(*TERMS), atol=1e-5)
  before, after = (loss_of(LOG_P_Y, LOG_P_MASK, *x) for x in (TERMS, moved))
  np.testing.assert_allclose(after, before - shift, rtol=1e-5)


def test_gradients_reach_every_term_at_extreme_values():
  huge = [1e4 * np.sign(x) for x in TERMS]

  @jax.jit
  def gradients(terms):
    return jax.grad(lambda x: losses.supervised_not_miwae_loss(*x).sum())(terms)

  for terms in ((LOG_P_Y, LOG_P_MASK, *TERMS), (LOG_P_Y, LOG_P_MASK, *huge)):
    for gradient in gradients(terms):
      assert np.isfinite(gradient).all() and np.abs(gradient).sum() > 0


def test_shapes_are_checked():
  with pytest.raises(ValueError, match=r"log_q_z must have shape \[K, b\] with K = 5, b = 3"):
    losses.importance_log_weights(LOG_P_X, LOG_P_Z, LOG_Q_Z[:2])
  with pytest.raises(ValueError, match="log_p_mask must have shape"):
    losses.supervised_not_miwae_loss(LOG_P_Y, LOG_P_MASK[:1], *TERMS)
