"""A memory bank: features of earlier batches, as keys for losses that compare examples."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least


class BankState(NamedTuple):
  """The last features and labels.

  Attributes:
    features: float32 `[capacity, dim]`; zeros in empty slots.
    labels: int32 `[capacity]`; -1 in empty slots.
    cursor: the slot that the next row goes to, int32 `[]`.
  """

  features: chex.Array
  labels: chex.Array
  cursor: chex.Array


class FeatureBank(NamedTuple):
  """`init() -> state` and `update(state, features, labels) -> state`."""

  init: Callable[[], BankState]
  update: Callable[[BankState, chex.Array, chex.Array], BankState]


def feature_bank(*, capacity: int, dim: int) -> FeatureBank:
  """Keeps the last rows, first in, first out.

  With the features of a slowly moving encoder, a bank offers many more keys than a batch::

      bank = algorithms.feature_bank(capacity=2048, dim=64)
      state = bank.update(bank.init(), momentum_features, labels)
      values = losses.knn_classification_loss(
        features, labels, state.features, state.labels, num_neighbors=20
      )

  Args:
    capacity: rows that are kept.
    dim: size of the features.

  Returns:
    A `FeatureBank`. `update` takes features, `[b, dim]`, and labels, int `[b]`; of more than
    `capacity` rows the last stay. No gradient flows into the bank. Slots that are still empty have
    label -1, which losses of `losses.knn_classification_loss`'s family leave out.

  Raises:
    ValueError: if `capacity` or `dim` < 1; on a call, if the features are not `[b, dim]`.

  Reference: He et al., Momentum Contrast, CVPR 2020, section 3.2, https://arxiv.org/abs/1911.05722;
  Feng et al., ICLR 2022, https://arxiv.org/abs/2110.06014.
  """
  check_at_least(1, capacity=capacity, dim=dim)

  def init():
    return BankState(
      jnp.zeros((capacity, dim), jnp.float32), jnp.full(capacity, -1, jnp.int32), jnp.int32(0)
    )

  def update(state, features, labels):
    check_arrays(features=(features, f"[b, {dim}]"), labels=(labels, "int [b]"))
    features = jax.lax.stop_gradient(jnp.asarray(features)).astype(state.features.dtype)
    labels = jnp.asarray(labels).astype(state.labels.dtype)
    num = len(labels)
    # Two rows for one slot would be written in any order.
    slots = (state.cursor + jnp.arange(max(num - capacity, 0), num, dtype=jnp.int32)) % capacity
    return BankState(
      state.features.at[slots].set(features[-capacity:]),
      state.labels.at[slots].set(labels[-capacity:]),
      (state.cursor + num) % capacity,
    )

  return FeatureBank(init, update)
