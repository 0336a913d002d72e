"""What is optimized, and how a policy is judged: by training, on pools of samples, on a grid."""

import jax
import jax.numpy as jnp

from experiments.kit import dialogue
from jaxlab import losses, metrics

RAW, STANDARDIZED, CALIBRATED = "raw reward", "standardized reward", "calibrated reward"
BEST, WORST, LOG = "calibrated, exp(10 u)", "calibrated, -exp(-10 u)", "calibrated, log u"
METHODS = (RAW, STANDARDIZED, CALIBRATED, BEST, WORST, LOG)
TRAINED = METHODS[:-1]
FEWEST, MOST = f"{BEST}, fewest stored rewards", f"{BEST}, most stored rewards"
TILTED = (*METHODS, FEWEST, MOST)
OPTIMUM, BEST_OF_M = "optimum", "best of M responses"
_TILT = 10.0  # The paper's exponent for N = 4.

PLAIN, BEST_OF_4, WORST_OF_4 = "win rate", "best-of-4 win rate", "worst-of-4 win rate"
WIN_RATES = {PLAIN: ("best_of_n", 1), BEST_OF_4: ("best_of_n", 4), WORST_OF_4: ("worst_of_n", 4)}
VALID = ", valid responses"

# Standardized rewards are cut here; responses of a wrong length stand at the lower end.
_EXTREME = 4.0
# Penalties between which the optimum on the grid is interpolated.
_BETAS = (0.01, 1.0, 24)


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
  fit_key, draw_key = jax.random.split(key)
  params = dialogue.fit_reference(fit_key, config, task)
  tokens = dialogue.sample(draw_key, config, params, config.pool + config.judged).tokens
  true, valid = dialogue.true_rewards(task, tokens, "helpful"), dialogue.are_valid(task, tokens)
  (true, judge), (valid, judge_valid) = (jnp.split(x, [config.pool], axis=1) for x in (true, valid))
  seen = distort(true, valid, true, valid, config.scale_range)
  pool = {"true": true, "valid": valid, "seen": seen}
  judges = {"judge": judge, "judge valid": judge_valid}
  return {"params": params, "seed": seed} | pool | judges


def train_policy(config, key, argument):
  """Trains the policy of one method at one penalty after the other, and judges it.

  Args:
    config: of the experiment.
    key: of training and of the responses that are judged.
    argument: the reference of `train_reference`, and the number of the method, which is traced.

  Returns:
    quantity -> values at the penalties that would tilt to `config.aims`.
  """
  reference, method = argument
  task = dialogue.dialogues(config, reward_scale_range=config.scale_range, seed=reference["seed"])
  stored = reference["seen"][:, : config.stored[1]]

  def true_and_valid(tokens):
    return dialogue.true_rewards(task, tokens, "helpful"), dialogue.are_valid(task, tokens)

  def reward(tokens):
    pool = reference["true"], reference["valid"]
    seen = distort(*true_and_valid(tokens), *pool, config.scale_range)
    return transform(method, seen, stored)

  def judge(tokens):
    pools = [true_and_valid(tokens), (reference["judge"], reference["judge valid"])]
    scores = {}
    for name, (procedure, n) in WIN_RATES.items():
      options = {"num_samples": n, "procedure": procedure}
      for suffix, rewards in (
        ("", [true for true, _ in pools]),
        (VALID, [repeat_valid(*pool) for pool in pools]),
      ):
        scores[name + suffix] = 100 * jnp.mean(metrics.pool_win_rate(*rewards, **options))
    return scores

  pool = transform(method, reference["seen"], stored)
  penalties = jax.lax.map(lambda kl: dialogue.tilt_to(pool, kl).beta, jnp.array(config.aims))
  params = reference["params"]
  return dialogue.align(key, config, params, reward, judge, penalties=penalties)


def repeat_valid(rewards, valid):
  """Rewards `[P, n]` of the valid responses alone, which are repeated until there are n."""
  first = jnp.argsort(~valid, axis=1, stable=True)
  count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
  places = jnp.take_along_axis(first, jnp.arange(valid.shape[1])[None] % count, axis=1)
  return jnp.take_along_axis(rewards, places, axis=1)


def tilt_pool(config, key, reference):
  """Win rates of exact tilts of the pool: what a perfect optimizer would reach.

  Returns:
    quantity -> values of every method of `TILTED` at the divergences of `config.tilts`.
  """
  del key
  seen, order = reference["seen"], jnp.argsort(reference["true"], axis=1)
  fewest, number, most = config.stored
  numbers = {FEWEST: fewest, MOST: most}

  def optimized(name):
    method = METHODS.index(BEST if name in numbers else name)
    return transform(method, seen, seen[:, : numbers.get(name, number)])

  def at(rewards, kl):
    weights = dialogue.tilt_to(rewards, kl).weights
    return win_rates(weights.shape[1] * jnp.take_along_axis(weights, order, axis=1))

  rewards = jnp.stack([optimized(name) for name in TILTED])
  return dialogue.map_pairs(at, rewards, jnp.array(config.tilts))


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
  cells = (jnp.arange(config.cells)[None] + 0.5) / config.cells

  def at(rewards, kl):
    return win_rates(config.cells * dialogue.tilt_to(rewards, kl).weights)

  exact = (CALIBRATED, BEST, WORST, LOG)
  rewards = jnp.stack([transform(METHODS.index(method), cells, cells) for method in exact])
  rates = dialogue.map_pairs(at, rewards, jnp.array(config.tilts))
  scores = {m: {name: x[i] for name, x in rates.items()} for i, m in enumerate(exact)}

  def highest(quantity):
    procedure, n = WIN_RATES[quantity]
    options = {"num_samples": n, "procedure": procedure, "grid_size": config.cells}

    def point(beta):
      density = metrics.optimal_transform(beta=beta, **options).density
      return metrics.density_kl(density), win_rates(density[None])[quantity]

    kl, rates = jax.vmap(point)(jnp.geomspace(*_BETAS))
    return metrics.value_at_kl(kl, rates, at=jnp.array(config.tilts))

  # Of single responses the calibrated reward is the optimum.
  best = {PLAIN: scores[CALIBRATED][PLAIN]}
  return scores | {OPTIMUM: best | {name: highest(name) for name in (BEST_OF_4, WORST_OF_4)}}
