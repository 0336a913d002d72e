"""The deep generative model with its classifier: training, imputations, predictions."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.kit import incomplete as kit
from experiments.kit.incomplete import Rows, each_row, mean_error, mixture, times_of
from experiments.kit.train import calibrated_scores
from experiments.series.supnotmiwae import networks
from experiments.series.supnotmiwae.networks import MAE, NLL
from experiments.series.supnotmiwae.problems import Problem
from jaxlab import algorithms, metrics, models

FULL, UNDROPPED = "deep imputation, dropout", "deep imputation"
HIGH, FADELESS = "deep imputation, most dropout", "deep imputation, no decay"
ONCE, RELIANCE, SIZE = "NLL, mean completion once", "reliance", "effective sample size"
FILLED = "MAE with decay"
_NO_DECAY = 50.0  # As bias: what was observed last has the weight exp(-50).


class Model:
  """The networks and their calls; the shape is that of `problems.shape_of`."""

  def __init__(self, config, shape: tuple[int, int, int, int]):
    """Builds the networks."""
    self.config, (self.length, self.num_channels, num_classes, self.latent_dim) = config, shape
    sizes = config.width, config.num_layers, config.num_heads
    self.modules = {
      "encoder": models.SeriesEncoder(self.latent_dim, *sizes),
      "decoder": models.SeriesDecoder(self.num_channels, *sizes),
      "mask": models.MissingnessModel(config.width),
      "classifier": networks.classifier(config, num_classes),
    }

  def init(self, key, bias: chex.Numeric) -> dict[str, chex.ArrayTree]:
    """Fresh parameters, with those of the decay."""
    series = jnp.zeros((1, self.length, self.num_channels))
    latent, times = jnp.zeros((1, self.length, self.latent_dim)), times_of(series)
    inputs = (series, times), (latent, times), (series,), (series, times)
    params = {
      name: module.init(key, *x)["params"]
      for key, (name, module), x in zip(jax.random.split(key, 4), self.modules.items(), inputs)
    }
    return params | kit.initial_decay(self.num_channels, bias)

  def call(self, params, name: str, *inputs):
    """A network of that name."""
    return self.modules[name].apply({"params": params[name]}, *inputs)

  def objective(self, params, key, rows: Rows, classify_fn, decay, **options):
    """`not_miwae_objective` of series; the decay is its rate and bias."""
    kernel = models.cauchy_kernel(self.length, jitter=self.config.jitter)
    call = functools.partial(self.call, params)
    encode, decode, is_kept = (functools.partial(call, x) for x in ("encoder", "decoder", "mask"))
    inputs = rows.values, rows.mask, times_of(rows.values)
    options |= {name: decay[name] for name in ("rate", "bias")}
    fns = encode, decode, is_kept, classify_fn, lambda z: models.gp_prior_log_prob(z, kernel)
    return algorithms.not_miwae_objective(key, *fns, *inputs, **options)

  def losses(self, params, key, batch, *, dropout: chex.Numeric) -> jax.Array:
    """Of training, in nats a value, `[b]`; the batch is rows, and weights `[b]` of the classes."""
    rows, weights = batch
    classify = lambda *x: weights[:, None] * self.call(params, "classifier", *x)  # noqa: E731
    options = {"num_latents": self.config.num_latents, "num_samples": 1, "dropout_rate": dropout}
    output = self.objective(params, key, rows, classify, params, labels=rows.labels, **options)
    return output.loss / (self.length * self.num_channels)

  def classify(self, params, rows: Rows, imputed: chex.Array) -> jax.Array:
    """Log-probabilities of the classes of series that are completed so."""
    return self.call(params, "classifier", kit.fill(params, rows, imputed), times_of(rows.values))

  def predict(self, params, key, rows: Rows, draws: tuple[int, int]) -> dict[str, jax.Array]:
    """Predictions and imputations of series, one by one; draws are K latent ones, J of each.

    Imputations stand by themselves, `[n, J, K, T, C]`; the classifier sees them with the decay.
    """
    options = dict(zip(("num_latents", "num_samples"), draws), labels=None)
    alone = kit.initial_decay(self.num_channels, jnp.inf)

    def one(inputs):
      key, row = inputs
      row = jax.tree.map(lambda x: x[None], row)
      classify = lambda imputed, *_: self.classify(params, row, imputed)  # noqa: E731
      output = self.objective(params, key, row, classify, alone, **options)
      weights = jnp.exp(output.log_w)[..., None, None]
      mean = jnp.mean(jnp.sum(weights * output.imputed, axis=1), axis=0)
      return {
        "log_probs": mixture(output.log_p_y, output.log_w)[0],
        "once": self.classify(params, row, mean)[0],
        "mean": mean[0],
        "size": jnp.mean(metrics.effective_sample_size(output.log_w, axis=1)),
        "imputed": output.imputed[:, :, 0],
        "log_w": output.log_w[:, :, 0],
      }

    return each_row(one, (jax.random.split(key, len(rows.labels)), rows), batch_size=50)

  def predict_from(self, params, rows: Rows, imputed, log_w) -> jax.Array:
    """Predictions with given imputations and weights, as `predict` gives them."""

    def one(inputs):
      row, imputed, log_w = inputs
      row = jax.tree.map(lambda x: x[None], row)
      return mixture(self.classify(params, row, imputed[:, :, None]), log_w[:, :, None])[0]

    return each_row(one, (rows, imputed, log_w), batch_size=50)


def learn(config, shape, key, problem: Problem, setting) -> dict[str, jax.Array]:
  """Trains, at first without the class: the parameters as one vector, and their validation NLL."""
  model, (init_key, train_key, draw_key) = Model(config, shape), jax.random.split(key, 3)
  losses = functools.partial(model.losses, dropout=setting["dropout"])

  def validate(params):
    found = model.predict(params, draw_key, problem.validation, (config.num_latents, 1))
    return jnp.mean(networks.cross_entropy(found["log_probs"], problem.validation.labels)), ()

  start = model.init(init_key, setting["bias"])
  weights = np.repeat(np.float32([0, 1]), (config.pretraining_steps, config.num_steps))
  fitted = start, losses, validate, problem.train, setting["learning_rate"], weights
  params, _, found = networks.fit(config, train_key, *fitted)
  return found | {"params": ravel_pytree(params)[0]}


def score(config, shape, key, problem: Problem, vectors) -> dict[str, jax.Array]:
  """Measures models of parameters `[m, p]` on test series.

  Gives quantity -> `[m]`; and `example`, completions of the first test series, `[m, K, T, C]`.
  """
  model, size = Model(config, shape), len(problem.validation.labels)
  unravel = ravel_pytree(model.init(key, 0.0))[1]
  parts = _, test = problem.validation, problem.test
  rows = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
  measure = functools.partial(calibrated_scores, labels=[x.labels for x in parts])

  def one(vector):
    params = unravel(vector)
    both = model.predict(params, key, rows, config.eval_draws)
    known, found = ({n: x[part] for n, x in both.items()} for part in np.s_[:size, size:])
    others = (jnp.roll(found[name], 1, axis=0) for name in ("imputed", "log_w"))
    foreign = model.predict_from(params, test, *others)
    measured = measure(known["log_probs"], found["log_probs"])
    first = jax.tree.map(lambda x: x[:1], test)
    return measured | {
      ONCE: measure(known["once"], found["once"])[NLL],
      RELIANCE: measure(known["log_probs"], foreign)[NLL] - measured[NLL],
      MAE: mean_error(found["mean"], test),
      FILLED: mean_error(kit.fill(params, test, found["mean"]), test),
      SIZE: jnp.mean(found["size"]),
      "example": kit.fill(params, first, found["imputed"][0, 0][:, None])[:, 0],
    }

  return jax.lax.map(one, vectors)


def settings(config, rates, *, fadeless: bool) -> dict[str, list[dict[str, float]]]:
  """The rows of the table, and the settings that each may choose from."""
  dropouts = {FULL: rates, UNDROPPED: (0.0,), HIGH: rates[-1:], FADELESS: rates[-1:] * fadeless}
  biases = dict.fromkeys(dropouts, config.bias) | {FADELESS: _NO_DECAY}
  pairs = {method: itertools.product(config.learning_rates, x) for method, x in dropouts.items()}
  found = {
    method: [{"learning_rate": x, "dropout": y, "bias": biases[method]} for x, y in own]
    for method, own in pairs.items()
  }
  return {method: tried for method, tried in found.items() if tried}
