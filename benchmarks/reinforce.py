"""An iteration of RLOO and GRPO beside TRL: sample, score, learn; one model, float32, AdamW."""

import functools
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row
from jaxlab import algorithms, losses, models, samplers, training

PACKAGES = ("torch", "transformers", "trl")
_OURS, _PEER = "jaxlab", "TRL"
_SAMPLES, _PROMPT_LENGTH, _NEW_TOKENS, _VOCABULARY = 4, 16, 64, 1024
# Prompts of an iteration, and the goal: the fewer tokens, the more of the time is not arithmetic.
_SIZES = {2: 5.0, 8: None}
_LEARNING_RATE, _BETA = 1e-4, 0.05
_CASES = [(objective, num_prompts) for num_prompts in _SIZES for objective in ("rloo", "grpo")]
ROWS = tuple(
  Row(
    f"{name.upper()}, 2 layers, d 64, {num_prompts} prompts x {_SAMPLES} samples of {_NEW_TOKENS}",
    _OURS,
    _PEER,
    goal=_SIZES[num_prompts],
    unit="iteration",
  )
  for name, num_prompts in _CASES
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from benchmarks.peers.reinforcement import TRLIterations  # Imported here: it needs an extra.

  mesh = measure.start(divides=min(_SIZES))
  config = models.decoder_config(
    family="llama", vocab_size=_VOCABULARY, hidden_size=64, num_layers=2, num_heads=4,
    max_positions=256,
  )  # fmt: skip
  params = models.DecoderLM(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  rng = np.random.default_rng(0)
  drawn = rng.integers(2, _VOCABULARY, (max(_SIZES), _PROMPT_LENGTH)).astype(np.int32)
  for (objective, num_prompts), row in zip(_CASES, ROWS):
    prompts = drawn[:num_prompts]
    with tempfile.TemporaryDirectory() as directory:
      models.save_pretrained(f"{directory}/model", params, config)
      peer = TRLIterations(
        objective,
        f"{directory}/model",
        directory,
        prompts=prompts,
        num_samples=_SAMPLES,
        max_new_tokens=_NEW_TOKENS,
        vocab_size=_VOCABULARY,
        learning_rate=_LEARNING_RATE,
        beta=_BETA,
      )
      loaded = models.load_pretrained(f"{directory}/model")
    ours = _Iterations(objective, loaded, prompts, mesh)
    # The same samples teach both sides the same.
    for _ in range(3):
      peer.step()
      ours.learn(peer.samples())
    theirs = models.params_from_hf(peer.tensors(), config)
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours.params, theirs)
    gap = max(jax.tree.leaves(gaps))
    times = measure.interleave({_OURS: ours.step, _PEER: peer.step}, quick=quick, repetitions=9)
    # Adam moves a parameter by up to the learning rate, whatever the size of its gradient.
    same = {"parameters after three iterations on the same samples": gap < _LEARNING_RATE / 10}
    yield measure.result(row, times, checks=same, notes={"largest gap of a parameter": gap})


class _Iterations:
  """Our side: one program an iteration, the prompts spread over the devices."""

  def __init__(self, objective: str, loaded: models.Pretrained, prompts: np.ndarray, mesh):
    def log_prob_fn(params, tokens):
      logits = loaded.model.apply({"params": params}, tokens).logits
      return losses.causal_token_log_probs(logits, tokens)

    def rollout_fn(key, params, prompts):
      fns = samplers.flax_decode_fns(loaded.model, params)
      lengths = jnp.full(len(prompts), _PROMPT_LENGTH)
      sizes = {"num_samples": _SAMPLES, "max_new_tokens": _NEW_TOKENS}
      return algorithms.sample_rollout(key, fns, prompts, lengths, **sizes)

    self._log_prob_fn, self._key = log_prob_fn, jax.random.key(1)
    penalized = objective == "rloo"
    trainer = algorithms.post_training(
      rollout_fn,
      lambda rollout, _: _even_share(rollout.tokens),
      log_prob_fn,
      algorithms.rloo_objective() if penalized else algorithms.grpo_objective(kl_coefficient=_BETA),
      optax.adamw(_LEARNING_RATE, weight_decay=0.0),
      kl_penalty=_BETA if penalized else 0.0,
    )
    self._prompts = training.shard_batch(prompts, mesh)
    self._state = training.replicate(trainer.init(loaded.params), mesh)
    self._mesh = mesh
    self._update = jax.jit(trainer.update, donate_argnums=1)
    self._learn = jax.jit(functools.partial(_learn_from, trainer, log_prob_fn))

  @property
  def params(self):
    """The policy's parameters."""
    return jax.device_get(self._state.params)

  def learn(self, tokens: np.ndarray) -> None:
    """Learns from samples of another sampler, `[b, n, T]`."""
    self._state, _ = self._learn(self._state, training.shard_batch(tokens, self._mesh))

  def step(self) -> float:
    """One iteration; the loss."""
    self._key, key = jax.random.split(self._key)
    self._state, info = self._update(key, self._state, self._prompts)
    return float(info.loss)


def _learn_from(trainer, log_prob_fn, state, tokens):
  rows = tokens.reshape(-1, tokens.shape[-1])
  mask = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) >= _PROMPT_LENGTH, tokens.shape)
  log_probs = log_prob_fn(state.params, rows).reshape(tokens.shape)
  rollout = algorithms.Rollout(tokens, mask, log_probs)
  return trainer.learn(state, rollout, _even_share(tokens))


def _even_share(tokens):
  """The reward: how many tokens of the response are even."""
  return jnp.mean(tokens[..., _PROMPT_LENGTH:] % 2 == 0, axis=-1)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
