"""Few-shot tasks on novel classes: their scenes, and the inference of every method."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mixing_adaptation.repri import base, coco
from jaxlab import algorithms, data, metrics, training

MAIN, ORACLE = "RePRI", "oracle share"


def variants(config, shots: int) -> dict[str, dict[str, float]]:
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


def evaluate_tasks(segment, config, shots: int, noise: float, key, variables) -> dict:
  """Mean IoU of every method on the same tasks, and some queries to look at."""
  scenes = novel_scenes(key, noise, config)
  features = base.unit_features(variables, scenes.images, config)
  masks = np.asarray(scenes.masks)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  tasks = draw_tasks(config, masks, shots, rng)
  counts = jax.device_get(segment((features, jnp.asarray(masks)), tasks))
  ids = np.searchsorted(config.novel_classes, tasks["class"])
  num = len(config.novel_classes)
  measured = {}
  for method, counted in counts.items():
    iou = metrics.mean_iou_by_class(counted["intersection"], counted["union"], ids, num_classes=num)
    measured[method] = {"mean IoU": float(iou.mean)}
  share_error = np.mean(np.abs(counts[MAIN]["share"] - counts[ORACLE]["share"]))
  measured[MAIN]["error of the foreground share"] = share_error
  query = tasks["scenes"][:3, 0]
  truth = masks[query] == tasks["class"][:3, None, None] + 1
  shown = {"query": np.asarray(scenes.images)[query].clip(0, 1), "truth": truth}
  shown |= {method: counted["foreground"][:3] for method, counted in counts.items()}
  return {"measured": measured, "shown": shown}


def novel_scenes(key, noise: float, config) -> data.Scenes:
  """Scenes of the novel classes."""
  if config.dataset == "coco":
    novel = np.array(config.novel_classes) + 1
    batches = coco.scene_batches("validation", 1, config.size, num_epochs=1)
    shows = (batch for batch in batches if np.isin(batch["mask"], novel).any())
    chosen = itertools.islice(shows, config.num_novel)
    chosen = [data.Scenes(batch["image"][0], batch["mask"][0]) for batch in chosen]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
  return _draw_novel(jax.random.fold_in(key, 1), noise, config)


@functools.partial(jax.jit, static_argnames="config")
def _draw_novel(key, noise, config) -> data.Scenes:
  return data.sample_shape_scenes(
    key,
    num_samples=config.num_novel,
    classes=config.novel_classes,
    size=config.size,
    clutter=config.clutter,
    noise=noise,
  )


def draw_tasks(config, masks, shots: int, rng) -> dict[str, np.ndarray]:
  """A class a task, and distinct scenes that show it: the query, then the support."""
  small = np.asarray(base.coarse(masks, config))
  classes = rng.permutation(np.arange(config.num_tasks) % len(config.novel_classes))
  classes = np.array(config.novel_classes)[classes]
  shows = {
    c: np.flatnonzero((small == c + 1).sum((1, 2)) >= config.min_pixels)
    for c in config.novel_classes
  }
  chosen = [rng.choice(shows[c], shots + 1, replace=False) for c in classes]
  return {"class": classes, "scenes": np.stack(chosen)}


def segmenter(config, shots: int, mesh):
  """A compiled `(pool, tasks) -> method -> counts and foreground`, tasks spread over devices."""
  methods = variants(config, shots)
  settings = jax.tree.map(lambda *values: jnp.array(values), *methods.values())

  def one(pool, task):
    features, masks = pool
    chosen = masks[task["scenes"]]
    target = jnp.where(chosen == coco.IGNORE, chosen, chosen == task["class"] + 1)
    small = base.coarse(target, config)
    own = features[task["scenes"]]
    support, query = own[1:][None], own[:1][None]
    valid = small[:1] != coco.IGNORE
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

    stacked = jax.lax.map(infer, settings)  # One program serves all methods.
    oracle = infer({"learning_rate": config.inference_rate, "proportion": share})
    return {
      method: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, method in enumerate(methods)
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
