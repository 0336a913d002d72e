"""A search tree over short runs of tokens, in which a text can be rewound to any node.

Nodes are rows of arrays in the order of creation, so that a search is one program. Choosing a leaf,
scoring its text and backing the score up are the steps of `rewind_generate`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.rewind_nodes import backup_level, mix_among, selection_scores

_SET_WIDTH = 10


class RewindTree(NamedTuple):
  """A search tree of N nodes; rows from `num_nodes` on are not in use.

  Attributes:
    parent: int32 `[N]`; -1 at the root and in rows not in use.
    depth: sets of tokens since the start of the text, int32 `[N]`.
    tokens: the set of each node, padded with 0, int32 `[N, s]`.
    token_length: tokens of the set, int32 `[N]`; 0 at the first root.
    prior: probability among siblings, `[N]`.
    visits: as in `RewindLevel`, `[N]`.
    real_visits: as in `RewindLevel`, int32 `[N]`.
    value: as in `RewindLevel`, `[N]`.
    embedding: as in `RewindLevel`, `[N, d]`.
    has_embedding: as in `RewindLevel`, bool `[N]`.
    num_nodes: rows in use, int32.
    root: the row to search from, int32.
    min_value: the least value of a node so far, or -1.
    max_value: the largest one, or 1.
  """

  parent: chex.Array
  depth: chex.Array
  tokens: chex.Array
  token_length: chex.Array
  prior: chex.Array
  visits: chex.Array
  real_visits: chex.Array
  value: chex.Array
  embedding: chex.Array
  has_embedding: chex.Array
  num_nodes: chex.Array
  root: chex.Array
  min_value: chex.Array
  max_value: chex.Array


class CommittedMove(NamedTuple):
  """The tree below a child of the root, and the tokens of this child, padded with 0, `[s]`."""

  tree: RewindTree
  tokens: chex.Array


@compiled_once
def init_rewind_tree(
  *, capacity: int, embedding_dim: int, set_width: int = _SET_WIDTH
) -> RewindTree:
  """A tree of a root without tokens.

  Args:
    capacity: number N of rows, at least 2.
    embedding_dim: size d of embeddings.
    set_width: most tokens of a node.

  Returns:
    The `RewindTree`.

  Raises:
    ValueError: if `capacity` < 2, or another size < 1.
  """
  check_at_least(2, capacity=capacity)
  check_at_least(1, embedding_dim=embedding_dim, set_width=set_width)
  integers, floats = jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity, jnp.float32)
  return RewindTree(
    parent=integers - 1,
    depth=integers,
    tokens=jnp.zeros((capacity, set_width), jnp.int32),
    token_length=integers,
    prior=floats,
    visits=floats,
    real_visits=integers,
    value=floats,
    embedding=jnp.zeros((capacity, embedding_dim), jnp.float32),
    has_embedding=jnp.zeros(capacity, bool),
    num_nodes=jnp.ones((), jnp.int32),
    root=jnp.zeros((), jnp.int32),
    min_value=-jnp.ones(()),
    max_value=jnp.ones(()),
  )


def _as_tree(tree: RewindTree) -> RewindTree:
  """The tree with numbers that can be added to, of the shapes that it must have."""
  forms = dict.fromkeys(RewindTree._fields, "[N]")
  forms |= {"tokens": "[N, s]", "embedding": "[N, d]"}
  forms |= dict.fromkeys(("num_nodes", "root", "min_value", "max_value"), "[]")
  check_arrays(**{f"tree.{x}": (getattr(tree, x), form) for x, form in forms.items()})

  def widened(leaf):
    leaf = jnp.asarray(leaf)
    if leaf.dtype == bool:
      return leaf
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return as_accumulator(leaf) if is_float else leaf.astype(jnp.int32)

  return jax.tree.map(widened, tree)


@compiled_once
def select_leaf(
  tree: RewindTree, *, max_depth: int | None = None, exploration: chex.Numeric = 2.0
) -> jax.Array:
  """Goes from the root to a node without children, each time to the child of the best score.

  Args:
    tree: the tree.
    max_depth: most nodes of a path, the root included; None for as many as the tree has rows.
    exploration: as in `selection_scores`.

  Returns:
    Nodes from the root on, then -1, int32 `[max_depth]`. Of equal scores the first child's wins.

  Raises:
    ValueError: if `exploration` < 0 or `max_depth` < 1.

  Reference: as for `selection_scores`.
  """
  check_range("exploration", exploration, "[0, inf)")
  check_at_least(1, max_depth=max_depth)
  tree = _as_tree(tree)

  def descend(node, _):
    is_child = (tree.parent == node) & (node >= 0)
    scores = selection_scores(
      tree.value,
      tree.visits,
      tree.prior,
      parent_visits=tree.visits[node],
      min_value=tree.min_value,
      max_value=tree.max_value,
      exploration=exploration,
    )
    best = jnp.argmax(jnp.where(is_child, scores, -jnp.inf)).astype(jnp.int32)
    return jnp.where(jnp.any(is_child), best, -1), node

  steps = jnp.arange(max_depth or tree.parent.shape[0])
  start = varying_carry(descend, tree.root, steps)
  return jax.lax.scan(descend, start, steps)[1]


def expand_leaf(
  tree: RewindTree,
  node: chex.Numeric,
  tokens: chex.Array,
  lengths: chex.Array,
  priors: chex.Array,
) -> RewindTree:
  """Gives a node children.

  Args:
    tree: the tree.
    node: their parent, int.
    tokens: the tokens of each, padded, int `[k, s]`.
    lengths: how many tokens each has, int `[k]`; 0 for none, which becomes no child.
    priors: probabilities, `[k]`.

  Returns:
    The `RewindTree`. Children for which there is no row left are left out.

  Raises:
    ValueError: if shapes do not fit, or the tree has too few rows for one expansion.
  """
  check_arrays(
    **{"tree.tokens": (tree.tokens, "[N, s]")},
    tokens=(tokens, "int [k, s]"),
    lengths=(lengths, "int [k]"),
    priors=(priors, "[k]"),
    node=(node, "int []"),
  )
  capacity, number = np.shape(tree.tokens)[0], np.shape(tokens)[0]
  if capacity < 1 + number:
    raise ValueError(
      f"capacity must be at least {1 + number} for {number} children, got {capacity}."
    )
  node, tokens, lengths = (jnp.asarray(x).astype(jnp.int32) for x in (node, tokens, lengths))
  return _expand(_as_tree(tree), node, tokens, lengths, as_accumulator(priors))


@compiled_once
def _expand(tree: RewindTree, node, tokens, lengths, priors) -> RewindTree:
  (capacity, width), number = tree.tokens.shape, tokens.shape[0]
  valid = lengths > 0
  rows = tree.num_nodes + jnp.cumsum(valid, dtype=jnp.int32) - 1
  rows = jnp.where(valid, rows, capacity)

  def write(leaf, values):
    return leaf.at[rows].set(values.astype(leaf.dtype), mode="drop")

  tokens = jnp.where(jnp.arange(width)[None] < lengths[:, None], tokens, 0)
  return tree._replace(
    parent=write(tree.parent, jnp.broadcast_to(node, (number,))),
    depth=write(tree.depth, jnp.broadcast_to(tree.depth[node] + 1, (number,))),
    tokens=write(tree.tokens, tokens),
    token_length=write(tree.token_length, lengths),
    prior=write(tree.prior, priors),
    num_nodes=jnp.minimum(tree.num_nodes + jnp.sum(valid, dtype=jnp.int32), capacity),
  )


def backup_path(
  tree: RewindTree,
  path: chex.Array,
  path_embeddings: chex.Array,
  value: chex.Numeric,
  *,
  similarity_threshold: chex.Numeric = 0.95,
  similarity_weight: chex.Numeric = 0.2,
) -> RewindTree:
  """Enters a score into all nodes of a path, and into siblings that are similar to these.

  Args:
    tree: the tree.
    path: nodes from the root on, then -1, int `[p]`, from `select_leaf`.
    path_embeddings: embedding of the text from each node's first token on, `[p, d]`; that of the
      root is ignored.
    value: the score.
    similarity_threshold: as in `backup_level`.
    similarity_weight: as in `backup_level`.

  Returns:
    The `RewindTree`, whose bounds take in the values of the path.

  Raises:
    ValueError: if shapes do not fit, or an argument lies out of range.

  Reference: as for `selection_scores`.
  """
  check_range("similarity_threshold", similarity_threshold, "[-1, 1]")
  check_range("similarity_weight", similarity_weight, "[0, inf)")
  check_arrays(
    **{"tree.embedding": (tree.embedding, "[N, d]")},
    path=(path, "int [p]"),
    path_embeddings=(path_embeddings, "[p, d]"),
    value=(value, "[]"),
  )
  path = jnp.asarray(path).astype(jnp.int32)
  entries = path, *as_accumulator(path_embeddings, value)
  return _enter_path(_as_tree(tree), *entries, similarity_threshold, similarity_weight)


@compiled_once
def _enter_path(
  tree: RewindTree, path, embeddings, score, similarity_threshold, similarity_weight
) -> RewindTree:

  def enter(tree, entry):
    node, embedding = entry
    parent = tree.parent[node]
    is_root = node == tree.root
    # The root has no siblings, and rows not in use have no parent either.
    siblings = jnp.where(is_root, False, tree.parent == parent)
    level = backup_level(
      tree.value,
      tree.visits,
      tree.real_visits,
      tree.embedding,
      tree.has_embedding & siblings,
      child_index=node,
      path_embedding=embedding,
      value=score,
      similarity_threshold=similarity_threshold,
      similarity_weight=similarity_weight,
    )
    moved = level.values[node].astype(tree.value.dtype)
    bounds = jnp.minimum(tree.min_value, moved), jnp.maximum(tree.max_value, moved)
    low, high = (
      jnp.where(is_root, *pair) for pair in zip((tree.min_value, tree.max_value), bounds)
    )
    entered = tree._replace(
      value=level.values,
      visits=level.visits,
      real_visits=level.real_visits,
      embedding=jnp.where(is_root, tree.embedding, level.embeddings),
      has_embedding=jnp.where(siblings, level.has_embedding, tree.has_embedding),
      min_value=low,
      max_value=high,
    )
    entered = jax.tree.map(lambda new, old: new.astype(old.dtype), entered, tree)
    return jax.tree.map(lambda new, old: jnp.where(node >= 0, new, old), entered, tree), None

  tree = varying_carry(enter, tree, (path, embeddings))
  return jax.lax.scan(enter, tree, (path, embeddings))[0]


def most_visited_child(tree: RewindTree) -> tuple[jax.Array, jax.Array]:
  """The child of the root with the most visits, of equal ones that of the larger value.

  Args:
    tree: the tree.

  Returns:
    Its row, int32, and whether there is one.
  """
  is_child = tree.parent == tree.root
  most = jnp.max(jnp.where(is_child, tree.visits, -jnp.inf))
  tied = is_child & (tree.visits == most)
  best = jnp.argmax(jnp.where(tied, tree.value, -jnp.inf)).astype(jnp.int32)
  return best, jnp.any(is_child)


@compiled_once
def commit_move(tree: RewindTree, *, uniform_weight: chex.Numeric = 0.25) -> CommittedMove:
  """Moves the root to its most visited child, and keeps what is below it.

  Args:
    tree: the tree.
    uniform_weight: with how much weight the priors of the new root's children become equal, as in
      `mix_prior`.

  Returns:
    The `CommittedMove`. The child becomes row 0, and `tree.token_length` has its number of tokens
    there. A root without children stays, and the tokens are zeros.

  Raises:
    ValueError: if `uniform_weight` lies outside [0, 1].

  Reference: as for `selection_scores`.
  """
  check_range("uniform_weight", uniform_weight, "[0, 1]")
  tree = _as_tree(tree)
  child, exists = most_visited_child(tree)
  child = jnp.where(exists, child, tree.root)
  capacity = tree.parent.shape[0]

  def grow(state):
    below, _ = state
    grown = below | ((tree.parent >= 0) & below[jnp.maximum(tree.parent, 0)])
    return grown, jnp.any(grown != below)

  start = varying_carry(grow, (jnp.arange(capacity) == child, jnp.ones((), bool)))
  below, _ = jax.lax.while_loop(lambda state: state[1], grow, start)
  # Rows keep their order, so that the child, which is older than all below it, becomes the first.
  new_row = jnp.cumsum(below, dtype=jnp.int32) - 1
  target = jnp.where(below, new_row, capacity)
  parent = jnp.where(jnp.arange(capacity) == child, -1, new_row[jnp.maximum(tree.parent, 0)])
  empty = init_rewind_tree(
    capacity=capacity, embedding_dim=tree.embedding.shape[1], set_width=tree.tokens.shape[1]
  )
  moved = jax.tree.map(
    lambda leaf, blank: (
      blank.astype(leaf.dtype).at[target].set(leaf, mode="drop") if leaf.ndim else leaf
    ),
    tree._replace(parent=parent),
    empty,
  )
  is_child = (moved.parent == 0) & exists
  kept = moved._replace(
    prior=mix_among(moved.prior, is_child, uniform_weight).astype(moved.prior.dtype),
    num_nodes=jnp.sum(below, dtype=jnp.int32),
    root=jnp.zeros_like(tree.root),
  )
  return CommittedMove(kept, jnp.where(exists, kept.tokens[0], 0))
