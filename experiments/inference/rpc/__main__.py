"""RPC: votes of reasoning paths, weighted by their probabilities, without the improbable ones.

Few paths say little about how often a model gives an answer, and the probability of a path is known
as soon as it is sampled: weights reduce the error of estimation. Chains of nine terms with words of
style, so that texts hardly repeat and their likelihood is noisy; one pool of paths for all methods.
"""

import dataclasses
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.inference.rpc.styles import StyledChains
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import respond, text_loss
from experiments.kit.sweep import each_seed
from experiments.kit.train import adamw_cosine
from experiments.kit.zoo import FAMILY, BaseModel
from jaxlab import losses, metrics, samplers
from jaxlab._checks import check_at_least
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rpc"
SEEDS = {"laptop": 8}

VOTES, PERPLEXITY, CONSISTENCY = "self-consistency", "perplexity", "perplexity consistency"
RPC, RPC_SUM, SHUFFLED = "RPC", "RPC, sum of log-probabilities", "RPC, shuffled weights"
ABOVE, MEAN = "votes above the mean", "perplexity consistency above the mean"
ONE = "one path"
ALL, DISTINCT = "all", "distinct"  # Which paths count: each text once, or as often as it is drawn.
ACCURACY, ERROR = "accuracy", "calibration error"
_BINS = 10


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
  num_steps: int = 1000  # Updates.
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
    texts_per_step=4, num_problems=4, paths=(4, 8), few=4, num_orders=2, fit_steps=2,
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=97, num_terms=13, decoder=(1024, 24, 16), num_steps=20_000, texts_per_step=512,
    learning_rate=3e-4, num_problems=5000, paths=(4, 8, 16, 32, 64, 128),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "misconception_rate", "misconception_prob", "noise", "style_probs"
  sizes.check_sizes(config, shares=shares)
  check_at_least(2, modulus=config.modulus, num_terms=config.num_terms)
  sizes.check_lengths(decoder=config.decoder, **{"(width, blocks, heads)": range(3)})
  sizes.check_divides(config.decoder[2], decoder=config.decoder[0])
  for name, num in (("few", config.few), ("few", 2 * config.few)):
    sizes.check_known([*map(str, config.paths)], **{name: [str(num)]})
  if sorted(set(config.paths)) != list(config.paths):
    raise ValueError(f"paths must increase, got {config.paths}.")
  _ = config.chains  # Checks the probabilities of styles.


def base_model(config: Config) -> BaseModel:
  """The decoder, of seed 0."""
  options = {"batch_size": config.texts_per_step, "learning_rate": config.learning_rate}
  options["family"] = FAMILY
  return BaseModel(config.chains, *config.decoder, config.num_steps, **options)


def run(config: Config, context: Context) -> Results:
  """Trains the decoder where it is not stored; samples the pool, and votes."""
  results, most = Results(), config.paths[-1]
  params = base_model(config).load_seeds(context, "decoder")
  pool = each_seed(context, "pool", functools.partial(sample, config), params)
  right = pool["answers"] == pool["targets"][..., None]
  results.add(
    {ONE: {ACCURACY: right.mean((1, 2)), "malformed": (pool["answers"] < 0).mean((1, 2))}}
  )
  first = pool["ids"][..., : most // 2] == np.arange(most // 2)
  results.add({ONE: {"distinct texts": first.mean((1, 2))}}, paths=most // 2)
  for n in config.paths:
    scores = each_seed(context, f"votes/{n}", functools.partial(vote, config, n), pool)
    reliability = scores.pop("reliability")
    for (method, counted), values in _named(scores).items():
      results.add({method: values}, paths=n, counted=counted)
    if n == config.few:
      # Over all seeds: share of items, their confidence and accuracy, by bins.
      results.extras["reliability"] = reliability.sum(0)
  return results


def sample(config: Config, key: chex.PRNGKey, params) -> dict[str, jax.Array]:
  """Draws the pool: `answers`, scores `mean` and `sum`, text `ids`, `[P, n]`; `targets` `[P]`."""
  base, chains = base_model(config), config.chains
  problem_key, path_key = jax.random.split(key)
  rows = chains.draw(problem_key, config.num_problems, clean=True)
  numbers = {"num_samples": config.paths[-1], "max_new_tokens": chains.response_length}
  prompts = rows.tokens[:, : chains.prompt_length]
  drawn = respond(path_key, base.model, params, prompts, **numbers)
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


def vote(config: Config, num_paths: int, key: chex.PRNGKey, pool) -> dict[str, jax.Array]:
  """Accuracy and calibration of every method with the first paths of several orders of the pool."""
  order_key, weight_key = jax.random.split(key)
  # All orders of the whole pool are the same.
  num_orders = 1 if num_paths == config.paths[-1] else config.num_orders
  shape = num_orders, *pool["answers"].shape
  places = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
  places = jax.random.permutation(order_key, places, axis=-1, independent=True)[..., :num_paths]
  pick = lambda name: jnp.take_along_axis(pool[name][None], places, axis=-1)  # noqa: E731
  answers, mean, total, ids = map(pick, ("answers", "mean", "sum", "ids"))
  targets = jnp.broadcast_to(pool["targets"], shape[:-1])
  found = {}
  for (method, counted), confidence in confidences(
    weight_key, answers, mean, total, ids, num_steps=config.fit_steps
  ).items():
    correct = metrics.vote_accuracy(confidence, answers, targets)
    error = metrics.vote_calibration_error(confidence, answers, targets, num_bins=_BINS)
    found[f"{method}: {counted}"] = {ACCURACY: jnp.mean(correct), ERROR: error}
    if (method, counted) in ((VOTES, ALL), (RPC, ALL)):
      best = jnp.max(jnp.where(answers >= 0, confidence, 0.0), axis=-1).ravel()
      bins = jnp.clip(jnp.ceil(best * _BINS).astype(int) - 1, 0, _BINS - 1)
      rows = jnp.stack([jnp.ones_like(best), best, correct.ravel()])
      sums = jax.vmap(lambda x: jax.ops.segment_sum(x, bins, _BINS))(rows)  # noqa: B023
      found.setdefault("reliability", []).append(sums)
  found["reliability"] = jnp.stack(found["reliability"])
  return found


def confidences(
  key: chex.PRNGKey, answers, mean, total, ids, *, num_steps: int
) -> dict[tuple[str, str], jax.Array]:
  """The confidence of each path's own answer `[..., n]`, by method and by which paths count.

  Args:
    key: of the shuffled weights.
    answers: of the paths `[..., n]`.
    mean: mean log-probability of their tokens.
    total: its sum.
    ids: of their texts.
    num_steps: the most of a fit.
  """
  own = jnp.broadcast_to(jnp.arange(answers.shape[-1], dtype=jnp.int32), answers.shape)
  earlier = (ids[..., :, None] == ids[..., None, :]) & (own[..., :, None] > own[..., None, :])
  first = ~jnp.any(earlier, axis=-1)
  probs = jnp.exp(mean)
  above = probs >= jnp.mean(probs, axis=-1, keepdims=True)
  found = {}
  for counted, mask, texts in ((ALL, None, None), (DISTINCT, first, ids)):
    found[VOTES, counted] = samplers.self_consistency_confidence(answers, mask=mask)
    found[CONSISTENCY, counted] = samplers.perplexity_consistency_confidence(
      answers, mean, path_ids=texts
    )
  found[PERPLEXITY, ALL] = probs
  found[ABOVE, ALL] = samplers.self_consistency_confidence(answers, mask=above)
  found[MEAN, ALL] = samplers.perplexity_consistency_confidence(answers, mean, mask=above)
  # A common factor changes nothing but where the fit starts; sums would be below what it looks at.
  total = total - jnp.max(total, axis=-1, keepdims=True)
  shuffled = jax.random.permutation(key, mean, axis=-1, independent=True)
  variants = {
    (RPC, ALL): (mean, own), (RPC, DISTINCT): (mean, ids), (RPC_SUM, ALL): (total, own),
    (SHUFFLED, ALL): (shuffled, own),
  }  # fmt: skip
  scores, texts = map(jnp.stack, zip(*variants.values()))
  repeated = jnp.broadcast_to(answers, scores.shape)
  options = {"path_ids": texts, "num_steps": num_steps}
  pruned = samplers.pruned_consistency_confidence(repeated, scores, **options)
  return found | dict(zip(variants, pruned))


def _named(scores) -> dict[tuple[str, str], dict[str, np.ndarray]]:
  return {tuple(name.split(": ")): values for name, values in scores.items()}


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
  base = base_model(config)
  batch = jax.eval_shape(lambda key: base.draw(key, config.texts_per_step), jax.random.key(0))
  optimizer = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(base.model, text_loss(base.model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
