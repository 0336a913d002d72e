"""The objectives of fine-tuning, all on the same log-probabilities of tokens."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxlab.augment import mask_rate_schedule, mask_reasoning_tokens
from jaxlab.commands.rows import Kind
from jaxlab.losses import (
  causal_token_log_probs,
  chunked_token_log_probs,
  coverage_loss,
  coverage_weight,
  coverage_weighted_nll,
  dpo_loss,
  implicit_reward,
  ipo_loss,
  kto_kl_estimate,
  kto_loss,
  orpo_loss,
  rpo_loss,
  sequence_log_prob,
  simpo_loss,
)
from jaxlab.models import DecoderLM
from jaxlab.training.update import LossOutput

Objective = Literal[
  "sft", "dpo", "rpo", "ipo", "kto", "simpo", "orpo", "pass_at_n", "masked_thought"
]

DEFAULT_BETAS = {"dpo": 0.1, "rpo": 0.05, "ipo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}
WITH_REFERENCE = ("dpo", "rpo", "ipo", "kto")
_SUPERVISED = ("sft", "pass_at_n", "masked_thought")


def data_kind(objective: Objective) -> Kind:
  """Which columns an objective learns from.

  Args:
    objective: its name.

  Returns:
    The kind of `read_rows`.
  """
  if objective == "kto":
    return "unpaired"
  return "supervised" if objective in _SUPERVISED else "pairs"


def default_learning_rate(objective: Objective, *, adapters: bool) -> float:
  """The highest learning rate where none is given.

  Args:
    objective: its name.
    adapters: whether low-rank adapters are trained, or all parameters.

  Returns:
    1e-4 or, for preferences, 1e-5 for adapters; a tenth of it for all parameters.
  """
  rate = 1e-4 if data_kind(objective) == "supervised" else 1e-5
  return rate if adapters else rate / 10


def score_tokens(
  model: DecoderLM,
  params: chex.ArrayTree,
  tokens: chex.Array,
  *,
  chunk_size: int = 0,
  read: chex.Array | None = None,
) -> jax.Array:
  """Log-probability of each token given those before it: the one way from a model to objectives.

  Args:
    model: the language model.
    params: its parameters.
    tokens: sequences padded on the right, i32 `[..., T]`.
    chunk_size: logits exist for this many positions of each sequence at a time; 0 for all.
    read: the tokens that the model reads in place of those that it is to predict.

  Returns:
    Log-probabilities in nats, float32 `[..., T]`, 0 at the first position.
  """
  rows = tokens.reshape(-1, tokens.shape[-1])
  given = rows if read is None else read.reshape(rows.shape)
  output = model.apply({"params": params}, given, return_hidden=chunk_size > 0)
  if chunk_size == 0:
    return causal_token_log_probs(output.logits, rows).reshape(tokens.shape)
  tied = model.config.tie_embeddings
  kernel = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
  log_probs = chunked_token_log_probs(
    # The model's own product is of the type of its hidden states too.
    output.hidden[:, :-1],
    kernel.astype(output.hidden.dtype),
    rows[:, 1:],
    chunk_size=chunk_size,
  )
  return jnp.pad(log_probs, ((0, 0), (1, 0))).reshape(tokens.shape)


def build_loss(
  model: DecoderLM,
  merge: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree],
  *,
  objective: Objective,
  beta: float = 0.1,
  margin: float = 1.0,
  num_samples: int = 1,
  sft_weight: float = 0.005,
  mask_rate: float = 0.4,
  num_steps: int = 1,
  chunk_size: int = 0,
) -> Callable[..., LossOutput]:
  """Builds the loss function of an objective.

  Args:
    model: the language model.
    merge: `(trained, frozen) -> params` of the model.
    objective: its name.
    beta: strength of a preference objective; ORPO's weight of the odds.
    margin: of SimPO.
    num_samples: N of pass_at_n.
    sft_weight: of RPO: weight of the likelihood of the chosen responses, in units of `beta`.
    mask_rate: of masked_thought: share of response tokens that are replaced in the end.
    num_steps: of the training, over two thirds of which that share rises.
    chunk_size: as for `score_tokens`.

  Returns:
    `loss_fn(trained, frozen, batch, key, step=None)` for batches of `examples.Batches`; without a
    step, as in an evaluation, no token is replaced. "sft" and "masked_thought" give one value per
    token, all others one per row, with rewards where there is something to compare.
  """

  def loss_fn(trained, frozen, batch, key, step=None):
    params = merge(trained, frozen)
    score = functools.partial(score_tokens, model, chunk_size=chunk_size)
    mask, weights = batch["mask"], batch["weight"]
    if objective in ("sft", "masked_thought"):
      tokens, mask, read = batch["tokens"][:, 0], mask[:, 0], None
      if objective == "masked_thought" and step is not None:
        rate = mask_rate_schedule(step, total_steps=num_steps, max_rate=mask_rate)
        options = {"random_fraction": 1.0, "vocab_size": model.config.vocab_size}
        read = mask_reasoning_tokens(
          key, tokens, mask, rate=rate, mask_token_id=0, **options
        ).tokens
      return LossOutput(-score(params, tokens, read=read), mask * weights[:, None])
    if objective == "pass_at_n":
      scores = score(params, batch["tokens"])[:, 0]
      values, metrics = _pass_at_n(scores, mask[:, 0], num_samples)
    elif objective == "kto":
      scores = score(params, batch["tokens"][:, 0])
      # Where the policy is from the reference takes no gradient, and so no backward pass.
      others = score(jax.lax.stop_gradient(params), batch["tokens"][:, 1])
      values, metrics = _kto(jnp.stack([scores, others], axis=1), batch, beta)
    else:
      scores = score(params, batch["tokens"])
      values, metrics = _pairwise(objective, scores, batch, beta, margin, sft_weight)
    return LossOutput(values, weights, metrics=metrics)

  return loss_fn


def _pass_at_n(scores, mask, num_samples) -> tuple[jax.Array, dict[str, jax.Array]]:
  log_prob = sequence_log_prob(scores, mask)
  values = coverage_weighted_nll(scores, mask, num_samples=num_samples, normalize_length=True)
  return values, {
    "coverage_loss": coverage_loss(log_prob, num_samples=num_samples),
    "coverage_weight": coverage_weight(log_prob, num_samples=num_samples),
    "log_prob": log_prob,
  }


def _pairwise(
  objective: Objective,
  scores: jax.Array,
  batch: Mapping[str, Any],
  beta: float,
  margin: float,
  sft_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  chosen, rejected = jnp.moveaxis(sequence_log_prob(scores, batch["mask"]), -1, 0)
  lengths = jnp.moveaxis(jnp.sum(batch["mask"], axis=-1), -1, 0)
  means = jnp.moveaxis(sequence_log_prob(scores, batch["mask"], normalize_length=True), -1, 0)
  if objective in WITH_REFERENCE:
    reference = jnp.moveaxis(batch["reference"], -1, 0)
    loss = {
      "dpo": dpo_loss,
      "rpo": functools.partial(rpo_loss, sft_weight=sft_weight),
      "ipo": ipo_loss,
    }[objective]
    values = loss(chosen, rejected, *reference, beta=beta)
    rewards = implicit_reward(jnp.stack([chosen, rejected]), reference, beta=beta)
  elif objective == "simpo":
    values = simpo_loss(chosen, rejected, *lengths, beta=beta, margin=margin)
    rewards = beta * means
  else:
    values, rewards = orpo_loss(*means, weight=beta), beta * means
  difference = rewards[0] - rewards[1]
  return values, {
    "reward_margin": difference,
    "reward_accuracy": (difference > 0).astype(jnp.float32),
    "chosen_log_prob": chosen,
    "rejected_log_prob": rejected,
  }


def _kto(
  scores: jax.Array, batch: Mapping[str, Any], beta: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  policy, other = jnp.moveaxis(sequence_log_prob(scores, batch["mask"]), -1, 0)
  reference, other_reference = jnp.moveaxis(batch["reference"], -1, 0)
  # The mean is over the rows of all devices.
  other, other_reference = jax.lax.all_gather((other, other_reference), "data", tiled=True)
  kl = kto_kl_estimate(other, other_reference)
  label = batch["label"]
  values = kto_loss(policy, reference, label, kl, beta=beta)
  gain = implicit_reward(policy, reference, beta=beta) - beta * kl
  return values, {
    "reward_margin": jnp.where(label, gain, -gain),
    "reward_accuracy": ((gain > 0) == label).astype(jnp.float32),
    "kl": kl,
  }
