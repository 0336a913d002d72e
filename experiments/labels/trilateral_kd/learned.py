"""Students whose ratios are learned by what one step on them does to clean rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.kit.datasets import Dataset
from experiments.kit.train import epoch_rows
from experiments.labels.trilateral_kd import problems
from experiments.labels.trilateral_kd.given import evaluate, settings
from experiments.labels.trilateral_kd.problems import GROUPS, LABEL, TEACHER, Problem
from jaxlab import algorithms, losses, models

TGEO, NO_STUDENT, FROZEN = "TGeo", "TGeo without the student", "TGeo, ratio not trained"
TABLE = "learned table"
PARTS = "probabilities", "distances", "angles"
# Method -> what its ratio depends on: features of `trilateral_features`, or a table.
INPUTS = {TGEO: "all", FROZEN: "all", NO_STUDENT: "no student", TABLE: "table"}
INPUTS |= {f"TGeo, {parts}": parts for parts in PARTS}


def ratio_model(dataset: Dataset, inputs: str) -> tuple[Callable, Callable]:
  """`init(key) -> params` and `ratio(params, S, T, labels, class_means) -> [b]`."""
  num_classes = dataset.num_classes
  if inputs == "table":
    init = lambda key: jnp.zeros((num_classes, num_classes))  # noqa: E731
    read = lambda table, s, t, y, o: jax.nn.sigmoid(table[jnp.argmax(t, axis=-1), y])  # noqa: E731
    return init, read
  module = models.FusionRatioNet()

  def features(student, teacher, labels, means):
    parts = "all" if inputs == "no student" else inputs
    found = losses.trilateral_features(student, teacher, labels, means, parts=parts)
    if inputs == "no student":
      # T, G, O, (T - G)^2 and (O - G)^2 of the nine blocks.
      blocks = found.reshape(len(found), 9, num_classes)[:, jnp.array([1, 2, 3, 7, 8])]
      found = blocks.reshape(len(found), 5 * num_classes)
    return found

  def init(key):
    probs = jnp.full((num_classes, num_classes), 1 / num_classes)
    return module.init(key, features(probs, probs, jnp.arange(num_classes), probs))["params"]

  return init, lambda params, *rows: module.apply({"params": params}, features(*rows))


def grid(config, method: str) -> list[dict[str, float]]:
  """The settings of a method, equally many for each.

  A ratio that is trained has rates of the virtual step to choose from, and the clean rows serve it
  alone. One that is not leaves them to the student, with the weights that fixed ratios have.
  """
  frozen, options = method == FROZEN, list(zip(config.virtual_rates, config.clean_weights))
  return [
    {
      **setting,
      "virtual rate": config.virtual_rates[0] if frozen else virtual_rate,
      "ratio rate": 0.0 if frozen else config.ratio_rate,
      "clean weight": clean_weight if frozen else 0.0,
    }
    for setting in settings(config)
    for virtual_rate, clean_weight in options
  ]


def learn_ratios(config, dataset: Dataset, inputs: str, key, problem: Problem, logits, grid):
  """Trains a student and its ratio, a function of such `INPUTS`, in all settings at once.

  Rows come in the order that `kit.train` has for the same key.

  Returns:
    The student's accuracies `[settings]`; "ratios" by group `[settings, evaluations]`; "AUROC" of
    the ratio, of rows where only the teacher is right against those where only the label is.
  """
  fit = functools.partial(_fit, config, dataset, inputs, key, problem, logits)
  return jax.vmap(fit)(grid)


def _fit(config, dataset: Dataset, inputs: str, key, problem: Problem, logits, setting):
  module, num = problems.network(config, dataset, config.student), len(problem.truth)
  init_ratio, ratio_of = ratio_model(dataset, inputs)
  rows, labels, logits = map(jnp.asarray, (problem.inputs, problem.labels, logits))
  probs = jax.nn.softmax(logits, axis=-1)
  means = losses.class_mean_probs(probs[:num], labels[:num], num_classes=dataset.num_classes)
  is_noisy = jnp.arange(len(labels)) < num
  weight = jnp.where(is_noisy, 1.0, setting["clean weight"])
  clean = problem.clean

  def apply(student, inputs):
    return module.apply({"params": student}, inputs).logits

  def ratio(student_logits, outer, index):
    student = jax.nn.softmax(student_logits, axis=-1)
    learned = ratio_of(outer, student, probs[index], labels[index], means)
    return jnp.where(is_noisy[index], learned, 0.0)

  def inner_loss(student, outer, index):
    own = apply(student, rows[index])
    sides = own, logits[index], labels[index], ratio(own, outer, index)
    values = losses.fused_distillation_loss(*sides, temperature=setting["temperature"])
    return jnp.average(values, weights=weight[index])

  def outer_loss(student, split):
    own = apply(student, split.inputs)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(own, split.labels))

  optimizers = optax.adam(setting["rate"]), optax.adam(setting["ratio rate"])
  training = algorithms.bilevel(
    inner_loss, outer_loss, *optimizers, inner_learning_rate=setting["virtual rate"]
  )
  init_key, order_key, ratio_key = jax.random.split(key, 3)
  student = module.init(init_key, rows[: config.batch_size])["params"]
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}
  order = epoch_rows(order_key, len(labels), **sizes)
  of_groups = problems.groups(problem, logits)

  def phase(state, indices):
    update = lambda state, index: (training.update(state, index, clean)[0], None)  # noqa: E731
    state, _ = jax.lax.scan(update, state, indices)
    found = ratio(apply(state.inner, rows[:num]), state.outer, jnp.arange(num))
    return state, (found, {name: problems.mean_where(found, of_groups[name]) for name in GROUPS})

  state = training.init(student, init_ratio(ratio_key))
  order = order.reshape(config.num_evaluations, -1, config.batch_size)
  state, (found, means_of_groups) = jax.lax.scan(phase, state, order)
  auroc = problems.separation(found[-1], of_groups[TEACHER], of_groups[LABEL])
  scores = evaluate(module, {"params": state.inner}, problem)
  return scores | {"ratios": means_of_groups, "AUROC": auroc}
