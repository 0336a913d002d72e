import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.data import reasoning
from jaxlab.data.reasoning import ModularChainConfig

VERBOSE = ModularChainConfig()
TERSE = ModularChainConfig(verbose=False)


def compiled(fn, **options):
  """`fn` as one program, with results that NumPy indexes."""
  jitted = jax.jit(fn, **options)
  return lambda *args, **settings: jax.device_get(jitted(*args, **settings))


modular_chain_batch = compiled(
  reasoning.modular_chain_batch, static_argnums=(1, 2), static_argnames="clean"
)
parse_chain = compiled(reasoning.parse_chain, static_argnums=0)
check_steps = compiled(reasoning.check_steps, static_argnums=0)
multiplication_dataset = compiled(
  reasoning.multiplication_dataset, static_argnames=("num_digits", "num_train", "num_test")
)


def reduced(problem, modulus):
  """All partial results of a row of problem tokens, by a slow loop."""
  numbers, ops = [int(t) - 6 for t in problem[::2]], problem[1::2]
  value, results = numbers[0], []
  for op, number in zip(ops, numbers[1:]):
    value = {3: value + number, 4: value - number, 5: value * number}[int(op)] % modulus
    results.append(value)
  return results


@pytest.fixture(scope="module", params=[VERBOSE, TERSE], ids=["verbose", "terse"])
def chains(request):
  config = request.param
  clean, noisy = (
    modular_chain_batch(jax.random.key(0), config, 3000, clean=c) for c in (True, False)
  )
  return config, clean, noisy


def test_clean_chains_are_right_and_parse_back(chains):
  config, clean, _ = chains
  assert clean.tokens.shape == (3000, config.prompt_length + config.response_length)
  assert clean.tokens.max() < config.vocab_size and (clean.tokens[:, -1] == 2).all()
  for row, steps, answer in zip(clean.tokens[:50], clean.steps, clean.answers):
    assert row[config.prompt_length - 1] == 1
    assert reduced(row[: config.prompt_length - 1], config.modulus) == list(steps)
    assert steps[-1] == answer
  np.testing.assert_array_equal(clean.loss_mask[0], np.arange(clean.tokens.shape[1]) >= 10)
  prompts, responses = np.split(clean.tokens, [config.prompt_length], axis=1)
  parsed = parse_chain(config, responses)
  np.testing.assert_array_equal(parsed.steps, clean.steps)
  np.testing.assert_array_equal(parsed.answer, clean.answers)
  assert np.all(check_steps(config, prompts, parsed.steps))


def test_wrong_steps_occur_at_the_configured_rates(chains):
  config, clean, noisy = chains
  np.testing.assert_array_equal(noisy.answers, clean.answers)
  valid = np.asarray(check_steps(config, noisy.tokens[:, : config.prompt_length], noisy.steps))
  # The first step meets every entry of the table equally often.
  for column, share in ((0, config.misconception_rate), (1, None)):
    met = share if share is not None else noisy.num_misconceptions.mean() / valid.shape[1]
    wrong = met * config.misconception_prob * (1 - config.noise)
    wrong += config.noise * (1 - 1 / config.modulus)
    results = 1 - (valid[:, 0] if column == 0 else valid).mean()
    error = np.sqrt(wrong * (1 - wrong) / (len(valid) * (1 if column == 0 else 4)))
    assert abs(results - wrong) < 4 * error


def test_verbose_and_terse_chains_carry_the_same_steps():
  rows = [modular_chain_batch(jax.random.key(3), c, 20) for c in (VERBOSE, TERSE)]
  np.testing.assert_array_equal(rows[0].steps, rows[1].steps)
  np.testing.assert_array_equal(rows[0].tokens[:, :10], rows[1].tokens[:, :10])


def test_without_misconceptions_and_noise_chains_are_clean():
  config = dataclasses.replace(VERBOSE, misconception_rate=0.0, noise=0.0)
  key = jax.random.key(1)
  for a, b in zip(
    modular_chain_batch(key, config, 50), modular_chain_batch(key, config, 50, clean=True)
  ):
    np.testing.assert_array_equal(a, b)


def test_misconceptions_are_fixed_by_their_seed():
  same, values = jax.device_get(reasoning._misconceptions(VERBOSE))
  again, _ = reasoning._misconceptions(dataclasses.replace(VERBOSE, noise=0.5))
  other, _ = reasoning._misconceptions(dataclasses.replace(VERBOSE, table_seed=1))
  np.testing.assert_array_equal(same, again)
  assert np.any(same != other)
  assert np.sum(same) == round(0.12 * 3 * 121)
  op, left, right = np.indices(values.shape)
  true = np.select([op == 0, op == 1], [left + right, left - right], left * right) % 11
  assert np.all(values != true) and np.min(values) >= 0 and np.max(values) < 11
  always = dataclasses.replace(VERBOSE, misconception_prob=1.0, noise=0.0)
  batch = modular_chain_batch(jax.random.key(2), always, 500)
  wrong = ~np.asarray(check_steps(always, batch.tokens, batch.steps))
  np.testing.assert_array_equal(wrong.sum(1), batch.num_misconceptions)


def test_malformed_responses_are_detected():
  good = np.asarray(modular_chain_batch(jax.random.key(0), VERBOSE, 1, clean=True).tokens[0, 10:])
  rows = np.tile(good, (6, 1))
  rows[1, 5] = 3  # An operator for a result.
  rows[2, 3] = 7  # A number for an operator.
  rows[3, -1] = 7  # No end.
  rows[4, 2] = 2  # Ends early; the rest is ignored.
  rows[5, 8] = 6 + 11  # A token beyond the numbers.
  parsed = parse_chain(VERBOSE, rows)
  np.testing.assert_array_equal(
    np.asarray(parsed.steps) == -1,
    [
      [False] * 4,
      [False, True, False, False],
      [False, True, False, False],
      [False] * 4,
      [True] * 4,
      [False, False, True, False],
    ],
  )
  assert parsed.answer[0] >= 0 and np.all(parsed.answer[1:] == -1)
  short = parse_chain(VERBOSE, rows[:1, :6])
  np.testing.assert_array_equal(np.asarray(short.steps) == -1, [[False, False, True, True]])
  long = parse_chain(VERBOSE, np.pad(rows[:1], ((0, 0), (0, 3)), constant_values=9))
  np.testing.assert_array_equal(long.steps, parsed.steps[:1])


def test_a_step_after_a_malformed_one_is_not_right():
  batch = modular_chain_batch(jax.random.key(0), VERBOSE, 4, clean=True)
  steps = np.where(np.arange(4) == 1, -1, batch.steps)
  result = check_steps(VERBOSE, batch.tokens, steps)
  np.testing.assert_array_equal(result, [[True, False, False, True]] * 4)


def test_products_of_narrow_integers_do_not_overflow():
  config = dataclasses.replace(TERSE, modulus=97)
  batch = modular_chain_batch(jax.random.key(0), config, 8, clean=True)
  assert check_steps(config, np.uint8(batch.tokens), np.int8(batch.steps)).all()


def test_jit_does_not_change_chains():
  jitted = modular_chain_batch(jax.random.key(5), TERSE, 8)
  for a, b in zip(jitted, reasoning.modular_chain_batch(jax.random.key(5), TERSE, 8)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("name", "value"),
  [("modulus", 1), ("num_terms", 1), ("misconception_rate", 1.5), ("noise", -0.1)],
)
def test_bad_chain_settings_raise(name, value):
  with pytest.raises(ValueError, match=f"{name}.*{value}"):
    ModularChainConfig(**{name: value})


def test_bad_batch_arguments_raise():
  with pytest.raises(ValueError, match="batch_size.*0"):
    modular_chain_batch(jax.random.key(0), VERBOSE, 0)
  with pytest.raises(TypeError, match="response_tokens must be of type int, got float32"):
    parse_chain(VERBOSE, np.zeros((2, 9), np.float32))
  with pytest.raises(ValueError, match=r"steps must have shape \[b, 4\] with b = 2, got \[3, 4\]"):
    check_steps(VERBOSE, np.zeros((2, 10), int), np.zeros((3, 4), int))
  with pytest.raises(ValueError, match="prompt_tokens.*10.*9"):
    check_steps(VERBOSE, jnp.zeros((2, 9), jnp.int32), jnp.zeros((2, 4), jnp.int32))


@pytest.mark.parametrize("num_digits", [1, 2])
def test_products_are_right_and_disjoint(num_digits):
  sizes = {"num_train": 40, "num_test": 30}
  results = multiplication_dataset(jax.random.key(0), num_digits=num_digits, **sizes)
  d, seen = num_digits, set()
  for batch, size in zip(results, sizes.values()):
    assert batch.tokens.shape == (size, 4 * d + 3)
    for row, mask, length, answer in zip(*map(np.asarray, batch)):
      text = "".join({1: "=", 2: "$", 3: "x"}.get(t, str(t - 4)) for t in row.tolist())
      problem, response = text.split("=")
      left, right = problem.split("x")
      assert left[0] != "0" and right[0] != "0" and len(left) == len(right) == d
      assert int(left) * int(right) == answer and response == f"{answer:0{2 * d}d}$"
      assert length == 2 * d + 2
      np.testing.assert_array_equal(mask, np.arange(len(row)) >= length)
      seen.add(problem)
  assert len(seen) == 70


@pytest.mark.parametrize("num_train", [40, 41])
def test_mirrored_products_are_on_the_same_side(num_train):
  sizes = {"num_train": num_train, "num_test": 39}
  results = multiplication_dataset(jax.random.key(1), num_digits=1, **sizes)
  train, test = ({(row[0], row[2]) for row in np.asarray(part.tokens)} for part in results)
  assert len(train) == num_train and len(test) == 39
  assert not {(b, a) for a, b in train} & test


def test_all_products_can_be_drawn_but_no_more():
  whole = multiplication_dataset(jax.random.key(0), num_digits=1, num_train=81, num_test=0)
  assert len(np.unique(whole.train.tokens, axis=0)) == 81 and whole.test.tokens.shape == (0, 7)
  with pytest.raises(ValueError, match="81 pairs.*80 [+] 2"):
    reasoning.multiplication_dataset(jax.random.key(0), num_digits=1, num_train=80, num_test=2)
  with pytest.raises(ValueError, match="num_digits.*5"):
    reasoning.multiplication_dataset(jax.random.key(0), num_digits=5, num_train=1, num_test=1)
  with pytest.raises(ValueError, match="num_test.*-1"):
    reasoning.multiplication_dataset(jax.random.key(0), num_train=1, num_test=-1)
