"""Training for the N samples that a problem will get: pass@N stops falling.

Cross-entropy makes a model ever more confident of one answer. Sampled N times it then gives the
same wrong answer N times, and pass@N falls while pass@1 still rises. The coverage loss is
cross-entropy times a factor that vanishes for examples that N samples solve. Three forms of it: the
probability of the answer (products), of a whole proof, and of each of its steps (chains).
"""

import dataclasses
import itertools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.pass_at_n import chains, products
from experiments.alignment.pass_at_n.products import CHOSEN, COVERAGE, CROSS_ENTROPY, PLAIN, TUNED
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.train import adamw_cosine
from jaxlab import data
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "pass_at_n"
SEEDS = {"laptop": 8, "search": 2}


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, the problems, and the numbers of samples to train and to test for."""

  decoder: tuple[int, ...] = (64, 2)  # Width and blocks of the decoder of products.
  num_heads: int = 4  # Attention heads of decoders.
  learning_rate: float = 6e-3  # AdamW with a cosine to 0.
  batch_size: int = 128  # Products per update.
  num_digits: int = 2  # Digits of the factors of a product.
  num_train: int = 2500  # Products to learn from.
  num_validation: int = 500  # Others, to choose epoch, regularizer and temperature on.
  num_test: int = 5000  # And others to test on.
  num_epochs: int = 60  # Over the products, for every N.
  eval_epochs: int = 5  # Epochs between evaluations; divides num_epochs.
  samples: tuple[int, ...] = (1, 16, 256)  # N to train and to test for; 1 is one.
  headline_samples: int = 256  # N of the headline, one of them.
  chosen_epochs: int = 60  # Length of the cosine for the headline, by the search.
  # The two best in the search, the same ones for both losses; a seed's validation chooses.
  chosen_regularizers: tuple[str, ...] = ("dropout", "weight_decay")
  search_epochs: tuple[int, ...] = ()  # Lengths to search for these over; none measures.
  label_smoothing: float = 0.1  # A regularizer that the search tries.
  dropout: float = 0.1  # Another one.
  weight_decay: float = 1.0  # Another one; 0.01 elsewhere.
  temperatures: tuple[float, ...] = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0)  # Likewise.
  modulus: int = 11  # Of the chains.
  num_terms: int = 4  # Numbers in a chain.
  misconceptions: float = 0.3  # Share of steps that training texts get wrong, 7 times in 10.
  chain_decoder: tuple[int, ...] = (48, 2)  # Width and blocks of the decoder of chains.
  chain_learning_rate: float = 3e-3  # Likewise AdamW.
  chain_batch: int = 64  # Chains per update.
  num_chains: int = 2500  # Chains to learn from, again and again.
  num_chain_validation: int = 500  # Others to choose update and temperature on.
  num_chain_test: int = 1500  # And others to test on.
  chain_updates: int = 2000  # Updates of a training on chains.
  chain_eval_updates: int = 200  # Updates between evaluations; divides chain_updates.
  chain_samples: int = 4  # N of pass@N on chains, and to train for.
  chain_temperatures: tuple[float, ...] = (0.7, 1.0, 1.5, 2.0)  # To choose from.
  step_samples: tuple[int, ...] = (4, 16)  # Tries of a step to train for, beside cross-entropy.
  tries: int = 4  # Tries of a step in a search.

  def __post_init__(self):
    if not {1, self.headline_samples} <= set(self.samples):
      raise ValueError(
        f"samples must hold 1 and {self.headline_samples} (headline_samples), got {self.samples}."
      )


PRESETS = {
  "smoke": Config(
    decoder=(8, 1), num_heads=2, batch_size=8, num_digits=1, num_train=16, num_validation=6,
    num_test=6, num_epochs=2, eval_epochs=1, samples=(1, 4), headline_samples=4,
    chosen_epochs=1, chosen_regularizers=("dropout",), temperatures=(1.0, 2.0), modulus=3,
    num_terms=2, chain_decoder=(8, 1), chain_batch=4, num_chains=8, num_chain_validation=4,
    num_chain_test=4, chain_updates=2, chain_eval_updates=1, chain_samples=4,
    chain_temperatures=(1.0,), step_samples=(4,), tries=2,
  ),
  "laptop": Config(),
  "search": Config(search_epochs=(5, 8, 10, 15, 20, 30, 60)),
  "paper": Config(
    decoder=(768, 12), num_heads=12, learning_rate=3e-4, num_digits=3, num_train=200_000,
    chain_learning_rate=3e-4, chain_decoder=(768, 12), num_chains=12_000, chain_updates=20_000,
    num_terms=8,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "label_smoothing", "dropout", "misconceptions"
  sizes.check_sizes(config, empty=("search_epochs",), shares=shares)
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  sizes.check_at_most(config.num_chains, chain_batch=config.chain_batch)
  sizes.check_divides(config.eval_epochs, num_epochs=config.num_epochs)
  sizes.check_divides(config.chain_eval_updates, chain_updates=config.chain_updates)
  widths = {"decoder": config.decoder[0], "chain_decoder": config.chain_decoder[0]}
  sizes.check_divides(config.num_heads, **widths)
  sizes.check_known(tuple(products.recipes(config)), chosen_regularizers=config.chosen_regularizers)


def run(config: Config, context: Context) -> Results:
  """Searches for the recipes of both losses, or measures with those chosen."""
  results = Results()
  if config.search_epochs:
    products.search(config, context, results)
  else:
    products.measure(config, context, results)
    chains.measure(config, context, results)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements; a search has none."""
  if config.search_epochs:
    return []
  num = config.headline_samples

  def passes(trained_for, tested_at=num, chosen="nothing"):
    where = {"train_samples": trained_for, "test_samples": tested_at, "chosen": chosen}
    return results.select("pass@N", **where)

  def met(what, values):
    return precondition(f"{what} is 20 to 95%", values, at_least=20, at_most=95)

  ours, baseline = (
    results.select(TUNED, method=m, regularizer=CHOSEN) for m in (COVERAGE, CROSS_ENTROPY)
  )
  stopped, final = passes(1, chosen="epoch"), passes(1)
  text = f"cross-entropy's pass@{num} falls by 5 points from its best epoch to the end"
  falls = precondition(text, stopped - final, at_least=5)
  requires = met(f"cross-entropy's pass@{num}", baseline), falls
  confidence = [results.select("overconfidence", train_samples=n) for n in (num, 1)]
  most = config.chain_samples
  proofs = [
    results.select(chains.PROOFS, method=m, test_samples=most) for m in (COVERAGE, CROSS_ENTROPY)
  ]
  tries = config.tries * (1 + len(config.step_samples))
  union, of_runs, alone = (
    results.select(chains.SOLVED, method=m, tries=tries)
    for m in (chains.UNION_OF_N, chains.UNION_OF_RUNS, CROSS_ENTROPY)
  )
  statements = [
    compare(
      f"training for N = {num} raises pass@{num} over cross-entropy's; length, regularizer and "
      "temperature of both chosen by equal searches",
      ours, baseline, margin=1.0, headline=True, requires=requires,
    ),
    compare(
      f"while cross-entropy's pass@{num} falls, its pass@1 rises by half a point",
      passes(1, 1), passes(1, 1, "epoch"), margin=0.5, requires=(falls,),
      paper="MATH, four epochs: pass@1 4.4 to 7.4, pass@256 65.2 to 51",
    ),
    compare(
      f"training for N = {num} lowers the overconfidence of greedy answers by 5 points",
      *confidence, better="lower", margin=5.0, requires=(falls,),
    ),
    compare(
      f"chains: training for N = {most} raises pass@{most} of proofs by a point over "
      "cross-entropy's; update and temperature of both chosen on validation",
      *proofs, margin=1.0, requires=(met(f"cross-entropy's pass@{most} of proofs", proofs[1]),),
    ),
    compare(
      "steps: trainings for several N together solve 1 point more than as many runs of "
      "cross-entropy, and than one of them with as many tries",
      union, np.maximum(of_runs, alone), margin=1.0,
      requires=(met("what runs of cross-entropy solve", of_runs),),
      paper="Mathlib 55.6 to 62.2, MiniF2F 37.4 to 43.6, against one run of cross-entropy",
    ),
  ]  # fmt: skip
  pairs = itertools.product(config.samples, repeat=2)
  if far := [(m, n) for m, n in pairs if m > 1 and max(m, n) > 4 * min(m, n)]:
    near, away = ([passes(n if at else m, n) for m, n in far] for at in (True, False))
    text = "pass@N is 3 points higher trained for N than for 1 < N' < N / 4 or N' > 4 N, a mean"
    statements.append(compare(text, np.mean(near, axis=0), np.mean(away, axis=0), margin=3.0))
  return statements


def figure(results: Results):
  """Over training, for pairs of N, with both recipes; of a search what is not regularized."""
  figure, axes = plots.panels(3)
  if not results.distinct("regularizer"):
    for ax, method in zip(axes, (CROSS_ENTROPY, COVERAGE)):
      where = {"method": method, **PLAIN}
      plots.curves(ax, results, TUNED, x="temperature", color="epochs", **where)
    return figure
  (num,) = results.distinct("test_samples", quantity=TUNED)
  options = {"quantity": "pass@N by epoch", "x": "epoch", "color": "train_samples"}
  plots.curves(axes[0], results, **options, test_samples=num)
  axes[0].set(ylabel=f"pass@{num} (%)", title="over training", ylim=(0, None))
  axes[0].legend(title="trained for N", fontsize=7)
  sides = {"rows": "train_samples", "columns": "test_samples"}
  plots.matrix(axes[1], results, "pass@N", **sides, chosen="nothing")
  axes[1].set(xlabel="N of pass@N", ylabel="trained for N", title="pass@N after the last epoch (%)")
  plots.intervals(axes[2], results, TUNED, by="regularizer")
  axes[2].set(ylabel=f"pass@{num} (%)", title="regularized, at the best temperature")
  axes[2].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """The step on products, for a dry run."""
  model = products.decoder(config)
  shape = (config.batch_size, model.config.max_positions)
  shapes = zip((shape, shape, shape[:1], shape[:1]), "ifii")
  rows = data.MultiplicationBatch(*(jax.ShapeDtypeStruct(s, t + "4") for s, t in shapes))
  loss = products.objective(model, float(config.samples[-1]))
  num_steps = config.num_train // config.batch_size * config.num_epochs
  optimizer = adamw_cosine(config.learning_rate, num_steps, weight_decay=products.LITTLE_DECAY)
  return abstract_step(model, loss, optimizer, (rows,), mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
