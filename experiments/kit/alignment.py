"""What papers on alignment share: pairs of responses, reward models, post-training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.language_models import respond, response_log_probs, token_log_probs
from jaxlab import algorithms, losses, models, training
from jaxlab.algorithms import PostTraining, PostTrainingInfo, Rollout
from jaxlab.data.reasoning import EOS_TOKEN


class Pairs(NamedTuple):
  """Preferred and other responses with their prompts, and masks of the responses, `[n, T]`."""

  chosen_tokens: chex.Array
  rejected_tokens: chex.Array
  chosen_mask: chex.Array
  rejected_mask: chex.Array


def pair_log_probs(model: models.DecoderLM, params: chex.ArrayTree, pairs: Any) -> jax.Array:
  """Log-probabilities of the chosen and the rejected responses of `Pairs`, `[n, 2]`."""
  return response_log_probs(model, params, *_stacked(pairs))


def pair_loss(model: models.DecoderLM, loss_fn: Callable[..., chex.Array]):
  """The engine's loss of a preference objective on batches (pairs, reference log-probs `[n, 2]`).

  `loss_fn(chosen, rejected, reference_chosen, reference_rejected) -> [n]`, as `losses.dpo_loss`.
  """

  def loss(params, model_state, batch, key):
    del model_state, key
    pairs, reference = batch
    return training.LossOutput(loss_fn(*pair_log_probs(model, params, pairs).T, *reference.T))

  return loss


class Preferred(NamedTuple):
  """A policy after `prefer`: its parameters, the mean margin of its pairs, and the updates."""

  params: chex.ArrayTree
  margin: jax.Array
  updates: jax.Array


def prefer(
  key: chex.PRNGKey,
  model: models.DecoderLM,
  params: chex.ArrayTree,
  pairs: Pairs,
  reference: chex.Array,
  loss_fn: Callable[..., chex.Array],
  optimizer: optax.GradientTransformation,
  *,
  count: chex.Numeric,
  batch_size: int,
  beta: float,
  margin: float,
  max_updates: int,
  check_every: int,
) -> Preferred:
  """Learns preferences until the mean margin of the pairs reaches a value; traceable.

  Args:
    key: of the batches.
    model: the decoder.
    params: where to begin.
    pairs: `[n, T]`.
    reference: their log-probabilities under the reference, `[n, 2]`.
    loss_fn: as of `pair_loss`.
    optimizer: the gradient transformation.
    count: how many pairs count, from the first on; may be traced.
    batch_size: pairs per update; where there are no more, an update sees all.
    beta: factor of the margin, the difference of both log-ratios to the reference.
    margin: at which learning stops.
    max_updates: or after as many updates.
    check_every: updates between looks at the margin; divides `max_updates`.

  Returns:
    A `Preferred`.
  """
  num = len(reference)
  batch_size = min(batch_size, num)

  def loss(params, rows):
    log_probs = pair_log_probs(model, params, jax.tree.map(lambda x: x[rows], pairs))
    return jnp.mean(loss_fn(*log_probs.T, *reference[rows].T))

  def step(carry, key):
    params, opt_state = carry
    rows = jnp.arange(batch_size)
    if batch_size < num:
      rows = jax.random.randint(key, (batch_size,), 0, count)
    updates, opt_state = optimizer.update(jax.grad(loss)(params, rows), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  def some_steps(carry):
    done, _, *state = carry
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(done + jnp.arange(check_every))
    state, _ = jax.lax.scan(step, tuple(state), keys)
    ratios = pair_log_probs(model, state[0], pairs) - reference
    reached = jnp.mean(ratios[:, 0] - ratios[:, 1], where=jnp.arange(num) < count)
    return done + check_every, beta * reached, *state

  def goes_on(carry):
    return (carry[1] < margin) & (carry[0] < max_updates)

  start = jnp.int32(0), jnp.float32(0.0), params, optimizer.init(params)
  done, reached, params, _ = jax.lax.while_loop(goes_on, some_steps, start)
  return Preferred(params, reached, done)


class RewardModel(nn.Module):
  """A decoder with a scalar head on the state of the last token of a response."""

  decoder: models.DecoderLM

  @nn.compact
  def __call__(self, tokens: chex.Array, mask: chex.Array | None = None) -> jax.Array:
    """Rewards `[b]` of texts `[b, T]`, of which the last token in the mask is read."""
    hidden = self.decoder(tokens, return_hidden=True).hidden
    mask = jnp.ones(tokens.shape) if mask is None else mask
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1] > 0, axis=1)
    state = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return nn.Dense(1, name="head")(state)[:, 0]


def rewards(
  model: RewardModel, params: chex.ArrayTree, tokens: chex.Array, mask: chex.Array
) -> jax.Array:
  """Rewards `[...]` of texts `[..., T]`."""
  rows = [x.reshape(-1, x.shape[-1]) for x in (tokens, mask)]
  return model.apply({"params": params}, *rows).reshape(tokens.shape[:-1])


def reward_loss(model: RewardModel, loss_fn: Callable[..., chex.Array] = losses.bradley_terry_loss):
  """The engine's loss of a reward model on `Pairs`; `loss_fn(chosen, rejected) -> [n]`."""

  def loss(params, model_state, pairs, key):
    del model_state, key
    return training.LossOutput(loss_fn(*rewards(model, params, *_stacked(pairs)).T))

  return loss


def _stacked(pairs: Any) -> tuple[jax.Array, jax.Array]:
  tokens = jnp.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1)
  return tokens, jnp.stack([pairs.chosen_mask, pairs.rejected_mask], axis=1)


def post_trainer(
  model: models.DecoderLM,
  score_fn: Callable[[Rollout, Any], chex.Array],
  objective: algorithms.PolicyObjective,
  optimizer: optax.GradientTransformation,
  *,
  num_samples: int,
  max_new_tokens: int,
  eos_token_id: int = EOS_TOKEN,
  **options: Any,
) -> PostTraining:
  """`algorithms.post_training` of a decoder; the first leaf of `prompts` is tokens `[b, P]`."""

  def rollout_fn(key, params, prompts):
    sizes = {"num_samples": num_samples, "max_new_tokens": max_new_tokens}
    tokens = jax.tree.leaves(prompts)[0]
    return respond(key, model, params, tokens, eos_token_id=eos_token_id, **sizes)

  log_prob_fn = lambda params, tokens: token_log_probs(model, params, tokens)  # noqa: E731
  return algorithms.post_training(
    rollout_fn, score_fn, log_prob_fn, objective, optimizer, **options
  )


class PostTrained(NamedTuple):
  """The parameters after the last iteration, what each reported, and what `evaluate` gave."""

  params: chex.ArrayTree
  infos: PostTrainingInfo
  scores: Any = None


def post_train(
  key: chex.PRNGKey,
  trainer: PostTraining,
  params: chex.ArrayTree,
  prompt_fn: Callable[[chex.PRNGKey], Any],
  *,
  num_steps: int,
  evaluate: Callable[[chex.PRNGKey, chex.ArrayTree], Any] | None = None,
  eval_every: int | None = None,
) -> PostTrained:
  """Runs iterations of post-training on prompts drawn by key; traceable.

  Args:
    key: random key.
    trainer: of `post_trainer`.
    params: of the policy to begin with, which is the reference too.
    prompt_fn: `key -> prompts`.
    num_steps: iterations.
    evaluate: `(key, params) -> pytree`, every `eval_every` iterations, which divides `num_steps`;
      it gets the same key every time.
    eval_every: None evaluates at the end.

  Returns:
    A `PostTrained`; infos `[num_steps]`, scores stacked over evaluations.
  """
  eval_every = eval_every or num_steps
  if num_steps % eval_every:
    raise ValueError(f"eval_every={eval_every} does not divide num_steps={num_steps}.")
  step_key, eval_key = jax.random.split(key)

  def step(state, key):
    prompt_key, update_key = jax.random.split(key)
    return trainer.update(update_key, state, prompt_fn(prompt_key))

  def phase(state, keys):
    state, infos = jax.lax.scan(step, state, keys)
    return state, (infos, None if evaluate is None else evaluate(eval_key, state.params))

  keys = jax.random.split(step_key, num_steps).reshape(-1, eval_every)
  state, (infos, scores) = jax.lax.scan(phase, trainer.init(params), keys)
  infos = jax.tree.map(lambda x: x.reshape(num_steps), infos)
  return PostTrained(state.params, infos, scores)
