"""RPC: votes of reasoning paths, weighted by their probabilities, without the improbable ones.

Few paths say little about how often a model gives an answer, and the probability of a path is known
as soon as it is sampled: weights reduce the error of estimation. Chains of nine terms with words of
style, so that texts hardly repeat and their likelihood is noisy; one pool of paths for all methods.
"""

import dataclasses
import functools
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.inference.rpc.styles import StyledChains
from experiments.inference.rpc.votes import (
  ACCURACY,
  ALL,
  CONSISTENCY,
  ERROR,
  PERPLEXITY,
  RPC,
  SHUFFLED,
  VOTES,
  named,
  vote,
)
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import (
  decoder,
  fit_until,
  respond,
  text_loss,
  token_log_probs,
)
from experiments.kit.sweep import each_seed
from experiments.kit.train import adamw_cosine
from experiments.kit.zoo import FAMILY
from jaxlab import losses, models
from jaxlab._checks import check_at_least
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rpc"

ONE = "one path"


@dataclasses.dataclass(frozen=True)
class Config:
  """The chains, the decoder, and the paths."""

  modulus: int = 11  # Of the chains.
  num_terms: int = 9  # Numbers in a problem.
  misconception_rate: float = 0.06  # Share of misconceptions in the table.
  misconception_prob: float = 0.4  # How often texts show one.
  noise: float = 0.05  # Share of steps that show an arbitrary value.
  style_probs: tuple[float, ...] = (0.6, 0.25, 0.1, 0.05)  # Of the words of style.
  decoder: tuple[int, ...] = (32, 1, 2)  # Width, blocks and attention heads.
  num_steps: int = 2000  # Updates, at most.
  num_evaluations: int = 40  # Within a training; divides num_steps.
  enough: float = 0.4  # Share of validation problems that one path proves, at which it ends.
  num_validation: int = 200  # Problems of these evaluations.
  texts_per_step: int = 128  # Fresh texts of an update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  num_problems: int = 300  # To test on.
  paths: tuple[int, ...] = (4, 8, 16, 32, 64)  # Numbers of paths; the last is the whole pool.
  few: int = 8  # Of the headline, one of these, as is twice as many.
  num_orders: int = 10  # Of the pool, whose first paths are taken.
  fit_steps: int = 200  # The most of a fit of the mixture.

  @property
  def chains(self) -> StyledChains:
    """The chains."""
    names = [field.name for field in dataclasses.fields(StyledChains)]
    return StyledChains(**{name: getattr(self, name) for name in names if hasattr(self, name)})


PRESETS = {
  "smoke": Config(
    modulus=3, num_terms=2, style_probs=(0.6, 0.4), decoder=(8, 1, 2), num_steps=2,
    num_evaluations=2, num_validation=4, texts_per_step=4, num_problems=4, paths=(4, 8), few=4,
    num_orders=2, fit_steps=2,
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=97, num_terms=13, decoder=(1024, 24, 16), num_steps=20_000, texts_per_step=512,
    learning_rate=3e-4, num_problems=5000, paths=(4, 8, 16, 32, 64, 128),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "misconception_rate", "misconception_prob", "noise", "style_probs", "enough"
  sizes.check_sizes(config, shares=shares)
  check_at_least(2, modulus=config.modulus, num_terms=config.num_terms)
  sizes.check_lengths(decoder=config.decoder, **{"(width, blocks, heads)": range(3)})
  sizes.check_divides(config.decoder[2], decoder=config.decoder[0])
  sizes.check_divides(config.num_evaluations, num_steps=config.num_steps)
  for name, num in (("few", config.few), ("few", 2 * config.few)):
    sizes.check_known([*map(str, config.paths)], **{name: [str(num)]})
  if sorted(set(config.paths)) != list(config.paths):
    raise ValueError(f"paths must increase, got {config.paths}.")
  _ = config.chains  # Checks the probabilities of styles.


def network(config: Config) -> models.DecoderLM:
  """The decoder; its positions are learned."""
  chains, (width, blocks, heads) = config.chains, config.decoder
  length = chains.prompt_length + chains.response_length
  sizes = {"hidden_size": width, "num_layers": blocks, "num_heads": heads}
  return decoder(chains.vocab_size, length, family=FAMILY, **sizes)


def run(config: Config, context: Context) -> Results:
  """Trains the decoder, samples the pool, and votes."""
  results, most, seeds = Results(), config.paths[-1], np.array(context.seed_numbers)
  trained = each_seed(context, "decoder", functools.partial(train, config), seeds)
  results.add({ONE: {name: trained[name] for name in ("validation", "update")}})
  pool = each_seed(context, "pool", functools.partial(sample, config), trained["params"])
  right = pool["answers"] == pool["targets"][..., None]
  results.add(
    {ONE: {ACCURACY: right.mean((1, 2)), "malformed": (pool["answers"] < 0).mean((1, 2))}}
  )
  first = pool["ids"][..., : most // 2] == np.arange(most // 2)
  results.add({ONE: {"distinct texts": first.mean((1, 2))}}, paths=most // 2)
  for n in config.paths:
    scores = each_seed(context, f"votes/{n}", functools.partial(vote, config, n), pool)
    reliability = scores.pop("reliability")
    for (method, counted), values in named(scores).items():
      results.add({method: values}, paths=n, counted=counted)
    if n == config.few:
      # Over all seeds: share of items, their confidence and accuracy, by bins.
      results.extras["reliability"] = reliability.sum(0)
  return results


def train(config: Config, key: chex.PRNGKey, seed: chex.Array) -> dict[str, Any]:
  """Trains on texts of the seed's table until one path proves enough problems."""
  chains, model = dataclasses.replace(config.chains, table_seed=seed), network(config)
  fit_key, problem_key = jax.random.split(key)
  rows = chains.draw(problem_key, config.num_validation, clean=True)
  # Any word of style is as good as another.
  counted = rows.loss_mask * (rows.tokens < chains.plain.vocab_size)

  def validate(params):
    log_probs = token_log_probs(model, params, rows.tokens) * counted
    return jnp.mean(jnp.exp(jnp.sum(log_probs, axis=-1)))

  names = "enough", "num_steps", "num_evaluations", "learning_rate"
  options = {name: getattr(config, name) for name in names} | {"validate": validate}
  params, found = fit_until(
    fit_key, model, chains.draw, batch_size=config.texts_per_step, **options
  )
  return found | {"params": params}


def sample(config: Config, key: chex.PRNGKey, params) -> dict[str, jax.Array]:
  """Draws the pool: `answers`, scores `mean` and `sum`, text `ids`, `[P, n]`; `targets` `[P]`."""
  chains = config.chains
  problem_key, path_key = jax.random.split(key)
  rows = chains.draw(problem_key, config.num_problems, clean=True)
  numbers = {"num_samples": config.paths[-1], "max_new_tokens": chains.response_length}
  prompts = rows.tokens[:, : chains.prompt_length]
  drawn = respond(path_key, network(config), params, prompts, **numbers)
  score = functools.partial(losses.sequence_log_prob, drawn.log_probs, drawn.mask)
  # The first path of the same text.
  same = lambda texts: jnp.argmax(jnp.all(texts[:, None] == texts[None], -1), axis=1)  # noqa: E731
  return {
    "answers": chains.parse(drawn.tokens).answer,
    "mean": score(normalize_length=True),
    "sum": score(normalize_length=False),
    "ids": jax.lax.map(same, drawn.tokens).astype(jnp.int32),
    "targets": rows.answers,
  }


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, most = config.few, config.paths[-1]

  def of(method: str, paths: int, quantity: str = ACCURACY):
    return results.select(quantity, method=method, paths=paths, counted=ALL)

  single = results.select(ACCURACY, method=ONE)
  distinct = results.select("distinct texts", method=ONE, paths=most // 2)
  bounds = (
    (
      f"votes of {most} paths are right .15 more often than one",
      of(VOTES, most) - single,
      0.15,
      None,
    ),
    (f"and .08 more often than votes of {few}", of(VOTES, most) - of(VOTES, few), 0.08, None),
    ("one path is right on .25 to .55", single, 0.25, 0.55),
    (f"of {most // 2} texts 90% are distinct", distinct, 0.9, None),
    ("weights of other paths gain at most .01", of(SHUFFLED, few) - of(VOTES, few), None, 0.01),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim, ours = functools.partial(compare, requires=requires), of(RPC, few)
  return [
    claim(f"with {few} paths RPC is right .02 more often than self-consistency", ours,
          of(VOTES, few), margin=0.02, headline=True,
          paper="7B models: MATH 52.0 against 50.6, MathOdyssey 31.6 against 28.3"),
    claim(f"RPC with {few} paths is at most .01 below self-consistency with {2 * few}", ours,
          of(VOTES, 2 * few), margin=-0.01, paper="as accurate with half the paths"),
    claim(f"with {few} paths pruning gains .01 over perplexity consistency without", ours,
          of(CONSISTENCY, few), margin=0.01),
    claim(f"with {most} paths RPC is right .01 more often than the path of lowest perplexity",
          of(RPC, most), of(PERPLEXITY, most), margin=0.01,
          paper="MATH 52.0 against 47.0, OlympiadBench 11.1 against 7.3"),
    claim(f"with {few} paths RPC's calibration error is below self-consistency's",
          of(RPC, few, ERROR), of(VOTES, few, ERROR), better="lower"),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy by the number of paths, and reliability with few."""
  figure, (left, right) = plots.panels(2, width=5.0)
  plots.curves(left, results, ACCURACY, x="paths", counted=ALL)
  most = max(results.distinct("paths", counted=ALL))
  limit = results.select(ACCURACY, method=VOTES, paths=most, counted=ALL).mean()
  left.axhline(limit, color="gray", linewidth=0.8, linestyle="--", label=f"{VOTES}, {most} paths")
  left.set(title="accuracy", xscale="log", xlabel="paths")
  left.legend(fontsize=6)
  for method, (count, confidence, correct) in zip((VOTES, RPC), results.extras["reliability"]):
    some = count > 0
    right.plot(confidence[some] / count[some], correct[some] / count[some], ".-", label=method)
  right.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
  right.set(title="reliability with few paths", xlabel="confidence", ylabel=ACCURACY)
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the decoder, for a dry run."""
  model = network(config)
  batch = jax.eval_shape(
    lambda key: config.chains.draw(key, config.texts_per_step), jax.random.key(0)
  )
  optimizer = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(model, text_loss(model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
