"""Networks of a law, simpler predictors, and how predictions are scored."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.bayes.icl_uncertainty import laws
from experiments.bayes.icl_uncertainty.laws import CONDITIONS, FRESH, LAWS
from experiments.kit.prior_fitting import fit_prior
from jaxlab import algorithms, losses, models, uncertainty
from jaxlab.uncertainty import GaussianPredictive

RIDGE, LEAST_SQUARES, STUDENT = "ridge, one variance", "least squares", "exact, Student's t"
HALF = "fresh, half of the updates"
_QUANTILE = 1.645  # Of the central 90% of a normal distribution.


def network(config) -> nn.Module:
  """The network, whose outputs are means and log-variances."""
  sizes = config.embed_dim, config.num_layers, config.num_heads
  return models.InContextTransformer(2, *sizes, max_length=2 * config.num_points)


def nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Negative log-density of the values, as the outputs of a network say."""
  return losses.gaussian_nll(*models.mean_and_variance(outputs), targets)


def optimizer(config):
  """Adam with clipped gradients, its rate falling as a cosine after the warm-up."""
  options = {"warmup_fraction": config.warmup_fraction}
  return algorithms.prior_fitting_optimizer(config.learning_rate, config.num_steps, **options)


def pool_of(config, key):
  """The pool of a seed, the same for all its programs."""
  return laws.draw_tasks(config, jax.random.fold_in(key, 0), config.pool_size)


def test_batches(config, key):
  """Test sequences of a seed along conditions, the same for all its programs."""
  pool, key = pool_of(config, key), jax.random.fold_in(key, 1)
  return laws.draw(config, CONDITIONS, key, pool, config.num_test)


def train(config, law: str, key) -> dict[str, jax.Array]:
  """Trains a network on a law and scores it at half of the updates and at the end.

  Returns quantity -> `[2, conditions, ...]`, against the exact predictor of the law.
  """
  module, pool = network(config), pool_of(config, key)
  init_key, fit_key = jax.random.split(jax.random.fold_in(key, 2))

  def apply(params, x, y, num_context=None):
    del num_context
    return module.apply({"params": params}, models.interleave_pairs(x, y))[:, ::2]

  def prior(key):
    return _first(laws.draw(config, (law,), key, pool, config.batch_size))

  fitting = algorithms.prior_fitting(apply, optimizer(config), prior, nll, max_context=1)
  tests = test_batches(config, key)
  params = module.init(init_key, models.interleave_pairs(*_first(tests))[:1])["params"]
  bayes = jax.lax.map(lambda batch: laws.exact(config, law, batch, pool), tests)
  prior_bayes = bayes
  if law != FRESH:
    prior_bayes = jax.lax.map(lambda batch: laws.exact(config, FRESH, batch, pool), tests)

  def evaluate(params):
    def of_condition(arrays):
      batch, *references = arrays
      predicted = models.mean_and_variance(apply(params, *batch))
      scored = score(predicted, *references, batch.y)
      return scored | {"variance": predicted.variance[: config.num_shown, -1]}

    return jax.lax.map(of_condition, (tests, bayes, prior_bayes))

  options = {"num_steps": config.num_steps, "eval_every": config.num_steps // 2}
  fit = fit_prior(fit_key, fitting, params, evaluate=evaluate, **options)
  shown = {"Bayes variance": bayes.variance[:, : config.num_shown, -1]}
  return {**fit.scores, **shown, "bad_step": fit.bad_step}


def _first(batch):
  """The sequences of the first condition, which of `CONDITIONS` is that of the prior."""
  return jax.tree.map(lambda x: x[0], batch)


def score(
  predicted: GaussianPredictive, bayes: GaussianPredictive, prior_bayes: GaussianPredictive, targets
) -> dict[str, jax.Array]:
  """Scores a prediction `[b, T]` beside the exact predictors of its law and of the prior."""
  loss = losses.gaussian_nll(*predicted, targets)
  held = jnp.abs(targets - predicted.mean) <= _QUANTILE * jnp.sqrt(predicted.variance)
  divergence = uncertainty.gaussian_kl(*bayes, *predicted)[:, -1]
  log_ratio = jnp.log(predicted.variance) - jnp.log(bayes.variance)

  def distance(values):
    return jnp.sqrt(jnp.mean(jnp.square(values)))

  return {
    "NLL": jnp.mean(loss, axis=0),
    "excess": jnp.mean(loss - losses.gaussian_nll(*bayes, targets)),
    "90% coverage": jnp.mean(held.astype(jnp.float32)),
    "KL": jnp.mean(divergence),
    "median KL": jnp.median(divergence),
    "distance to own Bayes": distance(predicted.mean - bayes.mean),
    "distance to prior's Bayes": distance(predicted.mean - prior_bayes.mean),
    "distance of log-variances": distance(log_ratio[:, -1]),
  }


def references(config, key) -> dict[str, dict[str, jax.Array]]:
  """Scores of the exact predictors by the same code, along conditions."""
  pool = pool_of(config, key)

  def of_condition(batch):
    exact = {law: laws.exact(config, law, batch, pool) for law in LAWS}
    return {f"exact, {law}": score(x, x, exact[FRESH], batch.y) for law, x in exact.items()}

  return jax.lax.map(of_condition, test_batches(config, key))


def baselines(config, key) -> dict[str, dict[str, jax.Array]]:
  """NLL by prefix, under the prior, of ridge regression, least squares and the Student floor.

  Ridge regression has one variance per prefix, that of its errors in validation sequences, which
  choose its penalty too.
  """
  batch, own = _first(test_batches(config, key)), jax.random.fold_in(key, 3)
  pool, number = pool_of(config, key), config.num_validation
  validation = _first(laws.draw(config, (FRESH,), own, pool, number))
  penalties = jnp.array(config.penalties)

  def fit(penalty):
    squares = jnp.square(validation.y - laws.ridge(config, validation, penalty))
    variances = jnp.mean(squares, axis=0)
    return jnp.mean(jnp.log(variances)), variances  # Of a normal distribution, up to constants.

  found, variances = jax.lax.map(fit, penalties)
  best = jnp.argmin(found)
  mean = laws.ridge(config, batch, penalties[best])
  plain = uncertainty.prefix_predictives(uncertainty.least_squares_predictive, *batch)

  def of(mean, variance):
    values = losses.gaussian_nll(mean, jnp.broadcast_to(variance, mean.shape), batch.y)
    return jnp.mean(values, axis=0)

  floor = jnp.mean(laws.student_log_probs(laws.of_prior(config), batch), axis=0)
  return {
    RIDGE: {"NLL": of(mean, variances[best]), "chosen/penalty": penalties[best]},
    LEAST_SQUARES: {"NLL": of(*plain)},
    STUDENT: {"NLL": -floor},
  }
