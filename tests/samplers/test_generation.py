import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.samplers import decode_fns as contract
from jaxlab.samplers import generation, token_filters

V, T = 6, 5
RNG = np.random.default_rng(0)
TABLE = (2 * RNG.normal(size=(V, V))).astype(np.float32)
FNS = contract.table_decode_fns(TABLE)
PROMPTS = RNG.integers(0, V, (7, 3)).astype(np.int32)
LENGTHS = np.array([1, 2, 3, 3, 2, 1, 2], np.int32)
STATIC = (
  "max_new_tokens",
  "top_k",
  "min_new_tokens",
  "eos_token_id",
  "stop_sequences",
  "pad_token_id",
  "return_logits",
)
sample = jax.jit(generation.generate, static_argnames=STATIC)
greedy = functools.partial(
  jax.jit(generation.generate, static_argnames=(*STATIC, "temperature")), temperature=0.0
)


def log_softmax(row):
  row = np.asarray(row, np.float64)
  return row - row.max() - np.log(np.exp(row - row.max()).sum())


def slow_generate(
  key,
  process,
  *,
  eos=(),
  stops=(),
  penalty=1.0,
  min_new_tokens=0,
  pad=0,
  num_samples=1,
):
  """One token at a time, one row at a time; `process` None is greedy."""
  num_rows = len(PROMPTS) * num_samples
  shape = (num_rows, T)
  tokens, lengths = np.full(shape, pad), np.zeros(num_rows, int)
  log_probs, sampling, logits = np.zeros(shape), np.zeros(shape), np.zeros((*shape, V))
  finished = np.zeros(num_rows, bool)
  for row in range(num_rows):
    prompt = PROMPTS[row // num_samples][: LENGTHS[row // num_samples]]
    text = list(prompt)
    for step in range(T):
      own = TABLE[text[-1]]
      scores = own.copy()
      if step < min_new_tokens:
        scores[list(eos)] = -np.inf
      for token in set(text):
        scores[token] *= penalty if scores[token] < 0 else 1 / penalty
      if process is None:
        token = int(np.argmax(scores))
      else:
        noise = jax.random.gumbel(jax.random.fold_in(key, step), (num_rows, V))[row]
        drawn_from = np.asarray(process(scores))
        token = int(np.argmax(drawn_from + noise))
        sampling[row, step] = log_softmax(drawn_from)[token]
      text.append(token)
      tokens[row, step], log_probs[row, step] = token, log_softmax(own)[token]
      logits[row, step], lengths[row] = own, step + 1
      new = text[len(prompt) :]
      if token in eos or any(new[-len(s) :] == list(s) for s in stops):
        finished[row] = True
        break
  return generation.GenerateOutput(tokens, lengths, log_probs, sampling, finished, logits)


def check(output, expected, *, logits=False):
  for name in ("tokens", "lengths", "finished"):
    np.testing.assert_array_equal(getattr(output, name), getattr(expected, name), err_msg=name)
  for name in ("log_probs", "sampling_log_probs", *(("logits",) if logits else ())):
    np.testing.assert_allclose(
      getattr(output, name), getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name
    )


def test_greedy_matches_a_slow_loop():
  options = {"eos_token_id": (4, 2), "stop_sequences": ((3, 1, 0), (2, 1)), "pad_token_id": 5}
  output = greedy(
    jax.random.key(0),
    FNS,
    PROMPTS,
    LENGTHS,
    max_new_tokens=T,
    min_new_tokens=2,
    repetition_penalty=1.4,
    return_logits=True,
    top_k=1,
    **options,
  )
  expected = slow_generate(
    None, None, eos=(4, 2), stops=((3, 1, 0), (2, 1)), penalty=1.4, min_new_tokens=2, pad=5
  )
  check(output, expected, logits=True)
  assert 0 < expected.finished.sum() < len(PROMPTS)


def test_markov_greedy_is_greedy():
  output = jax.jit(functools.partial(generation.markov_greedy, max_new_tokens=T, eos_token_id=0))(
    TABLE, PROMPTS[np.arange(7), LENGTHS - 1]
  )
  expected = slow_generate(None, None, eos=(0,))
  check(output, expected)
  assert output.logits is None
  assert expected.finished.any() and not expected.finished.all()


@pytest.fixture(scope="module")
def filtered():
  """Sampling with every option on, fast and slow."""
  key = jax.random.key(4)
  options = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.97, "top_k": 4}
  others = {"min_new_tokens": 1, "repetition_penalty": 1.2}
  output = sample(
    key,
    FNS,
    PROMPTS,
    LENGTHS,
    max_new_tokens=T,
    eos_token_id=0,
    stop_sequences=((2, 5),),
    return_logits=True,
    **options,
    **others,
  )
  process = jax.jit(functools.partial(token_filters.process_logits, **options))
  expected = slow_generate(key, process, eos=(0,), stops=((2, 5),), penalty=1.2, min_new_tokens=1)
  return output, expected


def test_sampling_matches_a_slow_loop(filtered):
  check(*filtered, logits=True)


def test_padding_follows_the_end(filtered):
  output, _ = jax.tree.map(np.asarray, filtered)
  after = np.arange(T) >= output.lengths[:, None]
  assert after.any()
  for leaf in (output.tokens, output.log_probs, output.sampling_log_probs, output.logits):
    np.testing.assert_array_equal(leaf[after], 0)
  assert (output.log_probs[~after] < 0).all()
  np.testing.assert_array_equal(output.finished, output.lengths < T)


def test_unfiltered_samples_match_a_slow_loop():
  key = jax.random.key(2)
  output = jax.jit(
    functools.partial(
      generation.generate_n, num_samples=3, max_new_tokens=T, eos_token_id=1, pad_token_id=2
    )
  )(key, FNS, PROMPTS, LENGTHS)
  assert output.tokens.shape == (7, 3, T) and output.lengths.shape == (7, 3)
  expected = slow_generate(key, lambda logits: logits, eos=(1,), pad=2, num_samples=3)
  check(jax.tree.map(lambda leaf: leaf.reshape(21, *leaf.shape[2:]), output), expected)
  np.testing.assert_array_equal(output.log_probs, output.sampling_log_probs)


def test_frequencies_are_those_of_the_processed_logits():
  num = 20_000
  options = {"temperature": 0.8, "top_k": 5, "top_p": 0.97}
  output = jax.jit(
    functools.partial(generation.generate_n, num_samples=num, max_new_tokens=1, **options)
  )(jax.random.key(0), FNS, PROMPTS[:1], LENGTHS[:1])
  counts = np.bincount(np.asarray(output.tokens).ravel(), minlength=V)
  probs = np.asarray(jax.nn.softmax(token_filters.process_logits(TABLE[PROMPTS[0, 0]], **options)))
  assert counts[probs == 0].sum() == 0 and (probs == 0).any()
  kept = probs > 0
  expected = num * np.float64(probs[kept]) / np.float64(probs[kept]).sum()
  assert scipy.stats.chisquare(counts[kept], expected).pvalue > 1e-3
  np.testing.assert_allclose(
    output.sampling_log_probs[0, :, 0], np.log(probs[output.tokens[0, :, 0]]), rtol=1e-4
  )


def test_a_row_does_not_depend_on_when_others_end():
  deterministic = np.zeros((V, V), np.float32)
  deterministic[3, 0] = 1e4  # After a 3 the row ends immediately.
  deterministic[:3, 0] = -1e4  # Else it never does.
  deterministic[1:, 3] = -1e4
  deterministic[4:, 0] = -1e4
  fns = contract.table_decode_fns(deterministic)
  tokens = []
  for neighbor in (3, 4):
    prompts = np.array([[1], [neighbor], [neighbor]], np.int32)
    output = sample(
      jax.random.key(1), fns, prompts, np.ones(3, int), max_new_tokens=T, eos_token_id=0
    )
    assert bool(output.finished[1]) == (neighbor == 3) and int(output.lengths[0]) == T
    assert np.isfinite(output.log_probs).all()
    tokens.append(np.asarray(output.tokens[0]))
  np.testing.assert_array_equal(*tokens)


def test_one_program_serves_all_parameters_and_temperatures():
  traces = []

  def apply(tokens, cache, positions):
    traces.append(tokens.shape)
    return FNS.apply(tokens, cache, positions)

  def run(key, table, prompts, temperature):
    fns = contract.DecodeFns(FNS.init_cache, apply)
    return generation.generate(
      key, fns, prompts, LENGTHS, max_new_tokens=4, temperature=temperature
    )

  run = jax.jit(run)
  for seed, temperature in enumerate((0.5, 1.0, 2.0)):
    run(jax.random.key(seed), TABLE, PROMPTS + 0 * seed, temperature)
    if seed == 0:
      first = len(traces)
  assert len(traces) == first

  before = sample._cache_size()
  for table in (TABLE, TABLE[::-1], -TABLE):
    fns = contract.table_decode_fns(table)
    sample(jax.random.key(0), fns, PROMPTS, LENGTHS, max_new_tokens=4, temperature=0.9)
  assert sample._cache_size() == before + 1


def test_eager_call_runs_no_python_loop():
  calls = []

  def apply(tokens, cache, positions):
    calls.append(tokens.shape)
    return FNS.apply(tokens, cache, positions)

  fns = contract.DecodeFns(FNS.init_cache, apply)
  counts = []
  for num in (2, 40):
    calls.clear()
    output = generation.generate(
      jax.random.key(0), fns, PROMPTS, LENGTHS, max_new_tokens=num, temperature=0.0
    )
    counts.append(len(calls))
    assert output.tokens.shape == (7, num)
  assert max(counts) <= 3


def test_prompt_is_prefilled_once():
  shapes = []

  def apply(tokens, cache, positions):
    shapes.append(tokens.shape)
    return FNS.apply(tokens, cache, positions)

  fns = contract.DecodeFns(FNS.init_cache, apply)
  jax.eval_shape(
    lambda key: generation.generate_n(
      key, fns, PROMPTS, LENGTHS, num_samples=4, max_new_tokens=3, repetition_penalty=1.1
    ),
    jax.random.key(0),
  )
  assert shapes.count((7, 2)) == 1 and set(shapes) == {(7, 2), (7, 1), (28, 1)}


def test_vmap_over_temperatures():
  temperatures = jnp.array([0.5, 1.0, 2.0])
  run = lambda t: sample(jax.random.key(5), FNS, PROMPTS, LENGTHS, max_new_tokens=3, temperature=t)  # noqa: E731
  output = jax.vmap(run)(temperatures)
  for index, temperature in enumerate(temperatures):
    check(jax.tree.map(lambda leaf, i=index: leaf[i], output), run(float(temperature)))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"max_new_tokens": 0}, "max_new_tokens.*0"),
    ({"num_samples": 0}, "num_samples.*0"),
    ({"min_new_tokens": -1}, "min_new_tokens.*-1"),
    ({"temperature": -0.5}, "temperature.*-0.5"),
    ({"top_k": 0, "temperature": 0.0}, "top_k.*0"),
    ({"top_p": 1.5}, "top_p.*1.5"),
    ({"min_p": -0.5}, "min_p.*-0.5"),
    ({"typical_p": 1.0}, "typical_p.*1.0"),
    ({"repetition_penalty": 0.0}, "penalty.*0.0"),
    ({"stop_sequences": ((1,), ())}, "stop_sequences"),
  ],
)
def test_errors(options, message):
  options = {"num_samples": 1, "max_new_tokens": 2} | options
  with pytest.raises(ValueError, match=message):
    generation.generate_n(jax.random.key(0), FNS, PROMPTS, LENGTHS, **options)


def test_prompt_errors():
  run = functools.partial(generation.generate, jax.random.key(0), FNS, max_new_tokens=1)
  for lengths in (LENGTHS - 1, LENGTHS + 1):
    with pytest.raises(ValueError, match="prompt_lengths"):
      run(PROMPTS, lengths)
  for arguments, error, message in (
    ((PROMPTS[0], LENGTHS), ValueError, "prompt_tokens must have shape"),
    ((PROMPTS, LENGTHS[:3]), ValueError, "prompt_lengths must have shape"),
    ((PROMPTS * 1.0, LENGTHS), TypeError, "prompt_tokens must be of type int"),
  ):
    with pytest.raises(error, match=message):
      run(*arguments)
