"""RPO: DPO whose likelihood term keeps the policy where the comparisons are.

Comparisons cover a few of the responses to each prompt, and those outside are worse than they look.
A policy that DPO trains on them finds its way outside; the likelihood of the chosen responses, or
stopping early, keeps it inside. All values are by enumeration, without sampling.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.alignment.rpo import problems
from experiments.alignment.rpo.policy import (
  DIVERGENCE,
  DPO,
  GOLD,
  LOSS,
  LOSSES,
  MARGIN,
  MEAN,
  OUTSIDE,
  RISE,
  RPO,
  SFT,
  preference_loss,
  start,
  train_policy,
)
from experiments.alignment.rpo.problems import BANDIT, DIGITS, Part, Problem
from experiments.kit import datasets, plots, sizes
from experiments.kit.sweep import grid
from jaxlab import training
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rpo"
SEEDS = {"laptop": 10}
REFERENCE, BEST = "reference", "best policy at RPO's divergence"
LAST, STOPPED = "last", "validation"  # Which step is taken.
CHOSEN = "validation"  # A beta that validation chooses.


@dataclasses.dataclass(frozen=True)
class Config:
  """The problems, the policy, and the weights that are compared."""

  num_prompts: int = 128  # Prompts of each problem.
  num_responses: int = 24  # Responses to a prompt.
  num_features: int = 24  # Features of a response of the bandit.
  num_covered: int = 6  # Responses to a prompt that its comparisons cover.
  num_comparisons: int = 1000  # To train on.
  num_validation: int = 500  # To stop by and to choose beta on.
  penalty: float = 3.0  # By how much responses outside are worse than their features say.
  num_image_comparisons: int = 800  # To train on, of images.
  width: int = 32  # Hidden units of the policy.
  num_steps: int = 1000  # Updates, each on all comparisons.
  eval_every: int = 20  # Updates between evaluations; divides num_steps.
  learning_rate: float = 3e-3  # Of Adam.
  betas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.3, 1.0)  # Strengths of the reference.
  etas: tuple[float, ...] = (0.0, 0.02, 0.1, 0.3, 1.0)  # Weights of the likelihood; 0 is DPO.
  beta: float = 0.05  # One of betas, of the headline.
  eta: float = 0.1  # One of etas, fixed in advance.
  mean_weight: float = 0.2  # Of the mean form, which beta does not scale.

  def __post_init__(self):
    for value, name in ((self.beta, "betas"), (self.eta, "etas"), (0.0, "etas")):
      if value not in getattr(self, name):
        raise ValueError(f"{name} must hold {value}, got {getattr(self, name)}.")


PRESETS = {
  "smoke": Config(
    num_prompts=8, num_responses=8, num_features=4, num_covered=3, num_comparisons=20,
    num_validation=10, num_image_comparisons=20, width=4, num_steps=4, eval_every=2,
    betas=(0.05, 0.3), etas=(0.0, 0.1),
  ),
  "laptop": Config(),
  # As many comparisons as the paper's smaller set has.
  "paper": Config(
    num_prompts=1024, num_responses=64, num_covered=16, num_comparisons=6750,
    num_image_comparisons=6750, width=1024, num_steps=10_000, eval_every=100,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  sizes.check_divides(config.eval_every, num_steps=config.num_steps)
  sizes.check_at_most(config.num_responses, num_covered=config.num_covered)
  check_at_least(2, num_covered=config.num_covered)
  for beta in config.betas:
    check_range("betas", beta, "(0, inf)")


def run(config: Config, context: Context) -> Results:
  """Trains with every loss on both problems."""
  results = Results()
  for name in (BANDIT, DIGITS):
    draw = functools.partial(problems.draw, config, name)
    drawn = datasets.stack_seeds(draw, context.seed_numbers)
    _measure(config, context, results, name, drawn)
  return results


def _measure(config: Config, context: Context, results: Results, name: str, drawn: Problem):
  """Adds what was measured on one problem; on images at the headline's weights alone."""
  own = {"beta": config.beta, "eta": config.eta}
  pairs = itertools.product(config.betas, config.etas)
  if name == DIGITS:
    pairs = [(config.beta, 0.0), (config.beta, config.eta)]
  settings = {
    RPO: [{"beta": beta, "eta": eta} for beta, eta in pairs],
    MEAN: [own | {"eta": config.mean_weight}],
    SFT: [own],
  }
  trained = {}
  for method, of_method in settings.items():
    evaluate = functools.partial(train_policy, config, objective=LOSSES[method])
    scores = grid(context, f"{name}/{method}", evaluate, drawn, of_method)
    for i, setting in enumerate(of_method):
      paths = {quantity: values[:, i] for quantity, values in scores.items()}
      label = DPO if method == RPO and setting["eta"] == 0 else method
      where = {"problem": name} | ({} if method == SFT else setting)
      results.add({label: _at(paths, -1)}, step=LAST, **where)
      if method == RPO:
        best = np.argmin(paths[LOSS], axis=1)
        results.add({label: _at(paths, best)}, step=STOPPED, **where)
        trained[label, setting["beta"], setting["eta"]] = paths
      if label in (DPO, RPO, SFT) and setting in (own, own | {"eta": 0.0}):
        _add_path(config, results, label, name, paths)
  reference, test = drawn.test.reference, drawn.test
  values = {
    GOLD: np.mean(np.sum(np.exp(reference) * test.gold, -1), -1),
    OUTSIDE: np.mean(np.sum(np.exp(reference) * ~test.supported, -1), -1),
  }
  results.add({REFERENCE: values}, problem=name)
  if name == BANDIT:
    _add_chosen(config, results, trained)
  reached = results.select(DIVERGENCE, method=RPO, problem=name, step=LAST, **own)
  results.add({BEST: {GOLD: problems.best_at(test, reached)}}, problem=name)


def _at(paths, index) -> dict[str, np.ndarray]:
  """The scores of every seed at one evaluation."""
  seeds = np.arange(len(paths[GOLD]))
  return {quantity: values[seeds, index] for quantity, values in paths.items()}


def _add_path(config: Config, results: Results, method: str, name: str, paths) -> None:
  """Adds what happens along a training, at every second evaluation, and where gold is highest."""
  for i in range(0, paths[GOLD].shape[1], 2):
    along = {f"{q} along": paths[q][:, i] for q in (GOLD, OUTSIDE, DIVERGENCE)}
    results.add({method: along}, problem=name, step=(i + 1) * config.eval_every)
  peak, last = _at(paths, np.argmax(paths[GOLD], axis=1)), _at(paths, -1)
  lost = {"gold lost since its highest": peak[GOLD] - last[GOLD]}
  results.add({method: lost | {"margin gained since": last[MARGIN] - peak[MARGIN]}}, problem=name)


def _add_chosen(config: Config, results: Results, paths) -> None:
  """Adds DPO and RPO at the beta, and perhaps the step, of the least validation loss."""
  for label, eta in ((DPO, 0.0), (RPO, config.eta)):
    of_betas = [paths[label, beta, eta] for beta in config.betas]
    stacked = {q: np.stack([path[q] for path in of_betas], axis=1) for q in of_betas[0]}
    for step in (LAST, STOPPED):
      tail = {q: v[:, :, -1:] if step == LAST else v for q, v in stacked.items()}
      flat = {q: v.reshape(len(v), -1) for q, v in tail.items()}
      best = np.argmin(flat[LOSS], axis=1)
      chosen = np.array(config.betas)[best // tail[LOSS].shape[2]]
      values = _at(flat, best) | {"chosen beta": chosen}
      results.add({label: values}, problem=BANDIT, step=step, beta=CHOSEN, eta=eta)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def value(method: str, quantity: str = GOLD, problem: str = BANDIT, **where):
    if method in (DPO, RPO):
      eta = 0.0 if method == DPO else config.eta
      where = {"beta": config.beta, "eta": eta, "step": LAST} | where
    return results.select(quantity, method=method, problem=problem, **where)

  along = {"method": DPO, "problem": BANDIT}
  lost = results.select("gold lost since its highest", **along)
  grown = results.select("margin gained since", **along)
  requires = (
    precondition("DPO's gold value falls by .3 from its highest", lost, at_least=0.3),
    precondition("while its margin on training comparisons grows", grown, at_least=0.1),
    precondition("DPO ends with a mass of .3 outside", value(DPO, OUTSIDE), at_least=0.3),
    precondition(
      "the best policy at RPO's divergence is .2 better",
      results.select(GOLD, method=BEST, problem=BANDIT) - value(RPO),
      at_least=0.2,
    ),
  )
  chosen = {"beta": CHOSEN, "step": STOPPED}
  return [
    compare(
      f"after the last step RPO's gold value is .15 sd above DPO's (beta {config.beta}, eta "
      f"{config.eta})",
      value(RPO),
      value(DPO),
      margin=0.15,
      headline=True,
      requires=requires,
    ),
    compare(
      "and above that of DPO stopped at its least validation loss, at the same beta",
      value(RPO),
      value(DPO, step=STOPPED),
      requires=requires,
    ),
    compare(
      "the same on images of digits",
      value(RPO, problem=DIGITS),
      value(DPO, problem=DIGITS, step=STOPPED),
      requires=(
        precondition(
          "digits: DPO's gold value falls by .1 from its highest",
          results.select("gold lost since its highest", method=DPO, problem=DIGITS),
          at_least=0.1,
        ),
      ),
    ),
    compare(
      "the chosen responses' log-probability ends 5 nats higher under RPO than under DPO",
      value(RPO, RISE),
      value(DPO, RISE),
      margin=5.0,
      requires=requires,
      paper="it falls under DPO, and less or not under RPO",
    ),
    compare(
      "RPO's gold value is above that of the likelihood of chosen responses alone",
      value(RPO),
      value(SFT, step=LAST),
      requires=requires,
    ),
    compare(
      "with beta and step of both chosen on validation, RPO is at most .05 sd below DPO",
      value(RPO, **chosen),
      value(DPO, **chosen),
      margin=-0.05,
      requires=requires[:3],
    ),
  ]


def figure(results: Results):
  """Gold value against divergence along training, and the mass outside."""
  figure, axes = plots.panels(3)
  sides = f"{DIVERGENCE} along", f"{GOLD} along"
  for ax, problem in zip(axes, (BANDIT, DIGITS)):
    plots.paths(ax, results, *sides, along="step", problem=problem)
    reference = results.select(GOLD, method=REFERENCE, problem=problem).mean()
    ax.axhline(reference, color="gray", linewidth=0.8, linestyle=":", label=REFERENCE)
    ax.set(title=problem, xlabel=DIVERGENCE, ylabel=GOLD)
  plots.curves(axes[2], results, f"{OUTSIDE} along", x="step", problem=BANDIT)
  axes[2].set(title=BANDIT, xlabel="update", ylabel=OUTSIDE, ylim=(0, 1))
  axes[0].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One update on all comparisons of the bandit, for a dry run."""
  size = config.num_prompts, config.num_responses
  flat = jnp.zeros(size)
  comparisons = jax.ShapeDtypeStruct((config.num_comparisons, 3), jnp.int32)
  part = Part(jnp.zeros((*size, config.num_features)), flat, flat, flat, flat, comparisons)
  optimizer = optax.adam(config.learning_rate)

  def init(key):
    return training.init_state(key, start(config, key, config.num_features).params, optimizer)

  loss = preference_loss(config, LOSSES[RPO], part, config.beta, config.eta)
  update = training.build_update(loss, optimizer, mesh=mesh)
  return update, jax.eval_shape(init, jax.random.key(0)), comparisons


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
