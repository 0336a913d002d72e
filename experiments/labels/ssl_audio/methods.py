"""The rows of the table: a method and whether it mixes, what it reads, and how it is evaluated."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Split
from experiments.labels.ssl_audio import problems
from jaxlab import algorithms, models
from jaxlab.algorithms import SemiSupervisedMethod

WEAK, STRONG, MIXED = "supervised", "supervised, strong views", "supervised + mixup"
TEACHER, CO, FIX = "mean teacher", "co-training", "FixMatch"
TEACHER_STRONG = "mean teacher, strong views"
MIXMATCH, REMIX, SHORT = "MixMatch", "ReMixMatch", "ReMixMatch, two thirds of the steps"
TEACHER_MIXED, CO_MIXED, FIX_MIXED = (f"{name} + mixup" for name in (TEACHER, CO, FIX))
NEW, OLD = (MIXMATCH, REMIX, FIX), (TEACHER, CO)
PAIRS = {TEACHER: TEACHER_MIXED, CO: CO_MIXED, FIX: FIX_MIXED}  # Without and with mixup.
ALL = "all labels"
ERROR = "error"


class Row(NamedTuple):
  """A row of the table; those of a kind differ in numbers alone, and are one program.

  Attributes:
    kind: the row that names it.
    passes: passes through a network per update.
    strong: whether strong views take the place of weak ones, of labels or for the student.
    mixes: whether batches are mixed.
    searched: whether it has an unlabeled loss, whose weight is chosen.
  """

  kind: str
  passes: int
  strong: bool = False
  mixes: bool = False
  searched: bool = True


ROWS = {
  WEAK: Row(WEAK, 1, searched=False),
  STRONG: Row(WEAK, 1, strong=True, searched=False),
  MIXED: Row(WEAK, 1, mixes=True, searched=False),
  TEACHER: Row(TEACHER, 2),
  CO: Row(CO, 6),
  MIXMATCH: Row(MIXMATCH, 2),
  REMIX: Row(REMIX, 3),
  FIX: Row(FIX, 2),
  TEACHER_MIXED: Row(TEACHER, 2, mixes=True),
  CO_MIXED: Row(CO, 6, mixes=True),
  FIX_MIXED: Row(FIX_MIXED, 2),
  TEACHER_STRONG: Row(TEACHER, 2, strong=True),
  SHORT: Row(SHORT, 3),
  ALL: Row(ALL, 1, searched=False),
}


def method_of(config, kind: str, num_classes: int, setting) -> SemiSupervisedMethod:
  """The method of a kind, with the numbers of a setting: `weight`, `strong` and `mixes`."""
  weight = setting["weight"]
  linear = lambda step: weight * algorithms.linear_rampup(step, config.linear_ramp)  # noqa: E731
  if kind == WEAK:
    method = algorithms.supervised_method(view="strong")
  elif kind == TEACHER:
    rising = lambda step: weight * algorithms.exponential_rampup(step, config.teacher_ramp)  # noqa: E731
    method = algorithms.mean_teacher_method(weight=rising, student_view="strong")
  elif kind == CO:
    weights = {"agreement_weight": weight, "difference_weight": 0.5 * weight}
    method = algorithms.co_training_method(**weights)
  elif kind == MIXMATCH:
    return algorithms.mixmatch_method(weight=linear)
  elif kind in (REMIX, SHORT):
    # With these weights from the start it stays at chance.
    factors = {"weight": 1.5, "strong_weight": 0.5}
    weights = {name: lambda step, x=x: x * linear(step) for name, x in factors.items()}
    return algorithms.remixmatch_method(num_classes=num_classes, **weights)
  elif kind in (FIX, FIX_MIXED):
    alpha = config.mixup_alpha if kind == FIX_MIXED else None
    options = {"weight": weight, "threshold": config.threshold, "mixup_alpha": alpha}
    return algorithms.fixmatch_method(**options)
  else:
    return algorithms.supervised_method()
  chosen = _strong_or_weak(method, setting["strong"])
  options = {"alpha": config.mixup_alpha, "probability": 1.0 * setting["mixes"]}
  return algorithms.mixup_method(chosen, **options)


def _strong_or_weak(method: SemiSupervisedMethod, strong) -> SemiSupervisedMethod:
  """A method of strong views that sees weak ones in their place, unless `strong`."""

  def one(views):
    return views._replace(strong=jnp.where(strong, views.strong[:1], views.weak[:1]))

  def loss_fn(key, step):
    batch = step.batch
    batch = batch._replace(labeled=one(batch.labeled), unlabeled=one(batch.unlabeled))
    return method.loss_fn(key, step._replace(batch=batch))

  return method._replace(loss_fn=loss_fn)


def network(config, name: str) -> models.ConvEncoder:
  """The classifier of a set."""
  return models.ConvEncoder(config.features, config.dense, problems.num_classes(name))


def trainer_of(config, dataset: str, kind: str, setting):
  """The training of a kind on a set, its start `key -> params`, and its protocol."""
  module, num_steps = network(config, dataset), config.num_steps
  num_steps = 2 * num_steps // 3 if kind == SHORT else num_steps
  is_pair = kind == CO
  rate = config.pair_rate if is_pair else config.learning_rate
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
  views, classes = problems.views_of(config, dataset), problems.num_classes(dataset)
  trainer = algorithms.semi_supervised_training(
    lambda params, inputs: module.apply({"params": params}, inputs).logits,
    method_of(config, kind, classes, setting),
    optimizer,
    decay=config.decay,
  )

  def init(key):
    clean = views.clean(jnp.zeros((1, *problems.shape_of(config, dataset))))
    start = lambda key: module.init(key, clean)["params"]  # noqa: E731
    return tuple(map(start, jax.random.split(key))) if is_pair else start(key)

  num_labeled, num_unlabeled = config.labeled_batch, config.unlabeled_batch
  # With all labels, as many rows per update as the others see.
  num_labeled += num_unlabeled if kind == ALL else 0
  num_weak, num_strong = 1 + (kind in (CO, MIXMATCH)), 1 + (kind in (REMIX, SHORT))
  sizes = num_steps, num_labeled, num_unlabeled, num_weak, num_strong
  return trainer, init, kit.Protocol(views, classes, *sizes)


def evaluate(config, dataset: str, kind: str, key: chex.PRNGKey, splits, setting):
  """Trains by a row of the table; its error in percent, and accuracy on validation rows."""
  trainer, init, protocol = trainer_of(config, dataset, kind, setting)
  init_key, key = jax.random.split(key)
  labeled = splits.labeled
  if kind == ALL:
    num = config.num_labeled[config.datasets.index(dataset)]  # The rest repeats them.
    labeled = Split(*(jnp.concatenate([x[:num], y]) for x, y in zip(labeled, splits.unlabeled)))
  state = trainer.init(init(init_key))
  learned = kit.learn(key, trainer, state, labeled, splits.unlabeled, protocol)
  # Where nothing is chosen there are no validation rows.
  chooses = len(splits.validation.labels) > 0
  views = protocol.views._replace(clean=lambda inputs: inputs)
  rows = splits.validation if chooses else splits.test
  scores = kit.evaluate(trainer, learned, rows, splits.test, views=views)
  validation, accuracy = scores.pop("validation"), scores.pop("accuracy")
  scores |= {ERROR: 100 * (1 - accuracy), "utilization": scores["utilization"][-1]}
  return scores | ({"validation": validation} if chooses else {})
