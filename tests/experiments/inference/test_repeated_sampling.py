import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inference import repeated_sampling as experiment
from experiments.inference.repeated_sampling import BETA, LAW, LINE, SINGLE
from experiments.kit import chains as kit
from experiments.kit.language_models import fit_decoder

CONFIG = dataclasses.replace(
  experiment.PRESETS["smoke"], weak=(16, 1, 2), num_problems=50, num_sampled=50, num_samples=200,
  many=8,
)  # fmt: skip
KS = 2.0 ** np.arange(11)


@pytest.fixture(scope="module")
def found():
  """What is measured of a weak model of few updates, and the probabilities that it rests on."""
  key, bases = jax.random.key(0), experiment.base_models(CONFIG)

  @jax.jit
  def run(key):
    clean = experiment._problems(CONFIG, key)
    params = {n: b.model.init(key, clean.tokens)["params"] for n, b in bases.items()}
    weak, sizes = bases["weak model"], {"num_steps": 100, "batch_size": 32}
    params["weak model"] = fit_decoder(key, weak.model, weak.draw, **sizes).params
    probs = jnp.exp(
      experiment._proofs(CONFIG, bases["weak model"], params["weak model"], clean.tokens)
    )
    proved = experiment.prove(CONFIG, key, params)
    return clean, probs, proved, experiment.vote(CONFIG, key, params["weak model"])

  return jax.device_get(run(key))


def test_coverage_is_exact(found):
  clean, probs, proved, votes = found
  expected = [np.mean(1 - (1 - probs.astype(float)) ** k) for k in CONFIG.ks]
  np.testing.assert_allclose(proved["weak model"], expected, rtol=1e-3)
  np.testing.assert_allclose(
    proved["weak model, every k"][np.array(CONFIG.ks) - 1], expected, rtol=1e-3
  )
  assert len(proved["weak model, every k"]) == CONFIG.most
  # Samples of the same problems agree with it, and it is worth comparing.
  assert votes["largest error"] < 4 and 0.1 < expected[0] < expected[3] < 0.98


def test_clean_steps_are_counted_with_all_their_tokens(found):
  tokens, chains = found[0].tokens, CONFIG.chains
  length = tokens.shape[1]
  # A text for every place that may differ, and one without.
  changed = tokens[None] + np.eye(length + 1, length, dtype=np.int32)[:, None]
  counts = jax.jit(kit.num_clean_steps, static_argnums=0)(chains, changed, tokens)
  expected = (np.arange(length + 1) < chains.prompt_length) | (np.arange(length + 1) == length)
  np.testing.assert_array_equal(counts, np.repeat(expected[:, None], len(tokens), axis=1))


def test_every_law_recovers_its_own_curve():
  law = np.exp(-2.5 * KS**-0.4)
  beta = np.asarray(experiment._beta(np.float32(KS), np.log(np.float32([0.4, 3.0]))))
  curves = {LAW: law, SINGLE: 1 - 0.97**KS, BETA: beta, LINE: 0.05 + 0.1 * np.log(KS)}
  for name, curve in curves.items():
    np.testing.assert_allclose(experiment.fit_law(name, KS, curve, KS), curve, atol=2e-3)
    begun = experiment.fit_law(name, KS[:6], curve[:6], KS)
    np.testing.assert_allclose(begun, curve, atol=2e-2)
  # Unequal problems are no single rate.
  assert np.max(np.abs(experiment.fit_law(SINGLE, KS, beta, KS) - beta)) > 0.1


def test_beta_coverage_is_that_of_beta_rates():
  rates = np.random.default_rng(0).beta(0.4, 3.0, size=200_000)
  simulated = np.array([np.mean(1 - (1 - rates) ** k) for k in (1, 16, 256)])
  exact = experiment._beta(np.float32(KS), np.log(np.float32([0.4, 3.0])))
  np.testing.assert_allclose(np.asarray(exact)[[0, 4, 8]], simulated, atol=5e-3)


def test_attempts_of_the_claims_are_powers_of_two():
  for name, value in (("few", 3), ("many", 6), ("fitted", 5)):
    with pytest.raises(ValueError, match=name):
      experiment.validate(dataclasses.replace(CONFIG, **{name: value}))
  with pytest.raises(ValueError, match="weak"):
    experiment.validate(dataclasses.replace(CONFIG, weak=(8, 1)))
