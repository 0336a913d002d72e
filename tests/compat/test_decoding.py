"""Filters, greedy decoding and beam search against transformers, on the same tables of logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CausalLMOutput = pytest.importorskip("transformers.modeling_outputs").CausalLMOutput

V, T = 11, 6
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(20, V))).astype(np.float32)
STARTS = np.arange(V, dtype=np.int32)
PAD = 1  # Beam search of transformers takes a pad of 0 for none and fills with EOS.


class TableConfig(transformers.PretrainedConfig):
  model_type = "jaxlab_table"

  def __init__(self, vocab_size=V, **kwargs):
    self.vocab_size = vocab_size
    super().__init__(**kwargs)


class TableLM(transformers.PreTrainedModel, transformers.GenerationMixin):
  """A first-order Markov model in the terms of transformers."""

  config_class = TableConfig
  main_input_name = "input_ids"

  def __init__(self, config, table):
    super().__init__(config)
    self.table = torch.nn.Parameter(torch.tensor(table))

  def forward(self, input_ids, attention_mask=None, **kwargs):
    del attention_mask, kwargs
    return CausalLMOutput(logits=self.table[input_ids])

  def prepare_inputs_for_generation(self, input_ids, **kwargs):
    del kwargs
    return {"input_ids": input_ids}


def table(scale):
  return (scale * np.random.default_rng(1).normal(size=(V, V))).astype(np.float32)


def generate(model, starts, **options):
  options = {
    "max_new_tokens": T,
    "do_sample": False,
    "pad_token_id": PAD,
    "use_cache": False,
  } | options
  options |= {"return_dict_in_generate": True, "output_scores": True}
  tokens = torch.tensor(np.asarray(starts, np.int64))[:, None]
  with torch.no_grad():
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)


@pytest.mark.parametrize(
  "name, warper, options",
  [
    ("filter_top_k", "TopKLogitsWarper", {"top_k": 1}),
    ("filter_top_k", "TopKLogitsWarper", {"top_k": 4}),
    ("filter_top_k", "TopKLogitsWarper", {"top_k": 50}),
    ("filter_top_p", "TopPLogitsWarper", {"top_p": 0.3}),
    ("filter_top_p", "TopPLogitsWarper", {"top_p": 0.9}),
    ("filter_top_p", "TopPLogitsWarper", {"top_p": 0.5, "min_tokens_to_keep": 4}),
    ("filter_min_p", "MinPLogitsWarper", {"min_p": 0.05}),
    ("filter_min_p", "MinPLogitsWarper", {"min_p": 0.6, "min_tokens_to_keep": 3}),
    ("filter_typical_p", "TypicalLogitsWarper", {"typical_p": 0.2}),
    ("filter_typical_p", "TypicalLogitsWarper", {"typical_p": 0.9}),
    ("filter_typical_p", "TypicalLogitsWarper", {"typical_p": 0.2, "min_tokens_to_keep": 3}),
  ],
)
def test_filters(name, warper, options):
  found = getattr(samplers, name)(LOGITS, **options)
  theirs = {"typical_p": "mass"}
  expected = getattr(transformers, warper)(**{theirs.get(k, k): v for k, v in options.items()})(
    torch.zeros((len(LOGITS), 1), dtype=torch.long), torch.tensor(LOGITS)
  )
  np.testing.assert_array_equal(found, expected.numpy())


def test_repetition_penalty():
  prompts = RNG.integers(0, V, (len(LOGITS), 5))
  seen = (prompts[:, :, None] == np.arange(V)).any(1)
  found = samplers.apply_repetition_penalty(LOGITS, seen, penalty=1.3)
  expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
    torch.tensor(prompts), torch.tensor(LOGITS)
  )
  np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_greedy():
  logits = table(2.0)
  options = {"repetition_penalty": 1.3, "min_new_tokens": 3}
  expected = generate(TableLM(TableConfig(), logits), STARTS, eos_token_id=[3, 5], **options)
  found = samplers.generate(
    jax.random.key(0),
    samplers.table_decode_fns(logits),
    STARTS[:, None],
    np.ones_like(STARTS),
    max_new_tokens=T,
    temperature=0.0,
    eos_token_id=(3, 5),
    pad_token_id=PAD,
    **options,
  )
  tokens = expected.sequences.numpy()[:, 1:]
  np.testing.assert_array_equal(found.tokens[:, : tokens.shape[1]], tokens)
  assert 0 < int(found.finished.sum()) < len(STARTS)


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("eos", [3, (3, 5)])
def test_beam_search(num_beams, early_stopping, eos):
  search = jax.jit(
    functools.partial(
      samplers.markov_beam_search,
      num_beams=num_beams,
      max_new_tokens=T,
      eos_token_id=eos,
      pad_token_id=PAD,
      early_stopping=early_stopping,
    )
  )
  ends = 0
  for length_penalty, scale in ((1.0, 1.5), (0.0, 1.5), (2.0, 0.5), (-1.0, 1.5)):
    logits = table(scale)
    found = search(logits, STARTS, length_penalty=jnp.float32(length_penalty))
    expected = generate(
      TableLM(TableConfig(), logits),
      STARTS,
      num_beams=num_beams,
      num_return_sequences=num_beams,
      early_stopping=early_stopping,
      length_penalty=length_penalty,
      eos_token_id=eos if isinstance(eos, int) else list(eos),
    )
    tokens = expected.sequences.numpy()[:, 1:].reshape(len(STARTS), num_beams, -1)
    scores = expected.sequences_scores.numpy().reshape(len(STARTS), num_beams)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.tokens[..., : tokens.shape[-1]], tokens)
    ends += int((found.lengths < T).sum())
  assert ends > 0
