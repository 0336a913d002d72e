"""Against transformers and peft: the same logits from the same directories, both ways."""

import pathlib

import jax
import numpy as np
import pytest

from jaxlab import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from jaxlab.data.chat_templates import render_chat  # noqa: E402
from jaxlab.data.tokenizers import encode_chat, load_tokenizer  # noqa: E402
from jaxlab.models import decoder  # noqa: E402
from jaxlab.weights.low_rank import LowRankConfig, merge_low_rank  # noqa: E402

LENGTH = 24
LLAMA = {
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 56,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 16,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
ROPES = {
  "llama3": LLAMA3,
  "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
  "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
  "yarn": {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
  },
}


def hf_config(name):
  if name == "gpt2":
    return transformers.GPT2Config(
      vocab_size=61, n_embd=32, n_head=4, n_layer=3, n_positions=32, bos_token_id=0, eos_token_id=0
    )
  if name in ROPES:
    return transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False, rope_parameters=ROPES[name])
  if name == "biases":
    return transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, head_dim=12)
  if name == "mistral":
    return transformers.MistralConfig(**LLAMA, sliding_window=5)
  make = transformers.Qwen2Config if name == "qwen2" else transformers.Qwen3Config
  return make(
    **LLAMA,
    tie_word_embeddings=True,
    use_sliding_window=True,
    sliding_window=5,
    max_window_layers=1,
    **({} if name == "qwen2" else {"head_dim": 12, "attention_bias": name == "qwen3_biases"}),
  )


def hf_model(name):
  torch.manual_seed(0)
  config = hf_config(name)
  config._attn_implementation = "eager"
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      # Biases and scales too, so that none can be forgotten.
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def hf_logits(model, tokens):
  with torch.no_grad():
    return model(torch.from_numpy(tokens)).logits.float().numpy()


def our_logits(loaded, tokens):
  return np.asarray(loaded.model.apply({"params": loaded.params}, tokens).logits)


@pytest.fixture(scope="module")
def tokens():
  return np.random.default_rng(0).integers(0, 61, (2, LENGTH))


@pytest.mark.parametrize(
  "name", ["gpt2", "mistral", "qwen2", "qwen3", "qwen3_biases", "biases", *ROPES]
)
def test_the_logits_of_transformers_both_ways(tmp_path, tokens, name):
  model = hf_model(name)
  expected = hf_logits(model, tokens)
  total = sum(parameter.nbytes for parameter in model.parameters())
  model.save_pretrained(tmp_path / "one")
  model.save_pretrained(tmp_path / "three", max_shard_size=total // 3 + total // 20)
  assert len(list((tmp_path / "three").glob("model-*.safetensors"))) >= 3
  for directory in ("one", "three"):
    loaded = models.load_pretrained(tmp_path / directory)
    np.testing.assert_allclose(our_logits(loaded, tokens), expected, atol=1e-4)
  assert decoder.num_parameters(loaded.config) == sum(p.numel() for p in model.parameters())

  for directory, limit in (("ours", 10**9), ("our_shards", total // 3 + total // 20)):
    models.save_pretrained(
      tmp_path / directory, loaded.params, loaded.config, max_shard_bytes=limit
    )
    back = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / directory, attn_implementation="eager"
    ).eval()
    assert type(back) is type(model)
    np.testing.assert_allclose(hf_logits(back, tokens), expected, atol=1e-5)
    again = models.load_pretrained(tmp_path / directory)
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_logits_from_memory(tokens):
  model = hf_model("gpt2")
  tensors = {name: x.detach().numpy() for name, x in model.transformer.state_dict().items()}
  found = models.logits_from_hf(model.config.to_dict(), tensors, tokens)
  np.testing.assert_allclose(found, hf_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3"])
def test_greedy_decoding_with_the_cache(tmp_path, tokens, name):
  model = hf_model(name)
  model.save_pretrained(tmp_path)
  loaded = models.load_pretrained(tmp_path)
  expected = model.generate(
    torch.from_numpy(tokens[:, :8]), max_new_tokens=8, do_sample=False, eos_token_id=None
  ).numpy()

  @jax.jit
  def step(tokens, positions, cache):
    out = loaded.model.apply({"params": loaded.params}, tokens, positions, cache=cache)
    return out.logits[:, -1:].argmax(-1), out.cache

  cache = loaded.model.init_cache(2, 16)
  token, cache = step(tokens[:, :8], np.tile(np.arange(8), (2, 1)), cache)
  found = [token]
  for position in range(8, 15):
    token, cache = step(token, np.full((2, 1), position), cache)
    found.append(token)
  np.testing.assert_array_equal(np.concatenate(found, axis=1), expected[:, 8:])


def test_half_precision(tmp_path, tokens):
  model = hf_model("llama3")
  expected = hf_logits(model, tokens)
  model.to(torch.bfloat16).save_pretrained(tmp_path)
  loaded = models.load_pretrained(tmp_path, dtype=jax.numpy.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {jax.numpy.bfloat16.dtype}
  assert np.abs(our_logits(loaded, tokens) - expected).max() < 0.1


@pytest.mark.parametrize(
  "name, targets, stabilized",
  [
    ("llama3", ["q_proj", "v_proj", "down_proj"], True),
    ("qwen2", ["k_proj", "o_proj", "gate_proj"], False),
    ("gpt2", ["c_attn", "mlp.c_proj"], False),
  ],
)
def test_peft_adapters_both_ways(tmp_path, tokens, name, targets, stabilized):
  base = hf_model(name)
  base.save_pretrained(tmp_path / "base")
  settings = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=targets,
    use_rslora=stabilized,
    fan_in_fan_out=name == "gpt2",
    init_lora_weights=False,
  )
  torch.manual_seed(1)
  model = peft.get_peft_model(base, settings).eval()
  expected = hf_logits(model, tokens)
  model.save_pretrained(tmp_path / "adapter")

  loaded = models.load_pretrained(tmp_path / "base")
  adapters, config = models.load_adapter(tmp_path / "adapter", loaded.config)
  merged = loaded._replace(params=merge_low_rank(loaded.params, adapters, config))
  np.testing.assert_allclose(our_logits(merged, tokens), expected, atol=1e-4)
  assert np.abs(our_logits(loaded, tokens) - expected).max() > 0.1

  models.save_adapter(tmp_path / "ours", adapters, config, loaded.config)
  back = peft.PeftModel.from_pretrained(hf_model(name), tmp_path / "ours").eval()
  np.testing.assert_allclose(hf_logits(back, tokens), expected, atol=1e-4)


@pytest.mark.parametrize("stabilized", [False, True])
def test_different_adapters_of_gpt2s_one_matrix(tmp_path, tokens, stabilized):
  base = hf_model("gpt2")
  base.save_pretrained(tmp_path / "base")
  loaded = models.load_pretrained(tmp_path / "base")
  rng = np.random.default_rng(0)
  paths = [f"layers/attention/{name}/kernel" for name in ("q", "v", "out")]
  adapters = {
    path: {
      "a": rng.normal(size=(3, 32, 2)).astype(np.float32),
      "b": rng.normal(size=(3, 2, 32)).astype(np.float32) / 8,
    }
    for path in paths
  }
  config = LowRankConfig(2, 3.0, ("q", "v", "out"), stabilized)
  merged = loaded._replace(params=merge_low_rank(loaded.params, adapters, config))
  models.save_adapter(tmp_path / "ours", adapters, config, loaded.config)
  model = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
  expected = hf_logits(model, tokens)
  assert model.peft_config["default"].r == 4
  np.testing.assert_allclose(our_logits(merged, tokens), expected, atol=1e-4)
  again = models.load_adapter(tmp_path / "ours", loaded.config)
  merged = loaded._replace(params=merge_low_rank(loaded.params, *again))
  np.testing.assert_allclose(our_logits(merged, tokens), expected, atol=1e-4)


# The layouts of three families, and what their templates use: state in a namespace, whitespace
# control, trimming, macros, tojson, loop controls.
TEMPLATES = {
  "llama3": """
{%- macro header(role) -%}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro -%}
{{- bos_token -}}
{%- for turn in messages -%}
{{- header(turn.role) ~ "\n" ~ (turn.content | trim) ~ "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ header("assistant") ~ "\n" }}{% endif -%}
""",
  "qwen2": """
{%- set state = namespace(turns=messages) -%}
{%- if messages[0].role != "system" -%}
{%- set state.turns = [{"role": "system", "content": "Be brief."}] + messages -%}
{%- endif -%}
{%- for turn in state.turns %}<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
""",
  "zephyr": """
{% for turn in messages if turn.role in ("system", "user", "assistant") %}
<|{{ turn.role }}|>
{{ turn.content ~ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
""",
  "json": "{% for m in messages %}{{ m | tojson(indent=2) }}{% break %}{% endfor %}",
}
MESSAGES = [
  {"role": "user", "content": " Wo ist <b>Zürich</b>? "},
  {"role": "assistant", "content": "In der Schweiz."},
  {"role": "user", "content": "Danke & tschüss"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> tuple[transformers.PreTrainedTokenizerFast, pathlib.Path]:
  tokenizers = pytest.importorskip("tokenizers")
  core = tokenizers.Tokenizer(tokenizers.models.BPE())
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<s>", "</s>", "<|eot_id|>", "<|im_end|>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  core.train_from_iterator([message["content"] for message in MESSAGES], trainer)
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, bos_token="<s>", eos_token="</s>"
  )
  directory = tmp_path_factory.mktemp("tokenizer")
  fast.save_pretrained(directory)
  return fast, directory


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(tokenizer, name):
  fast, _ = tokenizer
  for add_generation_prompt in (False, True):
    expected = fast.apply_chat_template(
      MESSAGES,
      chat_template=TEMPLATES[name],
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
    )
    found = render_chat(
      TEMPLATES[name],
      MESSAGES,
      add_generation_prompt=add_generation_prompt,
      bos_token="<s>",
      eos_token="</s>",
    )
    assert found == expected


def test_tokens_of_a_chat(tokenizer, tmp_path):
  fast, _ = tokenizer
  fast.chat_template = TEMPLATES["llama3"]
  fast.save_pretrained(tmp_path)
  ours = load_tokenizer(tmp_path)
  assert ours.chat_template == TEMPLATES["llama3"]
  assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
    len(fast),
    0,
    1,
    None,
  )
  found = encode_chat(ours, MESSAGES)
  expected = fast.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
  np.testing.assert_array_equal(found.tokens, expected)
  assert ours.decode(found.tokens[found.loss_mask]) == "In der Schweiz.<|eot_id|>"
