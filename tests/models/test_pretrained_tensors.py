import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxlab.models import DecoderLM, decoder_config
from jaxlab.models.pretrained_tensors import (
  match_tensors,
  parameter_layout,
  params_from_hf,
  params_to_hf,
  read_leaf,
  tensor_shapes,
)

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_layers": 3, "num_heads": 2, "max_positions": 16}
CONFIGS = {
  "gpt2": decoder_config(**SIZES, family="gpt2"),
  "llama": decoder_config(**SIZES, num_kv_heads=1, tie_embeddings=False),
  "qwen2": decoder_config(**SIZES, family="qwen2"),
  "qwen3": decoder_config(**SIZES, family="qwen3"),
}


@functools.cache
def random_params(name):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(DecoderLM(CONFIGS[name]).init, jax.random.key(0), tokens)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_exact(name):
  params = random_params(name)
  tensors = params_to_hf(params, CONFIGS[name])
  assert {x: y.shape for x, y in tensors.items()} == tensor_shapes(CONFIGS[name])
  assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))
  actual = params_from_hf(tensors, CONFIGS[name])
  assert jax.tree.structure(actual) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, actual, params)


def test_names_and_layouts():
  params = random_params("gpt2")
  tensors = params_to_hf(params, CONFIGS["gpt2"])
  layers = params["layers"]
  for name, expected in {
    "transformer.wte.weight": params["embed"]["embedding"],
    "transformer.wpe.weight": params["position"]["embedding"],
    "transformer.h.1.ln_1.bias": layers["norm1"]["bias"][1],
    "transformer.h.2.mlp.c_fc.weight": layers["mlp"]["up"]["kernel"][2],
    "transformer.h.2.attn.c_attn.weight": np.concatenate(
      [layers["attention"][part]["kernel"][2] for part in "qkv"], axis=1
    ),
    "transformer.h.0.attn.c_attn.bias": np.concatenate(
      [layers["attention"][part]["bias"][0] for part in "qkv"]
    ),
    "transformer.ln_f.weight": params["final_norm"]["scale"],
  }.items():
    np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
  assert "lm_head.weight" not in tensors

  params = random_params("llama")
  tensors = params_to_hf(params, CONFIGS["llama"])
  for name, expected in {
    "model.embed_tokens.weight": params["embed"]["embedding"],
    "model.layers.1.self_attn.k_proj.weight": params["layers"]["attention"]["k"]["kernel"][1].T,
    "model.layers.2.mlp.down_proj.weight": params["layers"]["mlp"]["down"]["kernel"][2].T,
    "model.layers.0.post_attention_layernorm.weight": params["layers"]["norm2"]["scale"][0],
    "model.norm.weight": params["final_norm"]["scale"],
    "lm_head.weight": params["lm_head"]["kernel"].T,
  }.items():
    np.testing.assert_array_equal(tensors[name], expected, err_msg=name)

  params = random_params("qwen3")
  np.testing.assert_array_equal(
    params_to_hf(params, CONFIGS["qwen3"])["model.layers.1.self_attn.k_norm.weight"],
    params["layers"]["attention"]["k_norm"]["scale"][1],
  )


def test_gpt2_without_prefix_and_with_buffers():
  params, config = random_params("gpt2"), CONFIGS["gpt2"]
  tensors = params_to_hf(params, config)
  bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
  bare |= {"h.0.attn.bias": np.ones((1, 1, 4, 4)), "h.0.attn.masked_bias": np.ones(())}
  # A tied model ignores a copy of the output matrix.
  bare["lm_head.weight"] = np.zeros((2, 2))
  jax.tree.map(np.testing.assert_array_equal, params_from_hf(bare, config), params)
  tensors = params_to_hf(random_params("qwen2"), CONFIGS["qwen2"])
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2)
  actual = params_from_hf(tensors, CONFIGS["qwen2"])
  jax.tree.map(np.testing.assert_array_equal, actual, random_params("qwen2"))


def test_all_errors_are_listed():
  shapes = tensor_shapes(CONFIGS["llama"])
  del shapes["lm_head.weight"], shapes["model.layers.1.mlp.up_proj.weight"]
  shapes |= {"model.layers.3.mlp.up_proj.weight": (3, 4), "model.norm.weight": (9,)}
  with pytest.raises(ValueError) as error:
    match_tensors(shapes, CONFIGS["llama"])
  for words in (
    "missing lm_head.weight (11, 8)",
    "missing model.layers.1.mlp.up_proj.weight (24, 8)",
    "unexpected model.layers.3.mlp.up_proj.weight (3, 4)",
    "model.norm.weight has shape (9,), expected (8,)",
  ):
    assert words in str(error.value)

  params = traverse_util.flatten_dict(random_params("gpt2"), sep="/")
  del params["embed/embedding"], params["layers/norm1/scale"]
  params |= {"extra": np.ones(1), "final_norm/bias": np.ones(3)}
  with pytest.raises(ValueError) as error:
    params_to_hf(traverse_util.unflatten_dict(params, sep="/"), CONFIGS["gpt2"])
  for words in (
    "missing embed/embedding; missing layers/norm1/scale",
    "unexpected extra",
    "final_norm/bias has shape (3,), expected (8,)",
  ):
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_parts_of_a_leaf(name, monkeypatch):
  """Any block, read in strips of a few rows."""
  monkeypatch.setattr("jaxlab.models.pretrained_tensors._STRIP_BYTES", 100)
  tensors = params_to_hf(random_params(name), CONFIGS[name])
  flat = traverse_util.flatten_dict(random_params(name), sep="/")
  for path, leaf in parameter_layout(CONFIGS[name]).items():
    index = tuple(slice(size // 3, size - size // 4) for size in leaf.shape)
    actual = read_leaf(lambda name, index: tensors[name][index], leaf, np.float32, index)
    np.testing.assert_array_equal(actual, flat[path][index], err_msg=path)
    assert actual.ctypes.data % 64 == 0


def test_half_precision_is_kept():
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_params("qwen2"))
  tensors = params_to_hf(half, CONFIGS["qwen2"])
  assert {x.dtype for x in tensors.values()} == {jnp.bfloat16.dtype}
  jax.tree.map(np.testing.assert_array_equal, params_from_hf(tensors, CONFIGS["qwen2"]), half)


def test_weights_in_memory_are_checked_too():
  tensors = params_to_hf(random_params("llama"), CONFIGS["llama"])
  for bad, words in ((np.zeros(8, np.int8), "got int8"), (np.full(8, np.nan), "NaN")):
    with pytest.raises(ValueError, match=f"model.norm.weight .*{words}"):
      params_from_hf(tensors | {"model.norm.weight": bad}, CONFIGS["llama"])
