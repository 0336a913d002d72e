import functools
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxlab import models
from jaxlab.models import DecoderLM, decoder_config, load_pretrained, save_pretrained
from jaxlab.training.mesh import make_mesh

SIZES = {"vocab_size": 12, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_positions": 16}
CONFIGS = {
  "gpt2": decoder_config(**SIZES, family="gpt2"),
  "llama": decoder_config(**SIZES, num_kv_heads=1, tie_embeddings=False),
}


@functools.cache
def random_params(name):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(DecoderLM(CONFIGS[name]).init, jax.random.key(0), tokens)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000, 1])
def test_round_trip_is_exact(tmp_path, name, max_shard_bytes):
  params, config = random_params(name), CONFIGS[name]
  save_pretrained(tmp_path / "x", params, config, max_shard_bytes=max_shard_bytes)
  loaded = load_pretrained(tmp_path / "x")
  assert loaded.config == config and loaded.model == DecoderLM(config)
  assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)

  files = sorted(path.name for path in (tmp_path / "x").glob("*.safetensors"))
  if max_shard_bytes == 10**9:
    assert files == ["model.safetensors"]
    return
  index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
  assert files == [
    f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
  ]
  for file in files:
    tensors = safetensors.numpy.load_file(tmp_path / "x" / file)
    assert len(tensors) == 1 or sum(x.nbytes for x in tensors.values()) <= max_shard_bytes
    assert {n for n, f in index["weight_map"].items() if f == file} == set(tensors)
    with safetensors.safe_open(tmp_path / "x" / file, framework="numpy") as opened:
      assert opened.metadata() == {"format": "pt"}


def test_saved_files_and_types(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "tokenizer.json").write_bytes(b"\x00bytes")
  (source / "generation_config.json").write_text("{}")
  (source / "notes.txt").write_text("private")
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_params("llama"))
  save_pretrained(tmp_path / "x", half, CONFIGS["llama"], tokenizer_from=source)
  assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
  ]
  assert (tmp_path / "x" / "tokenizer.json").read_bytes() == b"\x00bytes"
  written = json.loads((tmp_path / "x" / "config.json").read_text())
  assert written["torch_dtype"] == "bfloat16" and written["architectures"] == ["LlamaForCausalLM"]
  loaded = load_pretrained(tmp_path / "x", dtype=jnp.bfloat16)
  assert loaded.model.dtype == loaded.model.param_dtype == jnp.bfloat16
  jax.tree.map(np.testing.assert_array_equal, loaded.params, half)
  wide = load_pretrained(tmp_path / "x")
  assert {x.dtype for x in jax.tree.leaves(wide.params)} == {jnp.float32.dtype}
  with pytest.raises(FileNotFoundError, match="no tokenizer"):
    save_pretrained(tmp_path / "x", half, CONFIGS["llama"], tokenizer_from=tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_loading_onto_a_mesh(tmp_path, name):
  save_pretrained(tmp_path, random_params(name), CONFIGS[name])
  mesh = make_mesh({"data": 4, "model": 2})
  loaded = load_pretrained(tmp_path, mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, random_params(name))
  flat = traverse_util.flatten_dict(loaded.params, sep="/")
  spec = flat["layers/mlp/down/kernel"].sharding.spec
  assert spec == PartitionSpec(None, "model", None)
  assert flat["final_norm/scale"].sharding.is_fully_replicated
  rules = ((r"layers/.*/kernel$", PartitionSpec("model")),)
  loaded = load_pretrained(tmp_path, mesh=mesh, sharding_rules=rules)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, random_params(name))
  flat = traverse_util.flatten_dict(loaded.params, sep="/")
  assert flat["layers/attention/k/kernel"].sharding.spec == PartitionSpec("model")
  assert flat["embed/embedding"].sharding.is_fully_replicated
  other = load_pretrained(tmp_path, mesh=make_mesh({"data": 8}))
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(other.params))


def test_logits_from_memory(tmp_path):
  params, config = random_params("gpt2"), CONFIGS["gpt2"]
  tokens = np.array([[3, 1, 4, 1, 5]])
  tensors = models.params_to_hf(params, config)
  loaded = models.logits_from_hf(models.config_to_hf(config), tensors, tokens)
  expected = DecoderLM(config).apply({"params": params}, tokens).logits
  np.testing.assert_array_equal(loaded, expected)


def test_malformed_directories(tmp_path):
  params, config = random_params("llama"), CONFIGS["llama"]
  with pytest.raises(FileNotFoundError, match="config.json"):
    load_pretrained(tmp_path)
  save_pretrained(tmp_path, params, config)
  path = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  for change, words in (
    (lambda x: x.astype(np.uint8), "got uint8"),
    (lambda x: np.where(x == x.max(), np.nan, x), "NaN or infinite"),
  ):
    safetensors.numpy.save_file(
      tensors | {"lm_head.weight": change(tensors["lm_head.weight"])}, path
    )
    for mesh in (None, make_mesh({"data": 4, "model": 2})):
      with pytest.raises(ValueError, match=f"{tmp_path}: lm_head.weight .*{words}"):
        load_pretrained(tmp_path, mesh=mesh)
  gone = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
  safetensors.numpy.save_file({n: x for n, x in tensors.items() if n not in gone}, path)
  with pytest.raises(ValueError) as error:
    load_pretrained(tmp_path)
  assert str(tmp_path) in str(error.value)
  assert all(f"missing {name}" in str(error.value) for name in gone)
  path.rename(tmp_path / "pytorch_model.bin")
  with pytest.raises(ValueError, match="pickled weights, pytorch_model.bin"):
    load_pretrained(tmp_path)


def test_errors(tmp_path):
  params, config = random_params("llama"), CONFIGS["llama"]
  with pytest.raises(ValueError, match="max_shard_bytes .* got 0"):
    save_pretrained(tmp_path / "x", params, config, max_shard_bytes=0)
  with pytest.raises(ValueError, match="missing layers/attention/q/bias"):
    save_pretrained(tmp_path / "x", params, CONFIGS["gpt2"])
  assert not (tmp_path / "x").exists()
  with pytest.raises(ValueError, match="sharding_rules need a mesh"):
    load_pretrained(tmp_path, sharding_rules=())


def test_peak_memory_of_loading_is_little_more_than_the_parameters(tmp_path):
  """Peak resident memory of a fresh process, over what it had before."""
  config = decoder_config(vocab_size=16000, hidden_size=512, num_layers=8, num_heads=8)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(DecoderLM(config).init, jax.random.key(0), tokens)["params"]
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  save_pretrained(tmp_path, params, config)
  script = f"""
    import resource, threading, time
    import jax, jax.numpy as jnp
    from jaxlab.models.pretrained import load_pretrained
    jnp.ones(3).block_until_ready()

    def anonymous():
      # Pages of the file itself belong to the system, which drops them when it needs room.
      text = open("/proc/self/status").read()
      return int(text.split("RssAnon:")[1].split()[0]) * 1024

    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
      while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    params = load_pretrained({str(tmp_path)!r}).params
    jax.block_until_ready(params)
    done.set()
    thread.join()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    print((peak[0] - before) / size)
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
  )
  assert 0.9 < float(done.stdout) < 1.2
