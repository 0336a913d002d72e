"""People whom documents ask about, decoders of these, and what a decoder knows of each fact."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit.language_models import decoder, fit_decoder
from experiments.kit.train import Trained
from jaxlab import data, metrics, models, training
from jaxlab.data.factoids import ANSWER_TOKEN, LINE_END_TOKEN, QUESTION_TOKEN

FACTUAL, ERROR, IGNORANT = range(3)  # Of `metrics.knowledge_category`.
TRAIN, VALIDATION, TEST = range(3)  # Parts of the people.
_SHARES = TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST, TEST
_LINE, _MARK = 6, 3  # Tokens of a line, and the place of the answer mark.
_ATTRIBUTES = LINE_END_TOKEN + 2  # First token of an attribute.
# Prompts at a time: with more, arrays leave the processor's cache.
_ROWS = 500


class Facts(NamedTuple):
  """All facts of a seed, and prompts that ask about them.

  Attributes:
    people: int32 `[f]`.
    attributes: int32 `[f]`.
    answers: int32 `[f]`.
    counts: how often the documents state each, `[f]`.
    parts: of its person, `[f]`: the three facts of a person share it.
    good: prompts after right answers, of two draws, `[2, f, t]`.
    bad: prompts some of whose answers are wrong, by number of these, of two draws,
      `[2, numbers, f, t]`.
  """

  people: chex.Array
  attributes: chex.Array
  answers: chex.Array
  counts: chex.Array
  parts: chex.Array
  good: chex.Array
  bad: chex.Array


class Asked(NamedTuple):
  """What a model knows, and how it answers after wrong answers.

  Attributes:
    category: of each fact, `[f]`.
    again: the same after other wrong answers, `[f]`.
    prompts: those with as many wrong answers as lead it astray about half of the time, `[f, t]`.
    answers: its greedy ones to these, `[f]`.
    outputs: largest probability, entropy and margin of its answers, `[f, 3]`.
    scores: what says how well this worked.
  """

  category: chex.Array
  again: chex.Array
  prompts: chex.Array
  answers: chex.Array
  outputs: chex.Array
  scores: dict[str, chex.Array]


def network(config) -> models.DecoderLM:
  """The decoder of documents, and of one more line."""
  hidden_size, num_layers = config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  vocab_size = first_value(config) + config.num_values + config.num_people
  return decoder(vocab_size, _LINE * (config.num_lines + 1), **sizes)


def first_value(config) -> int:
  """The token of the first value."""
  return _ATTRIBUTES + config.num_attributes


def documents(config, seed) -> data.ReliabilityDocuments:
  """The documents of a seed, the same for both models."""
  return data.reliability_documents(
    jax.random.fold_in(jax.random.key(seed), 1),
    num_documents=config.num_documents,
    num_people=config.num_people,
    num_attributes=config.num_attributes,
    num_values=config.num_values,
    num_lines=config.num_lines,
    unreliable_fraction=config.unreliable_fraction,
    zipf_exponent=config.zipf_exponent,
    table_seed=seed,
  )


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
  trained: Trained = fit_decoder(
    key,
    network(config),
    documents(config, seed),
    num_steps=config.num_documents // config.batch_size,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    loss_fn=answer_loss(config, network(config)),
  )
  return {"params": trained.params, "bad_step": trained.bad_step}


def draw_facts(config, key, seed) -> Facts:
  """All facts of a seed, parted by people, with prompts whose shots ignore the question."""
  part_key, good_key, bad_key = jax.random.split(key, 3)
  table = data.reliability_answers(
    num_people=config.num_people,
    num_attributes=config.num_attributes,
    num_values=config.num_values,
    table_seed=seed,
  )
  people, attributes = (
    x.ravel() for x in jnp.indices((config.num_people, config.num_attributes), dtype=jnp.int32)
  )
  texts = documents(config, seed)
  stated = jnp.where(texts.unreliable, 0, 1)[:, None] * jnp.ones_like(texts.people)
  index = texts.people * config.num_attributes + texts.attributes
  counts = jax.ops.segment_sum(stated.ravel(), index.ravel(), len(people))
  # Of ten people of about equal frequency, five are in the first part.
  tens = jax.random.split(part_key, -(-config.num_people // len(_SHARES)))
  parts = jax.vmap(lambda k: jax.random.permutation(k, jnp.array(_SHARES)))(tens).ravel()

  def prompts(key, num_wrong):
    who_key, what_key, order_key, wrong_key = jax.random.split(key, 4)
    shape = len(people), config.num_shots
    who = jax.random.randint(who_key, shape, 0, config.well_known - 1)
    who += who >= people[:, None]  # Anyone but the person who is asked about.
    what = jax.random.randint(what_key, shape, 0, config.num_attributes)
    place = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
    shift = jax.random.randint(wrong_key, shape, 1, config.num_values)
    values = (table[who, what] + jnp.where(place < num_wrong, shift, 0)) % config.num_values
    shots = _lines(config, who, what, values).reshape(shape[0], -1)
    question = _lines(config, people, attributes, people)[:, : _MARK + 1]
    return jnp.concatenate([shots, question], axis=1)

  good = jnp.stack([prompts(k, 0) for k in jax.random.split(good_key)])
  bad = [[prompts(k, n) for n in config.wrong_shots] for k in jax.random.split(bad_key)]
  bad = jnp.stack([jnp.stack(x) for x in bad])
  answers = table[people, attributes]
  return Facts(people, attributes, answers, counts, parts[people], good, bad)


def _lines(config, people, attributes, values):
  first = first_value(config)
  columns = (
    jnp.full_like(people, QUESTION_TOKEN),
    people + first + config.num_values,
    attributes + _ATTRIBUTES,
    jnp.full_like(people, ANSWER_TOKEN),
    values + first,
    jnp.full_like(people, LINE_END_TOKEN),
  )
  return jnp.stack(columns, axis=-1)


def ask(config, params, facts: Facts, key) -> Asked:
  """Asks about all facts after right answers, and after wrong ones."""
  model = network(config)

  def answer(prompts):
    def of_row(row):
      hidden = model.apply({"params": params}, row[None], return_hidden=True).hidden[0, -1]
      return value_logits(config, params, hidden)

    return jax.lax.map(of_row, prompts, batch_size=min(_ROWS, len(prompts)))

  def right(logits):
    return jnp.argmax(logits, axis=-1) == facts.answers

  (good, again), number = (answer(x) for x in facts.good), len(facts.answers)
  shape = number, config.num_samples
  drawn = jax.random.categorical(key, good[:, None] / config.temperature, shape=shape)
  sampled, known_again = drawn == facts.answers[:, None], right(again)
  bad = jax.lax.map(answer, facts.bad.reshape(-1, *facts.bad.shape[2:]))
  bad = bad.reshape(2, -1, *bad.shape[1:])
  correct = jax.vmap(right)(bad.reshape(-1, *bad.shape[2:])).reshape(bad.shape[:3])
  known = metrics.knowledge_category(sampled, right(good), jnp.ones(number, bool)) == FACTUAL
  errors = _mean(~correct[0], known & (facts.parts == VALIDATION))
  chosen = jnp.argmin(jnp.abs(errors - 0.5))
  correct, logits, prompts = correct[:, chosen], bad[0, chosen], facts.bad[0, chosen]
  category, second = (metrics.knowledge_category(sampled, right(good), x) for x in correct)
  scores = {
    "known": jnp.sum(known),
    "not known": jnp.sum(category == IGNORANT),
    "errors among known": _mean(~correct[0], known),
    "right on known, good shots": _mean(known_again, known),
    "right on known, bad shots": _mean(correct[0], known),
    "wrong shots": jnp.array(config.wrong_shots)[chosen],
    "fewest test rows": jnp.min(
      jnp.array([jnp.sum((category == c) & (facts.parts == TEST)) for c in range(3)])
    ),
  }
  scores |= {
    f"errors among known, {n} wrong": _mean(~right(x), known)
    for n, x in zip(config.wrong_shots, bad[0])
  }
  answers = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return Asked(category, second, prompts, answers, describe_outputs(logits), scores)


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
