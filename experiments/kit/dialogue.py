"""What papers on rewards share: policies of the dialogue task, trained at several penalties.

Arrays of samples have the prompts first: all P of them, in order.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.alignment import post_trainer
from experiments.kit.language_models import (
  decoder,
  fit_decoder,
  respond,
  response_log_probs,
  text_loss,
)
from experiments.kit.train import adamw_cosine
from jaxlab import algorithms, data, losses, metrics, models
from jaxlab.algorithms import Rollout
from jaxlab.experiment import Context, Results, t_interval

# Penalties between which a tilt is searched, in standard deviations of the rewards.
_BETAS, _HALVINGS = (1e-5, 1e5), 60
# Samples of a prompt that are drawn at once.
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class DialogueSizes:
  """What the configurations of papers on dialogues begin with."""

  num_prompts: int = 32  # Prompts, each with a Markov chain of responses.
  response_length: int = 8  # Tokens of a response.
  response_tokens: int = 16  # Tokens that responses are made of.
  decoder: tuple[int, ...] = (32, 2)  # Width and blocks of reference and policy.
  num_heads: int = 4  # Their attention heads.
  reference_updates: int = 1500  # Updates of the reference.
  reference_rows: int = 128  # Fresh dialogues per update.
  reference_rate: float = 3e-3  # AdamW with a cosine to 0.
  updates: int = 200  # Updates of a policy at each penalty, every one on all prompts.
  samples: int = 8  # Responses to a prompt in an update.
  learning_rate: float = 2e-3  # Adam with a cosine to 0 at each penalty; one for all methods.
  judged: int = 256  # Fresh responses of a policy to a prompt that are judged.
  pool: int = 2000  # Responses of the reference to a prompt that are tilted.


def dialogues(config: DialogueSizes, **fields: Any) -> data.DialogueConfig:
  """The task of a configuration; the seed among the fields may be traced."""
  counts = (config.num_prompts, config.response_length, config.response_tokens)
  return data.DialogueConfig(*counts, **fields)


def check_dialogues(config: DialogueSizes, **divergences: Sequence[float]) -> None:
  """Raises ValueError where sizes are impossible, or the pool cannot be tilted so many nats."""
  sizes.check_sizes(config)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  for name, nats in divergences.items():
    if not max(nats) < math.log(config.pool):
      raise ValueError(
        f"{name} holds {max(nats)} nats, out of reach: a pool of {config.pool} responses can be "
        f"tilted less than {math.log(config.pool):.1f}."
      )


def policy(config: DialogueSizes) -> models.DecoderLM:
  """The decoder that is reference and policy."""
  task = dialogues(config)
  width, num_layers = config.decoder
  shape = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  return decoder(task.vocab_size, task.prompt_length + task.response_length + 1, **shape)


def fit_reference(
  key: chex.PRNGKey, config: DialogueSizes, task: data.DialogueConfig
) -> chex.ArrayTree:
  """Parameters of a decoder that is trained on fresh dialogues; traceable."""
  rows = lambda key, batch_size: data.dialogue_batch(key, task, batch_size)  # noqa: E731
  counts = {"num_steps": config.reference_updates, "batch_size": config.reference_rows}
  options = {"learning_rate": config.reference_rate}
  return fit_decoder(key, policy(config), rows, **counts, **options).params


def abstract_reference(config: DialogueSizes, mesh: jax.sharding.Mesh):
  """The step that trains the reference, as an experiment's `abstract` returns it."""
  task, model = dialogues(config), policy(config)
  key = jax.eval_shape(lambda: jax.random.key(0))
  rows = jax.eval_shape(lambda key: data.dialogue_batch(key, task, config.reference_rows), key)
  optimizer = adamw_cosine(config.reference_rate, config.reference_updates)
  return abstract_step(model, text_loss(model), optimizer, rows, mesh)


# ------------------------------------------------------------------------------------------ samples


def prompts(task: data.DialogueConfig) -> jax.Array:
  """Tokens of all prompts, int32 `[P, 2]`."""
  first = task.first_prompt_token + jnp.arange(task.num_prompts, dtype=jnp.int32)
  return jnp.stack([first, jnp.full_like(first, task.separator_token)], axis=1)


def sample(
  key: chex.PRNGKey, config: DialogueSizes, params: chex.ArrayTree, num_samples: int
) -> Rollout:
  """Responses of a policy to every prompt, `[P, n, T]`, drawn in parts that fit into memory."""
  task, num_chunks = dialogues(config), -(-num_samples // _AT_ONCE)
  drawn = respond(
    key,
    policy(config),
    params,
    prompts(task),
    num_samples=num_chunks * -(-num_samples // num_chunks),
    max_new_tokens=task.response_length + 1,
    eos_token_id=task.end_token,
    num_chunks=num_chunks,
  )
  return jax.tree.map(lambda x: x[:, :num_samples], drawn)


def divergences(config: DialogueSizes, reference: chex.ArrayTree, rollout: Rollout) -> jax.Array:
  """Divergence of a policy from the reference on its own samples, nats by prompt `[P]`."""

  def of_prompt(rollout):
    theirs = response_log_probs(policy(config), reference, rollout.tokens, rollout.mask)
    return jnp.mean(losses.sequence_log_prob(rollout.log_probs, rollout.mask) - theirs)

  return jax.lax.map(of_prompt, rollout)


def are_valid(task: data.DialogueConfig, tokens: chex.Array) -> jax.Array:
  """Which texts `[..., T]` hold as many response tokens as there should be, and then end."""
  response = tokens[..., task.prompt_length : -1] - task.first_response_token
  inside = (response >= 0) & (response < task.num_response_tokens)
  return jnp.all(inside, axis=-1) & (tokens[..., -1] == task.end_token)


def response_mask(task: data.DialogueConfig, tokens: chex.Array) -> jax.Array:
  """True on the responses of texts `[..., T]`, their end included."""
  places = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  return (places >= task.prompt_length) & (tokens != task.pad_token)


def true_rewards(task: data.DialogueConfig, tokens: chex.Array, kind: str) -> jax.Array:
  """Rewards of texts `[P, n, T]`; one that does not end is no response of the right length."""
  ended = tokens[..., -1:] == task.end_token
  responses = jnp.where(ended, tokens[..., task.prompt_length : -1], task.pad_token)
  ids = jnp.repeat(jnp.arange(task.num_prompts), tokens.shape[1])
  rewards = data.dialogue_reward(task, ids, responses.reshape(-1, task.response_length), kind=kind)
  return rewards.reshape(tokens.shape[:2])


# ----------------------------------------------------------------------------------------- policies


class Tilt(NamedTuple):
  """The best policy for a reward, as weights of a pool of the reference's samples.

  Attributes:
    beta: weight of the divergence.
    weights: of the samples, `[P, m]`; those of a prompt sum to 1.
    kl: divergence by prompt in nats, `[P]`.
  """

  beta: chex.Array
  weights: chex.Array
  kl: chex.Array


def tilt_to(rewards: chex.Array, kl: chex.Numeric) -> Tilt:
  """Tilts a pool `[P, m]` so far that its mean divergence over prompts has a given value.

  All of the result is NaN where no tilt is so far from the pool, as among equal rewards.
  """

  def tilted(log_beta):
    weights = losses.tilted_weights(rewards, beta=jnp.exp(log_beta))
    return weights, jax.vmap(metrics.density_kl)(weights.shape[1] * weights)

  def halve(_, bounds):
    middle = 0.5 * (bounds[0] + bounds[1])
    too_far = jnp.mean(tilted(middle)[1]) > kl
    return jnp.where(too_far, middle, bounds[0]), jnp.where(too_far, bounds[1], middle)

  bounds = jnp.log(jnp.std(rewards) + 1e-12) + jnp.log(jnp.array(_BETAS))
  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (bounds[0], bounds[1]))
  in_reach = jnp.mean(tilted(bounds[0])[1]) >= kl
  log_beta = jnp.where(in_reach, 0.5 * (low + high), jnp.nan)
  return Tilt(jnp.exp(log_beta), *tilted(log_beta))


def align(
  key: chex.PRNGKey,
  config: DialogueSizes,
  reference: chex.ArrayTree,
  reward_fn: Callable[[chex.Array], chex.Array],
  judge_fn: Callable[[chex.Array], Mapping[str, chex.Array]],
  *,
  penalties: chex.Array,
) -> dict[str, jax.Array]:
  """Trains a policy from the reference at one penalty after the other; traceable.

  Args:
    key: of training and of the responses that are judged.
    config: of the experiment.
    reference: parameters.
    reward_fn: `tokens [P, n, T] -> rewards [P, n]`, as they are optimized.
    judge_fn: `tokens [P, judged, T] -> {quantity: array}`, of fresh responses at each penalty.
    penalties: weights of the divergence, `[k]`; training goes on from one to the next.

  Returns:
    quantity -> `[k, ...]`: what `judge_fn` gives, and how far the policies are from the reference.
  """
  task, model = dialogues(config), policy(config)
  every = prompts(task)
  optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))

  def at_penalty(params, inputs):
    penalty, key = inputs
    trainer = post_trainer(
      model,
      lambda rollout, _: reward_fn(rollout.tokens),
      algorithms.rloo_objective(),
      optimizer,
      num_samples=config.samples,
      max_new_tokens=task.response_length + 1,
      eos_token_id=task.end_token,
      kl_penalty=penalty,
    )
    judge_key, train_key = jax.random.split(key)
    keys = jax.random.split(train_key, config.updates)
    state = trainer.init(reference)._replace(params=params)
    update = lambda state, key: trainer.update(key, state, every)  # noqa: E731
    state, infos = jax.lax.scan(update, state, keys)
    rollout = sample(judge_key, config, state.params, config.judged)
    return state.params, {
      **judge_fn(rollout.tokens),
      **spread_of(divergences(config, reference, rollout)),
      "penalty": penalty,
      "valid": 100 * jnp.mean(are_valid(task, rollout.tokens)),
      "skipped updates": jnp.sum(infos.num_skipped),
    }

  keys = jax.random.split(key, len(penalties))
  _, scores = jax.lax.scan(at_penalty, jax.tree.map(jnp.asarray, reference), (penalties, keys))
  return scores


def spread_of(kl: chex.Array) -> dict[str, jax.Array]:
  """Mean divergence, and what it is at low and high prompts, of divergences by prompt `[P]`."""
  spread = {f"KL, {q}% of prompts": jnp.percentile(kl, q) for q in (10, 90)}
  return {"KL": jnp.mean(kl)} | spread


# -------------------------------------------------------------------------------------- experiments


def train_methods(
  context: Context,
  train_fn: Callable[..., Mapping[str, Any]],
  references: Any,
  methods: Sequence[str],
) -> dict[str, dict[str, np.ndarray]]:
  """Trains every method, all of them with one program.

  Args:
    context: of the run.
    train_fn: `(key, (reference, number of the method)) -> {quantity: array}`.
    references: of all seeds.
    methods: their names.

  Returns:
    method -> quantity -> `[seeds, ...]`.
  """
  scores = {}
  for i, method in enumerate(methods):
    stage = f"policies/{re.sub(r'[^a-z0-9., -]', '', method)}"
    numbers = np.full(context.seeds, i)
    scores[method] = context.over_seeds(stage, train_fn, arguments=(references, numbers))
  return scores


def add_trained(
  results: Results,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  *,
  policy: str,
  aims: Sequence[float],
  kls: Sequence[float],
) -> None:
  """Adds what `train_methods` gave, as measured, and interpolated to equal divergences.

  Args:
    results: where to.
    scores: method -> quantity -> `[seeds, aims]`, `KL` among the quantities.
    policy: a setting of the records.
    aims: in nats, the setting `aim` of what was measured: to which the penalty would tilt.
    kls: in nats, the setting `kl` of what is interpolated; NaN where a seed did not measure beyond.
  """
  at = jax.jit(jax.vmap(lambda kl, value: metrics.value_at_kl(kl, value, at=jnp.array(kls))))
  for method, measured in scores.items():
    for i, aim in enumerate(aims):
      values = {name: value[:, i] for name, value in measured.items()}
      results.add({method: values}, policy=policy, aim=aim)
    equal = {name: np.asarray(at(measured["KL"], value)) for name, value in measured.items()}
    for i, kl in enumerate(kls):
      values = {name: value[:, i] for name, value in equal.items() if not name.startswith("KL")}
      results.add({method: values}, policy=policy, kl=kl)


def map_pairs(fn: Callable[..., Any], rows: chex.Array, columns: chex.Array) -> Any:
  """`fn(row, column)` of every pair, one after the other: leaves `[rows, columns, ...]`."""
  return jax.lax.map(lambda row: jax.lax.map(lambda column: fn(row, column), columns), rows)


def add_tilted(
  results: Results,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  *,
  policy: str,
  kls: Sequence[float],
) -> None:
  """Adds values `[..., kls]` of exact tilts, method -> quantity -> values."""
  for method, quantities in scores.items():
    for i, kl in enumerate(kls):
      values = {name: value[..., i] for name, value in quantities.items()}
      results.add({method: values}, policy=policy, kl=kl)


def curves(
  ax: Any, results: Results, quantity: str, *, methods: Mapping[str, str], policy: str
) -> None:
  """Means over seeds against the mean measured divergence, with 95% t-intervals.

  Args:
    ax: the axes.
    results: the records.
    quantity: what is drawn.
    methods: method -> color.
    policy: the setting of the trained ones.
  """
  for method, color in methods.items():
    aims = results.distinct("aim", quantity=quantity, method=method, policy=policy)
    kls, values = (
      np.array([results.select(q, method=method, policy=policy, aim=aim) for aim in aims])
      for q in ("KL", quantity)
    )
    error = [(high - low) / 2 for low, high in map(t_interval, values)]
    error = np.where(np.isfinite(error), error, 0)
    options = {"fmt": "o-", "capsize": 3, "color": color, "label": method}
    ax.errorbar(kls.mean(1), values.mean(1), error, **options)
  ax.set(xlabel="measured divergence (nats)", ylabel=f"{quantity} (%)")


def tilted_curve(ax: Any, results: Results, quantity: str, *, method: str, policy: str, **options):
  """The mean over seeds of an exact tilt along the setting `kl`."""
  records = results.matching(quantity=quantity, method=method, policy=policy)
  xs, ys = zip(*sorted((record.setting["kl"], record.values.mean()) for record in records))
  ax.plot(xs, ys, **options)
