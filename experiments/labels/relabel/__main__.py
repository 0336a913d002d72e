"""Re-labeling: what a crop shows is not what the one label of its image says.

Scenes hold several digits, and an annotator names one of them. Students learn from random crops:
with that label, or with labels that an annotator's map gives, of the whole scene or of the crop
alone, the likeliest class or all of them. Whether they know what whole scenes hold is measured with
the best scale of crops for each; crops that are never small are the cheapest cure.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Split
from experiments.kit.sweep import by_seed, choose, grid, run_seeds
from experiments.kit.train import adamw_cosine, classification_loss
from experiments.labels.relabel import scenes, students
from experiments.labels.relabel.students import (
  CUT,
  DISTILLED,
  GENTLE,
  LOCAL_MULTI,
  ONE_HOT,
  ORACLE,
  SMOOTHED,
)
from jaxlab._checks import check_pair
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "relabel"
SEEDS = {"laptop": 6}
ANNOTATOR, PRECISION = "annotator", "mean average precision"
EVALUATED = "validation", "test"
WHOLE = 1.0  # Crops of this scale show nearly the whole scene.


@dataclasses.dataclass(frozen=True)
class Config:
  """The scenes, the annotator, and the students."""

  num_digits: tuple[int, ...] = (1000, 200, 597)  # Of training, validation and test scenes.
  size: int = 28  # Side of a scene, in pixels.
  num_objects: int = 4  # Digits of a scene, at most 4.
  object_scale: tuple[float, ...] = (0.7, 1.0)  # Smallest and largest magnification of a digit.
  num_train: int = 2000  # Scenes with one label each.
  num_validation: int = 300  # Scenes with all labels, which choose the crop scale.
  num_test: int = 1500  # Other scenes with all labels.
  num_canvases: int = 4000  # Canvases of one digit, on which the annotator learns.
  num_strokes: int = 3  # Distracting strokes on each.
  annotator_widths: tuple[int, ...] = (16, 32, 32)  # Channels of the annotator's blocks.
  annotator_steps: int = 3000  # Its updates.
  annotator_smoothing: float = 0.3  # Of its labels, so that its scores stay small.
  num_labels: int = 5  # Scores that a map keeps at each position.
  widths: tuple[int, ...] = (16, 32, 32)  # Channels of a student's blocks.
  num_steps: int = 1000  # Updates of a student.
  batch_size: int = 64  # Images per update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  scales: tuple[float, ...] = (0.08, 0.35)  # Smallest area of a crop, to choose from.
  smoothing: tuple[float, ...] = (0.05, 0.1)  # Of one-hot labels, to choose from.


PRESETS = {
  "smoke": Config(
    num_digits=(40, 20, 30), num_train=12, num_validation=10, num_test=12, num_canvases=12,
    num_strokes=1, annotator_widths=(2, 2), annotator_steps=2, num_labels=2, widths=(2, 2),
    num_steps=2, batch_size=4, scales=(0.08,), smoothing=(0.1,),
  ),
  "laptop": Config(),
  "paper": Config(
    size=112, object_scale=(4.2, 6.0), num_train=500_000, num_validation=5000, num_test=50_000,
    num_canvases=1_000_000, annotator_widths=(128, 256, 512, 512), annotator_steps=50_000,
    widths=(64, 128, 256, 256), num_steps=150_000, batch_size=1024,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("scales", "smoothing", "annotator_smoothing"))
  if len(config.num_digits) != 3:
    raise ValueError(f"num_digits must be 3 numbers, got {config.num_digits}.")
  datasets.describe("digits").check_splits(*config.num_digits)
  sizes.check_divides(4, size=config.size)
  sizes.check_at_most(4, num_objects=config.num_objects)
  sizes.check_at_most(scenes.NUM_CLASSES, num_labels=config.num_labels)
  check_pair("object_scale", config.object_scale, "(0, inf)")
  side = int(np.ceil(config.object_scale[1] * datasets.describe("digits").shape[0]))
  sizes.check_at_most(config.size // 2, **{"digits of the largest object_scale": side})
  for name in ("num_train", "num_canvases"):
    sizes.check_at_most(getattr(config, name), batch_size=config.batch_size)
  scales = config.scales
  if scales[0] <= 0 or scales[-1] >= WHOLE or list(scales) != sorted(set(scales)):
    raise ValueError(f"scales must increase between 0 and {WHOLE}, got {scales}.")


def search_space(config: Config) -> dict[str, list[dict[str, float]]]:
  """The settings of each row: scales of crops; one-hot rows also see whole scenes, or smooth."""

  def settings(method, labels):
    scales = (*config.scales, WHOLE) if labels == ONE_HOT else config.scales
    kind = {"labels": students.LABELS.index(labels), "cutmix": float(method == students.CUTMIX)}
    smoothing = config.smoothing if method == SMOOTHED else (0.0,)
    return [{"scale": x, "smoothing": y} | kind for x in scales for y in smoothing]

  return {method: settings(method, labels) for method, labels in students.METHODS.items()}


def run(config: Config, context: Context) -> Results:
  """Trains an annotator, and students with all kinds of labels."""
  results = Results()
  drawn = datasets.stack_seeds(functools.partial(scenes.draw, config), context.seed_numbers)
  annotate = functools.partial(students.annotate, config)
  annotated = run_seeds(context, ANNOTATOR, annotate, arguments=drawn)
  results.add({ANNOTATOR: {"objects found": annotated.pop("objects found")}})
  results.extras |= {name: x[0] for name, x in annotated.pop("example").items()}

  whole = {name: Split(drawn[name].images, drawn[name].label_sets) for name in EVALUATED}

  def precision(part, scores):
    """Of log probabilities `[seeds, settings, n, k]`."""
    of_seed = lambda x, y: np.array([students.mean_average_precision(s, y) for s in x])  # noqa: E731
    return by_seed(of_seed, scores, whole[part].labels)

  study = functools.partial(students.study, config)
  own, train = (
    students.Lesson(drawn[name].images, drawn[name].single_label, drawn[name].label_maps)
    for name in ("own", "train")
  )
  train = train._replace(**annotated["maps"])
  for method, settings in search_space(config).items():
    inputs = own if method == students.OWN else train, whole, annotated["variables"]
    scores = grid(context, f"students/{method}", study, inputs, settings)
    scores["validation"], scores[PRECISION] = (precision(x, scores.pop(x)) for x in EVALUATED)

    def best(allowed, scores=scores, settings=settings):
      places = [i for i, setting in enumerate(settings) if allowed(setting["scale"])]
      own = {name: x[:, places] for name, x in scores.items()}
      return choose(own, [settings[i] for i in places], select="validation")

    passes = {"annotator passes a step": float(method == DISTILLED)}
    results.add({method: best(lambda scale: True) | passes})
    if method == ONE_HOT:
      results.add({GENTLE: best(lambda scale: scale > config.scales[0])})
    for scale in dict.fromkeys(setting["scale"] for setting in settings):
      values = best(lambda x, scale=scale: x == scale)
      results.add({method: {name: values[name] for name in (PRECISION, CUT)}}, scale=scale)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity=PRECISION, scale=None):
    return results.select(quantity, method=method, scale=scale)

  ours, plain, small = of(LOCAL_MULTI), of(ONE_HOT), config.scales[0]
  gap = of(ORACLE, scale=small) - of(ONE_HOT, scale=small)
  cut = of(LOCAL_MULTI, CUT, scale=small)
  entropy = of(LOCAL_MULTI, "entropy of labels")
  bounds = (
    ("the annotator's map is right at 80% of the objects", of(ANNOTATOR, "objects found"), 0.8,
     None),
    ("one-hot labels reach .35 to .85", plain, 0.35, 0.85),
    ("distillation is 3 points above them", of(DISTILLED) - plain, 0.03, None),
    (f"20% of the crops from {small:g} show less than 30% of the labeled object", cut, 0.2, None),
    (f"exact labels of crops from {small:g} are 5 points above one-hot ones", gap, 0.05, None),
  )  # fmt: skip
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  several = precondition("pooled labels name several classes: .2 to 1.8 nats", entropy,
                         at_least=0.2, at_most=1.8)  # fmt: skip
  claim = functools.partial(compare, requires=requires)
  return [
    claim("localized multi-labels are 1 point of mAP above one-hot labels", ours, plain,
          margin=0.01, headline=True, paper="ImageNet, ResNet-50: 77.5 to 78.9"),
    claim("they are above multi-labels of the whole scene", ours, of(students.GLOBAL_MULTI),
          paper="78.5 to 78.9"),
    compare("they are above localized single labels", ours, of(students.LOCAL_SINGLE),
            requires=(*requires, several), paper="78.4 to 78.9"),
    claim("with them the first guess is in a scene more often than with one-hot labels",
          of(LOCAL_MULTI, "any label"), of(ONE_HOT, "any label")),
    claim("they are at most 2 points behind an annotator that looks at every crop", ours,
          of(DISTILLED), margin=-0.02),
  ]  # fmt: skip


def figure(results: Results):
  """Precision against the scale of crops; a scene, three crops, and their labels."""
  figure, (curve, scene, *bars) = plots.panels(5, width=3.6)
  for method in results.distinct("method", quantity=PRECISION):
    if method != GENTLE:
      plots.curves(curve, results, PRECISION, x="scale", method=method)
  curve.set(xlabel="smallest area of a crop")
  plots.legend_below(figure, curve, columns=5)
  example = results.extras
  if "scene" not in example:
    return figure
  size = len(example["scene"])
  scene.imshow(example["scene"][..., 0], cmap="gray_r", extent=(0, size, size, 0))
  scene.set(title=f"labeled {int(example['label'])}", xticks=[], yticks=[])
  for i, ax in enumerate(bars):
    top, left, bottom, right = size * example["boxes"][i]
    edges = [left, right, right, left, left], [top, top, bottom, bottom, top]
    scene.plot(*edges, color=f"C{i}", label=f"crop {i + 1}")
    ax.bar(np.arange(scenes.NUM_CLASSES), example["pooled"][i], color=f"C{i}", label="pooled")
    ax.plot(int(example["label"]), 1.0, "kv", label="one-hot")
    ax.set(title=f"crop {i + 1}", xlabel="class", ylim=(0, 1.7), xticks=range(scenes.NUM_CLASSES))
    ax.legend(fontsize=7, loc="upper left")
    picture = ax.inset_axes((0.7, 0.68, 0.28, 0.3))
    picture.imshow(example["crops"][i, ..., 0], cmap="gray_r")
    picture.set(xticks=[], yticks=[])
  return figure


def abstract(config: Config, mesh):
  """An update of the annotator, for a dry run."""
  module, rows = students.SceneNet(config.annotator_widths), config.batch_size
  batch = Split(
    jax.ShapeDtypeStruct((rows, config.size, config.size, 1), jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
  )
  optimizer = adamw_cosine(config.learning_rate, config.annotator_steps)
  return abstract_step(module, classification_loss(module), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
