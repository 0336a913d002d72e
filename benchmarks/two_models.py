"""Two models of 8:1 size that write by turns, or verify each other, beside the large one alone."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import data, losses, metrics, models, samplers, training

PACKAGES = ()
_SIZES = {"small": (128, 2), "large": (256, 4)}  # Width and blocks.
_DRAFTS, _THRESHOLD = 4, 0.5  # Tokens of a draft; bits.
_SPECULATIVE, _ADAPTIVE = "speculative_decode", "entropy_adaptive_decode"
_LARGE, _SMALL = "generate, the large model", "generate, the small model"
_BATCHES = 1, 8
_GROUP = "chains of 12 terms, batch {}"
ROWS = tuple(
  Row(_GROUP.format(rows), ours, _LARGE, goal=goal, unit="token")
  for rows in _BATCHES
  for ours, goal in ((_SPECULATIVE, 1.0), (_ADAPTIVE, None), (_SMALL, None))
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  chains = data.ModularChainConfig(num_terms=3 if quick else 12)
  fns, num_params = {}, {}
  for name, (width, blocks) in _SIZES.items():
    config = models.decoder_config(
      vocab_size=chains.vocab_size,
      hidden_size=8 if quick else width,
      num_layers=1 if quick else blocks,
      num_heads=4,
      max_positions=chains.prompt_length + chains.response_length + _DRAFTS + 1,
    )
    model = models.DecoderLM(config)
    fns[name] = samplers.flax_decode_fns(model, _train(model, chains, 2 if quick else 400))
    num_params[name] = models.num_parameters(config)
  ratio = num_params["small"] / num_params["large"]
  key, new = jax.random.key(1), chains.response_length
  for rows in _BATCHES:
    prompts = data.modular_chain_batch(key, chains, rows).tokens[:, : chains.prompt_length]
    inputs = prompts, jnp.full(rows, prompts.shape[1])
    options = {"max_new_tokens": new, "temperature": 0.0}
    programs = {
      _SPECULATIVE: functools.partial(samplers.speculative_decode, num_draft_tokens=_DRAFTS),
      _ADAPTIVE: functools.partial(samplers.entropy_adaptive_decode, threshold=_THRESHOLD),
      _LARGE: samplers.generate,
      _SMALL: samplers.generate,
    }
    of = {
      _SPECULATIVE: ("large", "small"),
      _ADAPTIVE: ("small", "large"),
      _LARGE: ("large",),
      _SMALL: ("small",),
    }
    calls = {
      name: functools.partial(
        jax.jit(functools.partial(program, **options)), key, *(fns[x] for x in of[name]), *inputs
      )
      for name, program in programs.items()
    }
    out = {name: call() for name, call in calls.items()}
    times = measure.interleave(
      {name: Timed(call, new) for name, call in calls.items()}, quick=quick, repetitions=9
    )
    alike = np.mean(np.asarray(out[_SPECULATIVE].tokens) == np.asarray(out[_LARGE].tokens))
    counted = _flops(out, num_params, prompts.shape[1], new, ratio)
    for row in (row for row in ROWS if row.group == _GROUP.format(rows)):
      # Both take the likeliest tokens; sums in another order may leave near ties.
      checks = {"the large model's text, up to near ties": alike > 0.9} if row.goal else {}
      notes = {"parameters, large to small": 1 / ratio}
      notes |= counted[row.ours]
      yield measure.result(row, times, checks=checks, notes=notes)


def _train(model: models.DecoderLM, chains: data.ModularChainConfig, num_steps: int):
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch.tokens).logits
    return training.LossOutput(-losses.causal_token_log_probs(logits, batch.tokens))

  update = training.build_update(loss_fn, optimizer)

  @jax.jit
  def train(key):
    init_key, key = jax.random.split(key)
    start = data.modular_chain_batch(init_key, chains, 1).tokens
    state = training.init_state(key, model.init(init_key, start)["params"], optimizer)

    def step(state, key):
      return update(state, data.modular_chain_batch(key, chains, 32))[0], None

    return jax.lax.scan(step, state, jax.random.split(key, num_steps))[0].params

  return train(jax.random.key(0))


def _flops(out, num_params, prompt: int, new: int, ratio: float):
  """FLOPs of each way, as papers count them and as they are spent here."""
  tokens = {"prompt_tokens": prompt, "generated_tokens": new, "num_samples": 1}
  whole = functools.partial(metrics.inference_flops, **tokens)
  large, small = (float(whole(num_params=num_params[name])) for name in ("large", "small"))
  turns = out[_ADAPTIVE]
  share = float(np.mean(np.asarray(turns.use_large)))
  calls = float(np.mean(np.asarray(out[_SPECULATIVE].num_target_calls)))
  drafted = calls * (_DRAFTS + 1)
  relative = "FLOPs relative to the large model"
  return {
    _ADAPTIVE: {
      f"{relative}, one model per token": share + (1 - share) * ratio,
      f"{relative}, both read every token": (large + small) / large,
    },
    _SPECULATIVE: {
      "calls of the large model per token": calls / new,
      f"{relative}, all tokens that are read": drafted / new * (1 + ratio),
    },
    _SMALL: {relative: small / large},
  }


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
