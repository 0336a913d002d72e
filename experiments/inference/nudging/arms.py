"""A base model and a small one, both fine-tuned on the same texts; and who writes which token."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from experiments.inference.nudging import problems as texts
from experiments.inference.nudging.problems import Problems
from experiments.kit.language_models import decoder, fit_decoder, respond, search_decoder
from experiments.kit.several_models import decode_by_rule, greedy
from experiments.kit.train import Trained
from jaxlab import data, metrics, models, samplers
from jaxlab.data.reasoning import EOS_TOKEN

BASE, SAMPLED = "base", "base, sampled"
SMALL, LARGE = "small aligned", "large aligned"
NUDGED, UNALIGNED = "nudged", "nudged by the small base"
FIRST, RANDOM, ORACLE = "first token alone", "random nudging", "nudged where style is decided"
DICTATED = "base, style dictated"
ENSEMBLE, PROXY = "ensemble", "proxy tuning"
_NONE = -1  # Where no token is dictated.
_TRIALS = 4  # Decodings that find the rate of random nudging; the last one counts.


def chains_of(config) -> data.ModularChainConfig:
  """The problems of a configuration, whose texts have no errors."""
  return data.ModularChainConfig(
    config.modulus, config.num_terms, misconception_rate=0.0, noise=0.0
  )


def network(config, size: tuple[int, ...]) -> models.DecoderLM:
  """A decoder of a width and a number of blocks; positions are learned."""
  chains = chains_of(config)
  length = chains.prompt_length + config.max_new_tokens
  sizes = {"hidden_size": size[0], "num_layers": size[1], "num_heads": config.num_heads}
  return decoder(texts.vocab_size(chains), length, family="gpt2", **sizes)


def draw(config, key: chex.PRNGKey, num: int) -> Problems:
  """Problems with aligned texts."""
  return texts.draw_problems(key, chains_of(config), num, max_new_tokens=config.max_new_tokens)


def prompts_of(config, problems: Problems) -> jax.Array:
  """Prompts `[n, P]`."""
  return problems.tokens[:, : chains_of(config).prompt_length]


def share_right(config, problems: Problems, response: chex.Array) -> jax.Array:
  """The share of responses `[n, t]` whose chains end with the right answer."""
  right = texts.answers_of(chains_of(config), response) == problems.answers
  return jnp.mean(right.astype(jnp.float32))


def train(config, key: chex.PRNGKey, *, size: tuple[int, ...]) -> dict[str, Any]:
  """Trains a base model, and fine-tunes it on aligned texts.

  Args:
    config: of the experiment.
    key: of everything; aligned texts do not depend on the size.
    size: width and blocks.

  Returns:
    Parameters of the `base` and the `aligned` model; of this `validation` and `learning rate`.
  """
  base_key, tune_key, text_key, validation_key = jax.random.split(key, 4)
  model, chains = network(config, size), chains_of(config)
  width = {"max_new_tokens": config.max_new_tokens}
  rows = functools.partial(texts.draw_base_texts, **width)
  fresh = lambda key, num: rows(key, chains, config, num)  # noqa: E731
  sizes = {"num_steps": config.base_steps, "batch_size": config.texts_per_update}
  base = fit_decoder(base_key, model, fresh, learning_rate=config.learning_rate, **sizes)
  validation = draw(config, validation_key, config.num_validation)

  def validate(params):
    prompts = prompts_of(config, validation)
    options = {"num_samples": 1, "temperature": 0.0, **width}
    drawn = respond(key, model, params, prompts, **options).tokens[:, 0]
    return share_right(config, validation, drawn[:, prompts.shape[1] :])

  aligned, chosen = search_decoder(
    tune_key,
    model,
    draw(config, text_key, config.num_aligned),
    learning_rates=config.tuning_rates,
    num_steps=config.tuning_steps,
    num_evaluations=1,
    validate=validate,
    batch_size=config.batch_size,
    start=Trained(base.params, {}),
  )
  found = {"base": base.params, "aligned": aligned, "bad_step": base.bad_step[None]}
  return found | {name: chosen[name] for name in ("validation", "learning rate")}


def measure(config, key: chex.PRNGKey, trained) -> dict[str, Any]:
  """Decodes test problems in all ways.

  Args:
    config: of the experiment.
    key: of the problems and of what is random.
    trained: what `train` gave, of the `small` and of the `large` model.

  Returns:
    The scores of each method; those of nudging and of its random counterpart, `[thresholds]`; what
    the base says of places; and the first response.
  """
  problem_key, plan_key, sample_key = jax.random.split(key, 3)
  problems = draw(config, problem_key, config.num_test)
  prompts = prompts_of(config, problems)
  large_model, small_model = (network(config, size) for size in (config.large, config.small))
  large = functools.partial(samplers.flax_decode_fns, large_model)
  small = functools.partial(samplers.flax_decode_fns, small_model)
  sizes = {"max_new_tokens": config.max_new_tokens, "eos_token_id": EOS_TOKEN}
  shape = len(prompts), config.max_new_tokens
  right = functools.partial(share_right, config, problems)
  base, aligned = trained["large"]["base"], trained["small"]["aligned"]

  def score(out, nudged):
    share = jnp.sum(nudged) / jnp.sum(out.lengths)
    return {"accuracy": right(out.tokens), "nudged": share, "tokens": jnp.mean(out.lengths)}

  def nudge(inputs):
    params, threshold = inputs
    lengths = jnp.full(len(prompts), prompts.shape[1])
    both = prompts, lengths, prompts, lengths
    options = {"top_prob_threshold": threshold, **sizes}
    out = samplers.nudged_decode(large(base), small(params), *both, **options)
    return score(out, out.nudged), (out.tokens[0], out.nudged[0])

  # The last one is nudged by a model that is not aligned.
  thresholds = jnp.array([*config.thresholds, config.threshold])
  pair = jax.tree.map(lambda x, y: jnp.stack([x, y]), aligned, trained["small"]["base"])
  which = (jnp.arange(len(thresholds)) == len(config.thresholds)).astype(int)
  nudgers = jax.tree.map(lambda x: x[which], pair)
  curve, first = jax.lax.map(nudge, (nudgers, thresholds))
  place = config.thresholds.index(config.threshold)
  at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
  scores = {NUDGED: at(curve, place), UNALIGNED: at(curve, -1)}

  decided = jnp.zeros(config.max_new_tokens, bool).at[jnp.array(config.places)].set(True)
  response = problems.tokens[:, prompts.shape[1] :]
  nowhere, nothing = jnp.zeros(shape, bool), jnp.full(shape, _NONE)
  start = nowhere.at[:, 0].set(True)
  style, dictated = nowhere | decided, jnp.where(decided, response, _NONE)
  # Whose parameters write by default, where the small aligned model writes, whether only this one
  # ends a text, and which tokens are dictated.
  arms = {
    BASE: (0, nowhere, False, nothing),
    SMALL: (0, ~nowhere, False, nothing),
    LARGE: (1, nowhere, False, nothing),
    FIRST: (0, start, False, nothing),
    ORACLE: (0, style, False, nothing),
    DICTATED: (0, nowhere, False, dictated),
  }
  writers = jax.tree.map(lambda x, y: jnp.stack([x, y]), base, trained["large"]["aligned"])

  def by_arm(arm):
    writer, plan, only_small_ends, dictated = arm

    def choose(step, ours, theirs):
      ours, theirs = greedy(ours), greedy(theirs)
      nudged = plan[:, step] | (only_small_ends & (ours == EOS_TOKEN))
      tokens = jnp.where(nudged, theirs, ours)
      given = dictated[:, step]
      return jnp.where(given == _NONE, tokens, given), nudged

    fns = {"large": large(at(writers, writer)), "small": small(aligned)}
    out = decode_by_rule(fns, prompts, choose, **sizes)
    return score(out, out.notes)

  found = jax.lax.map(by_arm, jax.tree.map(lambda *x: jnp.stack(x), *arms.values()))
  scores |= {name: at(found, i) for i, name in enumerate(arms)}

  def at_random(inputs):
    key, share = inputs
    chances = jax.random.uniform(key, shape)

    def trial(rate, _):
      found = by_arm((0, chances < rate, True, nothing))
      # The small model also writes where the base would end, so that a lower rate is needed.
      return jnp.clip(rate + share - found["nudged"], 0.0, 1.0), found

    return at(jax.lax.scan(trial, share, length=_TRIALS)[1], -1)

  keys = jax.random.split(plan_key, len(config.thresholds))
  of_nudging = jax.tree.map(lambda x: x[: len(config.thresholds)], curve)
  by_chance = jax.lax.map(at_random, (keys, of_nudging["nudged"]))
  scores[RANDOM] = at(by_chance, place)

  def mix(is_proxy):
    def choose(step, ours, theirs, before):
      tuned = samplers.proxy_tuning_log_probs(ours, theirs, before)
      return greedy(jnp.where(is_proxy, tuned, samplers.ensemble_log_probs(ours, theirs))), ()

    fns = {"base": large(base), "aligned": small(aligned)}
    fns["before"] = small(trained["small"]["base"])
    out = decode_by_rule(fns, prompts, choose, **sizes)
    return {"accuracy": right(out.tokens), "tokens": jnp.mean(out.lengths)}

  mixed = jax.lax.map(mix, jnp.array([False, True]))
  scores |= {name: at(mixed, i) for i, name in enumerate((ENSEMBLE, PROXY))}
  drawn = respond(
    sample_key, large_model, base, prompts, num_samples=1, max_new_tokens=config.max_new_tokens
  )
  scores[SAMPLED] = {"accuracy": right(drawn.tokens[:, 0, prompts.shape[1] :])}
  scores[BASE] |= certainty(config, large_model, base, problems)
  for size in ("small", "large"):
    chosen = {f"chosen/{q}": trained[size][q] for q in ("validation", "learning rate")}
    scores[f"{size} aligned"] |= chosen
  curves = {NUDGED: of_nudging, RANDOM: by_chance}
  example = dict(zip(("tokens", "nudged"), at(first, place)))
  return {"scores": scores, "curves": curves, "example": example}


def certainty(config, model: models.DecoderLM, params, problems: Problems) -> dict[str, jax.Array]:
  """How sure the base is where style is decided, against the other places of aligned texts.

  Args:
    config: of the experiment.
    model: the base model.
    params: its parameters.
    problems: with aligned texts.

  Returns:
    The area under the ROC curve of its uncertainty for places where style is decided; its mean
    probability of the likeliest token there, if style is undecided, and elsewhere.
  """
  chains = chains_of(config)
  logits = model.apply({"params": params}, problems.tokens).logits
  top = jnp.max(jax.nn.softmax(logits), axis=-1)[:, chains.prompt_length - 1 : -1]
  top = top[:, : chains.response_length]
  decided = jnp.any(jnp.arange(top.shape[1])[:, None] == jnp.array(config.places), axis=1)
  decided = jnp.broadcast_to(decided, top.shape)
  undecided = decided & ~texts.begins_with_plus(problems.tokens)[:, None]
  mean = lambda where: jnp.sum(jnp.where(where, top, 0.0)) / jnp.sum(where)  # noqa: E731
  return {
    "AUROC of places": metrics.auroc(1 - top.ravel(), decided.ravel()),
    "certainty where undecided": mean(undecided),
    "certainty elsewhere": mean(~decided),
  }
