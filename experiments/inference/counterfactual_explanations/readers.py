"""The texts of a seed, the classifier to be explained, labels of concepts, and learned spaces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.language_models import decoder
from experiments.kit.train import Trained, adamw_cosine, agrees, train
from jaxlab import data, losses, models, training
from jaxlab.data import ReviewBatch

NUM_CONCEPTS, NUM_VALUES, NUM_CLASSES = len(data.REVIEW_CONCEPTS), 3, 5
SHIFTS = 1, 2  # From the value of a concept to the two others.
_LENGTH, _MOST_TEXTS = 32, 1024  # Of a text; at a time: more leave the processor's cache.


class Reader(nn.Module):
  """A bidirectional transformer: the mean of its states, and a linear layer on it."""

  body: models.DecoderLM
  num_outputs: int

  @nn.compact
  def __call__(self, tokens: chex.Array) -> tuple[jax.Array, jax.Array]:
    """The mean state `[b, d]` and the outputs `[b, num_outputs]` of texts `[b, T]`."""
    everything = jnp.ones((len(tokens), 1, *2 * tokens.shape[1:]), bool)
    hidden = self.body(tokens, attention_mask=everything, return_hidden=True).hidden
    state = jnp.mean(hidden, axis=1)
    return state, nn.Dense(self.num_outputs, name="head")(state)


def reader(config, num_outputs: int) -> Reader:
  """The architecture of classifier and spaces."""
  width, num_layers = config.decoder
  sizes = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  return Reader(decoder(data.REVIEW_VOCAB_SIZE, _LENGTH, **sizes), num_outputs)


def read_all(module: Reader, params, tokens: dict[str, chex.Array]) -> dict[str, list]:
  """What a reader makes of texts `[..., T]`, in one pass."""
  rows = jnp.concatenate([x.reshape(-1, _LENGTH) for x in tokens.values()])
  one = lambda row: jax.tree.map(lambda x: x[0], module.apply({"params": params}, row[None]))  # noqa: E731
  both, found, end = jax.lax.map(one, rows, batch_size=min(_MOST_TEXTS, len(rows))), {}, 0
  for name, x in tokens.items():
    start, end = end, end + x.size // _LENGTH
    found[name] = [values[start:end].reshape(*x.shape[:-1], -1) for values in both]
  return found


def draw_texts(config, key) -> tuple[dict[str, ReviewBatch], jax.Array]:
  """Draws the texts of a seed, and the value that each edit of a training text is to have.

  Edits are one of each concept, `[n, 4, ...]`.
  """
  key, shift_key, edit_key = jax.random.split(key, 3)
  ends = np.cumsum([config.num_train, config.num_candidates, config.num_test])
  drawn = data.sample_reviews(key, num_samples=int(ends[-1]))
  parts = zip(*(jnp.split(x, ends[:-1]) for x in drawn))
  texts = {name: ReviewBatch(*x) for name, x in zip(("train", "candidates", "test"), parts)}
  concepts = texts["train"].concepts
  intended = (concepts + jax.random.randint(shift_key, concepts.shape, 1, NUM_VALUES)) % NUM_VALUES
  edit = lambda x: _edit(x[0], texts["train"], *x[1:], config.error_rate)  # noqa: E731
  inputs = jax.random.split(edit_key, NUM_CONCEPTS), jnp.arange(NUM_CONCEPTS), intended.T
  texts["edits"] = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), jax.lax.map(edit, inputs))
  return texts, intended


def _edit(key, reviews: ReviewBatch, concept, value, error_rate) -> ReviewBatch:
  concept = jnp.full_like(value, concept)
  options = {"concept": concept, "value": value, "error_rate": error_rate}
  return data.noisy_review_edit(key, reviews, **options)


def changed(keys, reviews: ReviewBatch, error_rates: chex.Array) -> jax.Array:
  """Tokens of k edits of texts with every concept at both other values, `[k, 4, 2, n, T]`.

  An error rate of 0 gives the true counterfactuals.
  """
  shape = len(error_rates), NUM_CONCEPTS, len(SHIFTS)

  def one(number):
    i, concept, shift = jnp.unravel_index(number, shape)
    value = jnp.take(reviews.concepts, concept, axis=1) + jnp.array(SHIFTS)[shift]
    key = jax.random.fold_in(keys[i], number)
    return _edit(key, reviews, concept, value % NUM_VALUES, error_rates[i]).tokens

  tokens = jax.lax.map(one, jnp.arange(np.prod(shape)))
  return tokens.reshape(*shape, *tokens.shape[1:])


def fit_words(words: chex.Array, concepts: chex.Array, known: chex.Array):
  """Naive Bayes: weights `[v, 4, 3]` of words `[n, v]`, and constants; of known concepts."""
  values = jax.nn.one_hot(concepts, NUM_VALUES) * known[..., None]
  num = jnp.sum(values, axis=0) + 1
  odds = (jnp.einsum("nv,ncl->vcl", words, values) + 0.5) / num[None]
  absent = jnp.log1p(-odds)
  return jnp.log(odds) - absent, jnp.sum(absent, axis=0) + jnp.log(num)


def label_concepts(config, texts, intended: chex.Array) -> dict[str, dict[str, jax.Array]]:
  """Concepts of all texts by models of words, int32 `[n, 4]`: of few labels, or of edits as well.

  An edit tells one concept, those of labeled texts tell all. What an edit was to say is not always
  what it says.
  """
  concepts = texts["train"].concepts
  labeled = jnp.arange(len(concepts))[:, None, None] < config.num_labeled
  edited = jnp.eye(NUM_CONCEPTS, dtype=bool)[None]
  meant = jnp.where(edited, intended[:, None], concepts[:, None])
  words = lambda x: jnp.max(jax.nn.one_hot(x, data.REVIEW_VOCAB_SIZE), axis=-2)  # noqa: E731
  occur = {name: words(x.tokens) for name, x in texts.items()}
  own = occur["train"], concepts, jnp.broadcast_to(labeled[:, 0], concepts.shape)
  edits = (x.reshape(-1, x.shape[-1]) for x in (occur.pop("edits"), meant, edited | labeled))
  fits = {"few": own, "edits": [jnp.concatenate(x) for x in zip(own, edits)]}
  labels = {}
  for kind, rows in fits.items():
    weights, constants = fit_words(*rows)
    scores = {n: jnp.einsum("nv,vcl->ncl", x, weights) + constants for n, x in occur.items()}
    labels[kind] = jax.tree.map(lambda x: jnp.argmax(x, axis=-1), scores)
  return labels


def label_loss(module: Reader):
  """The engine's loss of the classifier on batches (tokens, labels)."""

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = module.apply({"params": params}, batch[0])[1]
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return training.LossOutput(values)

  return loss


def explained(config, key) -> dict[str, dict[str, jax.Array]]:
  """Trains the classifier; gives what it says of all texts, the texts, and labels of concepts."""
  text_key, train_key, edit_key = jax.random.split(key, 3)
  texts, intended = draw_texts(config, text_key)
  module, test, rows = reader(config, NUM_CLASSES), texts["test"], texts["train"]
  sizes = {"num_steps": config.classifier_steps, "batch_size": config.classifier_batch}
  optimizer = adamw_cosine(config.learning_rate, config.classifier_steps)
  rows = rows.tokens, rows.label
  params = train(train_key, module, label_loss(module), optimizer, rows, **sizes).params
  rates = jnp.array([0.0, *[config.error_rate] * config.top_k])
  edits = changed(jax.random.split(edit_key, len(rates)), test, rates)
  tokens = {name: x.tokens for name, x in texts.items()} | {"true": edits[0]}
  own = {name: tokens[name] for name in ("test", "candidates")}
  found = read_all(module, params, {**own, "true": edits[0], "edits": edits[1:]})
  labels = label_concepts(config, texts, intended)
  right = {kind: jnp.mean(x["test"] == test.concepts) for kind, x in labels.items()}
  return {
    "tokens": tokens,
    "concepts": {name: texts[name].concepts for name in own},
    "probs": {name: jax.nn.softmax(x[1]) for name, x in found.items()},
    "states": {name: found[name][0] for name in own},
    "labels": labels,
    "scores": {
      "accuracy": jnp.mean(agrees(found["test"][1], test.label)),
      "majority class": jnp.max(jnp.bincount(test.label, length=NUM_CLASSES)) / len(test.label),
      "concepts labeled right": right["few"],
      "concepts labeled right, with edits": right["edits"],
    },
  }


def space_loss(config, module: Reader, texts, labels: chex.Array, set_weights):
  """The engine's loss of spaces of all treatments on batches (tokens, number of the text).

  A row has a random treatment. Its valid matches are originals with equal labels of the other
  concepts, its invalid ones the other originals in the batch.
  """
  num, num_others = config.num_keys, min(config.num_keys, NUM_CONCEPTS - 1)

  def loss(params, model_state, batch, key):
    del model_state
    tokens, index = batch
    rows, size = jnp.arange(len(index)), len(index)
    treat_key, match_key, other_key = jax.random.split(key, 3)
    treatment = jax.random.randint(treat_key, index.shape, 0, NUM_CONCEPTS)
    is_treatment = jnp.arange(NUM_CONCEPTS)[None] == treatment[:, None]

    def agree(others):
      """Which texts `[b, m]` have equal confounders, by the labels."""
      same = labels[index][:, None] == others[None]
      return jnp.all(same | is_treatment[:, None], axis=-1)

    def some(key, allowed, num):
      return jax.lax.top_k(jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0), num)

    is_other = jnp.arange(len(labels))[None] != index[:, None]
    draws, matches = some(match_key, agree(labels) & is_other, num)
    _, others = some(other_key, ~is_treatment, num_others)
    edits = texts["edits"][index]
    sets = texts["train"][matches], edits[rows, treatment], edits[rows[:, None], others]
    seen = jnp.concatenate([tokens, *(x.reshape(-1, _LENGTH) for x in sets)])
    spaces = module.apply({"params": params}, seen)[1].reshape(len(seen), NUM_CONCEPTS, -1)
    parts = jnp.split(spaces, np.cumsum([size, size * num, size]))
    # The texts of each row in the space of its treatment, `[b, k, d]`.
    own = [x.reshape(size, -1, *x.shape[1:])[rows, :, treatment] for x in parts]
    originals = jnp.swapaxes(jnp.concatenate(parts[:2])[:, treatment], 0, 1)
    numbers = jnp.concatenate([index, matches.ravel()])
    masks = {"match_mask": draws >= 0, "mismatch_mask": ~agree(labels[numbers])}
    options = {"temperature": config.temperature, "set_weights": set_weights}
    sets = own[0][:, 0], own[2], own[1], own[3], originals
    return training.LossOutput(losses.causal_matching_loss(*sets, **masks, **options))

  return loss


def learn_space(config, key, inputs, setting) -> dict[str, jax.Array]:
  """Learns a space for every treatment; gives places in it, `[n, 4, d]`, also before learning."""
  init_key, train_key = jax.random.split(jax.random.fold_in(key, 1))
  tokens, labels = inputs
  module = reader(config, NUM_CONCEPTS * config.decoder[0])
  start = module.init(init_key, jnp.zeros((1, _LENGTH), jnp.int32))["params"]
  weights = [setting[name] for name in ("treatment", "match", "confounder", "mismatch")]
  loss = space_loss(config, module, tokens, labels, weights)
  optimizer = adamw_cosine(config.space_rate, config.space_steps)
  rows = tokens["train"], jnp.arange(config.num_train)
  sizes = {"num_steps": config.space_steps, "batch_size": config.space_batch}
  trained = train(train_key, module, loss, optimizer, rows, start=Trained(start, {}), **sizes)
  read = {name: tokens[name] for name in ("test", "candidates", "true")}
  both = jax.tree.map(lambda *x: jnp.stack(x), start, trained.params)
  places = jax.lax.map(lambda params: read_all(module, params, read), both)
  places = {name: x[1].reshape(*x[1].shape[:-1], NUM_CONCEPTS, -1) for name, x in places.items()}
  # Each counterfactual in the space of the concept that it changes.
  true = places.pop("true")[1]
  true = jnp.stack([true[i, :, :, i] for i in range(NUM_CONCEPTS)])
  found = {"true": true, "bad_step": trained.bad_step}
  for name, x in places.items():
    found |= {f"untrained {name}": x[0], f"trained {name}": x[1]}
  return found
