"""The contrastive teacher, what its representation says, and students that start from it."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import semi_supervised as kit
from experiments.kit.contrastive import contrastive_loss
from experiments.kit.datasets import FewLabels, Split
from experiments.kit.train import epoch_rows, train
from experiments.kit.views import ViewFns, augment_images, shift_images
from experiments.labels.wad.problems import UNKNOWN
from jaxlab import algorithms, metrics, models
from jaxlab.algorithms import PseudoLabelMemory, SemiSupervisedTraining

FIX, DISTILLED = "fix", "distilled"
MARGIN, EQUAL, TOP = range(3)  # Weights of pseudo labels, by number.
VIEWS = ViewFns(shift_images, augment_images)


def encoder(config, **heads) -> models.ConvEncoder:
  """The network of teacher and students, each with a head of its own."""
  return models.ConvEncoder(config.features, config.dense, **heads)


def teach(config, key, splits: FewLabels):
  """Trains the teacher on labeled and unlabeled rows without labels; gives what it sees."""
  module = encoder(config, projection=config.projection)
  loss = contrastive_loss(module, temperature=config.temperature)
  images = jnp.concatenate([splits.labeled.inputs, splits.unlabeled.inputs])
  sizes = {"num_steps": config.teacher_steps, "batch_size": config.teacher_batch}
  trained = train(key, module, loss, optax.adam(config.teacher_rate), (images,), **sizes)

  output = module.apply(trained.variables, jnp.concatenate([part.inputs for part in splits]))
  ends = np.cumsum([len(part.labels) for part in splits])[:-1]
  seen = {
    name: {"features": features, "projections": projections}
    for name, features, projections in zip(
      splits._fields, jnp.split(output.features, ends), jnp.split(output.projection, ends)
    )
  }
  return {"params": trained.params, "seen": seen, "bad_step": trained.bad_step}


def transfer(config, splits: FewLabels, seen):
  """How the nearest labeled rows in the teacher's space label test and unlabeled rows.

  Returns:
    Quantities by name, and the weights `[n]` of unlabeled rows.
  """

  def nearest(name):
    sides = (seen[part]["projections"] for part in (name, "labeled"))
    num_classes = {"num_classes": config.num_targets}
    return algorithms.transfer_pseudo_labels(*sides, splits.labeled.labels, **num_classes)

  test, found, labels = nearest("test"), nearest("unlabeled"), splits.unlabeled.labels
  target = labels != UNKNOWN
  scores = {
    "accuracy": jnp.mean(test.labels == splits.test.labels),
    "right pseudo labels": jnp.sum((found.labels == labels) & target) / jnp.sum(target),
  }
  if has_unknown(config, splits):
    rates = algorithms.invasion_rates(found.weights, found.labels, labels, ~target)
    scores |= {
      "invasion": rates.invasion,
      "share of unknown rows": jnp.mean(~target),
      "AUROC of the weight": metrics.auroc(found.weights, target),
      "AUROC of the top similarity": metrics.auroc(jnp.max(found.scores, axis=-1), target),
    }
  return scores, found.weights


def has_unknown(config, splits: FewLabels) -> bool:
  """Whether there are rows of no target class; known from shapes."""
  return len(splits.unlabeled.labels) > config.num_unlabeled


def probe(config, splits: FewLabels, seen) -> dict[str, np.ndarray]:
  """Logistic regression on the teacher's frozen features, its penalty chosen on validation."""
  from sklearn.linear_model import LogisticRegression

  fits = []
  for strength in config.probe_strengths:
    fit = LogisticRegression(C=strength, max_iter=1000)
    fit.fit(seen["labeled"]["features"], splits.labeled.labels)
    rates = (
      fit.score(seen[name]["features"], getattr(splits, name).labels)
      for name in ("validation", "test")
    )
    fits.append(tuple(rates))
  validation, test = max(fits, key=lambda rates: rates[0])  # The first of equal ones.
  return {"validation": np.float64(validation), "accuracy": np.float64(test)}


# --------------------------------------------------------------------------------------- students


def protocol(config, kind: str, num_steps: int, setting) -> kit.Protocol:
  """Views and sizes; strong views of a student that does without them are weak ones."""

  def strong(key, images):
    return jnp.where(setting["strong"], augment_images(key, images), shift_images(key, images))

  views = VIEWS._replace(strong=strong if kind == FIX else shift_images)
  sizes = num_steps, config.labeled_batch, config.unlabeled_batch
  return kit.Protocol(views, config.num_targets, *sizes)


def student(config, kind: str, num_rows: int, setting) -> SemiSupervisedTraining:
  """The training of a row of the table."""
  module = encoder(config, num_classes=config.num_targets)
  if kind == DISTILLED:
    method = algorithms.pseudo_label_method(jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows))
  else:
    method = algorithms.fixmatch_method(weight=setting["weight"], threshold=config.threshold)
  return algorithms.semi_supervised_training(
    lambda params, inputs: module.apply({"params": params}, inputs).logits,
    method,
    optax.adam(setting["learning_rate"]),
    decay=config.decay,
  )


def first_params(config, key, teacher, images: chex.Array):
  """A new head on the teacher's trunk."""
  fresh = encoder(config, num_classes=config.num_targets).init(key, images)["params"]
  return {name: teacher.get(name, layer) for name, layer in fresh.items()}


def evaluate(config, fractions: Sequence[float], kind: str, key, arguments, setting):
  """Trains a student: its accuracy, and what it makes of unknown rows."""
  splits, teacher, projections = arguments
  init_key, learn_key = jax.random.split(key)
  trainer = student(config, kind, len(splits.unlabeled.labels), setting)
  state = trainer.init(first_params(config, init_key, teacher, splits.labeled.inputs[:2]))
  num_steps, more = config.num_rounds * config.round_steps, {}
  if kind == DISTILLED:
    rounds = learn_in_rounds(config, fractions, setting["weighting"], trainer)
    learned, more = rounds(learn_key, state, splits, projections)
  else:
    shared = protocol(config, kind, num_steps, setting)
    learned = kit.learn(learn_key, trainer, state, splits.labeled, splits.unlabeled, shared)
  learned = learned._replace(seen={})
  scores = kit.evaluate(trainer, learned, splits.validation, splits.test, views=VIEWS) | more
  if has_unknown(config, splits):
    logits = kit.predict(trainer, learned.state, splits.unlabeled.inputs, views=VIEWS)
    confidence, labels = jnp.max(jax.nn.softmax(logits), axis=-1), splits.unlabeled.labels
    unknown = labels == UNKNOWN
    passes = jnp.sum(unknown & (confidence >= config.threshold)) / jnp.maximum(jnp.sum(unknown), 1)
    scores |= {
      "unknown rows that pass": passes,
      "AUROC of the confidence": metrics.auroc(confidence, ~unknown),
    }
  return scores


def learn_in_rounds(
  config, fractions, weighting, trainer: SemiSupervisedTraining, *, views: ViewFns = VIEWS
):
  """Weight-aware distillation: labels and weights from the teacher, learned in rounds.

  After a round, rows whose label the student fits best join the labeled ones with that label.

  Returns:
    `(key, state, splits, projections) -> (Learned, quantities)`.
  """
  shared = protocol(config, DISTILLED, config.round_steps, {})._replace(views=views)

  def run(key, state, splits, projections):
    labeled, unlabeled = splits.labeled, Split(*map(jnp.asarray, splits.unlabeled))
    num, num_rows = len(labeled.labels), len(unlabeled.labels)
    images = jnp.concatenate([labeled.inputs, unlabeled.inputs])
    anchors = jnp.concatenate([projections["labeled"], projections["unlabeled"]])

    def one_round(carry, number):
      state, labels, known = carry
      found = algorithms.transfer_pseudo_labels(
        projections["unlabeled"], anchors, labels, num_classes=config.num_targets, mask=known
      )
      moved = known[num:]
      top = jnp.maximum(jnp.max(found.scores, axis=-1), 0.0)
      weights = jnp.stack([found.weights, jnp.ones(num_rows), top])[weighting]
      # A row that has joined the labeled ones is learned there.
      memory = PseudoLabelMemory(found.labels, jnp.where(moved, 0.0, weights))
      keys = jax.random.split(jax.random.fold_in(key, number), 3)
      shape = config.round_steps, config.labeled_batch
      shares = known / jnp.sum(known)
      order = epoch_rows(
        keys[1], num_rows, num_steps=config.round_steps, batch_size=config.unlabeled_batch
      )
      learned = kit.learn(
        keys[2],
        trainer,
        state._replace(memory=memory),
        Split(images, labels),
        unlabeled,
        shared,
        rows=(jax.random.choice(keys[0], num + num_rows, shape, p=shares), order),
      )
      logits = kit.predict(trainer, learned.state, unlabeled.inputs, views=views)
      values = optax.softmax_cross_entropy_with_integer_labels(logits, found.labels)
      chosen = jnp.stack(
        [algorithms.select_reliable(values, fraction=f, mask=~moved) for f in fractions]
      )[number]
      labels = labels.at[num:].set(jnp.where(chosen, found.labels, labels[num:]))
      return (learned.state, labels, known.at[num:].set(moved | chosen)), learned.bad_step

    labels = jnp.concatenate([jnp.asarray(labeled.labels), jnp.zeros(num_rows, jnp.int32)])
    known = jnp.arange(num + num_rows) < num
    rounds = jnp.arange(config.num_rounds)
    (state, _, known), bad = jax.lax.scan(one_round, (state, labels, known), rounds)
    moved, unknown = known[num:], unlabeled.labels == UNKNOWN
    share = jnp.sum(moved & unknown) / jnp.maximum(jnp.sum(moved), 1)
    counts = {"moved rows": jnp.mean(moved), "unknown among moved rows": share}
    return kit.Learned(state, {}, jnp.max(bad)), counts

  return run
