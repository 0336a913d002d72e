"""People whom documents ask about, decoders of these, and what a decoder knows of each fact."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit.language_models import decoder, fit_decoder
from jaxlab import data, metrics, models, training
from jaxlab.data.factoids import ANSWER_TOKEN, LINE_END_TOKEN, QUESTION_TOKEN

FACTUAL, ERROR, IGNORANT = range(3)  # Of `metrics.knowledge_category`.
TRAIN, VALIDATION, TEST = range(3)  # Parts of the people.
_SHARES = TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST, TEST
_LINE, _MARK = 6, 3  # Tokens of a line, and the place of the answer mark.
_ATTRIBUTES = LINE_END_TOKEN + 2  # First token of an attribute.
_TABLE = "num_people", "num_attributes", "num_values"
_TEXTS = "num_documents", "num_lines", "unreliable_fraction", "zipf_exponent"
# Prompts at a time: with more, arrays leave the processor's cache.
_ROWS = 500


class Facts(NamedTuple):
  """All facts of a seed, `[f]`, and prompts that ask about them."""

  people: chex.Array
  attributes: chex.Array
  answers: chex.Array
  counts: chex.Array  # How often the documents state each.
  parts: chex.Array  # Of its person: the facts of a person share it.
  prompts: chex.Array  # Two draws, by the number of wrong answers, first none: `[2, n, f, t]`.


class Asked(NamedTuple):
  """What a model knows, and how it answers after wrong answers, `[f, ...]`."""

  category: chex.Array
  again: chex.Array  # The category after other wrong answers.
  prompts: chex.Array  # With as many wrong answers as lead it astray about half of the time.
  answers: chex.Array  # Its greedy ones to these.
  outputs: chex.Array  # Largest probability, entropy and margin of its answers.
  scores: dict[str, chex.Array]  # What says how well this worked.


def network(config) -> models.DecoderLM:
  """The decoder of documents, and of one more line."""
  hidden_size, num_layers = config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  vocab_size = first_value(config) + config.num_values + config.num_people
  return decoder(vocab_size, _LINE * (config.num_lines + 1), **sizes)


def first_value(config) -> int:
  """The token of the first value."""
  return _ATTRIBUTES + config.num_attributes


def true_values(config, seed) -> jax.Array:
  """What is true of each person, `[people, attributes]`."""
  sizes = {name: getattr(config, name) for name in _TABLE}
  return data.reliability_answers(table_seed=seed, **sizes)


def told_values(table, people, attributes, wrong) -> jax.Array:
  """True values, or where `wrong` the myth of the attribute: one value, unless that is true."""
  true = table[people, attributes]
  return jnp.where(wrong, attributes + (true == attributes), true)


def documents(config, seed) -> data.ReliabilityDocuments:
  """The documents of a seed, the same for both models; unreliable ones tell myths."""
  key = jax.random.fold_in(jax.random.key(seed), 1)
  sizes = {name: getattr(config, name) for name in (*_TABLE, *_TEXTS)}
  texts = data.reliability_documents(key, table_seed=seed, **sizes)
  asked, wrong = (texts.people, texts.attributes), texts.unreliable[:, None]
  values = told_values(true_values(config, seed), *asked, wrong) + first_value(config)
  lines = texts.tokens.reshape(*values.shape, _LINE).at[..., _MARK + 1].set(values)
  return texts._replace(tokens=lines.reshape(texts.tokens.shape))


def answer_loss(config, model: models.DecoderLM):
  """The engine's loss: cross-entropy of the answers among the values."""

  def loss(params, model_state, batch, key):
    del model_state, key
    # Scores of all tokens at all places are not asked for, and not computed.
    hidden = model.apply({"params": params}, batch.tokens, return_hidden=True).hidden
    values = batch.tokens[:, _MARK + 1 :: _LINE] - first_value(config)
    logits = value_logits(config, params, hidden[:, _MARK::_LINE])
    return training.LossOutput(optax.softmax_cross_entropy_with_integer_labels(logits, values))

  return loss


def value_logits(config, params, hidden) -> jax.Array:
  """Scores of the values alone, `[..., values]`."""
  first = first_value(config)
  return hidden @ params["embed"]["embedding"][first : first + config.num_values].T


def fit_model(config, key, seed) -> dict[str, Any]:
  """Trains a decoder on the documents of a seed, each of them read once."""
  model, num_steps = network(config), config.num_documents // config.batch_size
  sizes = {"num_steps": num_steps, "batch_size": config.batch_size}
  options = {"learning_rate": config.learning_rate, "loss_fn": answer_loss(config, model)}
  trained = fit_decoder(key, model, documents(config, seed), **sizes, **options)
  return {"params": trained.params, "bad_step": trained.bad_step}


def draw_facts(config, key, seed) -> Facts:
  """All facts of a seed, parted by people, with prompts whose shots ignore the question."""
  part_key, *keys = jax.random.split(key, 3 + 2 * len(config.wrong_shots))
  table, texts = true_values(config, seed), documents(config, seed)
  people, attributes = (
    x.ravel() for x in jnp.indices((config.num_people, config.num_attributes), dtype=jnp.int32)
  )
  stated = jnp.broadcast_to(~texts.unreliable[:, None], texts.people.shape).astype(jnp.int32)
  index = texts.people * config.num_attributes + texts.attributes
  counts = jax.ops.segment_sum(stated.ravel(), index.ravel(), len(people))
  # Of ten people of about equal frequency, five are in the first part.
  tens = jax.random.split(part_key, -(-config.num_people // len(_SHARES)))
  parts = jax.vmap(lambda k: jax.random.permutation(k, jnp.array(_SHARES)))(tens).ravel()

  def prompts(key, num_wrong):
    who_key, what_key, order_key = jax.random.split(key, 3)
    shape = len(people), config.num_shots
    who = jax.random.randint(who_key, shape, 0, config.well_known - 1)
    who += who >= people[:, None]  # Anyone but the person who is asked about.
    what = jax.random.randint(what_key, shape, 0, config.num_attributes)
    place = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
    values = told_values(table, who, what, place < num_wrong)
    shots = _lines(config, who, what, values).reshape(shape[0], -1)
    question = _lines(config, people, attributes, people)[:, : _MARK + 1]
    return jnp.concatenate([shots, question], axis=1)

  drawn = jax.vmap(prompts)(jnp.stack(keys), jnp.array([0, *config.wrong_shots] * 2))
  drawn = drawn.reshape(2, -1, *drawn.shape[1:])
  return Facts(people, attributes, table[people, attributes], counts, parts[people], drawn)


def _lines(config, people, attributes, values):
  first = first_value(config)
  columns = [people + first + config.num_values, attributes + _ATTRIBUTES, values + first]
  for place, token in ((0, QUESTION_TOKEN), (_MARK, ANSWER_TOKEN), (5, LINE_END_TOKEN)):
    columns.insert(place, jnp.full_like(people, token))
  return jnp.stack(columns, axis=-1)


def ask(config, params, facts: Facts, key) -> Asked:
  """Asks about all facts after right answers, and after wrong ones."""
  model = network(config)

  def answer(prompts):
    def of_row(row):
      hidden = model.apply({"params": params}, row[None], return_hidden=True).hidden[0, -1]
      return value_logits(config, params, hidden)

    return jax.lax.map(of_row, prompts, batch_size=min(_ROWS, len(prompts)))

  right = lambda logits: jnp.argmax(logits, axis=-1) == facts.answers  # noqa: E731
  number, shape = len(facts.answers), facts.prompts.shape
  logits = jax.lax.map(answer, facts.prompts.reshape(-1, *shape[2:])).reshape(*shape[:3], -1)
  good, bad = logits[0, 0], logits[:, 1:]
  size, warm = (number, config.num_samples), good[:, None] / config.temperature
  sampled = jax.random.categorical(key, warm, shape=size) == facts.answers[:, None]
  correct = right(bad)
  known = metrics.knowledge_category(sampled, right(good), jnp.ones(number, bool)) == FACTUAL
  errors = _mean(~correct[0], known)
  held_out = _mean(~correct[0], known & (facts.parts == VALIDATION))
  chosen = jnp.argmin(jnp.abs(held_out - 0.5))
  category, again = (metrics.knowledge_category(sampled, right(good), x[chosen]) for x in correct)
  tested = jnp.bincount(jnp.where(facts.parts == TEST, category, 3), length=4)[: IGNORANT + 1]
  scores = {
    "known": jnp.sum(known),
    "not known": jnp.sum(category == IGNORANT),
    "errors among known": errors[chosen],
    "right on known, good shots": _mean(right(logits[1, 0]), known),
    "right on known, bad shots": 1 - errors[chosen],
    "wrong shots": jnp.array(config.wrong_shots)[chosen],
    "fewest test rows": jnp.min(tested),
    **{f"errors, {n} wrong shots": errors[i] for i, n in enumerate(config.wrong_shots)},
  }
  prompts, logits = facts.prompts[0, 1 + chosen], bad[0, chosen]
  answers = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return Asked(category, again, prompts, answers, describe_outputs(logits), scores)


def _mean(values, where):
  """Means over facts, the last axis; 0 without any."""
  return jnp.sum(values & where, axis=-1) / jnp.maximum(jnp.sum(where), 1)


def describe_outputs(logits) -> jax.Array:
  """Largest probability, entropy and margin of the two largest ones, `[f, 3]`."""
  log_probs = jax.nn.log_softmax(logits)
  probs = jnp.exp(log_probs)
  largest = jax.lax.top_k(probs, 2)[0]
  entropy = -jnp.sum(probs * log_probs, axis=-1)
  return jnp.stack([largest[:, 0], entropy, largest[:, 0] - largest[:, 1]], axis=1)
