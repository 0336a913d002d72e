"""What is optimized, and how a policy is judged: by training, on pools of samples, on a grid."""

import jax
import jax.numpy as jnp
import optax

from experiments.kit import dialogue
from experiments.kit.alignment import post_train, post_trainer
from jaxlab import algorithms, losses, metrics

RAW, STANDARDIZED, CALIBRATED = "raw reward", "standardized reward", "calibrated reward"
BEST, WORST, LOG = "calibrated, exp(10 u)", "calibrated, -exp(-10 u)", "calibrated, log u"
METHODS = (RAW, STANDARDIZED, CALIBRATED, BEST, WORST, LOG)
TRAINED = METHODS[:-1]
FEWEST, MOST = f"{BEST}, fewest stored rewards", f"{BEST}, most stored rewards"
OPTIMUM, BEST_OF_M = "optimum", "best of M responses"
_TILT = 10.0  # The paper's exponent for N = 4.

PLAIN, BEST_OF_4, WORST_OF_4 = "win rate", "best-of-4 win rate", "worst-of-4 win rate"
WIN_RATES = {PLAIN: ("best_of_n", 1), BEST_OF_4: ("best_of_n", 4), WORST_OF_4: ("worst_of_n", 4)}
VALID = ", valid responses"

# Standardized rewards are cut here; responses of a wrong length stand at the lower end.
_EXTREME = 4.0
# Cells of the grid, and penalties between which its optimum is interpolated.
_CELLS, _BETAS = 2000, (0.01, 1.0, 24)


def transform(method, rewards, stored):
  """The rewards `[P, n]` that a method optimizes.

  Args:
    method: its number in `METHODS`, which may be traced.
    rewards: those that training sees, `[P, n]`.
    stored: those of the reference's responses, `[P, k]`.

  Returns:
    `[P, n]`.
  """
  calibrated = losses.calibrate_rewards(rewards, stored)
  mean, std = jnp.mean(stored, axis=1, keepdims=True), jnp.std(stored, axis=1, keepdims=True)
  options = {
    RAW: rewards,
    STANDARDIZED: (rewards - mean) / (std + 1e-6),
    CALIBRATED: calibrated,
    BEST: losses.exponential_reward(calibrated, tilt=_TILT),
    WORST: losses.exponential_reward(calibrated, tilt=-_TILT),
    LOG: losses.log_reward(calibrated),
  }
  return jnp.stack([options[name] for name in METHODS])[method]


def distort(rewards, valid, pool, pool_valid, scale_range):
  """What training sees of true rewards: a monotone map, another one from prompt to prompt.

  Rewards are standardized by those of the pool; the maps are tanh(2z), z and sinh(1.5z) in turn,
  times the scale of the prompt.

  Args:
    rewards: true rewards `[P, n]`.
    valid: which responses have the right length, `[P, n]`.
    pool: true rewards of the reference, `[P, m]`.
    pool_valid: likewise, `[P, m]`.
    scale_range: ratio of the largest scale to the smallest.

  Returns:
    `[P, n]`.
  """
  mean = jnp.mean(pool, axis=1, keepdims=True, where=pool_valid)
  std = jnp.std(pool, axis=1, keepdims=True, where=pool_valid)
  z = jnp.clip((rewards - mean) / (std + 1e-6), -_EXTREME, _EXTREME)
  z = jnp.where(valid, z, -_EXTREME)
  prompt = jnp.arange(len(rewards))[:, None]
  maps = jnp.tanh(2 * z), z, jnp.sinh(1.5 * z)
  scale = scale_range ** (prompt / max(len(rewards) - 1, 1) - 0.5)
  return scale * jnp.select([prompt % 3 == i for i in range(3)], maps)


def train_reference(config, key, seed):
  """Trains the reference of a seed; draws its pool, and the responses that policies must beat."""
  task = dialogue.dialogues(config, reward_scale_range=config.scale_range, seed=seed)
  fit_key, pool_key, judge_key = jax.random.split(key, 3)
  params = dialogue.fit_reference(fit_key, config, task)

  def rewards(key, num_samples):
    tokens = dialogue.sample(key, config, params, num_samples).tokens
    return dialogue.true_rewards(task, tokens, "helpful"), dialogue.are_valid(task, tokens)

  true, valid = rewards(pool_key, config.pool)
  seen = distort(true, valid, true, valid, config.scale_range)
  pools = {"true": true, "valid": valid, "seen": seen}
  judge = dict(zip(("judge", "judge valid"), rewards(judge_key, config.judged)))
  return {"params": params, "seed": seed} | pools | judge


def train_policy(config, key, argument):
  """Trains the policy of one method, and judges it by fresh responses.

  Args:
    config: of the experiment.
    key: of training and of the responses.
    argument: the reference of `train_reference`; and, traced, the number of the `method` and the
      divergence `aim` to which the penalty would tilt.

  Returns:
    Measured divergences and win rates.
  """
  reference, setting = argument
  task = dialogue.dialogues(config, reward_scale_range=config.scale_range, seed=reference["seed"])
  stored = reference["seen"][:, : config.stored[1]]
  pool = transform(setting["method"], reference["seen"], stored)
  beta = dialogue.tilt_to(pool, setting["aim"]).beta

  def judged(rollout):
    true = dialogue.true_rewards(task, rollout.tokens, "helpful")
    return true, dialogue.are_valid(task, rollout.tokens)

  def score(rollout, _):
    pool = reference["true"], reference["valid"]
    return distort(*judged(rollout), *pool, config.scale_range)

  trainer = post_trainer(
    dialogue.policy(config),
    score,
    algorithms.rloo_objective(),
    optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates)),
    num_samples=config.samples,
    max_new_tokens=task.response_length + 1,
    eos_token_id=task.end_token,
    transform_fn=lambda rewards, _: transform(setting["method"], rewards, stored),
    kl_penalty=beta,
  )
  train_key, judge_key = jax.random.split(key)
  prompts = dialogue.prompts(task)
  trained = post_train(
    train_key, trainer, reference["params"], lambda _: prompts, num_steps=config.updates
  )
  rollout = dialogue.sample(judge_key, config, trained.params, config.judged)
  kl = dialogue.divergences(config, reference["params"], rollout)
  ours, valid = judged(rollout)
  theirs, theirs_valid = reference["judge"], reference["judge valid"]
  scores = {"KL": jnp.mean(kl), "penalty": beta, "valid": 100 * jnp.mean(valid)}
  scores |= {f"KL, {q}% of prompts": jnp.percentile(kl, q) for q in (10, 90)}
  scores["skipped updates"] = jnp.sum(trained.infos.num_skipped)
  among_valid = repeat_valid(ours, valid), repeat_valid(theirs, theirs_valid)
  for name, (procedure, n) in WIN_RATES.items():
    for suffix, pools in (("", (ours, theirs)), (VALID, among_valid)):
      rates = metrics.pool_win_rate(*pools, num_samples=n, procedure=procedure)
      scores[name + suffix] = 100 * jnp.mean(rates)
  return scores


def repeat_valid(rewards, valid):
  """Rewards `[P, n]` of the valid responses alone, which are repeated until there are n."""
  first = jnp.argsort(~valid, axis=1, stable=True)
  count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
  places = jnp.take_along_axis(first, jnp.arange(valid.shape[1])[None] % count, axis=1)
  return jnp.take_along_axis(rewards, places, axis=1)


def tilt_pool(config, key, reference):
  """Win rates of exact tilts of the pool: what a perfect optimizer would reach.

  Returns:
    method -> quantity -> values at the divergences of `config.tilts`.
  """
  del key
  seen, order = reference["seen"], jnp.argsort(reference["true"], axis=1)

  def tilted(method, num_stored):
    rewards = transform(METHODS.index(method), seen, seen[:, :num_stored])

    def at(kl):
      weights = dialogue.tilt_to(rewards, kl).weights
      return win_rates(weights.shape[1] * jnp.take_along_axis(weights, order, axis=1))

    return jax.lax.map(at, jnp.array(config.tilts))

  fewest, number, most = config.stored
  scores = {method: tilted(method, number) for method in METHODS}
  return scores | {FEWEST: tilted(BEST, fewest), MOST: tilted(BEST, most)}


def win_rates(densities):
  """Win rates in percent, means over densities `[P, G]` of the true reward, worst first."""
  scores = {}
  for name, (procedure, n) in WIN_RATES.items():
    best = procedure == "best_of_n"
    win_rate = metrics.best_of_n_win_rate if best else metrics.worst_of_n_win_rate
    scores[name] = 100 * jnp.mean(jax.vmap(lambda f: win_rate(f, num_samples=n))(densities))  # noqa: B023
  return scores


def solve_grid(config):
  """Win rates of perfectly calibrated rewards, and the highest ones that there are.

  Returns:
    method -> quantity -> values at the divergences of `config.tilts`.
  """
  cells = (jnp.arange(_CELLS)[None] + 0.5) / _CELLS

  def tilted(method):
    rewards = transform(METHODS.index(method), cells, cells)
    tilt = lambda kl: win_rates(_CELLS * dialogue.tilt_to(rewards, kl).weights)  # noqa: E731
    return jax.lax.map(tilt, jnp.array(config.tilts))

  def highest(quantity):
    procedure, n = WIN_RATES[quantity]

    def point(beta):
      density = metrics.optimal_transform(num_samples=n, beta=beta, procedure=procedure).density
      return metrics.density_kl(density), win_rates(density[None])[quantity]

    kl, rates = jax.vmap(point)(jnp.geomspace(*_BETAS))
    return metrics.value_at_kl(kl, rates, at=jnp.array(config.tilts))

  scores = {method: tilted(method) for method in (CALIBRATED, BEST, WORST, LOG)}
  return scores | {OPTIMUM: {quantity: highest(quantity) for quantity in WIN_RATES}}
