"""The network with its second head, and what every row of the table learns from uncertain rows."""

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Dataset, FewLabels, Split
from experiments.kit.views import views_of
from jaxlab import algorithms, augment, losses, models
from jaxlab.algorithms import SemiSupervisedMethod, SemiSupervisedTraining

STRONG, SHARE, UNIT = "strong", "share", "unit"
# What uncertain rows learn, by number; SHARE weights it as the paper does, UNIT not at all.
SHRUNK, FULL, RANDOM, NOTHING = range(4)
TRUTH = 1  # In place of FULL, if the weights are 1.


class Network(nn.Module):
  """An encoder with a linear head, and an auxiliary head on its features.

  Attributes:
    encoder: network whose output has `features` and `logits`.
    num_classes: number of classes.
  """

  encoder: nn.Module
  num_classes: int

  def setup(self):
    """Makes the auxiliary head."""
    self.auxiliary = models.AuxiliaryHead(self.num_classes, batch_norm=False)

  def __call__(self, inputs: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of both heads."""
    output = self.encoder(inputs)
    return output.logits, self.auxiliary(output.features)


def network(config, num_classes: int) -> Network:
  """The network of the configuration."""
  return Network(kit.encoder(config.network, num_classes), num_classes)


def protocol(config, dataset: Dataset, num_classes: int) -> kit.Protocol:
  """Views and sizes, the same for all rows."""
  sizes = config.num_steps, config.labeled_batch, config.unlabeled_batch
  return kit.Protocol(views_of(dataset), num_classes, *sizes)


def training(config, module: Network, kind: str, setting) -> SemiSupervisedTraining:
  """The training of a row: its kind of loss, and the numbers of its setting."""

  def head(number):
    return lambda params, inputs: module.apply({"params": params}, inputs)[number]

  optimizer = kit.slow_cosine(setting["learning_rate"], config.num_steps)
  method = _method(config, module.num_classes, head(1), kind, setting)
  return algorithms.semi_supervised_training(head(0), method, optimizer, decay=config.decay)


def _method(config, num_classes, auxiliary_fn, kind, setting) -> SemiSupervisedMethod:
  if kind == STRONG:
    return algorithms.supervised_method(view="strong")

  def build(**options):
    return algorithms.shrinkmatch_method(
      auxiliary_fn,
      num_classes=num_classes,
      weight=setting["certain"],
      threshold=setting["threshold"],
      history=config.history,
      decay=config.share_decay,
      uncertain_weight=1.0 if kind == UNIT else None,
      **options,
    )

  def loss_fn(key, step):
    losses_fn = shared_losses if kind == SHARE else unit_losses

    def uncertain_fn(logits, probs, *, threshold):
      # One of them counts, so that all rows of a kind are one program.
      return losses_fn(key, logits, probs, step.batch.truth, threshold)[setting["loss"]]

    return build(uncertain_fn=uncertain_fn).loss_fn(key, step)

  return SemiSupervisedMethod(loss_fn, build().init_fn)


def shared_losses(key, logits, probs, truth, threshold) -> jax.Array:
  """Losses `[4, n]` by number: shrunk, all classes, as many random ones removed, nothing."""
  del truth
  return jnp.stack(
    [
      losses.shrunk_class_loss(logits, probs, threshold=threshold),
      full_class_loss(logits, probs, threshold=threshold),
      randomly_shrunk_loss(key, logits, probs, threshold=threshold),
      jnp.zeros(len(logits)),
    ]
  )


def unit_losses(key, logits, probs, truth, threshold) -> jax.Array:
  """Losses `[2, n]` without a weight: shrunk, and the true label."""
  del key
  top = jnp.max(probs, axis=-1)
  shrunk = losses.shrunk_class_loss(logits, probs, threshold=threshold) / top
  values = optax.softmax_cross_entropy_with_integer_labels(logits, truth)
  return jnp.stack([shrunk, jnp.where(top < threshold, values, 0.0)])


def full_class_loss(logits: chex.Array, probs: chex.Array, *, threshold: chex.Numeric) -> jax.Array:
  """Cross-entropy of uncertain rows to their top class among all classes, weighted likewise."""
  top, guess = jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1)
  values = optax.softmax_cross_entropy_with_integer_labels(logits, guess)
  return jnp.where(top < threshold, top * values, 0.0)


def randomly_shrunk_loss(
  key: chex.PRNGKey, logits: chex.Array, probs: chex.Array, *, threshold: chex.Numeric
) -> jax.Array:
  """The shrunk loss where as many classes are removed, any but the top one."""
  space = losses.shrink_class_space(probs, threshold=threshold)
  top, guess = jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1)
  is_top = jax.nn.one_hot(guess, probs.shape[-1], dtype=bool)
  draws = jnp.where(is_top, jnp.inf, jax.random.uniform(key, probs.shape))
  ranks = jnp.argsort(jnp.argsort(draws, axis=-1), axis=-1)
  kept = jnp.where(ranks < space.num_removed[..., None], -jnp.inf, logits)
  values = optax.softmax_cross_entropy_with_integer_labels(kept, guess)
  return jnp.where((top < threshold) & space.reached, top * values, 0.0)


def evaluate(config, dataset: Dataset, num_marks: int, kind: str, key, splits: FewLabels, setting):
  """Trains a row: accuracy on digits, its use of unlabeled rows, and what it would remove."""
  num_classes = dataset.num_classes * num_marks
  init_key, learn_key, view_key = jax.random.split(key, 3)
  module, shared = network(config, num_classes), protocol(config, dataset, num_classes)
  trainer = training(config, module, kind, setting)
  state = trainer.init(module.init(init_key, splits.labeled.inputs[:2])["params"])
  learned = kit.learn(
    learn_key,
    trainer,
    state,
    splits.labeled,
    splits.unlabeled,
    shared,
    num_parts=config.num_parts,
  )

  def digits(split):
    return Split(split.inputs, split.labels // num_marks)

  def merge(logits):
    return jax.nn.logsumexp(logits.reshape(len(logits), -1, num_marks), axis=-1)

  rest = digits(splits.validation), digits(splits.test)
  scores = kit.evaluate(trainer, learned, *rest, views=shared.views, merge=merge)
  weak = shared.views.weak(view_key, jnp.asarray(splits.unlabeled.inputs))
  logits = kit.predict(trainer, learned.state, weak, views=shared.views)
  probs = jax.nn.softmax(logits)
  uniform = jnp.full(num_classes, 1 / num_classes)
  aligned = augment.align_distribution(probs, jnp.mean(probs, axis=0), uniform, epsilon=0.0)
  return scores | removal(aligned, splits.unlabeled.labels, num_marks, config.thresholds[0])


def removal(probs: chex.Array, labels: chex.Array, num_marks: int, threshold: float):
  """What shrinking does to uncertain rows, and to those of them whose top class is wrong.

  Args:
    probs: of weak views, `[n, k]`.
    labels: true classes, `[n]`.
    num_marks: classes of a digit.
    threshold: of certainty.

  Returns:
    Shares; 0 where there are no such rows.
  """
  space = losses.shrink_class_space(probs, threshold=threshold)
  uncertain, guess = jnp.max(probs, axis=-1) < threshold, jnp.argmax(probs, axis=-1)
  wrong = uncertain & (guess != labels)
  kept = jnp.take_along_axis(space.keep, jnp.asarray(labels)[:, None], axis=1)[:, 0]

  def mean(values, where):
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)

  return {
    "uncertain": jnp.mean(uncertain),
    "right digit where uncertain": mean(guess // num_marks == labels // num_marks, uncertain),
    "true class removed": mean(~kept, wrong),
    "removed by chance": mean(space.num_removed / (probs.shape[-1] - 1), wrong),
  }
