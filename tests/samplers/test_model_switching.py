import functools

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxlab.samplers import decode_fns as contract
from jaxlab.samplers import generation, model_switching, switch_control

V, T = 6, 12
RNG = np.random.default_rng(18)
SMALL = RNG.normal(size=(V, V)).astype(np.float32)
LARGE = (2 * RNG.normal(size=(V, V))).astype(np.float32)
SMALL[1] *= 6  # A prediction of low entropy.
SMALL_FNS, LARGE_FNS = map(contract.table_decode_fns, (SMALL, LARGE))
PROMPTS = RNG.integers(0, V, (6, 3)).astype(np.int32)
LENGTHS = np.array([1, 2, 3, 3, 2, 1], np.int32)
KEY = jax.random.key(3)
decode, random_decode = (
  functools.partial(function, max_new_tokens=T)
  for function in (model_switching.entropy_adaptive_decode, model_switching.random_switching_decode)
)
STATIC = ("max_new_tokens", "window", "min_dwell", "start_large", "eos_token_id", "pad_token_id")
greedy = functools.partial(
  jax.jit(model_switching.markov_entropy_adaptive_decode, static_argnames=STATIC), max_new_tokens=T
)


def slow_decode(start, window, threshold, min_dwell, start_large, eos, pad):
  """Greedy, one row; after a change the incoming model reads the text anew."""
  log_probs = [scipy.special.log_softmax(x.astype(float), axis=1) for x in (SMALL, LARGE)]
  entropies = [scipy.stats.entropy(np.exp(x), axis=1, base=2) for x in log_probs]
  text, seen, used, scores = [start], [], [], []
  large, written = start_large, 0
  while len(seen) < T:
    last = text[-1]
    used.append(large)
    seen.append(entropies[large][last])
    text.append(int(np.argmax(log_probs[large][last])))
    scores.append(log_probs[large][last].max())
    written += 1
    wanted = bool(np.mean(seen[-window:]) > threshold)
    if wanted != large and written >= min_dwell:
      large, written = wanted, 0
    if text[-1] == eos:
      break
  fill = T - len(seen)
  return (
    text[1:] + [pad] * fill,
    len(seen),
    scores + [0.0] * fill,
    used + [False] * fill,
    seen + [0.0] * fill,
  )


@pytest.mark.parametrize("window, min_dwell, start_large", [(1, 1, False), (3, 2, True)])
def test_greedy_decoding_matches_a_slow_loop(window, min_dwell, start_large):
  start = np.arange(V, dtype=np.int32)
  options = {"window": window, "min_dwell": min_dwell, "start_large": start_large}
  changes = 0
  for threshold in (1.0, 1.5):
    output = greedy(
      SMALL, LARGE, start, threshold=threshold, eos_token_id=4, pad_token_id=7, **options
    )
    output = jax.tree.map(np.asarray, output)
    for row in range(V):
      expected = slow_decode(row, threshold=threshold, eos=4, pad=7, **options)
      for name, ours, theirs in zip(output._fields, output, expected):
        np.testing.assert_allclose(ours[row], theirs, rtol=1e-4, atol=1e-5, err_msg=name)
    changes += np.abs(np.diff(output.use_large.astype(int), axis=1)).sum()
  assert changes and (output.lengths < T).any()


def test_one_model_alone_is_its_own_generation():
  options = {"max_new_tokens": T, "temperature": 0.8, "eos_token_id": 2}
  cases = (
    (SMALL_FNS, {"threshold": np.inf, "start_large": False}),
    (LARGE_FNS, {"threshold": 0.0, "start_large": True}),
  )
  for fns, control in cases:
    expected = generation.generate(KEY, fns, PROMPTS, LENGTHS, **options)
    output = decode(
      KEY, SMALL_FNS, LARGE_FNS, PROMPTS, LENGTHS, temperature=0.8, eos_token_id=2, **control
    )
    same_text(output, expected)
    is_token = np.arange(T)[None] < np.asarray(output.lengths)[:, None]
    np.testing.assert_array_equal(output.use_large, is_token & control["start_large"])


def same_text(output, expected):
  np.testing.assert_array_equal(output.tokens, expected.tokens)
  np.testing.assert_array_equal(output.lengths, expected.lengths)
  np.testing.assert_allclose(output.log_probs, expected.log_probs, rtol=1e-4, atol=1e-6)


def test_equal_models_generate_as_one_whatever_the_switching():
  options = {"temperature": 0.8, "eos_token_id": 2}
  expected = generation.generate(KEY, SMALL_FNS, PROMPTS, LENGTHS, max_new_tokens=T, **options)
  both = SMALL_FNS, SMALL_FNS
  output = decode(
    KEY, *both, PROMPTS, LENGTHS, threshold=1.5, start_large=False, window=1, min_dwell=1, **options
  )
  same_text(output, expected)
  assert 0 < np.mean(output.use_large) < 1
  for fraction in (0.0, 0.5):
    output = random_decode(
      KEY, *both, PROMPTS, LENGTHS, large_fraction=fraction, min_dwell=2, **options
    )
    same_text(output, expected)


def test_the_models_in_use_follow_the_schedule():
  options = {"threshold": 1.4, "window": 2, "min_dwell": 3, "start_large": True}
  output = decode(KEY, SMALL_FNS, LARGE_FNS, PROMPTS, LENGTHS, **options)
  expected = switch_control.switch_schedule(output.entropies, **options)
  np.testing.assert_array_equal(output.use_large, expected)
  assert 0 < np.mean(output.use_large) < 1


def test_random_segments_have_the_fraction_and_the_length():
  rows = 400
  prompts, lengths = np.zeros((rows, 1), np.int32), np.ones(rows, np.int32)
  output = random_decode(
    KEY, SMALL_FNS, LARGE_FNS, prompts, lengths, large_fraction=0.3, min_dwell=4, temperature=1.0
  )
  segments = np.asarray(output.use_large).reshape(rows, 3, 4)
  assert (segments == segments[..., :1]).all()
  share = segments[..., 0].mean()
  assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / (3 * rows))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"max_new_tokens": 0}, "max_new_tokens.*0"),
    ({"threshold": -1.0}, "threshold.*-1.0"),
    ({"window": 0}, "window.*0"),
    ({"min_dwell": 0}, "min_dwell.*0"),
    ({"temperature": -1.0}, "temperature.*-1.0"),
    ({"top_k": 0}, "top_k.*0"),
    ({"top_p": 0.0}, "top_p.*0.0"),
  ],
)
def test_errors(options, message):
  options = {"max_new_tokens": 2, "threshold": 1.0} | options
  with pytest.raises(ValueError, match=message):
    model_switching.entropy_adaptive_decode(KEY, SMALL_FNS, LARGE_FNS, PROMPTS, LENGTHS, **options)


def test_errors_of_random_switching_and_tables():
  wide = contract.table_decode_fns(np.zeros((V + 1, V + 1), np.float32))
  with pytest.raises(ValueError, match="large_fraction.*1.5"):
    model_switching.random_switching_decode(
      KEY, SMALL_FNS, LARGE_FNS, PROMPTS, LENGTHS, large_fraction=1.5, max_new_tokens=2
    )
  with pytest.raises(ValueError, match="large_logits"):
    model_switching.random_switching_decode(
      KEY, SMALL_FNS, wide, PROMPTS, LENGTHS, large_fraction=0.5, max_new_tokens=2
    )
  with pytest.raises(ValueError, match="start_tokens must lie in"):
    model_switching.markov_entropy_adaptive_decode(
      SMALL,
      LARGE,
      np.array([V]),
      max_new_tokens=2,
      threshold=1.0,
      window=1,
      min_dwell=1,
      eos_token_id=None,
    )
