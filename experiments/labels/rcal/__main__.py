"""Wrong labels in a long tail: can the Gaussian of each class be recovered from clean features?

Features that never saw a label are robust to wrong ones. In them each class is a Gaussian, which
outliers spoil and which tail classes have too few points for: outliers are left out, tail classes
borrow from near head classes, and a linear head learns from draws. Everything is compared with
heads on the same features that only weigh, shift or relabel the points that there are.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.contrastive import contrastive_loss
from experiments.kit.sweep import choose, each_seed, grid, run_seeds
from experiments.labels.rcal import encoder, heads, problems
from experiments.labels.rcal.heads import BALANCED, CE, FULL
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rcal"
SEEDS = {"laptop": 20}
GAUSSIANS, IMAGES = "Gaussians", "images"
FREE, NEAR = "fine-tuned", "fine-tuned, near the contrastive features"
BY_RANK = CE, BALANCED, FULL


@dataclasses.dataclass(frozen=True)
class Config:
  """The Gaussians, the images, the encoder, and the heads."""

  noise_rates: tuple[float, ...] = (0.0, 0.2, 0.4)  # Shares of labels drawn anew; from 0 on.
  num_classes: int = 10  # Gaussians.
  num_dims: int = 16  # Their dimensions.
  distance: float = 8.0  # Between two means, about.
  spread: float = 1.4  # Standard deviation in each direction, on average.
  perturbation: float = 0.2  # Of the covariance that a tail class takes over.
  max_count: int = 300  # Training points of the largest class.
  imbalance: float = 50.0  # How many times the smallest one is smaller.
  num_validation: int = 200  # Clean points of all classes that choose settings.
  num_test: int = 2000  # Clean points of all classes.
  dataset: str = "digits"  # Of the images; or cifar10, cifar100.
  image_count: int = 120  # Training images of the largest class.
  image_imbalance: float = 10.0  # How many times the smallest one is smaller.
  image_validation: int = 200  # Clean images of all classes that choose settings.
  widths: tuple[int, ...] = (16, 32)  # Channels of the encoder's blocks.
  dense: int = 64  # Its features.
  projection: int = 64  # Inputs of the contrastive loss.
  num_components: int = 32  # Principal components of the features that are used.
  contrastive_steps: int = 500  # Updates of the encoder.
  contrastive_batch: int = 128  # Images per update, two views each.
  contrastive_rate: float = 1e-3  # Of Adam.
  temperature: float = 0.5  # Of the similarities.
  num_neighbors: int = 20  # Of the local outlier factor.
  thresholds: tuple[float, ...] = (1.2, 1.5)  # Of that factor, to choose from.
  num_heads: int = 3  # Classes that a tail class borrows from.
  head_weights: tuple[float, ...] = (0.2, 0.5)  # Their share, to choose from.
  inflation: float = 0.1  # Variance that calibration adds.
  num_voters: int = 10  # Neighbors that vote for another label.
  penalties: tuple[float, ...] = (1e-3, 1e-2)  # Of a head's squared weights, to choose from.
  powers: tuple[float, ...] = (0.5, 1.0)  # Of balancing or adjustment, to choose from.
  head_steps: int = 200  # Updates of a head, on all points.
  head_rate: float = 0.1  # Of Adam, with a cosine to 0.
  tuning_steps: int = 300  # Updates of encoder and head.
  tuning_batch: int = 64  # Images per update.
  tuning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of AdamW with a cosine to 0, to choose from.
  beta: float = 1.0  # Weight of the distance to the contrastive features.


PRESETS = {
  "smoke": Config(
    noise_rates=(0.0, 0.4), num_classes=4, num_dims=3, max_count=12, imbalance=4.0,
    num_validation=8, num_test=16, image_count=12, image_imbalance=4.0, image_validation=20,
    widths=(4,), dense=8, projection=4, num_components=3, contrastive_steps=2, contrastive_batch=8,
    num_neighbors=3, num_voters=2, penalties=(1e-3,), head_steps=3, tuning_steps=2, tuning_batch=8,
    tuning_rates=(1e-3,),
  ),
  "laptop": Config(),
  "paper": Config(
    noise_rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5), num_classes=100, num_dims=128, max_count=500,
    imbalance=100.0, num_validation=1000, num_test=10_000, dataset="cifar10", image_count=4000,
    image_imbalance=100.0, image_validation=1000, widths=(64, 128, 256, 512), dense=512,
    num_components=128, contrastive_steps=50_000, contrastive_batch=256, tuning_steps=20_000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("noise_rates", "head_weights"))
  rates = config.noise_rates
  if rates[0] != 0 or list(rates) != sorted(set(rates)) or len(rates) < 2:
    raise ValueError(f"noise_rates must begin with 0 and increase, got {rates}.")
  check_at_least(3, num_classes=config.num_classes)
  for name in ("spread", "temperature"):
    check_range(name, getattr(config, name), "(0, inf)")
  for name in ("num_validation", "num_test"):
    sizes.check_divides(config.num_classes, **{name: getattr(config, name)})
  sizes.check_at_most(config.max_count, imbalance=config.imbalance)
  sizes.check_at_most(config.image_count, image_imbalance=config.image_imbalance)
  sizes.check_known(("digits", "cifar10", "cifar100"), dataset=(config.dataset,))
  images = datasets.describe(config.dataset)
  sizes.check_divides(images.num_classes, image_validation=config.image_validation)
  # Classes of a set are not quite equally large, and something has to be left to test on.
  rows = 0.9 * images.num_rows[0] - config.image_validation
  sizes.check_at_most(int(rows / images.num_classes), image_count=config.image_count)
  num_images = sum(problems.image_counts(config))
  batches = {name: getattr(config, name) for name in ("contrastive_batch", "tuning_batch")}
  sizes.check_at_most(num_images, **batches)
  sizes.check_at_most(config.dense, num_components=config.num_components)
  rows = min(sum(problems.gaussian_counts(config)), num_images)
  sizes.check_at_most(rows - 1, num_voters=config.num_voters)


def run(config: Config, context: Context) -> Results:
  """Heads on Gaussians, then an encoder, heads on its features, and its fine-tuning."""
  results = Results()

  def add(scores, settings, method, **setting):
    chosen = choose(scores, settings, select="validation")
    classes = chosen.pop("classes")
    results.add({method: chosen}, **setting)
    for rank, accuracy in enumerate(classes.T if method in BY_RANK else ()):
      results.add({method: {"class accuracy": accuracy}}, rank=rank, **setting)

  def measure(problem, counts, tasks):
    evaluate, space = functools.partial(heads.evaluate, config, counts), heads.search_space(config)
    for i, rate in enumerate(config.noise_rates):
      found = each_seed(context, f"{problem}/{rate}", evaluate, tasks, tasks.given[:, i])
      for method, scores in found.items():
        add(scores, space.get(method, [{}]), method, problem=problem, rate=rate)

  points, images = (
    datasets.stack_seeds(functools.partial(draw, config), context.seed_numbers)
    for draw in (problems.gaussian_task, problems.image_task)
  )
  measure(GAUSSIANS, problems.gaussian_counts(config), points)
  pretrain = functools.partial(encoder.pretrain, config)
  encoded = run_seeds(context, "encoder", pretrain, arguments=images)
  features = encoder.of_features(images, encoded["features"])
  measure(IMAGES, problems.image_counts(config), features)
  tune, inputs = functools.partial(encoder.tune, config), (images, images.given[:, -1], encoded)
  for method, beta in ((FREE, 0.0), (NEAR, config.beta)):
    settings = [{"beta": beta, "learning_rate": rate} for rate in config.tuning_rates]
    scores = grid(context, f"tuning/{method}", tune, inputs, settings)
    add(scores, settings, method, problem=IMAGES, rate=config.noise_rates[-1])
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  none, some, most = config.noise_rates[0], config.noise_rates[1:], config.noise_rates[-1]

  def of(method, quantity="accuracy", problem=GAUSSIANS, rate=most):
    return results.select(quantity, method=method, problem=problem, rate=rate)

  def digits(method):
    return np.mean([of(method, problem=IMAGES, rate=rate) for rate in some], axis=0)

  def gain(quantity):
    return of(FULL, quantity) - of(BALANCED, quantity)

  plain = np.where(of(CE, "validation") >= of(BALANCED, "validation"), of(CE), of(BALANCED))
  requires = (
    precondition("wrong labels cost balanced cross-entropy 5 points",
                 of(BALANCED, rate=none) - of(BALANCED), at_least=0.05),
    precondition("and it is 5 points behind RCAL on clean labels",
                 of(heads.CLEAN) - of(BALANCED), at_least=0.05),
  )  # fmt: skip
  finds = (
    precondition("a quarter of the wrong labels is removed", of(FULL, "wrong labels found"),
                 at_least=0.25),
    precondition("and seven tenths of what is removed is wrong",
                 of(FULL, "removed labels that are wrong"), at_least=0.7),
  )  # fmt: skip
  linear = precondition("balanced cross-entropy on clean labels of images reaches .93",
                        of(BALANCED, problem=IMAGES, rate=none), at_least=0.93)  # fmt: skip
  return [
    compare(f"noise {most:g}: RCAL is 1 point above cross-entropy, balanced or not", of(FULL),
            plain, margin=0.01, headline=True, requires=requires,
            paper="first on CIFAR-10 and CIFAR-100 with all rates and imbalances"),
    compare("it is above draws from Gaussians that are neither cleaned nor calibrated", of(FULL),
            of(heads.RAW), requires=requires),
    compare("its gain over balanced cross-entropy is larger in the tail than in the head",
            gain(heads.TAIL), gain(heads.HEAD), requires=requires),
    compare("it is above the same without removal of outliers", of(FULL), of(heads.CALIBRATED),
            requires=(*requires, *finds)),
    compare(f"{config.dataset}: it is above balanced cross-entropy, a mean over noise rates",
            digits(FULL), digits(BALANCED), requires=(linear,)),
    compare(f"{config.dataset}: fine-tuning gains by staying near the contrastive features",
            of(NEAR, problem=IMAGES), of(FREE, problem=IMAGES), requires=(linear,)),
  ]  # fmt: skip


def figure(results: Results):
  """Balanced accuracy against noise of all rows; accuracy by the rank of the class."""
  figure, (left, middle, right) = plots.panels(3, width=4.5, height=4.5)
  most = max(results.distinct("rate"))
  for ax, problem in ((left, GAUSSIANS), (middle, IMAGES)):
    plots.curves(ax, results, "accuracy", x="rate", problem=problem)
    at = {"problem": problem, "rate": most}
    methods = FULL, heads.SHARED, heads.RELABELED
    means = [results.select("accuracy", method=method, **at).mean() for method in methods]
    ahead = [method for method, mean in zip(methods, means) if mean > means[0]]
    ax.set(xlabel="share of labels drawn anew", ylabel="balanced accuracy")
    ax.set_title(f"{problem}; ahead of RCAL: {', '.join(ahead) or 'no cheaper row'}", fontsize=8)
  for method in BY_RANK:
    where = {"method": method, "problem": GAUSSIANS, "rate": most}
    plots.curves(right, results, "class accuracy", x="rank", **where)
  right.set(title=f"{GAUSSIANS}, noise {most:g}", xlabel="rank of the class by size")
  plots.legend_below(figure, middle, columns=5)
  return figure


def abstract(config: Config, mesh):
  """A contrastive update, for a dry run."""
  module, shape = encoder.network(config), datasets.describe(config.dataset).shape
  batch = (jax.ShapeDtypeStruct((config.contrastive_batch, *shape), jnp.float32),)
  loss = contrastive_loss(module, temperature=config.temperature)
  return abstract_step(module, loss, optax.adam(config.contrastive_rate), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
