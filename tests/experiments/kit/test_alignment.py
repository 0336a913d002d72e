"""Pairs, reward models and post-training of a small decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit import alignment as kit
from experiments.kit import language_models
from jaxlab import algorithms, losses

V, P, R, GOOD, EOS = 8, 2, 4, 5, 2
MODEL = language_models.decoder(V, P + R, hidden_size=16, num_layers=1, num_heads=2)
RNG = np.random.default_rng(0)


def pairs(num):
  """Texts of any tokens; the chosen responses have the good token, the rejected ones have none."""
  tokens = RNG.integers(3, V, (2, num, P + R)).astype(np.int32)
  tokens[:, :, P:][tokens[:, :, P:] == GOOD] = GOOD - 1
  tokens[0, :, P + 1] = GOOD
  mask = np.broadcast_to(np.arange(P + R) >= P, tokens.shape)
  mask = mask & (np.arange(P + R) < P + RNG.integers(2, R + 1, (2, num, 1)))
  return kit.Pairs(*tokens, *mask)


PAIRS = pairs(32)


def init(module, *args):
  return jax.jit(module.init)(jax.random.key(0), *args)["params"]


def test_log_probs_of_pairs_and_their_loss():
  params = init(MODEL, PAIRS.chosen_tokens)

  @jax.jit
  def run(params):
    reference = kit.pair_log_probs(MODEL, params, PAIRS) - jnp.array([[1.0, 0.5]])
    output = kit.pair_loss(MODEL, losses.dpo_loss)(params, {}, (PAIRS, reference), None)
    log_probs = [
      language_models.response_log_probs(MODEL, params, *rows) for rows in zip(PAIRS[:2], PAIRS[2:])
    ]
    return output.values, reference, log_probs

  values, reference, (chosen, rejected) = jax.device_get(run(params))
  np.testing.assert_allclose(reference, np.stack([chosen - 1, rejected - 0.5], 1), atol=1e-5)
  np.testing.assert_allclose(values, np.log1p(np.exp(-0.1 * 0.5)), atol=1e-5)


def test_a_reward_model_reads_the_last_token_and_learns_to_rank():
  model = kit.RewardModel(MODEL)

  @jax.jit
  def run(key):
    fit = language_models.fit_decoder(
      key, model, PAIRS, num_steps=100, batch_size=16, loss_fn=kit.reward_loss(model)
    )
    rows = jnp.stack(PAIRS[:2]), jnp.stack(PAIRS[2:])
    beyond = jnp.cumsum(rows[1], axis=-1) + jnp.cumsum(~rows[1], axis=-1) - 1
    end = P + rows[1].sum(-1, keepdims=True)
    padded = jnp.where(beyond >= end, 0, rows[0])
    return [kit.rewards(model, fit.params, tokens, rows[1]) for tokens in (rows[0], padded)]

  rewards, padded = jax.device_get(run(jax.random.key(0)))
  assert rewards.shape == (2, 32) and (rewards[0] > rewards[1]).mean() > 0.9
  np.testing.assert_allclose(rewards, padded, atol=1e-5)


@pytest.mark.parametrize("eval_every", [None, 20])
def test_post_training_raises_the_reward(eval_every):
  score = lambda rollout, prompts: jnp.mean(rollout.tokens[..., P:] == GOOD, -1)  # noqa: E731
  trainer = kit.post_trainer(
    MODEL, score, algorithms.rloo_objective(), optax.adam(1e-2),
    num_samples=4, max_new_tokens=R, eos_token_id=EOS, kl_penalty=0.01,
  )  # fmt: skip
  prompt_fn = lambda key: {"tokens": jax.random.randint(key, (8, P), 3, V)}  # noqa: E731
  evaluate = lambda key, params: params["embed"]["embedding"].sum()  # noqa: E731

  @jax.jit
  def run(key, params):
    return kit.post_train(
      key, trainer, params, prompt_fn, num_steps=40, evaluate=evaluate, eval_every=eval_every
    )

  out = jax.device_get(run(jax.random.key(1), init(MODEL, PAIRS.chosen_tokens)))
  assert out.infos.reward.shape == (40,)
  assert out.infos.reward[-5:].mean() > out.infos.reward[:5].mean() + 0.3
  assert abs(out.infos.kl[0]) < 1e-4 and out.infos.kl[-1] > 0.5
  assert out.scores.shape == (1 if eval_every is None else 2,)
  np.testing.assert_allclose(out.scores[-1], out.params["embed"]["embedding"].sum(), rtol=1e-4)


def test_evaluations_divide_the_iterations():
  with pytest.raises(ValueError, match="eval_every=3 does not divide num_steps=4"):
    kit.post_train(jax.random.key(0), None, None, None, num_steps=4, eval_every=3)
