import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inference.rpc import __main__ as experiment
from experiments.inference.rpc import votes
from experiments.inference.rpc.styles import StyledChains
from experiments.inference.rpc.votes import (
  ABOVE,
  ALL,
  CONSISTENCY,
  DISTINCT,
  MEAN,
  PERPLEXITY,
  RPC,
  SHUFFLED,
  VOTES,
)
from jaxlab import data, metrics

STYLED = StyledChains(5, 4, True, 0.3, 0.6, 0.1, table_seed=2, style_probs=(0.7, 0.3))
CONFIDENCES = jax.jit(votes.confidences, static_argnames="num_steps")


@pytest.fixture(scope="module")
def drawn():
  @jax.jit
  def run(key, seed):
    chains = dataclasses.replace(STYLED, table_seed=seed)
    noisy, clean = chains.draw(key, 2000), chains.draw(key, 2000, clean=True)
    plain = data.modular_chain_batch(jax.random.split(key)[0], STYLED.plain, 2000)
    broken = noisy.tokens.at[:, STYLED.prompt_length + 3].set(1)
    return noisy, clean, plain, *(chains.parse(x) for x in (noisy.tokens, clean.tokens, broken))

  return jax.device_get(run(jax.random.key(0), 2))


def test_styles_come_after_results_and_are_taken_out(drawn):
  noisy, clean, plain, parsed, of_clean, of_broken = drawn
  assert noisy.tokens.shape[1] == STYLED.prompt_length + STYLED.response_length
  np.testing.assert_array_equal(parsed.steps, plain.steps)
  np.testing.assert_array_equal(parsed.answer, plain.steps[:, -1])
  np.testing.assert_array_equal(of_clean.answer, clean.answers)
  np.testing.assert_array_equal(noisy.answers, clean.answers)
  styles = noisy.tokens[:, STYLED.prompt_length + 3 :: 4]
  assert set(np.unique(styles)) == {STYLED.vocab_size - 2, STYLED.vocab_size - 1}
  assert abs(np.mean(styles == STYLED.vocab_size - 1) - 0.3) < 0.03
  np.testing.assert_array_equal(noisy.loss_mask.sum(1), STYLED.response_length)
  # Without its style a step is malformed, and so is the answer.
  assert np.all(of_broken.steps[:, 0] == -1) and np.all(of_broken.answer == -1)
  np.testing.assert_array_equal(of_broken.steps[:, 1:], parsed.steps[:, 1:])


def test_styles_must_be_probabilities():
  with pytest.raises(ValueError, match="style_probs must sum to 1"):
    StyledChains(style_probs=(0.5, 0.4))
  with pytest.raises(ValueError, match="few"):
    experiment.validate(dataclasses.replace(experiment.PRESETS["smoke"], few=8))
  with pytest.raises(ValueError, match="paths must increase"):
    paths = dataclasses.replace(experiment.PRESETS["smoke"], paths=(8, 4))
    experiment.validate(paths)


def test_methods_by_hand():
  answers = np.array([[3, 3, 5, 7, -1, 5]], np.int32)
  mean = np.log(np.array([[0.2, 0.2, 0.5, 0.4, 0.9, 0.3]], np.float32))
  ids = np.array([[0, 0, 2, 3, 4, 5]], np.int32)
  options = {"mean": mean, "total": 10 * mean, "ids": ids, "num_steps": 5}
  found = CONFIDENCES(jax.random.key(0), answers, **options)
  found = {name: np.asarray(values)[0] for name, values in found.items()}
  expected = {
    (VOTES, ALL): np.array([2, 2, 2, 1, 0, 2]) / 5,
    # Paths that do not count have no confidence.
    (VOTES, DISTINCT): np.array([1, 0, 2, 1, 0, 2]) / 4,
    (CONSISTENCY, ALL): np.array([0.4, 0.4, 0.8, 0.4, 0, 0.8]) / 1.6,
    (CONSISTENCY, DISTINCT): np.array([0.2, 0.2, 0.8, 0.4, 0, 0.8]) / 1.4,
    (PERPLEXITY, ALL): np.array([0.2, 0.2, 0.5, 0.4, 0.9, 0.3]),
    # The mean is .417: one valid path is above.
    (ABOVE, ALL): np.array([0, 0, 1, 0, 0, 0]),
    (MEAN, ALL): np.array([0, 0, 1, 0, 0, 0]),
  }
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=str(name))
  for name, values in found.items():
    if name[0] != PERPLEXITY:
      groups = [values[np.argmax(answers[0] == a)] for a in (3, 5, 7)]
      np.testing.assert_allclose(sum(groups), 1.0, rtol=1e-5, err_msg=str(name))


def test_weights_help_where_probabilities_are_ideal():
  """Paths of a model that knows the table but is unsure, as a decoder is after few updates."""
  config, rng = experiment.Config(), np.random.default_rng(0)
  num, paths, steps, modulus = 600, 8, config.num_terms - 1, config.modulus
  rate, shown, noise = config.misconception_rate, config.misconception_prob, 0.15
  shape = 3, modulus, modulus
  op, left, right = np.indices(shape)
  true = np.select([op == 0, op == 1], [left + right, left - right], left * right) % modulus
  wrong = np.where(
    rng.uniform(size=shape) < rate, (true + rng.integers(1, modulus, shape)) % modulus, true
  )
  terms, ops = rng.integers(modulus, size=(num, steps + 1)), rng.integers(3, size=(num, steps))
  target, value = terms[:, 0], np.repeat(terms[:, :1], paths, axis=1)
  total = np.zeros((num, paths))
  for i in range(steps):
    o, r = ops[:, i, None], terms[:, i + 1, None]
    target = true[o[:, 0], target, r[:, 0]]
    probs = np.full((num, paths, modulus), noise / modulus)
    for table, weight in ((wrong, shown), (true, 1 - shown)):
      np.put_along_axis(
        probs, table[o, value, r][..., None],
        np.take_along_axis(probs, table[o, value, r][..., None], -1) + (1 - noise) * weight, -1,
      )  # fmt: skip
    value = np.argmax(np.cumsum(probs, -1) > rng.uniform(size=(num, paths, 1)), axis=-1)
    styles = rng.choice(config.style_probs, p=config.style_probs, size=(num, paths))
    total += np.log(np.take_along_axis(probs, value[..., None], -1)[..., 0]) + np.log(styles)
  mean = (total / config.chains.response_length).astype(np.float32)
  ids = np.broadcast_to(np.arange(paths, dtype=np.int32), mean.shape)
  options = {"mean": mean, "total": total.astype(np.float32), "ids": ids, "num_steps": 200}

  found = CONFIDENCES(jax.random.key(0), value.astype(np.int32), **options)
  score = jax.jit(lambda x: jnp.mean(metrics.vote_accuracy(x, value, target)))
  accuracy = {name: float(score(x)) for name, x in found.items()}
  assert accuracy[RPC, ALL] > accuracy[VOTES, ALL] + 0.06
  assert accuracy[RPC, ALL] > accuracy[CONSISTENCY, ALL] + 0.01
  assert accuracy[SHUFFLED, ALL] < accuracy[VOTES, ALL] + 0.03
