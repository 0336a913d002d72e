"""Repeated sampling: a weak model's coverage grows with its attempts far beyond a strong model's.

Problems of seven terms, whose right solution is one text: its probability is that of its tokens, so
that coverage at any number of attempts is exact. Some entries of the table of arithmetic are mostly
shown wrong, and problems are therefore of very different difficulty, which is what makes coverage a
power law. Without a verifier, votes and scores stop gaining where coverage does not.
"""

import dataclasses
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from experiments import catalogue
from experiments.kit import chains as kit
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import respond, text_loss
from experiments.kit.sweep import each_seed
from experiments.kit.train import adamw_cosine
from experiments.kit.zoo import FAMILY, BaseModel
from jaxlab import data, losses, metrics, models
from jaxlab._checks import check_at_least
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "repeated_sampling"
WEAK, STRONG, GUESSER = "weak model", "strong model", "uniform guesser"
VOTE, BEST = "majority vote", "best by mean log-probability"
LAW, SINGLE, BETA, LINE = "power law", "single rate", "beta rates", "log-linear line"
SHARE, FITTED, BEYOND = "share solved", "largest error", "largest error beyond"


@dataclasses.dataclass(frozen=True)
class Config:
  """The chains, the two decoders, and the numbers of attempts."""

  modulus: int = 11  # Of the chains.
  num_terms: int = 7  # Numbers in a problem.
  misconception_prob: float = 0.85  # How often texts show a misconception where there is one.
  weak: tuple[int, ...] = (24, 1, 2)  # Width, blocks and attention heads of the weak decoder.
  weak_noise: float = 0.15  # Share of arbitrary steps in its texts, which make it weak.
  weak_steps: int = 1500  # Its updates.
  strong: tuple[int, ...] = (48, 1, 4)  # Likewise of the strong decoder.
  strong_steps: int = 1800  # Likewise.
  texts_per_step: int = 128  # Fresh texts of an update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  num_problems: int = 2000  # To test on, with exact probabilities.
  num_sampled: int = 200  # The first of them, from which samples are drawn.
  num_samples: int = 512  # Of each.
  few: int = 16  # Attempts, a power of two, after which votes should have stopped gaining.
  many: int = 256  # Attempts of the headline, a power of two.
  most: int = 1024  # Attempts up to which the law is fitted, a power of two.
  fitted: int = 32  # Attempts up to which laws are fitted that are read beyond, a power of two.
  num_subsets: int = 100  # Of the samples, over which a vote is averaged.

  @property
  def chains(self) -> data.ModularChainConfig:
    """The chains."""
    options = {"misconception_prob": self.misconception_prob}
    return data.ModularChainConfig(self.modulus, self.num_terms, **options)

  @property
  def ks(self) -> np.ndarray:
    """Powers of two."""
    return 2 ** np.arange(self.most.bit_length())


PRESETS = {
  "smoke": Config(
    modulus=3, num_terms=2, weak=(8, 1, 2), weak_steps=2, strong=(8, 2, 2), strong_steps=2,
    texts_per_step=4, num_problems=6, num_sampled=4, num_samples=8, few=2, many=4, most=16,
    fitted=4, num_subsets=2,
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=97, num_terms=9, weak=(256, 4, 4), weak_steps=20_000, strong=(1024, 24, 16),
    strong_steps=50_000, texts_per_step=512, learning_rate=3e-4, num_samples=10_000, most=8192,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("misconception_prob", "weak_noise"))
  check_at_least(2, modulus=config.modulus, num_terms=config.num_terms, fitted=config.fitted)
  for name in ("weak", "strong"):
    width, *others = getattr(config, name)
    sizes.check_lengths(**{name: (width, *others), "(width, blocks, heads)": range(3)})
    sizes.check_divides(others[1], **{name: width})
  powers = {name: getattr(config, name) for name in ("few", "many", "fitted", "most")}
  sizes.check_known([*map(str, config.ks)], **{name: [str(k)] for name, k in powers.items()})
  sizes.check_at_most(config.num_samples, few=config.few, many=config.many)
  sizes.check_at_most(config.most // 2, fitted=config.fitted)
  sizes.check_at_most(config.num_problems, num_sampled=config.num_sampled)


def base_models(config: Config) -> dict[str, BaseModel]:
  """The two models, of seed 0."""
  options = {"batch_size": config.texts_per_step, "learning_rate": config.learning_rate}
  options["family"] = FAMILY
  noisy = dataclasses.replace(config.chains, noise=config.weak_noise)
  return {
    WEAK: BaseModel(noisy, *config.weak, config.weak_steps, **options),
    STRONG: BaseModel(config.chains, *config.strong, config.strong_steps, **options),
  }


def run(config: Config, context: Context) -> Results:
  """Trains both models where they are not stored, and measures."""
  results, bases = Results(), base_models(config)
  params = {name: base.load_seeds(context, name) for name, base in bases.items()}
  exact = each_seed(context, "exact", functools.partial(prove, config), params)
  votes = each_seed(context, "votes", functools.partial(vote, config), params[WEAK])
  guessed = -np.expm1(config.ks * np.log1p(-(float(config.modulus) ** (1 - config.num_terms))))
  for i, k in enumerate(config.ks):
    results.add({WEAK: {SHARE: exact[WEAK][:, i]}, GUESSER: {SHARE: guessed[i]}}, attempts=int(k))
    if k <= config.many:
      results.add({name: {SHARE: votes[name][:, i]} for name in (VOTE, BEST)}, attempts=int(k))
  results.add({STRONG: {SHARE: exact[STRONG][:, 0]}}, attempts=1)
  results.add({WEAK: {"errors of sampled coverage (s.e.)": votes["largest error"]}})
  _add_laws(config, results, exact[WEAK])
  _add_passing(config, results, bases, exact)
  return results


def prove(config: Config, key: chex.PRNGKey, params) -> dict[str, jax.Array]:
  """Exact coverage of both models at the powers of two, and at every number of attempts."""
  clean, found = _problems(config, key), {}
  for name, base in base_models(config).items():
    probs = jnp.exp(_proofs(config, base, params[name], clean.tokens))
    found[name] = kit.exact_coverage(probs, config.ks)
    found[f"{name}, every k"] = kit.exact_coverage(probs, np.arange(1, config.most + 1))
  return found


def _problems(config: Config, key: chex.PRNGKey) -> data.ChainBatch:
  return data.modular_chain_batch(key, config.chains, config.num_problems, clean=True)


def _proofs(config: Config, base: BaseModel, params, clean: chex.Array) -> jax.Array:
  return jnp.sum(kit.step_log_probs(base.model, params, config.chains, clean), axis=-1)


def vote(config: Config, key: chex.PRNGKey, params) -> dict[str, jax.Array]:
  """Accuracy of choosing among the weak model's samples; and sampled coverage against exact."""
  chains, base = config.chains, base_models(config)[WEAK]
  rows = jax.tree.map(lambda x: x[: config.num_sampled], _problems(config, key))
  draw_key, vote_key = jax.random.split(jax.random.fold_in(key, 1))
  numbers = {"num_samples": config.num_samples, "max_new_tokens": chains.response_length}
  prompts = rows.tokens[:, : chains.prompt_length]
  drawn = respond(draw_key, base.model, params, prompts, **numbers)
  answers = kit.parse(chains, drawn.tokens).answer
  right = answers == rows.answers[:, None]
  scores = losses.sequence_log_prob(drawn.log_probs, drawn.mask, normalize_length=True)
  ks = [int(k) for k in config.ks if k <= config.many]
  options = {"ks": ks, "num_subsets": config.num_subsets}
  proved = kit.num_clean_steps(chains, drawn.tokens, rows.tokens[:, None]) == chains.num_terms - 1
  counts = jnp.sum(proved, axis=1)
  sampled = jnp.stack([metrics.pass_at_k(counts, num_samples=proved.shape[1], k=k) for k in ks], 1)
  probs = jnp.exp(_proofs(config, base, params, rows.tokens))
  errors = sampled - jax.vmap(lambda p: kit.exact_coverage(p[None], jnp.array(ks)))(probs)
  deviations = jnp.maximum(jnp.std(errors, axis=0) / np.sqrt(len(errors)), 1e-6)
  return {
    VOTE: metrics.selection_accuracy_curve(vote_key, answers, right, **options),
    BEST: jnp.mean(metrics.best_of_k_accuracy(scores, right, ks=ks), axis=0),
    "largest error": jnp.max(jnp.abs(errors.mean(0)) / deviations),
  }


@jax.jit
def _power_law(ks, coverage, at):
  return metrics.exponentiated_power_law(at, metrics.fit_exponentiated_power_law(ks, coverage))


@jax.jit
def _beta(ks, q):
  return metrics.beta_coverage(ks, alpha=jnp.exp(q[0]), beta=jnp.exp(q[1]))


# Other laws: coverage at k for parameters without bounds, and where a fit starts.
OTHER_LAWS = {
  SINGLE: (lambda k, q: -np.expm1(-k * np.log1p(np.exp(q[0]))), (-3.0,)),
  BETA: (_beta, (0.1, 2.0)),
  LINE: (lambda k, q: q[0] + q[1] * np.log(k), (0.1, 0.1)),
}


def fit_law(name: str, ks: np.ndarray, coverage: np.ndarray, at: np.ndarray) -> np.ndarray:
  """What a law, fitted by least squares to coverage `[m]`, gives at other numbers of attempts."""
  ks, at = np.float32(ks), np.float32(at)
  if name == LAW:
    return np.asarray(_power_law(ks, np.float32(coverage), at))
  curve, start = OTHER_LAWS[name]
  errors = lambda q: np.asarray(curve(ks, np.float32(q)), np.float64) - coverage  # noqa: E731
  # Differences of float32, in which the library computes.
  best = optimize.least_squares(errors, start, diff_step=1e-2).x
  return np.asarray(curve(at, np.float32(best)))


def _add_laws(config: Config, results: Results, coverage: np.ndarray) -> None:
  """Adds how far each law is from the curve it was fitted to, and from what lies beyond."""
  ks, inner = config.ks, config.ks <= config.fitted
  for name in (LAW, *OTHER_LAWS):
    whole = np.stack([fit_law(name, ks, c, ks) for c in coverage])
    begun = np.stack([fit_law(name, ks[inner], c[inner], ks) for c in coverage])
    errors = {
      FITTED: np.max(np.abs(whole - coverage), axis=1),
      BEYOND: np.max(np.abs(begun - coverage)[:, ~inner], axis=1),
    }
    results.add({name: errors})
    for k, at in zip(ks, whole.T):
      results.add({name: {"share fitted": at}}, attempts=int(k))


def _add_passing(config: Config, results: Results, bases, exact) -> None:
  """Adds with how many attempts the weak model passes, and at which ratio of operations.

  One that never does has the most attempts that were looked at.
  """
  passes = exact[f"{WEAK}, every k"] > exact[STRONG][:, :1]
  attempts = np.where(passes.any(1), 1 + np.argmax(passes, axis=1), config.most)
  lengths = config.chains.prompt_length, config.chains.response_length
  tokens = dict(zip(("prompt_tokens", "generated_tokens"), lengths))
  flops = [
    metrics.inference_flops(
      num_params=models.num_parameters(base.model.config), num_samples=n, **tokens
    )
    for base, n in zip(bases.values(), (attempts, 1))
  ]
  ratio = np.asarray(flops[0]) / np.asarray(flops[1])
  results.add({WEAK: {"attempts to pass": attempts, "operations to pass": ratio}})


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, many, most = config.few, config.many, config.most

  def share(method: str, attempts: int):
    return results.select(SHARE, method=method, attempts=attempts)

  def gain(method: str):
    return share(method, many) - share(method, few)

  weak, strong = share(WEAK, 1), share(STRONG, 1)
  bounds = (
    ("the strong model solves .2 more than the weak one at once", strong - weak, 0.2, None),
    ("the weak one solves .02 to .25", weak, 0.02, 0.25),
    (f"at most .65 with {few} attempts", share(WEAK, few), None, 0.65),
    (f"and .85 to .995 with {most}", share(WEAK, most), 0.85, 0.995),
    (f"votes of {few} are right on at most .85", share(VOTE, few), None, 0.85),
    (f"{many} uniform guesses prove at most .01", share(GUESSER, many), None, 0.01),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = functools.partial(compare, requires=requires)
  error, other = (results.select(FITTED, method=name) for name in (LAW, SINGLE))
  return [
    claim(f"{many} attempts of the weak model prove .15 more than one of the strong model",
          share(WEAK, many), strong, margin=0.15, headline=True,
          paper="SWE-bench Lite: 56% with 250 attempts, 43% with one of the best model"),
    claim(f"the power law is within .05 of coverage at 1 to {most} attempts", error, 0.05,
          better="lower"),
    claim("its largest error is .05 below that of a single rate of success", error, other,
          better="lower", margin=0.05),
    claim(f"from {few} to {many} attempts coverage gains .1 more than a majority vote",
          gain(WEAK), gain(VOTE), margin=0.1,
          paper="MATH, 100 to 10,000 attempts: coverage 82.9 to 98.4, votes 40.5 to 41.4"),
    claim(f"from {few} to {many} attempts coverage gains .1 more than the best by mean "
          "log-probability", gain(WEAK), gain(BEST), margin=0.1),
  ]  # fmt: skip


def figure(results: Results):
  """Shares solved against attempts: exact, by three laws, and by choices without a verifier."""
  figure, axes = plots.panels(2, width=5.0)
  for ax, quantity, title in zip(axes, (SHARE, "share fitted"), ("attempts", "laws of coverage")):
    plots.curves(ax, results, quantity, x="attempts")
    if quantity != SHARE:
      plots.curves(ax, results, SHARE, x="attempts", method=WEAK)
    strong = results.select(SHARE, method=STRONG, attempts=1).mean()
    ax.axhline(strong, color="gray", linewidth=0.8, linestyle=":", label=f"{STRONG}, one attempt")
    ax.set(title=title, xscale="log", ylabel="share solved", ylim=(0, 1.05))
    ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the strong model, for a dry run."""
  base = base_models(config)[STRONG]
  batch = jax.eval_shape(lambda key: base.draw(key, config.texts_per_step), jax.random.key(0))
  optimizer = adamw_cosine(config.learning_rate, config.strong_steps)
  return abstract_step(base.model, text_loss(base.model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
