"""Prior-data fitted networks: a transformer that reads a data set and predicts its other points."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_choice, check_range


def context_query_mask(num_points: int, num_context: chex.Numeric) -> chex.Array:
  """Which point may attend to which: all points to the context, and each point to itself.

  Queries never attend to one another, so one forward pass over many queries gives each the output
  that it would get alone.

  Args:
    num_points: number of points T of a data set.
    num_context: number of context points c, in [0, T]; the first c points are the context. An
      integer, or a traced int32 scalar, so that one program serves all sizes.

  Returns:
    Mask, bool `[T, T]`: entry (i, j) says that point i attends to point j, `j < c or i == j`.

  Raises:
    ValueError: if `num_points` is negative, or `num_context` is no scalar, or concrete and outside
      [0, `num_points`].

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 3,
  https://arxiv.org/abs/2112.10510.
  """
  check_at_least(0, num_points=num_points)
  check_arrays(num_context=(num_context, "[]"))
  check_range("num_context", num_context, f"[0, {num_points}]")
  points = jnp.arange(num_points)
  return (points[None, :] < num_context) | (points[:, None] == points[None, :])


class PFN(nn.Module):
  """Transformer encoder from `(x, y)` of a context and `x` of queries to predictions for each.

  Without positional encoding the result does not depend on the order of the context. Attention's
  output projection and the second matrix of each perceptron start at zero, so a new network starts
  from predictions that ignore the data and learns from the first step on.

  Attributes:
    num_outputs: outputs K for each point: bars of a density, classes, or one logit.
    embed_dim: width of a token.
    num_layers: number of encoder layers.
    num_heads: attention heads; divides `embed_dim`.
    mlp_dim: hidden width of the perceptrons and of the head; None is `2 * embed_dim`.
    dropout_rate: dropout of attention weights, of both branches and inside the perceptrons.
    norm: "post" normalizes after each residual sum; "pre" before each branch and before the head.
    input_shift: subtracted from x; the default suits inputs uniform on [0, 1].
    input_scale: x is divided by this after the shift.
    target_shift: subtracted from y.
    target_scale: y is divided by this after the shift.

  Example::

    network = PFN(num_outputs=100, embed_dim=64, num_layers=3)
    params = network.init(key, x, y, 10)["params"]
    logits = network.apply({"params": params}, x, y, 10)[:, 10:]

  Raises:
    ValueError: for an unknown `norm`, an `embed_dim` not divisible by `num_heads`, a
      `dropout_rate` outside [0, 1), or a size or scale that is not positive.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """

  num_outputs: int
  embed_dim: int = 512
  num_layers: int = 6
  num_heads: int = 4
  mlp_dim: int | None = None
  dropout_rate: float = 0.0
  norm: str = "post"
  input_shift: float = 0.5
  input_scale: float = 0.28867513
  target_shift: float = 0.0
  target_scale: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    sizes = ("num_outputs", "embed_dim", "num_layers", "num_heads", "mlp_dim")
    check_at_least(1, **{name: getattr(self, name) for name in sizes})
    for name in ("input_scale", "target_scale"):
      check_range(name, getattr(self, name), "(0, inf)")
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f"embed_dim must be divisible by num_heads, got {self.embed_dim} and {self.num_heads}"
      )
    check_choice("norm", self.norm, ("post", "pre"))
    check_range("dropout_rate", self.dropout_rate, "[0, 1)")

  @nn.compact
  def __call__(
    self,
    x: chex.Array,
    y: chex.Array,
    num_context: chex.Numeric,
    *,
    deterministic: bool = True,
    max_context: int | None = None,
  ) -> chex.Array:
    """Predicts every query from the context.

    Args:
      x: inputs `[b, T, f]`, context points first.
      y: targets `[b, T]`; those of queries are never read and may be NaN.
      num_context: context size c in [0, T], shared by the batch; may be traced.
      deterministic: False applies dropout, with the random stream "dropout".
      max_context: an upper bound of `num_context` that is known when the program is traced, in
        [1, T]; None is T. Attention then costs `T * max_context` instead of `T * T`, with the same
        outputs up to rounding, and other draws of dropout. Context points beyond it are ignored;
        this is not checked if `num_context` is a JAX array.

    Returns:
      Outputs `[b, T, num_outputs]`; rows below `num_context` mean nothing.

    Raises:
      ValueError: if the shapes do not agree, T is 0, `max_context` lies outside [1, T], or
        `num_context` is concrete and lies outside [0, T] or above `max_context`.
    """
    check_arrays(x=(x, "[b, T, f]"), y=(y, "[b, T]"))
    num_points, num_features = x.shape[1:]
    check_at_least(1, **{"the number of points T": num_points})
    mask = _attention_mask(num_points, num_context, max_context)
    is_context = jnp.arange(num_points) < num_context

    x = _standardize(x, self.input_shift, self.input_scale)
    # Masked before any arithmetic: an unknown target may be NaN, and its gradient would be NaN too.
    y = _standardize(jnp.where(is_context, y, 0), self.target_shift, self.target_scale)
    pairs = _linear(self.embed_dim, 1, name="embed_y")(y[..., None])
    h = _linear(self.embed_dim, num_features, name="embed_x")(x)
    h = h + jnp.where(is_context[:, None], pairs, 0)

    mlp_dim = self.mlp_dim or 2 * self.embed_dim
    for i in range(self.num_layers):
      layer = _EncoderLayer(
        self.num_heads, mlp_dim, self.dropout_rate, self.norm, name=f"layer_{i}"
      )
      h = layer(h, mask, deterministic)
    if self.norm == "pre":
      h = _layer_norm("norm")(h)
    h = _gelu(_linear(mlp_dim, self.embed_dim, name="head_in")(h))
    return _linear(self.num_outputs, mlp_dim, name="head_out")(h)


def _attention_mask(num_points, num_context, max_context):
  """`context_query_mask`, or its first columns plus one column for the own key of later points.

  With `max_context = T - 1` the two are the same: only the last point is later.
  """
  mask = context_query_mask(num_points, num_context)
  if max_context is None:
    return mask
  if not 1 <= max_context <= num_points:
    raise ValueError(f"max_context must lie in [1, {num_points}], got {max_context}")
  check_range("num_context", num_context, f"[0, {max_context}]")
  if max_context == num_points:
    return mask
  is_later = jnp.arange(num_points) >= max_context
  return jnp.concatenate([mask[:, :max_context], is_later[:, None]], axis=1)


class _EncoderLayer(nn.Module):
  """Attention and a perceptron, each a residual branch."""

  num_heads: int
  mlp_dim: int
  dropout_rate: float
  norm: str

  @nn.compact
  def __call__(self, h, mask, deterministic):
    width = h.shape[-1]
    drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)

    def attention(h):
      split = (*h.shape[:-1], 3 * self.num_heads, width // self.num_heads)
      qkv = nn.Dense(3 * width, kernel_init=nn.initializers.glorot_uniform(), name="qkv")(h)
      mixed = _attend(*jnp.split(qkv.reshape(split), 3, axis=-2), mask, drop)
      return drop(_zero_linear(width, name="attention_out")(mixed.reshape(h.shape)))

    def mlp(h):
      h = drop(_gelu(_linear(self.mlp_dim, width, name="mlp_in")(h)))
      return drop(_zero_linear(width, name="mlp_out")(h))

    norm_attention, norm_mlp = _layer_norm("norm_attention"), _layer_norm("norm_mlp")
    if self.norm == "pre":
      h = h + attention(norm_attention(h))
      return h + mlp(norm_mlp(h))
    h = norm_attention(h + attention(h))
    return norm_mlp(h + mlp(h))


def _attend(q, k, v, mask, drop):
  """Scaled dot-product attention over `[b, T, heads, d]`, float32 inside the softmax.

  The mask is `[T, T]`, or narrower, `[T, m + 1]`: the first m keys, then the point's own.
  """
  wide = jnp.promote_types(v.dtype, jnp.float32)
  has_own = mask.shape[1] < k.shape[1]
  num_keys = mask.shape[1] - has_own
  q = q * q.shape[-1] ** -0.5
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k[:, :num_keys], preferred_element_type=wide)
  if has_own:
    own = jnp.einsum("bqhd,bqhd->bhq", q, k, preferred_element_type=wide)
    scores = jnp.concatenate([scores, own[..., None]], axis=-1)
  scores = jnp.where(mask, scores, -jnp.inf)
  # Dividing after the product with v touches d numbers per row instead of T.
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]
  weights = drop(weights).astype(v.dtype)
  shared, v_shared = weights[..., :num_keys], v[:, :num_keys]
  mixed = jnp.einsum("bhqk,bkhd->bqhd", shared, v_shared, preferred_element_type=wide)
  if has_own:
    own = weights[..., num_keys]
    mixed += jnp.einsum("bhq,bqhd->bqhd", own, v, preferred_element_type=wide)
  return (mixed / total).astype(v.dtype)


def _standardize(values, shift, scale):
  """`(values - shift) / scale` in float32, returned in the dtype of floating inputs."""
  dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.float32
  return ((values.astype(jnp.float32) - shift) / scale).astype(dtype)


def _linear(features, fan_in, *, name):
  """Affine map with kernel and bias uniform on ±1/√fan_in.

  The bias must be random if there are few inputs: layer normalization of a multiple of one vector
  keeps only the sign.
  """

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

  return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


def _zero_linear(features, *, name):
  return nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)


def _layer_norm(name):
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def _gelu(h):
  # jax.nn.gelu uses the slower erfc, for relative precision in the tail, which we do not need.
  return 0.5 * h * (1 + jax.lax.erf(h * 0.5**0.5))
