import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.sequencematch import texts, tuning
from experiments.alignment.sequencematch.__main__ import PRESETS
from experiments.alignment.sequencematch.texts import START, Sampling
from experiments.alignment.sequencematch.tuning import Arm
from jaxlab import data, losses, samplers
from jaxlab.samplers import BacktrackingOutput

CONFIG = dataclasses.replace(PRESETS["smoke"], num_terms=3, max_actions=14, correction_rate=0.8)
CHAINS, SIZE, BACK = texts.chains(CONFIG), texts.length(CONFIG), texts.backspace(CONFIG)
KEY, N = jax.random.key(0), 300
PROBLEM = 2 * CONFIG.num_terms
RIGHT = np.asarray(texts.draw_texts(CONFIG, KEY, N).tokens)[:, 1:]


def spoiled(share):
  """Right texts, some of whose tokens are others."""
  rng = np.random.default_rng(0)
  other = rng.integers(1, BACK, RIGHT.shape)
  return np.where(rng.random(RIGHT.shape) < share, other, RIGHT).astype(np.int32)


def samples_of(tokens, actions=None):
  actions = tokens if actions is None else actions
  lengths, sizes = (np.full(len(tokens), x.shape[1]) for x in (tokens, actions))
  ended = tokens[:, -1] == 2
  return BacktrackingOutput(
    np.pad(tokens, ((0, 0), (0, 2))), lengths, actions, sizes, sizes * 0, ended
  )


def test_beginnings_follow_their_law():
  law = texts.first_law(CONFIG)
  np.testing.assert_allclose(law[:, 1:] / law[:, :1], [[0.6, 0.36]] * 3, rtol=1e-6)
  np.testing.assert_allclose(law[1:] / law[:-1], np.full((2, 3), 0.75), rtol=1e-6)
  counts = np.zeros((3, 3))
  np.add.at(counts, (RIGHT[:, 0] - 6, RIGHT[:, 1] - 3), 1)
  assert np.all(np.abs(counts / N - law) < 4 * np.sqrt(law / N))


def test_what_is_right_is_what_the_checker_says():
  tokens = spoiled(0.1)
  step = functools.partial(texts.allowed, CONFIG)
  allowed = jax.jit(jax.vmap(jax.vmap(step, (None, 0)), (0, None)))(tokens, np.arange(SIZE))
  right = np.take_along_axis(np.asarray(allowed), tokens[..., None], 2)[..., 0]
  form = texts.forms(CONFIG)[np.arange(SIZE), tokens]
  np.testing.assert_array_equal(right & ~form, False)
  problem, response = tokens[:, :PROBLEM], tokens[:, PROBLEM:]
  well_formed = form[:, :PROBLEM].all(1)
  parsed = jax.jit(data.parse_chain, static_argnums=0)(CHAINS, response)
  checked = jax.jit(data.check_steps, static_argnums=0)(CHAINS, problem, parsed.steps)
  checked = np.asarray(checked)
  np.testing.assert_array_equal(right[well_formed, PROBLEM:-1], checked[well_formed])
  assert 0 < checked[well_formed].mean() < 1

  found = jax.jit(functools.partial(texts.describe, CONFIG))(samples_of(tokens))
  complete = np.asarray(parsed.answer) >= 0
  np.testing.assert_allclose(found["well formed"], np.mean(well_formed & complete), rtol=1e-6)
  valid = well_formed & complete & checked.all(1)
  np.testing.assert_allclose(found["valid"], valid.mean(), rtol=1e-6)
  plus = tokens[:, 1] == 3
  np.testing.assert_allclose(found["valid, first operator plus"], valid[plus].mean(), rtol=1e-6)
  cells = np.zeros((3, 3))
  begun = form[:, 0] & form[:, 1]
  np.add.at(cells, (tokens[begun, 0] - 6, tokens[begun, 1] - 3), 1 / N)
  distance = 0.5 * (np.abs(cells - texts.first_law(CONFIG)).sum() + np.mean(~begun))
  np.testing.assert_allclose(found["distance"], distance, rtol=1e-5)


def test_tokens_that_are_drawn_again():
  """A bad token is replaced by a second draw, whatever it is."""
  rows = RIGHT[:4]
  logits = np.random.default_rng(0).normal(size=(4, BACK + 1)).astype(np.float32)
  reshape = jax.jit(functools.partial(texts.reshape_logits, CONFIG))
  probs = np.exp(np.where(np.arange(BACK + 1) == BACK, -np.inf, logits))
  probs /= probs.sum(1, keepdims=True)
  for sampling, place, bad in (
    (Sampling(), PROBLEM, np.zeros(probs.shape, bool)),
    (Sampling(threshold=0.08), 1, probs < 0.08),
    (Sampling(checker=1.0), PROBLEM, np.arange(BACK + 1)[None] != rows[:, [PROBLEM]]),
    (Sampling(checker=1.0), 0, np.zeros(probs.shape, bool)),
  ):
    result = np.exp(reshape(jax.tree.map(np.float32, sampling), logits, rows, np.full(4, place)))
    again = np.sum(probs * bad, axis=1, keepdims=True)
    np.testing.assert_allclose(result, probs * ~bad + again * probs, rtol=1e-4, atol=1e-6)


def test_errors_of_backspaces_match_a_loop():
  rng = np.random.default_rng(1)
  written = spoiled(0.3)
  actions = []
  for row in written:
    drawn = []
    for token in row:
      wrong = rng.integers(1, BACK)
      drawn += [wrong, BACK] * int(rng.random() < 0.2) + [token]
    actions.append((drawn + [0] * 14)[:14])
  actions = np.array(actions, np.int32)
  samples = samples_of(written, actions)._replace(num_actions=np.minimum((actions != 0).sum(1), 14))
  step = jax.jit(functools.partial(texts.allowed, CONFIG))
  backs, wrong_backs, tokens = 0, 0, []
  for row, size in zip(actions[:40], samples.num_actions[:40]):
    text, rights = [], []
    for action in row[:size]:
      if action == BACK:
        backs += 1
        wrong_backs += not rights.pop()
        text.pop()
      else:
        padded = np.array((text + [0] * (SIZE + 2))[: SIZE + 2])
        rights.append(bool(np.asarray(step(padded, len(text)))[action]))
        text.append(int(action))
        tokens.append(rights[-1])
  params = jax.jit(lambda: tuning.decoder(CONFIG).init(KEY, jnp.zeros((1, 2), int))["params"])()
  few = jax.tree.map(lambda x: x[:40], samples)
  found = jax.jit(functools.partial(tuning.token_errors, CONFIG))(params, few)
  np.testing.assert_allclose(found["backspaces"], backs / 40, rtol=1e-6)
  np.testing.assert_allclose(found[tuning.AFTER_WRONG], wrong_backs / backs, rtol=1e-5)
  # A decoder that knows nothing meets wrong tokens as often as there are any.
  assert abs(float(found[tuning.LOWEST]) - (1 - np.mean(tokens))) < 0.2


def test_corrections_insert_other_results_and_without_penalty_it_is_the_likelihood():
  rows = texts.Texts(np.pad(RIGHT, ((0, 0), (1, 0)))[:8], None)
  arm = Arm(corrections=1.0, backspace=1.0)

  @jax.jit
  def laid_out(key):
    found = tuning.lay_out_texts(CONFIG, key, rows, arm)
    return found, samplers.apply_backspaces(found.actions, found.lengths, backspace_token_id=BACK)

  found, undone = laid_out(KEY)
  actions, weights = np.asarray(found.actions), np.asarray(found.weights)
  real = np.arange(14) < np.asarray(found.lengths)[:, None]
  wrong = real & (weights == 0)
  assert wrong.sum() > 5 and (actions[real] != START).all()
  assert (actions[:, 1:][wrong[:, :-1]] == BACK).all()
  ended = np.asarray(found.terminated)
  np.testing.assert_array_equal(np.asarray(undone.tokens)[ended, :SIZE], RIGHT[:8][ended])
  pairs = wrong[:, :-2] & real[:, 2:]
  assert (actions[:, :-2][pairs] != actions[:, 2:][pairs]).all()
  # They are values in the place of results, and there alone.
  assert set(actions[wrong]) <= set(range(texts.FIRST_NUMBER, BACK))
  places = np.asarray(found.layout.positions)[:, 1:] - 1
  assert set(places[wrong]) == {PROBLEM, PROBLEM + 1}

  @jax.jit
  def both(params):
    batch = found, found, jnp.zeros(8)
    values = tuning.matching_loss(CONFIG, arm)(params, {}, batch, KEY).values
    logits = tuning.state_logits(CONFIG, params, found.layout, 1.0)[:, :-1]
    return values, losses.token_log_probs(logits, found.actions)

  params = jax.jit(lambda: tuning.decoder(CONFIG).init(KEY, jnp.zeros((1, 2), int))["params"])()
  values, log_probs = map(np.asarray, both(params))
  expected = -np.sum(np.where(real, weights * 0.99 ** np.arange(14) * log_probs, 0), axis=1)
  np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_settings_are_chosen_among_those_that_are_near():
  best = jax.jit(lambda valid, distance, base: tuning.best(
    CONFIG, {"valid": valid, "distance": distance}, base))  # fmt: skip
  valid = np.array([[0.5, 0.9, 0.7], [0.5, 0.9, 0.7]])
  distance = np.array([[0.1, 0.2, 0.11], [0.5, 0.4, 0.6]])
  np.testing.assert_array_equal(best(valid, distance, np.array([[0.1], [0.1]])), [2, 1])
