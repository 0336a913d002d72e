"""Convex combinations of examples: given pairs, several examples, or all pairs of a set."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range


class RegressionMix(NamedTuple):
  """Mixed pairs of a regression set.

  Attributes:
    inputs: mixed inputs, `[b, ...]`.
    targets: targets mixed in the same ratio, `[b, d]`.
    ratio: share of the first example of each pair, one for the batch, float32 `[]`.
  """

  inputs: chex.Array
  targets: chex.Array
  ratio: chex.Array


class MultiMixed(NamedTuple):
  """A batch in which each row mixes several examples.

  Attributes:
    inputs: mixed inputs, `[b, ...]`.
    labels: labels of the examples in each row, `[m, b]`; `labels[0]` are the rows' own.
    weights: shares of the examples, the same for all rows, float32 `[m]`; they sum to 1.
  """

  inputs: chex.Array
  labels: chex.ArrayTree
  weights: chex.Array


def interpolate_pairs(
  inputs: chex.Array, permutation: chex.Array, ratio: chex.Numeric
) -> jax.Array:
  """Mixes every row with its partner: ratio x + (1 - ratio) x[permutation].

  Args:
    inputs: inputs or hidden activations, `[b, ...]`; integers give float32.
    permutation: row of each partner, `[b]`.
    ratio: share of the row itself, `[b]` or a scalar, in [0, 1].

  Returns:
    The mixed rows, `[b, ...]`.

  Raises:
    ValueError: if a known ratio lies outside [0, 1] or a known partner outside the batch; partners
      in JAX arrays give NaN instead.

  Reference: Verma et al., Manifold Mixup, ICML 2019, https://arxiv.org/abs/1806.05236.
  """
  check_range("ratio", ratio, "[0, 1]")
  check_arrays(
    inputs=(inputs, "[b, ...]"),
    permutation=(permutation, "int [b]"),
    ratio=(ratio if np.ndim(ratio) else None, "[b]"),
  )
  inputs = mixable(inputs)
  ratio = jnp.broadcast_to(as_accumulator(ratio), inputs.shape[:1])
  return mix_arrays(inputs, _rows("permutation", inputs, permutation), ratio)


def mix_regression_pairs(
  key: chex.PRNGKey,
  inputs: chex.Array,
  targets: chex.Array,
  indices: chex.Array,
  partners: chex.Array,
  *,
  alpha: chex.Numeric = 2.0,
  ratio: chex.Numeric | None = None,
) -> RegressionMix:
  """Convex combinations of given pairs, of inputs and targets in the same ratio.

  Args:
    key: random key; not read if `ratio` is given.
    inputs: training inputs, `[n, ...]`.
    targets: training targets, `[n, d]`.
    indices: first row of each pair, `[b]`, such as a shuffled epoch's batch.
    partners: second row of each pair, `[b]`, such as `samplers.sample_partners` draws.
    alpha: one ratio for the batch is drawn from Beta(alpha, alpha), alpha > 0.
    ratio: share of the first of each pair, in [0, 1], in place of a draw.

  Returns:
    A `RegressionMix`.

  Raises:
    ValueError: if `alpha` is not positive, `ratio` lies outside [0, 1], or a known row outside
      the set; rows in JAX arrays give NaN instead.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, algorithm 1, https://arxiv.org/abs/2210.05775.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_arrays(
    inputs=(inputs, "[n, ...]"),
    targets=(targets, "[n, d]"),
    indices=(indices, "int [b]"),
    partners=(partners, "int [b]"),
    ratio=(ratio, "[]"),
  )
  if ratio is None:
    ratio = jax.random.beta(key, alpha, alpha, (), jnp.float32)
  check_range("ratio", ratio, "[0, 1]")
  ratio = as_accumulator(ratio)
  pairs = (
    (_rows("indices", array, indices), _rows("partners", array, partners))
    for array in (mixable(inputs), mixable(targets))
  )
  return RegressionMix(*(mix_arrays(*pair, ratio) for pair in pairs), ratio)


def multi_mixup(
  key: chex.PRNGKey,
  inputs: chex.Array,
  labels: chex.ArrayTree,
  *,
  num_mixed: int = 2,
  alpha: chex.Numeric = 1.0,
) -> MultiMixed:
  """Convex combinations of several examples of a batch.

  Its loss is `losses.multi_mixup_cross_entropy`; two examples at alpha 1 are mixup at alpha 1.

  Args:
    key: random key.
    inputs: `[b, ...]`; integers give float32.
    labels: pytree of arrays `[b, ...]`.
    num_mixed: number m of examples per row.
    alpha: the weights are drawn from a symmetric Dirichlet(alpha), alpha > 0.

  Returns:
    A `MultiMixed`.

  Raises:
    ValueError: if `num_mixed` < 2 or `alpha` is not positive.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, https://arxiv.org/abs/2306.00740.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_at_least(2, num_mixed=num_mixed)
  check_arrays(inputs=(inputs, "[b, ...]"))
  inputs = mixable(inputs)
  b = inputs.shape[0]
  labels = batch_labels(labels, b)
  weight_key, order_key = jax.random.split(key)
  concentration = jnp.full((num_mixed,), alpha, jnp.float32)
  weights = jax.random.dirichlet(weight_key, concentration, dtype=jnp.float32)
  orders = [jax.random.permutation(k, b) for k in jax.random.split(order_key, num_mixed - 1)]
  orders = jnp.stack([jnp.arange(b), *orders])
  mixed = sum(weights[i] * as_accumulator(inputs)[orders[i]] for i in range(num_mixed))
  labels = jax.tree.map(lambda leaf: leaf[orders], labels)
  return MultiMixed(mixed.astype(inputs.dtype), labels, weights)


def batch_labels(labels: chex.ArrayTree, batch_size: int) -> chex.ArrayTree:
  """Casts labels of a batch to arrays.

  Args:
    labels: pytree of arrays `[b, ...]`; a list of numbers is an array too.
    batch_size: number b of rows.

  Returns:
    The labels.

  Raises:
    ValueError: naming the first leaf that does not have b rows.
  """

  def is_array(node):
    return isinstance(node, list) and not any(map(np.ndim, jax.tree.leaves(node)))

  labels = jax.tree.map(jnp.asarray, labels, is_leaf=is_array)
  for path, leaf in jax.tree.leaves_with_path(labels):
    check_arrays(**{f"labels{jax.tree_util.keystr(path)}": (leaf, f"[{batch_size}, ...]")})
  return labels


def all_pairs_mix(inputs: chex.Array, *, ratio: chex.Numeric) -> jax.Array:
  """All n^2 mixtures of a set with itself, for the full objective that mixup samples from.

  Args:
    inputs: `[n, ...]`; integers give float32.
    ratio: share of the example on the first axis, in [0, 1].

  Returns:
    `[n, n, ...]`; entry (i, j) is ratio x_i + (1 - ratio) x_j.

  Raises:
    ValueError: if `ratio` lies outside [0, 1].

  Reference: Zou et al., The Benefits of Mixup for Feature Learning, ICML 2023, section 3,
  https://arxiv.org/abs/2303.08433.
  """
  check_range("ratio", ratio, "[0, 1]")
  check_arrays(inputs=(inputs, "[n, ...]"), ratio=(ratio, "[]"))
  inputs = mixable(inputs)
  return mix_arrays(inputs[:, None], inputs[None, :], jnp.asarray(ratio))


def mix_arrays(first: jax.Array, second: jax.Array, ratio: jax.Array) -> jax.Array:
  """Mixes two arrays in float32 or wider; the ratio's axes are the leading ones."""
  ratio = ratio.reshape(*ratio.shape, *(1,) * (first.ndim - ratio.ndim))
  a, b, ratio = as_accumulator(first, second, ratio)
  return (ratio * a + (1.0 - ratio) * b).astype(first.dtype)


def mixable(inputs: chex.Array) -> jax.Array:
  """The inputs in the type of their mixtures."""
  inputs = jnp.asarray(inputs)
  return inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs.astype(jnp.float32)


def _rows(name: str, inputs: jax.Array, index: chex.Array) -> jax.Array:
  """Rows by number; NaN where there is no such row."""
  index = as_classes(name, index, inputs.shape[0])
  return inputs.at[index].get(mode="fill", fill_value=jnp.nan)
