"""Dialogues with true and learned rewards: what every method begins from."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.kit import alignment, dialogue
from experiments.kit.language_models import fit_decoder

# Of the rewards `[3, P, n]` of this experiment. The last one is the first one with scales that
# differ more from prompt to prompt.
PROPERTIES = ("helpful", "harmless", "helpful alone")


def tasks(config, seed=0):
  """The dialogues of the first two properties, and those of the third."""
  return [dialogue.dialogues(config, reward_scale_range=x, seed=seed) for x in config.scale_ranges]


def true_rewards(config, seed, tokens):
  """The rewards `[3, P, n]` that judge texts `[P, n, T]`."""
  narrow, wide = tasks(config, seed)
  kinds = (narrow, "helpful"), (narrow, "harmless"), (wide, "helpful")
  return jnp.stack([dialogue.true_rewards(task, tokens, kind) for task, kind in kinds])


class RewardModel(nn.Module):
  """Sums the worth of the tokens of a response, by prompt, and of its neighboring tokens.

  Logistic regression on comparisons: what a network learns of the few comparisons of a prompt is
  mostly noise.
  """

  vocab_size: int

  @nn.compact
  def __call__(self, tokens, mask=None):
    """Rewards `[b]` of texts `[b, T]`, by their tokens in the mask."""
    shape = (self.vocab_size, self.vocab_size)
    worth, pairs = (self.param(name, nn.initializers.zeros, shape) for name in ("token", "pair"))
    mask = jnp.ones(tokens.shape) if mask is None else mask.astype(jnp.float32)
    singles = jnp.sum(mask * worth[tokens[:, :1], tokens], axis=1)
    neighbors = mask[:, 1:] * mask[:, :-1] * pairs[tokens[:, :-1], tokens[:, 1:]]
    return singles + jnp.sum(neighbors, axis=1)


def learned_rewards(config, models, tokens):
  """What the reward models say of texts `[P, n, T]`: `[3, P, n]`."""
  task = tasks(config)[0]
  model, mask = RewardModel(task.vocab_size), dialogue.response_mask(task, tokens)
  return jax.lax.map(lambda params: alignment.rewards(model, params, tokens, mask), models)


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
  task = tasks(config)[0]
  masks = dialogue.response_mask(task, texts)
  pairs = alignment.Pairs(texts[:, 0], texts[:, 1], masks[:, 0], masks[:, 1])
  fresh, seen = (
    jax.tree.map(lambda x: x[rows], pairs)  # noqa: B023
    for rows in (
      slice(None, config.validation_pairs),
      slice(config.validation_pairs, config.validation_pairs + config.pairs),
    )
  )
  model = RewardModel(task.vocab_size)
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
