import functools
import math

import jax
import numpy as np
import pytest
import scipy.stats

from jaxlab.samplers import decode_fns as contract
from jaxlab.samplers import generation, speculative, token_filters

V = 5
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(V, V)).astype(np.float32) * 1.5
DRAFT = RNG.normal(size=(V, V)).astype(np.float32)
TARGET_FNS, DRAFT_FNS = map(contract.table_decode_fns, (TABLE, DRAFT))
PROMPTS = RNG.integers(0, V, (6, 3)).astype(np.int32)
LENGTHS = np.array([1, 2, 3, 3, 2, 1], np.int32)
STATIC = ("num_draft_tokens", "max_new_tokens", "top_k", "eos_token_id", "pad_token_id")
decode = jax.jit(speculative.speculative_decode, static_argnames=STATIC)
greedy = functools.partial(
  jax.jit(speculative.speculative_decode, static_argnames=(*STATIC, "temperature")),
  temperature=0.0,
)
verify = jax.jit(speculative.speculative_verify)


def random_probs(*shape):
  probs = RNG.dirichlet(np.full(V, 0.5), shape)
  return probs.astype(np.float32)


def test_accepted_plus_residual_mass_equals_the_target():
  """For every draft token, evaluates the verdict on both sides of its threshold."""
  draft, target = random_probs(40), random_probs(40, 2)
  p, q = target[:, 0].astype(np.float64), draft.astype(np.float64)
  accept = np.minimum(1.0, p / q)
  mass = np.zeros_like(p)
  for token in range(V):
    tokens = np.full((40, 1), token)
    call = lambda u, tokens=tokens: verify(tokens, draft[:, None], target, u[:, None])  # noqa: E731
    below = call(np.float32(accept[:, token] * (1 - 1e-5)))
    np.testing.assert_array_equal(below.num_accepted, 1)
    np.testing.assert_allclose(below.next_token_probs, target[:, 1], rtol=1e-6)
    above = call(np.float32(accept[:, token] * (1 + 1e-5)))
    rejects = accept[:, token] < 0.999
    np.testing.assert_array_equal(np.asarray(above.num_accepted)[rejects], 0)
    mass[:, token] += q[:, token] * accept[:, token]
    rest = np.where(rejects[:, None], above.next_token_probs, 0.0)
    mass += (q[:, token] * (1 - accept[:, token]))[:, None] * rest
  np.testing.assert_allclose(mass, p, atol=1e-5)


def test_verdict_matches_a_slow_loop():
  num_drafts = 3
  draft, target = random_probs(30, num_drafts), random_probs(30, num_drafts + 1)
  tokens = RNG.integers(0, V, (30, num_drafts))
  uniforms = RNG.random((30, num_drafts)).astype(np.float32)
  output = verify(tokens, draft, target, uniforms)
  for row in range(30):
    accepted = 0
    while accepted < num_drafts:
      token = tokens[row, accepted]
      if uniforms[row, accepted] >= min(
        1, target[row, accepted, token] / draft[row, accepted, token]
      ):
        break
      accepted += 1
    probs = target[row, accepted]
    if accepted < num_drafts:
      probs = np.maximum(probs - draft[row, accepted], 0)
    assert int(output.num_accepted[row]) == accepted
    np.testing.assert_allclose(output.next_token_probs[row], probs / probs.sum(), rtol=1e-5)
  assert len(set(output.num_accepted.tolist())) == num_drafts + 1


def test_draft_equal_to_the_target_is_always_accepted():
  probs = random_probs(4, 2)
  bonus = np.concatenate([probs, probs[:, :1]], axis=1)
  tokens = np.argmax(probs, -1)
  output = verify(tokens, probs, bonus, np.full((4, 2), np.nextafter(1, 0, dtype=np.float32)))
  np.testing.assert_array_equal(output.num_accepted, 2)
  # After a rejection by rounding the difference is 0 everywhere: the target itself is drawn from.
  rejected = verify(tokens, probs, bonus, np.ones((4, 2), np.float32))
  np.testing.assert_array_equal(rejected.num_accepted, 0)
  np.testing.assert_allclose(rejected.next_token_probs, probs[:, 0], rtol=1e-6)


@pytest.mark.parametrize("num_draft_tokens", [1, 3])
def test_greedy_output_does_not_depend_on_the_draft(num_draft_tokens):
  options = {"max_new_tokens": 8, "eos_token_id": (0, 2), "pad_token_id": 4}
  expected = generation.generate(None, TARGET_FNS, PROMPTS, LENGTHS, temperature=0.0, **options)
  for draft in (DRAFT, TABLE, -TABLE):
    output = greedy(
      jax.random.key(0),
      TARGET_FNS,
      contract.table_decode_fns(draft),
      PROMPTS,
      LENGTHS,
      num_draft_tokens=num_draft_tokens,
      **options,
    )
    np.testing.assert_array_equal(output.tokens, expected.tokens)
    np.testing.assert_array_equal(output.lengths, expected.lengths)
    np.testing.assert_allclose(output.log_probs, expected.log_probs, rtol=1e-4, atol=1e-6)
    calls = np.asarray(output.num_target_calls)
    assert (calls >= np.ceil(np.asarray(output.lengths) / (num_draft_tokens + 1))).all()
    assert (calls <= output.lengths).all()
  assert expected.finished.sum() > 0


def test_equal_draft_needs_the_fewest_calls():
  gamma, length = 3, 10
  output = decode(
    jax.random.key(3),
    TARGET_FNS,
    TARGET_FNS,
    PROMPTS,
    LENGTHS,
    num_draft_tokens=gamma,
    max_new_tokens=length,
    temperature=1.3,
    top_p=0.95,
  )
  calls = math.ceil(length / (gamma + 1))
  np.testing.assert_array_equal(output.num_target_calls, calls)
  np.testing.assert_array_equal(output.num_accepted, gamma * calls)
  np.testing.assert_array_equal(output.lengths, length)


@pytest.fixture(scope="module")
def many():
  num, options = 20_000, {"temperature": 0.9, "top_k": 4}
  output = decode(
    jax.random.key(0),
    TARGET_FNS,
    DRAFT_FNS,
    np.ones((num, 1), np.int32),
    np.ones(num, np.int32),
    num_draft_tokens=2,
    max_new_tokens=4,
    **options,
  )
  probs = jax.nn.softmax(token_filters.process_logits(TABLE, **options), axis=-1)
  return jax.tree.map(np.asarray, output), np.asarray(probs, np.float64)


def test_each_token_has_the_target_distribution(many):
  output, probs = many
  law = np.eye(V)[1]
  for column in range(4):
    law = law @ probs
    counts = np.bincount(output.tokens[:, column], minlength=V)
    kept = law > 0
    assert counts[~kept].sum() == 0
    expected = len(output.tokens) * law[kept] / law[kept].sum()
    assert scipy.stats.chisquare(counts[kept], expected).pvalue > 1e-3, column
  assert 0 < output.num_accepted.mean() / (2 * output.num_target_calls.mean()) < 0.95


def test_pairs_of_tokens_have_the_target_distribution(many):
  output, probs = many
  counts = np.zeros((V, V))
  np.add.at(counts, (output.tokens[:, 0], output.tokens[:, 1]), 1)
  law = probs[1][:, None] * probs
  kept = law > 1e-4
  expected = counts[kept].sum() * law[kept] / law[kept].sum()
  assert scipy.stats.chisquare(counts[kept], expected).pvalue > 1e-3


def test_log_probs_are_those_of_the_target(many):
  output, _ = many
  tokens = np.concatenate([np.ones((len(output.tokens), 1), int), output.tokens], axis=1)
  log_probs = np.asarray(jax.nn.log_softmax(TABLE))
  np.testing.assert_allclose(output.log_probs, log_probs[tokens[:, :-1], tokens[:, 1:]], rtol=1e-4)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"num_draft_tokens": 0}, "num_draft_tokens.*0"),
    ({"max_new_tokens": 0}, "max_new_tokens.*0"),
    ({"temperature": -1.0}, "temperature.*-1.0"),
    ({"top_k": 0}, "top_k.*0"),
    ({"top_p": 0.0}, "top_p.*0.0"),
    ({"min_p": 1.1}, "min_p.*1.1"),
    ({"typical_p": 0.0}, "typical_p.*0.0"),
  ],
)
def test_errors(options, message):
  options = {"max_new_tokens": 2} | options
  with pytest.raises(ValueError, match=message):
    speculative.speculative_decode(
      jax.random.key(0), TARGET_FNS, DRAFT_FNS, PROMPTS, LENGTHS, **options
    )


def test_mismatched_shapes_raise():
  with pytest.raises(ValueError, match=r"target_probs must have shape \[2, 4, 5\]"):
    verify(np.zeros((2, 3), int), random_probs(2, 3), random_probs(2, 3), np.zeros((2, 3)))
  wide = contract.table_decode_fns(np.zeros((V + 1, V + 1), np.float32))
  with pytest.raises(ValueError, match="draft_logits"):
    speculative.speculative_decode(
      jax.random.key(0), TARGET_FNS, wide, PROMPTS, LENGTHS, max_new_tokens=2
    )


def test_nan_and_unknown_tokens_show_in_their_rows():
  draft, target = np.array(random_probs(5, 2)), np.array(random_probs(5, 3))
  tokens = np.zeros((5, 2), np.int32)
  uniforms = np.full((5, 2), 1e6)  # Rejects the first token.
  clean = verify(tokens, draft, target, uniforms)
  draft[1, 0, 3], target[2, 0, 4] = np.nan, np.nan  # Neither is the probability of a draft token.
  tokens[3, 0], tokens[4, 0] = -1, V
  spoiled = verify(tokens, draft, target, uniforms)
  np.testing.assert_array_equal(np.isnan(spoiled.next_token_probs).any(1), [0, 1, 1, 1, 1])
  np.testing.assert_array_equal(spoiled.next_token_probs[0], clean.next_token_probs[0])
  with pytest.raises(ValueError, match="draft_tokens must lie in"):
    speculative.speculative_verify(tokens, draft, target, uniforms)
