"""Decoder architectures as Hugging Face writes them in `config.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab._json import check_types
from jaxlab.models.decoder_architecture import GPT2_CHOICES, LLAMA_CHOICES, DecoderConfig
from jaxlab.models.rotary import RotaryConfig


def config_from_hf(hf_config: Mapping[str, Any]) -> DecoderConfig:
  """Reads an architecture.

  Rotary settings are read in either form, `rope_theta` beside `rope_scaling` or `rope_parameters`.

  Args:
    hf_config: the object in `config.json`; its `model_type` is gpt2, llama, mistral, qwen2 or
      qwen3.

  Returns:
    The `DecoderConfig`.

  Raises:
    ValueError: if the model type or a setting is not supported, a value is of another type, or a
      key is missing; the message names it.
  """
  check_types(hf_config, **_TYPES)
  model_type = hf_config.get("model_type")
  if model_type == "gpt2":
    return _from_gpt2(hf_config)
  if model_type in _LLAMA_CLASSES:
    return _from_llama(hf_config, model_type)
  known = ", ".join(["gpt2", *_LLAMA_CLASSES])
  raise ValueError(f"model_type must be one of {known}; got {model_type!r}.")


_LLAMA_CLASSES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
_TYPES = {
  **dict.fromkeys(("model_type", "activation_function", "hidden_act"), str),
  **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), int),
  **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), int),
  **dict.fromkeys(("max_position_embeddings", "sliding_window", "max_window_layers"), int),
  **dict.fromkeys(("n_embd", "n_head", "n_inner", "n_layer", "n_positions"), int),
  **dict.fromkeys(("layer_norm_epsilon", "rms_norm_eps", "rope_theta"), float),
  **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), bool),
  **dict.fromkeys(("use_sliding_window", "scale_attn_weights"), bool),
  **dict.fromkeys(("scale_attn_by_inverse_layer_idx",), bool),
  **dict.fromkeys(("rope_parameters", "rope_scaling"), dict),
  "layer_types": list,
}


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
  """Writes an architecture.

  Args:
    config: the architecture.

  Returns:
    Every key of `config.json` that the `transformers` class of the family needs, and
    `architectures`.

  Raises:
    ValueError: if the family's `config.json` cannot express `config`; the message names the fields.
  """
  written = _to_gpt2(config) if config.family == "gpt2" else _to_llama(config)
  read = config_from_hf(written)
  lost = [name for name in vars(config) if getattr(read, name) != getattr(config, name)]
  if lost:
    values = ", ".join(f"{name} {getattr(config, name)!r}" for name in lost)
    raise ValueError(f"a config.json of {config.family} cannot express: {values}.")
  return written


def _from_gpt2(hf: Mapping[str, Any]) -> DecoderConfig:
  _require(hf, "vocab_size", "n_embd", "n_head", "n_layer", "n_positions")
  if hf.get("scale_attn_by_inverse_layer_idx"):
    raise ValueError("scale_attn_by_inverse_layer_idx must be false, got true.")
  if not _or_else(hf.get("scale_attn_weights"), True):
    raise ValueError("scale_attn_weights must be true, got false.")
  activation = _or_else(hf.get("activation_function"), "gelu_new")
  width, heads = hf["n_embd"], hf["n_head"]
  return DecoderConfig(
    vocab_size=hf["vocab_size"],
    hidden_size=width,
    intermediate_size=_or_else(hf.get("n_inner"), 4 * width),
    num_layers=hf["n_layer"],
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=_head_dim(width, heads),
    max_positions=hf["n_positions"],
    tie_embeddings=_or_else(hf.get("tie_word_embeddings"), True),
    family="gpt2",
    **GPT2_CHOICES
    | {
      "norm_eps": _or_else(hf.get("layer_norm_epsilon"), 1e-5),
      "activation": _activation("activation_function", activation, _GPT2_ACTIVATIONS),
    },
  )


def _to_gpt2(config: DecoderConfig) -> dict[str, Any]:
  names = {ours: theirs for theirs, ours in _GPT2_ACTIVATIONS.items()}
  return {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": config.vocab_size,
    "n_embd": config.hidden_size,
    "n_head": config.num_heads,
    "n_inner": config.intermediate_size,
    "n_layer": config.num_layers,
    "n_positions": config.max_positions,
    "layer_norm_epsilon": config.norm_eps,
    "activation_function": names.get(config.activation, "gelu_new"),
    "tie_word_embeddings": config.tie_embeddings,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
  }


_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu"}


def _from_llama(hf: Mapping[str, Any], family: str) -> DecoderConfig:
  _require(
    hf,
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
  )
  heads, layers = hf["num_attention_heads"], hf["num_hidden_layers"]
  head_dim = hf.get("head_dim")
  if head_dim is None:
    head_dim = 128 if family == "qwen3" else _head_dim(hf["hidden_size"], heads)
  # What the classes of transformers read of the file, and their defaults.
  has_bias = family in ("llama", "qwen3") and bool(hf.get("attention_bias"))
  window, first, default_kv_heads = None, 0, None
  if family in ("qwen2", "qwen3"):
    window, first = _sliding_window(hf, layers)
  elif family == "mistral":
    window, default_kv_heads = hf.get("sliding_window", 4096), 8
  return DecoderConfig(
    vocab_size=hf["vocab_size"],
    hidden_size=hf["hidden_size"],
    intermediate_size=hf["intermediate_size"],
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=_or_else(hf.get("num_key_value_heads", default_kv_heads), heads),
    head_dim=head_dim,
    max_positions=hf["max_position_embeddings"],
    rope=_rope_from_hf(hf),
    tie_embeddings=bool(hf.get("tie_word_embeddings")),
    sliding_window=window,
    first_sliding_layer=first,
    family=family,
    **LLAMA_CHOICES
    | {
      "qkv_bias": has_bias or family == "qwen2",
      "attention_out_bias": has_bias,
      "mlp_bias": family == "llama" and bool(hf.get("mlp_bias")),
      "qk_norm": family == "qwen3",
      "norm_eps": _or_else(hf.get("rms_norm_eps"), 1e-6),
      "activation": _activation(
        "hidden_act", _or_else(hf.get("hidden_act"), "silu"), {"silu": "silu"}
      ),
    },
  )


def _to_llama(config: DecoderConfig) -> dict[str, Any]:
  hf = {
    "model_type": config.family,
    "architectures": [_LLAMA_CLASSES[config.family]],
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.norm_eps,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "tie_word_embeddings": config.tie_embeddings,
    **_rope_to_hf(config),
  }
  if config.family in ("llama", "qwen3"):
    hf["attention_bias"] = config.attention_out_bias
  if config.family == "llama":
    return hf | {"mlp_bias": config.mlp_bias}
  if config.family == "mistral":
    return hf | {"sliding_window": config.sliding_window}
  slides = config.sliding_window is not None
  first = config.first_sliding_layer if slides else config.num_layers
  return hf | {
    "use_sliding_window": slides,
    "sliding_window": config.sliding_window,
    "max_window_layers": first,
    "layer_types": [
      "full_attention" if i < first else "sliding_attention" for i in range(config.num_layers)
    ],
  }


def _sliding_window(hf: Mapping[str, Any], num_layers: int) -> tuple[int | None, int]:
  """The window, and the first layer that has it."""
  window = hf.get("sliding_window")
  if not hf.get("use_sliding_window", False) or window is None:
    return None, 0
  types: Sequence[str] | None = hf.get("layer_types")
  if types is None:
    first = _or_else(hf.get("max_window_layers"), 28)
  else:
    slides = [kind == "sliding_attention" for kind in types]
    if slides != sorted(slides) or len(slides) != num_layers:
      raise ValueError(
        f"layer_types must name {num_layers} layers, full ones first; got {list(types)}."
      )
    first = num_layers - sum(slides)
  return (window, first) if first < num_layers else (None, 0)


def _rope_from_hf(hf: Mapping[str, Any]) -> RotaryConfig:
  settings = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  check_types(settings, rope_type=str, type=str, **_ROPE_TYPES)
  kind = settings.get("rope_type", settings.get("type", "default"))
  if kind not in _ROPE_KEYS:
    raise ValueError(f"rope_type must be one of {', '.join(_ROPE_KEYS)}; got {kind!r}.")
  longest = hf["max_position_embeddings"]
  original = _or_else(settings.get("original_max_position_embeddings"), longest)
  named = {key: settings[key] for key in _ROPE_KEYS[kind] if settings.get(key) is not None}
  if kind != "default" and "factor" not in named:
    raise ValueError(f"rope settings of type {kind!r} lack factor.")
  return RotaryConfig(
    theta=float(_or_else(settings.get("rope_theta"), _or_else(hf.get("rope_theta"), 10000.0))),
    rope_type=kind,
    original_max_positions=longest if kind == "dynamic" else original,
    **{key: float(value) for key, value in named.items()},
  )


def _rope_to_hf(config: DecoderConfig) -> dict[str, Any]:
  rope = config.rope or RotaryConfig()
  if rope.rope_type == "default":
    return {"rope_theta": rope.theta, "rope_scaling": None}
  named = {key: getattr(rope, key) for key in _ROPE_KEYS[rope.rope_type]}
  scaling = {
    "rope_type": rope.rope_type,
    **{key: value for key, value in named.items() if value is not None},
  }
  if rope.rope_type in ("llama3", "yarn"):
    scaling["original_max_position_embeddings"] = rope.original_max_positions
  return {"rope_theta": rope.theta, "rope_scaling": scaling}


_ROPE_TYPES = {
  "original_max_position_embeddings": int,
  **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), float),
  **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), float),
}
# The settings that each type reads.
_ROPE_KEYS = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
  "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow"),
}


def _require(hf: Mapping[str, Any], *names: str) -> None:
  missing = [name for name in names if hf.get(name) is None]
  if missing:
    raise ValueError(f"config.json lacks {', '.join(missing)}.")


def _or_else(value: Any, default: Any) -> Any:
  return default if value is None else value


def _head_dim(width: int, heads: int) -> int:
  if heads < 1 or width % heads:
    raise ValueError(f"{heads} heads do not divide a width of {width}.")
  return width // heads


def _activation(key: str, name: str, known: Mapping[str, str]) -> str:
  if name not in known:
    raise ValueError(f"{key} must be one of {', '.join(known)}; got {name!r}.")
  return known[name]
