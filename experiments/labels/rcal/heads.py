"""Linear heads on frozen features, each learning from other points; and two without training."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.train import agrees
from experiments.labels.rcal.problems import Task
from jaxlab import algorithms, metrics

PLAIN = CE, BALANCED, ADJUSTED, RELABELED = (
  "cross-entropy",
  "balanced cross-entropy",
  "logit adjustment",
  "relabeled by neighbors",
)
MEANS, SHARED = "nearest class mean", "one shared covariance"
SAMPLED = RAW, REMOVED, CALIBRATED, FULL, ORACLE, CLEAN = (
  "sampled",
  "sampled, outliers removed",
  "sampled, tails calibrated",
  "RCAL",
  "RCAL, wrong labels removed by an oracle",
  "RCAL, clean labels",
)
GROUPS = HEAD, MIDDLE, TAIL = "head", "middle", "tail"


class Points(NamedTuple):
  """Points `[n, ...]` with their weights, and what is added to scores `[k]` in training."""

  features: chex.Array
  labels: chex.Array
  weights: chex.Array
  offsets: chex.Array


def search_space(config) -> dict[str, list[dict[str, float]]]:
  """The settings of each trained row, at most four; what a row does not use changes nothing."""
  unused = ("power", "adjustment", "relabel", "head_weight", "inflation", "oracle", "clean")
  first = dict.fromkeys(unused, 0.0) | {"penalty": config.penalties[0], "threshold": 1e9}

  def product(**values: Sequence[float]):
    return [first | dict(zip(values, setting)) for setting in itertools.product(*values.values())]

  penalties, powers = {"penalty": config.penalties}, {"power": config.powers}
  thresholds = {"threshold": config.thresholds}
  calibration = {"head_weight": config.head_weights, "inflation": (config.inflation,)}
  return {
    CE: product(**penalties),
    BALANCED: product(**penalties, **powers),
    ADJUSTED: product(**penalties, adjustment=config.powers),
    RELABELED: product(**penalties, **powers, relabel=(1.0,)),
    RAW: product(**penalties),
    REMOVED: product(**penalties, **thresholds),
    CALIBRATED: product(**penalties, **calibration),
    FULL: product(**thresholds, **calibration),
    ORACLE: product(**penalties, **calibration, oracle=(1.0,)),
    CLEAN: product(**penalties, **calibration, clean=(1.0,)),
  }


def fit_head(points: Points, penalty: chex.Numeric, num_steps: int, learning_rate: float):
  """`features -> logits` of the least weighted cross-entropy, by Adam on all points."""
  shares = points.weights / jnp.maximum(jnp.sum(points.weights), 1e-9)
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

  def objective(params):
    logits = points.features @ params[0] + params[1] + points.offsets
    values = optax.softmax_cross_entropy_with_integer_labels(logits, points.labels)
    return jnp.sum(shares * values) + penalty / 2 * jnp.sum(params[0] ** 2)

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    return (optax.apply_updates(params, updates), state), None

  bias = jnp.zeros_like(points.offsets)
  start = jnp.zeros((points.features.shape[1], len(bias))), bias
  (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
  return lambda features: features @ params[0] + params[1]


def neighbor_labels(
  features: chex.Array, labels: chex.Array, *, num_classes: int, num_neighbors: int
) -> jax.Array:
  """The class with most votes of the nearest other points, for its size; int32 `[n]`."""
  squares = jnp.sum((features[:, None] - features[None]) ** 2, axis=-1)
  others = jnp.where(jnp.eye(len(features), dtype=bool), jnp.inf, squares)
  _, nearest = jax.lax.top_k(-others, num_neighbors)
  votes = jnp.sum(jax.nn.one_hot(labels[nearest], num_classes), axis=1)
  sizes = jnp.bincount(labels, length=num_classes)
  return jnp.argmax(votes / jnp.maximum(sizes, 1), axis=1)


def plain_points(config, key, task: Task, given: chex.Array, setting, counts: Sequence[int]):
  """The training points with weights by class, or offsets, or relabeled; nothing to note."""
  del key
  voted = neighbor_labels(
    task.inputs, given, num_classes=len(counts), num_neighbors=config.num_voters
  )
  labels = jnp.where(setting["relabel"] > 0, voted, given)
  num = jnp.maximum(jnp.bincount(labels, length=len(counts)), 1).astype(jnp.float32)
  offsets = setting["adjustment"] * jnp.log(num / len(labels))
  return Points(task.inputs, labels, num[labels] ** -setting["power"], offsets), {}


def sampled_points(config, key, task: Task, given: chex.Array, setting, counts: Sequence[int]):
  """Points that are kept, and draws that make all classes equally large; who was removed."""
  num, most = len(counts), counts[0]
  labels = jnp.where(setting["clean"] > 0, task.truth, given)
  kept = metrics.class_inlier_weights(
    task.inputs,
    labels,
    num_classes=num,
    num_neighbors=config.num_neighbors,
    threshold=setting["threshold"],
  )
  kept = jnp.where(setting["oracle"] > 0, given == task.truth, kept)
  fitted = algorithms.fit_class_gaussians(task.inputs, labels, kept, num_classes=num)
  calibrated = algorithms.calibrate_tail_gaussians(
    *fitted,
    algorithms.tail_classes(fitted.count),
    num_heads=config.num_heads,
    head_weight=setting["head_weight"],
    inflation=setting["inflation"],
  )
  draws = algorithms.sample_class_gaussians(key, *calibrated, num_samples=most)
  missing = (jnp.arange(most)[None] < most - fitted.count[:, None]).astype(kept.dtype)
  more = draws.features.reshape(num * most, -1), draws.labels.ravel(), missing.ravel()
  parts = zip((task.inputs, labels, kept), more)
  removed, wrong = kept == 0, given != task.truth
  both = jnp.sum(removed & wrong)
  noted = {
    "wrong labels found": both / jnp.maximum(jnp.sum(wrong), 1),
    "removed labels that are wrong": both / jnp.maximum(jnp.sum(removed), 1),
  }
  return Points(*(jnp.concatenate(part) for part in parts), jnp.zeros(num)), noted


def score(logits_fn, task: Task, num_classes: int) -> dict[str, jax.Array]:
  """Accuracy on clean rows, a mean over classes: of all, and of head, middle and tail."""

  def by_class(split):
    right = agrees(logits_fn(split.inputs), split.labels)
    members = jax.nn.one_hot(split.labels, num_classes)
    return right @ members / jnp.maximum(jnp.sum(members, axis=0), 1)

  test, third = by_class(task.test), num_classes // 3
  groups = test[:third], test[third:-third], test[-third:]
  means = {name: jnp.mean(group) for name, group in zip(GROUPS, groups)}
  validation = jnp.mean(by_class(task.validation))
  return {"accuracy": jnp.mean(test), "validation": validation, "classes": test, **means}


def densities(task: Task, given: chex.Array, num_classes: int) -> dict[str, dict[str, jax.Array]]:
  """The rows that train nothing: Gaussians of equal priors and one covariance, round or fitted."""
  fitted = algorithms.fit_class_gaussians(task.inputs, given, num_classes=num_classes)
  freedom = jnp.maximum(fitted.count - 1, 0)
  pooled = jnp.einsum("k,kij->ij", freedom, fitted.covariance) / jnp.maximum(jnp.sum(freedom), 1)
  found = {}
  for row, covariance in ((MEANS, jnp.eye(len(pooled))), (SHARED, pooled)):
    same = jnp.broadcast_to(covariance, fitted.covariance.shape)
    density = functools.partial(algorithms.class_log_density, mean=fitted.mean, covariance=same)
    found[row] = {name: x[None] for name, x in score(density, task, num_classes).items()}
  return found


def evaluate(
  config, counts: Sequence[int], key: chex.PRNGKey, task: Task, given: chex.Array
) -> dict[str, dict[str, jax.Array]]:
  """All rows at one noise rate: method -> quantity -> `[settings, ...]`."""
  space, found = search_space(config), densities(task, given, len(counts))
  for rows, points_of in ((PLAIN, plain_points), (SAMPLED, sampled_points)):

    def one(setting, points_of=points_of):
      points, noted = points_of(config, key, task, given, setting, counts)
      head = fit_head(points, setting["penalty"], config.head_steps, config.head_rate)
      return score(head, task, len(counts)) | noted

    settings = [setting for row in rows for setting in space[row]]
    scores = jax.lax.map(
      one, {name: jnp.array([s[name] for s in settings]) for name in settings[0]}
    )
    ends = np.cumsum([len(space[row]) for row in rows])
    for row, end in zip(rows, ends):
      found[row] = {name: x[end - len(space[row]) : end] for name, x in scores.items()}
  return found
