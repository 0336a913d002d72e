"""Post-training of a policy on its own samples: roll out, score, weigh, update.

The model comes as functions, so that any network is a policy. An iteration is one program under
`jax.jit`, also inside `lax.scan` and over seeds. Where the score is computed on the host, by a
verifier in Python, `sample` and `learn` are the two programs around it::

  def rollout_fn(key, params, prompts):
    fns = samplers.flax_decode_fns(model, params)
    return sample_rollout(key, fns, prompts, lengths, num_samples=8, max_new_tokens=64)

  def log_prob_fn(params, tokens):
    logits = model.apply({"params": params}, tokens).logits
    return losses.causal_token_log_probs(logits, tokens)

  trainer = post_training(
    rollout_fn, score_fn, log_prob_fn, rloo_objective(), optax.adam(1e-5), kl_penalty=0.05
  )
  state = trainer.init(params)
  state, info = jax.jit(trainer.update)(key, state, prompts)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, is_known
from jaxlab.algorithms.online_adaptation import guarded_step, init_optimizer
from jaxlab.algorithms.policy_objectives import PolicyBatch, PolicyObjective
from jaxlab.losses.policy_gradient import kl_penalized_rewards
from jaxlab.losses.sequence import sequence_log_prob
from jaxlab.samplers.decode_fns import DecodeFns
from jaxlab.samplers.generation import generate_n


class Rollout(NamedTuple):
  """Samples of a policy: n sequences of every prompt, in one padded array.

  Attributes:
    tokens: prompt and response of each sample, padded on the right, int32 `[b, n, T]`.
    mask: True on the tokens of the response, its end included, bool `[b, n, T]`.
    log_probs: log-probabilities of these tokens under the policy in nats, 0 elsewhere,
      `[b, n, T]`.
  """

  tokens: chex.Array
  mask: chex.Array
  log_probs: chex.Array


class PostTrainingState(NamedTuple):
  """The state of post-training.

  Attributes:
    params: parameters of the policy.
    reference_params: those of the reference, the policy before the first step.
    opt_state: state of the optimizer.
    step: iterations done, int32 scalar.
  """

  params: chex.ArrayTree
  reference_params: chex.ArrayTree
  opt_state: optax.OptState
  step: chex.Array


class PostTrainingInfo(NamedTuple):
  """What an iteration reports, float32 scalars.

  Attributes:
    loss: the objective before the step, the mean over `num_updates` steps.
    reward: mean score of the samples that can be scored, before any transformation; NaN without
      one.
    kl: divergence from the reference in nats: the mean over samples of the sum over tokens of the
      log-ratio, on the policy's own samples.
    length: mean number of tokens of a response.
    num_constant: groups whose scored samples all have one reward, or that have fewer than two.
    num_unused: groups that were not learned from, since their weights are all 0: of pairs the ties,
      of a selection the groups without an accepted sample.
    num_unscorable: samples whose reward is NaN or infinite.
    num_empty: samples without a token in the mask.
    num_skipped: steps whose loss or gradient was not finite, so that the state stayed as it was.
  """

  loss: chex.Array
  reward: chex.Array
  kl: chex.Array
  length: chex.Array
  num_constant: chex.Array
  num_unused: chex.Array
  num_unscorable: chex.Array
  num_empty: chex.Array
  num_skipped: chex.Array


class PostTraining(NamedTuple):
  """The functions of post-training; all are pure and may be jitted.

  Attributes:
    init: `params -> PostTrainingState`.
    sample: `(key, state, prompts) -> Rollout`.
    learn: `(state, rollout, rewards [b, n], prompts=None) -> (state, PostTrainingInfo)`.
    update: `(key, state, prompts) -> (state, PostTrainingInfo)`: samples, scores and learns.
  """

  init: Callable[[chex.ArrayTree], PostTrainingState]
  sample: Callable[[chex.PRNGKey, PostTrainingState, Any], Rollout]
  learn: Callable[..., tuple[PostTrainingState, PostTrainingInfo]]
  update: Callable[..., tuple[PostTrainingState, PostTrainingInfo]]


def post_training(
  rollout_fn: Callable[[chex.PRNGKey, chex.ArrayTree, Any], Rollout],
  score_fn: Callable[[Rollout, Any], chex.Array] | None,
  log_prob_fn: Callable[[chex.ArrayTree, chex.Array], chex.Array],
  objective: PolicyObjective,
  optimizer: optax.GradientTransformation,
  *,
  transform_fn: Callable[[chex.Array, Any], chex.Array] | None = None,
  kl_penalty: chex.Numeric = 0.0,
  num_updates: int = 1,
  accumulate: int = 1,
) -> PostTraining:
  """Builds post-training of a policy on its own samples.

  Args:
    rollout_fn: `(key, params, prompts) -> Rollout`; `prompts` is any pytree of arrays `[b, ...]`,
      and no gradient flows into samples.
    score_fn: `(rollout, prompts) -> rewards [b, n]`; NaN where a sample cannot be scored. None if
      scores come from outside the program: then there is no `update`.
    log_prob_fn: `(params, tokens [m, T]) -> log-probabilities of the tokens [m, T]`.
    objective: which samples are learned from, and how: `rloo_objective` and its neighbors.
    optimizer: the gradient transformation.
    transform_fn: `(rewards [b, n], prompts) -> rewards [b, n]`, between the score and the weights,
      such as a calibration by rewards of the reference.
    kl_penalty: rewards are lowered by this much per nat of the sample's log-ratio to the reference,
      at least 0.
    num_updates: optimizer steps on the same samples.
    accumulate: pieces into which the groups of a batch are cut in the gradient, to save memory;
      divides b.

  Returns:
    `PostTraining(init, sample, learn, update)`.

  Raises:
    ValueError: if `kl_penalty` < 0 or a count is below 1; on a call, if shapes do not agree.

  Reference: Ouyang et al., Training language models to follow instructions with human feedback,
  NeurIPS 2022, https://arxiv.org/abs/2203.02155; Ahmadian et al., Back to Basics, ACL 2024,
  https://arxiv.org/abs/2402.14740.
  """
  check_range("kl_penalty", kl_penalty, "[0, inf)")
  check_at_least(1, num_updates=num_updates, accumulate=accumulate)
  penalized = not is_known(kl_penalty) or np.any(np.asarray(kl_penalty) != 0)

  def log_probs_of(params, tokens):
    scores = log_prob_fn(params, tokens.reshape(-1, tokens.shape[-1]))
    return as_accumulator(scores).reshape(tokens.shape)

  def init(params):
    params = jax.tree.map(jnp.asarray, params)
    opt_state = init_optimizer(optimizer, params)
    # A copy, so that a step may be given the buffers of the state.
    policy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    return PostTrainingState(policy, params, opt_state, jnp.zeros((), jnp.int32))

  def sample(key, state, prompts):
    return jax.lax.stop_gradient(rollout_fn(key, state.params, prompts))

  def learn(state, rollout, rewards, prompts=None):
    _check_rollout(rollout, rewards, accumulate)
    tokens, mask = rollout.tokens, rollout.mask.astype(bool)
    old, scores = as_accumulator(rollout.log_probs, rewards)
    reference = log_probs_of(state.reference_params, tokens)
    rewards = scores if transform_fn is None else transform_fn(scores, prompts)
    given = rewards
    if penalized:
      rewards = kl_penalized_rewards(rewards, old, reference, mask, beta=kl_penalty)
    weights, samples = objective.weigh_fn(rewards)
    rows = tokens, mask, old, reference
    if samples is not None:
      rows = [jnp.take_along_axis(x, samples[..., None], axis=1) for x in rows]
    rows = jax.lax.stop_gradient((*rows, weights))

    def total(params, rows):
      tokens, mask, old, reference, weights = rows
      batch = PolicyBatch(log_probs_of(params, tokens), old, reference, mask, weights)
      values, counts = objective.loss_fn(batch)
      counts = jnp.ones_like(values) if counts is None else counts
      check_arrays(**{"PolicyLoss.values": (values, "[b, ...]"), "counts": (counts, "[b, ...]")})
      counts = jax.lax.stop_gradient(counts)
      return jnp.sum(jnp.where(counts != 0, values, 0.0) * counts), jnp.sum(counts)

    def mean_loss(params):
      if accumulate == 1:
        numerator, count = total(params, rows)
      else:
        # Groups i, i + accumulate, ...: where groups are spread over devices, so is every piece.
        pieces = jax.tree.map(
          lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), rows
        )
        # Every piece is computed again in the backward pass, which then holds one at a time.
        sums = jax.lax.map(jax.checkpoint(lambda piece: total(params, piece)), pieces)
        numerator, count = jax.tree.map(jnp.sum, sums)
      return numerator / jnp.where(count > 0, count, 1.0), None

    def step(carry, _):
      params, opt_state = carry
      result = guarded_step(mean_loss, optimizer, params, opt_state)
      new = result.params, result.opt_state
      carry = jax.tree.map(lambda new, old: jnp.where(result.finite, new, old), new, carry)
      return carry, (result.loss, ~result.finite)

    carry = state.params, state.opt_state
    if num_updates == 1:
      carry, (loss, skipped) = step(carry, None)
    else:
      carry, (loss, skipped) = jax.lax.scan(step, carry, length=num_updates)
    state = PostTrainingState(carry[0], state.reference_params, carry[1], state.step + 1)
    log_ratio = sequence_log_prob(old - reference, mask)
    finite = jnp.isfinite(scores)
    num_finite = jnp.sum(finite)
    mean_score = jnp.sum(jnp.where(finite, scores, 0.0)) / jnp.maximum(num_finite, 1)
    info = PostTrainingInfo(
      loss=jnp.mean(loss),
      reward=jnp.where(num_finite > 0, mean_score, jnp.nan),
      kl=jnp.mean(log_ratio),
      length=jnp.mean(jnp.sum(mask, axis=-1)),
      num_constant=jnp.sum(_is_constant(given)),
      num_unused=jnp.sum(jnp.all(weights == 0, axis=-1)),
      num_unscorable=jnp.sum(~finite),
      num_empty=jnp.sum(~jnp.any(mask, axis=-1)),
      num_skipped=jnp.sum(skipped),
    )
    return state, jax.tree.map(lambda x: x.astype(jnp.float32), info)

  def update(key, state, prompts):
    if score_fn is None:
      raise ValueError("score_fn is None: use sample and learn, and score in between.")
    rollout = sample(key, state, prompts)
    return learn(state, rollout, score_fn(rollout, prompts), prompts)

  return PostTraining(init, sample, learn, update)


def _check_rollout(rollout: Rollout, rewards: chex.Array, accumulate: int) -> None:
  check_arrays(
    **{
      "rollout.tokens": (rollout.tokens, "int [b, n, T]"),
      "rollout.mask": (rollout.mask, "[b, n, T]"),
      "rollout.log_probs": (rollout.log_probs, "float [b, n, T]"),
      "rewards": (rewards, "[b, n]"),
    }
  )
  if len(rewards) % accumulate:
    raise ValueError(f"accumulate={accumulate} does not divide the {len(rewards)} groups.")


def _is_constant(rewards: jax.Array) -> jax.Array:
  """Whether no two finite rewards of a group differ."""
  finite = jnp.isfinite(rewards)
  highest = jnp.max(jnp.where(finite, rewards, -jnp.inf), axis=-1)
  lowest = jnp.min(jnp.where(finite, rewards, jnp.inf), axis=-1)
  return highest <= lowest


def sample_rollout(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  num_samples: int,
  max_new_tokens: int,
  eos_token_id: int | Sequence[int] | None = None,
  pad_token_id: int = 0,
  temperature: chex.Numeric = 1.0,
) -> Rollout:
  """Samples responses and joins them to their prompts.

  Args:
    key: random key.
    decode_fns: the policy.
    prompt_tokens: prompts padded on the right, int32 `[b, p]`.
    prompt_lengths: their lengths, int32 `[b]`, in [1, p].
    num_samples: responses of each prompt, n.
    max_new_tokens: tokens of the longest response.
    eos_token_id: the token that ends a response, several, or None.
    pad_token_id: what follows the end.
    temperature: of sampling; the log-probabilities are those of the policy itself, at 1.

  Returns:
    A `Rollout`, T = p + max_new_tokens.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, or a count or a concrete length is out of range.
  """
  new = generate_n(
    key,
    decode_fns,
    prompt_tokens,
    prompt_lengths,
    num_samples=num_samples,
    max_new_tokens=max_new_tokens,
    eos_token_id=eos_token_id,
    pad_token_id=pad_token_id,
    temperature=temperature,
  )
  prompts = jnp.pad(jnp.asarray(prompt_tokens), ((0, 0), (0, max_new_tokens)))[:, None]
  places = jnp.arange(prompts.shape[-1])[None, None] - jnp.asarray(prompt_lengths)[:, None, None]
  places = jnp.broadcast_to(places, (len(places), num_samples, places.shape[-1]))
  mask = (places >= 0) & (places < new.lengths[..., None])
  index = jnp.clip(places, 0, max_new_tokens - 1)
  responses = jnp.take_along_axis(new.tokens, index, axis=-1)
  log_probs = jnp.take_along_axis(new.log_probs, index, axis=-1)
  tokens = jnp.where(mask, responses, jnp.where(places < 0, prompts, pad_token_id))
  return Rollout(tokens.astype(jnp.int32), mask, jnp.where(mask, log_probs, 0.0))
