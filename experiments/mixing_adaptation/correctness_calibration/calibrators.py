"""Calibrators of a network: what they see of an input, how they are fitted and evaluated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kit.datasets import Split
from experiments.kit.train import adamw_cosine, classification_loss, nan_unless, predict, train
from jaxlab import augment, losses, metrics, uncertainty


def balanced(loss_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The loss with rows so weighted that right and wrong ones have the same total weight."""

  def loss(logits, labels):
    correct = jnp.argmax(logits, -1) == labels
    share = jnp.mean(correct)
    weights = jnp.where(correct, 0.5 / jnp.maximum(share, 1e-6), 0.5 / jnp.maximum(1 - share, 1e-6))
    return weights * loss_fn(logits, labels)

  return loss


# Calibrators that give every row a temperature: their loss, and whether they see the cues.
CALIBRATORS = {
  "CE": (metrics.negative_log_likelihood, True),
  "balanced CE": (balanced(metrics.negative_log_likelihood), True),
  "balanced CE, constant cues": (balanced(metrics.negative_log_likelihood), False),
  "balanced Brier": (balanced(losses.brier_loss), True),
  "correctness": (losses.correctness_aware_loss, True),
  "correctness, unbalanced": (partial(losses.correctness_aware_loss, balanced=False), True),
  "correctness, constant cues": (losses.correctness_aware_loss, False),
}
METHODS = ("none", "temperature", *CALIBRATORS)


def transforms(inputs: jax.Array) -> list[jax.Array]:
  """Three versions of each input: signals delayed, blurred, damped; images turned, gray, dimmed."""
  if inputs.ndim == 4:
    gray = jnp.broadcast_to(inputs.mean(-1, keepdims=True), inputs.shape)
    return [jnp.rot90(inputs, axes=(1, 2)), gray, 0.7 * inputs]
  delayed = inputs[:, jnp.maximum(jnp.arange(inputs.shape[1]) - 2, 0)]
  return [delayed, augment.blur_signals(inputs, 1.0), 0.7 * inputs]


def observe(config, module, variables, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What a calibrator sees: logits of the inputs `[n, k]`, cues of their versions `[n, c]`."""
  logits, *others = (
    predict(module, variables, version).logits for version in (inputs, *transforms(inputs))
  )
  return logits, uncertainty.transform_cues(logits, jnp.stack(others), top_k=config.top_k)


def fit(config, module, key, splits: tuple[Split, Split]) -> dict[str, Any]:
  """Trains a network and fits every calibrator to it."""
  rows, calibration = splits
  train_key, fit_key = jax.random.split(key)
  trained = train(
    train_key,
    module,
    classification_loss(module),
    adamw_cosine(config.learning_rate, config.num_steps),
    rows,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
  )
  logits, cues = observe(config, module, trained.variables, calibration.inputs)
  adaptive = {
    method: uncertainty.fit_adaptive_temperature(
      fit_key,
      logits,
      jnp.where(informed, cues, 1.0),
      calibration.labels,
      loss_fn=loss_fn,
      num_steps=config.calibrator_steps,
      batch_size=config.calibrator_batch,
      learning_rate=config.calibrator_rate,
    )._asdict()
    for method, (loss_fn, informed) in CALIBRATORS.items()
  }
  temperature = uncertainty.fit_temperature(logits, calibration.labels)
  fitted = {"variables": trained.variables, "temperature": temperature, "adaptive": adaptive}
  return fitted | {"bad_step": trained.bad_step}


def evaluate(config, module, fitted: dict[str, Any], split: Split) -> dict[str, jax.Array]:
  """Scores of all `METHODS` on one set, in their order."""
  logits, cues = observe(config, module, fitted["variables"], split.inputs)
  labels = split.labels
  temperatures = [jnp.ones(len(labels)), jnp.full(len(labels), fitted["temperature"])]
  for method, (_, informed) in CALIBRATORS.items():
    params = uncertainty.AdaptiveTemperature(**fitted["adaptive"][method])
    temperatures.append(uncertainty.adaptive_temperature(params, jnp.where(informed, cues, 1.0)))
  true_prob = jnp.exp(-metrics.negative_log_likelihood(logits, labels))
  correct = jnp.argmax(logits, -1) == labels
  narrow = ~correct & (true_prob >= 0.3) & (true_prob <= 0.5)

  def score(temperature):
    calibrated = uncertainty.apply_temperature(logits, temperature=temperature)
    probs = jax.nn.softmax(calibrated)
    confidence = jnp.max(probs, -1)
    return {
      "ECE": metrics.confidence_calibration_error(confidence, correct, num_bins=config.num_bins),
      "KS": metrics.kolmogorov_smirnov_error(confidence, correct),
      "Brier": jnp.mean(jnp.square(confidence - correct)),
      "AUROC": metrics.auroc(confidence, correct),
      "SCE": metrics.static_calibration_error(probs, labels),
      "NLL": jnp.mean(metrics.negative_log_likelihood(calibrated, labels)),
      "mean temperature": jnp.mean(temperature),
      "accuracy": jnp.mean(correct),
      "misses": jnp.sum(narrow),
      "confidence of misses": jnp.sum(jnp.where(narrow, confidence, 0.0)),
    }

  scores = jax.lax.map(score, jnp.stack(temperatures))
  return nan_unless(jnp.all(jnp.isfinite(logits)), scores)
