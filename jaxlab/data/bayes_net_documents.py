"""Texts about parts of a Bayes net: a few variables with their values, of one state each."""

from typing import Literal, NamedTuple

import chex
import jax
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_choice, check_range
from jaxlab.data.bayes_net_graphs import graph_distances
from jaxlab.data.bayes_nets import check_parents, host_generator, sample_bayes_net


class Documents(NamedTuple):
  """Tokens `[n, T]` i32, 0 after the end, and lengths `[n]` i32."""

  tokens: np.ndarray
  lengths: np.ndarray


def local_documents(
  key: chex.PRNGKey,
  parents: chex.Array,
  cpt: chex.Array,
  *,
  num_documents: int,
  neighborhood_parents: chex.Array | None = None,
  held_out_pairs: chex.Array | None = None,
  radius: Literal["geometric", "zipf"] = "geometric",
  radius_parameter: float = 0.5,
  keep_prob: float = 0.8,
  fully_observed: bool = False,
) -> Documents:
  """Draws texts, each of which shows the values of a neighborhood of the net, on the host.

  A neighborhood is all that lies within a random distance of a random variable. Some of its
  variables are left out, and one of each held-out pair; if none is left, another one is drawn. The
  tokens are 0 for padding, 1 for the start, 2 and 3 for the values 0 and 1, and 4 + i for variable
  i. A text names the variable that comes last, as what will be asked for, and then all of them in
  random order, each with its value: `1, 4 + last, 4 + first, value, ..., 4 + last, value`. A single
  variable is written twice.

  Args:
    key: random key.
    parents: parents of each variable, -1 for none, int `[N, P]`.
    cpt: probability of 1 given the parents' values, `[N, 2^P]`.
    num_documents: number n of texts.
    neighborhood_parents: another net of N variables whose neighborhoods are used, which are then
      not local; None for this net.
    held_out_pairs: pairs that no text has both of, int `[h, 2]`.
    radius: distribution of the distance.
    radius_parameter: probability of a success in (0, 1] for "geometric" (1, 2, ... trials), or
      exponent above 1 for "zipf".
    keep_prob: probability that a variable of the neighborhood is kept, in (0, 1].
    fully_observed: whether every text has all variables, but for those of held-out pairs.

  Returns:
    `Documents` with T = 2 N + 4.

  Raises:
    ValueError: if `num_documents` < 1, `radius` is unknown, a parameter lies outside of its range,
      shapes do not agree, variables of a pair are no variables, or parents contain a cycle.

  Reference: Prystawski et al., Why Think Step by Step?, NeurIPS 2023, section 3.2,
  https://arxiv.org/abs/2304.03843; whose texts spell out names and values.
  """
  check_at_least(1, num_documents=num_documents)
  check_choice("radius", radius, ("geometric", "zipf"))
  check_range(
    "radius_parameter", radius_parameter, "(0, 1]" if radius == "geometric" else "(1, inf)"
  )
  check_range("keep_prob", keep_prob, "(0, 1]")
  check_parents(parents)
  size = len(parents)
  if held_out_pairs is None:
    held_out_pairs = np.empty((0, 2), int)
  check_arrays(
    neighborhood_parents=(neighborhood_parents, f"int [{size}, *]"),
    held_out_pairs=(held_out_pairs, "int [h, 2]"),
  )
  held_out_pairs = np.asarray(held_out_pairs)
  check_range("held_out_pairs", held_out_pairs, f"[0, {size})")
  sample_key, key = jax.random.split(key)
  values = np.asarray(sample_bayes_net(sample_key, parents, cpt, num_samples=num_documents))
  distances = graph_distances(parents if neighborhood_parents is None else neighborhood_parents)
  rng = host_generator(key)

  def draw(num):
    if fully_observed:
      shown = np.ones((num, size), bool)
    else:
      center = rng.integers(size, size=num)
      reach = getattr(rng, radius)(radius_parameter, num)
      shown = (distances[center] >= 0) & (distances[center] <= reach[:, None])
      shown &= rng.random((num, size)) < keep_prob
    for pair in held_out_pairs:
      both = np.flatnonzero(shown[:, pair].all(axis=1))
      shown[both, rng.choice(pair, len(both))] = False
    return shown

  shown = draw(num_documents)
  while (empty := np.flatnonzero(~shown.any(axis=1))).size:
    shown[empty] = draw(len(empty))
  # Random numbers in ascending order, those of hidden variables last.
  order = np.argsort(np.where(shown, rng.random(shown.shape), 2.0), axis=1)
  return _as_tokens(order, shown.sum(axis=1), values)


def _as_tokens(order: np.ndarray, counts: np.ndarray, values: np.ndarray) -> Documents:
  """Texts about the first `counts` variables of each order."""
  num, size = order.shape
  rows = np.arange(num)
  last = order[rows, counts - 1]
  tokens = np.zeros((num, 2 * size + 4), np.int32)
  tokens[:, 0], tokens[:, 1] = 1, 4 + last
  # A single variable stands at both ends.
  order = np.concatenate([order, order[:, :1]], axis=1)
  order[counts == 1, 1] = last[counts == 1]
  counts = np.maximum(counts, 2)
  written = np.arange(size + 1) < counts[:, None]
  tokens[:, 2::2] = np.where(written, 4 + order, 0)
  tokens[:, 3::2] = np.where(written, 2 + values[rows[:, None], order], 0)
  return Documents(tokens, (2 + 2 * counts).astype(np.int32))
