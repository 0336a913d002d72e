"""Shapes of batches, the order in which they come, and recognizers that are trained on them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.inference.speech_efficiency.corpora import largest_batches
from jaxlab import data, metrics, models, samplers, training
from jaxlab.data import Utterances

_SUBSAMPLED = 4  # Frames of a position of the encoder.
_MOST_FRAMES, _LEAST_FRAMES = 20, 4  # Of a digit.
_START, _END = 1, 2
_CALIBRATION = 2**20  # The seed of the corpus that shapes are estimated on, and nothing else uses.
_ROWS = 64  # Utterances that are evaluated at a time.


class Shape(NamedTuple):
  """A padded batch: frames, tokens that the decoder reads, and utterances."""

  frames: int
  tokens: int
  rows: int

  @property
  def positions(self) -> int:
    """Positions of encoder and decoder for each utterance."""
    return self.frames // _SUBSAMPLED + self.tokens


class Plan(NamedTuple):
  """Batches in order: number of the shape, rows (-1 for none) and padded positions of each."""

  shape: chex.Array
  rows: chex.Array
  positions: chex.Array


def draw(config, key) -> Utterances:
  """All utterances of a seed: training, validation and test."""
  key, num = jax.random.fold_in(key, 1), config.num_train + 2 * config.num_test
  return data.sample_utterances(key, num_samples=num, max_digits=config.max_digits)


def lengths_of(config, keys: Sequence[chex.PRNGKey]) -> list[np.ndarray]:
  """Frames, and tokens that the decoder reads, of training utterances: `[n, 2]` for each key."""

  @jax.jit
  def lengths(key):
    drawn = draw(config, key)
    return jnp.stack([drawn.frame_lengths, drawn.token_lengths - 1], axis=1)[: config.num_train]

  return [np.asarray(lengths(key), float) for key in keys]


def worst_shape(config) -> Shape:
  """A random batch: sized for the longest utterance there can be."""
  return Shape(_MOST_FRAMES * config.max_digits, config.max_digits + 1, config.random_rows)


def bucket_shapes(config) -> tuple[Shape, ...]:
  """Shapes of buckets by duration and tokens; each holds as many positions as a random batch.

  The last one is that of random batches.
  """
  (lengths,), worst = lengths_of(config, [jax.random.key(_CALIBRATION)]), worst_shape(config)
  frames, tokens = np.ceil(lengths / [_SUBSAMPLED, 1]).T * [[_SUBSAMPLED], [1]]
  options = dict(zip(("num_buckets", "num_sub_buckets"), config.buckets))
  bounds = samplers.estimate_duration_token_bins(frames, tokens, **options).bins.astype(int)
  # Whatever may be drawn fits: the last bucket is the longest, and the last of each duration has
  # the most tokens that there can be.
  bounds[bounds[:, 0] == bounds[-1, 0], 0] = worst.frames
  last = np.append(bounds[1:, 0] != bounds[:-1, 0], True)
  bounds[last, 1] = np.minimum(bounds[last, 0] // _LEAST_FRAMES + 1, worst.tokens)
  shapes = [Shape(*map(int, row), 0) for row in np.unique(bounds, axis=0)]
  rows = largest_batches([x.positions for x in shapes], worst.rows * worst.positions)
  return tuple(shape._replace(rows=size) for shape, size in zip(shapes, rows))


def plan(config, shapes: Sequence[Shape], seed: int, lengths: np.ndarray, *, random: bool) -> Plan:
  """The batches of a training, epoch after epoch, for lengths `[n, 2]`.

  Random batches have the last shape.
  """
  num, size, rng = len(lengths), shapes[-1].rows, np.random.default_rng(seed)
  bounds, sizes = np.array([x[:2] for x in shapes], float), [x.rows for x in shapes]
  bucket, kept = samplers.assign_buckets(lengths, bounds), []
  while len(kept) < config.num_steps:
    if random:
      order = rng.permutation(num)
      kept += [(len(bounds) - 1, order[i : i + size]) for i in range(0, num, size)]
    else:
      order_seed = int(rng.integers(2**31))
      batches = [*samplers.bucket_batches(order_seed, lengths, bounds, batch_sizes=sizes)]
      # Buckets with more batches than others would be left alone at the end of an epoch.
      kept += [(bucket[batches[i][0]], batches[i]) for i in rng.permutation(len(batches))]
  numbers, batches = zip(*kept[: config.num_steps])
  rows = np.full((len(batches), max(shape.rows for shape in shapes)), -1, np.int32)
  for row, batch in zip(rows, batches):
    row[: len(batch)] = batch
  longest = np.ceil([lengths[x].max(axis=0) / [_SUBSAMPLED, 1] for x in batches])
  positions = longest.sum(axis=1) * [len(x) for x in batches]
  return Plan(np.array(numbers, np.int32), rows, positions.astype(np.float32))


def network(config, layers: tuple[int, int]) -> models.SpeechEncoderDecoder:
  """A recognizer with so many layers of encoder and decoder."""
  sizes = {"dim": config.dim, "num_heads": config.num_heads}
  return models.SpeechEncoderDecoder(*layers, vocab_size=data.SPEECH_VOCAB_SIZE, **sizes)


def text_loss(model: models.SpeechEncoderDecoder):
  """The engine's loss on `Utterances`: the mean over all tokens of a batch behind the start."""

  def loss(params, model_state, batch, key):
    del model_state, key
    read, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
    logits = model.apply({"params": params}, batch.frames, batch.frame_lengths, read)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return training.LossOutput(values, targets != 0)

  return loss


def optimizer_of(config, learning_rate: chex.Numeric) -> optax.GradientTransformation:
  """AdamW, whose rate rises and then falls with the root of the step: no end is built in."""
  shape = lambda ratio: jnp.minimum(ratio, jax.lax.rsqrt(ratio))  # noqa: E731
  schedule = lambda step: learning_rate * shape((step + 1) / config.warmup)  # noqa: E731
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def initial(config, layers: tuple[int, int], key) -> chex.ArrayTree:
  """Parameters before training."""
  examples = jnp.ones((1, 8, data.TONE_BANDS)), jnp.ones(1, int), jnp.ones((1, 3), int)
  return network(config, layers).init(key, *examples)["params"]


def fit(config, layers: tuple[int, int], shapes: Sequence[Shape], key, inputs) -> dict[str, Any]:
  """Trains a recognizer, and transcribes test utterances greedily.

  The inputs are the data of the seed's key, the `Plan` and the learning rate. Gives the loss of
  validation utterances after every `eval_every` updates, and the error rate.
  """
  del key
  key_data, plan, learning_rate = inputs
  key, model = jax.random.wrap_key_data(key_data), network(config, layers)
  ends = np.cumsum([config.num_train, config.num_test])
  parts = zip(*(jnp.split(x, ends) for x in draw(config, key)))
  rows, validation, test = (Utterances(*x) for x in parts)
  optimizer, loss = optimizer_of(config, learning_rate), text_loss(model)
  update = training.build_update(loss, optimizer)
  init_key, state_key = jax.random.split(key)
  state = training.init_state(state_key, initial(config, layers, init_key), optimizer)

  def with_shape(shape: Shape):
    def step(state, index):
      some, is_row = jnp.maximum(index[: shape.rows], 0), index[: shape.rows] >= 0
      frames, lengths, tokens, _ = (x[some] for x in rows)
      tokens = jnp.where(is_row[:, None], tokens[:, : shape.tokens + 1], 0)
      return update(state, Utterances(frames[:, : shape.frames], lengths, tokens, is_row))[0]

    return step

  branches = [with_shape(shape) for shape in shapes]

  def phase(state, now):
    shape, index = now
    step = lambda state, x: (jax.lax.switch(x[0], branches, state, x[1]), None)  # noqa: E731
    state, _ = jax.lax.scan(step, state, (shape, index))
    one = lambda row: loss(state.params, {}, jax.tree.map(lambda x: x[None], row), None)  # noqa: E731
    return state, _mean(jax.lax.map(one, validation, batch_size=min(_ROWS, config.num_test)))

  phases = jax.tree.map(lambda x: x.reshape(-1, config.eval_every, *x.shape[1:]), plan[:2])
  state, losses = jax.lax.scan(phase, state, phases)
  return {"validation loss": losses, "error": error_rate(model, state.params, test)}


def _mean(found: training.LossOutput) -> jax.Array:
  return jnp.sum(found.values * found.weights) / jnp.sum(found.weights)


def error_rate(model: models.SpeechEncoderDecoder, params, test: Utterances) -> jax.Array:
  """Insertions, deletions and substitutions of greedy transcripts for every spoken token."""
  frames, lengths, tokens, token_lengths = test
  encoded = model.apply({"params": params}, frames, lengths, method="encode")
  fns = model.decode_fns(params, encoded.states, encoded.lengths)
  prompts, most = jnp.full((len(frames), 1), _START), tokens.shape[1] - 1
  options = {"max_new_tokens": most, "temperature": 0.0, "eos_token_id": _END}
  found = samplers.generate(jax.random.key(0), fns, prompts, jnp.ones_like(lengths), **options)
  written = found.lengths - found.finished
  spoken = token_lengths - 2
  share = metrics.normalized_edit_distance(found.tokens, written, tokens[:, 1:], spoken)
  return jnp.sum(share * jnp.maximum(written, spoken)) / jnp.sum(spoken)


def gradient_bytes(config, layers: tuple[int, int], shape: Shape) -> int:
  """Bytes that the gradient of a batch takes, by the compiler's plan."""
  loss, batch = text_loss(network(config, layers)), abstract_batch(shape)
  params = jax.eval_shape(lambda: initial(config, layers, jax.random.key(0)))
  gradient = jax.grad(lambda params, batch: _mean(loss(params, {}, batch, None)))
  return samplers.compiled_memory_bytes(gradient, params, batch)


def abstract_batch(shape: Shape) -> Utterances:
  """A batch as shapes alone."""
  frames, tokens, rows = shape
  sizes = (rows, frames, data.TONE_BANDS), (rows,), (rows, tokens + 1), (rows,)
  return Utterances(*map(jax.ShapeDtypeStruct, sizes, ("f4", "i4", "i4", "i4")))
