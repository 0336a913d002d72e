"""What is optimized, and how a policy is judged: after training, and on tilted pools of samples."""

import jax
import jax.numpy as jnp

from experiments.alignment.reward_transform.reference import learned_rewards, tasks, true_rewards
from experiments.kit import dialogue
from jaxlab import losses, metrics

WEIGHTS = (0.3, 0.5, 0.7)
SUMS = tuple(f"weighted sum, {weight} helpful" for weight in WEIGHTS)
STANDARDIZED, MINIMUM = "sum of standardized rewards", "minimum"
LOG_SIGMOID, AT_MEDIAN = "sum of log-sigmoids", "sum of log-sigmoids at the median"
RAW, SATURATED = "one reward, raw", "one reward, log-sigmoid"
ONE_STANDARDIZED, CRITERION = "one reward, standardized", "indicator of joint success"
METHODS = (*SUMS, STANDARDIZED, LOG_SIGMOID, MINIMUM, RAW, SATURATED, AT_MEDIAN, ONE_STANDARDIZED)

# Which rewards are combined, by each method that is trained, and of each that tilts the pool.
TRUE, LEARNED = "true", "learned"
TRAINED = (*((LEARNED, method) for method in METHODS[:8]), (TRUE, RAW), (TRUE, SATURATED))
TILTED = (
  *((TRUE, method) for method in (*METHODS, CRITERION)),
  *((LEARNED, method) for method in METHODS),
)

JOINT, STRICT = "joint success", "joint success, 85% quantiles"
IMPROVED, ABOVE = "improved prompts", "helpful above the median"
GAP, ONE_GAP = "learned less true reward", "learned less true reward, one reward"

_QUANTILE = 0.85  # Of the reference's rewards, which a good response beats.
_IMPROVED = 0.75  # Share of responses above the median in a prompt that counts as improved.


def combine(rewards, stored) -> dict[str, jax.Array]:
  """The one reward `[P, n]` that each method makes of several.

  Args:
    rewards: of responses, `[3, P, n]`.
    stored: of responses of the reference, `[3, P, k]`.

  Returns:
    method -> rewards, in the order of `METHODS`.
  """
  high, middle = (
    losses.reference_quantile(stored, quantile=q)[..., None] for q in (_QUANTILE, 0.5)
  )
  both, high_both, middle_both = (jnp.moveaxis(x[:2], 0, -1) for x in (rewards, high, middle))
  mean, std = (f(stored, axis=-1, keepdims=True) for f in (jnp.mean, jnp.std))
  standardized = (rewards - mean) / (std + 1e-6)

  def weighted_sum(weight):
    weights = jnp.array([weight, 1 - weight])
    return losses.combine_rewards(both, high_both, method="weighted_sum", weights=weights)

  combined = dict(zip(SUMS, map(weighted_sum, WEIGHTS), strict=True)) | {
    STANDARDIZED: standardized[0] + standardized[1],
    LOG_SIGMOID: losses.combine_rewards(both, high_both),
    MINIMUM: jnp.min(both - high_both, axis=-1),
    RAW: rewards[2],
    SATURATED: losses.log_sigmoid_centered(rewards[2], high[2]),
    AT_MEDIAN: losses.combine_rewards(both, middle_both),
    ONE_STANDARDIZED: standardized[2],
  }
  return {name: combined[name] for name in METHODS}


def judge(reference, true, learned, valid, weights):
  """What the true rewards say of responses, and how far the learned ones are above them.

  Args:
    reference: of `train_reference`.
    true: of the responses, `[3, P, n]`.
    learned: likewise.
    valid: which of them have the right length, `[P, n]`; gaps are of these.
    weights: of the responses, `[P, n]`; those of a prompt sum to 1.

  Returns:
    Shares in percent; gaps in standard deviations of the reference's rewards; and `ABOVE` by
    prompt, `[P]`.
  """

  def mean(values):
    return jnp.sum(weights * values, axis=-1)

  def success(quantile):
    limits = losses.reference_quantile(reference["true"][:2], quantile=quantile)[..., None]
    joint = metrics.joint_success(*(jnp.moveaxis(x, 0, -1) for x in (true[:2], limits)))
    return joint, mean(true[0] > limits[0])

  def standardized(rewards, pool):
    options = {"axis": -1, "keepdims": True, "where": reference["valid"][None]}
    return (rewards - jnp.mean(pool, **options)) / (jnp.std(pool, **options) + 1e-6)

  (joint, above), (strict, _) = success(0.5), success(_QUANTILE)
  gap = standardized(learned, reference["learned"]) - standardized(true, reference["true"])
  gaps = mean(jnp.where(valid, gap, 0.0)).sum(-1) / jnp.maximum(mean(valid).sum(), 1e-6)
  return {
    JOINT: 100 * mean(joint).mean(),
    STRICT: 100 * mean(strict).mean(),
    IMPROVED: 100 * jnp.mean(above > _IMPROVED),
    ABOVE: 100 * above,
    GAP: gaps[:2].mean(),
    ONE_GAP: gaps[2],
  }


def train_policy(config, key, argument):
  """Trains a policy at one penalty after the other, and judges it by the true rewards.

  Args:
    config: of the experiment.
    key: of training and of the responses that are judged.
    argument: the reference of `train_reference`, and the number in `TRAINED`, which is traced.

  Returns:
    quantity -> values at the penalties that would tilt to `config.aims`.
  """
  reference, number = argument

  def scored(tokens):
    models = reference["models"]
    true = true_rewards(config, reference["seed"], tokens)
    return {TRUE: true, LEARNED: learned_rewards(config, models, tokens)}

  def optimized(rewards):
    combined = {
      source: combine(values, reference[source][..., : config.stored])
      for source, values in rewards.items()
    }
    return jnp.stack([combined[source][method] for source, method in TRAINED])[number]

  def judged(tokens):
    rewards, valid = scored(tokens), dialogue.are_valid(tasks(config)[0], tokens)
    weights = jnp.full(valid.shape, 1 / valid.shape[1])
    return judge(reference, rewards[TRUE], rewards[LEARNED], valid, weights)

  pool = optimized({source: reference[source] for source in (TRUE, LEARNED)})
  penalties = jax.lax.map(lambda kl: dialogue.tilt_to(pool, kl).beta, jnp.array(config.aims))
  reward, params = lambda tokens: optimized(scored(tokens)), reference["params"]
  return dialogue.align(key, config, params, reward, judged, penalties=penalties)


def tilt_pool(config, key, reference):
  """What exact tilts of the pool reach: the optimizer is taken out.

  Args:
    config: of the experiment.
    key: unused.
    reference: of `train_reference`.

  Returns:
    "tilted": quantity -> values of everything in `TILTED` at the divergences of `config.tilts`;
    "best": quantity -> values of the best of `config.best_of` responses by true rewards, which
    come first in `TILTED`; "reference": those of the reference itself.
  """
  del key
  true, learned = reference["true"], reference["learned"]
  size, stored = true.shape[-1], slice(None, config.stored)
  both = jnp.moveaxis(true[:2], 0, -1)
  medians = jnp.median(both, axis=1, keepdims=True)
  by_true, by_learned = (combine(rewards, rewards[..., stored]) for rewards in (true, learned))
  by_true[CRITERION] = metrics.joint_success(both, medians).astype(jnp.float32)
  rewards = jnp.stack([*by_true.values(), *by_learned.values()])

  def judged(weights, kl):
    scores = judge(reference, true, learned, reference["valid"], weights) | dialogue.spread_of(kl)
    return {name: value for name, value in scores.items() if name != ABOVE}

  def tilted(reward, kl):
    tilt = dialogue.tilt_to(reward, kl)
    return judged(tilt.weights, tilt.kl)

  # The best of N responses is the one of a rank with the difference of two powers.
  chances = jnp.diff((jnp.arange(size + 1) / size) ** config.best_of)

  def best(reward):
    weights = chances[jnp.argsort(jnp.argsort(reward, axis=1), axis=1)]
    return judged(weights, jnp.full(len(both), metrics.best_of_n_kl(config.best_of)))

  return {
    "tilted": dialogue.map_pairs(tilted, rewards, jnp.array(config.tilts)),
    "best": jax.lax.map(best, rewards[: len(by_true)]),
    "reference": judged(jnp.full((len(both), size), 1 / size), jnp.zeros(len(both))),
  }
