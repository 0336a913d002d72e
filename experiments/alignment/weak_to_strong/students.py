"""The problem: pairs of digits, a weak teacher, strong students, and what pulls at them."""

import functools
import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.alignment.weak_to_strong.enrichment import describe_errors
from experiments.kit.datasets import Split
from experiments.kit.train import Trained, classification_loss, train
from jaxlab import data, losses, models, training
from jaxlab.data import ImagePairs

KNOWN = 0.75  # The confidence from which on a model knows a pair.
NONE, RESEED, EXPLICIT, RANDOM, UNSURE = (
  "no conflict",
  "another seed",
  "explicit conflict",
  "random conflict",
  "conflict where the labels are unsure",
)
IMPLICIT = "implicit conflict"
FILTERED, BOOTSTRAPPED, AUXILIARY = "confident labels alone", "bootstrapping", "confidence loss"
CEILING = "true labels"
_PERMUTATIONS = tuple(itertools.permutations(("weak", "student", "test")))
NUM_ROLES = len(_PERMUTATIONS)
_LABELED = ("student", "validation")  # What the teacher labels.


class Arm(NamedTuple):
  """How a student is trained: all are one program."""

  explicit: float = 0.0  # Whether what it gets wrong is pushed further from the truth.
  random: float = 0.0  # Whether random pairs are, as many.
  unsure: float = 0.0  # Whether random pairs are whose weak labels are unsure, at most as many.
  ink: float = 0.0  # Whether it learns to prefer more ink, too.
  confident: float = 0.0  # Whether it sees confident weak labels alone.
  bootstrapped: float = 0.0  # Whether a student of a smaller trunk gives the labels.
  auxiliary: float = 0.0  # Whether the labels are mixed with its own predictions.
  true: float = 0.0  # Whether it sees the true labels.
  reseed: float = 0.0  # Whether the order, and what initialization there is, are others.


# The arm, and the one without conflict that it is compared with.
ARMS = {
  NONE: (Arm(), NONE),
  RESEED: (Arm(reseed=1), NONE),
  EXPLICIT: (Arm(explicit=1), NONE),
  RANDOM: (Arm(random=1), NONE),
  UNSURE: (Arm(unsure=1), NONE),
  IMPLICIT: (Arm(ink=1), NONE),
}
_REMEDIES = {FILTERED: "confident", BOOTSTRAPPED: "bootstrapped", AUXILIARY: "auxiliary"}
for _name, _kind in _REMEDIES.items():
  ARMS[f"{_name}, no conflict"] = Arm(**{_kind: 1}), f"{_name}, no conflict"
  ARMS[_name] = Arm(explicit=1, **{_kind: 1}), f"{_name}, no conflict"
ARMS[CEILING] = Arm(true=1), CEILING


class Task(NamedTuple):
  """The data of a seed."""

  digits: Split  # Labeled images of the third that the weak teacher learns from.
  teacher: ImagePairs  # Its pairs.
  student: ImagePairs  # Pairs of the second third, which it labels for a student.
  validation: ImagePairs  # Others that it labels.
  bootstrap: ImagePairs  # Others, which a smaller student labels for a larger one.
  ink: ImagePairs  # Pairs of that third by their ink.
  test: ImagePairs  # Pairs of the last third.


def draw_task(config, seed: int) -> Task:
  """The data of a seed; six seeds give every third of the images every role."""
  roles = _PERMUTATIONS[seed % NUM_ROLES]
  pairs = _draw_pairs(jax.random.key(seed), roles, config.num_pairs, config.num_validation)
  return Task(Split(*data.digit_images(roles[0])), *jax.tree.map(np.asarray, pairs))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw_pairs(key, roles, num_pairs, num_validation):
  weak, student, test = roles
  splits = weak, student, student, student, student, test
  keys = jax.random.split(key, len(splits))
  nums, objectives = [num_pairs] * len(splits), ["digit"] * len(splits)
  nums[2], objectives[4] = num_validation, "ink"
  return [
    data.digit_pairs(key, num_pairs=num, split=split, objective=objective)
    for key, num, split, objective in zip(keys, nums, splits, objectives)
  ]


class Rows(NamedTuple):
  """What the updates of a ranker see: pairs and their labels, and pairs by their ink."""

  first: chex.Array
  second: chex.Array
  labels: chex.Array
  truth: chex.Array
  ink: ImagePairs


def ranking_loss(module: models.MLP, arm: Arm, conflict_weight: float):
  """The engine's loss of an arm, on batches (`Rows`, the share of the training that is done)."""

  def loss(params, model_state, batch, key):
    del model_state
    rows, progress = batch
    margin = functools.partial(margins, module, {"params": params})
    logits, truth = margin(rows), rows.truth
    noise = jax.random.uniform(key, logits.shape)
    num_wrong = jnp.sum((logits >= 0) != (truth == 1))
    unsure = jnp.maximum(rows.labels, 1 - rows.labels) < KNOWN

    def drawn(order):
      return jnp.argsort(jnp.argsort(order)) < num_wrong

    weight = conflict_weight * arm.explicit
    values = losses.conflict_loss(logits, rows.labels, truth, conflict_weight=weight)
    pushed = arm.random * drawn(noise) + arm.unsure * (unsure & drawn(noise + ~unsure))
    values += conflict_weight * pushed * losses.sigmoid_cross_entropy(logits, 1 - truth)
    own = losses.confidence_auxiliary_loss(logits, rows.labels, step_fraction=progress[0])
    values += arm.auxiliary * (own - losses.sigmoid_cross_entropy(logits, rows.labels))
    values += arm.ink * losses.sigmoid_cross_entropy(margin(rows.ink), rows.ink.labels)
    return training.LossOutput(values)

  return loss


def margins(module: models.MLP, variables, pairs) -> jax.Array:
  """Log-odds that the first of a pair is preferred, `[n]`."""
  first, second = (module.apply(variables, images).logits[:, 0] for images in pairs[:2])
  return first - second


def train_ranker(config, key, module, rows: Rows, arm: Arm, rate, evaluate):
  """What `evaluate(margin)` gives at the ends of the epochs in question; linear ones start at 0."""

  def scores(trained):
    return evaluate(functools.partial(margins, module, trained.variables))

  per_epoch, period = len(rows.labels) // config.batch_size, math.gcd(*config.epochs)
  sizes = {"num_steps": max(config.epochs) * per_epoch, "batch_size": config.batch_size}
  progress = jnp.arange(sizes["num_steps"]) / sizes["num_steps"]
  options = {"schedule": progress, "evaluate": scores, "eval_every": period * per_epoch}
  if not module.widths:
    shapes = jax.eval_shape(module.init, key, rows.first[:1])["params"]
    options["start"] = Trained(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), {})
  loss = ranking_loss(module, arm, config.conflict_weight)
  found = train(key, module, loss, optax.adam(rate), rows, **sizes, **options).scores
  ends = np.array(config.epochs) // period - 1
  return jax.tree.map(lambda values: values[ends], found)


def with_features(features, task: Task) -> Task:
  """The task, with features in place of the images of pairs."""

  def of(pairs):
    return ImagePairs(features(pairs.first), features(pairs.second), pairs.labels)

  return Task(task.digits, *map(of, task[1:]))


def train_trunk(config, key, digits: Split, width: int):
  """Features that a classifier of the weak third gives: what weak labels cannot teach."""
  module = models.MLP(10, (width,))
  sizes = {"num_steps": config.trunk_steps, "batch_size": config.trunk_batch}
  adam = optax.adam(config.trunk_learning_rate)
  trunk = train(key, module, classification_loss(module), adam, digits, **sizes)
  temper = lambda images: module.apply(trunk.variables, images).logits / 2  # noqa: E731
  return lambda images: 3 * jax.nn.softmax(temper(images))


def preferred(margin, pairs: ImagePairs) -> jax.Array:
  """The confidence in what is truly preferred, `[n]`."""
  return jax.nn.sigmoid(jnp.where(pairs.labels == 1, 1.0, -1.0) * margin(pairs))


def fit_teacher(config, key, task: Task, setting) -> dict[str, jax.Array]:
  """What the weak teacher says of pairs of a student and of validation, and how right it is."""
  del setting
  task = with_features(data.pool_pixels, task)

  def evaluate(margin):
    labels = {name: jax.nn.sigmoid(margin(getattr(task, name))) for name in _LABELED}
    return labels | {"test": preferred(margin, task.test)}

  rows = Rows(*task.teacher, task.teacher.labels, task.ink)
  found = train_ranker(config, key, models.MLP(1, ()), rows, Arm(), config.teacher_rate, evaluate)
  return jax.tree.map(lambda values: values[-1], found)


def measure_students(config, key, inputs, setting, *, width: int) -> dict[str, jax.Array]:
  """Trains a trunk and the students of all arms, and says where they err.

  Args:
    config: of the experiment.
    key: of initial parameters and order.
    inputs: the `Task`; what the teacher says; and labels of `task.bootstrap` by other students.
    setting: nothing.
    width: of the trunk; 0 for students of the pixels.

  Returns:
    Measures of the errors, `[thresholds, arms]`; the arms' accuracies; what was chosen; and the
    labels that the student without conflict gives to `task.bootstrap`.
  """
  del setting
  task, weak, smaller = inputs
  trunk_key, student_key = jax.random.split(key)
  module = models.MLP(1, () if width else (config.pixel_width,))
  features = train_trunk(config, trunk_key, task.digits, width) if width else lambda images: images
  seen = with_features(features, task)

  def evaluate(margin):
    weak_loss = losses.sigmoid_cross_entropy(margin(seen.validation), weak["validation"])
    labels = jax.nn.sigmoid(margin(seen.bootstrap))
    return {"loss": jnp.mean(weak_loss), "test": preferred(margin, seen.test), "labels": labels}

  def train_arm(arm, rate):
    boot = arm.bootstrapped.astype(bool)
    first, second, truth = (jnp.where(boot, a, b) for a, b in zip(seen.bootstrap, seen.student))
    labels = jnp.where(arm.true, truth, jnp.where(boot, smaller, weak["student"]))
    # Confident labels come again until there are as many.
    confident = jnp.maximum(labels, 1 - labels) >= KNOWN
    order = jnp.argsort(~confident)[jnp.arange(len(labels)) % jnp.maximum(confident.sum(), 1)]
    chosen = jnp.where(arm.confident, order, jnp.arange(len(labels)))
    pairs = (array[chosen] for array in (first, second, labels, truth))
    arm_key = jax.random.fold_in(student_key, arm.reseed.astype(int))
    return train_ranker(config, arm_key, module, Rows(*pairs, seen.ink), arm, rate, evaluate)

  arms, baselines = zip(*ARMS.values())
  arms = jax.tree.map(lambda *values: jnp.array(values, jnp.float32), *arms)
  rates = jnp.array(config.learning_rates)
  found = jax.lax.map(lambda rate: jax.vmap(lambda arm: train_arm(arm, rate))(arms), rates)
  names = list(ARMS)
  plain = found["loss"][:, names.index(NONE)]
  rate, epoch = jnp.unravel_index(jnp.argmin(plain), plain.shape)
  confidence = found["test"][rate, :, epoch]
  compared = confidence[np.array([*map(names.index, baselines)])]
  strong = confidence[names.index(CEILING)]

  def errors(threshold):
    describe = functools.partial(describe_errors, threshold=threshold)
    return jax.vmap(describe, (0, 0, None, None))(compared, confidence, strong, weak["test"])

  measures = [errors(threshold) for threshold in config.thresholds]
  return jax.tree.map(lambda *values: jnp.stack(values), *measures) | {
    "accuracy": jnp.mean(confidence > 0.5, axis=-1),
    "chosen epochs": jnp.array(config.epochs)[epoch],
    "chosen learning rate": rates[rate],
    "labels": found["labels"][rate, names.index(NONE), epoch],
  }
