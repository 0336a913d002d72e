"""The architecture of a decoder language model: its sizes and the choices of its family."""

import dataclasses

from jaxlab._checks import check_at_least, check_choice, check_range
from jaxlab.models.rotary import RotaryConfig


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture of a decoder of the GPT-2, Llama, Mistral or Qwen families.

  Frozen and hashable, so that it may be a static argument of `jit`.

  Attributes:
    vocab_size: number v of tokens.
    hidden_size: width d of the residual stream.
    intermediate_size: hidden width of the feed-forward part.
    num_layers: number of blocks.
    num_heads: query heads.
    num_kv_heads: heads of keys and values; they divide `num_heads`, and query head i reads head
      `i // (num_heads / num_kv_heads)`.
    head_dim: width of a head.
    max_positions: longest context; a hard limit with learned positions.
    norm: "layer_norm" or "rms_norm".
    norm_eps: added to the variance (or mean square) inside the root.
    activation: "gelu_tanh", "gelu" or "silu".
    gated_mlp: whether a third matrix gates the feed-forward part.
    positions: "learned" or "rotary".
    rope: settings of rotary positions, None with learned ones.
    qkv_bias: whether queries, keys and values have biases.
    attention_out_bias: whether attention's output projection has one.
    mlp_bias: whether the feed-forward matrices have biases.
    tie_embeddings: whether the token embedding is also the output matrix.
    sliding_window: a query sees keys less than this many positions back; None sees all.
    first_sliding_layer: layers from this index on have the window.
    family: "gpt2", "llama", "mistral", "qwen2" or "qwen3"; it decides the names in checkpoints.
    qk_norm: whether each head of queries and keys is normalized before it is rotated.

  Raises:
    ValueError: for a size below 1, a negative `norm_eps`, an unknown choice, heads that do not
      divide, an odd `head_dim` of rotary heads, or a `rope` that is incompatible with `positions`.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  norm: str = "rms_norm"
  norm_eps: float = 1e-6
  activation: str = "silu"
  gated_mlp: bool = True
  positions: str = "rotary"
  rope: RotaryConfig | None = RotaryConfig()
  qkv_bias: bool = False
  attention_out_bias: bool = False
  mlp_bias: bool = False
  tie_embeddings: bool = False
  sliding_window: int | None = None
  first_sliding_layer: int = 0
  family: str = "llama"
  qk_norm: bool = False

  def __post_init__(self):
    check_at_least(1, **{name: getattr(self, name) for name in _SIZES})
    check_at_least(1, sliding_window=self.sliding_window)
    check_range("norm_eps", self.norm_eps, "[0, inf)")
    for name, choices in _CHOICES.items():
      check_choice(name, getattr(self, name), choices)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}."
      )
    if (self.rope is None) != (self.positions == "learned"):
      raise ValueError(f"rope {self.rope} is incompatible with positions {self.positions!r}.")
    if self.rope is not None and self.head_dim % 2:
      raise ValueError(f"head_dim must be even with rotary positions, got {self.head_dim}.")


def decoder_config(
  *,
  vocab_size: int,
  hidden_size: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int | None = None,
  intermediate_size: int | None = None,
  max_positions: int = 256,
  family: str = "llama",
  tie_embeddings: bool = True,
) -> DecoderConfig:
  """Fills in the usual choices of a family for given sizes, for models trained from scratch.

  Args:
    vocab_size: number of tokens.
    hidden_size: width of the residual stream; `num_heads` divides it.
    num_layers: number of blocks.
    num_heads: query heads.
    num_kv_heads: heads of keys and values; None for `num_heads`.
    intermediate_size: hidden width of the feed-forward part; None is 4 * hidden_size for gpt2, for
      the others 8/3 * hidden_size rounded up to a multiple of 8.
    max_positions: longest context.
    family: "gpt2" (layer norm, learned positions, biases), "llama" or "mistral" (rms norm, rotary,
      gated), "qwen2" (as llama, with biases of queries, keys and values) or "qwen3" (as llama, with
      norms of queries and keys).
    tie_embeddings: whether the token embedding is also the output matrix.

  Returns:
    The `DecoderConfig`.

  Raises:
    ValueError: for an unknown family, a size below 1, heads that do not divide, or gpt2 with
      `num_kv_heads` other than `num_heads`.
  """
  check_choice("family", family, _CHOICES["family"])
  num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
  if num_heads < 1 or hidden_size % num_heads:
    raise ValueError(f"num_heads {num_heads} does not divide hidden_size {hidden_size}.")
  is_gpt2 = family == "gpt2"
  if is_gpt2 and num_kv_heads != num_heads:
    raise ValueError(f"num_kv_heads must be num_heads {num_heads} for gpt2, got {num_kv_heads}.")
  if intermediate_size is None:
    intermediate_size = 4 * hidden_size if is_gpt2 else 8 * -(-hidden_size // 3)
  choices = GPT2_CHOICES if is_gpt2 else LLAMA_CHOICES
  rope = None if is_gpt2 else RotaryConfig(original_max_positions=max_positions)
  return DecoderConfig(
    vocab_size=vocab_size,
    hidden_size=hidden_size,
    intermediate_size=intermediate_size,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=hidden_size // num_heads,
    max_positions=max_positions,
    tie_embeddings=tie_embeddings,
    family=family,
    **choices
    | {"rope": rope, "qkv_bias": family in ("gpt2", "qwen2"), "qk_norm": family == "qwen3"},
  )


# Settings that all models of a family share.
GPT2_CHOICES = {
  "norm": "layer_norm",
  "norm_eps": 1e-5,
  "activation": "gelu_tanh",
  "gated_mlp": False,
  "positions": "learned",
  "rope": None,
  "qkv_bias": True,
  "attention_out_bias": True,
  "mlp_bias": True,
}
LLAMA_CHOICES = {
  "norm": "rms_norm",
  "norm_eps": 1e-6,
  "activation": "silu",
  "gated_mlp": True,
  "positions": "rotary",
  "attention_out_bias": False,
  "mlp_bias": False,
}
_SIZES = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "max_positions",
)
_CHOICES = {
  "norm": ("layer_norm", "rms_norm"),
  "activation": ("gelu_tanh", "gelu", "silu"),
  "positions": ("learned", "rotary"),
  "family": ("gpt2", "llama", "mistral", "qwen2", "qwen3"),
}
