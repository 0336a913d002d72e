"""Pairs of a reference's responses, and what learns from them."""

import jax
import jax.numpy as jnp
import optax

from experiments.kit import dialogue
from experiments.kit.alignment import (
  Pairs,
  RewardModel,
  pair_log_probs,
  pair_loss,
  post_train,
  post_trainer,
  reward_loss,
  rewards,
)
from experiments.kit.train import Trained, train
from jaxlab import algorithms, losses, metrics, training

SPLITS = ("training", "validation", "test")
KL, WIN_RATE, LOSS, PREFERENCE = "KL", "win rate", "loss", "preference accuracy"
LOWEST, DECIDES = "lowest loss", "threshold decides"


def ranking(part: str) -> str:
  """The quantity: ranking accuracy in percent on a part of the pairs."""
  return f"ranking accuracy, {part} pairs"


def draw(config, key, seed):
  """Trains the reference of a seed, and draws pairs of its responses with their preferences.

  Returns:
    The `seed`; `params` of the reference; `pairs` of all splits, one split after the other, the
    truly preferred response first; `strength`, the log-odds that people prefer it; `agrees`,
    whether its label does; `reference` log-probabilities `[n, 2]`; true rewards of other responses,
    `judge` `[P, m]`; the share of `valid` responses, and whether there were enough `distinct` ones.
  """
  task = dialogue.dialogues(config, reward_scale_range=1.0, seed=seed)
  fit_key, sample_key, order_key, label_key, judge_key = jax.random.split(key, 5)
  params = dialogue.fit_reference(fit_key, config, task)
  rollout = dialogue.sample(sample_key, config, params, config.samples)
  true = config.sharpness * dialogue.true_rewards(task, rollout.tokens, "helpful")
  equal = jnp.all(rollout.tokens[:, :, None] == rollout.tokens[:, None], axis=-1)
  valid = dialogue.are_valid(task, rollout.tokens)
  usable = valid & ~jnp.any(jnp.tril(equal, -1), axis=-1)
  num = 2 * -(-sum(config.pairs) // task.num_prompts)  # Responses of a prompt.
  first = jnp.argsort(~usable, axis=1, stable=True)[:, :num]
  order = jax.random.permutation(order_key, num // 2 * task.num_prompts)[: sum(config.pairs)]

  def pair_up(values):
    values = jax.vmap(lambda x, rows: x[rows])(values, first)
    return values.reshape(-1, 2, *values.shape[2:])[order]

  true, tokens, mask = map(pair_up, (true, rollout.tokens, rollout.mask))
  right = true[:, 0] > true[:, 1]
  pairs = Pairs(
    *order_sides(right, *tokens.swapaxes(0, 1)), *order_sides(right, *mask.swapaxes(0, 1))
  )
  strength = jnp.abs(true[:, 0] - true[:, 1])
  judge = dialogue.sample(judge_key, config, params, config.judged)
  return {
    "seed": jnp.asarray(seed),
    "params": params,
    "pairs": pairs._asdict(),
    "strength": strength,
    "agrees": jax.random.bernoulli(label_key, jax.nn.sigmoid(strength)),
    "reference": pair_log_probs(dialogue.policy(config), params, pairs),
    "judge": dialogue.true_rewards(task, judge.tokens, "helpful"),
    "valid": 100 * jnp.mean(valid),
    "distinct": jnp.min(jnp.sum(usable, axis=1)) >= num,
  }


def order_sides(keep, first, second):
  """The two sides of pairs, swapped where `keep` is not true."""
  keep = keep.reshape(-1, *[1] * (first.ndim - 1))
  return jnp.where(keep, first, second), jnp.where(keep, second, first)


def split(config, values, name):
  """A part of values of all pairs."""
  start = sum(config.pairs[: SPLITS.index(name)])
  stop = start + config.pairs[SPLITS.index(name)]
  return jax.tree.map(lambda x: x[start:stop], values)


def labeled(config, drawn, name):
  """A part of the pairs as their labels have them, and the reference's log-probabilities."""
  pairs, agrees = Pairs(**drawn["pairs"]), drawn["agrees"]
  tokens = order_sides(agrees, pairs.chosen_tokens, pairs.rejected_tokens)
  masks = order_sides(agrees, pairs.chosen_mask, pairs.rejected_mask)
  reference = jnp.stack(order_sides(agrees, *drawn["reference"].T), axis=1)
  return split(config, (Pairs(*tokens, *masks), reference), name)


def fit(config, key, model, params, loss_fn, rows, rate, evaluate):
  """Trains with Adam; what `evaluate` gives of parameters, `[evaluations, ...]`."""
  return train(
    key,
    model,
    loss_fn,
    optax.adam(rate),
    rows,
    num_steps=config.updates,
    batch_size=config.batch_size,
    start=Trained(params, {}),
    evaluate=lambda trained: evaluate(trained.params),
    eval_every=config.eval_every,
  ).scores


def validation_scores(config, drawn, margins):
  """Logistic loss and accuracy in percent of margins of all pairs, by the labels of validation."""
  signed = split(config, jnp.where(drawn["agrees"], margins, -margins), "validation")
  return {LOSS: jnp.mean(jax.nn.softplus(-signed)), PREFERENCE: 100 * jnp.mean(signed > 0)}


def train_dpo(config, key, argument):
  """DPO of one penalty and learning rate.

  Args:
    config: of the experiment.
    key: of the order of the pairs, and of samples.
    argument: the result of `draw`; the setting: `beta`, `rate`.

  Returns:
    Quantities of every evaluation. And log-ratios of all pairs, at the `best` one by the loss on
    validation pairs, and at the `last` one.
  """
  drawn, setting = argument
  model, beta, reference = dialogue.policy(config), setting["beta"], drawn["reference"]
  order_key, sample_key = jax.random.split(key)
  dpo = lambda *log_probs: losses.dpo_loss(*log_probs, beta=beta)  # noqa: E731
  least = metrics.ranking_loss_threshold(*reference.T, beta=beta)

  def evaluate(params):
    log_probs = pair_log_probs(model, params, Pairs(**drawn["pairs"]))
    ratios = log_probs[:, 0] - log_probs[:, 1]
    margins = beta * (ratios - (reference[:, 0] - reference[:, 1]))
    below = dpo(*log_probs.T, *reference.T) < least
    return {
      "ratios": ratios,
      DECIDES: 100 * jnp.mean(below == (ratios > 0)),
      **validation_scores(config, drawn, margins),
      **rank(config, ratios),
      **judge(config, sample_key, drawn, params),
    }

  rows = labeled(config, drawn, "training")
  loss_fn = pair_loss(model, dpo)
  scores = fit(config, order_key, model, drawn["params"], loss_fn, rows, setting["rate"], evaluate)
  ratios, best = scores.pop("ratios"), jnp.argmin(scores[LOSS])
  chosen = {"best": ratios[best], "last": ratios[-1]}
  return scores | chosen | {"best evaluation": best, LOWEST: scores[LOSS][best]}


def rank(config, ratios):
  """Ranking accuracies in percent on the parts of all pairs, by their log-ratios."""
  parts = {name: split(config, ratios, name) for name in SPLITS}
  accuracy = lambda x: 100 * metrics.ranking_accuracy(x, jnp.zeros_like(x))  # noqa: E731
  return {ranking(name): accuracy(part) for name, part in parts.items()}


def judge(config, key, drawn, params):
  """Win rate in percent of responses against the reference's, and the divergence in nats."""
  task = dialogue.dialogues(config, reward_scale_range=1.0, seed=drawn["seed"])
  rollout = dialogue.sample(key, config, params, config.judged)
  true = dialogue.true_rewards(task, rollout.tokens, "helpful")
  kl = jnp.mean(dialogue.divergences(config, drawn["params"], rollout))
  return {WIN_RATE: 100 * jnp.mean(metrics.pool_win_rate(true, drawn["judge"])), KL: kl}


def train_rewards(config, key, argument):
  """An explicit reward model on the same pairs, which begins as the reference with another head.

  Returns:
    Its differences of rewards, `ahead` `[n]`, and the validation loss, where this is lowest.
  """
  drawn, setting = argument
  model, (rows, _) = RewardModel(dialogue.policy(config)), labeled(config, drawn, "training")
  order_key, init_key = jax.random.split(key)

  def evaluate(params):
    pairs = Pairs(**drawn["pairs"])
    chosen = rewards(model, params, pairs.chosen_tokens, pairs.chosen_mask)
    ahead = chosen - rewards(model, params, pairs.rejected_tokens, pairs.rejected_mask)
    return {"ahead": ahead, **validation_scores(config, drawn, ahead)}

  params = dict(model.init(init_key, rows.chosen_tokens[:1])["params"])
  params["decoder"] = drawn["params"]
  loss_fn = reward_loss(model)
  scores = fit(config, order_key, model, params, loss_fn, rows, setting["rate"], evaluate)
  return jax.tree.map(lambda x: x[jnp.argmin(scores[LOSS])], scores)


def train_sft(config, key, argument):
  """SFT on the responses that labels prefer.

  Returns:
    Log-`ratios` of all pairs, and the validation loss in nats a response, where this is lowest.
  """
  drawn, setting = argument
  model, (rows, _) = dialogue.policy(config), labeled(config, drawn, "training")

  def loss_fn(params, model_state, batch, key):
    del model_state, key
    return training.LossOutput(-pair_log_probs(model, params, batch)[:, 0])

  def evaluate(params):
    log_probs = pair_log_probs(model, params, Pairs(**drawn["pairs"]))
    preferred, _ = order_sides(drawn["agrees"], *log_probs.T)
    loss = -jnp.mean(split(config, preferred, "validation"))
    return {"ratios": log_probs[:, 0] - log_probs[:, 1], LOSS: loss}

  scores = fit(config, key, model, drawn["params"], loss_fn, rows, setting["rate"], evaluate)
  return jax.tree.map(lambda x: x[jnp.argmin(scores[LOSS])], scores)


def train_on_policy(config, key, argument):
  """Leave-one-out policy gradient on the true reward, of which labels are drawn.

  Returns:
    Log-`ratios` of all pairs, `objective`, win rate and divergence at the end.
  """
  drawn, setting = argument
  task = dialogue.dialogues(config, reward_scale_range=1.0, seed=drawn["seed"])
  model, beta = dialogue.policy(config), setting["beta"]

  def score(rollout, _):
    return config.sharpness * dialogue.true_rewards(task, rollout.tokens, "helpful")

  trainer = post_trainer(
    model,
    score,
    algorithms.rloo_objective(),
    optax.adam(optax.cosine_decay_schedule(setting["rate"], config.policy_updates)),
    num_samples=config.policy_samples,
    max_new_tokens=task.response_length + 1,
    eos_token_id=task.end_token,
    kl_penalty=beta,
  )
  train_key, sample_key = jax.random.split(key)
  prompts = dialogue.prompts(task)
  trained = post_train(
    train_key, trainer, drawn["params"], lambda _: prompts, num_steps=config.policy_updates
  )
  log_probs = pair_log_probs(model, trained.params, Pairs(**drawn["pairs"]))
  late = jax.tree.map(lambda x: jnp.mean(x[-(config.policy_updates // 4) :]), trained.infos)
  objective = late.reward - beta * late.kl
  scores = {"ratios": log_probs[:, 0] - log_probs[:, 1], "objective": objective}
  return scores | judge(config, sample_key, drawn, trained.params)
