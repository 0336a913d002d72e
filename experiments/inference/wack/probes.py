"""Probes of hidden states at all layers and places: error or ignorance, and right or wrong."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.wack import people
from experiments.inference.wack.people import ERROR, FACTUAL, IGNORANT, TEST, TRAIN, VALIDATION
from jaxlab import metrics, uncertainty

_NAMES = "hidden_states", "mlp_outputs", "attention_outputs"
COMPONENTS = dict(zip(("residual stream", "MLP", "attention"), _NAMES))
# Of the last line, from the end on; the answer is appended to a prompt.
PLACES = "person", "attribute", "answer mark", "answer"
BEFORE, AFTER = PLACES.index("answer mark"), PLACES.index("answer")
BEST, OUTPUT, EMBEDDING = "best layer", "output", "embedding of the person"
FREQUENCY, RANDOM, SHUFFLED = "frequency in training", "random features", "shuffled labels"
GENERIC = "best layer, generic training"
TWO, THREE, OWN = "error or ignorance", "right, error or ignorance", "right or error, after it"
EXTRA = OUTPUT, EMBEDDING, FREQUENCY, RANDOM  # Beside hidden states.


def hidden_states(config, params, prompts, answers) -> jax.Array:
  """Normalized states of prompts up to the answer mark, `[f, t]`, with answers appended, `[f]`.

  Of all places, components and layers in one pass: `[f, places, components, layers, d]`.
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


class Found(NamedTuple):
  """Probes `[probes, ...]`, each at the regularization that is best on validation rows."""

  validation: chex.Array  # Accuracies.
  test: chex.Array
  predicted: chex.Array  # The class of every fact.

  def best(self, start: int = 0, stop: int | None = None) -> "Found":
    """Of some probes the one of the highest accuracy on validation rows."""
    chosen = start + jnp.argmax(self.validation[start:stop])
    return jax.tree.map(lambda x: x[chosen], self)


def search(config, source, features, rows, labels, *, num_classes: int = 2) -> Found:
  """Fits every probe at every regularization, each on its own rows of the facts.

  `source` and `features`, to train and to test on, are `[f, probes, d]`: the same, unless they are
  of other answers. `rows` maps a part to `[probes, n]`, equally many facts of each class, in order
  where they are tested on; `labels` are classes of those to train on, `[probes, n]`.
  """
  columns = (jnp.moveaxis(x, 1, 0) for x in (source, features))
  costs = jnp.array(config.regularizations)

  def fit(probe, cost):
    source, features, rows, labels = probe
    train = source[rows[TRAIN]], labels
    options = {"num_classes": num_classes, "regularization": cost}
    scores = uncertainty.linear_svm_scores(*train, features, **options)
    predicted = jnp.argmax(scores, axis=1).astype(jnp.int8)

    def accuracy(rows):
      truth = jnp.repeat(jnp.arange(num_classes), len(rows) // num_classes)
      return jnp.mean(predicted[rows] == truth)

    return Found(accuracy(rows[VALIDATION]), accuracy(rows[TEST]), predicted)

  def of_probe(probe):
    return jax.lax.map(lambda cost: fit(probe, cost), costs).best()

  return jax.lax.map(of_probe, (*columns, rows, labels))


def measure(config, params, asked: people.Asked, other, facts: people.Facts, key) -> dict[str, Any]:
  """Fits all probes of a model: task -> method -> accuracy.

  `layers` are accuracies by place, component and layer; `matched` is what `matched_accuracy` takes.
  For generic training there are the answers of another model, `[f]`.
  """
  keys = iter(jax.random.split(key, 32))
  number, width = len(facts.answers), params["embed"]["embedding"].shape[1]
  # Generic data: right answers, and wrong ones of another model if it gave any.
  shift = jax.random.randint(next(keys), other.shape, 1, config.num_values)
  wrong = jnp.where(other == facts.answers, (facts.answers + shift) % config.num_values, other)
  is_wrong = jax.random.bernoulli(next(keys), 0.5, other.shape)
  given = jnp.stack([asked.answers, jnp.where(is_wrong, wrong, facts.answers)])
  states, generic = jax.lax.map(lambda x: hidden_states(config, params, asked.prompts, x), given)
  flat = lambda x: x.reshape(number, -1, width)  # noqa: E731
  embedded = params["embed"]["embedding"][people.first_value(config) + config.num_values :]
  extra = [
    _standardized(asked.outputs, width),
    uncertainty.normalize_features(embedded[facts.people]),
    _standardized(jnp.log1p(facts.counts)[:, None], width),
    uncertainty.normalize_features(jax.random.normal(next(keys), (number, width))),
  ]
  extra = jnp.stack(extra, axis=1)
  sizes = config.train_rows, config.validation_rows, config.test_rows

  def rows(members, part):
    """Equally many facts of each set."""
    chosen = [choose_rows(next(keys), x & (facts.parts == part), sizes[part]) for x in members]
    return jnp.concatenate(chosen)

  def split(*classes):
    return {part: rows([asked.category == c for c in classes], part) for part in range(3)}

  tile = lambda x, n: jnp.broadcast_to(x, (n, len(x)))  # noqa: E731
  together = lambda *x: jnp.concatenate(x, axis=1)  # noqa: E731
  mark, after = flat(states[:, BEFORE]), flat(states[:, AFTER])
  before = together(flat(states[:, : BEFORE + 1]), extra)
  # Probes before the answer, the same with shuffled labels, after it, and of generic data.
  counts = before.shape[1], mark.shape[1], mark.shape[1], mark.shape[1]
  a, b, c, end = np.cumsum(counts)
  two, right = split(ERROR, IGNORANT), split(FACTUAL, ERROR)
  groups = two, two, right, right | {TRAIN: rows((~is_wrong, is_wrong), TRAIN)}
  parts = jax.tree.map(lambda *x: jnp.concatenate([*map(tile, x, counts)]), *groups)
  order = jnp.repeat(jnp.arange(3), config.train_rows)
  labels = tile(order[: 2 * config.train_rows], end)
  labels = labels.at[a:b].set(jax.random.permutation(next(keys), labels[0])[None])
  source = together(before, mark, after, flat(generic[:, AFTER]))
  found = search(config, source, together(before, mark, after, after), parts, labels)
  both, three = together(mark, extra), split(FACTUAL, ERROR, IGNORANT)
  three = jax.tree.map(lambda x: tile(x, both.shape[1]), three)
  three = search(config, both, both, three, tile(order, both.shape[1]), num_classes=3)
  first, per_place = a - len(EXTRA), mark.shape[1]
  best = found.best(first - per_place, first)
  predictions = {"predicted": best.predicted, "category": asked.category}
  return {
    TWO: {
      BEST: best.test,
      SHUFFLED: found.best(a, b).test,
      **{name: found.test[first + i] for i, name in enumerate(EXTRA)},
    },
    THREE: {
      BEST: three.best(0, per_place).test,
      **{name: three.test[per_place + i] for i, name in enumerate(EXTRA)},
    },
    OWN: {BEST: found.best(b, c).test, GENERIC: found.best(c).test},
    "layers": found.test[:first].reshape(AFTER, *states.shape[2:4]),
    "matched": predictions | {"parts": facts.parts, "counts": facts.counts},
  }


def _standardized(values, width: int) -> jax.Array:
  """Of mean 0 and deviation 1, padded with zeros, which change no probe."""
  values = values - jnp.mean(values, axis=0, keepdims=True)
  values /= jnp.std(values, axis=0, keepdims=True) + 1e-6
  return jnp.pad(values, ((0, 0), (0, width - values.shape[1])))


def measure_both(config, key, seed, params) -> dict[str, Any]:
  """As `measure`, of the two models of a seed, with `scores` of these and overlaps of errors."""
  fact_key, ask_key, probe_key = jax.random.split(key, 3)
  facts = people.draw_facts(config, fact_key, seed)
  ask = lambda pair: people.ask(config, pair[0], facts, pair[1])  # noqa: E731
  asked = jax.lax.map(ask, (params, jax.random.split(ask_key)))
  probe = lambda x: measure(config, *x[:3], facts, x[3])  # noqa: E731
  models = params, asked, asked.answers[::-1], jax.random.split(probe_key)
  measured = jax.lax.map(probe, models)
  knows = asked.category <= ERROR
  known = knows[0] & knows[1]
  errors, again = (known[None] & (x == ERROR) for x in (asked.category, asked.again))
  same = jax.vmap(metrics.set_overlap)(errors, again)
  overlaps = {
    "two models": metrics.set_overlap(*errors),
    "one model, other shots": jnp.mean(same),
    "facts that both know": metrics.set_overlap(*knows),
  }
  return measured | {"scores": asked.scores, "overlaps": overlaps}


def matched_accuracy(predicted, category, parts, counts, *, ratio: float) -> tuple[float, int]:
  """Accuracy on pairs of an error and an unknown fact, stated about equally often in training.

  Of test facts those are paired whose counts plus 1 have a ratio of at most `ratio`. Predictions
  are 0 for an error. Gives the accuracy, 0.5 without pairs, and the number of pairs.
  """
  facts = np.argsort(counts, kind="stable")
  facts = facts[parts[facts] == TEST]
  errors, unknown = ([x for x in facts if category[x] == kind] for kind in (ERROR, IGNORANT))
  right, i, j = [], 0, 0
  while i < len(errors) and j < len(unknown):
    a, b = (counts[x] + 1.0 for x in (errors[i], unknown[j]))
    is_pair = max(a, b) <= ratio * min(a, b)
    if is_pair:
      right += [predicted[errors[i]] == 0, predicted[unknown[j]] == 1]
    i, j = i + (is_pair or a < b), j + (is_pair or a > b)
  return (float(np.mean(right)) if right else 0.5), len(right) // 2
