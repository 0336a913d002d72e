import jax
import numpy as np
import pytest

from jaxlab import losses, uncertainty

J, K, B, C = 2, 5, 3, 4
RNG = np.random.default_rng(0)
LOG_P_Y = np.log(RNG.dirichlet(np.ones(C), (J, K, B))).astype(np.float32)
LOG_W = np.log(RNG.dirichlet(np.ones(K), (J, B))).swapaxes(1, 2).astype(np.float32)
predict = jax.jit(uncertainty.mixture_predictive, static_argnames="reduction")


def slow(log_p_y, log_w, reduction):
  mixtures = np.zeros((J, B, C))
  for j in range(J):
    for b in range(B):
      mixtures[j, b] = sum(np.exp(log_w[j, k, b]) * np.exp(log_p_y[j, k, b]) for k in range(K))
  return mixtures.mean(0) if reduction == "arithmetic" else np.exp(np.log(mixtures).mean(0))


@pytest.mark.parametrize("reduction", ["arithmetic", "geometric"])
def test_predictions_match_a_loop(reduction):
  predicted = predict(LOG_P_Y, LOG_W, reduction=reduction)
  np.testing.assert_allclose(predicted, slow(LOG_P_Y, LOG_W, reduction), rtol=1e-5)


def test_arithmetic_rows_sum_to_1_and_are_never_below_the_geometric_ones():
  arithmetic, geometric = (
    np.asarray(predict(LOG_P_Y, LOG_W, reduction=x)) for x in ("arithmetic", "geometric")
  )
  np.testing.assert_allclose(arithmetic.sum(-1), 1, rtol=1e-5)
  assert (geometric <= arithmetic + 1e-6).all() and (geometric.sum(-1) < 1).all()
  one = [x[:1] for x in (LOG_P_Y, LOG_W)]
  np.testing.assert_allclose(predict(*one), predict(*one, reduction="geometric"), rtol=1e-5)


def test_equal_weights_give_the_plain_mean():
  uniform = np.full((K, B), -np.log(K), np.float32)
  predicted = predict(LOG_P_Y, uniform)
  np.testing.assert_allclose(predicted, np.exp(LOG_P_Y).mean((0, 1)), rtol=1e-5)


def test_a_constant_in_the_log_ratios_changes_nothing():
  terms = RNG.normal(size=(3, K, B)).astype(np.float32)
  weights = [losses.importance_log_weights(terms[0] + shift, *terms[1:]) for shift in (0.0, 30.0)]
  predicted = [predict(LOG_P_Y, x) for x in weights]
  np.testing.assert_allclose(*predicted, rtol=1e-4)


def test_masked_classes_and_errors():
  masked = LOG_P_Y.copy()
  masked[..., 2] = -np.inf
  for reduction in ("arithmetic", "geometric"):
    predicted = np.asarray(predict(masked, LOG_W, reduction=reduction))
    assert (predicted[:, 2] == 0).all() and np.isfinite(predicted).all()
  with pytest.raises(ValueError, match="reduction must be one of .*, got 'median'"):
    uncertainty.mixture_predictive(LOG_P_Y, LOG_W, reduction="median")
  with pytest.raises(ValueError, match="log_w must have shape"):
    uncertainty.mixture_predictive(LOG_P_Y, LOG_W[0, 0])
