"""How learning in context goes: along a sequence, with the size of the state, during training."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
)

_MIN_IMPROVEMENT = 0.1  # Below it, accuracy counts as constant along the sequence.
_MIN_ADVANTAGE = 0.2  # Of an accuracy over chance.


def accuracy_by_position(logits: chex.Array, labels: chex.Array) -> jax.Array:
  """Accuracy at every position of a sequence, which is what one more example is worth.

  Args:
    logits: scores of the classes, `[b, n, k]`; the first class is predicted on ties.
    labels: true classes, int `[b, n]`.

  Returns:
    Share of sequences that are right, float32 `[n]`; NaN at a position with a NaN score or a traced
    label outside the classes.

  Raises:
    ValueError: if there are no sequences or a known label lies outside the classes.

  Reference: Kirsch et al., General-Purpose In-Context Learning by Meta-Learning Transformers, 2022,
  section 4, https://arxiv.org/abs/2212.04458.
  """
  check_arrays(logits=(logits, "[b, n, k]"), labels=(labels, "int [b, n]"))
  logits = jnp.asarray(logits)
  num_sequences, _, num_classes = logits.shape
  check_at_least(1, **{"the number of sequences": num_sequences})
  labels = as_classes("labels", labels, num_classes)
  correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
  defined = ~jnp.any(jnp.isnan(logits), axis=-1) & (labels < num_classes)
  return jnp.mean(jnp.where(defined, correct, jnp.nan), axis=0)


def learning_improvement(correct: chex.Array, *, window: int = 10) -> jax.Array:
  """Accuracy at the end of a sequence minus accuracy at its start.

  A model that recalls its tasks is as right at the start; one that learns in context gets better.

  Args:
    correct: which predictions are right, bool or shares, `[b, n]`.
    window: positions at either end, at most half of n.

  Returns:
    Mean over the last positions minus mean over the first ones, a scalar in float32 or wider.

  Raises:
    ValueError: if there are no sequences, `window` < 1 or 2 * `window` > n.

  Reference: Kirsch et al., 2022, section 4, https://arxiv.org/abs/2212.04458.
  """
  check_arrays(correct=(correct, "[b, n]"))
  num_sequences, length = jnp.shape(correct)
  check_at_least(1, window=window, **{"the number of sequences": num_sequences})
  if 2 * window > length:
    raise ValueError(f"window must be at most half of the {length} positions, got {window}.")
  correct = as_accumulator(correct)
  return jnp.mean(correct[:, -window:]) - jnp.mean(correct[:, :window])


def accessible_state_size(
  architecture: str, *, num_layers: int, embed_dim: int, sequence_length: int
) -> int:
  """How many numbers of the past the next prediction can read.

  Args:
    architecture: "transformer" (keys and values of all positions), "lstm" (hidden and cell state)
      or "outer_product" (a matrix per layer).
    num_layers: layers.
    embed_dim: width D of the layers.
    sequence_length: positions N.

  Returns:
    2·L·D·N, 2·L·D or L·D².

  Raises:
    ValueError: for another architecture, or a size below 1.

  Reference: Kirsch et al., 2022, section 4, https://arxiv.org/abs/2212.04458.
  """
  check_at_least(1, num_layers=num_layers, embed_dim=embed_dim, sequence_length=sequence_length)
  sizes = {
    "transformer": 2 * num_layers * embed_dim * sequence_length,
    "lstm": 2 * num_layers * embed_dim,
    "outer_product": num_layers * embed_dim**2,
  }
  check_choice("architecture", architecture, sizes)
  return sizes[architecture]


def plateau_length(
  losses: chex.Array,
  *,
  num_classes: int,
  decay: chex.Numeric = 0.98,
  start_fraction: chex.Numeric = 0.9,
) -> jax.Array:
  """How long a training loss stays near that of guessing.

  Args:
    losses: mean cross-entropy of every update, in nats, `[steps]`.
    num_classes: number k of classes, at least 2; guessing costs `log(k)`.
    decay: of the exponential moving average that smooths the losses, in [0, 1).
    start_fraction: share of `log(k)` below which the plateau is left, in (0, 1].

  Returns:
    The first update, from 0, at which the bias-corrected average lies below, int32 scalar; `steps`
    if none does, also where the loss becomes NaN before.

  Raises:
    ValueError: if `num_classes` < 2, or `decay` or `start_fraction` lies outside its range.

  Reference: Kirsch et al., 2022, section 4.3, https://arxiv.org/abs/2212.04458; the average and the
  fraction are ours.
  """
  check_at_least(2, num_classes=num_classes)
  check_range("decay", decay, "[0, 1)")
  check_range("start_fraction", start_fraction, "(0, 1]")
  check_arrays(losses=(losses, "[steps]"))
  losses, decay, start_fraction = as_accumulator(losses, decay, start_fraction)

  def then(first, second):
    return first[0] * second[0], first[1] * second[0] + second[1]

  steps = (jnp.broadcast_to(decay, losses.shape), (1 - decay) * losses)
  remaining, average = jax.lax.associative_scan(then, steps)
  left = average < start_fraction * math.log(num_classes) * (1 - remaining)
  return jnp.argmax(jnp.append(left, True)).astype(jnp.int32)


def in_context_regime(
  seen_improvement: float, unseen_improvement: float, seen_last_accuracy: float, *, num_classes: int
) -> str:
  """Names what a model does with a context; for reports.

  Args:
    seen_improvement: `learning_improvement` on the tasks of the training, with held-out examples.
    unseen_improvement: `learning_improvement` on new data.
    seen_last_accuracy: accuracy at the end of sequences of the tasks of the training.
    num_classes: number of classes.

  Returns:
    "general" if the model learns new data (improves by .1 or more), else "task_identification" if
    it improves on seen tasks alone, else "memorisation" if it is .2 or more above chance on these,
    else "no_learning".

  Raises:
    ValueError: if `num_classes` < 1, an accuracy lies outside [0, 1] or an improvement outside
      [-1, 1].

  Reference: Kirsch et al., 2022, section 4.1, https://arxiv.org/abs/2212.04458; the limits are
  ours.
  """
  check_at_least(1, num_classes=num_classes)
  check_range("seen_improvement", seen_improvement, "[-1, 1]")
  check_range("unseen_improvement", unseen_improvement, "[-1, 1]")
  check_range("seen_last_accuracy", seen_last_accuracy, "[0, 1]")
  if unseen_improvement >= _MIN_IMPROVEMENT:
    return "general"
  if seen_improvement >= _MIN_IMPROVEMENT:
    return "task_identification"
  if seen_last_accuracy >= 1 / num_classes + _MIN_ADVANTAGE:
    return "memorisation"
  return "no_learning"
