"""Students whose ratios are given beforehand: one number for all rows, or a rule's."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from experiments.kit.datasets import Dataset
from experiments.kit.sweep import choose
from experiments.kit.train import accuracy, train
from experiments.labels.trilateral_kd.problems import TEACHER, Problem, groups, network
from jaxlab import losses, training

FIXED, BEST, BEST_NOISY = "fixed ratio", "best fixed ratio", "best fixed ratio, noisy rows alone"
LABELS_ONLY, TEACHER_ONLY, CLEAN_ONLY = "labels only", "teacher only", "clean rows alone"
CONFIDENCE, LOOKUP = "teacher's confidence in the label", "lookup table"
ORACLE, CLEAN_LABELS = "oracle ratio", "clean labels"
BY_ROW = CONFIDENCE, LOOKUP, ORACLE, CLEAN_LABELS  # Clean labels are of ratio 0, with true labels.
NOISY, NOISY_AND_CLEAN = "noisy rows alone", "noisy and clean rows"


class Arm(NamedTuple):
  """What a student is told of training and clean rows, all `[n + m]`."""

  labels: chex.Array
  ratio: chex.Array  # The teacher's share.
  weight: chex.Array


def draw_arms(config, problem: Problem, logits: np.ndarray) -> dict[tuple, Arm]:
  """All arms of a seed by (method, ratio, weight of a clean row), NumPy arrays."""
  num, num_rows = len(problem.truth), len(problem.labels)
  probs = special.softmax(logits, axis=-1)
  says, clean = probs.argmax(-1), problem.labels[num:]
  checked = says[num:]
  count = lambda x: np.bincount(x, minlength=probs.shape[1])  # noqa: E731
  right, made = count(checked[checked == clean]), count(checked)
  ratios = {
    CONFIDENCE: probs[np.arange(num), problem.labels[:num]],
    # Half a right and half a wrong one more, so that one row decides nothing.
    LOOKUP: ((right + 0.5) / (made + 1))[says[:num]],
    ORACLE: groups(problem, logits)[TEACHER],
    CLEAN_LABELS: np.zeros(num),
  }

  def arm(ratio, clean_weight, *, noisy_weight=1.0, labels=problem.labels):
    of_clean = np.zeros(num_rows - num)
    weight = np.concatenate([np.full(num, noisy_weight), of_clean + clean_weight])
    ratio = np.concatenate([np.broadcast_to(ratio, num), of_clean])
    return Arm(labels, ratio.astype(np.float32), weight.astype(np.float32))

  arms = {(CLEAN_ONLY, None, 1.0): arm(0.0, 1.0, noisy_weight=0.0)}
  for weight in (0.0, *config.clean_weights):
    arms |= {(FIXED, ratio, weight): arm(ratio, weight) for ratio in config.ratios}
  true = np.concatenate([problem.truth, clean])
  for method in BY_ROW:
    labels = true if method == CLEAN_LABELS else problem.labels
    for weight in config.clean_weights:
      arms[method, None, weight] = arm(ratios[method], weight, labels=labels)
  return arms


def ratio_loss(module, temperature: chex.Numeric):
  """The engine's loss of students on batches of inputs, the teacher's logits and the `Arm`."""

  def loss(params, model_state, batch, key):
    del model_state, key
    inputs, teacher_logits, arm = batch
    sides = module.apply({"params": params}, inputs).logits, teacher_logits, arm.labels, arm.ratio
    values = losses.fused_distillation_loss(*sides, temperature=temperature)
    return training.LossOutput(values, arm.weight)

  return loss


def settings(config) -> list[dict[str, float]]:
  """Learning rates and temperatures."""
  return [
    {"rate": rate, "temperature": temperature}
    for rate in config.learning_rates
    for temperature in config.temperatures
  ]


def learn_given(config, dataset: Dataset, key, problem: Problem, logits, arms: Arm):
  """Trains students on all arms `[a, n + m]` at once; their accuracies `[settings, a]`."""
  module = network(config, dataset, config.student)
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}

  def fit(rate, temperature, arm):
    rows, loss = (problem.inputs, logits, arm), ratio_loss(module, temperature)
    variables = train(key, module, loss, optax.adam(rate), rows, **sizes).variables
    return evaluate(module, variables, problem)

  values = (jnp.array([s[name] for s in settings(config)]) for name in ("rate", "temperature"))
  return jax.lax.map(lambda s: jax.vmap(lambda arm: fit(*s, arm))(arms), tuple(values))


def evaluate(module, variables, problem: Problem) -> dict[str, jax.Array]:
  """Accuracies of a student."""
  splits = {"accuracy": problem.test, "validation": problem.validation}
  return {name: accuracy(module, variables, split) for name, split in splits.items()}


def compare(config, scores: Mapping[str, np.ndarray], arms: Sequence[tuple]):
  """What validation rows prefer, per seed, of scores `[seeds, settings, arms]`.

  Returns:
    Scores of the rows of the table by method; and those of single ratios, by ratio and by the rows
    that a student learns from.
  """

  def best(method, ratios, weights):
    wanted = [(method, ratio, weight) for ratio in ratios for weight in weights]
    options = [{**s, "ratio": r, "clean weight": w} for s in settings(config) for _, r, w in wanted]
    places = [arms.index(arm) for arm in wanted]
    own = {name: x[:, :, places].reshape(len(x), -1) for name, x in scores.items()}
    return choose(own, options, select="validation")

  ratios, weights = config.ratios, config.clean_weights
  fixed = {
    (ratio, rows): best(FIXED, (ratio,), of_rows)
    for ratio in ratios
    for rows, of_rows in ((NOISY, (0.0,)), (NOISY_AND_CLEAN, weights))
  }
  table = {
    LABELS_ONLY: fixed[min(ratios), NOISY],
    TEACHER_ONLY: fixed[max(ratios), NOISY],
    BEST_NOISY: best(FIXED, ratios, (0.0,)),
    BEST: best(FIXED, ratios, weights),
    CLEAN_ONLY: best(CLEAN_ONLY, (None,), (1.0,)),
  }
  return table | {method: best(method, (None,), weights) for method in BY_ROW}, fixed
