"""Entropy adaptive decoding: two models take turns, by how sure the one that writes is.

Blocks that any model can write lie beside blocks of a table that only the large one holds. Without
verification, a controller that sees the entropy of the last tokens alone hands over. What it gains
is compared with random turns of the same share, since more tokens by a better model always help.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.entropy_adaptive_decoding import switching
from experiments.inference.entropy_adaptive_decoding.regimes import Regimes, Texts
from experiments.inference.entropy_adaptive_decoding.switching import (
  ALTERNATION,
  LARGE,
  NARROW,
  ORACLE,
  RANDOM,
  SMALL,
  SPECULATIVE,
  SWITCHING,
)
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "entropy_adaptive_decoding"
REGIMES, CHAINS = "regimes", "chains"
_EXAMPLE = "entropies", "use_large", "hard"


@dataclasses.dataclass(frozen=True)
class Config(Regimes):
  """The texts, the two models, and the controller."""

  small: tuple[int, ...] = (16, 1)  # Width and blocks of the small model.
  large: tuple[int, ...] = (64, 2)  # Width and blocks of the large one.
  num_heads: int = 4  # Attention heads.
  num_steps: tuple[int, ...] = (2000, 1000)  # Updates of the small model and of the large one.
  texts_per_update: int = 64  # Fresh texts.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  window: int = 3  # Tokens whose mean entropy is looked at.
  min_dwell: int = 3  # Tokens that a model writes at least.
  thresholds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.2)  # In bits, increasing.
  most_share: float = 0.55  # Of tokens by the large model, on validation; picks the threshold.
  num_drafts: int = 4  # Tokens of a draft of speculative decoding.
  num_validation: int = 300  # Responses to choose the threshold on.
  num_test: int = 500  # Others, to test on.
  chain_modulus: int = 11  # Of the verbose chains.
  chain_terms: int = 5  # Numbers in a chain.
  chain_small: tuple[int, ...] = (24, 1, 2, 700)  # Width, blocks, heads, and updates.
  chain_large: tuple[int, ...] = (48, 1, 4, 1200)  # Likewise of the large model of chains.
  chain_window: int = 2  # Window and fewest tokens of a model on chains.


PRESETS = {
  "smoke": Config(
    modulus=5, num_blocks=2, block_length=4, small=(8, 1), large=(8, 1), num_heads=2,
    num_steps=(2, 2), texts_per_update=4, window=2, min_dwell=2, thresholds=(0.5, 4.0),
    num_drafts=2, num_validation=6, num_test=8, chain_modulus=3, chain_terms=3,
    chain_small=(8, 1, 2, 2), chain_large=(8, 2, 2, 2),
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=997, num_blocks=8, block_length=64, small=(1024, 16), large=(2560, 32), num_heads=16,
    num_steps=(100_000, 100_000), texts_per_update=512, learning_rate=3e-4, window=5, min_dwell=10,
    thresholds=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0), chain_modulus=97, chain_terms=16,
    chain_small=(1024, 16, 16, 50_000), chain_large=(2560, 32, 16, 50_000), chain_window=5,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("hard_share", "noise", "most_share"))
  if config.modulus < 2 or config.chain_modulus < 2 or config.chain_terms < 2:
    raise ValueError("modulus, chain_modulus and chain_terms must be at least 2.")
  if list(config.thresholds) != sorted(set(config.thresholds)):
    raise ValueError(f"thresholds must increase, got {config.thresholds}.")
  if config.block_length < 4:
    raise ValueError(f"block_length must be at least 4, got {config.block_length}.")
  sizes.check_lengths(num_steps=config.num_steps, models=("small", "large"))
  for name in ("small", "large"):
    sizes.check_divides(config.num_heads, **{name: getattr(config, name)[0]})
  for name in ("chain_small", "chain_large"):
    shape = getattr(config, name)
    sizes.check_lengths(**{name: shape, "(width, blocks, heads, updates)": range(4)})
    sizes.check_divides(shape[2], **{name: shape[0]})


def run(config: Config, context: Context) -> Results:
  """Trains both pairs of models, and decodes in all ways."""
  results = Results()
  trained = run_seeds(context, "models", functools.partial(switching.train, config))
  bases = switching.chain_models(config)
  of_chains = {size: base.load_seeds(context, f"{CHAINS}, {size}") for size, base in bases.items()}
  for name, measure, models in (
    (REGIMES, switching.measure_regimes, trained),
    (CHAINS, switching.measure_chains, of_chains),
  ):
    measure = functools.partial(measure, config)
    found = context.over_seeds(name, measure, arguments=models)
    results.add(found["chosen"], data=name)
    for i, threshold in enumerate(config.thresholds):
      curve = {m: {q: x[:, i] for q, x in of.items()} for m, of in found["curves"].items()}
      results.add(curve, data=name, threshold=threshold)
    results.extras |= {f"{name}/{part}": x[0] for part, x in found["example"].items()}
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity="valid"):
    return results.select(quantity, method=method, data=REGIMES, threshold=None)

  ours, share, cost = of(SWITCHING), of(SWITCHING, "share"), of(SWITCHING, "cost")
  drift = np.abs(of(RANDOM, "share") - share)
  surprise = of(SMALL, "entropy on hard") / of(SMALL, "entropy on easy")
  known = [of(model, part) for model in (SMALL, LARGE) for part in ("easy valid", "markers")]
  requires = (
    precondition("of hard values the large model alone has .90 valid", of(LARGE), at_least=0.9),
    precondition("the small one alone .25 or more", of(SMALL), at_least=0.25),
    precondition("and .65 or less", of(SMALL), at_most=0.65),
    precondition("both have .98 of easy values and markers", np.min(known), at_least=0.98),
    precondition("the small model's entropy on hard values is 5 times that on easy ones", surprise,
                 at_least=5),
    precondition("turns by an oracle are .10 above random ones", of(ORACLE) - of(RANDOM),
                 at_least=0.1),
    precondition("the large model writes .05 of the tokens in every seed", share.min(),
                 at_least=0.05),
    precondition("and as many in random turns, to .02 in every seed", drift.max(), at_most=0.02),
  )  # fmt: skip
  cheap = precondition("the cost is at most .60 in every seed", cost.max(), at_most=0.6)
  early, late = of(SWITCHING, "early"), of(SWITCHING, "late")
  return [
    compare("entropy switching has .05 more valid hard values than random turns of the same share",
            ours, of(RANDOM), margin=0.05, headline=True, requires=requires,
            paper="no such comparison; .43 of tokens by 11B: MATH 50.4, 11B alone 52.1"),
    compare("entropy switching keeps .90 of the large model's valid hard values at .6 of its cost",
            ours / np.maximum(of(LARGE), 1e-9), 0.9, requires=(*requires, cheap),
            paper="96.7% at -41.5% cost (11B with 3B), 92.9% at -67% (14B with 1.5B)"),
    compare("entropy switching has .10 more valid hard values than the small model alone",
            ours, of(SMALL), margin=0.1, requires=requires),
    compare("entropy switching has .10 more hard blocks without an error than random turns",
            of(SWITCHING, "whole blocks"), of(RANDOM, "whole blocks"), margin=0.1,
            requires=requires),
    compare("delay: the first two values of a hard block are .10 less often valid than the fourth "
            "and later ones", early, late, better="lower", margin=0.1, requires=requires),
  ]  # fmt: skip


def figure(results: Results):
  """Valid hard values against cost; and a response, its entropies and who wrote it."""
  figure, (top, bottom) = plots.panels(2, width=7.0, columns=1)
  where, thresholds = {"data": REGIMES}, results.distinct("threshold")
  for i, method in enumerate((SWITCHING, NARROW, RANDOM)):
    curve = [
      [results.select(q, method=method, threshold=t, **where).mean() for t in thresholds]
      for q in ("cost", "valid")
    ]
    top.plot(*curve, ".-", color=f"C{i}", label=method)
  for i, method in enumerate((SMALL, LARGE, ORACLE, ALTERNATION, SPECULATIVE), 3):
    point = [results.select(q, method=method, **where).mean() for q in ("cost", "valid")]
    top.plot(*point, "s", color=f"C{i}", label=method)
  top.set(xlabel="cost, relative to the large model", ylabel="valid hard values")
  top.legend(fontsize=7)
  parts = [results.extras.get(f"{REGIMES}/{part}") for part in _EXAMPLE]
  if parts[0] is not None:
    entropies, use_large, hard = parts
    places, high = np.arange(len(entropies)), max(1.0, float(np.max(entropies)))
    shade = {"step": "mid", "alpha": 0.3, "linewidth": 0}
    bottom.fill_between(places, 0, high, where=hard, color="C3", label="hard values", **shade)
    bottom.fill_between(
      places, 0, high / 8, where=use_large, color="C0", label="large model", **shade
    )
    bottom.plot(places, entropies, "k.-", label="entropy")
    bottom.set(xlabel="token of a response", ylabel="bits")
    bottom.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the large model, for a dry run."""
  model = switching.networks(config)["large"]
  shape = config.texts_per_update, model.config.max_positions
  batch = Texts(*(jax.ShapeDtypeStruct(shape, t) for t in (np.int32, np.float32)))
  optimizer = adamw_cosine(config.learning_rate, config.num_steps[1], weight_decay=0.01)
  return abstract_step(model, text_loss(model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
