"""Early exits: gates trained jointly with the classifiers they open, against confidence thresholds.

The backbone is trained first and frozen, so that its features are computed once and the exits are
trained on them. One weight of the cost gives one point of the curve of accuracy against cost.
"""

import dataclasses
import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from experiments.mixing_adaptation.jei_dnn_exits import CONFIDENT, MAIN, UNWEIGHTED, judge_exits
from experiments.mixing_adaptation.jei_dnn_judging import judge_seed
from jaxlab import data, metrics, models, training

PAPER = "jei_dnn"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is judged."""

  dataset: str = "mnist1d"  # MNIST-1D, or a tfds set of images.
  signal_noise: float = 0.5  # Correlated noise of MNIST-1D; its default, 0.25, leaves few errors.
  num_train: int = 8000  # Training examples.
  num_validation: int = 2000  # For gate weights, thresholds and calibration.
  num_test: int = 4000  # Examples that everything is judged on.
  num_classes: int = 10  # Classes.
  num_blocks: int = 6  # Blocks, with an exit after each.
  width: int = 48  # Channels of a block.
  num_heads: int = 4  # Attention heads, for images.
  image_size: int = 224  # To which images are brought.
  patch_size: int = 16  # Of the patches of an image.
  batch_size: int = 100  # Rows an update.
  backbone_steps: int = 600  # Updates of the backbone.
  backbone_learning_rate: float = 3e-3  # Its peak; cosine to 0.
  warmup_steps: int = 1000  # Updates of all classifiers before the gates.
  joint_steps: int = 2000  # Updates of gates and classifiers in turns.
  period: int = 50  # Updates of a turn.
  learning_rate: float = 0.1  # Of the classifiers; cosine to 0, from anew in the joint phase.
  gate_learning_rate: float = 1.0  # Of the gates; likewise.
  momentum: float = 0.9  # Of classifiers and gates.
  weight_decay: float = 0.0  # Of classifiers and gates.
  max_pos_weight: float = 1.0  # Largest weight of an open gate's target.
  cost_weights: tuple[float, ...] = (  # A point of the curve each.
    *(0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85),
    *(1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.25, 2.5),
  )
  alpha: float = 0.05  # Miscoverage of the prediction sets.


PRESETS = {
  "smoke": Config(
    num_train=200,
    num_validation=80,
    num_test=100,
    num_blocks=3,
    width=4,
    batch_size=20,
    backbone_steps=4,
    warmup_steps=4,
    joint_steps=8,
    period=2,
    cost_weights=(0.1, 1.0),
  ),
  "laptop": Config(),
  # Depth, width and heads of T2T-ViT-7; the paper starts from weights trained on ImageNet.
  "paper": Config(
    dataset="cifar10",
    num_train=45_000,
    num_validation=5000,
    num_test=10_000,
    num_blocks=7,
    width=256,
    batch_size=64,
    backbone_steps=42_000,
    backbone_learning_rate=5e-4,
    warmup_steps=3500,
    joint_steps=10_800,
    period=200,
    learning_rate=0.01,
    gate_learning_rate=0.01,
    weight_decay=5e-4,
    max_pos_weight=5.0,
    cost_weights=(0.01, 0.05, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0),
  ),
}


class ConvolutionStage(nn.Module):
  """Convolution, batch normalisation, ReLU."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, hidden, *, train=False):
    """Runs the stage on signals `[b, t, c]`."""
    hidden = models.Conv(self.width, 5, strides=self.stride)(hidden)
    return nn.relu(models.GhostBatchNorm()(hidden, use_running_average=not train))


class PatchStage(nn.Module):
  """Patches of an image, each with its place."""

  width: int
  image_size: int
  patch_size: int

  @nn.compact
  def __call__(self, images, *, train=False):
    """Turns images `[b, h, w, c]` into tokens `[b, n, width]`."""
    size = self.image_size
    images = jax.image.resize(images, (len(images), size, size, images.shape[-1]), "bilinear")
    patches = models.Conv(self.width, (self.patch_size,) * 2, self.patch_size)(images)
    tokens = patches.reshape(len(images), -1, self.width)
    return tokens + self.param("places", nn.initializers.normal(0.02), tokens.shape[1:])


class EncoderStage(nn.Module):
  """A transformer block: attention and a two-layer network, normalised first."""

  width: int
  num_heads: int

  @nn.compact
  def __call__(self, tokens, *, train=False):
    """Runs the stage on tokens `[b, n, width]`."""
    normed = nn.LayerNorm()(tokens)
    tokens += nn.MultiHeadDotProductAttention(self.num_heads)(normed, normed)
    hidden = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(tokens)))
    return tokens + nn.Dense(self.width)(hidden)


class Chain(nn.Module):
  """Several modules as one stage."""

  parts: tuple[nn.Module, ...]

  def __call__(self, hidden, *, train=False):
    """Runs them one after the other."""
    for part in self.parts:
      hidden = part(hidden, train=train)
    return hidden


def network(config: Config) -> models.EarlyExitNet:
  """Signals: blocks of which every other one halves the length. Images: a transformer."""
  if config.dataset == "mnist1d":
    stages = [ConvolutionStage(config.width, 2 - i % 2) for i in range(config.num_blocks)]
  else:
    stages = [EncoderStage(config.width, config.num_heads) for _ in range(config.num_blocks)]
    patches = PatchStage(config.width, config.image_size, config.patch_size)
    stages[0] = Chain((patches, stages[0]))
  return models.EarlyExitNet(tuple(stages), config.num_classes)


def splits(config: Config) -> tuple[classification.Split, ...]:
  """Training, validation and test data."""
  sizes = config.num_train, config.num_validation, config.num_test
  if config.dataset == "mnist1d":
    return classification.mnist1d_splits(*sizes, corr_noise_scale=config.signal_noise)
  parts = f"train[:{sizes[0]}]", f"train[{sizes[0]}:{sizes[0] + sizes[1]}]", f"test[:{sizes[2]}]"
  arrays = [data.as_arrays(data.load_source(config.dataset, split=part)) for part in parts]
  return tuple(
    classification.Split(a["image"] / np.float32(255), a["label"].astype(np.int32)) for a in arrays
  )


def run(config: Config, context: common.Context) -> common.Results:
  """Backbones of all seeds; then, seed by seed, exits and gates on their features."""
  parts = splits(config)
  net = network(config)
  train = functools.partial(train_backbone, config=config, net=net, parts=parts)
  backbones = context.cached(
    "backbone", training.over_seeds, context.key, train, num_seeds=context.seeds
  )
  labels = tuple(part.labels for part in parts)
  costs = models.stage_costs(net, parts[0].inputs.shape[1:])
  judge = jax.jit(functools.partial(judge_exits, config=config, net=net))
  seeds = []
  for seed in range(context.seeds):
    own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], backbones)
    fn = functools.partial(judge_seed, judge, config, labels, costs)
    seeds.append(context.cached(f"exits/seed{seed}", fn, context.seed_key(seed), own))
  rows = {
    method: {name: [s["rows"][method][name] for s in seeds] for name in seeds[0]["rows"][method]}
    for method in seeds[0]["rows"]
  }
  return common.Results(rows, seeds[0]["extras"])


def train_backbone(key, *, config: Config, net, parts):
  """Trains the network by its last exit; gives the exits' parameters and all features."""
  schedule = optax.cosine_decay_schedule(config.backbone_learning_rate, config.backbone_steps)
  trained = classification.train(
    key,
    net,
    classification.classification_loss(net, final_loss),
    optax.adamw(schedule, weight_decay=1e-3),
    parts[0],
    num_steps=config.backbone_steps,
    batch_size=config.batch_size,
  )

  def features(inputs):
    pooled = classification.predict(net, trained.variables, jnp.asarray(inputs), method="features")
    return jnp.stack(pooled, axis=1)

  exits = {n: p for n, p in trained.params.items() if n.startswith(("heads", "gates"))}
  return {"exits": exits, "features": [features(part.inputs) for part in parts]}


def final_loss(apply, key, batch):
  """Cross-entropy of the last exit."""
  del key
  logits = apply(batch.inputs).logits[-1]
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements."""
  area = "curve/accuracy over common costs"
  found = [
    common.compare(
      f"accuracy over the common range of costs above that of {rival}",
      results[MAIN, area],
      results[rival, area],
      paper="above MSDNet's thresholds, L2W-DEN and BoostedNet at most costs",
    )
    for rival in (
      "thresholds",
      "thresholds, more training",
      "thresholds by share, more training",
    )
  ]
  found.append(
    common.compare(
      "weighting the classifiers adds to gates alone, over the same costs",
      results[MAIN, area],
      results[UNWEIGHTED, area],
    )
  )
  rival = "thresholds, more training"
  found.append(
    common.compare(
      "gates whose best exit is that of most confidence in the truth: accuracy above thresholds'",
      results[CONFIDENT, area],
      results[rival, area],
    )
  )
  bias, gap, size = (
    "exits/size of bias, exits 0 and 1",
    "sets/off the level",
    "sets/size",
  )
  return found + [
    common.compare(
      "confidence less accuracy at the first two exits nearer 0 than with thresholds",
      results[MAIN, bias],
      results[rival, bias],
      better="lower",
    ),
    common.compare(
      "exit-wise prediction sets cover the truth at the level, to 2%",
      results[MAIN, gap],
      0.02,
      better="lower",
    ),
    common.compare(
      "exit-wise prediction sets smaller than with thresholds at the same cost",
      results[MAIN, size],
      results[rival, size],
      better="lower",
      paper="lower inefficiency at the same cost",
    ),
  ]


def figure(results: common.Results):
  """Accuracy for cost, where samples leave, confidence and sets."""
  import matplotlib.pyplot as plt

  extras, quantities = results.extras, results.quantities
  fig, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
  curves = {
    name.partition("/")[2]: tuple(points)
    for name, points in extras.items()
    if name.startswith("points/")
  }
  metrics.plot_cost_accuracy(curves, ax=axes[0, 0])
  axes[0, 0].set(title="One seed", xlabel="cost (share of all operations)")
  axes[0, 0].grid(alpha=0.3)
  rival = "thresholds, more training"
  for ax, method in ((axes[0, 1], MAIN), (axes[1, 0], rival)):
    share = extras[f"share/{method}"]
    ax.stackplot(
      range(len(share)), share.T, labels=[f"exit {l}" for l in range(share.shape[1])], alpha=0.8
    )
    ax.set_xticks(range(len(share)), [f"{cost:.2f}" for cost in extras[f"costs/{method}"]])
    ax.set(xlabel="mean cost", ylabel="share of samples that leave", title=method)
    ax.legend(fontsize=6, loc="lower right")
  ax = axes[1, 1]
  methods = [name for name in quantities if "sets/size" in quantities[name]]
  for method in methods:
    bias = common.quantity(quantities[method]["exits/size of bias, exits 0 and 1"])
    size = common.quantity(quantities[method]["sets/size"])
    errors = np.nan_to_num([[size.standard_error], [bias.standard_error]])
    ax.errorbar(bias.mean, size.mean, errors[0], errors[1], fmt="o", label=method)
  ax.set(
    xlabel="|confidence - accuracy|, exits 0 and 1", ylabel="labels in a set, at the same cost"
  )
  ax.legend(fontsize=7)
  ax.grid(alpha=0.3)
  return fig


def abstract(config: Config, mesh):
  """The step of the backbone's training, for a dry run."""
  net = network(config)
  optimizer = optax.adamw(config.backbone_learning_rate, weight_decay=1e-3)
  shape = (40, 1) if config.dataset == "mnist1d" else (32, 32, 3)
  inputs = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)

  def init(key, inputs):
    variables = dict(net.init(key, inputs))
    return training.init_state(key, variables.pop("params"), optimizer, model_state=variables)

  state = jax.eval_shape(init, jax.random.key(0), inputs)
  loss = classification.classification_loss(net, final_loss)
  labels = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  batch = classification.Split(inputs, labels)
  return training.build_update(loss, optimizer, mesh=mesh), state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
