"""Probes of hidden states at all layers and places: error or ignorance, and right or wrong."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.wack import people
from experiments.inference.wack.people import ERROR, FACTUAL, IGNORANT, TEST, TRAIN, VALIDATION
from jaxlab import metrics, uncertainty

COMPONENTS = {
  "residual stream": "hidden_states",
  "MLP": "mlp_outputs",
  "attention": "attention_outputs",
}
# Of the last line, from the end on; the answer is appended to a prompt.
PLACES = "person", "attribute", "answer mark", "answer"
BEFORE, AFTER = PLACES.index("answer mark"), PLACES.index("answer")
BEST, OUTPUT, EMBEDDING = "best layer", "output", "embedding of the person"
FREQUENCY, RANDOM, SHUFFLED = "frequency in training", "random features", "shuffled labels"
GENERIC = "best layer, generic training"
TWO, THREE, OWN = "error or ignorance", "right, error or ignorance", "right or error, after it"
_EXTRA = OUTPUT, EMBEDDING, FREQUENCY, RANDOM


def hidden_states(config, params, prompts, answers) -> jax.Array:
  """Normalized states of prompts with answers: `[f, places, components, layers, d]`, in one pass.

  Args:
    config: of the experiment.
    params: of the decoder.
    prompts: `[f, t]`, up to the answer mark.
    answers: values that are appended, `[f]`.
  """
  model = people.network(config)
  tokens = jnp.concatenate([prompts, (answers + people.first_value(config))[:, None]], axis=1)

  def of_row(row):
    _, state = model.apply({"params": params}, row[None], mutable=["intermediates"])
    layers = state["intermediates"]["layers"]
    states = [layers[name][0][:, 0, -len(PLACES) :] for name in COMPONENTS.values()]
    return jnp.moveaxis(jnp.stack(states), 2, 0)

  states = jax.lax.map(of_row, tokens, batch_size=min(250, len(tokens)))
  return uncertainty.normalize_features(states)


def choose_rows(key, member: chex.Array, num: int) -> jax.Array:
  """Numbers of `num` random rows of a set; they come again where there are fewer."""
  order = jnp.argsort(jax.random.uniform(key, member.shape) + ~member)
  return order[jnp.arange(num) % jnp.maximum(jnp.sum(member), 1)]


def search(config, features, train, validation, test, *, num_classes=2) -> dict[str, jax.Array]:
  """Fits every probe at every regularization, and takes what is best on validation rows.

  Args:
    config: of the experiment.
    features: of all facts, `[f, probes, d]`.
    train: features to train on (of other answers, perhaps; None for `features`), rows, labels.
    validation: rows and labels.
    test: rows and labels.
    num_classes: number of classes.

  Returns:
    `validation` and `test`, accuracies of every probe, `[probes]`; `predicted`, the class that each
    gives every fact, `[f, probes]`.
  """
  source, rows, labels = train
  source = features if source is None else source
  costs = jnp.array(config.regularizations)

  def fit(probe, cost):
    pick = lambda x: jax.lax.dynamic_index_in_dim(x, probe, 1, keepdims=False)  # noqa: E731
    options = {"num_classes": num_classes, "regularization": cost}
    scores = uncertainty.linear_svm_scores(pick(source)[rows], labels, pick(features), **options)
    predicted = jnp.argmax(scores, axis=1).astype(jnp.int8)
    right = lambda part: jnp.mean(predicted[part[0]] == part[1])  # noqa: E731
    return right(validation), right(test), predicted

  def of_probe(probe):
    found = jax.lax.map(lambda cost: fit(probe, cost), costs)
    return jax.tree.map(lambda x: x[jnp.argmax(found[0])], found)

  names, found = ("validation", "test"), jax.lax.map(of_probe, jnp.arange(features.shape[1]))
  return dict(zip(names, found)) | {"predicted": found[2].T}


def measure(config, params, asked: people.Asked, other, facts: people.Facts, key) -> dict[str, Any]:
  """Fits all probes of a model.

  Args:
    config: of the experiment.
    params: of the model.
    asked: what it knows and answered.
    other: the answers of another model, for generic training, `[f]`.
    facts: the facts.
    key: of rows and coins.

  Returns:
    Task -> method -> accuracy; `layers` of the probes by place; `matched`, what the matching of
    frequencies needs.
  """
  keys = iter(jax.random.split(key, 32))
  states = hidden_states(config, params, asked.prompts, asked.answers)
  number, width = len(facts.answers), states.shape[-1]
  flat = lambda x: x.reshape(number, -1, width)  # noqa: E731
  frequency = jnp.log1p(facts.counts)[:, None]
  embedded = params["embed"]["embedding"][people.first_value(config) + config.num_values :]
  noise = jax.random.normal(next(keys), (number, width))
  extra = jnp.stack(
    [
      _standardized(asked.outputs, width),
      uncertainty.normalize_features(embedded[facts.people]),
      _standardized(frequency, width),
      uncertainty.normalize_features(noise),
    ],
    axis=1,
  )

  def rows(classes, part, num):
    """Equally many rows of each class, and their labels."""
    members = [(asked.category == c) & (facts.parts == part) for c in classes]
    chosen = [choose_rows(next(keys), member, num) for member in members]
    return jnp.concatenate(chosen), jnp.repeat(jnp.arange(len(classes)), num)

  def splits(classes):
    return (
      (None, *rows(classes, TRAIN, config.train_rows)),
      rows(classes, VALIDATION, config.validation_rows),
      rows(classes, TEST, config.test_rows),
    )

  def best(found, probes=slice(None)):
    chosen = jnp.argmax(found["validation"][probes])
    return found["test"][probes][chosen], found["predicted"][:, probes][:, chosen]

  # Error or ignorance, before the answer: all places are fitted, the best is of the answer mark.
  before = jnp.concatenate([flat(states[:, : BEFORE + 1]), extra], axis=1)
  per_place = states.shape[2] * states.shape[3]
  mark, first_extra = slice(BEFORE * per_place, (BEFORE + 1) * per_place), AFTER * per_place
  parts = splits((ERROR, IGNORANT))
  found = search(config, before, *parts)
  two, predicted = best(found, mark)
  none, train_rows, labels = parts[0]
  shuffled = none, train_rows, jax.random.permutation(next(keys), labels)
  chance, _ = best(search(config, before[:, mark], shuffled, *parts[1:]))
  extras = {name: found["test"][first_extra + i] for i, name in enumerate(_EXTRA)}
  shape = AFTER, *states.shape[2:4]
  layers = found["test"][:first_extra].reshape(shape)

  both = jnp.concatenate([flat(states[:, BEFORE]), extra], axis=1)
  found = search(config, both, *splits((FACTUAL, ERROR, IGNORANT)), num_classes=3)
  three = best(found, slice(0, per_place))[0]
  extras_of_three = {name: found["test"][per_place + i] for i, name in enumerate(_EXTRA)}

  # After the answer: right or wrong, learned from its own answers or from anyone's.
  after, parts = flat(states[:, AFTER]), splits((FACTUAL, ERROR))
  own = best(search(config, after, *parts))[0]
  shift = jax.random.randint(next(keys), other.shape, 1, config.num_values)
  wrong = jnp.where(other == facts.answers, (facts.answers + shift) % config.num_values, other)
  is_wrong = jax.random.bernoulli(next(keys), 0.5, other.shape)
  given = jnp.where(is_wrong, wrong, facts.answers)
  source = flat(hidden_states(config, params, asked.prompts, given)[:, AFTER])
  members = [(is_wrong == flag) & (facts.parts == TRAIN) for flag in (False, True)]
  chosen = jnp.concatenate([choose_rows(next(keys), m, config.train_rows) for m in members])
  generic = best(search(config, after, (source, chosen, parts[0][2]), *parts[1:]))[0]
  return {
    TWO: {BEST: two, SHUFFLED: chance, **extras},
    THREE: {BEST: three, **extras_of_three},
    OWN: {BEST: own, GENERIC: generic},
    "layers": layers,
    "matched": {
      "predicted": predicted,
      "category": asked.category,
      "parts": facts.parts,
      "counts": facts.counts,
    },
  }


def _standardized(values, width: int) -> jax.Array:
  """Of mean 0 and deviation 1, padded with zeros, which change no probe."""
  values = values - jnp.mean(values, axis=0, keepdims=True)
  values /= jnp.std(values, axis=0, keepdims=True) + 1e-6
  return jnp.pad(values, ((0, 0), (0, width - values.shape[1])))


def measure_both(config, key, seed, params) -> dict[str, Any]:
  """What both models of a seed know, and what probes read from them.

  Args:
    config: of the experiment.
    key: random key.
    seed: its number.
    params: of both models, with a leading axis of 2.

  Returns:
    As `measure`, with a leading axis of 2, with `scores` of the models and overlaps of errors.
  """
  fact_key, ask_key, probe_key = jax.random.split(key, 3)
  facts = people.draw_facts(config, fact_key, seed)
  asked = jax.lax.map(
    lambda pair: people.ask(config, pair[0], facts, pair[1]), (params, jax.random.split(ask_key))
  )
  others = asked.answers[::-1]
  measured = jax.lax.map(
    lambda x: measure(config, x[0], x[1], x[2], facts, x[3]),
    (params, asked, others, jax.random.split(probe_key)),
  )
  known = jnp.all((asked.category == FACTUAL) | (asked.category == ERROR), axis=0)
  first, second, again = (
    known & (x == ERROR) for x in (asked.category[0], asked.category[1], asked.again[0])
  )
  other_again = known & (asked.again[1] == ERROR)
  same = [metrics.set_overlap(first, again), metrics.set_overlap(second, other_again)]
  sets = {
    "two models": metrics.set_overlap(first, second),
    "one model, other shots": jnp.mean(jnp.stack(same)),
    "facts that both know": metrics.set_overlap(*((asked.category[i] <= ERROR) for i in range(2))),
  }
  return measured | {"scores": asked.scores, "overlaps": sets}


def matched_accuracy(predicted, category, parts, counts, *, ratio: float) -> tuple[float, int]:
  """Accuracy on pairs of an error and an unknown fact, stated about equally often.

  Args:
    predicted: 0 for an error, 1 for an unknown fact, `[f]`.
    category: what each fact is, `[f]`.
    parts: which part each belongs to, `[f]`; test facts count.
    counts: how often training stated each, `[f]`.
    ratio: largest ratio of two counts plus 1.

  Returns:
    The accuracy, 0.5 without pairs, and the number of pairs.
  """
  sides = []
  for kind in (ERROR, IGNORANT):
    rows = np.flatnonzero((category == kind) & (parts == TEST))
    sides.append(rows[np.argsort(counts[rows], kind="stable")])
  pairs, i, j = [], 0, 0
  while i < len(sides[0]) and j < len(sides[1]):
    pair = sides[0][i], sides[1][j]
    a, b = (counts[row] + 1.0 for row in pair)
    if max(a, b) <= ratio * min(a, b):
      pairs.append(pair)
      i, j = i + 1, j + 1
    elif a < b:
      i += 1
    else:
      j += 1
  right = [(predicted[a] == 0, predicted[b] == 1) for a, b in pairs]
  return (float(np.mean(right)) if pairs else 0.5), len(pairs)
