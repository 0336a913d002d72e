import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.alignment.masked_thought import habits, tuning
from jaxlab import augment, losses

CONFIG = types.SimpleNamespace(
  modulus=5, num_terms=4, decoder=(8, 1), num_heads=2, num_dictated=3, batch_size=4
)
CHAINS = habits.chains_of(CONFIG)
FAVORITES = np.array([1, 3, 4])
NUM = 40
KEY = jax.random.key(0)
draw = jax.jit(
  lambda key, habit: habits.draw_texts(key, CHAINS, NUM, jnp.asarray(FAVORITES), habit)
)


def solved(row):
  """The text that a problem's tokens ask for, by a slow loop."""
  text, value = list(row[:8]), row[0] - 6
  for operator, number in zip(row[1:7:2], row[2:7:2]):
    value = {3: value + number - 6, 4: value - number + 6, 5: value * (number - 6)}[operator] % 5
    text += [operator, number, value + 6]
  return [*text, 2], value


@pytest.mark.parametrize("habit", [0.0, 0.9, 1.0])
def test_operands_follow_the_habit_and_texts_are_right(habit):
  texts = jax.device_get(draw(KEY, habit))
  for row, answer in zip(texts.tokens.tolist(), texts.answers):
    assert (row, answer) == solved(row)
  operators, operands = texts.tokens[:, 1:7:2] - 3, texts.tokens[:, 2:7:2] - 6
  follows = FAVORITES[operators] == operands
  expected = habit + (1 - habit) / 5
  assert abs(follows.mean() - expected) <= 4 * np.sqrt(expected * (1 - expected) / (3 * NUM))
  contrary = jax.jit(functools.partial(habits.contrary_operands, CHAINS))(texts, FAVORITES)
  np.testing.assert_array_equal(np.asarray(contrary)[:, 9:17:3], ~follows)
  assert contrary.sum() == (~follows).sum()


def test_dictated_steps_are_of_another_problem():
  texts = jax.device_get(jax.jit(lambda: habits.dictated_texts(CHAINS, KEY, NUM))())
  others = 0
  for row, mask in zip(texts.tokens.tolist(), texts.loss_mask):
    dictated = [row[0], *(x for i in range(8, 17, 3) for x in row[i : i + 2]), row[7]]
    assert solved(dictated)[0][8:] == row[8:]
    np.testing.assert_array_equal(np.flatnonzero(mask), [10, 13, 16, 17])
    others += dictated[1:] != row[1:8]
  assert others > NUM / 2


def test_base_texts_hold_both_kinds_in_one_length():
  texts = jax.device_get(jax.jit(lambda: habits.base_texts(CONFIG, KEY, 8))())
  assert texts.tokens.shape == (8, 18)
  lengths = (texts.tokens != 0).sum(1)
  np.testing.assert_array_equal(lengths, [18] * 4 + [8] * 2 + [13] * 2)
  np.testing.assert_array_equal(texts.loss_mask[4], [0] * 4 + [1] * 4 + [0] * 10)


@functools.cache
def program():
  model = tuning.network(CONFIG)
  batch = jax.tree.map(lambda x: x[:4], jax.device_get(draw(KEY, 0.5))), np.ones(4, np.float32)
  params = jax.jit(model.init)(KEY, batch[0].tokens)["params"]

  @jax.jit
  def run(setting):
    out = tuning.objective(CONFIG, model, setting)(params, {}, batch, KEY)
    logits = model.apply({"params": params}, batch[0].tokens).logits
    return out, losses.causal_token_log_probs(logits, batch[0].tokens)

  return batch[0], lambda **setting: jax.device_get(run(tuning.PLAIN | setting))


def test_without_perturbation_the_loss_is_cross_entropy():
  batch, run = program()
  out, log_probs = run()
  assert out.values.shape == (7, 18)
  np.testing.assert_allclose(out.values[:4], -log_probs, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(out.weights[:4], batch.loss_mask)
  # Bitwise the same where nothing is replaced, whatever a replacement would be.
  same, _ = run(random=0.0, places=tuning.EVERYWHERE)
  np.testing.assert_array_equal(same.values, out.values)


@pytest.mark.parametrize(
  "setting",
  [
    {"rate": 1.0},
    {"rate": 1.0, "random": 0.0},
    {"rate": 1.0, "places": tuning.OPERATORS},
    {"dropped": 1.0},
    {"noise": 5.0},
  ],
)
def test_perturbations_act_on_solutions_alone(setting):
  _, run = program()
  out, _ = run()
  changed, _ = run(**setting)
  np.testing.assert_array_equal(changed.weights, out.weights)
  np.testing.assert_allclose(changed.values[4:], out.values[4:], rtol=1e-5)  # Dictated texts.
  if "noise" not in setting:
    # Up to the first token of the solution nothing differs; the second sees a replaced one.
    np.testing.assert_allclose(changed.values[:4, :9], out.values[:4, :9], rtol=1e-5)
  assert np.any(np.abs(changed.values[:4, 9:] - out.values[:4, 9:]) > 1e-4)


def test_everywhere_means_the_problem_too():
  _, run = program()
  out, _ = run()
  changed, _ = run(rate=1.0, places=tuning.EVERYWHERE)
  assert np.any(np.abs(changed.values[:4, 1:8] - out.values[:4, 1:8]) > 1e-4)


def test_masking_a_near_cue_raises_the_weight_of_a_far_one():
  """A linear softmax of two binary cues: the far one is always right, the near one in 90%."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, 2000)
  near = np.where(rng.random(2000) < 0.9, label, 1 - label)
  tokens, is_near = jnp.stack([label, near], axis=1), jnp.array([[False, True]])

  @jax.jit
  def far_weight(rate):
    def loss(weights, key):
      mask = jnp.broadcast_to(is_near, tokens.shape)
      read = augment.mask_reasoning_tokens(key, tokens, mask, rate=rate, mask_token_id=2)
      logits = weights[0][read.tokens[:, 0]] + weights[1][read.tokens[:, 1]]
      return -jnp.mean(losses.token_log_probs(logits, tokens[:, 0]))

    step = lambda weights, key: (weights - jax.grad(loss)(weights, key), None)  # noqa: E731
    weights, _ = jax.lax.scan(step, jnp.zeros((2, 3, 2)), jax.random.split(KEY, 200))
    return weights[0, 1, 1] - weights[0, 1, 0], loss(jnp.zeros((2, 3, 2)), KEY)

  weights = [float(far_weight(rate)[0]) for rate in (0.0, 0.2, 0.4)]
  assert weights[0] + 0.1 < weights[1] < weights[2] - 0.1
