"""Why step by step? Because each experience shows but a neighborhood of the world.

A Bayes net is the world, and a text shows the values of a few of its variables. A language model of
such texts is asked about two variables that it never met together: at once, after variables that it
chooses itself, and after those that separate the two. Steps should help where texts show variables
that depend on each other, and nowhere else.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.bayes.locality_of_experience import answers, nets, pictures
from experiments.bayes.locality_of_experience.answers import DIRECT, FREE, MARGINAL, MSE
from experiments.bayes.locality_of_experience.nets import FULL, KINDS, LOCAL, WRONG
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, each_seed, run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "locality_of_experience"
SEEDS = {"laptop": 16}
NETWORK = "language model"
BY_DISTANCE = "MSE by distance"


@dataclasses.dataclass(frozen=True)
class Config:
  """The nets, the texts, and the language model."""

  num_variables: int = 12  # Of a net.
  net: Literal["chain", "random"] = "chain"  # Chains part in two branches.
  flip: float = 0.17  # Probability that a variable of a chain differs from the one before.
  num_edges: int = 12  # Of a random net.
  max_parents: int = 4  # Of a variable of a random net.
  concentration: float = 0.2  # Of the Beta law of its conditional probabilities.
  num_candidates: int = 20  # Nets, of which that with the most informative pairs is used.
  num_pairs: int = 4  # Pairs that no text shows together.
  least_probability: float = 0.02  # Of a condition's value; rarer ones are not asked about.
  radius: Literal["geometric", "zipf"] = "geometric"  # Law of the radius of a neighborhood.
  radius_parameter: float = 0.8  # Its parameter.
  keep_prob: float = 0.8  # Share of a neighborhood that a text shows.
  decoder: tuple[int, ...] = (64, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  num_steps: int = 1500  # Updates.
  rows_per_update: int = 10  # Each row is seen once.
  row_length: int = 64  # Tokens of a row, in which several texts have room.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of AdamW, to choose from on a further net.
  num_scored: int = 300  # Rows whose loss chooses.
  num_samples: int = 10  # Texts that answer a question.


PRESETS = {
  "smoke": Config(
    num_variables=6, num_edges=6, max_parents=2, num_candidates=2, num_pairs=1, decoder=(8, 1),
    num_heads=2, num_steps=4, rows_per_update=4, row_length=20, num_scored=4, num_samples=3,
  ),
  "laptop": Config(),
  "paper": Config(
    num_variables=100, net="random", num_edges=100, max_parents=5, num_candidates=10, num_pairs=25,
    radius_parameter=0.5, decoder=(512, 10), num_heads=8, num_steps=25_000, rows_per_update=4,
    row_length=256, learning_rates=(5e-5, 1e-4),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("least_probability", "keep_prob", "flip"))
  sizes.check_known(("chain", "random"), net=(config.net,))
  sizes.check_known(("geometric", "zipf"), radius=(config.radius,))
  of_radius = {"geometric": "(0, 1]", "zipf": "(1, inf)"}[config.radius]
  check_range("radius_parameter", config.radius_parameter, of_radius)
  for name in ("concentration", "keep_prob"):
    check_range(name, getattr(config, name), "(0, inf)")
  check_at_least(3, num_variables=config.num_variables)
  sizes.check_at_most(252, num_variables=config.num_variables)  # Tokens are bytes.
  n = config.num_variables
  num_edges = config.num_edges if config.net == "random" else n - 1
  sizes.check_at_most(sum(min(i, config.max_parents) for i in range(n)), num_edges=num_edges)
  sizes.check_at_most((n * (n - 1) // 2 - num_edges) // 2, num_pairs=config.num_pairs)
  check_at_least(2 * config.num_variables + 4, row_length=config.row_length)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])


def run(config: Config, context: Context) -> Results:
  """Trains on texts of every kind, and asks about the pairs that none of them shows."""
  results = Results()
  learn = functools.partial(answers.learn, config)
  evaluate = functools.partial(answers.evaluate, config)
  problems = datasets.stack_seeds(
    functools.partial(nets.draw_problem, config), context.seed_numbers
  )
  questions, near = problems.questions, problems.neighbors
  rate, by_rate = choose_rate(config, context, learn)
  for kind in KINDS:
    inputs = problems.texts[kind], np.full(context.seeds, rate)
    learned = run_seeds(context, f"{kind}/training", learn, arguments=inputs)
    inputs = learned["params"], questions, problems.steps, near
    found = each_seed(context, f"{kind}/answers", evaluate, *inputs)
    errors = found["errors"]
    rows = *answers.ESTIMATORS, answers.AVERAGED
    results.add({row: errors[row] for row in rows}, documents=kind)
    traces = by_seed(answers.describe_traces, problems.parents, questions, found["traces"])
    results.add({FREE: traces}, documents=kind)
    of_texts = {"loss": learned["loss"], "tokens": problems.num_tokens[kind]}
    of_texts["texts with a held-out pair"] = problems.num_leaks[kind]
    results.add({NETWORK: of_texts}, documents=kind)
    both = {row: found["answers"][row] for row in (DIRECT, FREE)}
    add_by_distance(results, problems, both, documents=kind)
  results.add({row: errors[row] for row in (MARGINAL, answers.EXACT, answers.EXACT_DRAWS)})
  add_by_distance(results, problems, {MARGINAL: found["answers"][MARGINAL]})
  for tried, loss in by_rate.items():
    results.add({NETWORK: {"loss on a further net": loss}}, learning_rate=tried)
  results.extras |= {"parents": problems.parents[0], "held_out": problems.held_out[0]}
  return results


def choose_rate(config: Config, context: Context, learn) -> tuple[float, dict[float, float]]:
  """The rate of the lowest loss on a further net, a mean over texts of every kind; all losses."""
  texts = nets.draw_problem(config, context.seed_numbers.stop).texts
  stacked = np.stack([texts[kind] for kind in KINDS])
  losses = {}
  for i, rate in enumerate(config.learning_rates):
    options = {"num_seeds": len(KINDS), "arguments": (stacked, np.full(len(KINDS), rate))}
    losses[rate] = run_seeds(context, f"rate/{i}", learn, **options)["loss"].mean()
  return min(losses, key=losses.get), losses


def add_by_distance(results: Results, problems: nets.Problem, found, **where) -> None:
  """Adds errors at each distance of a pair, of the questions of all seeds together."""
  used = problems.questions.used
  for distance in np.unique(problems.distances[used]):
    here = used & (problems.distances == distance)
    for row, answered in found.items():
      squares = (answered - problems.questions.probs)[here] ** 2
      quantities = {BY_DISTANCE: squares.mean(), "questions": len(squares)}
      results.add({row: quantities}, distance=int(distance), **where)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity=MSE, kind=LOCAL):
    return results.select(quantity, method=method, documents=kind)

  def log(method, kind=LOCAL):
    return np.log(of(method, kind=kind))

  marginal, exact = (results.select(MSE, method=m) for m in (MARGINAL, answers.EXACT))
  leaks = np.max([of(NETWORK, "texts with a held-out pair", kind) for kind in KINDS], axis=0)
  requires = (
    precondition("the marginal errs by .04 or more in each net", marginal.min(), at_least=0.04),
    precondition("direct answers err by a fifth of that or more", of(DIRECT) / marginal,
                 at_least=0.2),
    precondition("answers about neighbors err by .004 at most", of(DIRECT, answers.OF_NEIGHBORS),
                 at_most=0.004),
    precondition("95% of the free texts reach the target", of(FREE, answers.REACHED),
                 at_least=0.95),
    precondition("60% of them write another variable first", of(FREE, answers.STARTED),
                 at_least=0.6),
    precondition("chained exact conditionals err by .002 at most", exact, at_most=0.002),
    precondition("no text shows a held-out pair", leaks.max(), at_most=0),
  )  # fmt: skip
  claim = functools.partial(compare, margin=np.log(1.25), requires=requires)
  by_local, by_wrong = (log(FREE, kind) - log(DIRECT, kind) for kind in (LOCAL, WRONG))
  separate = (of(FREE, answers.SEPARATE, kind) for kind in (LOCAL, WRONG))
  return [
    claim("pairs never seen together: free reasoning has at most .8 times the error of direct "
          "answers, in logarithms", log(FREE), log(DIRECT), better="lower", headline=True,
          paper="MSE .014 against .027 in nets of 100 variables"),
    claim("neighborhoods of another net: this ratio is at least 1.25 times as large, in logarithms",
          by_wrong, by_local, paper=".88 against .52"),
    claim("the variables that separate a pair give at most .8 times the error of others, in "
          "logarithms", log(answers.SCAFFOLDED), log(answers.NEGATIVE), better="lower",
          paper="MSE .016 against .027"),
    claim("local texts and free reasoning have at most .8 times the error of texts with all "
          "variables and direct answers, for as many tokens, in logarithms", log(FREE),
          log(DIRECT, FULL), better="lower", paper="MSE .014 against .035"),
    compare("free texts separate their pair more often by .15 than with neighborhoods of another "
            "net", *separate, margin=0.15, requires=requires, paper=".68 against .31"),
  ]  # fmt: skip


def figure(results: Results):
  """Errors by kind of texts, and of all estimators with local ones; and a net with its pairs."""
  figure, (left, middle, right) = plots.panels(3, width=4.8, height=4.2)
  places = np.linspace(-0.3, 0.3, len(answers.ESTIMATORS))
  for x, kind in enumerate(KINDS):
    errors = [results.select(MSE, method=m, documents=kind) for m in answers.ESTIMATORS]
    left.plot(x + places, errors, color="gray", alpha=0.3, linewidth=0.8)
    for i, (method, values) in enumerate(zip(answers.ESTIMATORS, errors)):
      mean = np.exp(np.log(values).mean())
      left.plot(x + places[i], mean, "o", color=f"C{i}", label=None if x else method)
  marginal = results.select(MSE, method=MARGINAL)
  left.axhline(np.exp(np.log(marginal).mean()), color="black", linestyle="--", label=MARGINAL)
  left.set_xticks(range(len(KINDS)), KINDS)
  left.set(yscale="log", ylabel=MSE, title="geometric means, and a line per net")
  left.legend(fontsize=7)
  plots.dots(middle, results, MSE, documents=LOCAL)
  middle.tick_params("y", labelsize=7)
  middle.set(title=f"{LOCAL} texts", xlabel="MSE, and means")
  if "parents" in results.extras:
    pictures.draw_net(right, results.extras["parents"], results.extras["held_out"])
    right.set_title("a net, and the pairs that no text shows")
  return figure


def abstract(config: Config, mesh):
  """An update of the language model, for a dry run."""
  model = answers.network(config)
  batch = (jax.ShapeDtypeStruct((config.rows_per_update, config.row_length), jnp.uint8),)
  optimizer = adamw_cosine(config.learning_rates[0], config.num_steps, weight_decay=0.01)
  return abstract_step(model, answers.packed_loss(model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
