"""Causal networks of vectors, which learn a task from the sequence that they read.

Token i holds what the network may know when it makes prediction i. In classification that is the
input and the previous label (`samplers.previous_label_one_hot`), in regression inputs and values
take turns (`interleave_pairs`).
"""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_choice
from jaxlab._programs import varying_carry
from jaxlab.models.decoder_architecture import decoder_config
from jaxlab.models.decoder_blocks import AttentionContext, Block, Linear, Norm
from jaxlab.uncertainty.bayes_linear import GaussianPredictive

_MAX_LOG_VARIANCE = 10.0


class InContextTransformer(nn.Module):
  """A causal transformer of vectors, normalized before attention and before the feed-forward part.

  Attributes:
    num_outputs: outputs per token: classes, or the parameters of a density.
    embed_dim: width D of the layers; the feed-forward part has 4 D.
    num_layers: number of layers.
    num_heads: attention heads; they divide `embed_dim`.
    max_length: longest sequence with learned positions.
    positions: "learned", or "none": causal attention alone then tells the order.

  Raises:
    ValueError: for a size below 1, heads that do not divide, or other `positions`.

  Reference: Kirsch et al., General-Purpose In-Context Learning by Meta-Learning Transformers, 2022,
  https://arxiv.org/abs/2212.04458.
  """

  num_outputs: int
  embed_dim: int = 256
  num_layers: int = 4
  num_heads: int = 8
  max_length: int = 100
  positions: str = "learned"

  def __post_init__(self):
    super().__post_init__()
    check_choice("positions", self.positions, ("learned", "none"))
    check_at_least(1, num_outputs=self.num_outputs, max_length=self.max_length)
    self._config()

  def _config(self):
    return decoder_config(
      vocab_size=self.num_outputs,
      hidden_size=self.embed_dim,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      max_positions=self.max_length,
      family="gpt2",
    )

  @nn.compact
  def __call__(self, tokens: chex.Array) -> jax.Array:
    """Makes a prediction at every token from it and those before.

    Args:
      tokens: `[b, n, k]`.

    Returns:
      Outputs, float32 `[b, n, num_outputs]`.

    Raises:
      ValueError: if `tokens` have another shape, or are more than `max_length` with learned
        positions.
    """
    check_arrays(tokens=(tokens, "[b, n, k]"))
    batch, length, _ = jnp.shape(tokens)
    config = self._config()
    hidden = Linear(self.embed_dim, use_bias=True, name="embed")(jnp.asarray(tokens))
    if self.positions == "learned":
      if length > self.max_length:
        raise ValueError(f"tokens must be at most {self.max_length} (max_length), got {length}.")
      table = self.param(
        "positions_table", nn.initializers.normal(0.02), (self.max_length, self.embed_dim)
      )
      hidden = hidden + table[None, :length]
    steps = jnp.broadcast_to(jnp.arange(length), (batch, length))
    context = AttentionContext(steps, None, 1.0, None, None, None)
    for i in range(self.num_layers):
      (hidden, _), _ = Block(config, name=f"layer_{i}")((hidden, None), i, context)
    hidden = Norm(config.norm, config.norm_eps, name="final_norm")(hidden)
    return Linear(self.num_outputs, use_bias=True, name="head")(hidden)


class _Recurrent(nn.Module):
  """Stacked recurrent layers of one kind, and a linear head.

  A kind has `num_parts`, the number of parts of width D that its map has, the forget gate first;
  `state_shape()`, the shape of a layer's state in one sequence; and `step(state, parts)`, which
  gives the next state and the output.
  """

  num_outputs: int
  embed_dim: int
  num_layers: int = 1

  num_parts: ClassVar[int]

  def __post_init__(self):
    super().__post_init__()
    check_at_least(
      1, num_outputs=self.num_outputs, embed_dim=self.embed_dim, num_layers=self.num_layers
    )

  @nn.compact
  def __call__(self, tokens: chex.Array) -> jax.Array:
    """Makes a prediction at every token from it and those before.

    Args:
      tokens: `[b, n, k]`.

    Returns:
      Outputs, `[b, n, num_outputs]`, in float32 or wider.

    Raises:
      ValueError: if `tokens` have another shape.
    """
    check_arrays(tokens=(tokens, "[b, n, k]"))
    hidden = as_accumulator(tokens)
    for i in range(self.num_layers):
      hidden = self._layer(f"layer_{i}", hidden)
    return nn.Dense(self.num_outputs, name="head")(hidden)

  def _layer(self, name: str, inputs: jax.Array) -> jax.Array:
    """The map of the inputs does not depend on the state, and is made for all tokens at once."""
    width, total = self.embed_dim, self.num_parts * self.embed_dim

    def bias_init(key, shape, dtype=jnp.float32):
      del key
      return jnp.concatenate([jnp.ones(width, dtype), jnp.zeros(shape[0] - width, dtype)])

    projected = nn.Dense(total, bias_init=bias_init, name=f"{name}_inputs")(inputs)
    kernel = self.param(f"{name}_recurrent", nn.initializers.lecun_normal(), (width, total))
    kernel = kernel.astype(projected.dtype)

    def body(carry, row):
      state, out = carry
      state, out = self.step(state, jnp.split(row + out @ kernel, self.num_parts, axis=-1))
      return (state, out), out

    rows, num = jnp.swapaxes(projected, 0, 1), len(inputs)
    shapes = (num, *self.state_shape()), (num, width)
    start = tuple(jnp.zeros(shape, inputs.dtype) for shape in shapes)
    _, outputs = jax.lax.scan(body, varying_carry(body, start, rows), rows)
    return jnp.swapaxes(outputs, 0, 1)


class InContextLSTM(_Recurrent):
  """Stacked layers of long short-term memory and a linear head.

  The bias of the forget gates starts at 1, so that a new network keeps its state.

  Attributes:
    num_outputs: outputs per token.
    embed_dim: width D of the layers, whose state has 2 D numbers each.
    num_layers: number of layers.

  Raises:
    ValueError: for a size below 1.

  Reference: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997,
  https://doi.org/10.1162/neco.1997.9.8.1735; Kirsch et al., 2022, https://arxiv.org/abs/2212.04458.
  """

  num_parts: ClassVar[int] = 4

  def state_shape(self) -> tuple[int]:
    """A cell of width D."""
    return (self.embed_dim,)

  def step(self, state: jax.Array, parts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The next cell, and what the last gate lets out of it."""
    forget, write, value, read = parts
    state = nn.sigmoid(forget) * state + nn.sigmoid(write) * jnp.tanh(value)
    return state, nn.sigmoid(read) * jnp.tanh(state)


class InContextOuterProductLSTM(_Recurrent):
  """Recurrent layers whose state is a matrix, written by outer products, and a linear head.

  A layer of width D keeps D² numbers with about as many parameters as one of the LSTM, which keeps
  2 D. With gates f and i, key k, value v and query q from one linear map of the input and the last
  output, `S = σ(f) ⊙ S + σ(i) ⊙ tanh(k) tanh(v)ᵀ`, where a gate is the same in all columns, and the
  output is `tanh(Sᵀ q)`. The bias of f starts at 1, so that a new network keeps its state.

  Attributes:
    num_outputs: outputs per token.
    embed_dim: width D of the layers.
    num_layers: number of layers.

  Raises:
    ValueError: for a size below 1.

  Reference: Kirsch et al., 2022, section 4.2, https://arxiv.org/abs/2212.04458.
  """

  num_parts: ClassVar[int] = 5

  def state_shape(self) -> tuple[int, int]:
    """A matrix of D rows and columns."""
    return self.embed_dim, self.embed_dim

  def step(self, state: jax.Array, parts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The next matrix, and what the query reads from it."""
    forget, write, k, v, q = parts
    written = (nn.sigmoid(write) * jnp.tanh(k))[..., None] * jnp.tanh(v)[..., None, :]
    state = nn.sigmoid(forget)[..., None] * state + written
    return state, jnp.tanh(jnp.einsum("bij,bi->bj", state, q))


def interleave_pairs(x: chex.Array, y: chex.Array) -> jax.Array:
  """Makes a sequence in which inputs and values take turns: x_1, y_1, x_2, y_2, ...

  At the token of x_i (row 2 (i - 1), counted from 0) a causal network has seen the pairs before it
  and not y_i, so that its output there predicts y_i.

  Args:
    x: inputs, `[b, T, f]`.
    y: values, `[b, T]`.

  Returns:
    Tokens, `[b, 2 T, f + 1]`, in float32 or wider: `(x, 0)` and `(0, ..., 0, y)`.

  Reference: Garg et al., What Can Transformers Learn In-Context?, NeurIPS 2022, section 2,
  https://arxiv.org/abs/2208.01066; Liu et al., 2024, https://arxiv.org/abs/2405.15115.
  """
  check_arrays(x=(x, "[b, T, f]"), y=(y, "[b, T]"))
  x, y = as_accumulator(x, y)
  batch, length, features = x.shape
  inputs = jnp.pad(x, ((0, 0), (0, 0), (0, 1)))
  values = jnp.pad(y[..., None], ((0, 0), (0, 0), (features, 0)))
  return jnp.stack([inputs, values], axis=2).reshape(batch, 2 * length, features + 1)


def mean_and_variance(outputs: chex.Array) -> GaussianPredictive:
  """Reads the two outputs of a network as a Gaussian.

  Args:
    outputs: mean and log-variance, `[..., 2]`.

  Returns:
    `GaussianPredictive` of `[...]`, in float32 or wider; the log-variance is clipped to [-10, 10].

  Reference: Liu et al., Towards Better Understanding of In-Context Learning Ability from In-Context
  Uncertainty Quantification, 2024, https://arxiv.org/abs/2405.15115.
  """
  check_arrays(outputs=(outputs, "[..., 2]"))
  outputs = as_accumulator(outputs)
  log_variance = jnp.clip(outputs[..., 1], -_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)
  return GaussianPredictive(outputs[..., 0], jnp.exp(log_variance))
