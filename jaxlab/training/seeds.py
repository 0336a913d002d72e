"""Many seeds of one small experiment, as one program."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlab._checks import check_at_least
from jaxlab.training.mesh import local_data_size

_SEEDS = "seeds"


def over_seeds(
  key: chex.PRNGKey,
  run_fn: Callable[[chex.PRNGKey], chex.ArrayTree],
  *,
  num_seeds: int,
  mesh: Mesh | None = None,
) -> chex.ArrayTree:
  """Runs an experiment for many keys: `[run_fn(k) for k in split(key, num_seeds)]`, stacked.

  For experiments so small that one seed does not fill the machine. Seeds are spread over devices;
  those of one device run in sequence, which on CPU beats running them vmapped (one seed's arrays
  stay in cache, and convolutions with a weight per seed are slow). Where the devices do not divide
  the seeds, some devices run a seed for nothing.

  Args:
    key: random key, split into one per seed.
    run_fn: the whole experiment, `key -> pytree of arrays`: traceable, and using no mesh of its
      own (`build_update` without a mesh is fine). Give the same function object again to compile
      once.
    num_seeds: number n of seeds.
    mesh: mesh whose `data` axis the seeds are spread over. None: all devices of this process, or
      as many as there are seeds.

  Returns:
    The results, every leaf with a leading axis of n.

  Raises:
    ValueError: if `num_seeds` is not positive or the mesh has no axis `data`.
  """
  check_at_least(1, num_seeds=num_seeds)
  axis = "data"
  if mesh is None:
    axis, devices = _SEEDS, jax.local_devices()[:num_seeds]
    mesh = jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)
  else:
    local_data_size(mesh)
  return _run(key, run_fn, num_seeds, mesh, axis)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _run(key, run_fn, num_seeds, mesh, axis):
  """One program; everything but the key is static, so that a second call finds it compiled."""
  per_device = -(-num_seeds // mesh.shape[axis])
  keys = jax.random.split(key, num_seeds)
  keys = keys[jnp.arange(per_device * mesh.shape[axis]) % num_seeds]

  def run_some(keys):
    if per_device == 1:
      return jax.tree.map(lambda x: jnp.asarray(x)[None], run_fn(keys[0]))
    return jax.lax.map(run_fn, keys)

  spec = PartitionSpec(axis)
  results = jax.shard_map(
    run_some, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={axis}, check_vma=False
  )(keys)
  return jax.tree.map(lambda x: x[:num_seeds], results)
