from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers
from jaxlab.samplers import decode_fns as contract

V, T = 7, 4


class Output(NamedTuple):
  logits: Any
  cache: Any


class TinyLM(nn.Module):
  """One layer of one head that keeps the cache contract; without a cache it is causal."""

  vocab_size: int = V
  width: int = 8

  @nn.nowrap
  def init_cache(self, batch_size, max_length):
    empty = jnp.zeros((batch_size, max_length, self.width))
    return {"keys": empty, "values": empty}

  @nn.compact
  def __call__(self, tokens, positions=None, *, cache=None):
    batch, width = tokens.shape
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    scale = 2.0 ** -jnp.arange(self.width // 2)
    angle = positions[..., None] * scale
    x = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
    x += jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    query, keys, values = jnp.split(nn.Dense(3 * self.width)(x), 3, axis=-1)
    if cache is not None:
      rows = jnp.arange(batch)[:, None]
      write = lambda slots, new: slots.at[rows, positions].set(new, mode="drop")  # noqa: E731
      cache = {"keys": write(cache["keys"], keys), "values": write(cache["values"], values)}
      keys, values = cache["keys"], cache["values"]
    scores = query @ jnp.swapaxes(keys, 1, 2)
    visible = jnp.arange(keys.shape[1]) <= positions[..., None]
    x += jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1) @ values
    return Output(nn.Dense(self.vocab_size)(jnp.tanh(x)), cache)


MODEL = TinyLM()
PARAMS = MODEL.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
DRAFT_PARAMS = jax.tree.map(lambda x: x + 0.3 * jnp.sign(x), PARAMS)
FNS = contract.flax_decode_fns(MODEL, PARAMS)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(0, V, (5, 4)).astype(np.int32)
LENGTHS = np.array([4, 1, 2, 3, 4], np.int32)
forward = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens).logits)
greedy = jax.jit(
  lambda fns, prompts, lengths: samplers.generate(
    jax.random.key(0),
    fns,
    prompts,
    lengths,
    max_new_tokens=T,
    temperature=0.0,
    eos_token_id=2,
    return_logits=True,
  )
)


def next_logits(text, params=PARAMS):
  """Logits after a text, from the model without a cache."""
  padded = np.zeros((1, PROMPTS.shape[1] + T), np.int32)
  padded[0, : len(text)] = text
  return np.asarray(forward(params, padded))[0, len(text) - 1]


@pytest.fixture(scope="module")
def generated():
  return jax.tree.map(np.asarray, greedy(FNS, PROMPTS, LENGTHS))


def test_cache_does_not_change_the_output(generated):
  for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
    text = prompt[:length].tolist()
    for step in range(generated.lengths[row]):
      logits = next_logits(text)
      np.testing.assert_allclose(generated.logits[row, step], logits, rtol=1e-4, atol=1e-5)
      text.append(int(np.argmax(logits)))
    assert generated.tokens[row, : generated.lengths[row]].tolist() == text[length:]
    assert generated.finished[row] == (text[-1] == 2)
  assert len(set(map(tuple, generated.tokens.tolist()))) > 2


def test_padding_and_other_rows_do_not_change_the_output(generated):
  short = LENGTHS <= 2
  alone = greedy(FNS, PROMPTS[short][:, :2], LENGTHS[short])
  wider = np.concatenate([PROMPTS, RNG.integers(0, V, (5, 3))], axis=1)
  wide = greedy(FNS, wider, LENGTHS)
  other = np.where(np.arange(4) < LENGTHS[:, None], PROMPTS, (PROMPTS + 3) % V)
  refilled = greedy(FNS, other, LENGTHS)
  for output, rows in ((alone, short), (wide, slice(None)), (refilled, slice(None))):
    np.testing.assert_array_equal(output.tokens, generated.tokens[rows])
    np.testing.assert_array_equal(output.lengths, generated.lengths[rows])
    np.testing.assert_allclose(output.log_probs, generated.log_probs[rows], rtol=1e-4, atol=1e-5)


def texts(output, prompts=PROMPTS, lengths=LENGTHS):
  """Prompts followed by the generated tokens, and the lengths of both together."""
  whole = np.zeros((len(prompts), prompts.shape[1] + T), np.int32)
  for row, length in enumerate(lengths):
    whole[row, :length] = prompts[row, :length]
    whole[row, length : length + T] = output.tokens[row]
  return whole, lengths + output.lengths


def test_scores_match_the_log_probs_of_generation(generated):
  whole, total = texts(generated)
  output = np.asarray(jax.jit(contract.score_sequences)(FNS, whole, total, LENGTHS))
  for row, length in enumerate(LENGTHS):
    np.testing.assert_allclose(
      output[row, length : length + T], generated.log_probs[row], rtol=1e-4, atol=1e-5
    )
    assert not output[row, :length].any() and not output[row, length + T :].any()


def test_scores_of_a_table_and_their_gradient():
  table = RNG.normal(size=(V, V)).astype(np.float32) * np.float32([[1e4]] + [[1.0]] * (V - 1))
  log_probs = table.astype(np.float64)
  log_probs -= log_probs.max(-1, keepdims=True)
  log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
  lengths, prompt_lengths = np.array([4, 3, 0, 2, 4]), np.array([1, 0, 2, 2, 3])

  def total(table):
    fns = contract.table_decode_fns(table)
    scores = contract.score_sequences(fns, PROMPTS, lengths, prompt_lengths)
    return scores.sum(), scores

  (_, output), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(table)
  expected, slopes = np.zeros((5, 4)), np.zeros((V, V))
  for row in range(5):
    for t in range(max(prompt_lengths[row], 1), lengths[row]):
      last, token = PROMPTS[row, t - 1 : t + 1]
      expected[row, t] = log_probs[last, token]
      slopes[last] += np.eye(V)[token] - np.exp(log_probs[last])
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(slope, slopes, rtol=1e-4, atol=1e-5)
  one = contract.score_sequences(
    contract.table_decode_fns(table), PROMPTS[:, :1], lengths * 0, lengths
  )
  np.testing.assert_array_equal(one, np.zeros((5, 1)))


def test_beams_reorder_the_cache():
  """Scores of the hypotheses, recomputed without a cache."""
  output = jax.jit(
    lambda fns: samplers.beam_search(
      fns, PROMPTS, LENGTHS, num_beams=3, max_new_tokens=T, eos_token_id=2, length_penalty=0.0
    )
  )(FNS)
  score = jax.jit(contract.score_sequences)
  for beam in range(3):
    picked = jax.tree.map(lambda leaf, beam=beam: np.asarray(leaf[:, beam]), output)
    whole, total = texts(picked)
    scores = score(FNS, whole, total, LENGTHS).sum(-1)
    np.testing.assert_allclose(picked.scores, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draft_params", [PARAMS, DRAFT_PARAMS], ids=["same", "other"])
def test_speculation_keeps_two_caches_consistent(generated, draft_params):
  output = jax.jit(
    lambda target, draft: samplers.speculative_decode(
      jax.random.key(0),
      target,
      draft,
      PROMPTS,
      LENGTHS,
      num_draft_tokens=2,
      max_new_tokens=T,
      temperature=0.0,
      eos_token_id=2,
    )
  )(FNS, contract.flax_decode_fns(MODEL, draft_params))
  np.testing.assert_array_equal(output.tokens, generated.tokens)
  np.testing.assert_array_equal(output.lengths, generated.lengths)
  np.testing.assert_allclose(output.log_probs, generated.log_probs, rtol=1e-4, atol=1e-5)
  if draft_params is PARAMS:
    np.testing.assert_array_equal(output.num_accepted, 2 * output.num_target_calls)


@pytest.mark.parametrize("large_fraction", [0.5, 1.0])
def test_switching_keeps_two_caches_consistent(generated, large_fraction):
  output = jax.jit(
    lambda small, large: samplers.random_switching_decode(
      jax.random.key(0),
      small,
      large,
      PROMPTS,
      LENGTHS,
      large_fraction=large_fraction,
      min_dwell=1,
      max_new_tokens=T,
      temperature=0.0,
      eos_token_id=2,
    )
  )(contract.flax_decode_fns(MODEL, DRAFT_PARAMS), FNS)
  for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
    text = prompt[:length].tolist()
    for token, is_large in zip(output.tokens[row].tolist(), output.use_large[row].tolist()):
      if 2 in text[length:]:
        break
      logits = next_logits(text) if is_large else next_logits(text, DRAFT_PARAMS)
      assert token == int(np.argmax(logits))
      text.append(token)
  if large_fraction == 1:
    np.testing.assert_array_equal(output.tokens, generated.tokens)


def test_nudging_keeps_two_caches_of_different_prompts_consistent():
  others, lengths = PROMPTS[::-1], LENGTHS[::-1]
  output = jax.jit(
    lambda base, nudging: samplers.nudged_decode(
      base, nudging, PROMPTS, LENGTHS, others, lengths, max_new_tokens=T, eos_token_id=2
    )
  )(FNS, contract.flax_decode_fns(MODEL, DRAFT_PARAMS))
  output = jax.tree.map(np.asarray, output)
  for row in range(len(PROMPTS)):
    base, nudging = (x[row, : n[row]].tolist() for x, n in ((PROMPTS, LENGTHS), (others, lengths)))
    for token, nudged in zip(output.tokens[row, : output.lengths[row]], output.nudged[row]):
      logits = next_logits(nudging, DRAFT_PARAMS) if nudged else next_logits(base)
      assert token == np.argmax(logits)
      base.append(token)
      nudging.append(token)
  assert 0.2 < output.nudged.mean() < 0.9


def test_equal_models_share_a_program(generated):
  before = greedy._cache_size()
  fns = contract.flax_decode_fns(TinyLM(), DRAFT_PARAMS)
  output = greedy(fns, PROMPTS, LENGTHS)
  assert greedy._cache_size() == before
  assert np.any(output.tokens != generated.tokens)


def test_prefill_excludes_the_last_tokens():
  start = jax.jit(lambda: contract.prefill(FNS, PROMPTS, LENGTHS, max_length=9))()
  np.testing.assert_array_equal(start.tokens, PROMPTS[np.arange(5), LENGTHS - 1])
  np.testing.assert_array_equal(start.positions, LENGTHS - 1)
  logits, _ = FNS.apply(start.tokens[:, None], start.cache, start.positions[:, None])
  for row in range(5):
    expected = next_logits(PROMPTS[row, : LENGTHS[row]])
    np.testing.assert_allclose(logits[row, 0], expected, rtol=1e-4, atol=1e-5)


def test_repeated_rows_are_adjacent():
  tree = {"a": jnp.arange(4).reshape(2, 2), "b": jnp.arange(2)}
  output = contract.repeat_rows(tree, 2)
  np.testing.assert_array_equal(output["a"], [[0, 1], [0, 1], [2, 3], [2, 3]])
  np.testing.assert_array_equal(output["b"], [0, 0, 1, 1])


def test_pads_may_be_any_token_and_unknown_tokens_give_nan():
  table = contract.table_decode_fns(RNG.normal(size=(V, V)).astype(np.float32))
  for fns in (FNS, table):
    score = jax.jit(
      lambda tokens, fns=fns: contract.score_sequences(fns, tokens, LENGTHS, LENGTHS * 0)
    )
    pads = np.arange(4) >= LENGTHS[:, None]
    clean = score(PROMPTS)
    for pad in (-1, V, 10**6):
      np.testing.assert_array_equal(score(np.where(pads, pad, PROMPTS)), clean)
    tokens = PROMPTS.copy()
    tokens[0, 1], tokens[4, 1] = -1, V
    spoiled = np.asarray(score(tokens))
    np.testing.assert_array_equal(np.isnan(spoiled).any(1), [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(spoiled[1:4], clean[1:4])


def test_start_tokens_of_a_table_are_checked():
  table = np.zeros((V, V), np.float32)
  for start in (-1, V):
    with pytest.raises(ValueError, match="start_tokens must lie in"):
      samplers.markov_greedy(table, np.array([0, start]), max_new_tokens=1, eos_token_id=0)
    with pytest.raises(ValueError, match="start_tokens must lie in"):
      samplers.markov_beam_search(table, [0, start], num_beams=1, max_new_tokens=1, eos_token_id=0)


def test_token_ids():
  assert contract.as_token_ids(None) == ()
  assert contract.as_token_ids(3) == contract.as_token_ids(np.int64(3)) == (3,)
  assert contract.as_token_ids([1, 2]) == contract.as_token_ids(np.array([1, 2])) == (1, 2)
  tokens = jnp.array([[0, 1], [2, 3]])
  np.testing.assert_array_equal(contract.is_any_token(tokens, (3, 0)), [[1, 0], [0, 1]])
  assert not contract.is_any_token(tokens, ()).any()


def test_errors():
  table = np.zeros((V, V), np.float32)
  with pytest.raises(ValueError, match="transition_logits must have shape"):
    contract.table_decode_fns(table[:3])
  with pytest.raises(ValueError, match="lengths.*9"):
    contract.score_sequences(contract.table_decode_fns(table), PROMPTS, LENGTHS * 0 + 9, LENGTHS)
  with pytest.raises(ValueError, match="prompt_lengths.*-1"):
    contract.score_sequences(contract.table_decode_fns(table), PROMPTS, LENGTHS, LENGTHS * 0 - 1)
  with pytest.raises(ValueError, match="width of prompt_tokens must be at least 1, got 0"):
    contract.prefill(contract.table_decode_fns(table), PROMPTS[:, :0], LENGTHS, max_length=2)
  with pytest.raises(ValueError, match="lengths must have shape"):
    contract.score_sequences(contract.table_decode_fns(table), PROMPTS, LENGTHS[:2], LENGTHS)
