import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.alignment.pass_at_n import chains, products
from experiments.alignment.pass_at_n.__main__ import PRESETS, Config
from jaxlab import data
from jaxlab.experiment import Results

SMOKE = PRESETS["smoke"]


def test_pass_at_n_is_one_minus_the_chance_that_all_fail():
  probs = np.array([[0.3, 1e-4, 1.0], [0.5, 0.5, 0.1]])
  for n in (1.0, 16.0):
    expected = (1 - (1 - probs) ** n).mean(1)
    passes = jax.jit(functools.partial(products.exact_pass_at_n, num_samples=n))
    np.testing.assert_allclose(passes(np.log(probs)), expected, rtol=1e-5)


def test_problems_of_products_are_disjoint():
  train, fresh = jax.jit(lambda: products.problems(SMOKE))()
  assert len(train.answers) == 16 and fresh.answers.shape == (2, 6)
  rows = np.concatenate([train.tokens, *fresh.tokens])
  assert len(np.unique(rows, axis=0)) == 28


def test_epoch_and_temperature_are_chosen_on_validation():
  # Two epochs at temperatures 1 and 2, each for two numbers of samples. Of validation problems the
  # second epoch is best at 2, the first at 1.
  validation, test = (
    np.tile(np.array([[[values] for values in epoch] for epoch in epochs])[None], 2)
    for epochs in ([[0.2, 0.1], [0.1, 0.4]], [[0.3, 0.5], [0.6, 0.7]])
  )
  passes = np.stack([validation, test], axis=-2)
  values = {"pass@N": passes, "overconfidence": np.array([0.1])}
  results = Results()
  products.add_records(SMOKE, results, {n: values for n in (1, 4)})
  for n, method in ((1, "cross-entropy"), (4, "coverage loss")):
    where = {"method": method, "train_samples": n, "test_samples": 4}
    for chosen, expected in (("nothing", 60), ("epoch", 30), ("epoch and temperature", 70)):
      value = results.select("pass@N", **where, chosen=chosen)
      np.testing.assert_allclose(value, [expected], rtol=1e-6)
    assert results.select("chosen/epoch", **where, chosen="epoch") == [1]
    both = {"chosen": "epoch and temperature", **where}
    assert results.select("chosen/epoch", **both) == [2]
    assert results.select("chosen/temperature", **both) == [2.0]
    by_epoch = [results.select("pass@N by epoch", **where, epoch=epoch) for epoch in (1, 2)]
    np.testing.assert_allclose(np.concatenate(by_epoch), [30, 60], rtol=1e-6)
  np.testing.assert_allclose(results.select("overconfidence", train_samples=4), [10])


class Oracle:
  """A model of terse chains that knows the right step, and gives it the first place or the last."""

  def __init__(self, config, misled):
    self.config, self.misled = config, misled

  def apply(self, variables, tokens):
    del variables
    first = self.config.prompt_length
    problem = tokens[0, :first]
    rows = jnp.tile(problem, (self.config.modulus, 1))
    logits = jnp.full((tokens.shape[1], self.config.vocab_size), -jnp.inf)
    for depth in range(self.config.num_terms - 1):
      steps = jnp.tile(tokens[0, first : first + self.config.num_terms - 1] - 6, (len(rows), 1))
      steps = steps.at[:, depth].set(jnp.arange(self.config.modulus))
      valid = data.check_steps(self.config, rows, steps)[:, depth]
      scores = jnp.where(valid, 0.0, 50.0 if self.misled else -50.0)
      logits = logits.at[first - 1 + depth, 6:].set(scores)
    return types.SimpleNamespace(logits=logits[None])


@pytest.mark.parametrize(
  ("misled", "branching", "solved"), [(False, 1, True), (True, 4, False), (True, 5, True)]
)
def test_search_follows_verified_steps(misled, branching, solved):
  config = dataclasses.replace(SMOKE, branching=branching, num_expansions=8)
  terse = data.ModularChainConfig(modulus=5, num_terms=3, verbose=False)
  search = functools.partial(chains.search, config, terse, Oracle(terse, misled), None)

  @jax.jit
  def search_all(key):
    batch = data.modular_chain_batch(key, terse, 4, clean=True)
    return jax.vmap(search)(jax.random.split(key, 4), batch.tokens)

  np.testing.assert_array_equal(search_all(jax.random.key(0)), [solved] * 4)


def test_answers_may_be_right_without_a_proof(monkeypatch):
  wrong = data.ModularChainConfig(modulus=3, num_terms=3, noise=0.5)
  texts = jax.jit(lambda key: data.modular_chain_batch(key, wrong, 60))(jax.random.key(0))
  responses = texts.tokens[:, None, wrong.prompt_length :]
  drawn = types.SimpleNamespace(tokens=responses)
  monkeypatch.setattr(chains.samplers, "generate_n", lambda *args, **kwargs: drawn)
  config = dataclasses.replace(SMOKE, num_problems=60, num_judged=60, rollout_chunk=60)

  @jax.jit
  def sample(problems):
    key = jax.random.key(0)
    hits = chains.sample_right(config, wrong, None, None, problems, key, num_samples=1)
    valid = data.check_steps(wrong, problems.tokens[:, : wrong.prompt_length], problems.steps)
    return hits[chains.ANSWERS][:, 0], hits[chains.PROOFS][:, 0], jnp.all(valid, axis=1)

  answered, proven, valid = map(np.asarray, sample(texts))
  np.testing.assert_array_equal(answered, np.equal(texts.steps[:, -1], texts.answers))
  np.testing.assert_array_equal(proven, valid)
  assert np.any(answered & ~valid) and not np.all(answered)
  # A text always reaches the answer that it teaches.
  assert np.all(sample(texts._replace(answers=np.asarray(texts.steps)[:, -1]))[0])


@pytest.mark.parametrize(
  ("success", "expected"), [([0.0, 0.5, 0.05], {0, 2}), ([0.5, 0.9], {0, 1})]
)
def test_batches_are_full_of_what_is_rarely_reached(success, expected):
  draw = jax.jit(lambda key, success: chains.rare_rows(key, success, 0.1, (4, 25)))
  rows = draw(jax.random.key(0), np.array(success))
  assert rows.shape == (4, 25) and set(np.unique(rows).tolist()) == expected


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"judged_samples": 3}, "samples must hold 1 and 3"),
    ({"temperatures": (0.5,)}, "temperatures must hold 1.0"),
  ],
)
def test_settings_that_do_not_go_together(changed, words):
  with pytest.raises(ValueError, match=words):
    Config(**changed)
