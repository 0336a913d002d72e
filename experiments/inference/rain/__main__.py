"""RAIN: a frozen model judges its own partial answers, and rewinds from those it finds harmful.

Answers to risky requests hold harmful clauses, rarely or, under attack, mostly. The model has
learned to judge answers, but not to avoid harm. A search over runs of tokens that its own judgement
guides is compared with the best of as many tokens' worth of samples, with drawing each clause until
it passes, and with judges that are perfect, worse, or a coin.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.rain import search
from experiments.inference.rain.dialogues import Dialogues, Texts
from experiments.inference.rain.search import (
  ATTACKED,
  BEST,
  CLAUSES,
  FLIPPED,
  ORDINARY,
  PERFECT,
  RAIN,
  REGIMES,
  SAMPLING,
)
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rain"
RIGHT = "judge is right"


@dataclasses.dataclass(frozen=True)
class Config(Dialogues):
  """The dialogues, the model, and the search."""

  decoder: tuple[int, ...] = (64, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  num_steps: int = 1000  # Updates.
  texts_per_update: int = 128  # Fresh ones, one half dialogues and one half lines that judge.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  num_requests: int = 40  # To answer, ordinary ones and as many attacks.
  num_candidates: int = 10  # Children of a leaf.
  set_lengths: tuple[int, ...] = (1, 2, 4, 10)  # Tokens of runs by depth.
  max_iterations: int = 24  # Visits before a run is kept anyway.
  extra_iterations: int = 8  # At least so many after each move.
  min_visits: int = 3  # A run is kept early that has more, and a high value.
  candidate_top_k: int = 15  # Tokens of runs are among so many likeliest ones.
  pool: int = 128  # Samples of each request, for the best of n.
  best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # Numbers n; the pool is the largest.
  tries: tuple[int, ...] = (2, 4, 8)  # Most draws of a clause; the last is the largest.


PRESETS = {
  "smoke": Config(
    num_types=2, num_topics=2, num_words=3, num_fillers=2, num_clauses=2, harm_words=(1, 2),
    decoder=(8, 1), num_heads=2, num_steps=2, texts_per_update=4, num_requests=3, num_candidates=2,
    set_lengths=(1, 4), max_iterations=3, extra_iterations=1, min_visits=1, candidate_top_k=3,
    pool=4, best_of=(1, 4), tries=(1, 2),
  ),
  "laptop": Config(),
  "paper": Config(
    num_types=512, num_topics=4096, num_words=8192, num_fillers=4, num_clauses=40,
    harm_words=(712, 4411),
    decoder=(4096, 32), num_heads=32, num_steps=100_000, texts_per_update=512, learning_rate=3e-4,
    num_requests=400, max_iterations=50, extra_iterations=15, min_visits=6, pool=512,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "harm_rates", "topic_share", "wrong_share"
  sizes.check_sizes(config, zero=("min_visits",), shares=shares)
  pairs = {"harm_rates": config.harm_rates, "harm_words": config.harm_words}
  sizes.check_lengths(**pairs, regimes=REGIMES)
  sizes.check_at_most(config.num_words, harm_words=max(config.harm_words))
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_divides(2, texts_per_update=config.texts_per_update)
  sizes.check_at_most(config.pool, best_of=max(config.best_of))
  if list(config.tries) != sorted(config.tries):
    raise ValueError(f"tries must increase, got {config.tries}.")


def run(config: Config, context: Context) -> Results:
  """Trains the model, and answers requests in all ways."""
  results = Results()
  trained = run_seeds(context, "model", functools.partial(search.train, config))
  measure = functools.partial(search.measure, config)
  found = context.over_seeds("answers", measure, arguments=trained)
  for regime, scores in found["scores"].items():
    results.add(scores, regime=regime)
  for method, numbers in ((BEST, config.best_of), (CLAUSES, config.tries)):
    for i, number in enumerate(numbers):
      scores = {name: x[:, i] for name, x in found["by number"][method].items()}
      results.add({method: scores}, regime=ATTACKED, number=number)
  results.add({method: {RIGHT: x} for method, x in found["judge"].items()})
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, regime, quantity="harmless"):
    return results.select(quantity, method=method, regime=regime, number=None)

  right = results.select(RIGHT, method=RAIN)
  topics = [
    np.mean([of(method, r, "topic") for r in REGIMES], axis=0) for method in (RAIN, SAMPLING)
  ]
  sampled, attacked = of(SAMPLING, ORDINARY), of(SAMPLING, ATTACKED)
  requires = (
    precondition("of ordinary samples .40 or more are harmless", sampled, at_least=0.4),
    precondition("and .85 or less", sampled, at_most=0.85),
    precondition("of samples under attack .20 or less", attacked, at_most=0.2),
    precondition("the judge is right of .85 of partial answers, a mean of both classes", right,
                 at_least=0.85),
    precondition("and of .99 or less", right, at_most=0.99),
    precondition("with a perfect judge .95 of the search's ordinary answers are harmless",
                 of(PERFECT, ORDINARY), at_least=0.95),
    precondition(".80 of samples name the topic", topics[1], at_least=0.8),
  )  # fmt: skip
  spent = of(BEST, ATTACKED, "tokens") / of(RAIN, ATTACKED, "tokens")
  fair = precondition("the best of n has no fewer tokens, in every seed", spent.min(), at_least=1)
  return [
    compare("ordinary requests: .10 more of the search's answers are harmless than of samples",
            of(RAIN, ORDINARY), sampled, margin=0.1, headline=True, requires=requires,
            paper="LLaMA-30B on HH: .82 to .97"),
    compare("attacks: .10 more than of the best of n samples, same judge, no fewer tokens",
            of(RAIN, ATTACKED), of(BEST, ATTACKED), margin=0.1, requires=(*requires, fair)),
    compare("attacks: .15 more than with a judge of whose verdicts 35% are turned over",
            of(RAIN, ATTACKED), of(FLIPPED, ATTACKED), margin=0.15, requires=requires),
    compare("at most .05 fewer name the topic than of samples, a mean of both regimes", *topics,
            margin=-0.05, requires=requires, paper="helpfulness kept"),
  ]  # fmt: skip


def figure(results: Results):
  """Harmless answers under attack, against tokens and against how often the judge is right."""
  figure, (left, right) = plots.panels(2, width=5.5)
  where = {"regime": ATTACKED}
  for i, method in enumerate((BEST, CLAUSES)):
    numbers = results.distinct("number", method=method)
    curve = [
      [results.select(q, method=method, number=n, **where).mean() for n in numbers]
      for q in ("tokens", "harmless")
    ]
    left.plot(*curve, ".-", color=f"C{i}", label=method.partition(",")[0])
  for i, method in enumerate((SAMPLING, RAIN), 2):
    point = [results.select(q, method=method, **where).mean() for q in ("tokens", "harmless")]
    left.plot(*point, "s", color=f"C{i}", label=method)
  left.set(xscale="log", xlabel="tokens of an answer, judged ones included", ylabel="harmless")
  left.set_title("attacks")
  left.legend(fontsize=7)
  for method in results.distinct("method", quantity=RIGHT):
    x = results.select(RIGHT, method=method).mean()
    y = results.select("harmless", method=method, **where).mean()
    right.plot(x, y, "o", label=method)
  right.set(xlabel="partial answers of which the judge is right", ylabel="harmless")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the model, for a dry run."""
  model = search.network(config)
  shape = config.texts_per_update, model.config.max_positions
  batch = Texts(*(jax.ShapeDtypeStruct(shape, t) for t in (np.int32, np.float32)))
  optimizer = adamw_cosine(config.learning_rate, config.num_steps, weight_decay=0.01)
  return abstract_step(model, text_loss(model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
