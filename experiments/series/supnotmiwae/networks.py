"""Training of all networks, and classifiers of series that are completed simply."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import incomplete as kit
from experiments.kit.incomplete import DECAY, FORWARD, MASKED, ZERO
from experiments.kit.train import calibrated_scores, train_to_best, values_loss
from experiments.series.supnotmiwae.problems import Problem
from jaxlab import augment, models

EXPECTED, SEVERAL = "Gaussian, expected", "Gaussian, several draws"
FILLS = ZERO, FORWARD, DECAY  # Simple imputations.
DROPPED = (*FILLS, MASKED)  # What is evaluated with dropout as well.
CONTROL = (*DROPPED, kit.MASK)  # What is evaluated where values are missing at random.
METHODS = (*CONTROL, kit.COMPLETE, EXPECTED, SEVERAL)
NLL, ACCURACY, MAE, VALIDATION = "NLL", "accuracy", "MAE", "validation NLL"
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def classifier(config, num_classes: int) -> models.SeriesClassifier:
  """The architecture of all classifiers."""
  sizes = config.width, config.classifier_layers, config.num_heads
  return models.SeriesClassifier(num_classes, *sizes)


def optimizer(config, learning_rate: chex.Numeric, num_steps: int) -> optax.GradientTransformation:
  """Adam, its rate falling to 0 as a cosine; the bias of the decay stays at 0 or above."""
  adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
  # One vector in place of many small arrays takes less time, and much less to compile.
  descent = optax.flatten(optax.chain(optax.clip_by_global_norm(config.clip), adam))
  only_bias = lambda params: {name: name == "bias" for name in params}  # noqa: E731
  return optax.chain(descent, optax.masked(optax.keep_params_nonnegative(), only_bias))


def fit(config, key, params, values_fn, validate, rows, rate, schedule=None) -> tuple:
  """Parameters, scores, records. Losses are `(params, key, rows or (rows, entries)) -> [b]`."""
  num_steps = config.num_steps if schedule is None else len(schedule)
  sizes = {"num_steps": num_steps, "schedule": schedule}
  sizes |= {name: getattr(config, name) for name in ("batch_size", "eval_every")}
  loss, descent = values_loss(values_fn), optimizer(config, rate, num_steps)
  trained = train_to_best(key, params, loss, descent, rows, validate, **sizes)
  least, scores = trained.scores
  return trained.params, scores, {VALIDATION: least, "bad_step": trained.bad_step}


def impute(config, problem: Problem, seed) -> dict[str, tuple[np.ndarray, ...]]:
  """Completions of all parts by a Gaussian law that is fitted to them, whatever their class."""
  rng = np.random.default_rng([seed, 1])
  law = kit.fit_law(*problem[:2], strengths=config.strengths, num_steps=config.em_steps)
  found = [kit.completions(rng, law, part, config.num_imputations) for part in problem[:3]]
  return dict(zip((EXPECTED, SEVERAL), zip(*found)))


@functools.cache  # Problems of one shape share a program.
def evaluation(config, num_classes: int):
  """`(key, (problem, completions), setting) -> measures` of a classifier of completed series."""
  module = classifier(config, num_classes)

  def classify(params, series):
    return module.apply({"params": params["classifier"]}, series, kit.times_of(series))

  def evaluate(key, inputs, setting):
    (*parts, _), given = inputs
    _, validation, test = parts
    init_key, train_key = jax.random.split(key)
    show = functools.partial(kit.shown, setting["method"].astype(int))

    def values(params, key, batch):
      rows, given = batch
      drop_key, pick_key = jax.random.split(key)
      kept = augment.observation_dropout(drop_key, rows.mask, rate=setting["dropout"]).kept
      places = jax.random.randint(pick_key, rows.labels.shape, 0, given.shape[1])
      series = show(params, rows, kept, given[jnp.arange(len(places)), places])
      return cross_entropy(classify(params, series), rows.labels)

    def predict(params, inputs):
      row, given = inputs
      row = jax.tree.map(lambda x: x[None], row)
      series = show(params, row, row.mask, given[:, None])
      found = classify(params, series)[:, 0]
      fill = jnp.mean(series[:, 0, :, : given.shape[-1]], axis=0)
      return jax.nn.logsumexp(found, axis=0) - jnp.log(len(found)), fill

    def validate(params):
      both = jax.tree.map(lambda *x: jnp.concatenate(x), *zip(parts[1:], given[1:]))
      log_probs, fill = kit.each_row(functools.partial(predict, params), both)
      size = len(validation.labels)
      loss = jnp.mean(cross_entropy(log_probs[:size], validation.labels))
      return loss, (log_probs[:size], log_probs[size:], kit.mean_error(fill[size:], test))

    rows = jax.tree.map(jnp.asarray, (parts[0], given[0]))
    length, num_channels = rows[0].values.shape[1:]
    series = jnp.zeros((1, length, 2 * num_channels))
    params = kit.initial_decay(num_channels, config.bias)
    params["classifier"] = module.init(init_key, series, kit.times_of(series))["params"]
    fitted = params, values, validate, rows, setting["learning_rate"]
    _, (*log_probs, error), found = fit(config, train_key, *fitted)
    labels = [x.labels for x in parts[1:]]
    return found | calibrated_scores(*log_probs, labels=labels) | {MAE: error}

  return evaluate
