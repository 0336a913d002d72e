"""Online adaptation: one interface, one guarded step, and an adapter from any loss.

An adapter is a pair `init(params, ...) -> state` and `update(key, state, inputs) -> (state, info)`.
It predicts a batch, then learns from it. A batch that is not finite, or gives a loss or a gradient
that is not, is predicted, but not learned from: the state stays as it was, and `info.skipped`
counts it.

A new adapter is one loss::

  def confident_entropy(key, batch):
    entropy = losses.softmax_entropy(batch.outputs.logits)
    kept = (entropy < 0.4).astype(jnp.float32)
    return AdaptLoss(kept * entropy, kept)

  optimizer = optax.adam(1e-3)
  adapter = loss_adapter(forward_fn, confident_entropy, optimizer, trainable=norm_affine_only)
  state, infos = adapt_stream(key, adapter, adapter.init(params), batches)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import as_accumulator, check_arrays
from jaxlab._paths import path_names
from jaxlab._programs import compiled_once, varying_carry

ForwardFn = Callable[[chex.ArrayTree, chex.Array], Any]
Path = tuple[str, ...]


class OnlineAdapter(NamedTuple):
  """A model that learns from the batches it predicts.

  Attributes:
    init: `(params, ...) -> state`; calling it again resets.
    update: `(key, state, inputs) -> (state, AdaptInfo)`; works under `jit` and `lax.scan`.
  """

  init: Callable[..., Any]
  update: Callable[..., tuple[Any, "AdaptInfo"]]


class AdaptInfo(NamedTuple):
  """What an update reports.

  Attributes:
    logits: the predictions, made before the batch was learned from, `[b, k]`.
    loss: the loss of the batch, a scalar; 0 for an adapter without one.
    selected: 1 where a row took part in the loss, f32 `[b]`.
    skipped: 1 if inputs, loss or gradient were not finite, so that the state stayed as it was; f32
      scalar.
  """

  logits: chex.Array
  loss: chex.Array
  selected: chex.Array
  skipped: chex.Array


class AdaptBatch(NamedTuple):
  """The inputs of an adaptation loss.

  Attributes:
    inputs: the batch.
    outputs: outputs of the adapted model for it, logits or an object that has `logits`.
    source_outputs: outputs of the source model, without gradient; None unless the source is kept.
    forward: the adapted model, `inputs -> outputs`, for other inputs such as augmentations.
  """

  inputs: chex.Array
  outputs: Any
  source_outputs: Any
  forward: Callable[[chex.Array], Any]


class AdaptLoss(NamedTuple):
  """The output of an adaptation loss.

  Attributes:
    values: one loss per row, `[b]`; their mean is minimized.
    selected: 1 where the row took part, `[b]`, for `AdaptInfo`; None for all rows.
  """

  values: chex.Array
  selected: chex.Array | None = None


class AdapterState(NamedTuple):
  """The adapted parameters, and the optimizer's state of those that are trained."""

  params: chex.ArrayTree
  opt_state: optax.OptState


class FilteredState(NamedTuple):
  """As `AdapterState`, with the source model to compare with."""

  params: chex.ArrayTree
  source_params: chex.ArrayTree
  opt_state: optax.OptState


def loss_adapter(
  forward_fn: ForwardFn,
  loss_fn: Callable[[chex.PRNGKey, AdaptBatch], AdaptLoss],
  optimizer: optax.GradientTransformation,
  *,
  trainable: Callable[[Path], bool],
  keep_source: bool = False,
) -> OnlineAdapter:
  """Builds an adapter from a loss: one optimizer step per batch, predictions from before it.

  Args:
    forward_fn: `(params, inputs) -> outputs` with `features` `[b, d]` and `logits` `[b, k]`.
    loss_fn: `(key, AdaptBatch) -> AdaptLoss`. Losses can be combined by summing their values.
    optimizer: the gradient transformation; it sees the trained leaves alone.
    trainable: `(path) -> bool`, which leaves are trained; a path is the tuple of names from the
      root. Other leaves, and those that are not floating, stay bitwise the same.
    keep_source: whether the state keeps the initial parameters and the loss sees their outputs.

  Returns:
    An `OnlineAdapter` with `init(params)`, whose state is an `AdapterState`, or a `FilteredState`
    if the source is kept.

  Raises:
    ValueError: on a call, if no leaf is trained, or the loss does not have one value per row.
  """

  def init(params):
    params = jax.tree.map(jnp.asarray, params)
    opt_state = init_optimizer(optimizer, params, trainable=trainable)
    if keep_source:
      return FilteredState(params, params, opt_state)
    return AdapterState(params, opt_state)

  def update(key, state, inputs):
    source_outputs = None
    if keep_source:
      source_outputs = jax.lax.stop_gradient(forward_fn(state.source_params, inputs))

    def objective(params):
      forward = partial(forward_fn, params)
      outputs = forward(inputs)
      loss = loss_fn(key, AdaptBatch(inputs, outputs, source_outputs, forward))
      logits = logits_of(outputs)
      form = f"[{logits.shape[0]}]"
      check_arrays(**{"AdaptLoss.values": (loss.values, form)})
      selected = jnp.ones_like(loss.values) if loss.selected is None else loss.selected
      return jnp.mean(as_accumulator(loss.values)), (logits, selected)

    step = guarded_step(
      objective, optimizer, state.params, state.opt_state, inputs=inputs, trainable=trainable
    )
    logits, selected = step.aux
    new_state = state._replace(params=step.params, opt_state=step.opt_state)
    return accept_step(step, state, new_state, logits=logits, selected=selected)

  return OnlineAdapter(init, update)


@compiled_once
def adapt_stream(
  key: chex.PRNGKey,
  adapter: OnlineAdapter,
  state: Any,
  batches: chex.ArrayTree,
  source_batches: chex.ArrayTree | None = None,
) -> tuple[Any, AdaptInfo]:
  """Runs an adapter over a stream of batches, in one `lax.scan`.

  Args:
    key: random key, split into one per batch.
    adapter: any `OnlineAdapter`.
    state: the initial state, from `adapter.init` or an earlier stream.
    batches: inputs, `[n, b, ...]`.
    source_batches: labeled source data for replay, each leaf `[n, ...]`; given to `update` as its
      fourth argument. None for adapters without replay.

  Returns:
    The last state, and the `AdaptInfo` of all updates stacked, `[n, ...]`.
  """
  num_batches = jax.tree.leaves(batches)[0].shape[0]

  def step(state, row):
    key, inputs, source_batch = row
    extra = () if source_batches is None else (source_batch,)
    return adapter.update(key, state, inputs, *extra)

  rows = (jax.random.split(key, num_batches), batches, source_batches)
  return jax.lax.scan(step, varying_carry(step, state, rows), rows)


def logits_of(outputs: Any) -> jax.Array:
  """The logits of what a model returns: its attribute `logits`, or the array itself."""
  return getattr(outputs, "logits", outputs)


class GuardedStep(NamedTuple):
  """The result of an optimizer step, before it is accepted or rejected.

  Attributes:
    params: the new parameters.
    opt_state: the new state of the optimizer.
    loss: the objective before the step.
    aux: auxiliary output of the objective.
    finite: whether the inputs, the loss and every gradient are finite.
  """

  params: chex.ArrayTree
  opt_state: optax.OptState
  loss: chex.Array
  aux: Any
  finite: chex.Array


def init_optimizer(
  optimizer: optax.GradientTransformation,
  params: chex.ArrayTree,
  *,
  trainable: Callable[[Path], bool] | None = None,
) -> optax.OptState:
  """The optimizer's state for the trained leaves alone, as `guarded_step` takes it.

  Args:
    optimizer: the gradient transformation.
    params: all parameters.
    trainable: `(path) -> bool`; None for all floating leaves.

  Returns:
    The state; frozen leaves take no memory in it.

  Raises:
    ValueError: if no leaf is trained.
  """
  return optimizer.init(_partition(params, trainable)[0])


def guarded_step(
  objective: Callable[[chex.ArrayTree], tuple[chex.Array, Any]],
  optimizer: optax.GradientTransformation,
  params: chex.ArrayTree,
  opt_state: optax.OptState,
  *,
  inputs: chex.ArrayTree = None,
  trainable: Callable[[Path], bool] | None = None,
) -> GuardedStep:
  """One optimizer step on the trained leaves, and whether it is safe to keep.

  Args:
    objective: `(params) -> (loss, aux)`.
    optimizer: the gradient transformation.
    params: all parameters.
    opt_state: from `init_optimizer` or the step before.
    inputs: arrays that the objective reads and that must be finite as well, or None.
    trainable: `(path) -> bool`, None for all floating leaves; the others stay bitwise the same and
      cost no gradient.

  Returns:
    A `GuardedStep`.

  Raises:
    ValueError: if no leaf is trained.
  """
  trained, frozen = _partition(params, trainable)
  (loss, aux), grads = jax.value_and_grad(
    lambda trained: objective(_merge(trained, frozen)), has_aux=True
  )(trained)
  updates, opt_state = optimizer.update(grads, opt_state, trained)
  # On CPU a maximum with 0 may turn NaN into 0, so a finite loss does not imply finite inputs.
  finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((inputs, loss, grads))]
  params = _merge(optax.apply_updates(trained, updates), frozen)
  return GuardedStep(params, opt_state, loss, aux, jnp.all(jnp.stack(finite)))


def accept_step(
  step: GuardedStep, old: Any, new: Any, *, logits: chex.Array, selected: chex.Array
) -> tuple[Any, AdaptInfo]:
  """Keeps the new state of an adapter if its step was finite, else the old one.

  Args:
    step: the step that led to the new state.
    old: state before the batch.
    new: state after it, of the same structure.
    logits: the predictions, `[b, k]`.
    selected: which rows took part, `[b]`.

  Returns:
    The state and the `AdaptInfo`.
  """

  def kept(new, old):
    # Leaves that a step cannot change (source model, frozen parameters) are not copied.
    return old if new is old else jnp.where(step.finite, new, old)

  state = jax.tree.map(kept, new, old)
  selected = jnp.where(step.finite, selected, 0).astype(jnp.float32)
  skipped = 1 - step.finite.astype(jnp.float32)
  return state, AdaptInfo(logits, step.loss, selected, skipped)


def _partition(params, trainable) -> tuple[chex.ArrayTree, chex.ArrayTree]:
  """The trained leaves and the others, each with None in place of the other's."""

  def chosen(path, leaf):
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return floating and (trainable is None or bool(trainable(path_names(path))))

  mask = jax.tree_util.tree_map_with_path(chosen, params)
  if not any(jax.tree.leaves(mask)):
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    raise ValueError(f"trainable selects none of the floating leaves of params, {paths}.")
  trained = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, params)
  frozen = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, params)
  return trained, frozen


def _merge(trained, frozen) -> chex.ArrayTree:
  return jax.tree.map(
    lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
  )
