"""The encoder of frames, and what it learns from: codes, labels of frames, and transcripts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.kit.language_models import search_decoder
from experiments.kit.train import Trained, agrees, nan_unless
from experiments.labels.ask2mask.speech import NUM_DIGITS, Speech, inside
from jaxlab import augment, losses, metrics, models, training
from jaxlab.models.decoder_blocks import AttentionContext, Block, Linear, Norm
from jaxlab.models.rotary import rotary_frequencies


class Encoder(nn.Module):
  """A convolution, a transformer that attends in both directions, and a layer on every frame."""

  config: Any  # Of the experiment.
  num_outputs: int = NUM_DIGITS + 1

  @nn.compact
  def __call__(self, frames: chex.Array, lengths=None, mask=None) -> jax.Array:
    """Outputs `[b, T, num_outputs]` of frames `[b, T, d]`, of which masked ones are hidden."""
    width, num_layers, num_heads, reach = self.config.encoder
    sizes = {"hidden_size": width, "num_layers": num_layers, "num_heads": num_heads}
    cfg, (batch, length) = models.decoder_config(vocab_size=1, **sizes), frames.shape[:2]
    hidden = Linear(width, use_bias=True, name="front")(frames)
    vector = self.param("mask_vector", nn.initializers.normal(width**-0.5), (width,))
    if mask is not None:
      hidden = augment.apply_span_mask(hidden, mask, vector)
    seen = inside(frames, jnp.full(batch, length) if lengths is None else lengths)
    rope = dataclasses.asdict(cfg.rope)
    hidden += nn.gelu(nn.Conv(width, (reach,), name="near")(hidden * seen[..., None]))
    turn = rotary_frequencies(head_dim=cfg.head_dim, max_positions=length, **rope)
    places = jnp.broadcast_to(jnp.arange(length), (batch, length))
    seen = jnp.broadcast_to(seen[:, None, None], (batch, 1, length, length))
    context = AttentionContext(places, *turn, seen, None, None)
    carry = hidden, None
    for i in range(num_layers):
      carry, _ = Block(cfg, name=f"block_{i}")(carry, i, context)
    hidden = Norm(cfg.norm, cfg.norm_eps, name="norm")(carry[0])
    return Linear(self.num_outputs, use_bias=True, name="head")(hidden)


def label_loss(module: Encoder, *, of_frames: bool, noise: float = 0.0):
  """The engine's loss on batches (frames, lengths, labels): of every frame, or of transcripts."""

  def loss(params, model_state, batch, key):
    del model_state
    frames, lengths, labels = batch
    frames += noise * jax.random.normal(key, frames.shape)
    logits, there = module.apply({"params": params}, frames, lengths), inside(frames, lengths)
    if of_frames:
      values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return training.LossOutput(values, there)
    nothing = ((~x).astype(logits.dtype) for x in (there, labels > 0))
    return training.LossOutput(optax.ctc_loss(logits, next(nothing), labels, next(nothing)))

  return loss


def frame_accuracy(module: Encoder, params, speech: Speech) -> jax.Array:
  """Share of frames whose label is right."""
  logits, there = module.apply({"params": params}, *speech[:2]), inside(*speech[:2])
  return jnp.sum(jnp.where(there, agrees(logits, speech.sounds), 0.0)) / jnp.sum(there)


def token_errors(module: Encoder, params, speech: Speech) -> jax.Array:
  """Insertions, deletions and substitutions for every 100 digits that are said."""
  logits = module.apply({"params": params}, *speech[:2])
  read, spoken = metrics.ctc_greedy_collapse(logits, speech.lengths), jnp.sum(speech.labels > 0, 1)
  rates = metrics.token_error_rate(read.tokens, read.lengths, speech.labels, spoken)
  return nan_unless(jnp.all(jnp.isfinite(logits)), 100 * jnp.sum(rates * spoken) / jnp.sum(spoken))


def learn_labels(
  config, key: chex.PRNGKey, speech: dict[str, Speech], *, of_frames=False, pretrained=None
) -> tuple[chex.ArrayTree, dict[str, jax.Array]]:
  """Learns labels of frames, or transcripts: parameters, and what `validation` chose."""
  module, validation = Encoder(config), speech["validation"]
  rows = jax.tree.map(lambda x: x[: None if of_frames else config.num_tuned], speech["labeled"])
  start = module.init(key, rows.frames)["params"]
  # The last layer is new.
  start |= {name: leaf for name, leaf in (pretrained or {}).items() if name != "head"}
  if of_frames:
    num_steps, labels, noise = config.scorer_steps, rows.sounds, config.scorer_noise
    validate = lambda params: frame_accuracy(module, params, validation)  # noqa: E731
  else:
    num_steps, labels, noise = config.tuning_steps, rows.labels, 0.0
    validate = lambda params: -token_errors(module, params, validation)  # noqa: E731
  options = {"learning_rates": config.tuning_rates, "batch_size": config.tuning_batch}
  options |= {"num_steps": num_steps, "num_evaluations": 1, "start": Trained(start, {})}
  loss = label_loss(module, of_frames=of_frames, noise=noise)
  options |= {"validate": validate, "loss_fn": loss}
  return search_decoder(key, module, (*rows[:2], labels), **options)


def masked_loss(module: Encoder, draw_mask: Callable[..., chex.Array], *, learns_labels=False):
  """The engine's loss of codes on batches (frames, lengths, codes, scores, weights).

  `draw_mask(key, scores, lengths)` says which frames are hidden and predicted; where labels are
  learned, none is hidden and all are predicted.
  """

  def loss(params, model_state, batch, key):
    del model_state
    frames, lengths, codes, scores, weights = batch
    mask = draw_mask(key, scores, lengths)
    hidden = jnp.where(learns_labels, 0, mask)
    predicted = jnp.where(learns_labels, inside(frames, lengths), mask)
    logits = module.apply({"params": params}, frames, lengths, hidden)
    values = losses.masked_prediction_loss(logits, codes, predicted)
    return training.LossOutput(losses.utterance_weighted_loss(values, predicted, weights))

  return loss
