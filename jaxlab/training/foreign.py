"""Parameters from the checkpoints of other programs."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import chex
import jax
import orbax.checkpoint as ocp

from jaxlab.training.leaves import descriptions, leaf_name, like, target
from jaxlab.training.provenance import check_same

_MARKER = "_METADATA"  # Of a tree that orbax wrote.


def restore_params(directory: str | os.PathLike[str], params_like: chex.ArrayTree) -> Any:
  """Reads parameters from an orbax directory, whatever program wrote it.

  The directory is one checkpoint (of `StandardCheckpointer`, `PyTreeCheckpointer` or an item of a
  `CheckpointManager`), or holds one folder per step, of which the newest is read. In the tree that
  was saved, the parameters are all of it, or stand under `params`, as in a `TrainState` of flax or
  in the variables of a module. Nothing else is read into memory.

  Args:
    directory: where the checkpoint is.
    params_like: parameters, or `jax.ShapeDtypeStruct` leaves, of the wanted structure, shapes,
      types and shardings.

  Returns:
    The parameters, in the structure and with the shardings of `params_like`.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    MismatchError: if the parameters have other paths, shapes or types; names the first that
      differs, with both values.
  """
  place = _tree_directory(pathlib.Path(os.path.abspath(os.path.expanduser(directory))))
  wanted = descriptions(params_like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    above, tree = _params_of(checkpointer.metadata(place).item_metadata.tree, wanted)
    check_same(str(place), descriptions(tree), wanted)
    targets = dict(zip(wanted, map(target, jax.tree.leaves(params_like))))
    item = jax.tree_util.tree_map_with_path(lambda path, _: targets[leaf_name(path)], tree)
    for name in reversed(above):
      item = {name: item}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
    restored = checkpointer.restore(place, args=args)
  for name in above:
    restored = restored[name]
  values = {leaf_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(restored)}
  leaves, structure = jax.tree.flatten(params_like)
  return structure.unflatten(
    [like(leaf, values[name], iter(())) for name, leaf in zip(wanted, leaves)]
  )


def _params_of(tree: Any, wanted: Mapping[str, str]) -> tuple[tuple[str, ...], Any]:
  """Where the parameters stand in a tree, and they: the first part with the wanted paths."""
  above = ()
  while descriptions(tree).keys() != wanted.keys():
    if not isinstance(tree, Mapping) or "params" not in tree:
      break
    above, tree = (*above, "params"), tree["params"]
  return above, tree


def _tree_directory(directory: pathlib.Path) -> pathlib.Path:
  """The directory of a tree: this one, or the newest step in it, or the item in that."""
  if (directory / _MARKER).is_file():
    return directory
  steps = [path for path in directory.glob("*") if path.name.isdigit()]
  step = max(steps, key=lambda path: int(path.name), default=directory)
  items = sorted(marker.parent for marker in (*step.glob(_MARKER), *step.glob(f"*/{_MARKER}")))
  if len(items) != 1:
    held = ", ".join(path.name for path in items) or "none"
    raise FileNotFoundError(f"{step} must hold one tree that orbax wrote, and holds {held}.")
  return items[0]
