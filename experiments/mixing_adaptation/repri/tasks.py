"""Few-shot tasks on novel classes: their scenes, and the inference of every method."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mixing_adaptation.repri import base, coco
from jaxlab import algorithms, data, metrics, training

MAIN, ORACLE = "RePRI", "oracle share"
# Whether the prototype descends, and whether the entropy and the foreground's share join the loss.
METHODS = {
  "prototype": (0.0, 0.0, 0.0),
  "CE": (1.0, 0.0, 0.0),
  "CE + H": (1.0, 1.0, 0.0),
  "CE + KL": (1.0, 0.0, 1.0),
  MAIN: (1.0, 1.0, 1.0),
}
_RATE = 0.025  # Of the descent.
_UPDATE_STEP = 10  # The share is estimated anew after one step less.

_sample = jax.jit(data.sample_shape_scenes, static_argnames=("num_samples", "classes", "size"))


def evaluate_tasks(segment, config, shots: int, noise: float, key, variables) -> dict:
  """Mean IoU of every method on the same tasks: method -> quantity -> value."""
  scenes = novel_scenes(key, noise, config)
  features = base.unit_features(variables, scenes.images, config)
  masks = np.asarray(scenes.masks)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  tasks = draw_tasks(config, masks, shots, rng)
  counts, shares = jax.device_get(segment((features, jnp.asarray(masks)), tasks))
  ids, num = np.searchsorted(config.novel_classes, tasks["class"]), len(config.novel_classes)
  measured = {}
  for i, method in enumerate((*METHODS, ORACLE)):
    iou = metrics.mean_iou_by_class(*counts[:, i].T, ids, num_classes=num)
    measured[method] = {"mean IoU": float(iou.mean)}
  error = np.mean(np.abs(shares[:, -2] - shares[:, -1]))  # The last one is the true share.
  measured[MAIN]["error of the foreground share"] = error
  return measured


def novel_scenes(key, noise: float, config) -> data.Scenes:
  """Scenes of the novel classes."""
  if config.dataset == "coco":
    novel = np.array(config.novel_classes) + 1
    batches = coco.scene_batches("validation", config.size, batch_size=1, seed=0, num_epochs=1)
    shows = (batch for batch in batches if np.isin(batch["mask"], novel).any())
    chosen = itertools.islice(shows, config.num_novel)
    chosen = [data.Scenes(batch["image"][0], batch["mask"][0]) for batch in chosen]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
  num, classes, size = config.num_novel, config.novel_classes, config.size
  key = jax.random.fold_in(key, 1)
  return _sample(key, num_samples=num, classes=classes, size=size, noise=noise)


def draw_tasks(config, masks, shots: int, rng) -> dict[str, np.ndarray]:
  """A class a task, and distinct scenes that show it: the query, then the support."""
  classes = rng.permutation(np.arange(config.num_tasks) % len(config.novel_classes))
  classes = np.array(config.novel_classes)[classes]
  pixels = {c: (base.coarse(masks, config) == c + 1).sum((1, 2)) for c in config.novel_classes}
  shows = {c: np.flatnonzero(count >= config.min_pixels) for c, count in pixels.items()}
  chosen = [rng.choice(shows[c], shots + 1, replace=False) for c in classes]
  return {"class": classes, "scenes": np.stack(chosen)}


def segmenter(config, shots: int, mesh):
  """A compiled `(pool, tasks) -> (counts, shares)` of all methods, tasks spread over devices."""

  def one(pool, task):
    features, masks = (array[task["scenes"]] for array in pool)
    target = jnp.where(masks == coco.IGNORE, masks, masks == task["class"] + 1)
    small = base.coarse(target, config)
    valid = small[:1] != coco.IGNORE
    true_share = jnp.sum(small[:1] == 1) / jnp.maximum(jnp.sum(valid), 1)
    support, query = features[1:][None], features[:1][None]

    def infer(**arguments):
      result = algorithms.proportion_regularized_inference(
        support, small[1:][None], query, valid[None], **arguments
      )
      logits = algorithms.cosine_logits(query, result.prototype) - result.bias[:, None, None, None]
      foreground = upsample(logits[0, 0], config.size)[None] >= 0.0
      counts = metrics.intersection_and_union(
        foreground.astype(jnp.int32), target[:1], num_classes=2
      )
      return jnp.array([count[0, 1] for count in counts]), result.proportion[0]

    def method(switches):
      descends, entropy, kl = switches
      # Where the share is not used, neither is its update, which would switch the KL term on.
      update_step = (_UPDATE_STEP * kl).astype(int)
      weights = {"entropy_weight": entropy / shots, "kl_weight": kl / shots}
      return infer(learning_rate=_RATE * descends, proportion_update_step=update_step, **weights)

    # One program serves all methods.
    counts, shares = jax.lax.map(method, jnp.array(list(METHODS.values())))
    own, _ = infer(learning_rate=_RATE, proportion=true_share[None])
    return jnp.concatenate([counts, own[None]]), jnp.append(shares, true_share)

  def many(pool, tasks):
    return jax.lax.map(functools.partial(one, pool), tasks)

  return training.data_parallel(many, mesh, sharded_outputs=True)


def upsample(maps, size: int):
  """Bilinear, corners aligned: `[h, w]` to `[size, size]`."""

  def weights(length):
    position = jnp.linspace(0.0, length - 1.0, size)[:, None]
    return jnp.maximum(1 - jnp.abs(position - jnp.arange(length)), 0)

  return weights(maps.shape[0]) @ maps @ weights(maps.shape[1]).T
