"""Post-training of a table: a Markov policy, whose gradients are sums over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses, samplers, training

B, N, T, V, EOS = 4, 3, 5, 6, 1
RATE, BETA, CLIP, KL = 0.1, 0.3, 0.2, 0.2
RNG = np.random.default_rng(0)
TABLE, REFERENCE = RNG.normal(size=(2, V, V)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, N, T)).astype(np.int32)
# Two tokens of prompt; the responses have 1 to 3 tokens, and one has none.
LENGTHS = RNG.integers(1, 4, (B, N))
LENGTHS[2, 1] = 0
MASK = (np.arange(T) >= 2) & (np.arange(T) < 2 + LENGTHS[..., None])
REWARDS = RNG.normal(size=(B, N)).astype(np.float32)
REWARDS[1] = 0.5
REWARDS[3] = np.nan, 2.0, -1.0
SLOPE = np.array([1.0, 1.0, -2.0, 0.5], np.float32)  # Of a transformation, by prompt.


def log_prob_fn(params, tokens):
  return losses.causal_token_log_probs(params["table"][tokens], tokens)


def rollout_fn(key, params, prompts, *, num_samples=N):
  fns = samplers.table_decode_fns(params["table"])
  lengths = jnp.full(len(prompts), prompts.shape[1])
  sizes = {"num_samples": num_samples, "max_new_tokens": 3, "eos_token_id": EOS}
  return algorithms.sample_rollout(key, fns, prompts, lengths, **sizes)


def score_fn(rollout, prompts):
  del prompts
  return jnp.sum(rollout.mask & (rollout.tokens == 3), axis=-1).astype(jnp.float32)


def scores_of(table):
  """Log-probabilities of the tokens, in float64."""
  log_probs = np.float64(table) - np.log(np.exp(np.float64(table)).sum(-1, keepdims=True))
  return np.pad(log_probs[TOKENS[..., :-1], TOKENS[..., 1:]], ((0, 0), (0, 0), (1, 0)))


# The policy that sampled the tokens lies a little beside the one that learns from them.
POLICY, FROZEN = scores_of(TABLE), scores_of(REFERENCE)
OLD = POLICY + 0.15 * RNG.normal(size=POLICY.shape)
# Under the mask anything may stand.
ROLLOUT = algorithms.Rollout(
  TOKENS, MASK, np.where(MASK, OLD, np.where(LENGTHS[..., None] > 1, -np.inf, 0)).astype(np.float32)
)
SEQUENCE = {name: (x * MASK).sum(-1) for name, x in (("p", POLICY), ("o", OLD), ("r", FROZEN))}

OBJECTIVES = {
  "rloo": algorithms.rloo_objective(clip_low=CLIP),
  "grpo": algorithms.grpo_objective(clip_low=CLIP, kl_coefficient=KL),
  "best_of_n": algorithms.best_of_n_objective(),
  "rejection": algorithms.rejection_sampling_objective(threshold=0.5),
  "online_dpo": algorithms.online_dpo_objective(beta=BETA),
}


def trainer(objective, optimizer=None, score=score_fn, **options):
  return algorithms.post_training(
    rollout_fn, score, log_prob_fn, objective, optimizer or optax.sgd(RATE), **options
  )


def start(made):
  params = {"table": TABLE, "frozen": np.int32(7)}
  return made.init(params)._replace(reference_params=params | {"table": REFERENCE})


@functools.cache
def learned(name, **options):
  options = dict(options)
  made = trainer(OBJECTIVES[name], score=None, **options)
  state, info = jax.jit(made.learn)(start(made), ROLLOUT, REWARDS, SLOPE)
  return jax.device_get(state), jax.device_get(info)


def clipped_slope(log_ratio, advantage):
  """Of -min(w A, clip(w) A) in the log-ratio, and the value."""
  ratio = np.exp(log_ratio)
  clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP)
  inside = ratio * advantage <= clipped * advantage
  return np.where(inside, -ratio * advantage, 0.0), -min(ratio * advantage, clipped * advantage)


def slow_advantages(rewards, scaled):
  values = np.zeros((B, N))
  for i, row in enumerate(rewards):
    finite = [r for r in row if np.isfinite(r)]
    for j, r in enumerate(row):
      if np.isfinite(r) and len(finite) > 1:
        baseline = np.mean(finite) if scaled else (sum(finite) - r) / (len(finite) - 1)
        values[i, j] = (r - baseline) / ((np.std(finite, ddof=1) + 1e-4) if scaled else 1.0)
  return values


def slow_step(name, rewards):
  """Loss, and the slope of the loss in every token's log-probability, one sample at a time."""
  slopes, total, count = np.zeros((B, N, T)), 0.0, 0.0
  advantages = slow_advantages(rewards, scaled=name == "grpo")
  for i, j in np.ndindex(B, N):
    mask, length = MASK[i, j], LENGTHS[i, j]
    if name == "rloo":
      ratio = SEQUENCE["p"][i, j] - SEQUENCE["o"][i, j]
      slope, value = clipped_slope(ratio, advantages[i, j])
      slopes[i, j, mask] = slope
      total, count = total + value, count + 1
    elif name == "grpo":
      for t in np.flatnonzero(mask):
        slope, value = clipped_slope(POLICY[i, j, t] - OLD[i, j, t], advantages[i, j])
        ratio = POLICY[i, j, t] - FROZEN[i, j, t]
        slopes[i, j, t] = (slope + KL * (1 - np.exp(-ratio))) / length
        total += (value + KL * (np.exp(-ratio) + ratio - 1)) / length
      count += 1
    elif name in ("best_of_n", "rejection"):
      best = np.nanargmax(rewards[i]) == j
      if best if name == "best_of_n" else rewards[i, j] >= 0.5:
        slopes[i, j, mask] = -1.0
        total, count = total - SEQUENCE["p"][i, j], count + length
  if name == "online_dpo":
    for i in range(B):
      best, worst = np.nanargmax(rewards[i]), np.nanargmin(rewards[i])
      if rewards[i, best] > rewards[i, worst]:
        ratio = SEQUENCE["p"][i] - SEQUENCE["r"][i]
        margin = BETA * (ratio[best] - ratio[worst])
        slope = BETA / (1 + np.exp(margin))
        slopes[i, best, MASK[i, best]], slopes[i, worst, MASK[i, worst]] = -slope, slope
        total, count = total + np.log1p(np.exp(-margin)), count + 1
  return total / count, slopes / count


def expected_table(slopes):
  """The table after a step down the gradient: d log pi(a | s) = onehot(a) - pi(. | s)."""
  probs = np.exp(np.float64(TABLE)) / np.exp(np.float64(TABLE)).sum(-1, keepdims=True)
  grad = np.zeros((V, V))
  for i, j, t in np.argwhere(slopes):
    state = TOKENS[i, j, t - 1]
    grad[state] += slopes[i, j, t] * (np.eye(V)[TOKENS[i, j, t]] - probs[state])
  return TABLE - RATE * grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_equals_a_loop_over_samples(name):
  state, info = learned(name)
  loss, slopes = slow_step(name, REWARDS)
  np.testing.assert_allclose(state.params["table"], expected_table(slopes), atol=2e-6)
  np.testing.assert_allclose(info.loss, loss, rtol=1e-5, atol=1e-6)
  assert state.params["frozen"] == 7 and state.step == 1
  np.testing.assert_array_equal(state.reference_params["table"], REFERENCE)


def test_rewards_are_transformed_and_then_penalized():
  transform = lambda rewards, slope: rewards * slope[:, None]  # noqa: E731
  made = trainer(OBJECTIVES["rloo"], score=None, transform_fn=transform, kl_penalty=BETA)
  state, info = jax.jit(made.learn)(start(made), ROLLOUT, REWARDS, SLOPE)
  rewards = REWARDS * SLOPE[:, None] - BETA * (SEQUENCE["o"] - SEQUENCE["r"])
  _, slopes = slow_step("rloo", rewards)
  np.testing.assert_allclose(state.params["table"], expected_table(slopes), atol=2e-6)
  # The score is reported as it was given.
  np.testing.assert_allclose(info.reward, np.nanmean(REWARDS), rtol=1e-6)
  assert (info.num_constant, info.num_unused) == (1, 0)


def test_the_report_counts_what_teaches_nothing():
  _, info = learned("online_dpo")
  np.testing.assert_allclose(info.kl, (SEQUENCE["o"] - SEQUENCE["r"]).mean(), rtol=1e-5)
  np.testing.assert_allclose(info.reward, np.nanmean(REWARDS), rtol=1e-6)
  np.testing.assert_allclose(info.length, LENGTHS.mean(), rtol=1e-6)
  assert (info.num_constant, info.num_unused, info.num_unscorable) == (1, 1, 1)
  assert (info.num_empty, info.num_skipped) == (1, 0)
  for name in OBJECTIVES:
    _, info = learned(name)
    unused = {"rloo": 1, "grpo": 1, "best_of_n": 0, "rejection": 0, "online_dpo": 1}[name]
    unused = (REWARDS < 0.5).all(1).sum() if name == "rejection" else unused
    assert info.num_unused == unused, name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rewards_of_nothing_leave_the_policy(value):
  made = trainer(OBJECTIVES["best_of_n"], score=None)
  rewards = np.full((B, N), value, np.float32)
  state, info = jax.jit(made.learn)(start(made), ROLLOUT, rewards, SLOPE)
  np.testing.assert_array_equal(state.params["table"], TABLE)
  assert (info.loss, info.num_unscorable, info.num_unused) == (0, B * N, B)
  assert np.isnan(info.reward)


def test_a_gradient_that_is_not_finite_is_skipped():
  made = trainer(OBJECTIVES["best_of_n"], optax.adam(RATE), score=None)
  broken = start(made)
  broken = broken._replace(params=broken.params | {"table": TABLE * np.nan})
  state, info = jax.jit(made.learn)(broken, ROLLOUT, REWARDS, SLOPE)
  assert info.num_skipped == 1 and np.isnan(state.params["table"]).all()
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, broken.opt_state)


def test_several_updates_are_several_steps_and_pieces_are_one():
  made = trainer(OBJECTIVES["grpo"], optax.adam(RATE), score=None)
  twice = trainer(OBJECTIVES["grpo"], optax.adam(RATE), score=None, num_updates=2)
  pieces = trainer(OBJECTIVES["grpo"], optax.adam(RATE), score=None, accumulate=2, num_updates=2)

  @jax.jit
  def run():
    state = start(made)
    for _ in range(2):
      state, _ = made.learn(state, ROLLOUT, REWARDS)
    return state.params, [x.learn(start(made), ROLLOUT, REWARDS)[0].params for x in (twice, pieces)]

  expected, actual = run()
  for params in actual:
    np.testing.assert_allclose(params["table"], expected["table"], atol=1e-5)


def test_samples_are_joined_to_prompts_of_any_length():
  prompts, lengths = RNG.integers(2, V, (B, 2)).astype(np.int32), np.array([2, 1, 2, 1])
  sizes = {"num_samples": N, "max_new_tokens": 3, "eos_token_id": EOS, "pad_token_id": 9}

  @jax.jit
  def run(key):
    fns = samplers.table_decode_fns(TABLE)
    rollout = algorithms.sample_rollout(key, fns, prompts, lengths, **sizes)
    return rollout, samplers.generate_n(key, fns, prompts, lengths, **sizes)

  rollout, new = jax.device_get(run(jax.random.key(3)))
  assert rollout.tokens.shape == (B, N, T)
  log_probs = np.float64(TABLE) - np.log(np.exp(np.float64(TABLE)).sum(-1, keepdims=True))
  for i, j in np.ndindex(B, N):
    text = [*prompts[i, : lengths[i]], *new.tokens[i, j, : new.lengths[i, j]]]
    np.testing.assert_array_equal(rollout.tokens[i, j], [*text, *[9] * (T - len(text))])
    places = np.arange(lengths[i], len(text))
    np.testing.assert_array_equal(np.flatnonzero(rollout.mask[i, j]), places)
    for t in range(T):
      expected = log_probs[text[t - 1], text[t]] if t in places else 0.0
      np.testing.assert_allclose(rollout.log_probs[i, j, t], expected, atol=1e-5)


def test_a_bandit_reaches_the_exact_tilt():
  reward, beta = np.array([0.0, 0.3, 1.0, 0.6, -0.5, 0.2], np.float32), 0.5
  rollout = lambda key, params, prompts: algorithms.sample_rollout(  # noqa: E731
    key, samplers.table_decode_fns(params["table"]), prompts, jnp.ones(len(prompts), int),
    num_samples=8, max_new_tokens=1,
  )  # fmt: skip
  score = lambda rollout, _: jnp.asarray(reward)[rollout.tokens[..., -1]]  # noqa: E731
  made = algorithms.post_training(
    rollout, score, log_prob_fn, OBJECTIVES["rloo"],
    optax.sgd(optax.cosine_decay_schedule(2.0, 400)), kl_penalty=beta,
  )  # fmt: skip
  prompts = jnp.zeros((32, 1), jnp.int32)

  def run(key):
    state = made.init({"table": REFERENCE})
    step = lambda state, key: made.update(key, state, prompts)  # noqa: E731
    state, infos = jax.lax.scan(step, state, jax.random.split(key, 400))
    return state.params["table"][0], infos

  # Two seeds as one program.
  logits, infos = jax.device_get(training.over_seeds(jax.random.key(0), run, num_seeds=2))
  tilted = np.exp(REFERENCE[0] + reward / beta)
  tilted /= tilted.sum()
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  assert np.abs(probs - tilted).sum(-1).max() / 2 < 0.03
  reference = np.exp(REFERENCE[0]) / np.exp(REFERENCE[0]).sum()
  kl = (tilted * np.log(tilted / reference)).sum()
  np.testing.assert_allclose(infos.kl[:, -50:].mean(1), kl, atol=0.05)
  np.testing.assert_allclose(infos.reward[:, -50:].mean(1), (tilted * reward).sum(), atol=0.03)
  np.testing.assert_allclose(infos.kl[:, 0], 0, atol=1e-6)


def test_an_iteration_is_one_program_or_two_around_a_verifier():
  made = trainer(OBJECTIVES["grpo"], score=None)
  whole = trainer(OBJECTIVES["grpo"])
  key, prompts = jax.random.key(0), jnp.zeros((B, 2), jnp.int32)
  state = start(made)
  sample, learn, update = map(jax.jit, (made.sample, made.learn, whole.update))
  programs = []
  listen = lambda event, *_, **__: programs.append("backend_compile" in event)  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    rollout = jax.device_get(sample(key, state, prompts))
    rewards = np.sum(rollout.mask & (rollout.tokens == 3), -1).astype(np.float32)
    first, info = learn(state, rollout, rewards, prompts)
    assert sum(programs) <= 2
    second, other = update(key, state, prompts)
    assert sum(programs) <= 3
    learn(first, rollout, rewards, prompts)
    update(key, second, prompts)
    assert sum(programs) <= 3
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  np.testing.assert_allclose(first.params["table"], second.params["table"], atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), info, other)


def test_bad_arguments_are_named():
  made = trainer(OBJECTIVES["rloo"], score=None)
  state = start(made)
  for match, options in (
    ("kl_penalty must lie in", {"kl_penalty": -1.0}),
    ("num_updates must be at least 1, got 0", {"num_updates": 0}),
    ("accumulate must be at least 1, got 0", {"accumulate": 0}),
  ):
    with pytest.raises(ValueError, match=match):
      trainer(OBJECTIVES["rloo"], **options)
  with pytest.raises(ValueError, match="score_fn is None"):
    made.update(jax.random.key(0), state, np.zeros((B, 2), np.int32))
  with pytest.raises(ValueError, match=r"rewards must have shape \[b, n\]"):
    jax.eval_shape(made.learn, state, ROLLOUT, REWARDS[:, :2])
  with pytest.raises(TypeError, match="rollout.tokens must be of type int"):
    jax.eval_shape(made.learn, state, ROLLOUT._replace(tokens=OLD.astype(np.float32)), REWARDS)
  with pytest.raises(ValueError, match="at least two samples"):
    one = jax.tree.map(lambda x: x[:, :1], ROLLOUT)
    jax.eval_shape(made.learn, state, one, REWARDS[:, :1])
  with pytest.raises(ValueError, match="accumulate=3 does not divide the 4 groups"):
    jax.eval_shape(trainer(OBJECTIVES["rloo"], accumulate=3).learn, state, ROLLOUT, REWARDS)
