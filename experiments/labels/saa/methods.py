"""FixMatch and FlexMatch, and which of their rows get other views than the first strong one."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Dataset, FewLabels, Split
from experiments.kit.train import agrees
from experiments.kit.views import ViewFns, shift_images, views_of
from jaxlab import algorithms, augment, losses
from jaxlab.algorithms import (
  SampleAdaptive,
  SampleAdaptiveState,
  SemiSupervisedLoss,
  SemiSupervisedMethod,
  SemiSupervisedTraining,
)

FIX, FLEX, HARDER, TRUTH, FULL = "fix", "flex", "harder", "truth", "full"
# Whose views are pasted, by number.
NOBODY, NAIVE, EVERYBODY, RANDOM, OTHERS = range(5)


class Chosen(NamedTuple):
  """The selection of naive rows, and whose views are pasted.

  Attributes:
    selection: of naive rows.
    naive: rows that get other views, bool `[n]`; the method knows them by this name.
    overlap: share of the naive rows that were naive before the last selection, too.
  """

  selection: SampleAdaptiveState
  naive: chex.Array
  overlap: chex.Array


def chosen_rows(config, key: chex.PRNGKey, num_rows: int, choice: chex.Numeric) -> SampleAdaptive:
  """Selects naive rows, and at each selection chooses whose views are pasted from there on."""
  adaptive = algorithms.sample_adaptive_augmentation(
    num_rows,
    decay=config.history_decay,
    start_step=config.start_step,
    refresh_every=config.refresh_every,
  )

  def init():
    return Chosen(adaptive.init(), jnp.zeros(num_rows, bool), jnp.zeros(()))

  def refresh(selection, state):
    naive = selection.naive
    random = jax.random.permutation(jax.random.fold_in(key, selection.step), naive)
    masks = jnp.stack([naive & ~naive, naive, naive | ~naive, random, ~naive])
    again = jnp.sum(naive & state.selection.naive) / jnp.maximum(jnp.sum(naive), 1)
    return Chosen(selection, masks[choice], again)

  def keep(selection, state):
    return state._replace(selection=selection)

  def update(state, indices, losses):
    selection = adaptive.update(state.selection, indices, losses)
    step = selection.step
    due = (step % config.refresh_every == 0) & (step >= config.start_step)
    return jax.lax.cond(due, refresh, keep, selection, state)

  return SampleAdaptive(init, update)


def method_of(config, kind: str, key, num_rows: int, num_classes: int, setting):
  """The method of a row of the table."""
  if kind == FULL:
    return algorithms.supervised_method()
  if kind == TRUTH:
    return SemiSupervisedMethod(_true_labels)
  adaptive = chosen_rows(config, key, num_rows, setting["choice"])
  options = {"threshold": config.threshold, "weight": setting["weight"]}
  if kind == FLEX:
    method = algorithms.flexmatch_method(num_rows, num_classes=num_classes, **options)
  else:
    method = algorithms.fixmatch_method(**options)
  if kind != HARDER:
    return algorithms.sample_adaptive_method(method, adaptive)

  def loss_fn(key, step):
    def harder(key, first, second):
      del key
      return harder_view(step.forward, step.batch.unlabeled.weak[0], first, second)

    wrapped = algorithms.sample_adaptive_method(method, adaptive, paste_fn=harder)
    return wrapped.loss_fn(key, step)

  return SemiSupervisedMethod(loss_fn, lambda: (method.init_fn(), adaptive.init()))


def harder_view(forward, weak: chex.Array, first: chex.Array, second: chex.Array) -> jax.Array:
  """Of two strong views of each row, that of the larger loss; the first if they are equal."""
  guess = forward(weak)
  of_first, of_second = (
    losses.fixmatch_loss(forward(x), guess, threshold=0.0) for x in (first, second)
  )
  larger = (of_second > of_first).reshape(-1, *(1,) * (first.ndim - 1))
  return jax.lax.stop_gradient(jnp.where(larger, second, first))


def _true_labels(key, step) -> SemiSupervisedLoss:
  """The upper bound: strong views of all unlabeled rows learn their true labels."""
  del key
  logits, truth = step.forward(step.batch.unlabeled.strong[0]), step.batch.truth
  values = optax.softmax_cross_entropy_with_integer_labels(logits, truth)
  guesses = jax.nn.one_hot(truth, logits.shape[-1])
  return SemiSupervisedLoss(step.supervised_loss(), jnp.mean(values), guesses, row_losses=values)


def view_fns(dataset: Dataset, magnitude: chex.Numeric) -> ViewFns:
  """Signals are jittered; images go through random operations."""
  if not dataset.is_image:
    return views_of(dataset, magnitude=magnitude)

  def strong(key, images):
    return augment.rand_augment(key, images, max_magnitude=magnitude)

  return ViewFns(shift_images, strong)


def protocol(config, dataset: Dataset, magnitude: chex.Numeric = 1.0) -> kit.Protocol:
  """Views and sizes; two strong views, of which most rows read the first."""
  sizes = config.num_steps, config.labeled_batch, config.unlabeled_batch
  views = view_fns(dataset, magnitude)
  return kit.Protocol(views, dataset.num_classes, *sizes, num_strong=2)


def training(config, kind: str, key, num_rows: int, num_classes: int, setting):
  """The training of a row of the table, and its network."""
  module = kit.encoder(config.network, num_classes)
  trainer = algorithms.semi_supervised_training(
    lambda params, inputs: module.apply({"params": params}, inputs).logits,
    method_of(config, kind, key, num_rows, num_classes, setting),
    kit.slow_cosine(setting["learning_rate"], config.num_steps),
    decay=config.decay,
  )
  return trainer, module


def watch(state, batch, info) -> dict[str, jax.Array]:
  """Sums over the batch: how many rows are naive, and their loss and that of all."""
  chosen: Chosen = state.memory[1]
  naive = chosen.selection.naive[batch.indices]
  return {
    "naive": jnp.mean(naive),
    "loss of naive": jnp.mean(jnp.where(naive, info.row_losses, 0.0)),
    "loss": jnp.mean(info.row_losses),
    "overlap": chosen.overlap,
  }


def evaluate(config, dataset: Dataset, kind: str, key, splits: FewLabels, setting):
  """Trains a row of the table: its accuracy, and what became of naive rows."""
  init_key, learn_key, choice_key, view_key = jax.random.split(key, 4)
  labeled, unlabeled = splits.labeled, splits.unlabeled
  if kind == FULL:
    labeled = Split(*map(jnp.concatenate, zip(labeled, unlabeled)))
  shared = protocol(config, dataset, setting["magnitude"])
  sizes = len(unlabeled.labels), dataset.num_classes
  trainer, module = training(config, kind, choice_key, *sizes, setting)
  state = trainer.init(module.init(init_key, labeled.inputs[:2])["params"])
  adapts = kind in (FIX, FLEX, HARDER)
  options = {"watch": watch if adapts else None, "num_parts": config.num_parts}
  learned = kit.learn(learn_key, trainer, state, labeled, unlabeled, shared, **options)
  scores = kit.evaluate(trainer, learned, splits.validation, splits.test, views=shared.views)
  if kind == FIX:
    naive = learned.state.memory[1].selection.naive
    plain, pasted = strong_losses(view_key, trainer, learned.state, unlabeled.inputs, shared.views)
    scores["strong loss"], scores["pasted loss"] = (
      jnp.sum(jnp.where(naive, x, 0.0)) / jnp.maximum(jnp.sum(naive), 1) for x in (plain, pasted)
    )
  if kind == FULL:
    views = strong_and_pasted(view_key, splits.test.inputs, shared.views)
    for name, inputs in zip(("accuracy on strong views", "accuracy on pasted views"), views):
      logits = kit.predict(trainer, learned.state, inputs, views=shared.views)
      scores[name] = jnp.mean(agrees(logits, splits.test.labels))
  return scores


def strong_and_pasted(key, inputs, views: ViewFns) -> tuple[jax.Array, jax.Array]:
  """Strong views, and pasted ones of these and of a second draw."""
  *keys, paste_key = jax.random.split(key, 3)
  first, second = (views.strong(key, jnp.asarray(inputs)) for key in keys)
  return first, augment.paste_half(paste_key, first, second)


def strong_losses(
  key, trainer: SemiSupervisedTraining, state, inputs, views: ViewFns
) -> tuple[jax.Array, jax.Array]:
  """Losses of the averaged network on strong and on pasted views, against its own guesses."""
  weak_key, strong_key = jax.random.split(key)

  def predict(inputs):
    return kit.predict(trainer, state, inputs, views=views)

  guess = predict(views.weak(weak_key, jnp.asarray(inputs)))
  strong, pasted = strong_and_pasted(strong_key, inputs, views)
  return tuple(losses.fixmatch_loss(predict(x), guess, threshold=0.0) for x in (strong, pasted))
