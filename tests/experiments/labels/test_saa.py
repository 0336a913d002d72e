"""Grades of noise, and whose views are pasted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import datasets
from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Split
from experiments.labels.saa import __main__ as saa
from experiments.labels.saa import grades, methods
from experiments.labels.saa.__main__ import Config
from jaxlab import algorithms
from jaxlab.experiment import Results, check_claims

RNG = np.random.default_rng(0)
CONFIG = Config(start_step=2, refresh_every=2, history_decay=0.0, threshold=0.4)


def test_half_of_the_signals_have_either_grade():
  config = Config(
    noise_grades=(0.0, 50.0),
    num_shots=(2,),
    num_unlabeled=(40,),
    num_validation=20,
    num_test=(20,),
    datasets=("mnist1d",),
  )
  parts = grades.draw(config, 0, 1)
  assert [len(part.labels) for part in parts] == [20, 40, 20, 20]
  np.testing.assert_array_equal(np.bincount(parts.labeled.labels), np.full(10, 2))
  for part in parts:
    rough = np.abs(np.diff(part.inputs[..., 0], n=2)).mean(1)
    low, high = np.split(rough, 2)
    assert low.max() < high.min()
  again = grades.draw(config, 0, 2)
  assert not np.array_equal(again.labeled.inputs, parts.labeled.inputs)


def test_chosen_rows_match_a_loop():
  num, low = 12, np.arange(12) % 2 == 0
  losses = np.where(low, 0.01, 2 + RNG.uniform(-0.5, 0.5, 12)).astype(np.float32)

  @jax.jit
  def run(choice):
    adaptive = methods.chosen_rows(CONFIG, jax.random.key(0), num, choice)

    def step(state, i):
      order = jnp.roll(jnp.arange(num), i)
      # From step 4 on the losses of all rows are exchanged.
      values = jnp.where(i < 4, jnp.asarray(losses), jnp.asarray(losses)[::-1])
      state = adaptive.update(state, order, values[order])
      return state, state

    return jax.lax.scan(step, adaptive.init(), jnp.arange(6))[1]

  found = [jax.device_get(run(choice)) for choice in range(5)]
  naive = np.array([[False] * 12] + 4 * [low.tolist()] + [(~low).tolist()])
  for states in found:
    np.testing.assert_array_equal(states.selection.naive, naive)
    np.testing.assert_allclose(states.overlap, [0, 0, 0, 1, 1, 0])
  nobody, ours, everybody, random, others = (states.naive for states in found)
  assert not nobody.any() and everybody[1:].all() and not everybody[0].any()
  np.testing.assert_array_equal(ours, naive)
  np.testing.assert_array_equal(others, ~naive & (np.arange(6) > 0)[:, None])
  np.testing.assert_array_equal(random.sum(1), [0, 6, 6, 6, 6, 6])
  np.testing.assert_array_equal(random[1], random[2])
  assert not np.array_equal(random[2], random[3])


def test_the_harder_of_two_views():
  table = RNG.normal(size=(5, 3)).astype(np.float32)
  weak, first, second = RNG.normal(size=(3, 8, 5, 1)).astype(np.float32)

  def forward(inputs):
    return inputs[..., 0] @ table

  chosen = jax.jit(functools.partial(methods.harder_view, forward))(weak, first, second)
  picked = []
  for i in range(8):
    guess = np.argmax(weak[i, :, 0] @ table)
    costs = []
    for view in (first, second):
      scores = view[i, :, 0] @ table
      costs.append(np.log(np.exp(scores).sum()) - scores[guess])
    picked.append(int(costs[1] > costs[0]))
    np.testing.assert_array_equal(chosen[i], (first, second)[picked[-1]][i])
  assert len(set(picked)) == 2


def test_without_pasting_the_training_is_that_of_fixmatch():
  labels = np.arange(24) % 10
  split = Split(RNG.normal(size=(24, 40, 1)).astype(np.float32), labels)
  mnist1d = datasets.describe("mnist1d")
  config = Config(num_steps=4, labeled_batch=4, unlabeled_batch=8, start_step=2, refresh_every=1,
                  threshold=0.11)  # fmt: skip
  shared = methods.protocol(config, mnist1d)
  apply_fn = lambda params, inputs: inputs[..., 0] @ params  # noqa: E731
  start = (0.1 * RNG.normal(size=(40, 10))).astype(np.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def run(plain, choice):
    if plain:
      method = algorithms.fixmatch_method(threshold=config.threshold)
    else:
      setting = {"choice": choice, "weight": 1.0}
      method = methods.method_of(config, methods.FIX, jax.random.key(1), 24, 10, setting)
    trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(0.1))
    state = trainer.init(start)
    learned = kit.learn(jax.random.key(0), trainer, state, split, split, shared)
    return learned.state.params, learned.seen["utilization"]

  expected, used = run(True, 0)
  assert used > 0
  # Two programs; in the experiment both rows are one.
  np.testing.assert_allclose(run(False, methods.NOBODY)[0], expected, rtol=1e-4, atol=1e-6)
  assert np.abs(run(False, methods.EVERYBODY)[0] - expected).max() > 1e-3


def test_claims_of_both_sets():
  results, rng = Results(), np.random.default_rng(0)
  for i, name in enumerate(Config().datasets):
    levels = dict.fromkeys(saa.rows_of(Config(), i), 0.7) | {saa.FIXMATCH: 0.8, saa.ONLY: 0.6}
    for method, level in levels.items():
      results.add({method: {"accuracy": level + 0.01 * rng.normal(size=10)}}, dataset=name)
  scores = {"naive rows": 0.5, "share of their loss": 0.1, "strong loss": 1.0, "pasted loss": 2.0}
  results.add({saa.FIXMATCH: {q: np.full(10, x) for q, x in scores.items()}}, dataset="mnist1d")
  scores = {"accuracy on strong views": 0.8, "accuracy on pasted views": 0.72}
  results.add({saa.EVERY_LABEL: {q: np.full(10, x) for q, x in scores.items()}}, dataset="mnist1d")
  claims = saa.claims(Config(), results)
  check_claims(claims)
  verdicts = [claim.verdict for claim in claims]
  assert (verdicts[0], *verdicts[3:]) == ("refuted", "shown", "refuted")


def test_images_go_through_random_operations():
  digits = datasets.describe("digits")
  images = RNG.uniform(0.5, 1, size=(6, 8, 8, 1)).astype(np.float32)
  strong = jax.jit(lambda m: methods.view_fns(digits, m).strong(jax.random.key(0), images))
  np.testing.assert_allclose(strong(0.0), images, atol=1e-6)
  assert (np.abs(strong(1.0) - images).max((1, 2, 3)) > 0.01).sum() >= 4
