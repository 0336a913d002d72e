"""A classifier in which descriptions of the classes attend to the tokens of a frozen encoder."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range

_MASKED = -1e30


def masked_attention(
  queries: chex.Array, keys: chex.Array, values: chex.Array, mask: chex.Array, *, num_heads: int
) -> jax.Array:
  """Attention of queries to the visible tokens of their own row, by several heads.

  Each head reads its own part of the last axis, and the parts stand side by side. Masked tokens
  reach neither values nor gradients, even if they are NaN.

  Args:
    queries: `[b, q, D]`.
    keys: `[b, t, D]`.
    values: `[b, t, D]`.
    mask: which tokens are visible, bool or 0 and 1, `[b, t]`.
    num_heads: number of heads; it divides D.

  Returns:
    Means of the values, weighted by the softmax of `q . k / sqrt(D / num_heads)`, `[b, q, D]`, in
    float32 or wider; 0 in a row without visible tokens.

  Raises:
    ValueError: if `num_heads` < 1 or it does not divide D.

  Reference: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2,
  https://arxiv.org/abs/1706.03762; as used by Luo et al., CrossTune, LREC-COLING 2024,
  https://arxiv.org/abs/2403.12468.
  """
  check_arrays(
    queries=(queries, "float [b, q, D]"),
    keys=(keys, "float [b, t, D]"),
    values=(values, "float [b, t, D]"),
    mask=(mask, "[b, t]"),
  )
  _check_heads(num_heads, "the last axis D of queries", jnp.shape(queries)[-1])
  return _attend(*as_accumulator(queries, keys, values), mask, num_heads, lambda weights: weights)


def _check_heads(num_heads: int, name: str, width: int) -> None:
  check_at_least(1, num_heads=num_heads)
  if width % num_heads:
    raise ValueError(f"num_heads must divide {name}, got {num_heads} and {width}.")


def _attend(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask: chex.Array,
  num_heads: int,
  drop: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """`masked_attention` with weights that pass through `drop`."""
  visible = jnp.asarray(mask).astype(bool)
  # A NaN times a weight of 0, here or in a gradient, would be NaN.
  keys, values = (jnp.where(visible[..., None], x, 0.0) for x in (keys, values))
  queries, keys, values = (
    x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads) for x in (queries, keys, values)
  )
  scores = jnp.einsum("bqhd,bthd->bhqt", queries * queries.shape[-1] ** -0.5, keys)
  weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1)
  # Without a visible token the weights are uniform, and the values 0.
  mixed = jnp.einsum("bhqt,bthd->bqhd", drop(weights), values)
  return mixed.reshape(*mixed.shape[:2], -1)


class LabelCrossAttention(nn.Module):
  """Scores classes by what their descriptions find in a text.

  The states of the descriptions are queries to the token states of a frozen encoder, and one
  network scores what each of them read. The number of classes is not built in: a new class needs a
  description, and leaves the scores of the others as they are. Parameters: `query`, `key`,
  `value`, `out`, `skip`, `norm`, `hidden` and `score`.

  Attributes:
    num_heads: attention heads.
    dim: width of the attention and of the hidden layer; `num_heads` divides it.
    dropout_rate: share of attention weights, and of inputs of the hidden layer, that training
      drops, in [0, 1).

  Example::

    encode = data.frozen_token_encoder(config)
    model = LabelCrossAttention()
    texts = data.sample_topic_text(key, config, labels)
    words = data.label_descriptions(config)
    described = pool_states(encode(*words), words.mask)
    params = model.init(key, encode(*texts), texts.mask, described)["params"]

  Raises:
    ValueError: if a size is below 1, `num_heads` does not divide `dim`, or `dropout_rate` lies
      outside [0, 1).

  Reference: Luo et al., CrossTune: Black-Box Few-Shot Classification with Label Enhancement,
  LREC-COLING 2024, https://arxiv.org/abs/2403.12468.
  """

  num_heads: int = 4
  dim: int = 128
  dropout_rate: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    check_at_least(1, dim=self.dim)
    _check_heads(self.num_heads, "dim", self.dim)
    check_range("dropout_rate", self.dropout_rate, "[0, 1)")

  @nn.compact
  def __call__(
    self,
    token_states: chex.Array,
    mask: chex.Array,
    label_states: chex.Array,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Scores the classes.

    Args:
      token_states: states of the tokens, float `[b, T, D]`; no gradient flows into them, since the
        encoder is frozen.
      mask: which tokens there are, bool or 0 and 1, `[b, T]`.
      label_states: one vector a class, as `pool_states` makes it of a description, float `[C, D]`.
        Gradients flow into them, so that free vectors can be trained in their place.
      deterministic: whether nothing is dropped; else a `dropout` key is needed.

    Returns:
      Scores, float32 or wider, `[b, C]`.

    Raises:
      ValueError: if shapes do not agree.
      TypeError: if states are no floats.
    """
    check_arrays(
      token_states=(token_states, "float [b, T, D]"),
      mask=(mask, "[b, T]"),
      label_states=(label_states, "float [C, D]"),
    )
    tokens, labels = as_accumulator(token_states, label_states)
    there = jnp.asarray(mask).astype(bool)[..., None]
    tokens = jnp.where(there, jax.lax.stop_gradient(tokens), 0.0)
    drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
    dense = lambda name: nn.Dense(self.dim, name=name)  # noqa: E731
    queries = dense("query")(labels)[None]
    queries = jnp.broadcast_to(queries, (tokens.shape[0], *queries.shape[1:]))
    keys, values = dense("key")(tokens), dense("value")(tokens)
    read = dense("out")(_attend(queries, keys, values, mask, self.num_heads, drop))
    read = nn.LayerNorm(name="norm")(read + dense("skip")(labels)[None])
    hidden = nn.gelu(dense("hidden")(drop(read)), approximate=False)
    return nn.Dense(1, name="score")(hidden)[..., 0]


def pool_states(states: chex.Array, mask: chex.Array) -> jax.Array:
  """Mean state of the visible tokens of each text.

  Args:
    states: `[n, T, D]`; those of masked tokens may be NaN.
    mask: which tokens are visible, bool or 0 and 1, `[n, T]`.

  Returns:
    Means, `[n, D]`, in float32 or wider; 0 for a text without visible tokens.

  Reference: Luo et al., CrossTune, LREC-COLING 2024, https://arxiv.org/abs/2403.12468.
  """
  check_arrays(states=(states, "[n, T, D]"), mask=(mask, "[n, T]"))
  visible = jnp.asarray(mask).astype(bool)
  total = jnp.sum(jnp.where(visible[..., None], as_accumulator(states), 0.0), axis=1)
  return total / jnp.maximum(jnp.sum(visible, axis=1), 1)[:, None]
