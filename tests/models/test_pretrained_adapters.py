import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.models import decoder_config, load_adapter, save_adapter
from jaxlab.models.pretrained_adapters import adapter_targets
from jaxlab.weights.low_rank import LowRankConfig, low_rank_update

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_layers": 3, "num_heads": 2}
LLAMA = decoder_config(**SIZES, num_kv_heads=1)
GPT2 = decoder_config(**SIZES, family="gpt2")


def random_adapters(widths, rank=2, shared=False):
  rng = np.random.default_rng(0)
  a = rng.normal(size=(3, 8, rank)).astype(np.float32)
  return {
    f"layers/{name}/kernel": {
      "a": a if shared else rng.normal(size=(3, 8, rank)).astype(np.float32),
      "b": rng.normal(size=(3, rank, width)).astype(np.float32),
    }
    for name, width in widths.items()
  }


def updates(adapters, config):
  settings = {"alpha": config.alpha, "rank_stabilized": config.rank_stabilized}
  return {path: low_rank_update(x["a"], x["b"], **settings) for path, x in adapters.items()}


def settings_of(directory):
  return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize("stabilized", [False, True])
def test_llama_round_trip(tmp_path, stabilized):
  adapters = random_adapters({"attention/q": 8, "attention/v": 4, "mlp/up": 24})
  config = LowRankConfig(2, 5.0, ("attention/q", "attention/v", "mlp/up"), stabilized)
  save_adapter(tmp_path, adapters, config, LLAMA)
  loaded = load_adapter(tmp_path, LLAMA)
  assert loaded.config == config
  jax.tree.map(np.testing.assert_array_equal, loaded.adapters, adapters)
  assert settings_of(tmp_path)["target_modules"] == [
    "mlp.up_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
  ]
  tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
  name = "base_model.model.model.layers.1.self_attn.v_proj"
  adapter = adapters["layers/attention/v/kernel"]
  np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], adapter["a"][1].T)
  np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], adapter["b"][1].T)


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_gpt2_fused_matrix(tmp_path, shared, stabilized):
  adapters = random_adapters({"attention/q": 8, "attention/v": 8}, shared=shared)
  adapters |= random_adapters({"mlp/up": 32})
  config = LowRankConfig(2, 5.0, ("attention/q", "attention/v", "mlp/up"), stabilized)
  save_adapter(tmp_path, adapters, config, GPT2)
  settings = settings_of(tmp_path)
  assert settings["target_modules"] == ["attn.c_attn", "mlp.c_fc"] and settings["fan_in_fan_out"]
  assert settings["r"] == (2 if shared else 4)
  if not stabilized:
    assert settings["lora_alpha"] / settings["r"] == 5.0 / 2
  loaded = load_adapter(tmp_path, GPT2)
  expected = updates(adapters, config)
  for path, update in updates(loaded.adapters, loaded.config).items():
    np.testing.assert_allclose(update, expected.get(path, 0.0 * update), atol=1e-5, err_msg=path)
  assert set(loaded.adapters) == {*expected, "layers/attention/k/kernel"}
  # Adapters of one fused matrix are written back unchanged.
  save_adapter(tmp_path / "again", *loaded, GPT2)
  jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path / "again", GPT2), loaded)


def test_targets_may_be_named_as_in_peft():
  translated = adapter_targets(["q_proj", "attention/v", "mlp.up_proj", "q_proj", "?"], LLAMA)
  assert translated == ("attention/q", "attention/v", "mlp/up", "?")
  assert adapter_targets(["c_attn"], GPT2) == ("attention/k", "attention/q", "attention/v")
  assert adapter_targets(["c_proj"], GPT2) == ("attention/out", "mlp/down")


def test_invalid_directories_raise(tmp_path):
  adapters = random_adapters({"attention/q": 8})
  config = LowRankConfig(2, 5.0, ("attention/q",))
  save_adapter(tmp_path, adapters, config, LLAMA)
  settings = settings_of(tmp_path)
  for changed, words in (
    ({"peft_type": "IA3"}, "peft_type .* got 'IA3'"),
    ({"bias": "all"}, "bias .* got 'all'"),
    ({"use_dora": True, "rank_pattern": {"q_proj": 3}}, "with rank_pattern, use_dora"),
    ({"lora_alpha": None}, "adapter_config.json: it lacks lora_alpha"),
    ({"lora_alpha": "16"}, "adapter_config.json: lora_alpha must be a number, got '16'"),
    ({"r": 2.5}, "adapter_config.json: r must be an integer, got 2.5"),
    ({"r": 0}, "adapter_config.json: r must be at least 1, got 0"),
    ({"use_rslora": "false"}, "adapter_config.json: use_rslora must be true or false"),
    ({"r": 3}, r"lora_A.weight has shape \(2, 8\), expected \(3, 8\)"),
  ):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | changed))
    with pytest.raises(ValueError, match=words):
      load_adapter(tmp_path, LLAMA)
  (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
  path = tmp_path / "adapter_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
  for bad, words in ((np.ones((8, 2), np.int8), "got int8"), (np.full((8, 2), np.nan), "NaN")):
    safetensors.numpy.save_file(tensors | {name: bad}, path)
    with pytest.raises(ValueError, match=f"{tmp_path}: {name} .*{words}"):
      load_adapter(tmp_path, LLAMA)
  head = {"base_model.model.lm_head.lora_A.weight": np.ones((2, 8))}
  safetensors.numpy.save_file({n: x for n, x in tensors.items() if n != name} | head, path)
  with pytest.raises(ValueError, match=rf"missing {name} \(8, 2\); unexpected .*lm_head"):
    load_adapter(tmp_path, LLAMA)
  path.rename(tmp_path / "adapter_model.bin")
  with pytest.raises(ValueError, match="pickled weights, adapter_model.bin"):
    load_adapter(tmp_path, LLAMA)


def test_invalid_adapters_raise(tmp_path):
  config = LowRankConfig(2, 5.0)
  with pytest.raises(ValueError, match="must not be empty"):
    save_adapter(tmp_path / "x", {}, config, LLAMA)
  with pytest.raises(ValueError, match="'layers/tail/kernel' is not a kernel"):
    save_adapter(tmp_path / "x", random_adapters({"tail": 8}), config, LLAMA)
  with pytest.raises(ValueError, match=r"b has shape \(3, 2, 9\), expected \(3, 2, 8\)"):
    save_adapter(tmp_path / "x", random_adapters({"attention/q": 9}), config, LLAMA)
  assert not (tmp_path / "x").exists()
