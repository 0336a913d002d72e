import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.samplers import beams as module
from jaxlab.samplers import decode_fns as contract
from jaxlab.samplers import generation

V, T = 6, 5
RNG = np.random.default_rng(0)
TABLE = (1.5 * RNG.normal(size=(V, V))).astype(np.float32)
STARTS = np.arange(V, dtype=np.int32)


def log_softmax(table):
  table = np.asarray(table, np.float64)
  return table - np.log(np.exp(table).sum(-1, keepdims=True))


def slow_beam_search(table, start, *, num_beams, eos, length_penalty, early_stopping, length=T):
  """Hypotheses in lists: (score, tokens)."""
  log_probs = log_softmax(table)
  num_candidates = max(2, 1 + len(eos)) * num_beams
  running, pool = [(0.0, ())], []
  for step in range(1, length + 1):
    candidates = [
      (score + log_probs[(start, *tokens)[-1], token], (*tokens, token))
      for score, tokens in running
      for token in range(len(table))
    ]
    candidates = sorted(candidates, key=lambda c: -c[0])[:num_candidates]
    ends = [tokens[-1] in eos or step == length for _, tokens in candidates]
    for (score, tokens), end in list(zip(candidates, ends))[:num_beams]:
      if end:
        pool.append((score / step**length_penalty, tokens))
    pool = sorted(pool, key=lambda c: -c[0])[:num_beams]
    running = [c for c, end in zip(candidates, ends) if not end][:num_beams]
    if not running:
      break
    if len(pool) == num_beams:
      reach = length if early_stopping == "never" and length_penalty > 0 else step
      if early_stopping is True or running[0][0] / reach**length_penalty <= pool[-1][0]:
        break
  return pool


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("eos", [(0,), (0, 3)])
def test_beams_match_a_slow_loop(early_stopping, eos):
  search = jax.jit(
    lambda table, penalty: module.markov_beam_search(
      table,
      STARTS,
      num_beams=3,
      max_new_tokens=T,
      eos_token_id=eos,
      pad_token_id=5,
      length_penalty=penalty,
      early_stopping=early_stopping,
    )
  )
  early = 0
  for penalty, scale in ((1.0, 1.0), (0.0, 1.0), (2.5, 0.4), (-0.5, 1.0)):
    output = search(scale * TABLE, penalty)
    for row, start in enumerate(STARTS):
      pool = slow_beam_search(
        scale * TABLE,
        start,
        num_beams=3,
        eos=eos,
        length_penalty=penalty,
        early_stopping=early_stopping,
      )
      np.testing.assert_allclose(output.scores[row], [score for score, _ in pool], rtol=1e-4)
      for beam, (_, tokens) in enumerate(pool):
        padded = [*tokens, *[5] * (T - len(tokens))]
        assert output.tokens[row, beam].tolist() == padded
        assert int(output.lengths[row, beam]) == len(tokens)
        early += len(tokens) < T
  assert early > 10


def test_one_beam_is_greedy():
  output = module.markov_beam_search(TABLE, STARTS, num_beams=1, max_new_tokens=T, eos_token_id=0)
  expected = generation.markov_greedy(TABLE, STARTS, max_new_tokens=T, eos_token_id=0)
  np.testing.assert_array_equal(output.tokens[:, 0], expected.tokens)
  np.testing.assert_array_equal(output.lengths[:, 0], expected.lengths)
  mean = expected.log_probs.sum(-1) / expected.lengths
  np.testing.assert_allclose(output.scores[:, 0], mean, rtol=1e-5)


def test_enough_beams_find_the_most_probable_sequence():
  size, length = 3, 3
  tables = RNG.normal(size=(8, size, size)).astype(np.float32)
  search = functools.partial(
    module.markov_beam_search,
    num_beams=size**length - 1,
    max_new_tokens=length,
    eos_token_id=0,
    length_penalty=0.0,
    early_stopping="never",
  )
  output = jax.jit(jax.vmap(lambda table: search(table, jnp.array([1]))))(tables)
  for row, table in enumerate(tables):
    log_probs, totals = log_softmax(table), {}
    for text in itertools.product(range(size), repeat=length):
      text = text[: text.index(0) + 1] if 0 in text else text
      totals[text] = sum(log_probs[a, b] for a, b in zip((1, *text), text))
    ranked = sorted(totals, key=totals.get, reverse=True)
    best = [*ranked[0], *[0] * (length - len(ranked[0]))]
    assert output.tokens[row, 0, 0].tolist() == best
    # All hypotheses in order; the remaining places are empty.
    scores = np.asarray(output.scores[row, 0])
    np.testing.assert_allclose(scores[: len(ranked)], [totals[t] for t in ranked], rtol=1e-4)
    assert np.isneginf(scores[len(ranked) :]).all() and len(scores) > len(ranked)
    assert not np.asarray(output.tokens[row, 0, len(ranked) :]).any()
    assert not np.asarray(output.lengths[row, 0, len(ranked) :]).any()


def test_tokens_of_probability_zero_and_one():
  table = np.full((3, 3), -np.inf, np.float32)
  table[0, 1], table[1, 2], table[2, 0] = 0.0, 1e4, -1e4
  output = module.markov_beam_search(
    table, jnp.array([0]), num_beams=2, max_new_tokens=4, eos_token_id=0
  )
  assert output.tokens[0].tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(output.scores[0], [0.0, -np.inf])
  assert output.lengths[0].tolist() == [3, 0]


def test_without_eos_all_beams_have_full_length():
  output = module.markov_beam_search(
    TABLE, STARTS, num_beams=2, max_new_tokens=3, eos_token_id=None, length_penalty=0.0
  )
  assert (output.lengths == 3).all()
  assert (output.scores[:, 0] >= output.scores[:, 1]).all()


def test_a_row_of_nan_is_nan_and_leaves_the_others_alone():
  table = TABLE.copy()
  table[:5, 5] = -1e4  # Nothing but the start leads to 5.
  clean = module.markov_beam_search(table, STARTS, num_beams=3, max_new_tokens=T, eos_token_id=None)
  table[5] = np.nan
  output = module.markov_beam_search(
    table, STARTS, num_beams=3, max_new_tokens=T, eos_token_id=None
  )
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), output, clean)
  assert np.isnan(output.scores[5]).all() and not output.lengths[5].any()


@pytest.mark.parametrize(
  "options, message",
  [
    ({"num_beams": 0}, "num_beams.*0"),
    ({"max_new_tokens": 0}, "max_new_tokens.*0"),
    ({"early_stopping": "always"}, "early_stopping.*always"),
    ({"length_penalty": np.inf}, "length_penalty.*inf"),
  ],
)
def test_errors(options, message):
  options = {"num_beams": 2, "max_new_tokens": 2, "eos_token_id": 0} | options
  with pytest.raises(ValueError, match=message):
    module.markov_beam_search(TABLE, STARTS, **options)
  with pytest.raises(ValueError, match="prompt_lengths"):
    module.beam_search(
      contract.table_decode_fns(TABLE),
      STARTS[:, None],
      np.zeros(V, int),
      num_beams=1,
      max_new_tokens=1,
      eos_token_id=0,
    )
