import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.calibrated_hallucination import worlds
from experiments.inference.calibrated_hallucination.__main__ import PRESETS
from experiments.kit.language_models import token_log_probs
from jaxlab import metrics

SMOKE = PRESETS["smoke"]


def test_statements_have_the_probabilities_of_their_tokens():
  model = worlds.network(SMOKE)

  @jax.jit
  def evaluate(key):
    params = model.init(key, jnp.zeros((1, 4), int))["params"]
    logits = worlds.statement_logits(SMOKE, params)
    values = jnp.stack(jnp.unravel_index(jnp.arange(6**3), (6, 6, 6)), axis=1)
    rows = jnp.pad(values + 1, ((0, 0), (1, 0)))
    outside = jax.nn.softmax(model.apply({"params": params}, rows).logits)[:, :3, 0]
    whole = token_log_probs(model, params, rows).sum(1) - jnp.log1p(-outside).sum(1)
    warm = worlds.statement_log_probs(logits, 2.0)
    return worlds.statement_log_probs(logits), whole, warm

  found, expected, warm = evaluate(jax.random.key(0))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(np.exp(warm).sum(), 1.0, rtol=1e-5)
  assert warm.std() < found.std()


def test_repeated_items_are_drawn_as_often_as_they_count():
  @jax.jit
  def draw(copies):
    setting = {"exponent": 0.3, "items": 40, "copies": copies}
    world, batch = worlds.draw_world(SMOKE, jax.random.key(0), setting)
    tokens = batch(jax.random.key(1), 20_000).tokens[:, 1:] - 1
    codes = jnp.sum(tokens * jnp.array([36, 6, 1]), axis=1)
    return world, jnp.mean(codes[:, None] == world.codes[None], axis=0)

  plain, repeated = draw(1), draw(11)
  assert plain[0].counts.sum() == 40 and repeated[0].counts.sum() == 60
  for world, shares in (plain, repeated):
    np.testing.assert_allclose(shares, world.counts / world.counts.sum(), atol=0.015)
  added = np.asarray(repeated[0].counts - plain[0].counts)
  assert added.sum() == 20 and set(added) <= {0, 10, 20}


def test_training_frequencies_mixed_with_uniform_err_as_often_as_facts_occur_once():
  """The method's theory where it is certain, in the six worlds of the laptop preset."""
  config = dataclasses.replace(PRESETS["laptop"], num_slots=2, slot_size=1000)

  @jax.jit
  @jax.vmap
  def evaluate(setting):
    world, _ = worlds.draw_world(config, jax.random.key(0), setting)
    counts = jnp.zeros(config.slot_size**config.num_slots).at[world.codes].set(world.counts)
    frequencies = jnp.log(counts / jnp.sum(counts))
    weight = worlds.best_weight(config, frequencies, world)
    outside = 1 - config.num_facts / counts.size
    missing = metrics.missing_mass(world.probs, world.counts)
    return weight * outside, metrics.monofact_rate(world.counts), missing

  pairs = [(x, n) for x in config.exponents for n in config.items]
  exponents, items = map(np.array, zip(*pairs))
  rates, once, missing = map(
    np.asarray, evaluate({"exponent": exponents, "items": items, "copies": np.ones(6, int)})
  )
  np.testing.assert_allclose(rates, missing, atol=0.02)
  np.testing.assert_allclose(rates, once, atol=0.035)
  assert abs(np.mean(rates - once)) < 0.02 and np.ptp(once) > 0.15


def test_the_bound_holds_for_a_memorizer_and_its_mixture():
  @jax.jit
  def evaluate(weight):
    setting = {"exponent": 0.3, "items": 40, "copies": 1}
    world, _ = worlds.draw_world(SMOKE, jax.random.key(3), setting)
    counts = jnp.zeros(6**3).at[world.codes].set(world.counts)
    return worlds.evaluate(SMOKE, jnp.log(counts / jnp.sum(counts)), world, weight)

  memorizer, mixed, uniform = evaluate(0.0), evaluate(0.3), evaluate(1.0)
  assert memorizer[worlds.RATE] == 0 and memorizer[worlds.BOUND] >= 0
  np.testing.assert_allclose(mixed[worlds.RATE], 0.3 * (1 - 20 / 216), rtol=1e-5)
  np.testing.assert_allclose(uniform[worlds.MISCALIBRATION], 0.0, atol=1e-5)
  np.testing.assert_allclose(uniform[worlds.VALIDATION], np.log(216), rtol=1e-5)
