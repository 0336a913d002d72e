"""Tasks of shared difficulty, the models that try them, and what tests say of their samples."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import chains as kit
from experiments.kit.language_models import respond
from experiments.kit.verifiers import ErrorRates, over_error_rates
from experiments.kit.zoo import FAMILY, BaseModel, ladder
from jaxlab import data, metrics

CEILING, FALSE_RATE = "accuracy of unlimited resampling", "false positive rate"


def base_models(config) -> dict[str, BaseModel]:
  """The ladder, of seed 0, and then the models that are weak in another way."""
  options = {"batch_size": config.texts_per_step, "learning_rate": config.learning_rate}
  options |= {"family": FAMILY, "num_steps": config.num_steps}
  bases = ladder(config.chains, _rungs(config), **options)
  strong = bases[weak_and_strong(config)[1]]
  small = dict(zip(("hidden_size", "num_layers", "num_heads"), config.small))
  early = dataclasses.replace(strong, num_steps=config.other_steps)
  misled = dataclasses.replace(strong.task, misconception_rate=config.other_rate)
  return bases | {
    "small, stopped early": dataclasses.replace(early, **small),
    "large, stopped early": early,
    "large, misled": dataclasses.replace(strong, task=misled),
  }


def weak_and_strong(config) -> tuple[str, str]:
  """Names of the two models that are compared."""
  names = list(ladder(config.chains, _rungs(config)))
  return names[len(config.small_noise) // 2], names[-1]


def _rungs(config):
  return (*config.small, config.small_noise), (*config.large, config.large_noise)


def draw(config, key: chex.PRNGKey, seed: chex.Array) -> dict[str, jax.Array]:
  """Clean texts of tasks, and how many of the pool are `easy` and `hard`.

  `tokens` are `[2, n, T]`: tasks of shared difficulty, the easy ones first; and plain ones.
  """
  chains = dataclasses.replace(config.chains, table_seed=seed)
  batch = data.modular_chain_batch(key, chains, config.pool, clean=True)
  wrong_values = kit.misconception_table(jax.random.fold_in(key, 1), chains)
  met = wrong_values[kit.entries(chains, batch.tokens, batch.steps)] >= 0
  half = met.shape[1] // 2
  easy, hard = ~met.any(1), met[:, :half].any(1) & met[:, half:].any(1)
  rows = [
    jnp.argsort(~kind, stable=True)[:count]
    for kind, count in ((easy, config.num_easy), (hard, config.num_hard))
  ]
  tokens = jnp.stack([batch.tokens[jnp.concatenate(rows)], batch.tokens[: sum(map(len, rows))]])
  return {"tokens": tokens, "easy": easy.sum(), "hard": hard.sum()}


@functools.cache  # Models of one size are one program.
def prober(chains: data.ModularChainConfig, size: tuple[int, int, int]):
  """A function that gives log-probabilities that the first steps are right, `[..., S]`."""
  model = BaseModel(chains, *size, family=FAMILY).model

  def probe(key, params, tokens):
    del key
    return jnp.cumsum(kit.step_log_probs(model, params, chains, tokens), axis=-1)

  return probe


def resampling(log_probs: np.ndarray, num_checked: int, attempts, cost: float = 0.0) -> np.ndarray:
  """Mean reward of resampling until the first steps pass a test, exact.

  Args:
    log_probs: log-probabilities that the first steps are right, `[..., n, S]`.
    num_checked: steps that the test checks; 0 accepts everything.
    attempts: numbers of attempts `[m]`.
    cost: of an accepted wrong solution.

  Returns:
    `[..., m]`.
  """
  accept = log_probs[..., num_checked - 1] if num_checked else np.zeros_like(log_probs[..., 0])
  right = np.exp(log_probs[..., -1] - accept)
  with np.errstate(divide="ignore"):
    missed = np.log1p(-np.minimum(np.exp(accept), 1.0))[..., None] * np.asarray(attempts, float)
  return np.mean((right - cost * (1 - right))[..., None] * -np.expm1(missed), axis=-2)


def sample_errors(config, key: chex.PRNGKey, params, tokens) -> dict[str, jax.Array]:
  """What the weak model's samples reach with a full test that errs, at all rates of errors."""
  chains, base = config.chains, base_models(config)[weak_and_strong(config)[0]]
  clean = tokens[np.arange(config.num_sampled) * len(tokens) // config.num_sampled]
  sample_key, error_key = jax.random.split(key)
  numbers = {"num_samples": config.num_samples, "max_new_tokens": chains.response_length}
  texts = respond(
    sample_key, base.model, params, clean[:, : chains.prompt_length], **numbers
  ).tokens

  def full_test(texts):
    return kit.num_clean_steps(chains, texts, clean[:, None]) == chains.num_terms - 1

  def measure(verifier):
    found = metrics.verifier_statistics(verifier(error_key, texts), full_test(texts))
    return {CEILING: found.conditional_accuracy, FALSE_RATE: found.false_positive_rate}

  return over_error_rates(measure, full_test, ErrorRates(np.float32(config.error_rates)))
