import functools

import jax
import numpy as np
import pytest
import scipy.special

from jaxlab.samplers import decode_fns as contract
from jaxlab.samplers import generation, guided_decoding

V, T, EOS, PAD = 6, 10, 4, 7
RNG = np.random.default_rng(3)
# Rows of the base model are certain to different degrees.
BASE = (RNG.normal(size=(V, V)) * np.array([0.5, 3, 1, 2, 1, 4])[:, None]).astype(np.float32)
NUDGING = (2 * RNG.normal(size=(V, V))).astype(np.float32)
BASE_FNS, NUDGING_FNS = map(contract.table_decode_fns, (BASE, NUDGING))
PROMPTS, OTHERS = RNG.integers(0, V, (2, 8, 3)).astype(np.int32)
LENGTHS, OTHER_LENGTHS = RNG.integers(1, 4, (2, 8)).astype(np.int32)
WORD_START = np.array([True, False, True, True, True, False])
STATIC = ("max_new_tokens", "eos_token_id", "pad_token_id")
decode = functools.partial(
  jax.jit(guided_decoding.nudged_decode, static_argnames=STATIC),
  max_new_tokens=T,
  eos_token_id=EOS,
  pad_token_id=PAD,
)
proxy = jax.jit(guided_decoding.proxy_tuning_log_probs)
ensemble = jax.jit(guided_decoding.ensemble_log_probs)
needs_nudge = jax.jit(guided_decoding.needs_nudge)


def slow_decode(base_last, nudging_last, threshold, word_start):
  """One row, from the last tokens of both prompts."""
  tokens, nudged, mode = [], [], "nudge"
  while len(tokens) < T and (not tokens or tokens[-1] != EOS):
    base_last, nudging_last = (tokens[-1], tokens[-1]) if tokens else (base_last, nudging_last)
    top = scipy.special.softmax(BASE[base_last].astype(float)).max()
    ours, theirs = int(np.argmax(BASE[base_last])), int(np.argmax(NUDGING[nudging_last]))
    if mode == "base":
      mode = "nudge" if top < threshold else "base"
    elif tokens and word_start[theirs] and (ours == theirs or top >= threshold):
      mode = "base"
    if ours == EOS:
      mode = "nudge"
    tokens.append(ours if mode == "base" else theirs)
    nudged.append(mode == "nudge")
  fill = T - len(tokens)
  return tokens + [PAD] * fill, len(tokens), nudged + [False] * fill


@pytest.mark.parametrize("word_start", [np.ones(V, bool), WORD_START])
def test_nudging_matches_a_slow_loop(word_start):
  both = PROMPTS, LENGTHS, OTHERS, OTHER_LENGTHS
  shares = []
  for threshold in (0.2, 0.4, 0.6, 0.9):
    output = decode(
      BASE_FNS, NUDGING_FNS, *both, top_prob_threshold=threshold, word_start=word_start
    )
    output = jax.tree.map(np.asarray, output)
    for row in range(8):
      last = PROMPTS[row, LENGTHS[row] - 1], OTHERS[row, OTHER_LENGTHS[row] - 1]
      expected = slow_decode(*last, threshold, word_start)
      for name, ours, theirs in zip(output._fields, output, expected):
        np.testing.assert_array_equal(ours[row], theirs, err_msg=name)
    assert output.nudged[:, 0].all()
    shares.append(output.nudged.sum() / output.lengths.sum())
  assert shares[0] < shares[-1] and len(set(output.lengths.tolist())) > 1


def test_no_mask_means_that_every_token_is_a_word():
  both = PROMPTS, LENGTHS, OTHERS, OTHER_LENGTHS
  output = decode(BASE_FNS, NUDGING_FNS, *both)
  expected = decode(BASE_FNS, NUDGING_FNS, *both, word_start=np.ones(V, bool))
  jax.tree.map(np.testing.assert_array_equal, output, expected)


def test_a_threshold_of_zero_leaves_all_but_the_first_token_to_the_base():
  both = PROMPTS, LENGTHS, PROMPTS, LENGTHS
  output = jax.tree.map(np.asarray, decode(BASE_FNS, NUDGING_FNS, *both, top_prob_threshold=0.0))
  is_token = np.arange(1, T)[None] < output.lengths[:, None]
  last = output.tokens[:, :-1]
  ours, theirs = (np.argmax(x, axis=1)[np.minimum(last, V - 1)] for x in (BASE, NUDGING))
  replaced = ours == EOS
  np.testing.assert_array_equal(output.nudged[:, 1:][is_token], replaced[is_token])
  np.testing.assert_array_equal(
    output.tokens[:, 1:][is_token], np.where(replaced, theirs, ours)[is_token]
  )


def test_a_threshold_of_one_nudges_wherever_the_models_disagree():
  output = decode(BASE_FNS, NUDGING_FNS, PROMPTS, LENGTHS, PROMPTS, LENGTHS, top_prob_threshold=1.0)
  own = generation.generate(
    None, NUDGING_FNS, PROMPTS, LENGTHS, max_new_tokens=T, temperature=0.0, eos_token_id=EOS
  )
  is_token = np.arange(T)[None] < np.asarray(output.lengths)[:, None]
  # A token of the base after a hand-over by agreement is the nudging model's as well.
  np.testing.assert_array_equal(
    np.asarray(output.tokens)[is_token], np.asarray(own.tokens)[is_token]
  )


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_identical_models_decode_greedily(threshold):
  expected = generation.generate(
    None,
    BASE_FNS,
    PROMPTS,
    LENGTHS,
    max_new_tokens=T,
    temperature=0.0,
    eos_token_id=EOS,
    pad_token_id=PAD,
  )
  output = decode(
    BASE_FNS, BASE_FNS, PROMPTS, LENGTHS, PROMPTS, LENGTHS, top_prob_threshold=threshold
  )
  np.testing.assert_array_equal(output.tokens, expected.tokens)
  np.testing.assert_array_equal(output.lengths, expected.lengths)


def test_tables_are_prompts_of_one_token():
  start = np.arange(V, dtype=np.int32)
  markov = jax.jit(guided_decoding.markov_nudged_decode, static_argnames=STATIC)
  output = markov(BASE, NUDGING, start, max_new_tokens=T, eos_token_id=EOS, pad_token_id=PAD)
  for row in range(V):
    expected = slow_decode(row, row, 0.4, np.ones(V, bool))
    for ours, theirs in zip(output, expected):
      np.testing.assert_array_equal(np.asarray(ours)[row], theirs)


def test_uncertainty_is_strictly_below_the_threshold():
  logits = np.log(np.array([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.9, 0.1, 0.0]]) + 1e-30)
  logits = logits.astype(np.float32)
  np.testing.assert_array_equal(needs_nudge(logits, top_prob_threshold=0.45), [True, False, False])
  uniform = np.zeros((3, 4), np.float32)
  assert not needs_nudge(uniform, top_prob_threshold=0.25).any()
  logits[1, 2] = np.nan
  assert not needs_nudge(logits)[1]


def test_proxy_tuning_shifts_by_the_small_models():
  base, aligned, small = RNG.normal(size=(3, 4, V)).astype(np.float32)
  log = functools.partial(scipy.special.log_softmax, axis=1)
  expected = log(log(base) + log(aligned) - log(small))
  np.testing.assert_allclose(proxy(base, aligned, small), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(proxy(base, small, small), log(base), rtol=1e-5, atol=1e-6)


def test_ensemble_is_the_mean_distribution():
  first, second = RNG.normal(size=(2, 4, V)).astype(np.float32)
  probs = [scipy.special.softmax(x, axis=1) for x in (first, second)]
  np.testing.assert_allclose(np.exp(ensemble(first, second)), np.mean(probs, axis=0), rtol=1e-5)
  same = scipy.special.log_softmax(first, axis=1)
  np.testing.assert_allclose(ensemble(first, first), same, rtol=1e-5, atol=1e-6)


def test_masked_tokens_and_extremes_are_finite():
  first, second, third = RNG.choice([-1e4, 0.0, 1e4], (3, 4, V)).astype(np.float32)
  first[:, 0], second[:, 0], third[:, :2] = -np.inf, -np.inf, -np.inf
  for function, args, masked in (
    (guided_decoding.ensemble_log_probs, (first, second), 1),
    (guided_decoding.proxy_tuning_log_probs, (first, second, third), 2),
  ):
    total = lambda args, f=function: f(*args)[:, 2:].sum()  # noqa: E731
    result, gradient = jax.jit(lambda args, f=function, t=total: (f(*args), jax.grad(t)(args)))(
      args
    )
    assert (np.asarray(result)[:, :masked] == -np.inf).all()
    assert np.isfinite(np.asarray(result)[:, masked:]).all()
    assert all(np.isfinite(leaf).all() for leaf in gradient)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"top_prob_threshold": 1.1}, r"top_prob_threshold must lie in \[0, 1\], got 1.1"),
    ({"base_prompt_lengths": LENGTHS + 3}, "base_prompt_lengths must lie"),
    ({"nudging_prompt_tokens": PROMPTS[:, :0]}, "the width of nudging_prompt_tokens"),
    ({"word_start": np.ones(V + 1, bool)}, "word_start must have shape"),
    ({"nudging_fns": contract.table_decode_fns(np.zeros((V + 1, V + 1)))}, "nudging_logits"),
    (
      {"nudging_prompt_tokens": PROMPTS[:2], "nudging_prompt_lengths": LENGTHS[:2]},
      "nudging_prompt_lengths must have shape",
    ),
  ],
)
def test_errors(changes, message):
  given = {
    "base_fns": BASE_FNS,
    "nudging_fns": NUDGING_FNS,
    "base_prompt_tokens": PROMPTS,
    "base_prompt_lengths": LENGTHS,
    "nudging_prompt_tokens": PROMPTS,
    "nudging_prompt_lengths": LENGTHS,
    "max_new_tokens": 2,
    "eos_token_id": EOS,
  }
  with pytest.raises(ValueError, match=message):
    guided_decoding.nudged_decode(**(given | changes))


def test_other_errors():
  with pytest.raises(ValueError, match="top_prob_threshold.*-0.1"):
    guided_decoding.needs_nudge(BASE, top_prob_threshold=-0.1)
  with pytest.raises(ValueError, match="base_small_logits must have shape"):
    guided_decoding.proxy_tuning_log_probs(BASE, BASE, BASE[:2])
  with pytest.raises(ValueError, match="start_tokens must lie in"):
    guided_decoding.markov_nudged_decode(
      BASE, NUDGING, np.array([V]), max_new_tokens=2, eos_token_id=None
    )
