"""Optimizing calibration by gaining aware of prediction correctness.

A calibrator gives every sample a temperature, from how its prediction changes when the input is
transformed. Trained by cross-entropy it sharpens narrow misses; trained on whether the prediction
is right it does not. Networks are calibrated on clean data and judged under corruptions.
"""

import dataclasses
import functools
import itertools
import operator
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from experiments.classification import Split
from jaxlab import augment, data, losses, metrics, models, training, uncertainty

PAPER = "correctness_calibration"
CLEAN = "clean"
CALIBRATORS = {
  "adaptive CE": metrics.negative_log_likelihood,
  "adaptive Brier": losses.brier_loss,
  "correctness": losses.correctness_aware_loss,
  "correctness, unbalanced": functools.partial(losses.correctness_aware_loss, balanced=False),
}
BLIND = "correctness, constant cues"
METHODS = ("none", "temperature", *CALIBRATORS, BLIND)
OURS, RIVALS = "correctness", ("temperature", "adaptive CE")
QUANTITIES = ("ECE", "KS", "Brier", "AUROC", "SCE", "NLL", "mean temperature")


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the networks and the calibrators."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # cifar10 brings cifar10_corrupted (tfds).
  num_train: int = 4000  # Rows that networks are trained on.
  num_calibration: int = 3000  # Rows that calibrators are fitted to.
  num_test: int = 3000  # Test rows, clean and under every corruption.
  corruptions: tuple[str, ...] = augment.SIGNAL_CORRUPTIONS  # Kinds.
  severities: tuple[int, ...] = (2, 4)  # Of each kind.
  networks: tuple[str, ...] = ("CNN", "MLP")  # Base models.
  conv_widths: tuple[int, ...] = (32, 64, 64)  # Channels of the CNN's blocks.
  dense_widths: tuple[int, ...] = (256, 256)  # Widths of the MLP's blocks.
  learning_rate: float = 2e-3  # Peak of the networks' schedule (AdamW, cosine).
  batch_size: int = 100  # Rows an update of the networks.
  num_steps: int = 2000  # Updates of the networks.
  top_k: int = 4  # Classes that the cues follow.
  calibrator_rate: float = 1e-3  # Learning rate of the calibrators.
  calibrator_batch: int = 1000  # Rows an update of the calibrators.
  calibrator_steps: int = 2000  # Updates of the calibrators.
  num_bins: int = 25  # Of the calibration error.


PRESETS = {
  "smoke": Config(
    num_train=120,
    num_calibration=60,
    num_test=60,
    corruptions=("blur", "drift"),
    severities=(4,),
    networks=("MLP",),
    dense_widths=(16,),
    batch_size=40,
    num_steps=20,
    calibrator_batch=30,
    calibrator_steps=20,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_train=45_000,
    num_calibration=5_000,
    num_test=10_000,
    corruptions=(
      *("gaussian_noise", "shot_noise", "impulse_noise"),
      *("defocus_blur", "frosted_glass_blur", "motion_blur", "zoom_blur"),
      *("snow", "frost", "fog", "brightness"),
      *("contrast", "elastic", "pixelate", "jpeg_compression"),
    ),
    severities=(1, 2, 3, 4, 5),
    networks=("CNN",),
    conv_widths=(64, 128, 256, 512),
    batch_size=128,
    num_steps=70_000,
  ),
}


def load(config: Config) -> tuple[Split, Split, Split]:
  """Rows to train on, to calibrate on and to test on."""
  if config.dataset == "mnist1d":
    return classification.mnist1d_splits(config.num_train, config.num_calibration, config.num_test)
  pool, test = (_images("cifar10", split) for split in ("train", "test"))
  train, calibration = (
    Split(*(array[rows] for array in pool))
    for rows in (slice(config.num_train), slice(-config.num_calibration, None))
  )
  return train, calibration, Split(*(array[: config.num_test] for array in test))


def shifted(config: Config, test: Split, key) -> Iterator[tuple[str, Split]]:
  """The test rows as they are, then under every corruption."""
  yield CLEAN, test
  names = [f"{kind} {severity}" for kind in config.corruptions for severity in config.severities]
  if config.dataset == "mnist1d":
    stream = augment.corruption_stream(
      key,
      *test,
      kinds=config.corruptions,
      severities=config.severities,
      batch_size=len(test.labels),
    )
    yield from zip(names, map(Split, stream.inputs, stream.labels), strict=True)
    return
  for name in names:
    yield name, _images(f"cifar10_corrupted/{name.replace(' ', '_')}", "test")


def _images(name: str, split: str) -> Split:
  arrays = data.as_arrays(data.load_source(name, split=split))
  return Split(arrays["image"].astype(np.float32) / 255.0, arrays["label"].astype(np.int32))


def transforms(inputs: jax.Array) -> list[jax.Array]:
  """Three versions of each input: signals delayed, blurred, damped; images turned, grey, dimmed."""
  if inputs.ndim == 4:
    grey = jnp.broadcast_to(inputs.mean(-1, keepdims=True), inputs.shape)
    return [jnp.rot90(inputs, axes=(1, 2)), grey, 0.7 * inputs]
  delayed = inputs[:, jnp.maximum(jnp.arange(inputs.shape[1]) - 2, 0)]
  return [delayed, augment.blur_signals(inputs, 1.0), 0.7 * inputs]


def network(config: Config, name: str):
  """A base model."""
  if name == "MLP":
    return models.MLP(10, config.dense_widths)
  if config.dataset == "mnist1d":
    return models.ConvNet(10, config.conv_widths)
  strides = (1,) + (2,) * (len(config.conv_widths) - 1)
  return models.ConvNet(10, config.conv_widths, kernel_size=(3, 3), strides=strides)


def optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW, its rate falling to 0."""
  return optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))


class Observed(NamedTuple):
  """What a calibrator sees: logits of the inputs `[n, k]`, cues of their versions `[n, c]`."""

  logits: Any
  cues: Any


def observe(config: Config, module, variables, inputs: jax.Array) -> Observed:
  """Runs the network on the inputs and on their transformed versions."""
  logits, *others = (
    classification.predict(module, variables, version).logits
    for version in (inputs, *transforms(inputs))
  )
  return Observed(logits, uncertainty.transform_cues(logits, jnp.stack(others), top_k=config.top_k))


def prepare(config: Config, name: str, train: Split, calibration: Split, key) -> dict[str, Any]:
  """One seed: trains a network and fits every calibrator to it."""
  train_key, fit_key = jax.random.split(key)
  module = network(config, name)
  trained = classification.train(
    train_key,
    module,
    classification.classification_loss(module),
    optimizer(config),
    train,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
  )
  seen = observe(config, module, trained.variables, jnp.asarray(calibration.inputs))
  labels = jnp.asarray(calibration.labels)

  def fit(loss_fn, cues):
    return uncertainty.fit_adaptive_temperature(
      fit_key,
      seen.logits,
      cues,
      labels,
      loss_fn=loss_fn,
      num_steps=config.calibrator_steps,
      batch_size=config.calibrator_batch,
      learning_rate=config.calibrator_rate,
    )

  adaptive = [fit(loss_fn, seen.cues) for loss_fn in CALIBRATORS.values()]
  adaptive.append(fit(losses.correctness_aware_loss, jnp.ones_like(seen.cues)))
  return {
    "variables": trained.variables,
    "temperature": uncertainty.fit_temperature(seen.logits, labels),
    "adaptive": jax.tree.map(lambda *leaves: jnp.stack(leaves), *adaptive)._asdict(),
  }


def judge(config: Config, module, prepared: dict[str, Any], split: Split) -> dict[str, jax.Array]:
  """Scores of all `METHODS` on one set, in their order."""
  logits, cues = observe(config, module, prepared["variables"], split.inputs)
  labels, num_rows = split.labels, len(split.labels)
  stacked = uncertainty.AdaptiveTemperature(**prepared["adaptive"])
  *informed, blind = (
    jax.tree.map(operator.itemgetter(i), stacked) for i in range(len(CALIBRATORS) + 1)
  )
  temperatures = [
    jnp.ones(num_rows),
    jnp.full(num_rows, prepared["temperature"]),
    *(uncertainty.adaptive_temperature(params, cues) for params in informed),
    uncertainty.adaptive_temperature(blind, jnp.ones_like(cues)),
  ]
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
      "narrow misses": jnp.sum(narrow),
      "their confidence": jnp.sum(jnp.where(narrow, confidence, 0.0)),
      "diagram": jnp.stack(metrics.reliability_diagram(probs, labels, num_bins=config.num_bins)),
    }

  return jax.lax.map(score, jnp.stack(temperatures))


def run(config: Config, context: common.Context) -> common.Results:
  """Prepares all seeds of each network, then judges every calibrator on every set."""
  train, calibration, test = load(config)
  rows: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
  extras: dict[str, Any] = {}
  for name in config.networks:
    prepared = context.cached(
      f"{name}/prepare",
      training.over_seeds,
      context.key,
      functools.partial(prepare, config, name, train, calibration),
      num_seeds=context.seeds,
    )
    found = context.cached(f"{name}/judge", _judge_all, config, context, name, prepared, test)
    scores = found["scores"]
    parts = {CLEAN: slice(1), "corrupted": slice(1, None)}
    for i, method in enumerate(METHODS):
      for part, sets in parts.items():
        values = {key: value[:, sets, i] for key, value in scores.items()}
        for quantity in QUANTITIES:
          rows[method][f"{name}, {part}/{quantity}"] = values[quantity].mean(1)
      misses = scores["narrow misses"][:, :, i].sum(1)
      total = np.where(misses > 0, scores["their confidence"][:, :, i].sum(1), np.nan)
      rows[method][f"{name}, narrow misses/confidence"] = total / np.maximum(misses, 1)
      extras[f"{name}/ECE/{method}"] = scores["ECE"][:, :, i].mean(0)
      extras[f"{name}/diagram/{method}"] = _pooled(scores["diagram"][0, 1:, i])
    for part, sets in parts.items():
      rows["none"][f"{name}, network/accuracy, {part}"] = scores["accuracy"][:, sets, 0].mean(1)
    rows["none"][f"{name}, network/narrow misses"] = scores["narrow misses"][:, :, 0].sum(1)
    extras["sets"] = found["sets"]
  return common.Results(rows, extras)


def _judge_all(config: Config, context: common.Context, name: str, prepared, test: Split) -> dict:
  """Scores `[seeds, sets, methods]` and the names of the sets."""
  program = jax.jit(functools.partial(judge, config, network(config, name)))
  scores = []
  for seed in range(context.seeds):
    of_seed = jax.tree.map(operator.itemgetter(seed), prepared)
    key = jax.random.fold_in(context.seed_key(seed), 1)
    names, splits = zip(*shifted(config, test, key))
    by_set = [jax.device_get(program(of_seed, split)) for split in splits]
    scores.append(jax.tree.map(lambda *leaves: np.stack(leaves), *by_set))
  return {
    "scores": jax.tree.map(lambda *leaves: np.stack(leaves), *scores),
    "sets": np.array(names),
  }


def _pooled(diagrams: np.ndarray) -> np.ndarray:
  """One reliability diagram out of those of several sets, `[sets, 3, bins]`."""
  count = diagrams[:, 2].sum(0)
  sums = (diagrams[:, :2] * diagrams[:, 2:]).sum(0)
  return np.concatenate([sums / np.maximum(count, 1), count[None]])


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements."""

  def compared(text, quantity, rival, better="lower", **options):
    ours, theirs = (results[method, quantity] for method in (OURS, rival))
    return common.compare(text, ours, theirs, better=better, **options)

  found = []
  for name in dict.fromkeys(name.partition(",")[0] for name in results.quantities[OURS]):
    corrupted = f"{name}, corrupted"
    for rival, quantity in itertools.product(RIVALS, ("ECE", "KS")):
      text = f"{corrupted}: {quantity} below that of {rival}"
      found.append(compared(text, f"{corrupted}/{quantity}", rival, paper="best or second best"))
    found += [
      compared(
        f"{name}: narrow misses less confident than by adaptive CE",
        f"{name}, narrow misses/confidence",
        "adaptive CE",
      ),
      compared(
        f"{corrupted}: AUROC of confidence above that of temperature",
        f"{corrupted}/AUROC",
        "temperature",
        better="higher",
        paper="best",
      ),
      compared(
        f"{corrupted}: ECE below that of the same loss with constant cues",
        f"{corrupted}/ECE",
        BLIND,
      ),
      compared(
        f"{name}, clean: ECE at most 0.005 above that of temperature",
        f"{name}, clean/ECE",
        "temperature",
        margin=-0.005,
      ),
    ]
  return found


def figure(results: common.Results):
  """Calibration error by corruption, and reliability over all corrupted sets."""
  import matplotlib.pyplot as plt

  shown = (*RIVALS, OURS)
  networks = list(dict.fromkeys(name.partition("/")[0] for name in results.extras if "/" in name))
  sets = [str(name) for name in results.extras["sets"]]
  fig, axes = plt.subplots(
    len(networks),
    1 + len(shown),
    figsize=(4.2 * (1 + len(shown)), 4.2 * len(networks)),
    squeeze=False,
    layout="constrained",
  )
  for row, name in zip(axes, networks):
    for method in shown:
      row[0].plot(results.extras[f"{name}/ECE/{method}"], np.arange(len(sets)), ".", label=method)
    row[0].set_yticks(range(len(sets)), sets, fontsize=7)
    row[0].invert_yaxis()
    row[0].set(xlabel="ECE", title=f"{name}: by set")
    row[0].legend(fontsize=7)
    for ax, method in zip(row[1:], shown):
      confidence, accuracy, count = results.extras[f"{name}/diagram/{method}"]
      metrics.plot_reliability(metrics.Reliability(confidence, accuracy, count.astype(int)), ax=ax)
      ax.set_title(f"{name}, corrupted: {method}", fontsize=10)
  return fig


def abstract(config: Config, mesh):
  """One update of a base model, for a dry run."""
  module = network(config, config.networks[0])
  shape = (40, 1) if config.dataset == "mnist1d" else (32, 32, 3)

  def init(key):
    variables = dict(module.init(key, jnp.zeros((1, *shape))))
    params = variables.pop("params")
    return training.init_state(key, params, optimizer(config), model_state=variables)

  loss_fn = classification.classification_loss(module)
  batch = Split(
    jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32),
    jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
  )
  update = training.build_update(loss_fn, optimizer(config), mesh=mesh)
  return update, jax.eval_shape(init, jax.random.key(0)), batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
