import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers
from jaxlab.commands import decoders
from jaxlab.commands.decoders import Prompts

END, VOCAB, LONGEST = 0, 8, 5
RNG = np.random.default_rng(0)
TABLES = RNG.normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
MODELS = tuple(samplers.table_decode_fns(jnp.asarray(table)) for table in TABLES)
PROMPTS = Prompts(np.array([[3, 2, 0], [4, 0, 0]], np.int32), np.array([2, 1], np.int32))
ROWS = np.arange(2, dtype=np.int32)


def run(method, models, prompts=PROMPTS, **changes):
  arguments = {"num_samples": 3, "options": {}} | changes
  program = decoders.build_program(method, max_new_tokens=LONGEST, end_tokens=(END,), **arguments)
  key, pairs = jax.random.key(1), (prompts,) * (2 if method == "nudging" else 1)
  return jax.device_get(jax.jit(program)(key, models, pairs, ROWS[: len(prompts.tokens)]))


def log_prob(table, last, tokens):
  """The sum over tokens, one by one."""
  total = 0.0
  for token in tokens:
    total += table[last, token] - np.log(np.sum(np.exp(table[last])))
    last = token
  return total


def check_log_probs(draws, table=TABLES[0]):
  for i, last in enumerate((2, 4)):
    for tokens, length, score in zip(draws.tokens[i], draws.lengths[i], draws.log_probs[i]):
      assert score == pytest.approx(log_prob(table, last, tokens[:length]), abs=1e-4)


@pytest.mark.parametrize("method", decoders.FREE)
def test_samples_of_one_model(method):
  draws = run(method, MODELS[:1], options={"temperature": 0.5})
  assert draws.tokens.shape == (2, 3, LONGEST) and draws.notes == {}
  check_log_probs(draws)
  np.testing.assert_array_equal(draws.reads[0], PROMPTS.lengths + draws.lengths.sum(1))


def test_many_samples_are_drawn_in_parts(monkeypatch):
  monkeypatch.setattr(decoders, "_AT_ONCE", 2)
  draws = run("adaptive", MODELS, num_samples=5)  # Two, two, and one of two.
  assert draws.tokens.shape == (2, 5, LONGEST) and draws.notes["large_share"].shape == (2, 5)
  assert len({tuple(tokens) for tokens in draws.tokens[0]}) > 2
  of_six = draws.reads[0] - 6 * PROMPTS.lengths - draws.lengths.sum(1)
  assert np.all((of_six > 0) & (of_six <= LONGEST))
  free = run("sample", MODELS[:1], num_samples=5)
  check_log_probs(free)


@pytest.mark.parametrize("method", decoders.PAIRS)
def test_two_models(method):
  greedy = {} if method == "nudging" else {"temperature": 0.0}
  num_samples = 1 if method == "nudging" else 2
  run_it = functools.partial(run, method, num_samples=num_samples, options=greedy)
  # Of equal models the text is that of one of them.
  alone = run("sample", MODELS[:1], num_samples=num_samples, options={"temperature": 0.0})
  draws = run_it((MODELS[0], MODELS[0]))
  np.testing.assert_array_equal(draws.tokens, alone.tokens)
  np.testing.assert_allclose(draws.log_probs, alone.log_probs, rtol=1e-5)
  check_log_probs(draws)
  [(name, values)] = draws.notes.items()
  share = {"adaptive": 0, "speculative": 1}.get(method)
  assert name in ("nudged_share", "large_share", "acceptance_rate")
  assert share is None or np.all(values == share)
  if method != "speculative":
    expected = num_samples * PROMPTS.lengths + draws.lengths.sum(1)
    np.testing.assert_array_equal(draws.reads, [expected, expected])
  else:  # A call of the target reads four drafts and the token before them.
    calls = (draws.reads[0] - num_samples * PROMPTS.lengths) / 5
    np.testing.assert_array_equal(calls, -(-draws.lengths // 5).sum(1))


def test_adaptive_writes_with_the_small_model_where_it_is_sure():
  options = {"entropy_threshold": 3.0, "temperature": 0.0, "min_dwell": 1}  # 3 bits are all of 8.
  draws = run("adaptive", MODELS, num_samples=1, options=options)
  check_log_probs(draws, TABLES[1])
  assert np.all(draws.notes["large_share"] == 0)


def test_a_search_begins_at_the_end_of_padded_prompts():
  options = {"max_iterations": 3, "num_candidates": 2, "set_lengths": (1, 2)}

  def evaluate(row, tokens, length):
    del row
    odd = (tokens % 2 == 1) & (jnp.arange(LONGEST) < length)
    return 2.0 * jnp.sum(odd) / jnp.maximum(length, 1) - 1.0

  draws = run(
    "rain", MODELS[:1], Prompts(*(x[:1] for x in PROMPTS)), num_samples=1, options=options,
    clause_ends=(5,), evaluate=evaluate,
  )  # fmt: skip
  search = jax.jit(functools.partial(
    samplers.rewind_generate, max_new_tokens=LONGEST, eos_token_id=END, clause_end_ids=5,
    evaluate_fn=lambda tokens, length: evaluate(0, tokens[2:], length - 2),
    embed_fn=decoders.bag_of_tokens, **options,
  ))  # fmt: skip
  expected = search(jax.random.split(jax.random.key(1), 1)[0], MODELS[0], np.array([3, 2]))
  np.testing.assert_array_equal(draws.tokens[0, 0], expected.tokens)
  assert draws.lengths[0, 0] == expected.length
  assert draws.notes["visits"][0, 0] == expected.num_iterations
  reads = 2 + expected.num_generated + expected.num_iterations * (1 + LONGEST)
  assert draws.reads[0][0] == reads
  tokens = draws.tokens[0, 0, : draws.lengths[0, 0]]
  assert draws.log_probs[0, 0] == pytest.approx(log_prob(TABLES[0], 2, tokens), abs=1e-4)


def test_embeddings_are_alike_by_common_tokens():
  embed = jax.jit(decoders.bag_of_tokens)
  texts = [[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 9], [6, 7, 8, 9], [1, 2, 0, 0]]
  vectors = [np.asarray(embed(np.array(text), 4 - 2 * (0 in text))) for text in texts]
  unit = [vector / np.linalg.norm(vector) for vector in vectors]
  same, most, none, half = (unit[0] @ other for other in unit[1:])
  assert same == pytest.approx(1, abs=1e-5)
  assert none < half < 0.95 and none < most < 0.95
  assert np.all(np.asarray(embed(np.array(texts[0]), 0)) == 0)


def test_scores_beyond_a_vocabulary_are_left_out():
  cut = decoders.with_vocabulary(MODELS[0], 5)
  logits, _ = jax.jit(cut.apply)(np.array([[1]], np.int32), (), np.zeros((1, 1), np.int32))
  np.testing.assert_array_equal(logits[0, 0], TABLES[0, 1, :5])
