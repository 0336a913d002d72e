"""Do unlabeled inputs spare labels, when a model of the inputs determines what labels need?

First a model of the inputs is fitted by maximum likelihood, then a small head on few labels. Of
factors and a mixture everything is known: the gain, its price in unlabeled inputs, and a target
that breaks the condition can be measured. Of digits nothing is. Baselines see the labeled inputs
alone, or spend the unlabeled ones in a simpler way.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.bayes.unsup_pretraining import digits, latent
from experiments.bayes.unsup_pretraining.latent import KNOWN, OWN, PRETRAINED, RIDGE
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.contrastive import pair_loss
from experiments.kit.sweep import add_along, each_seed, run_seeds
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "unsup_pretraining"
SEEDS = {"laptop": 20}
FACTORS, MIXTURE, IMAGES = "factors", "mixture", "images"
LABELED_MIXTURE = latent.COMPOSITE, latent.LINEAR, OWN
LABELED_IMAGES = digits.PIXELS, digits.COPIES, digits.NETWORK, digits.UNTRAINED


@dataclasses.dataclass(frozen=True)
class Config:
  """The factors, the mixture, the images, and the heads."""

  num_dims: int = 100  # Inputs of the factor model.
  num_factors: int = 5  # Its hidden factors.
  rank: int = 10  # Factors of the row that fits too many.
  factor_strength: float = 2.0  # Length of a factor's loadings, about.
  noise: float = 0.5  # Standard deviation of the targets.
  num_unlabeled: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)  # Inputs m, increasing.
  num_labeled: tuple[int, ...] = (20, 50, 100, 400, 1600)  # Targets n, increasing.
  few: int = 100  # The n of the main claim.
  penalties: tuple[float, ...] = tuple(10 ** (i / 2) for i in range(-2, 8))  # Of ridge.
  mixture_dims: int = 50  # Inputs of the mixture.
  num_components: int = 8  # Its components, of two classes.
  center_norm: float = 4.0  # Length of their centers.
  label_noise: float = 0.1  # Share of labels that are flipped.
  mixture_unlabeled: tuple[int, ...] = (100, 1000, 4000)  # Inputs m, increasing.
  mixture_labeled: tuple[int, ...] = (20, 50, 200)  # Labels n, increasing.
  mixture_many: int = 1000  # The m of the claim.
  mixture_few: int = 50  # The n of the claim.
  mixture_test: int = 5000  # Test inputs.
  num_restarts: int = 10  # Starts of expectation maximization.
  em_steps: int = 100  # Its steps from each.
  composite_steps: int = 500  # Updates of centers and table on labels.
  dataset: str = "digits"  # Of the images; or cifar10, fashion_mnist.
  image_splits: tuple[str, ...] = (digits.RANDOM, digits.BLOCKS)  # How digits are split.
  images: int = 1000  # Unlabeled images.
  image_labels: tuple[int, ...] = (20, 50, 100, 200)  # Labeled images n, increasing.
  image_few: int = 50  # The n of the claim.
  image_test: int = 597  # Test images.
  widths: tuple[int, ...] = (64, 64)  # Of the dense encoder.
  num_features: int = 16  # Its outputs.
  max_shift: int = 1  # Pixels that a view moves by.
  pixel_noise: float = 0.1  # Of a view.
  contrastive_steps: int = 2000  # Updates of the encoder.
  contrastive_batch: int = 128  # Images per update, two views each.
  contrastive_rate: float = 1e-3  # Of Adam.
  network_steps: int = 400  # Updates of the network that is trained end to end.
  network_batch: int = 32  # Images per update.
  network_rate: float = 3e-3  # Of AdamW, with a cosine to 0.
  decays: tuple[float, ...] = (0.01, 0.1, 1.0, 3.0, 10.0)  # Of its weights, to choose from.
  num_copies: int = 20  # Views beside each labeled image, in one row.
  strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of a head, to choose from.
  num_folds: int = 5  # Of the labeled rows, which choose.
  head_steps: int = 200  # Updates of a head, on all its rows.


PRESETS = {
  "smoke": Config(
    num_dims=8, num_factors=2, rank=3, num_unlabeled=(20, 40, 80), num_labeled=(10, 40), few=10,
    penalties=(1.0, 10.0, 100.0), mixture_dims=4, num_components=4, mixture_unlabeled=(20, 60),
    mixture_labeled=(10, 20), mixture_many=60, mixture_few=10, mixture_test=50, num_restarts=2,
    em_steps=3, composite_steps=2, images=60, image_labels=(20, 40), image_few=20, image_test=40,
    widths=(8,), num_features=4, contrastive_steps=2, contrastive_batch=10, network_steps=2,
    network_batch=8, decays=(0.01, 0.1), num_copies=2, strengths=(0.1, 1.0), num_folds=2,
    head_steps=3,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10", image_splits=(digits.RANDOM,), images=46_000,
    image_labels=(250, 1000, 4000), image_few=1000, image_test=10_000, num_features=128,
    max_shift=4, contrastive_steps=100_000, contrastive_batch=256, network_steps=10_000,
    network_batch=128,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, zero=("max_shift",), shares=("label_noise",))
  check_range("label_noise", config.label_noise, "[0, 0.5]")
  check_at_least(2, num_folds=config.num_folds, contrastive_batch=config.contrastive_batch)
  sizes.check_at_most(config.num_dims, num_factors=config.num_factors, rank=config.rank)
  sizes.check_at_most(config.mixture_dims, num_components=config.num_components)
  # Every fold has rows, least squares has one solution, and a component has an input.
  rank, folds, num = max(config.num_factors, config.rank), config.num_folds, config.num_components
  for name, fewest, chosen in (
    ("num_unlabeled", rank, ()),
    ("num_labeled", max(rank + 2, folds), ("few",)),
    ("mixture_unlabeled", num, ("mixture_many",)),
    ("mixture_labeled", max(num, folds), ("mixture_few",)),
    ("image_labels", folds, ("image_few",)),
  ):
    values = getattr(config, name)
    check_at_least(fewest, **{name: values[0]})
    if list(values) != sorted(set(values)) or len(values) < 2:
      raise ValueError(f"{name} must increase, got {values}.")
    for field in chosen:
      sizes.check_known([*map(str, values)], **{field: (str(getattr(config, field)),)})
  splits = (digits.RANDOM, digits.BLOCKS)[: 1 + (config.dataset == "digits")]
  sizes.check_known(splits, image_splits=config.image_splits)
  images, num_labeled = datasets.describe(config.dataset), config.image_labels[-1]
  images.check_splits(config.images, num_labeled, config.image_test)
  sizes.check_at_most(images.shape[0] - 1, max_shift=config.max_shift)
  sizes.check_at_most(int(np.prod(images.shape)), num_features=config.num_features)
  sizes.check_at_most(config.images, contrastive_batch=config.contrastive_batch)
  sizes.check_at_most(num_labeled, network_batch=config.network_batch)
  sizes.check_lengths(decays=config.decays, strengths=config.strengths)


def run(config: Config, context: Context) -> Results:
  """Factors and their two targets, the mixture, and the images by both splits."""
  results = Results()
  found = context.over_seeds(FACTORS, functools.partial(latent.measure_factors, config))
  axes = {"target": latent.TARGETS, "n": config.num_labeled, "m": config.num_unlabeled}
  add_along(results, found, axes, problem=FACTORS)
  found = context.over_seeds(MIXTURE, functools.partial(latent.measure_mixture, config))
  axes = {"n": config.mixture_labeled, "m": config.mixture_unlabeled}
  add_along(results, found, axes, problem=MIXTURE)
  encode, evaluate = (functools.partial(f, config) for f in (digits.encode, digits.evaluate))
  for split in config.image_splits:
    draw = functools.partial(digits.draw, config, split)
    tasks = datasets.stack_seeds(draw, context.seed_numbers)
    encoded = run_seeds(context, f"{IMAGES}/{split}/encoder", encode, arguments=tasks)
    where = {"problem": IMAGES, "split": split}
    results.add({PRETRAINED: {"pair loss": encoded["pair loss"]}}, **where)
    # Blocks are a second look at the claim.
    for n in config.image_labels if split == digits.RANDOM else (config.image_few,):
      inputs = tasks, encoded["features"], np.full(context.seeds, n)
      scores = each_seed(context, f"{IMAGES}/{split}/{n}", evaluate, inputs)
      results.add({row: {"accuracy": x} for row, x in scores.items()}, n=n, **where)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, most_labels = config.few, config.num_labeled[-1]
  least, most = config.num_unlabeled[0], config.num_unlabeled[-1]

  def risk(method, n=few, **where):
    where |= {"problem": FACTORS, "target": latent.LATENT}
    return results.select("excess risk", method=method, n=n, **where)

  def best(quantity, methods, sign, **where):
    rows = [results.select(quantity, method=method, **where) for method in methods]
    return max(rows, key=lambda row: sign * row.mean())

  baseline = np.minimum(risk(RIDGE), risk(OWN))
  ridge, edge = risk(RIDGE), results.select("penalty at an edge", n=few, target=latent.LATENT)
  room = (
    precondition("the known model leaves a third of the best baseline's excess risk at most",
                 risk(KNOWN) / baseline, at_most=1 / 3),
    precondition("ridge halves the excess risk of 0", ridge / risk(latent.ZERO), at_most=0.5),
    precondition("its penalty is at an edge of the grid in a fifth of the seeds at most", edge,
                 at_most=0.2),
  )  # fmt: skip
  slope = results.select("slope over m", method=PRETRAINED)

  mixture = {"problem": MIXTURE, "n": config.mixture_few}
  ours = results.select("excess error", method=PRETRAINED, m=config.mixture_many, **mixture)
  labeled = best("excess error", LABELED_MIXTURE, -1, **mixture)
  components = results.select("right components", method=KNOWN)
  mixed = (
    precondition("the best guess finds 97% of the components", components, at_least=0.97),
    precondition("labels alone leave .08 excess error", labeled, at_least=0.08),
  )

  images = {"problem": IMAGES, "split": config.image_splits[0], "n": config.image_few}
  supervised = best("accuracy", LABELED_IMAGES, 1, **images)
  able = (
    precondition("labels alone reach .70", supervised, at_least=0.7),
    precondition("and leave .10 to gain", supervised, at_most=0.9),
  )
  return [
    compare(f"{most} unlabeled inputs and {few} targets: half the excess risk of the better of "
            "ridge and two phases on labeled inputs, in logarithms",
            np.log(risk(PRETRAINED, m=most)), np.log(baseline), better="lower", margin=np.log(2),
            headline=True, requires=room),
    compare(f"{least} unlabeled inputs and {most_labels} targets: twice that of ridge, in "
            "logarithms", np.log(risk(PRETRAINED, n=most_labels, m=least)),
            np.log(risk(RIDGE, n=most_labels)), margin=np.log(2), requires=room[1:2]),
    compare(f"{most_labels} targets: what the unknown model costs falls as 1 over their number, "
            "an exponent within .25", np.abs(slope + 1), 0.25, better="lower", requires=room[:1],
            paper="a bound that falls as one over the root"),
    compare(f"mixture, {config.mixture_many} unlabeled inputs and {config.mixture_few} labels: "
            "8 points less excess error than the best of labeled inputs alone", ours, labeled,
            better="lower", margin=0.08, requires=mixed),
    compare(f"{config.dataset}, {config.image_few} labels: contrastive features are 2 points above "
            "the best of labeled images alone",
            results.select("accuracy", method=PRETRAINED, **images), supervised, margin=0.02,
            requires=able),
  ]  # fmt: skip


def figure(results: Results):
  """Excess risk and excess error against labels, a line per number of unlabeled inputs; digits."""
  figure, (left, middle, right) = plots.panels(3, width=4.8, height=4.4)
  for ax, quantity, where, baselines in (
    (left, "excess risk", {"problem": FACTORS, "target": latent.LATENT}, (RIDGE, OWN)),
    (middle, "excess error", {"problem": MIXTURE}, LABELED_MIXTURE),
  ):
    plots.curves(ax, results, quantity, x="n", color="m", method=PRETRAINED, **where)
    for method in (*baselines, KNOWN):
      drawn = len(ax.lines)
      plots.curves(ax, results, quantity, x="n", method=method, **where)
      for line in ax.lines[drawn:]:
        line.set_linestyle(":" if method == KNOWN else "--")
    plots.log_axis(ax, "labeled inputs n")
    ax.set_title(where["problem"])
    ax.legend(fontsize=6, title="unlabeled inputs m, or row", title_fontsize=6)
  left.set_yscale("log")
  split = results.distinct("split")[0]
  plots.curves(right, results, "accuracy", x="n", problem=IMAGES, split=split)
  plots.log_axis(right, "labeled images n")
  right.set_title(f"{IMAGES}, {split} split")
  right.legend(fontsize=6)
  return figure


def abstract(config: Config, mesh):
  """A contrastive update, for a dry run."""
  module, shape = digits.encoder(config), datasets.describe(config.dataset).shape
  batch = (jax.ShapeDtypeStruct((config.contrastive_batch, *shape), jnp.float32),)
  loss = pair_loss(module, functools.partial(digits.view, config))
  optimizer = optax.adam(config.contrastive_rate)
  return abstract_step(module, loss, optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
