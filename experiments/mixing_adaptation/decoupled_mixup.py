"""Decoupled mixup: two labels of a mixture need not take probability from each other.

Little data, every mixing policy with mixup's cross-entropy and with the decoupled loss; what the
networks make of mixtures of two test examples; and mixtures of labelled with pseudo-labelled
examples on top of FixMatch.
"""

import dataclasses
import functools
import sys
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification, common
from experiments.classification import Split
from experiments.mixing_adaptation.decoupled_mixup_policies import (
  Policy,
  Task,
  mixing_loss,
  network,
  policies,
  sgd,
  tasks,
)
from experiments.mixing_adaptation.decoupled_mixup_semi import semi_supervised
from jaxlab import losses, training

PAPER = "decoupled_mixup"
NONE, FIXMATCH = "no mixing", "FixMatch"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the policies, and the training."""

  datasets: tuple[str, ...] = ("mnist1d", "digits")  # Sets; others, such as cifar100, by tfds.
  num_train: tuple[int, ...] = (1000, 300)  # Training rows of each.
  num_test: tuple[int, ...] = (4000, 1497)  # Test rows of each.
  network: Literal["conv", "resnet18", "resnext50"] = "conv"  # conv: two or three small blocks.
  policies: tuple[str, ...] = ("mixup", "box", "manifold", "saliency")  # saliency: images only.
  alphas: tuple[float, ...] = (1.0, 1.0, 2.0, 1.0)  # Of each policy's Beta distribution.
  num_layers: int = 3  # Layers that manifold mixup draws from, the input among them.
  eta: float = 0.1  # Weight of the decoupled terms.
  other_etas: tuple[float, ...] = (0.01, 0.5, 1.0)  # More weights, with mixup only.
  num_steps: tuple[int, ...] = (1500, 750)  # Updates on each.
  batch_size: int = 100  # Rows an update.
  learning_rate: float = 0.1  # Of SGD with momentum .9, falling to 0 as a cosine.
  weight_decay: float = 1e-4  # On all parameters.
  eval_every: int = 50  # Updates between snapshots; the median of the last ten is reported.
  crop: int = 0  # Pixels of random shifts, with flips; 0 for none.
  num_pairs: int = 2000  # Mixed pairs of test examples.
  num_labeled: int = 100  # Labelled signals of the semi-supervised panel; 0 leaves it out.
  num_unlabeled: int = 4000  # Signals without labels there.
  semi_batch: int = 64  # Labelled rows an update there, and as many unlabelled ones.
  semi_steps: int = 1500  # Updates there.
  semi_learning_rate: float = 0.03  # Learning rate there.
  timed_steps: int = 50  # Updates a timing.


PRESETS = {
  "smoke": Config(
    datasets=("digits",),
    num_train=(40,),
    num_test=(60,),
    policies=("mixup",),
    alphas=(1.0,),
    other_etas=(),
    num_steps=(4,),
    batch_size=20,
    eval_every=2,
    num_pairs=40,
    num_labeled=20,
    num_unlabeled=40,
    semi_batch=8,
    semi_steps=4,
    timed_steps=2,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar100",),
    num_train=(50_000,),
    num_test=(10_000,),
    network="resnet18",
    alphas=(1.0, 0.2, 2.0, 0.2),
    other_etas=(),
    num_steps=(400_000,),  # 800 epochs.
    eval_every=8_000,
    crop=4,
    num_pairs=10_000,
    num_labeled=0,
  ),
}


def label(policy: str, eta: float) -> str:
  """Name of a row."""
  return f"{policy}, decoupled {eta:g}" if eta else f"{policy}, mixup's loss"


def run(config: Config, context: common.Context) -> common.Results:
  """Trains with every policy and loss on every set, then the semi-supervised panel."""
  rows: dict[str, dict] = {}
  extras = {}
  for i, task in enumerate(tasks(config)):
    stage = functools.partial(context.cached, fn=_train_and_judge, config=config, context=context)
    found = {NONE: stage(f"{task.name}/none", task=task, policy=None)[0]}
    for policy in policies(config, task):
      scores = stage(f"{task.name}/{policy.name}", task=task, policy=policy)
      found |= {label(policy.name, eta): s for eta, s in zip(policy.etas, scores, strict=True)}
    for name, scores in found.items():
      extras[f"{task.name}/{name}"] = scores.pop("pairs")
      row = rows.setdefault(name, {})
      row |= {f"{task.name}/{quantity}": values for quantity, values in scores.items()}
    if i == 0:
      for name, seconds in context.cached("times", _step_seconds, config, context, task).items():
        rows[name][f"{task.name}/step seconds"] = seconds
  for name, etas in ((FIXMATCH, None), ("mixup", (0.0, config.eta))) if config.num_labeled else ():
    scores = context.cached(f"semi-supervised/{name}", semi_supervised, config, context, etas)
    names = [FIXMATCH] if etas is None else [f"{FIXMATCH} + {label(name, eta)}" for eta in etas]
    rows |= {n: {"semi-supervised/accuracy": s} for n, s in zip(names, scores, strict=True)}
  return common.Results(rows, extras)


def _train_and_judge(config: Config, context: common.Context, task: Task, policy: Policy | None):
  """Accuracy and the response to mixtures, one a seed, for every weight of the decoupled terms."""
  pairs = _test_pairs(config, task.test)

  def one(key, eta):
    trained = classification.train(
      key,
      task.module,
      mixing_loss(config, task, policy, functools.partial(losses.decoupled_mixup_loss, eta=eta)),
      sgd(config, config.learning_rate, task.num_steps),
      task.train,
      num_steps=task.num_steps,
      batch_size=config.batch_size,
      evaluate=lambda trained: trained.variables,
      eval_every=config.eval_every,
    )
    # Judging the last snapshots only, after training, costs less than judging all of them.
    last = jax.tree.map(lambda leaf: leaf[-10:], trained.scores)
    accuracies = jax.lax.map(
      lambda variables: classification.accuracy(task.module, variables, task.test), last
    )
    logits = classification.predict(task.module, trained.variables, pairs.inputs).logits
    both = jnp.take_along_axis(logits, pairs.labels, axis=-1)
    above = jnp.sum(logits > jnp.min(both, axis=-1, keepdims=True), axis=-1)
    probs = jnp.take_along_axis(jax.nn.softmax(logits), pairs.labels, axis=-1)
    sure = 2 * jnp.min(probs, axis=-1)
    return {
      "accuracy": jnp.median(accuracies),
      "top-2 of mixtures": jnp.mean(above <= 1),
      "sure of both": jnp.mean(sure),
      "pairs": sure,
    }

  # The weight is an argument, so that one program serves all; at 0 the loss is mixup's own.
  etas = jnp.asarray((0.0,) if policy is None else policy.etas)

  def one_seed(key):
    return jax.lax.map(lambda eta: one(key, eta), etas)

  found = training.over_seeds(context.key, one_seed, num_seeds=context.seeds)
  return [jax.tree.map(lambda leaf, i=i: leaf[:, i], found) for i in range(len(etas))]


def _test_pairs(config: Config, test: Split) -> Split:
  """Equal mixtures of test examples of two classes, with both labels `[n, 2]`."""
  rng = np.random.default_rng(0)
  first, second = rng.integers(len(test.labels), size=(2, 4 * config.num_pairs))
  kept = np.flatnonzero(test.labels[first] != test.labels[second])[: config.num_pairs]
  first, second = first[kept], second[kept]
  inputs = 0.5 * test.inputs[first] + 0.5 * test.inputs[second]
  return Split(inputs, np.stack([test.labels[first], test.labels[second]], axis=-1))


def _step_seconds(config: Config, context: common.Context, task: Task) -> dict[str, np.ndarray]:
  """Seconds of a mixup step with either loss, in turns, once a seed."""

  def build(objective):
    @jax.jit
    def run_steps(key):
      return classification.train(
        key,
        task.module,
        mixing_loss(config, task, Policy("mixup", 1.0, ()), objective),
        sgd(config, config.learning_rate, config.timed_steps),
        task.train,
        num_steps=config.timed_steps,
        batch_size=config.batch_size,
      ).params

    jax.block_until_ready(run_steps(context.key))
    return run_steps

  decoupled = functools.partial(losses.decoupled_mixup_loss, eta=config.eta)
  programs = {
    label("mixup", 0.0): build(losses.mixup_cross_entropy),
    label("mixup", config.eta): build(decoupled),
  }
  seconds = {name: [] for name in programs}
  for seed in range(context.seeds):
    turns = {name: [] for name in programs}
    for turn in range(10):
      for name in list(programs)[:: 1 if turn % 2 else -1]:
        begin = time.perf_counter()
        jax.block_until_ready(programs[name](context.seed_key(seed)))
        turns[name].append((time.perf_counter() - begin) / config.timed_steps)
    for name in programs:
      seconds[name].append(min(turns[name]))
  return {name: np.asarray(values) for name, values in seconds.items()}


# ------------------------------------------------------------------------------- claims and figure


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements."""
  quantities = results.quantities
  pairs = _judged_pairs(results)
  names = {policy: _sets(quantities[plain]) for policy, plain, _ in pairs}

  def mean(which: int, quantity: str, policy: str | None = None):
    chosen = [pair for pair in pairs if policy in (None, pair[0])]
    values = [
      quantities[pair[which]][f"{name}/{quantity}"] for pair in chosen for name in names[pair[0]]
    ]
    return np.mean(values, axis=0)

  found = [
    common.compare(
      "decoupled beats mixup's loss: accuracy, a mean over policies and sets",
      mean(2, "accuracy"),
      mean(1, "accuracy"),
      paper="CIFAR-100, ResNet-18: 79.12 to 80.44 with mixup, .3 to 1.3 points by policy",
    )
  ]
  found += [
    common.compare(
      f"{policy}: both labels of a mixture are the top two more often",
      mean(2, "top-2 of mixtures", policy),
      mean(1, "top-2 of mixtures", policy),
      paper="higher",
    )
    for policy in names
  ]
  if "mixup" in names:
    quantity = next(q for q in quantities[pairs[0][1]] if q.endswith("step seconds"))
    plain, decoupled = (quantities[row][quantity] for row in pairs[0][1:])
    found.append(
      common.compare(
        "the decoupled loss costs at most 5% of mixup's step in seconds",
        decoupled,
        1.05 * plain,
        better="lower",
        paper="no extra computation",
      )
    )
  semi = [name for name in quantities if name.startswith(f"{FIXMATCH} +")]
  if semi:
    plain, decoupled = (quantities[name]["semi-supervised/accuracy"] for name in semi)
    found.append(
      common.compare(
        "semi-supervised: decoupled beats mixup's loss on top of FixMatch: accuracy",
        decoupled,
        plain,
      )
    )
  return found


def _judged_pairs(results: common.Results) -> list[tuple[str, str, str]]:
  """(policy, row with mixup's loss, row with the decoupled loss of the judged weight)."""
  rows = [name for name in results.quantities if ", " in name and FIXMATCH not in name]
  found = []
  for plain in (name for name in rows if name.endswith("mixup's loss")):
    policy = plain.partition(",")[0]
    decoupled = next(name for name in rows if name.startswith(f"{policy}, decoupled"))
    found.append((policy, plain, decoupled))
  return found


def _sets(row) -> list[str]:
  return [name.partition("/")[0] for name in row if name.endswith("/accuracy")]


def figure(results: common.Results):
  """Accuracy by policy, how sure networks are of both labels, the weight of the terms."""
  import matplotlib.pyplot as plt

  quantities, pairs = results.quantities, _judged_pairs(results)
  names = _sets(quantities[NONE])
  fig, axes = plt.subplots(len(names), 3, figsize=(12, 3.4 * len(names)), squeeze=False)
  for name, row in zip(names, axes):
    shown = [pair for pair in pairs if f"{name}/accuracy" in quantities[pair[1]]]
    for ax, quantity in zip(row, ("accuracy", "top-2 of mixtures")):
      _plot_policies(ax, quantities, shown, f"{name}/{quantity}")
    row[0].legend(fontsize=8)
    ax = row[2]
    for label_, key in (("mixup's loss", shown[0][1]), ("decoupled", shown[0][2])):
      values = np.ravel(results.extras[f"{name}/{key}"])
      ax.hist(values, np.linspace(0, 1, 31), histtype="step", density=True, label=label_)
    ax.set(xlabel="2 min(p_a, p_b) of a mixture", ylabel="density", title=f"{name}, {shown[0][0]}")
    ax.legend(fontsize=8)
  fig.tight_layout()
  return fig


def _plot_policies(ax, quantities, pairs, quantity: str) -> None:
  for which, text in ((1, "mixup's loss"), (2, "decoupled")):
    found = [common.quantity(quantities[pair[which]][quantity]) for pair in pairs]
    x = np.arange(len(pairs)) + 0.2 * (which - 1.5)
    means, errors = zip(*found)
    ax.errorbar(x, means, np.nan_to_num(errors), fmt="o", capsize=3, label=text)
  ax.axhline(common.quantity(quantities[NONE][quantity]).mean, color="gray", ls=":", label=NONE)
  ax.set_xticks(range(len(pairs)), [pair[0] for pair in pairs])
  ax.set(ylabel=quantity.partition("/")[2], title=quantity.partition("/")[0])


def abstract(config: Config, mesh):
  """One mixup step on the first set, for a dry run."""
  shape, num_classes = {"mnist1d": ((40, 1), 10), "digits": ((8, 8, 1), 10)}.get(
    config.datasets[0], ((32, 32, 3), 100)
  )
  module = network(config, len(shape) == 2, num_classes)
  inputs = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)
  batch = Split(inputs, jax.ShapeDtypeStruct((config.batch_size,), jnp.int32))
  task = Task(config.datasets[0], batch, batch, module, config.num_steps[0])
  objective = functools.partial(losses.decoupled_mixup_loss, eta=config.eta)
  optimizer = sgd(config, config.learning_rate, task.num_steps)
  loss = mixing_loss(config, task, Policy("mixup", config.alphas[0], ()), objective)

  def init(key):
    variables = dict(module.init(key, jnp.zeros((2, *shape))))
    return training.init_state(key, variables.pop("params"), optimizer, model_state=variables)

  state = jax.eval_shape(init, jax.random.key(0))
  return training.build_update(loss, optimizer, mesh=mesh), state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
