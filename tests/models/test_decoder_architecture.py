import dataclasses

import pytest

from jaxlab.models.decoder_architecture import DecoderConfig, decoder_config

SIZES = {"vocab_size": 50, "hidden_size": 64, "num_layers": 2, "num_heads": 4}


def test_choices_of_a_family():
  llama = decoder_config(**SIZES)
  assert (llama.norm, llama.activation, llama.positions) == ("rms_norm", "silu", "rotary")
  assert llama.gated_mlp and llama.tie_embeddings and not llama.qkv_bias
  # 8/3 * 64 = 170.7, up to a multiple of 8.
  assert (llama.intermediate_size, llama.num_kv_heads, llama.head_dim) == (176, 4, 16)
  assert llama.rope.original_max_positions == llama.max_positions == 256

  qwen = decoder_config(**SIZES, family="qwen2", num_kv_heads=2, intermediate_size=100)
  assert qwen.qkv_bias and not qwen.attention_out_bias and not qwen.mlp_bias
  assert (qwen.intermediate_size, qwen.num_kv_heads) == (100, 2)

  gpt2 = decoder_config(**SIZES, family="gpt2", tie_embeddings=False, max_positions=32)
  assert (gpt2.norm, gpt2.norm_eps, gpt2.activation) == ("layer_norm", 1e-5, "gelu_tanh")
  assert gpt2.qkv_bias and gpt2.attention_out_bias and gpt2.mlp_bias and not gpt2.gated_mlp
  assert (gpt2.intermediate_size, gpt2.rope, gpt2.max_positions) == (256, None, 32)
  assert not gpt2.tie_embeddings


def test_config_is_a_static_argument():
  assert hash(decoder_config(**SIZES)) == hash(decoder_config(**SIZES))
  assert decoder_config(**SIZES) != decoder_config(**SIZES, max_positions=32)


@pytest.mark.parametrize(
  "changed, words",
  [
    ({"num_layers": 0}, "num_layers .* got 0"),
    ({"norm": "batch_norm"}, "norm .* got 'batch_norm'"),
    ({"activation": "relu"}, "activation .* got 'relu'"),
    ({"positions": "alibi"}, "positions .* got 'alibi'"),
    ({"family": "mamba"}, "family .* got 'mamba'"),
    ({"num_kv_heads": 3}, "num_kv_heads 3"),
    ({"positions": "learned"}, "rope .* 'learned'"),
    ({"rope": None}, "rope None"),
    ({"head_dim": 15}, "head_dim .* got 15"),
    ({"sliding_window": 0}, "sliding_window .* got 0"),
  ],
)
def test_invalid_architectures_raise(changed, words):
  fields = {
    field.name: getattr(decoder_config(**SIZES), field.name)
    for field in dataclasses.fields(DecoderConfig)
  }
  with pytest.raises(ValueError, match=words):
    DecoderConfig(**fields | changed)


@pytest.mark.parametrize(
  "changed, words",
  [
    ({"family": "mamba"}, "family .* got 'mamba'"),
    ({"num_heads": 5}, "num_heads 5 does not divide hidden_size 64"),
    ({"num_heads": 0}, "num_heads 0"),
    ({"family": "gpt2", "num_kv_heads": 2}, "num_kv_heads .* got 2"),
  ],
)
def test_invalid_sizes_raise(changed, words):
  with pytest.raises(ValueError, match=words):
    decoder_config(**SIZES | changed)
