"""Digits whose labels are noisy, hidden or both: how far is a row from the true probabilities?"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import entr
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.kit.dropout import DropoutNetwork
from experiments.kit.train import classification_loss, predict, train
from jaxlab import data, losses, metrics, uncertainty

PAIRS, MIXTURE, REGRESSION = "pairs", "pairs, mixture", "plain and pair regression"
PLAIN, ENSEMBLE, DROPOUT = "plain", "ensemble", "dropout"
ISOTONIC, ORACLE = "ensemble, isotonic on pairs", "exact posterior"
TRAINED = PAIRS, MIXTURE, REGRESSION, ENSEMBLE, DROPOUT
NUM_CLASSES = 10
EVEN, COINS, HIDDEN, HINTED = "0, 2, 4, 6, 8", "1, 3", "5, 7", "9"
GROUPS = EVEN, COINS, HIDDEN, HINTED
GROUP_OF = np.array([0, 1, 0, 1, 0, 2, 0, 2, 0, 3])  # Of each digit.


class Parts(NamedTuple):
  """Disjoint images; inputs are pixels `[n, d]` in [0, 1]."""

  train: Split
  calibration: Split  # For variances.
  test: Split


class Prediction(NamedTuple):
  """Probabilities `[n, 10]` and their variance around the true ones, which may be negative."""

  probs: chex.Array
  variance: chex.Array


def draw(config, seed: int) -> Parts:
  """Splits the images anew."""
  counts = config.num_train, config.num_calibration, config.num_test
  splits = datasets.describe(config.dataset).splits(*counts, seed=seed)
  pixels = np.concatenate([split.inputs for split in splits])
  low, high = (f(pixels, axis=(0, 1, 2)) for f in (np.min, np.max))
  scaled = [(split.inputs - low) / (high - low) for split in splits]
  return Parts(*(Split(x.reshape(len(x), -1), y.labels) for x, y in zip(scaled, splits)))


def draw_batch(config, key: chex.PRNGKey, images: Split, batch_size: int) -> data.AmbiguousBatch:
  """Noisy images with a cue and two labels each."""
  options = {"contrast": config.contrast, "pixel_noise": config.pixel_noise}
  return data.ambiguous_digit_batch(key, *images, batch_size=batch_size, **options)


def draw_tests(config, key: chex.PRNGKey, parts: Parts) -> tuple[tuple, tuple]:
  """Draws of the test images and of the calibration images, the same for all rows of a seed."""
  keys = jax.random.split(key)
  test = draw_batch(config, keys[0], parts.test, config.num_draws)
  return tuple(test), tuple(draw_batch(config, keys[1], parts.calibration, config.num_pairs))


def network(config, row: str) -> DropoutNetwork:
  """The network of a row: the rows differ in its last layer, and in dropout."""
  outputs = {
    PAIRS: NUM_CLASSES**2,
    MIXTURE: config.num_components * (1 + NUM_CLASSES),
    REGRESSION: 2 * NUM_CLASSES,
  }.get(row, NUM_CLASSES)
  images = datasets.describe(config.dataset)
  shape = () if images.name == "digits" else images.shape
  dropout = config.dropout if row == DROPOUT else 0.0
  return DropoutNetwork(outputs, config.widths, dropout, shape)


def _mixture(config, outputs):
  num = config.num_components
  return outputs[:, :num], outputs[:, num:].reshape(-1, num, NUM_CLASSES)


def row_loss(config, row: str, outputs: chex.Array, batch: data.AmbiguousBatch) -> jax.Array:
  """What a row is trained to make small, `[b]`; all see both labels."""
  labels = batch.labels_a, batch.labels_b
  if row == PAIRS:
    return losses.pair_nll(outputs.reshape(-1, NUM_CLASSES, NUM_CLASSES), *labels)
  if row == MIXTURE:
    return losses.mixture_pair_nll(*_mixture(config, outputs), *labels)
  logits, further = outputs[:, :NUM_CLASSES], outputs[:, NUM_CLASSES:]
  total = sum(optax.softmax_cross_entropy_with_integer_labels(logits, y) for y in labels)
  if row == REGRESSION:
    probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
    products = metrics.pair_squared_error(probs, *labels)
    total += jnp.sum(jnp.square(further - products), axis=1)
  return total


def read(config, row: str, outputs: chex.Array) -> Prediction:
  """What the outputs of one network say."""
  if row in (PAIRS, MIXTURE):
    if row == PAIRS:
      joint = losses.pair_log_probs(outputs.reshape(-1, NUM_CLASSES, NUM_CLASSES))
    else:
      joint = losses.mixture_pair_log_probs(*_mixture(config, outputs))
    covariance = uncertainty.epistemic_covariance(joint)
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    return Prediction(uncertainty.pair_marginal(joint), variance)
  probs = jax.nn.softmax(outputs[:, :NUM_CLASSES])
  return Prediction(probs, outputs[:, NUM_CLASSES:] if row == REGRESSION else 0 * probs)


def loss_of(config, row: str):
  """The engine's loss of a row."""

  def loss_fn(apply, key, batch):
    return row_loss(config, row, apply(batch.inputs, rngs={"dropout": key}).logits, batch)

  return classification_loss(network(config, row), loss_fn)


def fit(config, row: str, key: chex.PRNGKey, inputs) -> dict:
  """Trains a row.

  Args:
    config: of the experiment.
    row: its name.
    key: of initialization and draws.
    inputs: training images, and what `draw_tests` gives.

  Returns:
    `prediction` for the test draws, and `bad_step`. Of an ensemble also that of its first member,
    `plain`, and variances and products of residuals `[c, 10]` of `calibration` pairs.
  """
  module, (images, test, held) = network(config, row), inputs
  test, held = data.AmbiguousBatch(*test), data.AmbiguousBatch(*held)

  def member(key):
    options = {"num_steps": config.num_steps, "batch_size": config.draws_per_update}
    batch = lambda key, size: draw_batch(config, key, images, size)  # noqa: E731
    optimizer = optax.adam(config.learning_rate)
    trained = train(key, module, loss_of(config, row), optimizer, batch, **options)
    outputs = lambda *x, **how: predict(module, trained.variables, *x, **how).logits  # noqa: E731
    if row == DROPOUT:
      keys = jax.random.split(jax.random.fold_in(key, 1), config.num_passes)
      passes = jax.lax.map(lambda k: outputs(test.inputs, drop=True, rngs={"dropout": k}), keys)
      return pooled(jax.nn.softmax(passes)), trained.bad_step
    if row == ENSEMBLE:
      return [jax.nn.softmax(outputs(x.inputs)) for x in (test, held)], trained.bad_step
    return read(config, row, outputs(test.inputs)), trained.bad_step

  if row != ENSEMBLE:
    prediction, bad_step = member(key)
    return {"prediction": tuple(prediction), "bad_step": bad_step}
  keys = jnp.concatenate([key[None], jax.random.split(key, config.num_members - 1)])
  (probs, held_probs), bad_step = jax.lax.map(member, keys)
  calibrating = pooled(held_probs)
  products = metrics.pair_squared_error(calibrating.probs, held.labels_a, held.labels_b)
  return {
    "prediction": tuple(pooled(probs)),
    "plain": (probs[0], jnp.zeros_like(probs[0])),
    "calibration": (calibrating.variance, products),
    "bad_step": bad_step,
  }


def pooled(probs: chex.Array) -> Prediction:
  """Mean and variance of members or passes `[m, n, 10]`."""
  return Prediction(jnp.mean(probs, axis=0), uncertainty.ensemble_variance(probs))


def recalibrated(prediction: Prediction, calibration) -> Prediction:
  """The variance as an increasing function of itself, fitted to products of residuals of pairs."""
  fitted = IsotonicRegression(out_of_bounds="clip").fit(*map(np.ravel, calibration))
  found = fitted.predict(prediction.variance.ravel()).reshape(prediction.variance.shape)
  return prediction._replace(variance=found.astype(np.float32))


def exact(config, draws: data.AmbiguousBatch) -> Prediction:
  """Mean and variance of the true probabilities given digit and cue."""
  group = GROUP_OF[draws.digits]
  # The chance of the second answer, by the cue where it says something.
  share = np.where(group == 3, expit(2 * config.contrast * draws.inputs[:, -1]), 0.5 * (group > 0))
  spread = np.where(group == 1, 0.0, share * (1 - share))
  first, second = (np.eye(NUM_CLASSES)[c] for c in candidates(draws.digits))
  probs = (1 - share[:, None]) * first + share[:, None] * second
  variance = spread[:, None] * (first + second)
  return Prediction(probs.astype(np.float32), variance.astype(np.float32))


def candidates(digits: chex.Array) -> tuple[chex.Array, chex.Array]:
  """The two answers that an odd digit may have."""
  return digits, (digits + 1) % NUM_CLASSES


def score(config, key: chex.PRNGKey, draws: data.AmbiguousBatch, prediction: Prediction) -> dict:
  """How well a row knows what it does not know; quantities `by group` are `[4]`, others `[]`."""
  probs = prediction.probs
  variance = jnp.maximum(prediction.variance, 0.0)
  errors = jnp.square(draws.probs - probs)
  labels = draws.labels_a, draws.labels_b
  groups = jax.nn.one_hot(jnp.asarray(GROUP_OF)[draws.digits], len(GROUPS))

  def by_group(values):
    return values @ groups / jnp.sum(groups, axis=0)

  def at(values, answers):
    return jnp.take_along_axis(values, answers[:, None], axis=1)[:, 0]

  interval = uncertainty.probability_interval(probs, variance, beta=config.beta)
  cells = [[at(x, c) for c in candidates(draws.digits)] for x in (draws.probs, *interval)]
  inside = jax.vmap(metrics.interval_coverage)(*(jnp.stack(x, axis=1) for x in cells))
  odd = 1 - groups[:, 0]

  answers = jax.random.categorical(key, jnp.log(probs))
  wrong = (at(draws.probs, answers) == 0).astype(jnp.float32)
  given = at(probs, answers)
  confidence = given**2 / (given**2 + at(variance, answers))  # That of `pair_confidence`.

  def hallucinated(scores):
    # Draws have a random order, which ties keep.
    return jnp.mean(wrong[jnp.argsort(-scores, stable=True)[: round(config.accepted * len(wrong))]])

  calibration = metrics.second_order_calibration_error
  products, hits = (
    metrics.pair_squared_error(probs, *labels),
    jax.nn.one_hot(labels[0], NUM_CLASSES),
  )
  estimate = uncertainty.class_error_estimate(probs, variance)
  total = jnp.sum(errors, axis=1)
  right = (jnp.argmax(probs, axis=1) == draws.digits).astype(jnp.float32)
  nll = -sum(jnp.log(jnp.maximum(at(probs, y), 1e-30)) for y in labels) / 2
  return {
    "ECE2": calibration(variance, errors),
    "ECE2 by pairs": calibration(variance, products),
    "ECE1": calibration(probs, hits),
    "NLL": jnp.mean(nll),
    "even digits right": by_group(right)[0],
    "coverage": jnp.sum(inside * odd) / jnp.sum(odd),
    "hallucinated, by probability": hallucinated(given),
    "hallucinated, by confidence": hallucinated(confidence),
    "Spearman with the error": metrics.spearman_correlation(estimate.epistemic, total),
    "rejection ratio": metrics.rejection_ratio(estimate.epistemic, total),
    "by group": {
      "variance": by_group(estimate.epistemic),
      "unclipped variance": by_group(jnp.sum(prediction.variance, axis=1)),
      "squared error": by_group(total),
      "entropy": by_group(jnp.sum(entr(probs), axis=1)),
    },
  }
