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

from experiments import common
from experiments.mixing_adaptation import repri_base, repri_coco
from jaxlab import algorithms, data, metrics, training

PAPER = "repri"
MAIN, ORACLE = "RePRI", "oracle share"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is judged."""

  dataset: Literal["shape_scenes", "coco"] = "shape_scenes"  # Drawn scenes, or COCO-20i.
  size: int = 32  # Height and width of a scene.
  base_classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # Families of the base training.
  novel_classes: tuple[int, ...] = (8, 9, 10, 11)  # Families of the tasks.
  num_train: int = 4000  # Scenes of the base training.
  noise: float = 0.1  # Pixel noise.
  clutter: int = 2  # Shapes beside the first one.
  widths: tuple[int, ...] = (32, 64, 64)  # Channels of the layers.
  strides: tuple[int, ...] = (1, 2, 1)  # Strides of the layers.
  batch_size: int = 16  # Scenes an update.
  num_steps: int = 1500  # Updates of the base training.
  learning_rate: float = 3e-3  # Its peak; cosine to 0.
  label_smoothing: float = 0.0  # Of the base training.
  shots: tuple[int, ...] = (1, 5, 10)  # Support scenes of a task.
  num_tasks: int = 400  # Tasks a setting and seed.
  num_novel: int = 1000  # Novel scenes that the tasks are made of.
  min_pixels: int = 6  # Foreground of every scene of a task, in pixels of the features.
  inference_steps: int = 50  # Of the method: the start and 49 gradient steps.
  inference_rate: float = 0.025  # Its learning rate.
  proportion_update_step: int = 10  # The share is estimated anew after one step less.
  shift_noise: float = 0.2  # Pixel noise of the shifted novel scenes.


PRESETS = {
  "smoke": Config(
    size=16,
    num_train=32,
    widths=(4, 8),
    strides=(1, 2),
    batch_size=8,
    num_steps=4,
    shots=(1, 2),
    num_tasks=8,
    num_novel=60,
    min_pixels=1,
    inference_steps=12,
    proportion_update_step=6,
  ),
  "laptop": Config(),
  # Fold 0 of COCO-20i; the paper starts from a ResNet-50 trained on ImageNet.
  "paper": Config(
    dataset="coco",
    size=417,
    base_classes=tuple(c for c in range(repri_coco.NUM_THINGS) if c % 4),
    novel_classes=tuple(range(0, repri_coco.NUM_THINGS, 4)),
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


def variants(config: Config, shots: int) -> dict[str, dict[str, float]]:
  """Each method as arguments of the inference."""
  own = {
    "learning_rate": config.inference_rate,
    "kl_weight": 1 / shots,
    "entropy_weight": 1 / shots,
    "proportion_update_step": config.proportion_update_step,
  }
  # Where the share is not used, neither is its update, which would switch the KL term on.
  free = own | {"kl_weight": 0.0, "proportion_update_step": config.inference_steps + 1}
  return {
    "prototype": free | {"learning_rate": 0.0},
    "CE": free | {"entropy_weight": 0.0},
    "CE + H": free,
    "CE + KL": own | {"entropy_weight": 0.0},
    MAIN: own,
  }


def run(config: Config, context: common.Context) -> common.Results:
  """Base networks of all seeds; then every setting of every seed."""
  if config.dataset == "coco":
    base = repri_base.train_on_coco(config, context)
    conditions = {"clean": 0.0}
  else:
    train = functools.partial(repri_base.train_base, config=config)
    base = context.cached("base", training.over_seeds, context.key, train, num_seeds=context.seeds)
    conditions = {"clean": config.noise, "shift": config.shift_noise}
  rows: dict[str, dict] = {}
  extras = {}
  segmenters = {shots: _segmenter(config, shots, context.mesh) for shots in config.shots}
  for condition, noise in conditions.items():
    for shots, segment in segmenters.items():
      for seed in range(context.seeds):
        variables = jax.tree.map(lambda leaf, seed=seed: leaf[seed], base["variables"])
        found = context.cached(
          f"{condition}/{shots} shots/seed{seed}",
          functools.partial(judge_tasks, segment, config, shots, noise),
          context.seed_key(seed),
          variables,
        )
        for method, value in found["iou"].items():
          row = rows.setdefault(method, {})
          row.setdefault(f"{condition}/mean IoU, {shots} shots", []).append(value)
        row = rows[MAIN]
        row.setdefault(f"share/error, {condition}, {shots} shots", []).append(found["share error"])
        if condition == "clean" and seed == 0:
          extras |= {f"{shots} shots/{name}": array for name, array in found["shown"].items()}
  if "accuracy" in base:
    rows["base network"] = {"base/pixel accuracy on base families": base["accuracy"]}
  return common.Results(rows, extras)


# ------------------------------------------------------------------------------------ inference


def judge_tasks(segment, config: Config, shots: int, noise: float, key, variables) -> dict:
  """Mean IoU of every method on the same tasks, and one task to look at."""
  scenes = _novel_scenes(key, noise, config)
  features = repri_base.unit_features(variables, scenes.images, config)
  masks = np.asarray(scenes.masks)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  tasks = draw_tasks(config, masks, shots, rng)
  counts = segment((features, jnp.asarray(masks)), tasks)
  ids = np.searchsorted(config.novel_classes, tasks["class"])
  iou = {
    method: float(
      metrics.mean_iou_by_class(
        counted["intersection"], counted["union"], ids, num_classes=len(config.novel_classes)
      ).mean
    )
    for method, counted in counts.items()
  }
  share_error = np.mean(np.abs(counts[MAIN]["share"] - counts[ORACLE]["share"]))
  shown = {f"foreground of {m}": np.asarray(c["foreground"][:3]) for m, c in counts.items()}
  query = tasks["scenes"][:3, 0]
  shown["images"] = np.asarray(scenes.images)[query].clip(0, 1)
  shown["truth"] = masks[query] == tasks["class"][:3, None, None] + 1
  return {"iou": iou, "share error": share_error, "shown": shown}


def _novel_scenes(key, noise: float, config: Config) -> data.Scenes:
  """Scenes of the novel classes."""
  if config.dataset == "coco":
    batches = repri_coco.scene_batches(
      split="validation", batch_size=1, size=config.size, seed=0, num_epochs=1
    )
    chosen = []
    for batch in batches:
      if np.isin(batch["mask"], np.array(config.novel_classes) + 1).any():
        chosen.append(data.Scenes(batch["image"][0], batch["mask"][0]))
      if len(chosen) == config.num_novel:
        break
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
  return _draw_novel(jax.random.fold_in(key, 1), noise, config)


@functools.partial(jax.jit, static_argnames="config")
def _draw_novel(key, noise, config: Config) -> data.Scenes:
  return data.sample_shape_scenes(
    key,
    num_samples=config.num_novel,
    classes=config.novel_classes,
    size=config.size,
    clutter=config.clutter,
    noise=noise,
  )


def draw_tasks(config: Config, masks, shots: int, rng) -> dict[str, np.ndarray]:
  """A class a task, and distinct scenes that show it: the query, then the support."""
  small = np.asarray(repri_base.coarse(masks, config))
  classes = rng.permutation(np.arange(config.num_tasks) % len(config.novel_classes))
  classes = np.array(config.novel_classes)[classes]
  shows = {
    c: np.flatnonzero((small == c + 1).sum((1, 2)) >= config.min_pixels)
    for c in config.novel_classes
  }
  chosen = [rng.choice(shows[c], shots + 1, replace=False) for c in classes]
  return {"class": classes, "scenes": np.stack(chosen)}


def _segmenter(config: Config, shots: int, mesh):
  """A compiled `(pool, tasks) -> method -> counts and foreground`, tasks spread over devices."""

  methods = variants(config, shots)
  stacked = jax.tree.map(lambda *values: jnp.array(values), *methods.values())

  def one(pool, task):
    features, masks = pool
    chosen = masks[task["scenes"]]
    target = jnp.where(chosen == repri_coco.IGNORE, chosen, chosen == task["class"] + 1)
    small = repri_base.coarse(target, config)
    own = features[task["scenes"]]
    support, query = own[1:][None], own[:1][None]
    valid = small[:1] != repri_coco.IGNORE
    share = (jnp.sum(small[:1] == 1) / jnp.maximum(jnp.sum(valid), 1))[None]

    def infer(arguments):
      result = algorithms.proportion_regularized_inference(
        support,
        small[1:][None],
        query,
        valid[None],
        num_steps=config.inference_steps,
        **arguments,
      )
      logits = algorithms.cosine_logits(query, result.prototype) - result.bias[:, None, None, None]
      foreground = jax.nn.sigmoid(upsample(logits[0, 0], config.size))
      counts = metrics.intersection_and_union(
        (foreground >= 0.5)[None].astype(jnp.int32), target[:1], num_classes=2
      )
      return {
        "intersection": counts.intersection[0, 1],
        "union": counts.union[0, 1],
        "share": result.proportion[0],
        "foreground": foreground,
      }

    found = jax.lax.map(infer, stacked)  # One program serves all methods.
    oracle = infer({"learning_rate": config.inference_rate, "proportion": share})
    return {
      method: jax.tree.map(lambda leaf, i=i: leaf[i], found) for i, method in enumerate(methods)
    } | {ORACLE: oracle | {"share": share[0]}}

  def many(pool, tasks):
    return jax.lax.map(functools.partial(one, pool), tasks)

  return training.data_parallel(many, mesh, sharded_outputs=True)


def upsample(maps, size: int):
  """Bilinear, corners aligned: `[h, w]` to `[size, size]`."""

  def weights(length):
    position = jnp.linspace(0.0, length - 1.0, size)[:, None]
    return jnp.maximum(1 - jnp.abs(position - jnp.arange(length)), 0)

  return weights(maps.shape[0]) @ maps @ weights(maps.shape[1]).T


# ------------------------------------------------------------------------------ claims and figure


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, at every number of shots."""
  names = [name for name in results.quantities[MAIN] if name.startswith("clean/")]
  iou = {
    method: np.array([row[name] for name in names])
    for method, row in results.quantities.items()
    if names[0] in row
  }
  shots = [name.rpartition(", ")[2] for name in names]
  found = []
  for rival in ("CE", "prototype"):
    found += [
      common.compare(
        f"{number}: mean IoU above that of {'cross-entropy alone' if rival == 'CE' else rival}",
        iou[MAIN][i],
        iou[rival][i],
        paper={"1 shots": 59.7, "5 shots": 66.6, "10 shots": 68.1}.get(number),
      )
      for i, number in enumerate(shots)
    ]
  for rival in ("prototype", "CE"):
    gain = iou[MAIN] - iou[rival]
    found.append(
      common.compare(
        f"the gain over {rival} grows from {shots[0]} to {shots[-1]}",
        gain[-1],
        gain[0],
        paper="gap to the best earlier method: 0 points at 1 shot, 5 to 6 at 5 and 10",
      )
    )
  found.append(
    common.compare(
      "entropy without the share of the foreground is worse, mean over shots",
      iou[MAIN].mean(0),
      iou["CE + H"].mean(0),
      paper="degenerate solutions without the KL term",
    )
  )
  found.append(
    common.compare(
      "knowing the true share gains 5 points more, mean over shots",
      iou[ORACLE].mean(0),
      iou[MAIN].mean(0),
      margin=0.05,
      paper="11.7 points at 1 shot",
    )
  )
  moved = [name for name in results.quantities[MAIN] if name.startswith("shift/")]
  if moved:
    found.append(
      common.compare(
        "novel scenes of twice the noise: mean IoU above cross-entropy alone, mean over shots",
        np.mean([results[MAIN, name] for name in moved], 0),
        np.mean([results["CE", name] for name in moved], 0),
        paper="COCO to PASCAL: 5 points above the best earlier method at 5 shots",
      )
    )
  return found


def figure(results: common.Results):
  """Mean IoU by shots, and three queries as each method sees them."""
  import matplotlib.pyplot as plt

  extras, quantities = results.extras, results.quantities
  shots = list(dict.fromkeys(name.split("/")[0] for name in extras))
  middle = shots[len(shots) // 2]
  methods = [name for name in quantities if f"{middle}/foreground of {name}" in extras]
  fig = plt.figure(figsize=(13, 7.5), layout="constrained")
  top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.3))
  names = {name.partition("/")[0] for name in quantities[MAIN]}
  conditions = [name for name in ("clean", "shift") if name in names]
  panels = top.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
  for ax, condition in zip(panels, conditions):
    for method in methods:
      values = [
        common.quantity(quantities[method][f"{condition}/mean IoU, {number}"]) for number in shots
      ]
      errors = np.nan_to_num([value.standard_error for value in values])
      style = "--" if method == ORACLE else "-"
      ax.errorbar(
        range(len(shots)), [value.mean for value in values], errors, fmt="o" + style, label=method
      )
    ax.set_xticks(range(len(shots)), shots)
    ax.set(title="Novel scenes" if condition == "clean" else "Novel scenes of twice the noise")
    ax.grid(alpha=0.3)
  ax.legend(fontsize=8, ncols=2)
  top.axes[0].set_ylabel("mean IoU")
  rows = len(extras[f"{middle}/images"])
  axes = bottom.subplots(rows, len(methods) + 2, squeeze=False)
  for i, row in enumerate(axes):
    pictures = {"query": extras[f"{middle}/images"][i], "truth": extras[f"{middle}/truth"][i]}
    pictures |= {method: extras[f"{middle}/foreground of {method}"][i] for method in methods}
    for ax, (name, picture) in zip(row, pictures.items()):
      ax.imshow(picture, cmap="viridis", vmin=0, vmax=1)
      ax.set_axis_off()
      if i == 0:
        ax.set_title(f"{name}, {middle}" if name == "query" else name, fontsize=9)
  return fig


def abstract(config: Config, mesh):
  """The step of the base training, for a dry run."""
  state = jax.eval_shape(functools.partial(repri_base.initial_state, config), jax.random.key(0))
  shape = config.batch_size, config.size, config.size
  batch = jax.eval_shape(
    lambda images, masks: repri_base.base_batch(images, masks, config),
    jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
  )
  return repri_base.base_update(config, mesh), state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
