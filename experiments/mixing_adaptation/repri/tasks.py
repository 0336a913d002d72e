"""Few-shot tasks: their scenes, and the inference of every method at every learning rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.sweep import choose
from experiments.mixing_adaptation.repri import base, coco
from jaxlab import algorithms, metrics, training

PROTOTYPE, CE, ENTROPY, MAIN, ORACLE = "prototype", "CE", "CE + H", "RePRI", "oracle share"
# Whether the prototype descends, and whether the entropy and the foreground's share join the loss.
METHODS = {
  PROTOTYPE: (0.0, 0.0, 0.0),
  CE: (1.0, 0.0, 0.0),
  ENTROPY: (1.0, 1.0, 0.0),
  "CE + KL": (1.0, 0.0, 1.0),
  MAIN: (1.0, 1.0, 1.0),
}
IOU, SUPPORT_IOU = "mean IoU", "mean IoU on the support"
ESTIMATE, PREDICTED = "error of the estimated share", "error of the predicted share"
_UPDATE_STEP = 10  # The share is estimated anew after one step less.


def evaluate_seed(segment, config, shots: int, conditions, key, variables) -> dict:
  """Condition -> method -> quantity -> value; every method at its own learning rate.

  `segment` is `segmenter`, compiled; `conditions` has what is special to the scenes of each.
  """
  fixed = segment, config, shots, key, variables
  tuned = tune(*fixed)
  rates = np.float32([[row["learning rate"]] for row in tuned.values()])
  measured = {}
  for condition, options in conditions.items():
    scores = measure(*fixed, rates, kind="novel", **options)
    measured[condition] = jax.tree.map(lambda values: float(values[0]), scores)
  for method, row in tuned.items():
    measured[next(iter(conditions))][method] |= row
  return measured


def tune(segment, config, shots, key, variables) -> dict:
  """Method -> the learning rate that is best on tasks of the base classes, and its mean IoU."""
  rates = [{"learning rate": rate} for rate in config.learning_rates]
  grid = np.tile(np.float32(config.learning_rates), (1 + len(METHODS), 1))
  fixed = segment, config, shots, key, variables
  tuned = {}
  for method, row in measure(*fixed, grid, kind="base").items():
    best = choose({IOU: row[IOU][None]}, rates, select=IOU)
    (rate,) = best.get("chosen/learning rate", grid[0, :1])
    tuned[method] = {"learning rate": float(rate), f"base classes: {IOU}": float(best[IOU][0])}
  return tuned


def measure(segment, config, shots, key, variables, rates, *, kind: str, **options) -> dict:
  """Method -> quantity -> values `[rates]`, for learning rates `[methods, rates]`.

  `kind` says whether tasks are of "base" or "novel" classes; `options` are those of the scenes.
  """
  classes, num_tasks = getattr(config, f"{kind}_classes"), getattr(config, f"num_{kind}_tasks")
  # 0 and 1 would be the keys that the base training splits its own into.
  key = jax.random.fold_in(key, 2 + (kind == "base"))
  pool = base.scenes(key, config, classes, config.num_scenes, split="validation", **options)
  features = base.unit_features(variables, pool.images, config)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  tasks = draw_tasks(config, classes, num_tasks, np.asarray(pool.masks), shots, rng)
  counts, shares = jax.device_get(segment((features, jnp.asarray(pool.masks)), tasks, rates))
  ids, num = np.searchsorted(classes, tasks["class"]), len(classes)

  def ious(counts, shares):
    counts = np.moveaxis(counts, 1, 0)
    values = [metrics.mean_iou_by_class(*of.T, ids, num_classes=num).mean for of in counts]
    # Pixels of NaN are background, which makes a small foreground right by chance.
    return np.where(np.isnan(shares).any(0), np.nan, np.array(values, np.float64))

  def row(i):
    estimated, predicted, true = np.moveaxis(shares[:, i], -1, 0)
    query, support = np.moveaxis(counts[:, i], 2, 0)
    return {
      IOU: ious(query, predicted),
      SUPPORT_IOU: ious(support, predicted),
      "estimated share": estimated.mean(0),
      "predicted share": predicted.mean(0),
      "true share": true.mean(0),
      ESTIMATE: np.abs(estimated - true).mean(0),
      PREDICTED: np.abs(predicted - true).mean(0),
    }

  return {method: row(i) for i, method in enumerate((*METHODS, ORACLE))}


def draw_tasks(config, classes, num_tasks: int, masks, shots: int, rng) -> dict[str, np.ndarray]:
  """A class a task, and distinct scenes that show it: the query, then the support."""
  chosen = np.array(classes)[rng.permutation(np.arange(num_tasks) % len(classes))]
  pixels = {c: (base.coarse(masks, config) == c + 1).sum((1, 2)) for c in classes}
  shows = {c: np.flatnonzero(count >= config.min_pixels) for c, count in pixels.items()}
  scenes = [rng.choice(shows[c], shots + 1, replace=False) for c in chosen]
  return {"class": chosen, "scenes": np.stack(scenes)}


def segmenter(config, shots: int, mesh):
  """A compiled `(pool, tasks, rates) -> (counts, shares)`, tasks spread over devices.

  For learning rates `[methods, rates]`: intersection and union, on the query and on the support,
  `[tasks, methods, rates, 2, 2]`; the share of foreground that is estimated, the one that is
  predicted, and the true one, `[tasks, methods, rates, 3]`.
  """
  switches = jnp.array(list(METHODS.values()))

  def one(pool, rates, task):
    features, masks = (array[task["scenes"]] for array in pool)
    target = jnp.where(masks == coco.IGNORE, masks, masks == task["class"] + 1)
    small = base.coarse(target, config)
    valid = small[:1] != coco.IGNORE
    true_share = jnp.sum(small[:1] == 1) / jnp.maximum(jnp.sum(valid), 1)
    support, query = features[1:][None], features[:1][None]

    def count(foreground, target):
      foreground = foreground.astype(jnp.int32)
      counts = metrics.intersection_and_union(foreground, target, num_classes=2)
      return jnp.stack([jnp.sum(count[:, 1]) for count in counts])

    def infer(rate, **arguments):
      result = algorithms.proportion_regularized_inference(
        support, small[1:][None], query, valid[None], learning_rate=rate, **arguments
      )
      own, others = (
        (algorithms.cosine_logits(of, result.prototype) - result.bias[:, None, None, None])[0]
        for of in (query, support)
      )
      on_query = count(upsample(own[0], config.size)[None] >= 0.0, target[:1])
      predicted = jnp.sum(result.foreground[0] * valid) / jnp.maximum(jnp.sum(valid), 1)
      shares = jnp.stack([result.proportion[0], predicted, true_share])
      return jnp.stack([on_query, count(others >= 0.0, small[1:])]), shares

    def method(switches, rates):
      descends, entropy, kl = switches
      # Where the share is not used, neither is its update, which would switch the KL term on.
      update_step = (_UPDATE_STEP * kl).astype(int)
      weights = {"entropy_weight": entropy / shots, "kl_weight": kl / shots}
      own = functools.partial(infer, proportion_update_step=update_step, **weights)
      return jax.vmap(own)(descends * rates)

    knowing = functools.partial(infer, proportion=true_share[None])
    parts = jax.vmap(method)(switches, rates[:-1]), jax.vmap(knowing)(rates[-1])
    return jax.tree.map(lambda some, last: jnp.concatenate([some, last[None]]), *parts)

  def many(shared, tasks):
    pool, rates = shared
    return jax.lax.map(functools.partial(one, pool, rates), tasks)

  parallel = training.data_parallel(many, mesh, sharded_outputs=True)
  return lambda pool, tasks, rates: parallel((pool, rates), tasks)


def upsample(maps, size: int):
  """Bilinear, corners aligned: `[h, w]` to `[size, size]`."""

  def weights(length):
    position = jnp.linspace(0.0, length - 1.0, size)[:, None]
    return jnp.maximum(1 - jnp.abs(position - jnp.arange(length)), 0)

  return weights(maps.shape[0]) @ maps @ weights(maps.shape[1]).T
