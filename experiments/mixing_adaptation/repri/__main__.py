"""Few-shot segmentation by transductive inference on the features of an ordinary network.

A network is trained to segment the base families; tasks are on novel ones, with few masks. All
inference runs on features that are computed once; each task fits a prototype and a bias.
"""

import dataclasses
import functools
import itertools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import plots
from experiments.kit.abstract import abstract_step
from experiments.mixing_adaptation.repri import base, coco
from experiments.mixing_adaptation.repri.tasks import MAIN, ORACLE, evaluate_tasks, segmenter
from jaxlab import training
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "repri"
NOISE = {"clean": 0.1, "shift": 0.2}  # Pixel noise of novel scenes; base scenes have the first.


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  dataset: Literal["shape_scenes", "coco"] = "shape_scenes"  # Drawn scenes, or COCO-20i.
  size: int = 32  # Height and width of a scene.
  base_classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # Families of the base training.
  novel_classes: tuple[int, ...] = (8, 9, 10, 11)  # Families of the tasks.
  num_train: int = 4000  # Scenes of the base training.
  widths: tuple[int, ...] = (32, 64, 64)  # Channels of the layers.
  batch_size: int = 16  # Scenes per update.
  num_steps: int = 1500  # Updates of the base training.
  learning_rate: float = 3e-3  # Its peak; cosine to 0.
  label_smoothing: float = 0.0  # Of the base training.
  shots: tuple[int, ...] = (1, 5, 10)  # Support scenes of a task.
  num_tasks: int = 400  # Tasks per setting and seed.
  num_novel: int = 1000  # Novel scenes that the tasks are made of.
  min_pixels: int = 6  # Foreground of every scene of a task, in pixels of the features.


PRESETS = {
  "smoke": Config(
    size=16,
    num_train=32,
    widths=(4, 8),
    batch_size=8,
    num_steps=4,
    shots=(1, 2),
    num_tasks=8,
    num_novel=60,
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
    num_tasks=1000,
    num_novel=4000,
    min_pixels=32,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Base networks of all seeds; then every setting of every seed."""
  results, conditions = Results(), NOISE
  if config.dataset == "coco":
    networks, conditions = base.train_on_coco(config, context), {"clean": 0.0}
  else:
    train = functools.partial(base.train_base, config=config)
    over_seeds = functools.partial(training.over_seeds, num_seeds=context.seeds)
    networks = context.cached("base", over_seeds, context.key, train)
    results.add({"base network": {"pixel accuracy on base families": networks.pop("accuracy")}})
  segmenters = {shots: segmenter(config, shots, context.mesh) for shots in config.shots}
  for condition, shots in itertools.product(conditions, config.shots):
    fixed = segmenters[shots], config, shots, conditions[condition]
    seeds = []
    for seed in range(context.seeds):
      variables = jax.tree.map(lambda leaf, seed=seed: leaf[seed], networks["variables"])
      stage, own = f"{condition}/{shots} shots/seed{seed}", (context.seed_key(seed), variables)
      seeds.append(context.cached(stage, evaluate_tasks, *fixed, *own))
    measured = jax.tree.map(lambda *values: np.array(values), *seeds)
    results.add(measured, condition=condition, shots=shots)
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def iou(method: str, condition: str = "clean", **where):
    where |= {"method": method, "condition": condition}
    return results.select("mean IoU", average=("shots",), **where)

  ours, plain = iou(MAIN), iou("CE")
  able = precondition("cross-entropy alone reaches a mean IoU of .3 or more", plain, at_least=0.3)
  room = precondition("and of .9 or less", plain, at_most=0.9)
  gains = {shots: iou(MAIN, shots=shots) - iou("CE", shots=shots) for shots in config.shots}
  fewest, *_, most = gains.values()

  def higher(text, method, baseline, paper=None, margin=0.01, **more):
    more |= {"margin": margin, "paper": paper, "requires": (able, room)}
    return compare(text, method, baseline, **more)

  both = (
    "entropy and the foreground's share raise mean IoU over cross-entropy alone, over all shots"
  )
  scores, prototype = "59.7, 66.6, 68.1 at 1, 5, 10 shots, PASCAL-5i", iou("prototype")
  grows = "the gain over cross-entropy alone grows from the fewest shots to the most"
  gap = "gap to the best earlier method: 0 points at 1 shot, 5 to 6 at 5 and 10"
  share, degenerate = "entropy without the share of the foreground is worse", iou("CE + H")
  known, oracle = "knowing the true share gains 5 points more", iou(ORACLE)
  statements = [
    higher(both, ours, plain, scores, headline=True),
    higher("mean IoU exceeds that of prototypes by 5 points", ours, prototype, margin=0.05),
    higher(grows, most, fewest, gap),
    higher(share, ours, degenerate, "degenerate solutions without the KL term"),
    higher(known, oracle, ours, "11.7 points at 1 shot", margin=0.05),
  ]
  if "shift" in results.distinct("condition"):
    text = "novel scenes of twice the noise: mean IoU exceeds that of cross-entropy alone"
    paper = "COCO to PASCAL: 5 points above the best earlier method at 5 shots"
    statements.append(higher(text, iou(MAIN, "shift"), iou("CE", "shift"), paper))
  return statements


def figure(results: Results):
  """Mean IoU by shots, on novel scenes and on those of twice the noise."""
  conditions = results.distinct("condition")
  drawing, axes = plots.panels(len(conditions))
  for ax, condition in zip(axes, conditions):
    plots.curves(ax, results, "mean IoU", x="shots", condition=condition)
    ax.set_title(condition)
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
