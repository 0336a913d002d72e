"""Mixup learns the feature that few examples carry, and may be stopped once it has.

First the model in which that can be proved: patches with a common and a rare feature of the class,
a two-layer network with square activation, full-batch descent on all pairs. The shared gradient
needs both features in one patch of a mixture, so the patches come in two arrangements: permuted in
every example, where a quarter of the pairs meet, and aligned, where all do. Then networks on
MNIST-1D (laptop) or CIFAR (paper), where labels are mixed in another ratio than inputs, or mixup
ends before training does.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from jaxlab import augment, data, losses, metrics, models, training

PAPER = "mixup_features"
ARRANGEMENTS = ("permuted", "aligned")


@dataclasses.dataclass(frozen=True)
class Config:
  """The patch data, the descent on them, and the networks' training."""

  num_examples: int = 100  # Training examples made of patches.
  dim: int = 500  # Dimension of a patch.
  num_filters: int = 10  # Filters a class.
  num_test: int = 2000  # Test examples of either kind.
  descent_steps: int = 1500  # Full-batch steps.
  step_size: float = 0.1  # Their size.
  ratio: float = 0.6  # Share of the first input of a pair.
  label_ratios: tuple[float, ...] = (0.9, 0.55)  # Shares of the first label that differ from it.
  stops: tuple[int, ...] = (400, 700, 1000)  # Steps after which mixup ends.
  log_every: int = 10  # Steps between measurements.
  dataset: str = "mnist1d"  # Of the networks: mnist1d, or a tfds name.
  num_train: int = 1000  # Training examples of mnist1d.
  network_steps: int = 2000  # SGD steps of the networks.
  batch_size: int = 100  # Examples an SGD step.
  learning_rate: float = 0.1  # Peak; momentum 0.9, cosine to 0.
  weight_decay: float = 1e-4  # Decoupled from the gradient.
  alpha: float = 1.0  # Inputs mix by Beta(alpha, alpha), folded to at least 1/2.
  label_ratio: float = 0.8  # The fixed share of the first label.
  stop_shares: tuple[float, ...] = (0.25, 0.5, 0.75)  # Shares of training after which mixup ends.
  num_evaluations: int = 20  # Test evaluations; the median of the last half counts.


PRESETS = {
  "smoke": Config(
    num_examples=20,
    dim=20,
    num_filters=2,
    num_test=20,
    descent_steps=20,
    stops=(10,),
    num_train=60,
    network_steps=4,
    batch_size=20,
    stop_shares=(0.5,),
    num_evaluations=2,
  ),
  "laptop": Config(),
  "paper": Config(
    dim=2000, num_examples=400, dataset="cifar10", network_steps=78_000, batch_size=128
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Descent on patches, then the networks."""
  rows: dict[str, dict] = {}
  extras = {}
  for arrangement in ARRANGEMENTS:
    patches = context.cached(arrangement, _descend, config, context, arrangement)
    extras |= {f"{arrangement}/{name}": value for name, value in patches.items()}
    # Half of what mixup brings the rare feature to: where methods are compared alike.
    reference = patches["rare alignment"][:, 1, -1] / 2
    for i, method in enumerate(_descents(config)):
      measured = {name: values[:, i] for name, values in patches.items()}
      row = _patch_row(measured, reference)
      rows.setdefault(method, {}).update({f"{arrangement}/{name}": v for name, v in row.items()})
  accuracy = context.cached("networks", _train_networks, config, context)
  for i, method in enumerate(_mixings(config)):
    last = accuracy[:, i, -(config.num_evaluations // 2) :]
    rows.setdefault(method, {})["networks/accuracy"] = np.median(last, axis=1)
    extras[f"networks/{method}"] = accuracy[:, i].mean(0)
  return common.Results(rows, extras)


# ---------------------------------------------------------------------------------------- patches


def _descents(config: Config) -> dict[str, tuple[float, float, float]]:
  """Method -> last step of mixup, share of the first label, weight of a rare example."""
  whole = config.descent_steps
  found = {"plain": (0, config.ratio, 1.0), "mixup": (whole, config.ratio, 1.0)}
  found |= {f"mixup, labels {ratio:g}": (whole, ratio, 1.0) for ratio in config.label_ratios}
  found |= {f"mixup until step {stop}": (stop, config.ratio, 1.0) for stop in config.stops}
  # A rival that knows which examples are rare: 6% of them.
  return found | {"plain, rare examples weighted": (0, config.ratio, 1 / 0.06)}


def _descend(config: Config, context: common.Context, arrangement: str) -> dict[str, np.ndarray]:
  """Every quantity `[seeds, methods, measurements]` along all descents, as one program."""
  settings = jnp.array(list(_descents(config).values()), jnp.float32)

  def one_seed(key):
    keys = jax.random.split(key, 4)
    sample = functools.partial(data.sample_patches, dim=config.dim)
    train = sample(keys[0], num_samples=config.num_examples, stratified=True)
    if arrangement == "aligned":
      train = _aligned(train)
    tests = {
      name: sample(keys[1 + rare], num_samples=config.num_test, rare=bool(rare))
      for rare, name in enumerate(("common", "rare"))
    }
    start = models.init_patch_cnn(keys[3], num_filters=config.num_filters, dim=config.dim)
    return jax.lax.map(lambda s: _one_descent(config, s, start, train, tests), settings)

  return training.over_seeds(context.key, one_seed, num_seeds=context.seeds, mesh=context.mesh)


def _aligned(examples: data.PatchData) -> data.PatchData:
  """The same examples, the patch of the feature first and the distractor's second."""
  strength = jnp.abs(examples.patches @ examples.features.T).max(-1)
  order = jnp.argsort(-strength, axis=1)
  return examples._replace(patches=jnp.take_along_axis(examples.patches, order[..., None], axis=1))


def _one_descent(config: Config, setting, start, train, tests) -> dict[str, jax.Array]:
  """Alignments and errors, `[measurements]` each, the first one before any step."""
  mixup_until, label_ratio, rare_weight = setting

  def mixed(weights):
    logits = models.all_pairs_patch_logits(weights, train.patches, ratio=config.ratio)
    values = losses.all_pairs_mixup_loss(
      logits, train.labels, ratio=config.ratio, label_ratio=label_ratio
    )
    return values.mean()

  def plain(weights):
    values = optax.softmax_cross_entropy_with_integer_labels(
      models.patch_cnn_logits(weights, train.patches), train.labels
    )
    return jnp.mean(values * jnp.where(train.is_rare, rare_weight, 1.0))

  def step(weights, t):
    grads = jax.lax.cond(t < mixup_until, jax.grad(mixed), jax.grad(plain), weights)
    return weights - config.step_size * grads, None

  def error(weights, examples):
    predicted = jnp.argmax(models.patch_cnn_logits(weights, examples.patches), axis=-1)
    return jnp.mean(predicted != examples.labels)

  def measure(weights):
    aligned = metrics.feature_alignment(weights, train.features)
    return {
      "common alignment": (aligned[0, 0] + aligned[1, 1]) / 2,
      "rare alignment": (aligned[0, 2] + aligned[1, 3]) / 2,
      "training error": error(weights, train),
      **{f"{name} error": error(weights, examples) for name, examples in tests.items()},
    }

  def phase(weights, steps):
    weights, _ = jax.lax.scan(step, weights, steps)
    return weights, measure(weights)

  steps = jnp.arange(config.descent_steps).reshape(-1, config.log_every)
  _, later = jax.lax.scan(phase, start, steps)
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), measure(start), later)


def _patch_row(measured: dict[str, np.ndarray], reference: np.ndarray) -> dict[str, np.ndarray]:
  """The end of a descent, and the rare error when its alignment first reaches the reference."""
  alignment = measured["rare alignment"]
  row = {
    name: measured[name][:, -1]
    for name in ("training error", "common error", "rare error", "common alignment")
  }
  row["rare alignment"] = alignment[:, -1]
  row["rare alignment, growth"] = alignment[:, -1] / alignment[:, 0]
  reached = alignment >= reference[:, None]
  if reached.any(1).all():
    first = reached.argmax(1)
    row["rare error at equal alignment"] = measured["rare error"][np.arange(len(first)), first]
  return row


# --------------------------------------------------------------------------------------- networks


_LABELS = ("same", "fixed", "apart")


def _mixings(config: Config) -> dict[str, tuple[int, float]]:
  """Method -> how labels are mixed (of `_LABELS`), and the share of training that mixes."""
  found = {"plain": (0, 0.0), "mixup": (0, 1.0)}
  found[f"mixup, labels {config.label_ratio:g}"] = (1, 1.0)
  found["mixup, labels drawn apart"] = (2, 1.0)
  return found | {f"mixup for {share:g} of training": (0, share) for share in config.stop_shares}


def _splits(config: Config) -> tuple[classification.Split, ...]:
  if config.dataset == "mnist1d":
    return classification.mnist1d_splits(config.num_train, 4 * config.num_train)
  return classification.image_splits(config.dataset)


def _network(config: Config):
  return models.ConvNet(10) if config.dataset == "mnist1d" else models.resnet18(10, stem="cifar")


def _mixing_loss(config: Config, network):
  """Cross-entropy of mixtures; (labels, mixes) of a step say how labels mix, and whether at all."""

  def loss(apply, key, batch):
    (inputs, labels), (kind, mixes) = batch
    key, label_key = jax.random.split(key)
    draw_mix = functools.partial(
      augment.draw_mix, batch_size=len(labels), alpha=config.alpha, majority=True
    )
    ratio, partners = draw_mix(key)
    shares = [ratio, jnp.full_like(ratio, config.label_ratio), draw_mix(label_key).ratio]
    label_ratio = jnp.select([kind == i for i in range(len(_LABELS))], shares)
    ratio, label_ratio = (jnp.where(mixes, share, 1.0) for share in (ratio, label_ratio))
    logits = apply(augment.interpolate_pairs(inputs, partners, ratio)).logits
    return losses.mixup_cross_entropy(logits, labels, labels[partners], label_ratio)

  return classification.classification_loss(network, loss)


def _optimizer(config: Config) -> optax.GradientTransformation:
  schedule = optax.cosine_decay_schedule(config.learning_rate, config.network_steps)
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, momentum=0.9)
  )


def _train_networks(config: Config, context: common.Context) -> np.ndarray:
  """Test accuracy `[seeds, methods, evaluations]`, as one program."""
  train, test = _splits(config)
  network = _network(config)
  settings = jnp.array(list(_mixings(config).values()))

  def one_method(key, setting):
    kind, share = setting
    steps = jnp.arange(config.network_steps)
    return classification.train(
      key,
      network,
      _mixing_loss(config, network),
      _optimizer(config),
      train,
      num_steps=config.network_steps,
      batch_size=config.batch_size,
      schedule=(jnp.full(steps.shape, kind), steps < share * config.network_steps),
      evaluate=lambda trained: classification.accuracy(network, trained.variables, test),
      eval_every=config.network_steps // config.num_evaluations,
    ).scores

  def one_seed(key):
    return jax.lax.map(lambda setting: one_method(key, setting), settings)

  return training.over_seeds(context.key, one_seed, num_seeds=context.seeds, mesh=context.mesh)


# ------------------------------------------------------------------------------- claims and figure


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, and what early stopping and other label ratios do on networks."""
  rows = results.quantities
  found = [claim for a in ARRANGEMENTS for claim in _patch_claims(rows, a)]
  accuracy = {n: row["networks/accuracy"] for n, row in rows.items() if "networks/accuracy" in row}
  mixup = accuracy["mixup"]
  found.append(common.compare("networks: mixup above plain training", mixup, accuracy["plain"]))
  for name, values in accuracy.items():
    if " of training" in name:
      text, margin = "within half a point of full mixup", -0.005
    elif name.startswith("mixup, labels"):
      text, margin = "within 1 point of equal ratios", -0.01
    else:
      continue
    found.append(common.compare(f"networks: {name}: {text}", values, mixup, margin=margin))
  return found


def _patch_claims(rows, arrangement: str) -> list[common.Claim]:
  def of(method, name):
    return rows[method][f"{arrangement}/{name}"]

  def lower(text, method, baseline, margin=0.0):
    text = f"{arrangement}: {text}"
    return common.compare(text, method, baseline, better="lower", margin=margin)

  def higher(text, method, baseline):
    return common.compare(f"{arrangement}: {text}", method, baseline)

  stops = [name for name in rows if name.startswith("mixup until")]
  longest = max(stops, key=lambda name: int(name.split()[-1]))
  growth, error = "rare alignment, growth", "rare error"
  common_error = np.maximum(of("plain", "common error"), of("mixup", "common error"))
  found = [
    lower("plain training fits every example", of("plain", "training error"), 1e-6),
    higher("plain training errs on rare features (above 40%)", of("plain", error), 0.4),
    lower("plain training grows the rare alignment less than 2x", of("plain", growth), 2.0),
    lower("mixup brings the rare error below 10%", of("mixup", error), 0.1),
    higher("mixup grows the rare alignment 20x", of("mixup", growth), 20.0),
    lower("no common error, plain or mixup (below 0.1%)", common_error, 1e-3),
    lower(f"{longest}: within 5 points of mixup", of(longest, error), of("mixup", error), -0.05),
  ]
  label = f"{error} at equal alignment"
  for name in (name for name in rows if name.startswith("mixup, labels 0")):
    if f"{arrangement}/{error}" in rows[name]:
      text = f"{name}: within 5 points of equal ratios"
      found.append(lower(text, of(name, error), of("mixup", error), -0.05))
    if f"{arrangement}/{label}" in rows[name]:
      text += " at equal alignment"
      found.append(lower(text, of(name, label), of("mixup", label), -0.05))
  return found


def figure(results: common.Results):
  """Alignments and errors along the descents, accuracy along the networks' training."""
  import matplotlib.pyplot as plt

  extras, rows = results.extras, results.quantities
  methods = [name for name, row in rows.items() if f"{ARRANGEMENTS[0]}/rare error" in row]
  fig, axes = plt.subplots(1, 5, figsize=(19, 3.6), layout="constrained")
  panels = [(a, name) for a in ARRANGEMENTS for name in ("rare alignment", "rare error")]
  for ax, (arrangement, name) in zip(axes, panels):
    for i, method in enumerate(methods):
      ax.plot(extras[f"{arrangement}/{name}"][:, i].mean(0), label=method)
    ax.set(title=f"{arrangement}: {name}", xlabel="measurement")
    if "alignment" in name:
      ax.set_yscale("log")
  axes[0].legend(fontsize=6)
  for name, values in extras.items():
    if name.startswith("networks/"):
      axes[4].plot(np.arange(1, len(values) + 1), values, label=name.removeprefix("networks/"))
  axes[4].set(title="networks: test accuracy", xlabel="evaluation")
  axes[4].legend(fontsize=6)
  return fig


def abstract(config: Config, mesh):
  """The networks' training step with mixup, for a dry run."""
  network, optimizer = _network(config), _optimizer(config)
  update = training.build_update(_mixing_loss(config, network), optimizer, mesh=mesh)
  shape = (40, 1) if config.dataset == "mnist1d" else (32, 32, 3)
  images = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)

  def init(key):
    variables = dict(network.init(key, jnp.zeros((1, *shape))))
    params = variables.pop("params")
    return training.init_state(key, params, optimizer, model_state=variables)

  state = jax.eval_shape(init, jax.random.key(0))
  rows = [jax.ShapeDtypeStruct((config.batch_size,), kind) for kind in ("int32", "float32", "bool")]
  return update, state, (classification.Split(images, rows[0]), tuple(rows[1:]))


if __name__ == "__main__":
  common.main(sys.modules[__name__])
