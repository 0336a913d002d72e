"""Descent on patches: whether the feature that few examples carry is learned."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import optax

from experiments.kit.train import agrees
from jaxlab import data, losses, metrics, models

ALIGNED, PERMUTED = "aligned", "permuted"
PLAIN, MIXUP, STOPPED = "plain", "mixup", "mixup, stopped early"
LABELS, WEIGHTED = "labels mixed alone", "plain, rare examples weighted"


def descents(config) -> list[tuple[str, dict, dict]]:
  """(method, what its records say beside it, the numbers that `descend` takes) of every descent."""
  until, ratios = config.descent_steps, {"ratio": config.ratio, "label_ratio": config.ratio}
  mixup = {"until": until, "rare_weight": 1.0, **ratios}
  methods = {
    PLAIN: mixup | {"until": 0},
    MIXUP: mixup,
    STOPPED: mixup | {"until": config.stop},
    # What mixup does to labels, without what it does to inputs: smoothing.
    LABELS: mixup | {"ratio": 1.0},
    # A baseline that knows which examples are rare: 6% of them.
    WEIGHTED: mixup | {"until": 0, "rare_weight": 1 / 0.06},
  }
  shown = itertools.product((ALIGNED, PERMUTED), methods.items())
  return [
    (method, {"arrangement": arrangement}, {"aligned": arrangement == ALIGNED, **numbers})
    for arrangement, (method, numbers) in shown
    if arrangement == ALIGNED or method in (PLAIN, MIXUP)
  ]


def descend(config, key, splits, setting) -> dict[str, jax.Array]:
  """Alignments and errors along one descent, `[measurements]` each, the first before any step."""
  del splits  # Drawn here.
  keys = jax.random.split(key, 4)
  sample = partial(data.sample_patches, dim=config.dim)
  drawn = sample(keys[0], num_samples=config.num_examples, stratified=True)
  train = jax.tree.map(partial(jnp.where, setting["aligned"]), aligned(drawn), drawn)
  tests = {
    name: sample(keys[1 + rare], num_samples=config.num_test, rare=bool(rare))
    for rare, name in enumerate(("common", "rare"))
  }

  def mixed(weights):
    logits = models.all_pairs_patch_logits(weights, train.patches, ratio=setting["ratio"])
    return losses.all_pairs_mixup_loss(
      logits, train.labels, ratio=setting["ratio"], label_ratio=setting["label_ratio"]
    ).mean()

  def plain(weights):
    logits = models.patch_cnn_logits(weights, train.patches)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, train.labels)
    return jnp.mean(values * jnp.where(train.is_rare, setting["rare_weight"], 1.0))

  def step(weights, t):
    grads = jax.lax.cond(t < setting["until"], jax.grad(mixed), jax.grad(plain), weights)
    return weights - config.step_size * grads, None

  def error(weights, examples):
    logits = models.patch_cnn_logits(weights, examples.patches)
    return jnp.mean(1 - agrees(logits, examples.labels))

  def measure(weights):
    alignment = metrics.feature_alignment(weights, train.features)
    return {
      "common alignment": (alignment[0, 0] + alignment[1, 1]) / 2,
      "rare alignment": (alignment[0, 2] + alignment[1, 3]) / 2,
      "training error": error(weights, train),
      **{f"{name} error": error(weights, examples) for name, examples in tests.items()},
    }

  def phase(weights, steps):
    weights, _ = jax.lax.scan(step, weights, steps)
    return weights, measure(weights)

  # The objective is a mean over all pairs: there are no batches for `kit.train` to draw.
  start = models.init_patch_cnn(keys[3], num_filters=config.num_filters, dim=config.dim)
  steps = jnp.arange(config.descent_steps).reshape(-1, config.log_every)
  _, later = jax.lax.scan(phase, start, steps)
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), measure(start), later)


def aligned(examples: data.PatchData) -> data.PatchData:
  """The same examples, the patch of the feature first and the distractor's second."""
  strength = jnp.abs(examples.patches @ examples.features.T).max(-1)
  order = jnp.argsort(-strength, axis=1)
  return examples._replace(patches=jnp.take_along_axis(examples.patches, order[..., None], axis=1))
