"""Does a model that predicts pairs of answers know what it does not know?

A model learns the joint distribution of two answers to the same question. Where it knows the
distribution of answers, the first one says nothing about the second; how much the second prediction
moves is the variance of the true probabilities among questions that it cannot tell apart. Digits
with noisy and with hidden labels, and parities that a network does not learn, show whether that
variance is the squared error of the probabilities. All baselines learn from the same two answers.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.bayes.predicting_pairs import digits, parity
from experiments.bayes.predicting_pairs.digits import COINS, DROPOUT, ENSEMBLE, HIDDEN, PAIRS, PLAIN
from experiments.bayes.predicting_pairs.parity import COIN, HARD, KINDS
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, each_seed, run_seeds
from jaxlab import data
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "predicting_pairs"
SEEDS = {"laptop": 6}
DIGITS, PARITY = "digits", "parity"
BASELINES = PLAIN, ENSEMBLE, DROPOUT


@dataclasses.dataclass(frozen=True)
class Config:
  """The images, the questions, and the networks."""

  dataset: str = "digits"  # Of the images; or cifar10.
  num_train: int = 1197  # Training images.
  num_calibration: int = 100  # Images of pairs that recalibrate the ensemble's variance.
  num_test: int = 500  # Test images.
  num_pairs: int = 400  # Draws of the calibration images.
  num_draws: int = 20_000  # Draws of the test images.
  contrast: float = 1.0  # How much the cue of a 9 shows.
  pixel_noise: float = 0.1  # Standard deviation of the noise on pixels.
  widths: tuple[int, ...] = (128, 128)  # Of the dense layers.
  num_steps: int = 3000  # Updates on images.
  draws_per_update: int = 256  # Of images, or questions; fresh ones every time.
  learning_rate: float = 1e-3  # Of Adam.
  num_components: int = 4  # Of the mixture.
  num_members: int = 5  # Of an ensemble.
  dropout: float = 0.2  # Share of the hidden units that is dropped.
  num_passes: int = 32  # With dropout.
  beta: float = 0.1  # Allowed share of intervals that miss.
  accepted: float = 0.8  # Share of the answers that is given.
  num_bits: int = 24  # Bits of a question.
  orders: tuple[int, ...] = (1, 2, 3, 4, 6, 12)  # Bits of a parity, increasing; a claim's is last.
  parity_steps: int = 2000  # Updates on questions.
  num_questions: int = 5000  # Test questions.
  ladder_seeds: int = 2  # Seeds of the lower orders, and of ensembles on questions.


PRESETS = {
  "smoke": Config(
    num_train=40, num_calibration=10, num_test=40, num_pairs=12, num_draws=80, widths=(8,),
    num_steps=2, draws_per_update=8, num_members=2, num_passes=2, num_bits=4, orders=(1, 3),
    parity_steps=2, num_questions=40,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10", num_train=49_000, num_calibration=1000, num_test=10_000, num_pairs=4000,
    num_draws=100_000, pixel_noise=0.02, widths=(512,), num_steps=100_000, num_components=16,
    num_members=8, parity_steps=20_000, num_questions=50_000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("dropout", "beta", "accepted"))
  check_range("beta", config.beta, "(0, 1]")
  check_range("dropout", config.dropout, "[0, 1)")
  check_at_least(2, num_members=config.num_members, num_passes=config.num_passes)
  # Every group of digits and every kind of question is drawn.
  check_at_least(40, num_draws=config.num_draws, num_questions=config.num_questions)
  sizes.check_known(("digits", "cifar10"), dataset=(config.dataset,))
  counts = config.num_train, config.num_calibration, config.num_test
  datasets.describe(config.dataset).check_splits(*counts)
  if list(config.orders) != sorted(set(config.orders)):
    raise ValueError(f"orders must increase, got {config.orders}.")
  # The last bit is the answer to easy questions.
  sizes.check_at_most(config.num_bits - 1, orders=config.orders[-1])


def run(config: Config, context: Context) -> Results:
  """All rows on digits, then pairs and ensembles on parities of growing order."""
  results = Results()
  run_digits(config, context, results)
  run_parity(config, context, results)
  return results


def run_digits(config: Config, context: Context, results: Results) -> None:
  """Trains every row, and evaluates all with one program."""
  parts = datasets.stack_seeds(functools.partial(digits.draw, config), context.seed_numbers)
  draw = functools.partial(digits.draw_tests, config)
  test, held = each_seed(context, f"{DIGITS}/draws", draw, parts)
  predictions = {}
  for row in digits.TRAINED:
    fit = functools.partial(digits.fit, config, row)
    found = run_seeds(context, f"{DIGITS}/{row}", fit, arguments=(parts.train, test, held))
    predictions[row] = digits.Prediction(*found["prediction"])
    if row == ENSEMBLE:
      predictions[PLAIN] = digits.Prediction(*found["plain"])
      calibration = found["calibration"]
      predictions[digits.ISOTONIC] = by_seed(digits.recalibrated, predictions[row], calibration)
  test = data.AmbiguousBatch(*test)
  predictions[digits.ORACLE] = by_seed(functools.partial(digits.exact, config), test)
  score = functools.partial(digits.score, config)
  for row, prediction in predictions.items():
    scores = each_seed(context, f"{DIGITS}/scores/{row}", score, test, prediction)
    groups = scores.pop("by group")
    results.add({row: scores}, problem=DIGITS)
    for i, group in enumerate(digits.GROUPS):
      of_group = {quantity: values[:, i] for quantity, values in groups.items()}
      results.add({row: of_group}, problem=DIGITS, group=group)


def run_parity(config: Config, context: Context, results: Results) -> None:
  """Pairs on the last order in all seeds; the rest, which the figure shows, in a few."""
  few, last = min(config.ladder_seeds, context.seeds), config.orders[-1]
  for row in (parity.PAIRS, parity.ENSEMBLE):
    measure = functools.partial(parity.measure, config, row)
    for order in config.orders:
      num_seeds = context.seeds if (row, order) == (PAIRS, last) else few
      options = {"num_seeds": num_seeds, "arguments": np.full(num_seeds, order)}
      found = run_seeds(context, f"{PARITY}/{row}/{order}", measure, **options)
      for i, kind in enumerate(KINDS):
        of_kind = {quantity: values[:, i] for quantity, values in found.items()}
        results.add({row: of_kind}, problem=PARITY, order=order, kind=kind)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity, **where):
    return results.select(quantity, method=method, problem=DIGITS, **where)

  def asked(kind, quantity="variance"):
    where = {"method": PAIRS, "problem": PARITY, "order": config.orders[-1], "kind": kind}
    return results.select(quantity, **where)

  best = np.min([of(row, "ECE2") for row in BASELINES], axis=0)
  noisy, hidden = (of(PLAIN, "entropy", group=group) for group in (COINS, HIDDEN))
  able = (
    precondition("the plain network is right on 93% of the even digits",
                 of(PLAIN, "even digits right"), at_least=0.93),
    precondition("its entropies of noisy and of hidden labels are within .1 nats",
                 np.abs(noisy - hidden), at_most=0.1),
    precondition("and both are .55 nats or more", np.minimum(noisy, hidden), at_least=0.55),
    precondition("the pair model's first-order calibration error is .02 at most",
                 of(PAIRS, "ECE1"), at_most=0.02),
    precondition("and its NLL is within .05 nats of the plain network's",
                 np.abs(of(PAIRS, "NLL") - of(PLAIN, "NLL")), at_most=0.05),
  )  # fmt: skip
  fails = precondition("the ensemble's variance on hidden labels is .1 at most",
                       of(ENSEMBLE, "variance", group=HIDDEN), at_most=0.1)  # fmt: skip
  unlearned = (
    precondition("the parity is not learned: a squared error of .2 or more",
                 asked(HARD, "squared error"), at_least=0.2),
    precondition("but single bits are: .01 at most", asked(parity.EASY, "squared error"),
                 at_most=0.01),
  )  # fmt: skip
  share = f"{config.accepted:.0%} of the answers given"
  return [
    compare("second-order calibration error: half of the best of plain network, ensemble and "
            "dropout, in logarithms", np.log(of(PAIRS, "ECE2")), np.log(best), better="lower",
            margin=np.log(2), headline=True, requires=(*able, fails),
            paper="the lowest of all methods"),
    compare("the variance of hidden labels is .30 above that of noisy ones",
            of(PAIRS, "variance", group=HIDDEN), of(PAIRS, "variance", group=COINS), margin=0.3,
            requires=able),
    compare(f"parity of {config.orders[-1]} bits: the variance is .15 above that of coins",
            asked(HARD), asked(COIN), margin=0.15, requires=unlearned),
    compare(f"{share}: 4 points fewer hallucinations by confidence than by probability",
            of(PAIRS, "hallucinated, by confidence"), of(PAIRS, "hallucinated, by probability"),
            better="lower", margin=0.04, requires=able,
            paper="the fewest hallucinations at every acceptance rate"),
    compare(f"intervals that may miss a share of {config.beta:g}: 20 points more coverage of "
            "candidate answers than the ensemble's", of(PAIRS, "coverage"),
            of(ENSEMBLE, "coverage"), margin=0.2, requires=(*able, fails),
            paper="a bound that holds for any calibrated pair model"),
  ]  # fmt: skip


def figure(results: Results):
  """Variance by group of digits; variance of parities against their squared error."""
  figure, (left, right) = plots.panels(2, width=5.5, height=4.2)
  shown = PAIRS, ENSEMBLE, DROPOUT, digits.ORACLE
  of_rows = Results(record for record in results if record.method in shown)
  plots.intervals(left, of_rows, "variance", by="group", problem=DIGITS)
  left.set(xlabel="digits", ylabel="variance, summed over answers")
  left.legend(fontsize=7)
  for color, method in zip(("tab:blue", "tab:orange"), (PAIRS, ENSEMBLE)):
    where = {"method": method, "problem": PARITY, "kind": HARD}
    orders = results.distinct("order", **where)
    points = np.array(
      [
        [
          results.select(name, order=order, **where).mean()
          for name in ("squared error", "variance")
        ]
        for order in orders
      ]
    )
    right.plot(*points.T, "o", color=color, label=method)
    near = {}  # Orders whose points would cover each other share a label.
    for order, point in zip(orders, points):
      near.setdefault(tuple(np.round(point, 2)), []).append(str(order))
    for point, names in near.items():
      side = -1 if point[0] > 0.1 else 1
      place = {"xytext": (7 * side, 5 if method == PAIRS else -5), "textcoords": "offset points"}
      right.annotate(
        ", ".join(names),
        point,
        fontsize=7,
        va="center",
        ha="right" if side < 0 else "left",
        **place,
      )
  right.axline((0, 0), slope=1, color="gray", linestyle="--", linewidth=1)
  right.set(xlabel="squared error of the probability", ylabel="variance", title="parity of k bits")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the pair model, for a dry run."""
  rows, pixels = config.draws_per_update, int(np.prod(datasets.describe(config.dataset).shape))
  labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
  inputs, probs = (
    jax.ShapeDtypeStruct((rows, width), jnp.float32) for width in (pixels + 1, digits.NUM_CLASSES)
  )
  batch = data.AmbiguousBatch(inputs, labels, labels, probs, labels)
  module, optimizer = digits.network(config, PAIRS), optax.adam(config.learning_rate)
  return abstract_step(module, digits.loss_of(config, PAIRS), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
