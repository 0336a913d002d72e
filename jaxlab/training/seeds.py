"""Many seeds of one small experiment, as one program."""

from collections.abc import Callable, Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlab._checks import check_at_least
from jaxlab.training.mesh import local_data_size

_SEEDS = "seeds"


def over_seeds(
  key: chex.PRNGKey,
  run_fn: Callable[..., chex.ArrayTree],
  *,
  num_seeds: int,
  arguments: chex.ArrayTree = None,
  mesh: Mesh | None = None,
  only: Sequence[int] | None = None,
) -> chex.ArrayTree:
  """Runs an experiment for many keys: `[run_fn(k) for k in split(key, num_seeds)]`, stacked.

  With `arguments` each run also gets its own row of them: its data, or a point of a grid.

  This is for experiments too small for one seed to fill the machine. Seeds are spread over devices;
  those of one device run in sequence, which on CPU is faster than `vmap` (one seed's arrays stay in
  cache, and convolutions with one kernel per seed are slow). If the number of seeds is not
  divisible by the number of devices, some devices run a seed whose result is dropped.

  Args:
    key: random key, split into one per seed.
    run_fn: the whole experiment, `key -> pytree of arrays`, or `(key, argument) -> ...`: traceable,
      and using no mesh of its own (`build_update` without a mesh is fine). Pass the same function
      object again to avoid recompilation.
    num_seeds: number n of seeds.
    arguments: pytree of arrays `[n, ...]`; run i gets row i of every leaf.
    mesh: mesh whose `data` axis the seeds are spread over. None: all devices of this process, or
      as many as there are seeds.
    only: numbers of the seeds to run, of 0 to n - 1; None runs all. Calls with equally many are
      one program, so that a long experiment can be cut into calls.

  Returns:
    The results, every leaf with a leading axis of n, or of the length of `only`.

  Raises:
    ValueError: if `num_seeds` is not positive, a leaf of `arguments` has another length, `only`
      holds no seeds or others, or the mesh has no axis `data`.
  """
  check_at_least(1, num_seeds=num_seeds)
  seeds = np.arange(num_seeds, dtype=np.int32)
  if only is not None:
    if not len(only) or not set(only) <= set(range(num_seeds)):
      raise ValueError(f"only must hold some of 0 to {num_seeds - 1}, got {list(only)}.")
    seeds = np.asarray(only, np.int32)
  for leaf in jax.tree.leaves(arguments):
    if np.shape(leaf)[:1] != (num_seeds,):
      raise ValueError(
        f"arguments must have a leading axis of num_seeds={num_seeds}, got shape {np.shape(leaf)}."
      )
  axis = "data"
  if mesh is None:
    axis, devices = _SEEDS, jax.local_devices()[: len(seeds)]
    mesh = jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)
  else:
    local_data_size(mesh)
  return _run(key, arguments, seeds, run_fn, num_seeds, mesh, axis)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _run(key, arguments, seeds, run_fn, num_seeds, mesh, axis):
  """One program; everything but the arrays is static, so a second call does not recompile."""
  num_runs = len(seeds)
  per_device = -(-num_runs // mesh.shape[axis])
  rows = seeds[jnp.arange(per_device * mesh.shape[axis]) % num_runs]
  keys = jax.random.split(key, num_seeds)
  runs = (keys,) if arguments is None else (keys, arguments)
  runs = jax.tree.map(lambda x: jnp.asarray(x)[rows], runs)

  def run_some(runs):
    if per_device == 1:
      first = jax.tree.map(lambda x: x[0], runs)
      return jax.tree.map(lambda x: jnp.asarray(x)[None], run_fn(*first))
    return jax.lax.map(lambda run: run_fn(*run), runs)

  spec = PartitionSpec(axis)
  # Manual over all axes: `row_top_k`, which partitions itself, needs that.
  results = jax.shard_map(run_some, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(runs)
  return jax.tree.map(lambda x: x[:num_runs], results)
