"""Worlds of facts, decoders of them, and exact probabilities of all that can be said."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.kit.language_models import decoder, fit_decoder
from jaxlab import data, metrics, models
from jaxlab.data.factoids import BOS_TOKEN

RATE, MISCALIBRATION, VALIDATION = "hallucination rate", "miscalibration", "validation loss"
MONOFACT, MISSING, UNSEEN = "monofact rate", "missing mass", "share of unseen facts"
TRAINING, WEIGHT, TEMPERATURE = "training loss", "weight", "temperature"
SLACK, BOUND = "rate + miscalibration - monofact rate", "rate - lower bound"
_REPEATED_SHARE = 20  # One of so many items is repeated.
# Contexts at a time: with more, arrays leave the processor's cache.
_ROWS = 1000


class Texts(NamedTuple):
  """What a decoder is trained on.

  Attributes:
    tokens: int32 `[n, slots + 1]`.
    loss_mask: 1 on the values, `[n, slots + 1]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array


class World(NamedTuple):
  """Facts, and what was drawn of them.

  Attributes:
    codes: place of each fact among all statements, `[f]`.
    probs: its probability, `[f]`.
    counts: how often the training set has it, `[f]`.
    held_out: places of fresh draws, `[m]`.
  """

  codes: chex.Array
  probs: chex.Array
  counts: chex.Array
  held_out: chex.Array


def network(config) -> models.DecoderLM:
  """The decoder of statements."""
  hidden_size, num_layers = config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  return decoder(config.slot_size + 1, config.num_slots + 1, **sizes)


def draw_world(config, key, setting):
  """Draws facts, a training set and fresh statements.

  Args:
    config: of the experiment.
    key: random key.
    setting: traced: `exponent` of the frequencies, `items` of the training set and `copies` of
      every twentieth of them.

  Returns:
    The `World`, and what draws rows of the training set: `(key, n) -> Texts`.
  """
  world_key, item_key, fresh_key = jax.random.split(key, 3)
  world = data.sample_fact_world(
    world_key,
    num_slots=config.num_slots,
    slot_size=config.slot_size,
    num_facts=config.num_facts,
    zipf_exponent=setting["exponent"],
  )
  most = max(config.items)
  drawn = data.sample_factoids(item_key, world, num_samples=most)
  fresh = data.sample_factoids(fresh_key, world, num_samples=config.num_validation)
  items, copies = (jnp.asarray(setting[name], jnp.int32) for name in ("items", "copies"))
  num_repeated = items // _REPEATED_SHARE
  place = jnp.arange(most)
  weights = jnp.where(place < num_repeated, copies, 1) * (place < items)
  counts = jax.ops.segment_sum(weights, drawn.fact_index, config.num_facts)
  powers = config.slot_size ** jnp.arange(config.num_slots - 1, -1, -1)
  codes = jnp.sum(world.facts * powers[None], axis=1)

  def draw(key, num):
    of_repeated = num_repeated * copies
    row = jax.random.randint(key, (num,), 0, items + num_repeated * (copies - 1))
    row = jnp.where(row < of_repeated, row // copies, row - of_repeated + num_repeated)
    tokens = drawn.tokens[row]
    return Texts(tokens, jnp.ones_like(tokens, jnp.float32).at[:, 0].set(0))

  return World(codes, world.probs, counts, codes[fresh.fact_index]), draw


def statement_logits(config, params) -> jax.Array:
  """Scores of the values of every slot, in all contexts: `[contexts, slots, values]`.

  Contexts are all beginnings that lack the last value, in order; there is none of the first slot.
  """
  model, size, length = network(config), config.slot_size, config.num_slots - 1
  place = jnp.arange(size**length)[:, None]
  prefix = place // size ** jnp.arange(length - 1, -1, -1)[None] % size + 1
  prefix = jnp.pad(prefix, ((0, 0), (1, 0)), constant_values=BOS_TOKEN)

  def of_row(row):
    return model.apply({"params": params}, row[None]).logits[0, :, 1:]

  return jax.lax.map(of_row, prefix, batch_size=min(_ROWS, len(prefix)))


def statement_log_probs(logits, temperature=1.0) -> jax.Array:
  """Log-probability of every statement, `[statements]`, from `statement_logits`."""
  num_contexts, num_slots, size = logits.shape
  by_slot = jax.nn.log_softmax(logits / temperature)
  contexts, total = jnp.arange(num_contexts), by_slot[:, -1]
  for slot in range(num_slots - 1):
    value = contexts // size ** (num_slots - 2 - slot) % size
    total += by_slot[contexts, slot, value][:, None]
  return total.ravel()


def mix(log_probs, weight) -> jax.Array:
  """Probabilities of a mixture with the uniform distribution over all statements."""
  return (1 - weight) * jnp.exp(log_probs) + weight / log_probs.size


def best_weight(config, log_probs, world: World) -> jax.Array:
  """The weight of the uniform distribution under which fresh statements are likeliest."""
  weights = jnp.linspace(0.0, 1.0, config.num_weights)[:, None]
  seen = log_probs[world.held_out][None]
  uniform = jnp.log(weights) - jnp.log(float(log_probs.size))
  likelihood = jnp.mean(jnp.logaddexp(jnp.log1p(-weights) + seen, uniform), axis=1)
  return weights[jnp.argmax(likelihood), 0]


def evaluate(config, log_probs, world: World, weight=0.0) -> dict[str, jax.Array]:
  """What a model states, perhaps mixed with the uniform distribution; all of it exact."""
  probs = mix(log_probs, weight)
  truth = jnp.zeros_like(probs).at[world.codes].set(world.probs)
  error = metrics.miscalibration(probs, truth, num_bins=config.num_bins)
  rate, monofact = metrics.hallucination_rate(probs, truth > 0), metrics.monofact_rate(world.counts)
  total = jnp.sum(world.counts)
  ratio = config.num_facts / (log_probs.size - config.num_facts)
  bound = metrics.hallucination_lower_bound(monofact, error, num_samples=total, fact_ratio=ratio)
  seen = jnp.log(jnp.maximum(probs[world.codes], 1e-37))
  return {
    RATE: rate,
    MISCALIBRATION: error,
    VALIDATION: -jnp.mean(jnp.log(jnp.maximum(probs[world.held_out], 1e-37))),
    TRAINING: -jnp.sum(world.counts * seen) / total,
    SLACK: rate + error - monofact,
    BOUND: rate - bound,
  }


def measure(config, key, setting) -> dict[str, dict]:
  """Trains a decoder of one world, and evaluates it along training, temperatures and weights.

  Args:
    config: of the experiment.
    key: random key.
    setting: as for `draw_world`.

  Returns:
    Name -> what `evaluate` gives of it; stacked over checkpoints, temperatures and weights.
  """
  world_key, train_key = jax.random.split(key)
  world, draw = draw_world(config, world_key, setting)
  evaluated = lambda *args: evaluate(config, args[0], world, *args[1:])  # noqa: E731
  trained = fit_decoder(
    train_key,
    network(config),
    draw,
    num_steps=config.num_steps,
    batch_size=config.texts,
    learning_rate=config.learning_rate,
    weight_decay=config.weight_decay,
    evaluate=lambda now: evaluated(statement_log_probs(statement_logits(config, now.params))),
    eval_every=config.num_steps // config.checkpoints,
  )
  logits = statement_logits(config, trained.params)
  last = statement_log_probs(logits)
  weight = best_weight(config, last, world)
  counts = jnp.zeros(last.size).at[world.codes].set(world.counts)
  frequencies = jnp.log(counts / jnp.sum(counts))
  ideal = best_weight(config, frequencies, world)
  of_temperature = lambda t: evaluated(statement_log_probs(logits, t))  # noqa: E731
  mixtures = jax.lax.map(
    lambda pair: evaluated(jnp.where(pair[0], frequencies, last), pair[1]),
    (
      jnp.array([False, True, True, *[False] * len(config.weights)]),
      jnp.stack([weight, jnp.zeros(()), ideal, *map(jnp.float32, config.weights)]),
    ),
  )
  part = lambda i: jax.tree.map(lambda x: x[i], mixtures)  # noqa: E731
  return {
    "training set": {
      MONOFACT: metrics.monofact_rate(world.counts),
      MISSING: metrics.missing_mass(world.probs, world.counts),
      UNSEEN: jnp.mean(world.counts == 0),
    },
    "checkpoints": trained.scores,
    "temperatures": jax.lax.map(of_temperature, jnp.array(config.temperatures)),
    "calibrated": part(0) | {WEIGHT: weight},
    "frequencies": part(1),
    "ideal": part(2) | {WEIGHT: ideal},
    "weights": part(slice(3, None)),
    "bad_step": trained.bad_step,
  }
