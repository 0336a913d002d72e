"""One jitted step: the same numbers for any number of devices, micro-batches and steps per call."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab._checks import check_arrays, check_at_least
from jaxlab.training import mesh as meshes
from jaxlab.training.state import TrainState

_DATA = "data"
_RESERVED = ("loss", "grad_norm", "weight")
# Evaluation draws from a branch of the run's key that no step number reaches.
_EVALUATION = np.uint32(2**32 - 1)


class LossOutput(NamedTuple):
  """What a loss function returns.

  Attributes:
    values: losses of single elements (examples, or tokens), `[...]`.
    weights: weight of each element, in the shape of `values`; None for ones. They are constants: no
      gradient flows into them. An element of weight 0 is ignored, even if it is not finite.
    model_state: the new model state, or None to keep the old one.
    metrics: name -> array of the shape of `values` (averaged with `weights`) or a scalar (plain
      mean over micro-batches and devices).
  """

  values: jax.Array
  weights: jax.Array | None = None
  model_state: Any = None
  metrics: dict[str, jax.Array] = {}


LossFn = Callable[[chex.ArrayTree, Any, chex.ArrayTree, chex.PRNGKey], LossOutput]


def build_update(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  mesh: Mesh | None = None,
  accumulate: int = 1,
  steps_per_call: int = 1,
) -> Callable[[TrainState, chex.ArrayTree], tuple[TrainState, dict[str, jax.Array]]]:
  """Builds the training step.

  The objective is `sum(values * weights) / sum(weights)` over the global batch: numerators and
  denominators are summed separately over micro-batches and devices and divided once, so the
  gradient does not depend on how the batch is split, for any weights. One all-reduce per step
  communicates the gradient, in float32, and a few scalars. A batch whose weights sum to 0 gives
  loss 0 and gradient 0, and the optimizer still runs.

  The step's key is `fold_in(state.key, state.step)`, that of micro-batch i `fold_in(step_key, i)`,
  and on device d > 0 of the axis `data` once more `fold_in(., d)`, so that devices draw different
  noise. Randomness in the loss therefore depends on how the batch is split; nothing else does.

  Inside `loss_fn` the axis name "data" is bound: `nn.BatchNorm(axis_name="data")` sees the whole
  micro-batch of all devices. Floating leaves of the model state are averaged over devices at the
  end of a step; other leaves must be equal on all devices.

  Args:
    loss_fn: `(params, model_state, batch, key) -> LossOutput`.
    optimizer: the gradient transformation whose state `init_state` made. It gets gradients in the
      parameters' dtypes, accumulated in float32 at least, and the loss as `value` if it takes one
      (`optax.contrib.reduce_on_plateau`).
    mesh: mesh with an axis `data` over which batches are split; parameters keep their sharding
      over the other axes. None: one device, and then the step may itself be transformed (`vmap`
      over seeds, `jit`, `scan`).
    accumulate: number k of micro-batches; the rows of a device are split into k pieces, in order.
    steps_per_call: number s of updates in one program. For s > 1 batches and metrics have a
      leading axis s.

  Returns:
    `update(state, batch) -> (state, metrics)`. `state` is donated. Leaves of `batch` have b rows
    and are NumPy arrays (with several processes: this process's rows), which the update spreads
    over the mesh, or global arrays. `metrics` are float32 scalars: `loss`, `grad_norm` (global norm
    before the optimizer), `weight` (sum of weights) and those of `loss_fn`. `update.lower(state,
    batch)` is that of `jax.jit`; it takes `jax.ShapeDtypeStruct` too.

  Raises:
    ValueError: if `accumulate` or `steps_per_call` is not positive or the mesh has no axis `data`;
      on a call, if b is not divisible by devices times micro-batches, if `steps_per_call` is not
      the leading axis, or if metrics or model state of `loss_fn` do not fit.
  """
  check_at_least(1, accumulate=accumulate, steps_per_call=steps_per_call)
  optimizer = optax.with_extra_args_support(optimizer)
  devices = _data_size(mesh)
  row_axis = int(steps_per_call > 1)

  def numerator(params, model_state, batch, key):
    """The weighted sum of losses of one micro-batch, with all sums and the model state as aux."""
    output = loss_fn(params, model_state, batch, key)
    sums = _sum(output)
    return sums.weighted["loss"], (sums, _next_model_state(model_state, output))

  def gradient(params, model_state, batch, key):
    """Gradient of the numerators and sums over the micro-batches of this device."""

    def body(carry, inputs):
      (total, model_state), (index, rows) = carry, inputs
      grads, (sums, model_state) = jax.grad(numerator, has_aux=True)(
        params, model_state, rows, _key(key, index, devices)
      )
      return (jax.tree.map(jnp.add, total, grads), model_state), sums

    carry = jax.tree.map(lambda x: jnp.zeros_like(_widen(x)), params), model_state
    if accumulate == 1:
      return body(carry, (0, batch))
    pieces = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
    carry, sums = jax.lax.scan(body, carry, (jnp.arange(accumulate), pieces))
    return carry, jax.tree.map(lambda x: x.sum(0), sums)

  def step(state, batch):
    key = jax.random.fold_in(state.key, state.step)
    (grads, model_state), sums = gradient(state.params, state.model_state, batch, key)
    scalars, unravel = ravel_pytree(sums)
    grads, scalars = jax.lax.psum((grads, scalars), _DATA)  # the one all-reduce
    sums = unravel(scalars)
    grads = jax.tree.map(lambda g: _divide(g, sums.weight), grads)
    metrics = _averages(sums, accumulate * devices) | {"grad_norm": optax.tree.norm(grads)}
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, value=metrics["loss"]
    )
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      model_state=jax.tree.map(_mean_over_devices, model_state),
      key=state.key,
    )
    return state, metrics

  steps = step if steps_per_call == 1 else partial(jax.lax.scan, step)

  def train_step(state, batch):
    for leaf in jax.tree.leaves(batch):
      _check_rows(leaf.shape, steps_per_call, devices, accumulate)
    return _over_data(steps, mesh, row_axis)(state, batch)

  program = _pinned(train_step, mesh)

  def update(state, batch):
    if mesh is not None and not isinstance(state.step, jax.core.Tracer):
      state, batch = _placed(state, mesh), meshes.shard_batch(batch, mesh, axis=row_axis)
    return program(state)(state, batch)

  update.lower = lambda state, batch: program(state).lower(state, batch)
  return update


def _data_size(mesh: Mesh | None) -> int:
  """Size of the axis `data`, which a mesh must have."""
  if mesh is None:
    return 1
  meshes.local_data_size(mesh)
  return mesh.shape[_DATA]


class _Sums(NamedTuple):
  """Sums over elements, float32 scalars, still to be divided."""

  weight: jax.Array
  weighted: dict[str, jax.Array]
  plain: dict[str, jax.Array]


def _sum(output: LossOutput, row_weights: jax.Array | None = None) -> _Sums:
  """Sums a loss function's output over its elements, with optional extra weights of rows."""
  if not isinstance(output, LossOutput):
    raise TypeError(f"loss_fn must return a LossOutput, got {type(output).__name__}")
  values = jnp.asarray(output.values)
  weights = jnp.ones(values.shape) if output.weights is None else jnp.asarray(output.weights)
  forms = {"values": values, "weights": weights}
  check_arrays(**{f"LossOutput.{name}": (array, "[...]") for name, array in forms.items()})
  weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
  if row_weights is not None:
    if values.shape[:1] != row_weights.shape:
      raise ValueError(
        f"evaluation pads short batches and so needs values with a leading axis of the "
        f"{row_weights.shape[0]} rows of a batch; got shape {values.shape}"
      )
    weights *= row_weights.reshape(-1, *(1,) * (values.ndim - 1))

  def weighted(x):
    # Masked values may be non-finite, and 0 * inf is not 0.
    return jnp.sum(jnp.where(weights != 0, _widen(x), 0) * weights)

  sums = _Sums(weights.sum(), {"loss": weighted(values)}, {})
  for name, metric in output.metrics.items():
    metric = jax.lax.stop_gradient(jnp.asarray(metric))
    if name in _RESERVED:
      raise ValueError(f"metric {name!r} of loss_fn has a name that the update itself reports")
    if metric.shape == values.shape:
      sums.weighted[name] = weighted(metric)
    elif metric.ndim == 0:
      sums.plain[name] = _widen(metric)
    else:
      raise ValueError(
        f"metric {name!r} of shape {metric.shape} is neither a scalar nor of the shape of values, "
        f"{values.shape}"
      )
  return sums


def _averages(sums: _Sums, count: int, xp: Any = jnp) -> dict[str, jax.Array]:
  """Metrics from global sums: one division each, however the batch was split."""
  weighted = {name: _divide(x, sums.weight, xp) for name, x in sums.weighted.items()}
  return weighted | {name: x / count for name, x in sums.plain.items()} | {"weight": sums.weight}


def _divide(x: jax.Array, weight: jax.Array, xp: Any = jnp) -> jax.Array:
  """`x / weight`, and 0 where nothing has weight."""
  empty = weight == 0
  return xp.where(empty, 0, x / xp.where(empty, 1, weight))


def _widen(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _next_model_state(old: Any, output: LossOutput) -> Any:
  """The model state for the next micro-batch, with the structure and types of the old one."""
  if output.model_state is None:
    return old
  if jax.tree.structure(old) != jax.tree.structure(output.model_state):
    raise ValueError(
      f"loss_fn turned a model_state of structure {jax.tree.structure(old)} into "
      f"{jax.tree.structure(output.model_state)}"
    )
  return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), old, output.model_state)


def _key(key: chex.PRNGKey, index: Any, devices: int) -> chex.PRNGKey:
  """Key of a micro-batch on a device; device 0 has the key of a run on one device."""
  key = jax.random.fold_in(key, index)
  if devices == 1:
    return key
  device = jax.lax.axis_index(_DATA)
  return jnp.where(device == 0, key, jax.random.fold_in(key, device))


def _mean_over_devices(x: jax.Array) -> jax.Array:
  return jax.lax.pmean(x, _DATA) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _check_rows(shape: tuple[int, ...], steps: int, devices: int, accumulate: int) -> None:
  """Checks one leaf of a global batch at trace time."""
  if steps > 1:
    if not shape or shape[0] != steps:
      raise ValueError(f"steps_per_call is {steps}, but a leaf of the batch has shape {shape}")
    shape = shape[1:]
  if not shape:
    raise ValueError("a leaf of the batch has no axis of rows")
  if shape[0] % (devices * accumulate):
    raise ValueError(
      f"a batch of {shape[0]} rows is not divisible by {devices * accumulate}: {devices} devices x "
      f"accumulate {accumulate}"
    )


def _over_data(fn: Callable[..., Any], mesh: Mesh | None, row_axis: int = 0) -> Callable[..., Any]:
  """Binds the axis "data" around `fn(whole, rows)`; results are equal on all devices."""
  if _data_size(mesh) == 1:
    # An axis of size one with nothing mapped over it: collectives over it are the identity. In a
    # `shard_map` the compiler could not reduce over it beside an automatic axis.
    return jax.vmap(fn, in_axes=None, out_axes=None, axis_name=_DATA, axis_size=1)
  rows = PartitionSpec(*(None,) * row_axis, _DATA)
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=(PartitionSpec(), rows),
    out_specs=PartitionSpec(),
    axis_names={_DATA},
    # With the check on, `grad` itself would sum over devices, once per micro-batch.
    check_vma=False,
  )


def _pinned(fn: Callable[..., Any], mesh: Mesh | None) -> Callable[[TrainState], Any]:
  """`state -> jitted fn` whose new state keeps the shardings of `state`, so it compiles once."""
  free = jax.jit(fn, donate_argnums=0)
  if mesh is None:
    return lambda state: free
  replicated, programs = NamedSharding(mesh, PartitionSpec()), {}

  def program(state):
    if isinstance(state.step, jax.core.Tracer):
      return free
    leaves, structure = jax.tree.flatten(state)
    place = structure, tuple(getattr(x, "sharding", None) for x in leaves)
    if place not in programs:
      shardings = [x.sharding if meshes.on_mesh(x, mesh) else replicated for x in leaves]
      programs[place] = jax.jit(
        fn, donate_argnums=0, out_shardings=(structure.unflatten(shardings), replicated)
      )
    return programs[place]

  return program


def _placed(state: TrainState, mesh: Mesh | None) -> TrainState:
  """Replicates leaves that are not on the mesh yet; if `state.step` is, all leaves are."""
  if mesh is None or meshes.on_mesh(state.step, mesh):
    return state
  return jax.tree.map(lambda x: x if meshes.on_mesh(x, mesh) else meshes.replicate(x, mesh), state)


def build_evaluate(
  loss_fn: LossFn, *, mesh: Mesh | None = None
) -> Callable[[TrainState, Iterable[chex.ArrayTree]], dict[str, float]]:
  """Builds an evaluation over an epoch with exact weighted means.

  Numerators and denominators are summed over batches in float64 and divided once. Batches that are
  shorter than the first or not divisible by the `data` axis are padded with copies of their first
  row at weight 0, so that one program serves all. The key of batch i depends on the run's key and i
  alone: the same parameters give the same result at any step.

  Args:
    loss_fn: as for `build_update`, with `values` whose leading axis is the batch's rows; the model
      state it returns is dropped.
    mesh: mesh with an axis `data` over which batches are split, or None for one device.

  Returns:
    `evaluate(state, batches) -> metrics`: `loss`, `weight` (sum of weights) and the metrics of
    `loss_fn`, as floats. Scalar metrics are plain means over batches, padding included.

  Raises:
    ValueError: if the mesh has no axis `data`; on a call, if `batches` is empty, a batch has
      leaves with different numbers of rows, or `values` has no leading axis of rows.
  """
  devices = _data_size(mesh)
  pieces = 1 if mesh is None else meshes.local_data_size(mesh)

  def sums_of(whole, rows):
    params, model_state, key = whole
    batch, row_weights = rows
    output = loss_fn(params, model_state, batch, _key(key, 0, devices))
    scalars, unravel = ravel_pytree(_sum(output, row_weights))
    return unravel(jax.lax.psum(scalars, _DATA))

  @jax.jit
  def program(params, model_state, key, index, batch, row_weights):
    key = jax.random.fold_in(jax.random.fold_in(key, _EVALUATION), index)
    return _over_data(sums_of, mesh)((params, model_state, key), (batch, row_weights))

  def evaluate(state, batches):
    state, sums, target = _placed(state, mesh), [], 0
    for index, batch in enumerate(batches):
      count = _num_rows(batch)
      # Global arrays count all rows, others those of this process.
      is_global = mesh is not None and meshes.on_mesh(jax.tree.leaves(batch)[0], mesh)
      unit = devices if is_global else pieces
      target = max(target, -(-count // unit) * unit)
      row_weights = (np.arange(target) < count).astype(np.float32)
      batch = _pad(batch, target)
      if is_global:
        row_weights = meshes.replicate(row_weights, mesh)
      elif mesh is not None:
        batch, row_weights = meshes.shard_batch((batch, row_weights), mesh)
      sums.append(
        program(state.params, state.model_state, state.key, np.uint32(index), batch, row_weights)
      )
    if not sums:
      raise ValueError("batches is empty: there is nothing to evaluate")
    total = jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64)), *jax.device_get(sums))
    return {name: float(x) for name, x in _averages(total, len(sums) * devices, np).items()}

  return evaluate


def _num_rows(batch: chex.ArrayTree) -> int:
  """Rows of a batch, on which all its leaves must agree."""
  rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if len(rows) != 1 or () in rows:
    raise ValueError(f"the leaves of a batch must have the same number of rows, got {sorted(rows)}")
  return rows.pop()[0]


def _pad(batch: chex.ArrayTree, rows: int) -> chex.ArrayTree:
  """Repeats the first row, which is valid where zeros might not be, up to a number of rows."""

  def pad(x):
    if x.shape[0] == rows:
      return x
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.concatenate([x, xp.repeat(x[:1], rows - x.shape[0], axis=0)])

  return jax.tree.map(pad, batch)
