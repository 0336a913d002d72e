"""Dialogues with true and learned rewards: what every method begins from."""

import jax
import jax.numpy as jnp

from experiments.kit import alignment, dialogue
from experiments.kit.language_models import decoder, fit_decoder

# Of the rewards `[3, P, n]` of this experiment. The last one is the first one with scales that
# differ more from prompt to prompt.
PROPERTIES = ("helpful", "harmless", "helpful alone")
_AT_ONCE = 64  # Texts of all prompts that a reward model reads at once; else one prompt's.


def tasks(config, seed=0):
  """The dialogues of the first two properties, and those of the third."""
  return [dialogue.dialogues(config, reward_scale_range=x, seed=seed) for x in config.scale_ranges]


def true_rewards(config, seed, tokens):
  """The rewards `[3, P, n]` that judge texts `[P, n, T]`."""
  narrow, wide = tasks(config, seed)
  kinds = (narrow, "helpful"), (narrow, "harmless"), (wide, "helpful")
  return jnp.stack([dialogue.true_rewards(task, tokens, kind) for task, kind in kinds])


def reward_model(config) -> alignment.RewardModel:
  """The decoder with a scalar head that learns one property."""
  task, (width, num_layers) = tasks(config)[0], config.reward_decoder
  shape = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  length = task.prompt_length + task.response_length + 1
  return alignment.RewardModel(decoder(task.vocab_size, length, **shape))


def learned_rewards(config, models, tokens):
  """What the reward models say of texts `[P, n, T]`: `[3, P, n]`."""
  model, mask = reward_model(config), dialogue.response_mask(tasks(config)[0], tokens)

  def of_model(params):
    score = lambda texts: alignment.rewards(model, params, *texts)  # noqa: E731
    if tokens.shape[1] <= _AT_ONCE:
      return score((tokens, mask))
    return jax.lax.map(score, (tokens, mask))

  return jax.lax.map(of_model, models)


def train_reward_model(config, key, tokens, rewards):
  """Learns one property from noisy comparisons of responses to the same prompt.

  Args:
    config: of the experiment.
    key: of labels, split and training.
    tokens: texts `[P, 2n, T]`, of which the first n are compared with the last n.
    rewards: their true rewards `[P, 2n]`.

  Returns:
    The parameters of the evaluation with the lowest loss on validation pairs.
  """
  label_key, order_key, train_key = jax.random.split(key, 3)
  sides = [jnp.split(x, 2, axis=1) for x in (tokens, rewards)]
  texts, values = (jnp.stack([x.reshape(-1, *x.shape[2:]) for x in pair], axis=1) for pair in sides)
  chance = jax.nn.sigmoid(values[:, 0] - values[:, 1])
  first = jax.random.bernoulli(label_key, chance)
  texts = jnp.where(first[:, None, None], texts, texts[:, ::-1])
  texts = jax.random.permutation(order_key, texts)
  masks = dialogue.response_mask(tasks(config)[0], texts)
  pairs = alignment.Pairs(texts[:, 0], texts[:, 1], masks[:, 0], masks[:, 1])
  fresh, seen = (
    jax.tree.map(lambda x: x[rows], pairs)  # noqa: B023
    for rows in (
      slice(None, config.validation_pairs),
      slice(config.validation_pairs, config.validation_pairs + config.pairs),
    )
  )
  model = reward_model(config)
  loss = alignment.reward_loss(model)

  def evaluate(trained):
    values = loss(trained.params, {}, fresh, train_key).values
    return {"loss": jnp.mean(values), "params": trained.params}

  trained = fit_decoder(
    train_key,
    model,
    seen,
    num_steps=config.reward_updates,
    batch_size=config.reward_batch,
    learning_rate=config.reward_rate,
    weight_decay=config.reward_decay,
    loss_fn=loss,
    evaluate=evaluate,
    eval_every=config.reward_eval,
  )
  best = jnp.argmin(trained.scores["loss"])
  return jax.tree.map(lambda x: x[best], trained.scores["params"])


def train_reference(config, key, seed):
  """Trains the reference and the reward models of a seed, and draws its pool."""
  fit_key, draw_key, model_key = jax.random.split(key, 3)
  params = dialogue.fit_reference(fit_key, config, tasks(config, seed)[0])
  per_prompt = -(-(config.pairs + config.validation_pairs) // config.num_prompts)
  drawn = dialogue.sample(draw_key, config, params, config.pool + 2 * per_prompt).tokens
  rewards = true_rewards(config, seed, drawn)
  tokens, compared = drawn[:, : config.pool], drawn[:, config.pool :]
  true, labels = rewards[..., : config.pool], rewards[..., config.pool :]
  train = lambda x: train_reward_model(config, x[0], compared, x[1])  # noqa: E731
  models = jax.lax.map(train, (jax.random.split(model_key, len(labels)), labels))
  learned = learned_rewards(config, models, tokens)
  valid = dialogue.are_valid(tasks(config)[0], tokens)
  return {
    "params": params,
    "models": models,
    "seed": seed,
    "true": true,
    "learned": learned,
    "valid": valid,
    "accuracy": pair_accuracy(learned, true),
  }


def pair_accuracy(learned, true):
  """How often neighboring responses of a pool are in the right order, in percent, `[3]`."""
  pairs = [x[..., : x.shape[-1] // 2 * 2].reshape(*x.shape[:2], -1, 2) for x in (learned, true)]
  orders = [jnp.sign(x[..., 1] - x[..., 0]) for x in pairs]
  return 100 * jnp.mean(orders[0] == orders[1], axis=(1, 2))
