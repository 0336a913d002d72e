"""Trains small networks on arrays in memory or on fresh draws, one program per seed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from jaxlab import metrics, training, uncertainty


class Trained(NamedTuple):
  """A trained network.

  Attributes:
    params: the parameters.
    model_state: running statistics, or an empty dict.
    scores: what `evaluate` gave, stacked over evaluations; None without one.
    bad_step: number of good updates before the first that left parameters which are not finite; -1
      if there was none. None if nothing was trained.
  """

  params: chex.ArrayTree
  model_state: chex.ArrayTree
  scores: Any = None
  bad_step: jax.Array | None = None

  @property
  def variables(self) -> dict[str, Any]:
    """What `module.apply` takes."""
    return {"params": self.params, **self.model_state}


def sgd_cosine(
  learning_rate: chex.Numeric,
  num_steps: int,
  *,
  weight_decay: chex.Numeric = 0.0,
  momentum: float = 0.9,
) -> optax.GradientTransformation:
  """SGD with momentum; weight decay joins the gradient, and the rate falls to 0 as a cosine."""
  schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum))


def adamw_cosine(
  learning_rate: chex.Numeric,
  num_steps: int,
  *,
  weight_decay: chex.Numeric = 1e-4,
  num_warmup: int = 0,
) -> optax.GradientTransformation:
  """AdamW, its rate falling to 0 as a cosine, if need be after rising in the first updates."""
  schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
  if num_warmup:
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, num_warmup, num_steps)
  return optax.adamw(schedule, weight_decay=weight_decay)


def first_reaching(scores: chex.Array, enough: chex.Numeric) -> jax.Array:
  """Number of the first of the scores `[n]` that is enough, `[...]` as `enough`; else the last."""
  passed = scores >= jnp.asarray(enough)[..., None]
  return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), len(scores) - 1)


def classification_loss(module: nn.Module, loss_fn: Callable[..., chex.Array] | None = None):
  """The engine's loss of a classifier on batches `Split`; the default is the cross-entropy.

  `loss_fn(apply, key, batch) -> values [b]`, where `apply(inputs, **kwargs)` runs the network in
  training mode; the running statistics are those of its first call.
  """

  def plain(apply, key, batch):
    del key
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch.inputs).logits, batch.labels)

  def loss(params, model_state, batch, key):
    seen = []

    def apply(inputs, **kwargs):
      outputs, state = module.apply(
        {"params": params, **model_state}, inputs, train=True, mutable=["batch_stats"], **kwargs
      )
      seen.append(dict(state))
      return outputs

    values = (loss_fn or plain)(apply, key, batch)
    return training.LossOutput(values, model_state=jax.lax.stop_gradient(seen[0]))

  return loss


def squared_loss(module: nn.Module):
  """The engine's loss of a regression on batches `Split`: a row's mean over outputs."""

  def loss_fn(apply, key, batch):
    outputs = apply(batch.inputs, rngs={"dropout": key}).logits
    return jnp.mean(jnp.square(outputs - batch.labels.reshape(outputs.shape)), axis=-1)

  return classification_loss(module, loss_fn)


def drawn_from(rows: Split, used: chex.Array) -> Callable[[chex.PRNGKey, int], Split]:
  """Batches for `train` of the rows that are used, bool `[n]`, drawn with replacement."""

  def batch(key, size):
    drawn = jax.random.categorical(key, jnp.where(used, 0.0, -jnp.inf), shape=(size,))
    return Split(*(jnp.asarray(array)[drawn] for array in rows))

  return batch


def train(
  key: chex.PRNGKey,
  module: nn.Module,
  loss_fn: Callable[..., training.LossOutput],
  optimizer: optax.GradientTransformation,
  batch: chex.ArrayTree | Callable[[chex.PRNGKey, int], chex.ArrayTree],
  *,
  num_steps: int,
  batch_size: int,
  start: Trained | None = None,
  schedule: chex.ArrayTree | None = None,
  evaluate: Callable[[Trained], Any] | None = None,
  eval_every: int | None = None,
) -> Trained:
  """Trains one network: a traceable function, for `over_seeds` and `jit`.

  Args:
    key: of the initial parameters, the order of the rows and the loss.
    module: network whose `__call__` takes `batch[0]`.
    loss_fn: the engine's loss, as of `classification_loss`.
    optimizer: the gradient transformation.
    batch: pytree of arrays `[n, ...]`, a `Split` or another tuple; rows are shuffled every epoch.
      Or `(key, batch_size) -> pytree`, which draws every batch anew.
    num_steps: number of updates.
    batch_size: rows per update, at most n.
    start: where to begin; None initialises.
    schedule: pytree of arrays `[num_steps, ...]`; with one the loss sees (rows of `batch`, the
      step's entries, repeated for every row).
    evaluate: `(trained) -> pytree`, every `eval_every` steps, which must divide `num_steps`.
    eval_every: steps between evaluations.

  Returns:
    A `Trained`. The gradient of a loss that is not finite turns its parameters to NaN, and so is
    what `accuracy` and `agrees` measure of them; `sweep.grid` says where that began if the scores
    hold the `bad_step`.
  """
  init_key, order_key, state_key = jax.random.split(key, 3)
  drawn = callable(batch)
  shapes = jax.eval_shape(lambda key: batch(key, batch_size), order_key) if drawn else batch
  first = jax.tree.leaves(shapes)[0]
  num_rows = first.shape[0]
  if not 1 <= batch_size <= num_rows:
    raise ValueError(f"batch_size must lie in [1, {num_rows}], got {batch_size}.")
  eval_every = num_steps if evaluate is None else eval_every
  if num_steps % eval_every:
    raise ValueError(f"eval_every={eval_every} does not divide num_steps={num_steps}.")
  if start is None:
    example = jnp.zeros(first.shape, first.dtype) if drawn else first[:batch_size]
    variables = dict(module.init(init_key, example))
    start = Trained(variables.pop("params"), variables)
  state = training.init_state(state_key, start.params, optimizer, model_state=start.model_state)
  update = training.build_update(loss_fn, optimizer)
  arrays = None if drawn else jax.tree.map(jnp.asarray, batch)

  def step(carry, inputs):
    # What the last update left is looked at: to read this one's would change what XLA fuses, and
    # with it the last bits of all results.
    state, bad_step = carry
    bad_step = _first_bad(bad_step, state)
    rows, now = inputs
    seen = batch(rows, batch_size) if drawn else jax.tree.map(lambda array: array[rows], arrays)
    if schedule is not None:
      seen = seen, jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), now)
    state, _ = update(state, seen)
    return (state, bad_step), None

  def phase(carry, inputs):
    (state, bad_step), _ = jax.lax.scan(step, carry, inputs)
    scores = None if evaluate is None else evaluate(Trained(state.params, state.model_state))
    return (state, bad_step), scores

  if drawn:
    rows = jax.random.split(order_key, num_steps)
  else:
    rows = epoch_rows(order_key, num_rows, num_steps=num_steps, batch_size=batch_size)
  inputs = jax.tree.map(lambda x: x.reshape(-1, eval_every, *x.shape[1:]), (rows, schedule))
  (state, bad_step), scores = jax.lax.scan(phase, (state, jnp.int32(-1)), inputs)
  return Trained(state.params, state.model_state, scores, _first_bad(bad_step, state))


def values_loss(values_fn: Callable[[Any, chex.PRNGKey, Any], chex.Array]):
  """The engine's loss of `(params, key, batch) -> values [b]`, without a model state."""

  def loss(params, model_state, batch, key):
    del model_state
    return training.LossOutput(values_fn(params, key, batch))

  return loss


def train_to_best(
  key: chex.PRNGKey,
  params: chex.ArrayTree,
  loss_fn: Callable[..., training.LossOutput],
  optimizer: optax.GradientTransformation,
  batch: chex.ArrayTree,
  validate: Callable[[chex.ArrayTree], tuple[chex.Array, Any]],
  **options: Any,
) -> Trained:
  """Trains, and keeps the parameters of the evaluation with the least validation loss.

  Args:
    key: as for `train`.
    params: where training starts.
    loss_fn: as for `train`.
    optimizer: as for `train`.
    batch: as for `train`.
    validate: `params -> (loss, what else is of interest)`; NaN is never the least.
    **options: `num_steps`, `batch_size` and `eval_every` of `train`.

  Returns:
    A `Trained`, whose scores are what `validate` gave of its parameters.
  """
  evaluate = lambda trained: (trained.params, validate(trained.params))  # noqa: E731
  start = Trained(params, {})
  trained = train(key, None, loss_fn, optimizer, batch, start=start, evaluate=evaluate, **options)
  losses = trained.scores[1][0]
  best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
  params, scores = jax.tree.map(lambda x: x[best], trained.scores)
  return trained._replace(params=params, scores=scores)


def _first_bad(bad_step: chex.Array, state: training.TrainState) -> jax.Array:
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(state.params)]
  is_first = (bad_step < 0) & ~jnp.all(jnp.stack(finite))
  return jnp.where(is_first, jnp.maximum(state.step - 1, 0), bad_step)


def nan_unless(condition: chex.Array, tree: chex.ArrayTree) -> chex.ArrayTree:
  """The floating leaves where the condition holds, NaN in their place where it does not."""

  def leaf(x):
    is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jnp.where(condition, x, jnp.nan) if is_float else x

  return jax.tree.map(leaf, tree)


def agrees(logits: chex.Array, labels: chex.Array) -> jax.Array:
  """1 where the highest of the last axis is the label's, else 0; NaN where none is a number.

  A plain argmax gives a class for NaN, so that a network that diverged would be right by chance.
  """
  right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
  return jnp.where(jnp.isfinite(jnp.max(logits, -1)), right, jnp.nan)


def calibrated_scores(
  validation: chex.Array, test: chex.Array, *, labels: tuple[chex.Array, chex.Array]
) -> dict[str, jax.Array]:
  """NLL, accuracy and ECE of test logits at the one temperature that validation logits prefer.

  Args:
    validation: logits, `[n, k]`.
    test: logits, `[m, k]`.
    labels: classes of both.
  """
  temperature = uncertainty.fit_temperature(validation, labels[0])
  return scores(uncertainty.apply_temperature(test, temperature=temperature), labels[1])


def scores(logits: chex.Array, labels: chex.Array) -> dict[str, jax.Array]:
  """NLL, accuracy and expected calibration error of logits `[n, k]`."""
  return {
    "NLL": jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)),
    "accuracy": jnp.mean(agrees(logits, labels)),
    "ECE": metrics.expected_calibration_error(jax.nn.softmax(logits), labels),
  }


def epoch_rows(key, num_rows: int, *, num_steps: int, batch_size: int) -> jax.Array:
  """Row numbers `[num_steps, batch_size]`: shuffled epochs, incomplete batches dropped."""
  per_epoch = num_rows // batch_size
  keys = jax.random.split(key, -(-num_steps // per_epoch))
  orders = jax.lax.map(lambda k: jax.random.permutation(k, num_rows), keys)
  rows = orders[:, : per_epoch * batch_size].reshape(-1, batch_size)
  return rows[:num_steps]


def predict(module: nn.Module, variables, inputs: chex.Array, *, batch_size: int = 500, **kwargs):
  """The network's outputs in evaluation mode, in batches that bound memory; traceable."""
  return jax.lax.map(
    lambda row: jax.tree.map(lambda out: out[0], module.apply(variables, row[None], **kwargs)),
    inputs,
    batch_size=batch_size,
  )


def accuracy(module: nn.Module, variables, split: Split) -> jax.Array:
  """Share of right argmaxes, in evaluation mode; NaN if the network gives no numbers."""
  logits = predict(module, variables, jnp.asarray(split.inputs)).logits
  return jnp.mean(agrees(logits, split.labels))
