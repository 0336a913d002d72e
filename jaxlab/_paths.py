"""Names of the leaves of a pytree."""

from typing import Any

import jax


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The names from the root to a leaf, for any container type.

  Args:
    path: entries as in `jax.tree_util.tree_map_with_path`.

  Returns:
    The names. An NNX variable has the name that it has in its module, without the attribute that
    holds its array.
  """
  names = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
  is_variable = path and path[-1] == jax.tree_util.GetAttrKey("value")
  return names[:-1] if is_variable else names
