"""Series with missing values: does a classifier gain by the imputations of a deep generative model?

Observed values are dropped on their way to the classifier, or it would do without imputations.
Gaussian series have a known exact answer, digits values that are missing where they are large.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import incomplete, plots, sizes, train
from experiments.kit.datasets import stack_seeds
from experiments.kit.incomplete import COMPLETE, GIVEN, SHOWN, ZERO
from experiments.kit.sweep import best_of, by_seed, choose, each_seed, first_seeds, grid
from experiments.series.supnotmiwae import generative, networks, problems
from experiments.series.supnotmiwae.generative import FULL, HIGH, UNDROPPED
from experiments.series.supnotmiwae.networks import ACCURACY, MAE, NLL, VALIDATION
from experiments.series.supnotmiwae.problems import AWAY, GAUSS, RANDOM
from jaxlab import training
from jaxlab._checks import check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "supnotmiwae"
EXACT, BEST = "exact law", "best simple imputation, dropout"


@dataclasses.dataclass(frozen=True)
class Config:
  """The problems, the networks, and their training."""

  length: int = 12  # Steps of Gaussian series.
  num_channels: int = 8  # Of these.
  amplitude: float = 0.8  # Of the waves that tell their classes.
  lengthscale: float = 5.0  # Of their Gaussian processes, in steps.
  noise: float = 0.3  # Deviation in every channel.
  gauss_observed: float = 0.15  # Share of their values that are observed.
  gauss_sizes: tuple[int, int, int] = (2000, 500, 1500)  # Training, validation and test series.
  digit_sizes: tuple[int, int, int] = (900, 300, 597)  # The same of digits.
  digit_classes: int = 10  # The first of them.
  digit_observed: float = 0.3  # Share of their values that are observed.
  slope: float = 1.5  # Of the log-odds of being missing, in the value.
  width: int = 16  # Of all networks.
  num_heads: int = 2  # Attention heads.
  num_layers: int = 1  # Blocks of encoder and decoder.
  classifier_layers: int = 2  # Blocks of classifiers.
  latent_dims: tuple[int, int] = (4, 8)  # Of the models of Gaussian series and of digits.
  jitter: float = 0.1  # Variance of independent noise in their prior.
  num_latents: int = 5  # Latent draws K in training, with one completion each.
  eval_draws: tuple[int, int] = (20, 2)  # Latent draws and completions of each for predictions.
  bias: float = 0.05  # Of the decay, where training starts.
  num_imputations: int = 20  # Draws from a Gaussian law.
  em_steps: int = 25  # Of expectation maximization.
  strengths: tuple[float, ...] = (16.0, 64.0)  # Of the prior of this law, in series.
  learning_rates: tuple[float, ...] = (2e-3, 5e-3)  # Of all networks.
  dropout_rates: tuple[float, ...] = (0.2, 0.4)  # Of observed values, beside none.
  batch_size: int = 32  # Series of an update.
  num_steps: int = 2000  # Updates.
  pretraining_steps: int = 1000  # Of deep models before that, in which the class has no weight.
  eval_every: int = 500  # Updates between evaluations, of which the best counts.
  clip: float = 10.0  # Largest norm of a gradient.
  other_seeds: int = 3  # Of digits that are missing at random, which no claim reads.


PRESETS = {
  "smoke": Config(
    length=8, gauss_sizes=(40, 30, 12), digit_sizes=(40, 30, 12), digit_classes=4, width=4,
    num_heads=1, classifier_layers=1, latent_dims=(2, 2), num_latents=2, eval_draws=(3, 2),
    num_imputations=2, em_steps=1, strengths=(16.0,), learning_rates=(2e-3,), dropout_rates=(0.4,),
    batch_size=8, num_steps=2, pretraining_steps=1, eval_every=1,
  ),
  "laptop": Config(),
  "paper": Config(
    length=48, num_channels=37, gauss_sizes=(4000, 1000, 4000), width=128, num_layers=2,
    classifier_layers=4, latent_dims=(32, 32), jitter=1e-3, num_latents=10, eval_draws=(20, 30),
    learning_rates=(3e-4, 1e-3, 3e-3), dropout_rates=(0.3, 0.4), batch_size=128, num_steps=10_000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "gauss_observed", "digit_observed", "dropout_rates"
  sizes.check_sizes(config, shares=shares)
  for name in (*shares, "lengthscale", "noise", "strengths", "learning_rates", "clip"):
    for value in np.ravel(getattr(config, name)):
      check_range(name, float(value), "(0, 1)" if name in shares else "(0, inf)")
  *kept, last = config.digit_sizes
  sizes.check_at_most(min(kept[0], config.gauss_sizes[0]), batch_size=config.batch_size)
  sizes.check_at_most(10, digit_classes=config.digit_classes)
  k = config.digit_classes  # With unequally many rows.
  sizes.check_at_most(1200 if k == 10 else 118 * k, digit_sizes=sum(kept))
  sizes.check_at_most(597 if k == 10 else 58 * k, digit_sizes=last)
  sizes.check_divides(config.num_heads, width=config.width)
  steps = {name: getattr(config, name) for name in ("num_steps", "pretraining_steps")}
  sizes.check_divides(config.eval_every, **steps)


def run(config: Config, context: Context) -> Results:
  """Evaluates simple imputations, Gaussian ones and the deep model on all problems."""
  results = Results()
  for name in problems.PROBLEMS:
    rates = config.dropout_rates[-1 if name == RANDOM else 0 :]  # The control is tuned less.
    part = first_seeds(context, config.other_seeds) if name == RANDOM else context
    drawn = stack_seeds(functools.partial(problems.draw, config, name), part.seed_numbers)
    if name == GAUSS:
      exact = by_seed(incomplete.exact_scores, drawn.law, drawn.test)
      results.add({EXACT: exact}, problem=name)
    drawn = drawn._replace(law=None)
    run_classifiers(config, part, results, name, drawn, rates)
    run_models(config, part, results, name, drawn, rates)
  return results


def run_classifiers(config, context: Context, results: Results, name, drawn, rates) -> None:
  """Classifiers of simply completed series, and of draws from a fitted Gaussian law."""
  impute, seeds = functools.partial(networks.impute, config), np.array(context.seed_numbers)
  completed = context.cached(f"{name}/law", by_seed, impute, drawn, seeds)
  evaluate = networks.evaluation(config, problems.shape_of(config, name)[2])
  measured, least = {}, {"select": VALIDATION, "better": "lower"}
  for method in networks.METHODS if name != RANDOM else networks.CONTROL:
    given = completed[method if method in completed else networks.EXPECTED]
    place = SHOWN.index(method if method in SHOWN else GIVEN)
    dropped = {f"{method}, dropout": rates} if method in networks.DROPPED else {}
    for row, dropouts in ({method: (0.0,)} | dropped).items():
      pairs = itertools.product(config.learning_rates, dropouts)
      tried = [{"learning_rate": x, "dropout": y, "method": place} for x, y in pairs]
      scores = grid(context, f"{name}/{row}", evaluate, (drawn, given), tried)
      measured[row] = choose(scores, tried, **least)
  measured[BEST] = best_of(measured, [f"{method}, dropout" for method in networks.FILLS], **least)
  results.add(measured, problem=name)


def run_models(config, context: Context, results: Results, name, drawn, rates) -> None:
  """The deep model at all settings, and predictions of the chosen ones."""
  shape = problems.shape_of(config, name)
  rows = generative.settings(config, rates, fadeless=name == GAUSS)
  every = [dict(x) for x in dict.fromkeys(tuple(s.items()) for x in rows.values() for s in x)]
  learned = grid(context, f"{name}/models", _program(generative.learn, config, shape), drawn, every)
  chosen = {}
  for method, tried in rows.items():
    places = [every.index(setting) for setting in tried]
    part = {quantity: values[:, places] for quantity, values in learned.items()}
    chosen[method] = choose(part, tried, select=VALIDATION, better="lower")
  vectors = np.stack([found.pop("params") for found in chosen.values()], axis=1)
  score = _program(generative.score, config, shape)
  measured = each_seed(context, f"{name}/scores", score, drawn, vectors)
  examples = measured.pop("example")
  for i, (method, found) in enumerate(chosen.items()):
    found |= {quantity: values[:, i] for quantity, values in measured.items()}
    results.add({method: found}, problem=name)
    results.extras[f"{name}: {method}"] = examples[0, i]
  results.extras |= {f"{name}: {x}": getattr(drawn.test, x)[0, 0] for x in ("values", "mask")}


_program = functools.cache(functools.partial)  # Problems of one shape share a program.


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity=NLL, name=GAUSS):
    return results.select(quantity, method=method, problem=name)

  def draws_count(name, method=FULL):
    size = of(method, generative.SIZE, name)
    return precondition(f"{name}: two effective draws or more", size, at_least=2)

  able = (
    precondition("the exact law is right on 80 to 95%", of(EXACT, ACCURACY), at_least=0.8,
                 at_most=0.95),
    precondition("zeros are .3 nats behind it", of(ZERO) - of(EXACT), at_least=0.3),
    precondition("deep imputations err at most .8 times as much as zeros",
                 of(FULL, MAE) / of(ZERO, MAE), at_most=0.8),
    draws_count(GAUSS),
  )  # fmt: skip
  alone, relied = (of(method, generative.RELIANCE) for method in (UNDROPPED, HIGH))
  idle = precondition("without dropout, others cost at most .02 nats", alone, at_most=0.02)
  lack = (
    precondition("95% of complete digits are right", of(COMPLETE, ACCURACY, AWAY), at_least=0.95),
    precondition("with zeros, 60 to 90% are", of(ZERO, ACCURACY, AWAY), at_least=0.6, at_most=0.9),
    draws_count(AWAY),
  )  # fmt: skip
  lower, most = functools.partial(compare, better="lower"), config.dropout_rates[-1]
  return [
    lower("deep imputation is .05 nats better than the best simple one with the same dropout",
          of(FULL), of(BEST), margin=0.05, headline=True, requires=able,
          paper="best AUROC on PhysioNet, MIMIC-III and human activity"),
    compare(f"with dropout {most:g}, imputations of other series cost .05 nats more than without "
            "dropout", relied, alone, margin=0.05, requires=(idle, draws_count(GAUSS, HIGH)),
            paper="without dropout the classifier ignores the imputations"),
    lower(f"with dropout {most:g}, imputations err 10% less", np.log(of(HIGH, MAE)),
          np.log(of(UNDROPPED, MAE)), margin=0.1, requires=(idle, draws_count(GAUSS, HIGH))),
    lower("an average over completions is .02 nats better than the mean completion", of(FULL),
          of(FULL, generative.ONCE), margin=0.02, requires=able),
    lower(f"{AWAY}: deep imputation is .02 nats better than the best simple one with dropout",
          of(FULL, name=AWAY), of(BEST, name=AWAY), margin=0.02, requires=lack),
  ]  # fmt: skip


def figure(results: Results):
  """NLL of all rows in Gaussian series; one test series of the first seed, and its completions."""
  figure, (left, right) = plots.panels(2, width=6.0, height=4.6)
  plots.dots(left, results, NLL, problem=GAUSS)
  left.axvline(results.select(NLL, method=EXACT, problem=GAUSS).mean(), color="gray", ls="--")
  left.tick_params("y", labelsize=7)
  values, mask = (results.extras[f"{GAUSS}: {part}"] for part in ("values", "mask"))
  channel = int(np.argmax(mask.sum(axis=0)))
  steps, known = np.arange(len(values)), mask[:, channel]
  for method, color in ((UNDROPPED, "tab:orange"), (HIGH, "tab:blue")):
    drawn = results.extras[f"{GAUSS}: {method}"][:, :, channel]
    lines = right.plot(steps, drawn.T, color=color, alpha=0.3, linewidth=0.8)
    lines[0].set_label(method)
  right.plot(steps, values[:, channel], color="black", label="truth")
  right.plot(steps[known], values[known, channel], "ko", label="observed")
  right.set(xlabel="step", title=f"completions of a test series, channel {channel}")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the deep model on Gaussian series, for a dry run."""
  model = generative.Model(config, problems.shape_of(config, GAUSS))
  optimizer = networks.optimizer(config, config.learning_rates[0], config.num_steps)
  losses = functools.partial(model.losses, dropout=config.dropout_rates[-1])
  init = lambda key: training.init_state(key, model.init(key, config.bias), optimizer)  # noqa: E731
  shape = config.batch_size, config.length, config.num_channels
  parts = (shape, np.float32), (shape, bool), (shape[:1], np.int32), (shape[:1], np.float32)
  *parts, weights = (jax.ShapeDtypeStruct(*part) for part in parts)
  batch = incomplete.Rows(*parts), weights
  update = training.build_update(train.values_loss(losses), optimizer, mesh=mesh)
  return update, jax.eval_shape(init, jax.random.key(0)), batch


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
