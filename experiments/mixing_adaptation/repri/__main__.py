"""Few-shot segmentation by transductive inference on the features of an ordinary network.

A network is trained to segment the base families; tasks are on novel ones, with few masks. All
inference runs on features that are computed once; each task fits a prototype and a bias.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import run_seeds
from experiments.mixing_adaptation.repri import base, coco, tasks
from experiments.mixing_adaptation.repri.tasks import (
  CE,
  ENTROPY,
  ESTIMATE,
  IOU,
  MAIN,
  ORACLE,
  PREDICTED,
  SUPPORT_IOU,
)
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "repri"
SEEDS = {"laptop": 8}


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  dataset: Literal["shape_scenes", "coco"] = "shape_scenes"  # Drawn scenes, or COCO-20i.
  size: int = 32  # Height and width of a scene.
  base_classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # Families of the base training.
  novel_classes: tuple[int, ...] = (8, 9, 10, 11)  # Families of the tasks.
  num_train: int = 4000  # Scenes of the base training.
  widths: tuple[int, ...] = (16, 32, 64)  # Channels of the layers.
  batch_size: int = 16  # Scenes per update.
  num_steps: int = 500  # Updates of the base training.
  learning_rate: float = 3e-3  # Its peak; cosine to 0.
  label_smoothing: float = 0.0  # Of the base training.
  clutter: int = 1  # Shapes of a scene beside the first one.
  shots: tuple[int, ...] = (1, 5, 10)  # Support scenes of a task.
  other_shots: int = 1  # Those with which twice the noise, and no clutter, are measured.
  learning_rates: tuple[float, ...] = (0.025, 0.1, 0.4, 1.6)  # Chosen on base classes.
  num_base_tasks: int = 64  # Tasks that choose them.
  num_novel_tasks: int = 240  # Tasks per setting and seed.
  num_scenes: int = 600  # Scenes that the tasks are made of.
  min_pixels: int = 6  # Foreground of every scene of a task, in pixels of the features.


PRESETS = {
  "smoke": Config(
    size=16,
    num_train=32,
    widths=(4, 8),
    batch_size=8,
    num_steps=4,
    shots=(1, 2),
    learning_rates=(0.025, 0.1),
    num_base_tasks=8,
    num_novel_tasks=8,
    num_scenes=60,
    min_pixels=1,
  ),
  "laptop": Config(),
  # Fold 0 of COCO-20i; the paper starts from a ResNet-50 trained on ImageNet.
  "paper": Config(
    dataset="coco",
    size=417,
    base_classes=tuple(c for c in range(coco.NUM_THINGS) if c % 4),
    novel_classes=tuple(range(0, coco.NUM_THINGS, 4)),
    num_train=118_287,
    batch_size=12,
    num_steps=20 * 118_287 // 12,
    learning_rate=2.5e-3,
    label_smoothing=0.1,
    num_novel_tasks=1000,
    num_scenes=4000,
    min_pixels=32,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  zero = "base_classes", "novel_classes", "clutter"
  sizes.check_sizes(config, zero=zero, shares=("label_smoothing",))
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  sizes.check_at_most(config.num_scenes - 1, shots=max(config.shots))


def run(config: Config, context: Context) -> Results:
  """Base networks of all seeds; then the tasks of every number of shots."""
  results = Results()
  if config.dataset == "coco":
    networks = base.train_on_coco(config, context)
  else:
    networks = run_seeds(context, "base", functools.partial(base.train_base, config=config))
    results.add({"base network": {"pixel accuracy on base families": networks.pop("accuracy")}})
  for shots in config.shots:
    fixed = tasks.segmenter(config, shots, context.mesh), config, shots, conditions(config, shots)
    seeds = []
    for seed in range(context.seeds):
      variables = jax.tree.map(lambda leaf, seed=seed: leaf[seed], networks["variables"])
      own = context.seed_key(seed), variables
      seeds.append(context.cached(f"{shots} shots/seed{seed}", tasks.evaluate_seed, *fixed, *own))
    for condition, measured in jax.tree.map(lambda *values: np.array(values), *seeds).items():
      results.add(measured, condition=condition, shots=shots)
  return results


def conditions(config: Config, shots: int) -> dict[str, dict]:
  """Condition -> what is special to the scenes of its tasks."""
  others = {"shift": {"noise": 2 * base.NOISE}, "alone": {"clutter": 0}}
  has_others = config.dataset != "coco" and shots == config.other_shots
  return {"clean": {}} | (others if has_others else {})


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = IOU, condition: str = "clean"):
    return results.select(quantity, average=("shots",), method=method, condition=condition)

  ours, plain = of(MAIN), of(CE)
  able = precondition("cross-entropy alone reaches a mean IoU of .3 or more", plain, at_least=0.3)
  room = precondition("and of .9 or less", plain, at_most=0.9)
  text = "cross-entropy alone segments the support 5 points better than the query"
  overfit = precondition(text, of(CE, SUPPORT_IOU) - plain, at_least=0.05)

  def higher(text, method, baseline, paper=None, margin=0.01, **more):
    more |= {"margin": margin, "paper": paper, "requires": (able, room, overfit)}
    return compare(text, method, baseline, **more)

  statements = [
    higher(
      "entropy and the foreground's share raise mean IoU over cross-entropy alone, over all shots",
      ours,
      plain,
      "59.7, 66.6, 68.1 at 1, 5, 10 shots, PASCAL-5i",
      headline=True,
    ),
    higher(
      "entropy without the share of the foreground is worse",
      ours,
      of(ENTROPY),
      "degenerate solutions without the KL term",
    ),
    higher(
      "knowing the true share gains 2 points more",
      of(ORACLE),
      ours,
      "11.7 points at 1 shot",
      margin=0.02,
    ),
  ]
  others = {
    "shift": ("twice the noise", "COCO to PASCAL: 5 points above the best earlier method, 5 shots"),
    "alone": ("no clutter", None),
  }
  for condition in results.distinct("condition"):
    if condition in others:
      what, paper = others[condition]
      text = f"1 shot, {what}: mean IoU exceeds that of cross-entropy alone"
      sides = (of(method, condition=condition) for method in (MAIN, CE))
      statements.append(higher(text, *sides, paper))
  return statements


def figure(results: Results):
  """By shots: mean IoU, and how far the estimated and the predicted share are from the truth."""
  drawing, axes = plots.panels(3)
  for ax, quantity in zip(axes, (IOU, ESTIMATE, PREDICTED)):
    plots.curves(ax, results, quantity, x="shots", condition="clean")
  axes[0].legend(fontsize=7, ncols=2)
  return drawing


def abstract(config: Config, mesh):
  """The step of the base training, for a dry run."""
  shape = config.batch_size, config.size, config.size
  batch = jax.eval_shape(
    lambda images, masks: base.base_batch(images, masks, config),
    jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
  )
  optimizer = base.optimizer(config)
  return abstract_step(base.network(config), base.base_loss(config), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
