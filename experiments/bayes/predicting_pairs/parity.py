"""Questions that a network does not learn to answer: a parity of many bits, beside plain coins."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit.train import classification_loss, predict, train
from jaxlab import losses, models, uncertainty

PAIRS, ENSEMBLE = "pairs", "ensemble"
EASY, COIN, HARD = "one bit", "coin", "parity"
KINDS = EASY, COIN, HARD


class Questions(NamedTuple):
  """Bits of 1 and -1 and a one-hot kind `[b, n + 3]`; two answers; true probabilities `[b, 2]`."""

  inputs: chex.Array
  labels_a: chex.Array
  labels_b: chex.Array
  probs: chex.Array
  kinds: chex.Array


def draw(config, key: chex.PRNGKey, order: chex.Numeric, batch_size: int) -> Questions:
  """Draws questions of all kinds; a parity is that of the first `order` bits."""
  bit_key, kind_key, label_key = jax.random.split(key, 3)
  bits = jax.random.bernoulli(bit_key, shape=(batch_size, config.num_bits))
  kinds = jax.random.randint(kind_key, (batch_size,), 0, len(KINDS))
  odd = jnp.sum(bits & (jnp.arange(config.num_bits) < order), axis=1) % 2
  answers = jnp.stack([bits[:, -1].astype(jnp.float32), jnp.full(batch_size, 0.5), odd], axis=1)
  share = jnp.take_along_axis(answers, kinds[:, None], axis=1)
  labels = (jax.random.uniform(label_key, (2, batch_size)) < share[:, 0]).astype(jnp.int32)
  inputs = jnp.concatenate([2.0 * bits - 1, jax.nn.one_hot(kinds, len(KINDS))], axis=1)
  return Questions(inputs, *labels, jnp.concatenate([1 - share, share], axis=1), kinds)


def measure(config, row: str, key: chex.PRNGKey, order: chex.Numeric) -> dict[str, jax.Array]:
  """Trains pairs or an ensemble on fresh questions; means by kind, over both answers, `[3]`."""
  module = models.MLP(4 if row == PAIRS else 2, config.widths)
  test_key, train_key = jax.random.split(key)
  test = draw(config, test_key, order, config.num_questions)

  def loss_fn(apply, key, batch):
    del key
    logits, labels = apply(batch.inputs).logits, (batch.labels_a, batch.labels_b)
    if row == PAIRS:
      return losses.pair_nll(logits.reshape(-1, 2, 2), *labels)
    return sum(optax.softmax_cross_entropy_with_integer_labels(logits, y) for y in labels)

  def outputs(key):
    trained = train(
      key,
      module,
      classification_loss(module, loss_fn),
      optax.adam(config.learning_rate),
      lambda key, size: draw(config, key, order, size),
      num_steps=config.parity_steps,
      batch_size=config.draws_per_update,
    )
    return predict(module, trained.variables, test.inputs).logits, trained.bad_step

  if row == PAIRS:
    logits, bad_step = outputs(train_key)
    joint = losses.pair_log_probs(logits.reshape(-1, 2, 2))
    probs, variance = uncertainty.pair_marginal(joint), uncertainty.epistemic_variance(joint)
  else:
    keys = jax.random.split(train_key, config.num_members)
    logits, bad_step = jax.lax.map(outputs, keys)
    members = jax.nn.softmax(logits)
    probs, variance = jnp.mean(members, axis=0), uncertainty.ensemble_variance(members)
  kinds = jax.nn.one_hot(test.kinds, len(KINDS))

  def by_kind(values):
    return jnp.mean(values, axis=1) @ kinds / jnp.sum(kinds, axis=0)

  error = jnp.square(test.probs - probs)
  return {"variance": by_kind(variance), "squared error": by_kind(error), "bad_step": bad_step}
