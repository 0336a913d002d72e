import dataclasses

import pytest

from jaxlab.models.decoder_architecture import decoder_config
from jaxlab.models.pretrained_config import config_from_hf, config_to_hf
from jaxlab.models.rotary import RotaryConfig

GPT2 = {
  "model_type": "gpt2",
  "vocab_size": 50,
  "n_embd": 32,
  "n_head": 4,
  "n_layer": 2,
  "n_positions": 16,
}
LLAMA = {
  "model_type": "llama",
  "vocab_size": 50,
  "hidden_size": 32,
  "intermediate_size": 56,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "max_position_embeddings": 64,
}
QWEN2 = LLAMA | {"model_type": "qwen2"}
QWEN3 = LLAMA | {"model_type": "qwen3"}
MISTRAL = LLAMA | {"model_type": "mistral"}


def test_defaults_of_absent_keys():
  gpt2 = config_from_hf(GPT2)
  assert (gpt2.intermediate_size, gpt2.norm_eps, gpt2.activation) == (128, 1e-5, "gelu_tanh")
  assert gpt2.tie_embeddings and gpt2.qkv_bias and gpt2.num_kv_heads == 4
  llama = config_from_hf(LLAMA)
  assert (llama.num_kv_heads, llama.head_dim, llama.norm_eps) == (4, 8, 1e-6)
  assert llama.rope == RotaryConfig(theta=10000.0, original_max_positions=64)
  assert not (llama.qkv_bias or llama.attention_out_bias or llama.mlp_bias or llama.tie_embeddings)
  assert config_from_hf(LLAMA | {"head_dim": None}) == llama
  qwen = config_from_hf(QWEN2)
  assert qwen.qkv_bias and not qwen.attention_out_bias and qwen.sliding_window is None
  qwen = config_from_hf(QWEN3)
  assert qwen.qk_norm and qwen.head_dim == 128 and not qwen.qkv_bias
  assert qwen.sliding_window is None
  mistral = config_from_hf(MISTRAL | {"num_key_value_heads": None})
  assert (mistral.num_kv_heads, mistral.head_dim, mistral.sliding_window) == (4, 8, 4096)
  with pytest.raises(ValueError, match="num_kv_heads 8 does not divide"):
    config_from_hf(MISTRAL)


def test_given_keys():
  changed = {
    "n_inner": 40,
    "layer_norm_epsilon": 0.1,
    "activation_function": "gelu",
    "tie_word_embeddings": False,
  }
  gpt2 = config_from_hf(GPT2 | changed)
  assert (gpt2.intermediate_size, gpt2.norm_eps, gpt2.activation) == (40, 0.1, "gelu")
  assert not gpt2.tie_embeddings
  changed = {"num_key_value_heads": 2, "head_dim": 12, "attention_bias": True, "mlp_bias": True}
  llama = config_from_hf(LLAMA | changed)
  assert (llama.num_kv_heads, llama.head_dim) == (2, 12)
  assert llama.qkv_bias and llama.attention_out_bias and llama.mlp_bias
  # Qwen2 ignores the file's biases, Mistral has none, Qwen3 has those of attention.
  assert not config_from_hf(QWEN2 | changed).mlp_bias
  assert not config_from_hf(MISTRAL | changed).qkv_bias
  qwen = config_from_hf(QWEN3 | changed)
  assert qwen.qkv_bias and qwen.attention_out_bias and not qwen.mlp_bias
  assert config_from_hf(MISTRAL | changed | {"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
  "changed, window, first",
  [
    ({"use_sliding_window": False, "sliding_window": 4}, None, 0),
    ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, 4, 1),
    # The default is 28.
    ({"use_sliding_window": True, "sliding_window": 4}, None, 0),
    (
      {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 0,
        "layer_types": ["full_attention"] * 2 + ["sliding_attention"],
      },
      4,
      2,
    ),
  ],
)
def test_sliding_windows(changed, window, first):
  config = config_from_hf(QWEN2 | changed)
  assert (config.sliding_window, config.first_sliding_layer) == (window, first)
  assert config_from_hf(LLAMA | changed).sliding_window is None


def test_rotary_settings_under_either_spelling():
  llama3 = {"factor": 8.0, "low_freq_factor": 2, "high_freq_factor": 5}
  expected = RotaryConfig(500.0, "llama3", 8.0, 2.0, 5.0, 32)
  original = {"original_max_position_embeddings": 32}
  for hf in (
    {"rope_theta": 500.0, "rope_scaling": llama3 | original | {"type": "llama3"}},
    {"rope_theta": 500.0, "rope_scaling": llama3 | original | {"rope_type": "llama3"}},
    {"rope_parameters": llama3 | original | {"rope_type": "llama3", "rope_theta": 500.0}},
  ):
    assert config_from_hf(LLAMA | hf).rope == expected
  dynamic = {"rope_type": "dynamic", "factor": 2.0}
  for scaling in (dynamic, dynamic | original):
    rope = config_from_hf(LLAMA | {"rope_scaling": scaling}).rope
    assert rope == RotaryConfig(10000.0, "dynamic", 2.0, original_max_positions=64)
  yarn = {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 16}
  rope = config_from_hf(LLAMA | {"rope_scaling": yarn}).rope
  assert (rope.attention_factor, rope.beta_fast, rope.beta_slow) == (1.5, 16.0, 1.0)
  # Other types ignore it.
  linear = {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}
  assert config_from_hf(LLAMA | {"rope_scaling": linear}).rope.attention_factor is None


ROPE = {"rope_type": "yarn", "factor": 2.0, "beta_slow": 2.0}


@pytest.mark.parametrize(
  "hf",
  [
    GPT2 | {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False},
    LLAMA | {"attention_bias": True, "head_dim": 12, "tie_word_embeddings": True},
    LLAMA | {"rope_scaling": ROPE | {"original_max_position_embeddings": 32}},
    LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 5.0},
    QWEN2 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    QWEN3 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    QWEN3 | {"attention_bias": True, "head_dim": 12},
    MISTRAL | {"num_key_value_heads": 2},
    MISTRAL | {"num_key_value_heads": 2, "sliding_window": None},
  ],
)
def test_round_trip(hf):
  config = config_from_hf(hf)
  written = config_to_hf(config)
  assert config_from_hf(written) == config
  assert written["architectures"][0].endswith(("LMHeadModel", "ForCausalLM"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_models_trained_from_scratch_can_be_written(family):
  config = decoder_config(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, family=family)
  assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
  "changed",
  [
    {"mlp_bias": True},
    {"activation": "gelu"},
    {"norm": "layer_norm"},
    {"rope": RotaryConfig(factor=2.0, original_max_positions=256)},
    {"rope": RotaryConfig(rope_type="dynamic", factor=2.0, original_max_positions=128)},
  ],
)
def test_configs_that_a_family_cannot_express_raise(changed):
  config = decoder_config(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, family="qwen2")
  with pytest.raises(ValueError, match=f"qwen2 cannot express: {next(iter(changed))}"):
    config_to_hf(dataclasses.replace(config, **changed))


@pytest.mark.parametrize(
  "hf, words",
  [
    ({}, "model_type must be one of gpt2, llama, mistral, qwen2, qwen3; got None"),
    ({"model_type": "mamba"}, "got 'mamba'"),
    ({"model_type": "gpt2", "n_embd": 8}, "lacks vocab_size, n_head, n_layer, n_positions"),
    ({"model_type": "llama"}, "lacks vocab_size, hidden_size"),
    (GPT2 | {"activation_function": "relu"}, "activation_function .* got 'relu'"),
    (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights"),
    (GPT2 | {"n_head": 5}, "5 heads do not divide a width of 32"),
    (GPT2 | {"n_head": 0}, "0 heads do not divide a width of 32"),
    (GPT2 | {"n_layer": "2"}, "n_layer must be an integer, got '2'"),
    (GPT2 | {"n_positions": 16.5}, "n_positions must be an integer, got 16.5"),
    (GPT2 | {"layer_norm_epsilon": -1e-5}, r"norm_eps must lie in \[0, inf\), got -1e-05"),
    (LLAMA | {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'f"),
    (LLAMA | {"tie_word_embeddings": 0}, "tie_word_embeddings must be true or false, got 0"),
    (LLAMA | {"vocab_size": True}, "vocab_size must be an integer, got True"),
    (LLAMA | {"rms_norm_eps": float("nan")}, "norm_eps .* got nan"),
    (LLAMA | {"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number, got '1e-6'"),
    (LLAMA | {"rope_theta": [1e4]}, "rope_theta must be a number"),
    (LLAMA | {"rope_theta": -1}, r"theta must lie in \(0, inf\), got -1.0"),
    (LLAMA | {"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
    (LLAMA | {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a number"),
    (LLAMA | {"rope_scaling": {"type": ["linear"], "factor": 2}}, "type must be text"),
    (LLAMA | {"hidden_act": "gelu"}, "hidden_act .* got 'gelu'"),
    (LLAMA | {"rope_scaling": {"type": "longrope"}}, "rope_type .* got 'longrope'"),
    (LLAMA | {"rope_scaling": {"type": "linear"}}, "'linear' lack factor"),
    (
      QWEN2
      | {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
      },
      "layer_types .* full ones first",
    ),
  ],
)
def test_errors(hf, words):
  with pytest.raises(ValueError, match=words):
    config_from_hf(hf)
