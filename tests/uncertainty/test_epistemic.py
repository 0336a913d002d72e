import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, metrics, uncertainty
from jaxlab.uncertainty.epistemic import class_error_estimate, total_error_estimate

RNG = np.random.default_rng(0)
N, K = 5, 3
NOISE = 0.09
X = RNG.uniform(size=(8, 1)).astype(np.float32)
Y = (np.sin(6 * X[:, 0]) + 0.3 * RNG.normal(size=8)).astype(np.float32)


def test_total_error_is_noise_and_the_rest():
  total = np.array([0.5, 0.1, 0.05], np.float32)
  estimate = jax.jit(total_error_estimate)(np.ones(3, np.float32), total, 0.1)
  np.testing.assert_allclose(estimate.epistemic, [0.4, 0, 0], atol=1e-7)
  np.testing.assert_allclose(estimate.aleatoric, 0.1, rtol=1e-6)


def test_class_errors_are_noise_and_the_rest():
  """Members that are right with equal probability: the parts of the expected Brier score."""
  members = RNG.dirichlet(np.ones(K), size=(4, N))
  mean = members.mean(axis=0)
  estimate = jax.jit(class_error_estimate)(mean, members.var(axis=0))
  noise = np.sum(members * (1 - members), axis=-1).mean(axis=0)
  np.testing.assert_allclose(estimate.aleatoric, noise, rtol=1e-4)
  squared = np.square(members - mean[None]).sum(-1).mean(axis=0)
  np.testing.assert_allclose(estimate.epistemic, squared, rtol=1e-4)


def gaussian_process(x):
  mean, variance = uncertainty.gp_posterior(X, Y, x, lengthscale=0.2, noise=NOISE)
  return total_error_estimate(mean, variance, NOISE)


def bars(x):
  logits = jnp.concatenate([jnp.zeros_like(x), 6 * x, jnp.zeros_like(x)], axis=1)
  moments = uncertainty.bar_mean, uncertainty.bar_variance
  mean, variance = (moment(logits, np.linspace(-1.0, 1, 4)) for moment in moments)
  return total_error_estimate(mean, variance, NOISE)


def predicted_error(x):
  return total_error_estimate(jnp.zeros(len(x)), x[:, 0] ** 2 + NOISE, NOISE)


def ensemble(x):
  slopes = np.array([[[1.0, 0, 2]], [[0, 3.0, 1]]])
  probs = jax.nn.softmax(x[None] * slopes, axis=-1)
  return class_error_estimate(probs.mean(axis=0), uncertainty.ensemble_variance(probs))


def pairs(x):
  logits = x[..., None] * np.arange(9.0).reshape(1, 3, 3)
  joint = losses.pair_log_probs(logits)
  variance = uncertainty.epistemic_variance(joint)
  return class_error_estimate(uncertainty.pair_marginal(joint), variance)


@pytest.mark.parametrize("estimator", [gaussian_process, bars, predicted_error, ensemble, pairs])
def test_every_method_answers_the_same_question(estimator):
  @jax.jit
  def row_of_the_table(x):
    estimate = estimator(x)
    errors = jnp.square(x[:, 0])
    ratio = metrics.rejection_ratio(estimate.epistemic, errors)
    return estimate, ratio, metrics.auroc(estimate.epistemic, errors > jnp.median(errors))

  x = np.linspace(0.1, 2, N, dtype=np.float32)[:, None]
  estimate, ratio, area = jax.tree.map(np.asarray, row_of_the_table(x))
  assert estimate.prediction.shape[0] == N
  assert estimate.epistemic.shape == estimate.aleatoric.shape == (N,)
  assert (estimate.epistemic >= 0).all() and (estimate.aleatoric >= 0).all()
  assert np.isfinite(ratio) and 0 <= area <= 1
  if estimator is predicted_error:
    np.testing.assert_allclose((ratio, area), 1, rtol=1e-4)


def test_errors():
  with pytest.raises(ValueError, match="aleatoric"):
    total_error_estimate(np.ones(2), np.ones(2), -1.0)
  with pytest.raises(ValueError, match="variance"):
    class_error_estimate(np.ones((1, 2)), np.full((1, 2), -0.1))
