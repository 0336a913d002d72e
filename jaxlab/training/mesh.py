"""Device meshes: which device holds which piece of parameters and batches."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlab._paths import path_names

_DATA = "data"


def make_mesh(axes: Mapping[str, int]) -> Mesh:
  """Arranges the devices of all processes in a named grid.

  All axes are automatic: the compiler inserts the communication over a `model` axis. Only code that
  binds an axis by name (`data` in the update) communicates over it explicitly.

  Args:
    axes: axis name -> number of devices, in order, for example `{"data": -1, "model": 2}`. One size
      may be -1: it takes the remaining devices. Without it the first devices are used.

  Returns:
    The mesh.

  Raises:
    ValueError: if the sizes do not fit the number of devices.
  """
  sizes, devices = dict(axes), jax.devices()
  free = [name for name, size in sizes.items() if size == -1]
  bad = [name for name, size in sizes.items() if size < 1 and size != -1]
  if not sizes or bad or len(free) > 1:
    raise ValueError(f"axes must be positive sizes, at most one of them -1; got {sizes}")
  taken = math.prod(size for size in sizes.values() if size != -1)
  if free:
    if len(devices) % taken:
      raise ValueError(f"axes {sizes} do not divide the devices: {len(devices)} devices / {taken}")
    sizes[free[0]] = len(devices) // taken
    taken = len(devices)
  if taken > len(devices):
    raise ValueError(f"axes {sizes} need {taken} devices, there are {len(devices)}")
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
    devices=devices[:taken],
  )


def shard_params(
  params: chex.ArrayTree, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]
) -> chex.ArrayTree:
  """Places parameters by rules on their paths.

  Args:
    params: pytree of arrays, the same values in every process.
    mesh: the mesh.
    rules: pairs of a regular expression, searched for in the path (`layer_0/attention/kernel`),
      and the spec of the leaves it matches. The first match wins; a leaf without one is replicated.

  Returns:
    `params` with every leaf on the mesh.

  Raises:
    ValueError: if a spec names an axis the mesh lacks or is longer than a leaf has dimensions,
      or if a dimension is not divisible by its axis.
  """
  for pattern, spec in rules:
    unknown = [axis for entry in spec for axis in _axes(entry) if axis not in mesh.shape]
    if unknown:
      raise ValueError(
        f"rule ({pattern!r}, {spec}) names axis {unknown[0]!r}; the mesh has {tuple(mesh.shape)}"
      )

  def place(path, leaf):
    name = "/".join(path_names(path))
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
    shape = np.shape(leaf)
    if len(spec) > len(shape):
      raise ValueError(f"{name} of shape {shape} has fewer dimensions than its rule's {spec}")
    for size, entry in zip(shape, spec):
      pieces = math.prod(mesh.shape[axis] for axis in _axes(entry))
      if size % pieces:
        raise ValueError(
          f"{name} of shape {shape}: dimension {size} is not divisible by axis {entry!r} of size "
          f"{pieces}"
        )
    return _place(leaf, NamedSharding(mesh, spec))

  return jax.tree_util.tree_map_with_path(place, params)


def _axes(entry: Any) -> tuple[str, ...]:
  """The axes of one entry of a spec: None, a name, or several names."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
  """Puts a value that every process holds on the mesh."""
  if sharding.is_fully_addressable or (isinstance(x, jax.Array) and on_mesh(x, sharding.mesh)):
    return jax.device_put(x, sharding)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _place(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  values = np.asarray(x)
  return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def on_mesh(x: Any, mesh: Mesh) -> bool:
  """Whether an array is already on a mesh.

  Args:
    x: any value.
    mesh: the mesh.

  Returns:
    True for an array (or `jax.ShapeDtypeStruct`) with a named sharding over exactly this mesh.
  """
  sharding = getattr(x, "sharding", None)
  return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def replicate(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
  """Puts a whole copy of every leaf on every device.

  Args:
    tree: pytree of arrays, the same values in every process.
    mesh: the mesh.

  Returns:
    The same values, replicated over the mesh.
  """
  return jax.tree.map(lambda x: _place(x, NamedSharding(mesh, PartitionSpec())), tree)


def local_data_size(mesh: Mesh) -> int:
  """Counts the pieces of a batch that this process holds.

  Args:
    mesh: a mesh with an axis `data`.

  Returns:
    The number of positions on the `data` axis that have a device of this process: the size of
    the axis when there is one process.

  Raises:
    ValueError: if the mesh has no axis `data`.
  """
  if _DATA not in mesh.shape:
    raise ValueError(f"the mesh needs an axis {_DATA!r}; it has {tuple(mesh.shape)}")
  if not mesh.is_multi_process:
    return mesh.shape[_DATA]
  rows = np.moveaxis(mesh.devices, mesh.axis_names.index(_DATA), 0).reshape(mesh.shape[_DATA], -1)
  process = jax.process_index()
  return sum(any(device.process_index == process for device in row) for row in rows)


def shard_batch(batch: chex.ArrayTree, mesh: Mesh, *, axis: int = 0) -> chex.ArrayTree:
  """Spreads a batch over the axis `data`.

  Args:
    batch: pytree of arrays with b rows each: the rows of this process only. Leaves that are already
      on the mesh are returned as they are.
    mesh: a mesh with an axis `data`.
    axis: the dimension of rows; 1 if the leading dimension counts steps.

  Returns:
    Global arrays, sharded over `data` along `axis` and replicated over the other mesh axes.

  Raises:
    ValueError: if the rows of a leaf are not divisible by the size of the `data` axis.
  """
  pieces = local_data_size(mesh)
  sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, _DATA))

  def place(x):
    if on_mesh(x, mesh):
      return x
    shape = np.shape(x)
    if len(shape) <= axis:
      raise ValueError(
        f"a leaf of the batch has shape {shape}, which lacks the row dimension {axis}"
      )
    if shape[axis] % pieces:
      raise ValueError(
        f"a batch of {shape[axis]} rows is not divisible by the {pieces} devices of axis {_DATA!r}"
      )
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(place, batch)


def data_parallel(
  fn: Callable[..., Any],
  mesh: Mesh,
  *,
  axis_name: str = _DATA,
  replicated_argnums: Sequence[int] = (0,),
  sharded_outputs: bool = False,
) -> Callable[..., Any]:
  """Runs a function of one device's shard on all devices: `pmap`, on a mesh.

  As in `pmap` a gradient taken inside `fn` is that of this device's shard alone, until
  `jax.lax.pmean(gradient, axis_name)`. Other axes of the mesh stay with the compiler.

  Args:
    fn: function of positional arguments; it sees its shard of every argument that is not
      replicated and may use collectives over `axis_name`.
    mesh: the mesh.
    axis_name: the axis over which leading dimensions are split.
    replicated_argnums: positions of the arguments that every device sees whole.
    sharded_outputs: False: outputs are equal on all devices. `fn` must ensure this by collectives;
      it is not checked, and the first device's outputs are taken. True: the devices' outputs are
      concatenated along their leading dimension.

  Returns:
    A jitted function of global arguments.

  Raises:
    ValueError: if the mesh lacks `axis_name`; on a call, if a leading dimension is not divisible by
      the axis.
  """
  if axis_name not in mesh.shape:
    raise ValueError(f"axis_name {axis_name!r} is not an axis of the mesh {tuple(mesh.shape)}")
  size, replicated = mesh.shape[axis_name], frozenset(replicated_argnums)
  whole, split = PartitionSpec(), PartitionSpec(axis_name)

  @jax.jit
  def call(*args):
    specs = tuple(whole if i in replicated else split for i in range(len(args)))
    for i, arg in enumerate(args):
      for leaf in () if i in replicated else jax.tree.leaves(arg):
        if leaf.ndim == 0 or leaf.shape[0] % size:
          raise ValueError(
            f"argument {i}: leading dimension of shape {leaf.shape} is not divisible by the {size} "
            f"devices of axis {axis_name!r}"
          )
    return jax.shard_map(
      fn,
      mesh=mesh,
      in_specs=specs,
      out_specs=split if sharded_outputs else whole,
      axis_names={axis_name},
      check_vma=False,
    )(*args)

  return call


def initialize_multihost(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the processes of a run on several hosts; call it before anything touches a device.

  Arguments that are None are read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID`. If none of the three is given, JAX queries the cluster (TPU pods, Slurm, MPI).

  Args:
    coordinator: `host:port` of process 0.
    num_processes: number of processes of the run.
    process_id: index of this process.

  Raises:
    ValueError: if only some of the three are given, or if they contradict each other.
    RuntimeError: if none is given and JAX finds no cluster.
  """
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  num_processes = _from_environment(num_processes, "JAX_NUM_PROCESSES")
  process_id = _from_environment(process_id, "JAX_PROCESS_ID")
  known = {
    "coordinator (JAX_COORDINATOR_ADDRESS)": coordinator,
    "num_processes (JAX_NUM_PROCESSES)": num_processes,
    "process_id (JAX_PROCESS_ID)": process_id,
  }
  missing = [name for name, value in known.items() if value is None]
  if len(missing) == len(known):
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise RuntimeError(f"no cluster found; give {', '.join(known)}") from error
    return
  if missing:
    raise ValueError(f"a run on several hosts also needs {' and '.join(missing)}")
  if not 0 <= process_id < num_processes:
    raise ValueError(f"process_id {process_id} lies outside [0, num_processes {num_processes})")
  jax.distributed.initialize(coordinator, num_processes, process_id)


def texts_of_processes(text: str) -> list[str]:
  """Exchanges one text per process; all processes call it together.

  Args:
    text: the text of this process.

  Returns:
    The texts of all processes, in the order of their indices.
  """
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.pad(data, (0, int(sizes.max()) - data.size))
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:size]).decode() for row, size in zip(rows, sizes)]


def _from_environment(value: int | None, variable: str) -> int | None:
  """The argument, or else the integer in the environment."""
  text = os.environ.get(variable)
  if value is not None or text is None:
    return value
  try:
    return int(text)
  except ValueError as error:
    raise ValueError(f"{variable} must be an integer, got {text!r}") from error
