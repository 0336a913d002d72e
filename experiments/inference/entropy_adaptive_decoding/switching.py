"""Two models of the same texts, and what is right when they write by turns."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.inference.entropy_adaptive_decoding import regimes as texts
from experiments.inference.entropy_adaptive_decoding.regimes import Regimes
from experiments.kit import chains as kit
from experiments.kit.language_models import decoder, fit_decoder
from experiments.kit.several_models import decode_by_plan
from experiments.kit.zoo import FAMILY, BaseModel
from jaxlab import data, models, samplers
from jaxlab.data.reasoning import EOS_TOKEN

SWITCHING, NARROW, RANDOM = "entropy switching", "entropy switching, window 1", "random switching"
SMALL, LARGE, ORACLE, ALTERNATION = "small model", "large model", "oracle", "alternation"
SPECULATIVE = "speculative decoding"
_SIZES = ("small", "large")
_PLANNED = (SMALL, LARGE, ALTERNATION)
_HANDS_OVER_IN = 3  # Values of a hard block that come before the large model can have taken over.


class Task(NamedTuple):
  """What is decoded, and how it is evaluated.

  Attributes:
    prompts: int32 `[n, P]`; the first `num_validation` choose the threshold.
    num_new: tokens of a response.
    score: `(prompts, tokens, use_large, entropies) -> {quantity: number}`.
    oracle: where the large model is needed, bool `[n, t]`, or None.
    eos: the token that ends a response, or None.
  """

  prompts: chex.Array
  num_new: int
  score: Callable[..., dict[str, jax.Array]]
  oracle: chex.Array | None = None
  eos: int | None = None


def networks(config) -> dict[str, models.DecoderLM]:
  """The small and the large model of regimes; positions are learned."""
  length = config.prompt_length + config.response_length
  shapes = zip(_SIZES, (config.small, config.large))
  heads = {"num_heads": config.num_heads, "family": "gpt2"}
  return {
    name: decoder(config.vocab_size, length, hidden_size=width, num_layers=blocks, **heads)
    for name, (width, blocks) in shapes
  }


def chain_models(config) -> dict[str, BaseModel]:
  """The small and the large model of verbose chains, of seed 0; other experiments share them."""
  chains = data.ModularChainConfig(config.chain_modulus, config.chain_terms)
  shapes = zip(_SIZES, (config.chain_small, config.chain_large))
  return {name: BaseModel(chains, *shape, family=FAMILY) for name, shape in shapes}


def train(config, key: chex.PRNGKey) -> dict[str, Any]:
  """Trains both models on regimes whose table is the seed's."""
  table_key, *keys = jax.random.split(key, 3)
  table = texts.draw_table(table_key, config)
  draw = lambda key, num: texts.draw_texts(key, config, table, num)  # noqa: E731
  options = {"batch_size": config.texts_per_update, "learning_rate": config.learning_rate}
  fits = {
    name: fit_decoder(key, model, draw, num_steps=num, **options)
    for key, num, (name, model) in zip(keys, config.num_steps, networks(config).items())
  }
  params = {name: fit.params for name, fit in fits.items()}
  bad_steps = jnp.stack([fit.bad_step for fit in fits.values()])
  return {"table": table, "params": params, "bad_step": bad_steps}


def measure_regimes(config, key: chex.PRNGKey, trained) -> dict[str, Any]:
  """Decodes regimes in all ways."""
  table, pair = trained["table"], networks(config)
  text_key, key = jax.random.split(key)
  num = config.num_validation + config.num_test
  prompts = texts.draw_texts(text_key, config, table, num).tokens[:, : config.prompt_length]
  score = functools.partial(score_regimes, config, table)
  task = Task(prompts, config.response_length, score, texts.hard_places(config, prompts))
  controls = config.window, config.min_dwell
  return measure(config, key, task, pair, trained["params"], *controls)


def measure_chains(config, key: chex.PRNGKey, params) -> dict[str, Any]:
  """Decodes chains by entropy, at random, and by one model."""
  bases = chain_models(config)
  chains, pair = bases["large"].task, {name: base.model for name, base in bases.items()}
  text_key, key = jax.random.split(key)
  num = config.num_validation + config.num_test
  problems = data.modular_chain_batch(text_key, chains, num, clean=True)
  prompts = problems.tokens[:, : chains.prompt_length]
  score = functools.partial(score_chains, chains, problems.answers[config.num_validation :])
  task = Task(prompts, chains.response_length, score, eos=EOS_TOKEN)
  controls = config.chain_window, config.chain_window
  return measure(config, key, task, pair, params, *controls)


def score_regimes(own: Regimes, table, prompts, tokens, use_large, entropies) -> dict[str, Any]:
  """Shares of what is valid, and how sure the model that wrote it was of it."""
  checked = texts.check_response(own, table, prompts, tokens)
  blocks = lambda x: x.reshape(*checked.hard.shape, -1)[..., 1:]  # noqa: E731
  hard = jnp.broadcast_to(checked.hard[..., None], checked.values.shape)
  early = jnp.arange(own.block_length) < _HANDS_OVER_IN - 1
  late = jnp.arange(own.block_length) >= _HANDS_OVER_IN

  def mean(values, where):
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)

  return {
    "valid": mean(checked.values, hard),
    "easy valid": mean(checked.values, ~hard),
    "markers": jnp.mean(checked.markers),
    "whole blocks": mean(checked.values.all(-1), checked.hard),
    "late": mean(checked.values, hard & late),
    "early": mean(checked.values, hard & early),
    "share on hard": mean(blocks(use_large), hard),
    "entropy on hard": mean(blocks(entropies), hard),
    "entropy on easy": mean(blocks(entropies), ~hard),
  }


def score_chains(chains, answers, prompts, tokens, use_large, entropies) -> dict[str, Any]:
  """The share of right answers."""
  del use_large, entropies
  parsed = kit.parse(chains, jnp.concatenate([prompts, tokens], axis=1))
  return {"valid": jnp.mean(parsed.answer == answers)}


def measure(config, key, task: Task, pair, params, window: int, min_dwell: int) -> dict[str, Any]:
  """Decodes with two models in turn by every rule, and scores the test responses.

  Args:
    config: of the experiment.
    key: of what is random.
    task: prompts, and how responses are checked.
    pair: the models by name.
    params: their parameters.
    window: of entropy switching.
    min_dwell: fewest tokens of a model, for all rules that switch.

  Returns:
    `curves` of the methods with a threshold, quantity -> `[thresholds]`; `chosen`, their scores at
    the threshold that validation chooses, and scores of the others; and the first response. Without
    an oracle there are only switching, its random counterpart and the models.
  """
  small, large = (samplers.flax_decode_fns(pair[name], params[name]) for name in _SIZES)
  ratio = [float(models.num_parameters(pair[name].config)) for name in _SIZES]
  lengths = jnp.full(len(task.prompts), task.prompts.shape[1])
  start, width = config.num_validation, task.num_new
  fixed = {"max_new_tokens": width, "temperature": 0.0, "eos_token_id": task.eos}
  both = small, large, task.prompts, lengths

  def score(tokens, counts, use_large, entropies):
    written = jnp.arange(width) < counts[:, None]
    costs = samplers.switching_cost(
      use_large, mask=written, small_params=ratio[0], large_params=ratio[1]
    )
    share = lambda rows: jnp.sum(use_large[rows]) / jnp.sum(written[rows])  # noqa: E731
    test = [x[start:] for x in (task.prompts, tokens, use_large, entropies)]
    shares = {"share": share(slice(start, None)), "validation share": share(slice(start))}
    return {"cost": jnp.mean(costs[start:]), **shares, **task.score(*test)}

  def scored(out):
    return score(out.tokens, out.lengths, out.use_large, out.entropies)

  def by_entropy(window, threshold):
    sizes = {"window": window, "min_dwell": min_dwell, "threshold": threshold}
    out = samplers.entropy_adaptive_decode(key, *both, **sizes, **fixed)
    return scored(out), {"entropies": out.entropies[start], "use_large": out.use_large[start]}

  thresholds, known = jnp.array(config.thresholds), task.oracle is not None
  windows = {SWITCHING: window, NARROW: 1} if known else {SWITCHING: window}
  found = {
    name: jax.lax.map(functools.partial(by_entropy, w), thresholds) for name, w in windows.items()
  }
  curves = {name: scores for name, (scores, _) in found.items()}

  def at_random(inputs):
    key, share = inputs
    options = {"large_fraction": share, "min_dwell": min_dwell}
    return scored(samplers.random_switching_decode(key, *both, **options, **fixed))

  keys = jax.random.split(key, len(thresholds))
  curves[RANDOM] = jax.lax.map(at_random, (keys, curves[SWITCHING]["share"]))
  best = {name: cheap_enough(config, curves[name]) for name in windows}
  best[RANDOM] = best[SWITCHING]
  chosen = {name: jax.tree.map(lambda x, i=i: x[i], curves[name]) for name, i in best.items()}
  for name, i in best.items():
    chosen[name]["threshold"] = thresholds[i]

  turns = (jnp.arange(width) // min_dwell) % 2 == 1
  plans = [jnp.zeros(width, bool), jnp.ones(width, bool), turns]
  plans = [jnp.broadcast_to(plan, (len(task.prompts), width)) for plan in plans]
  names, plans = (*_PLANNED, ORACLE)[: 3 + known], plans + ([task.oracle] if known else [])

  def by_plan(plan):
    out = decode_by_plan(small, large, task.prompts, plan, eos_token_id=task.eos)
    written = jnp.arange(width) < out.lengths[:, None]
    return score(out.tokens, out.lengths, plan & written, out.notes)

  planned = jax.lax.map(by_plan, jnp.stack(plans))
  chosen |= {name: jax.tree.map(lambda x, i=i: x[i], planned) for i, name in enumerate(names)}
  example = jax.tree.map(lambda x: x[best[SWITCHING]], found[SWITCHING][1])
  if known:
    chosen[SPECULATIVE] = speculate(config, key, task, both, ratio[0] / ratio[1], fixed)
    example["hard"] = task.oracle[start]
  return {"curves": curves, "chosen": chosen, "example": example}


def cheap_enough(config, curve) -> jax.Array:
  """The number of the smallest threshold with few enough tokens by the large model; or the last."""
  few = curve["validation share"] <= config.most_share
  return jnp.where(jnp.any(few), jnp.argmax(few), len(few) - 1)


def speculate(config, key, task: Task, both, ratio: float, fixed) -> dict[str, jax.Array]:
  """Scores of speculative decoding; its cost relative to the large model alone."""
  small, large, prompts, lengths = both
  drafts = config.num_drafts
  out = samplers.speculative_decode(
    key, large, small, prompts, lengths, num_draft_tokens=drafts, **fixed
  )
  test = slice(config.num_validation, None)
  calls, tokens = (jnp.sum(x[test]) for x in (out.num_target_calls, out.lengths))
  everywhere = jnp.ones(out.tokens[test].shape, bool)
  scores = task.score(prompts[test], out.tokens[test], everywhere, out.log_probs[test])
  drafting = drafts * ratio
  return {
    "valid": scores["valid"],
    "cost": calls / tokens * (1 + drafting),
    "cost in FLOPs": calls / tokens * (1 + drafts + drafting),
  }
