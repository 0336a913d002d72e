import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxlab.models import DecoderLM, decoder_config, save_pretrained

ARCHITECTURE = decoder_config(
  vocab_size=260,
  hidden_size=16,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  max_positions=64,
  tie_embeddings=False,
)
TEMPLATE = (
  "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}"
  "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def save_checkpoint(directory, *, template=TEMPLATE, architecture=ARCHITECTURE):
  """A random model and a tokenizer of bytes, as Hugging Face keeps them."""
  module, tokens = DecoderLM(architecture), jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(lambda tokens: module.init(jax.random.key(0), tokens), tokens)["params"]
  # NumPy compiles nothing, so no test pays for the checkpoint that every file shares.
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)
  save_pretrained(directory, params, architecture)
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(
    tokenizers.models.BPE({character: i for i, character in enumerate(alphabet)}, [])
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = tokenizers.decoders.ByteLevel()
  core.add_special_tokens(["<s>", "</s>", "<|user|>", "<|bot|>"])
  core.save(str(directory / "tokenizer.json"))
  settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
  settings["tokenizer_class"] = "PreTrainedTokenizerFast"
  (directory / "tokenizer_config.json").write_text(json.dumps(settings))
  return directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
  return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def make_checkpoint():
  return save_checkpoint
