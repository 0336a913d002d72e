"""Training for the N samples that a problem will get: pass@N stops falling.

Cross-entropy makes a model ever surer of one answer. Sampled N times it then gives the same wrong
answer N times, and pass@N falls while pass@1 still rises. The coverage loss is cross-entropy times
a factor that vanishes for examples that N samples solve. Three forms of it: the probability of the
answer (products), the share of rollouts that reach it (chains of steps), and each step by itself
(tree search).
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.alignment import pass_at_n_chains as chains
from experiments.alignment import pass_at_n_direct as direct
from experiments.alignment import pass_at_n_models as shared
from experiments.alignment.pass_at_n_direct import trained_label
from jaxlab import data, training

PAPER = "pass_at_n"


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, the problems, and the numbers of samples to train and to test for."""

  hidden_size: int = 96  # Width of the decoder.
  num_layers: int = 3  # Its blocks.
  num_heads: int = 4  # Its attention heads.
  learning_rate: float = 1e-3  # AdamW with a cosine to 0.
  weight_decay: float = 0.01  # Of AdamW.
  batch_size: int = 128  # Texts an update.
  num_digits: int = 2  # Digits of the factors of a product.
  num_train: int = 3000  # Products to learn from.
  num_validation: int = 512  # Others, on which epoch and temperature are chosen.
  num_test: int = 512  # Others, on which is judged.
  num_epochs: int = 60  # Over the products.
  eval_epochs: int = 5  # Epochs between evaluations; divides num_epochs.
  train_samples: tuple[int, ...] = (1, 4, 16, 64, 256)  # N to train for; 1 is cross-entropy.
  test_samples: tuple[int, ...] = (1, 4, 16, 64, 256)  # N of pass@N.
  judged_samples: int = 64  # N at which training for it is held against cross-entropy.
  temperatures: tuple[float, ...] = (
    0.7,
    1.0,
    1.5,
    2.0,
  )  # To choose from; 1 is one.
  num_checked: int = 64  # Test problems on which exact pass@N is checked by sampling.
  num_draws: int = 256  # Samples of each.
  modulus: int = 11  # Of the chains.
  num_terms: int = 5  # Numbers in a chain.
  chain_hidden_size: int = 64  # Width of the decoder of chains.
  chain_layers: int = 2  # Its blocks.
  num_problems: int = 1500  # Chains to learn from, again and again.
  num_judged: int = 500  # Fresh chains to choose the phase on, and as many to judge on.
  chain_steps: int = 2400  # Updates on chains.
  refresh_steps: int = 200  # Updates between rollouts.
  success_threshold: float = 0.1  # Chains reached more often are left out, for several samples.
  num_rollouts: int = 16  # Rollouts of each training problem.
  chain_samples: int = 32  # N that the chains are trained for, beside cross-entropy.
  chain_test_samples: tuple[int, ...] = (1, 4, 32)  # N of pass@N on chains.
  num_chain_draws: int = 32  # Samples of each fresh chain.
  rollout_chunk: int = 100  # Problems sampled at once; divides num_problems and num_judged.
  search_steps: int = 1200  # Updates on the steps of a search.
  step_samples: tuple[int, ...] = (1, 4, 16)  # Tries a step to train for.
  branching: int = 4  # Proposals an expansion of the search.
  num_expansions: int = 64  # Expansions of the search.

  def __post_init__(self):
    for name, needed in (
      ("train_samples", {1, self.judged_samples}),
      ("test_samples", {1, self.judged_samples}),
      ("chain_test_samples", {self.chain_samples}),
      ("step_samples", {1}),
      ("temperatures", {1.0}),
    ):
      if not needed <= set(getattr(self, name)):
        listed = ", ".join(map(str, sorted(needed)))
        raise ValueError(f"{name} must hold {listed}, got {getattr(self, name)}.")
    for name, divisor in (
      ("num_epochs", "eval_epochs"),
      ("chain_steps", "refresh_steps"),
      ("num_problems", "rollout_chunk"),
      ("num_judged", "rollout_chunk"),
    ):
      whole, part = getattr(self, name), getattr(self, divisor)
      if part < 1 or whole % part:
        raise ValueError(f"{divisor} must divide {name} {whole}, got {part}.")


PRESETS = {
  "smoke": Config(
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    batch_size=8,
    num_digits=1,
    num_train=16,
    num_validation=6,
    num_test=6,
    num_epochs=2,
    eval_epochs=1,
    train_samples=(1, 4),
    test_samples=(1, 4),
    judged_samples=4,
    temperatures=(1.0, 2.0),
    num_checked=2,
    num_draws=4,
    modulus=3,
    num_terms=2,
    chain_hidden_size=8,
    chain_layers=1,
    num_problems=8,
    num_judged=4,
    chain_steps=2,
    refresh_steps=1,
    num_rollouts=2,
    chain_samples=4,
    chain_test_samples=(1, 4),
    num_chain_draws=4,
    rollout_chunk=4,
    search_steps=2,
    step_samples=(1, 4),
    branching=2,
    num_expansions=4,
  ),
  "laptop": Config(),
  "paper": Config(
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    learning_rate=3e-4,
    num_digits=3,
    num_train=200_000,
    num_validation=5_000,
    num_test=5_000,
    num_checked=512,
    chain_hidden_size=768,
    chain_layers=12,
    num_problems=12_000,
    chain_steps=20_000,
    search_steps=20_000,
    num_rollouts=64,
    num_terms=8,
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Trains for every N, and judges at every N."""
  rows, extras = direct.direct_table(config, direct.run_direct(config, context))
  found = chains.run_chains(config, context)
  for n, curves in found.items():
    last = {what: shared.points(passes[:, -1]) for what, passes in curves["test"].items()}
    rows[f"chains: {trained_label(n)}"] = _named(config, last)
    extras[f"chains/{n}"] = shared.points(curves["test"]["proofs"]).mean(0)
  stopped = {
    what: shared.points(shared.at_best(validation, found[1]["test"][what]))
    for what, validation in found[1]["validation"].items()
  }
  rows["chains: cross-entropy, best phase"] = _named(config, stopped)
  solved = chains.run_steps(config, context)
  for n, values in solved.items():
    rows[f"steps: {trained_label(n)}"] = {"solved": shared.points(values.mean(1))}
  union = np.any(list(solved.values()), axis=0)
  rows["steps: union of all"] = {"solved": shared.points(union.mean(1))}
  return common.Results(rows, extras | {"judged": np.array(config.judged_samples)})


def _named(config: Config, passes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Columns of the table from pass@k `[seeds, k]`."""
  return {
    f"pass@{k} of {what}": values[:, i]
    for what, values in passes.items()
    for i, k in enumerate(config.chain_test_samples)
  }


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, at laptop size."""
  trained, judged = _trained_for(results), int(results.extras["judged"])
  plain, ours, quantity = trained_label(1), trained_label(judged), f"pass@{judged}"
  stopped = results["cross-entropy, best epoch", quantity]
  tempered = results["cross-entropy, best epoch and temperature", quantity]
  final = results[plain, quantity]
  found = [
    common.compare(
      "cross-entropy: pass@1 at the end not below that of its best epoch (by 1 point at most)",
      results[plain, "pass@1"],
      results["cross-entropy, best epoch", "pass@1"],
      margin=-1.0,
      paper="4.4 to 7.4 over four epochs (MATH)",
    ),
    common.compare(
      f"cross-entropy: {quantity} falls by 5 points from its best epoch to the end",
      stopped,
      final,
      margin=5.0,
      paper="pass@256 65.2 to 51 (MATH)",
    ),
    common.compare(
      f"{quantity} of training for it 5 points above that of cross-entropy",
      results[ours, quantity],
      final,
      margin=5.0,
    ),
    common.compare(
      f"{quantity} of training for it not below cross-entropy at its best epoch and temperature "
      "(by 1 point at most)",
      results[ours, quantity],
      tempered,
      margin=-1.0,
    ),
    common.compare(
      f"{quantity} of training for it above cross-entropy, epoch and temperature of both chosen on "
      "validation",
      results[f"{ours}, best epoch and temperature", quantity],
      tempered,
    ),
  ]
  for n in trained:
    by_training = {m: results[trained_label(m), f"pass@{n}"] for m in trained}
    near = [m for m in trained if n / 4 <= m <= 4 * n]
    far = [m for m in trained if m not in near]
    if far:
      best_near = max(near, key=lambda m: by_training[m].mean())
      best_far = max(far, key=lambda m: by_training[m].mean())
      found.append(
        common.compare(
          f"pass@{n} is best for a training N within a factor of 4 (N = {best_near}, against "
          f"N = {best_far})",
          by_training[best_near],
          by_training[best_far],
        )
      )
  for small, large in zip(trained, trained[1:]):
    found.append(
      common.compare(
        f"greedy over-confidence lower for N = {large} than for N = {small}",
        results[trained_label(large), "over-confidence"],
        results[trained_label(small), "over-confidence"],
        better="lower",
      )
    )
  (chain_n,) = (
    int(name.rsplit(" ", 1)[1])
    for name in results.quantities
    if name.startswith("chains: trained for")
  )
  for what in ("answers", "proofs"):
    quantity = f"pass@{chain_n} of {what}"
    for rival in ("cross-entropy", "cross-entropy, best phase"):
      found.append(
        common.compare(
          f"chains: {quantity} of training for it 3 points above that of {rival}",
          results[f"chains: {trained_label(chain_n)}", quantity],
          results[f"chains: {rival}", quantity],
          margin=3.0,
        )
      )
  solved = [
    row["solved"] for name, row in results.quantities.items() if name.startswith("steps: trained")
  ]
  plain_steps = results["steps: cross-entropy", "solved"]
  several = max(solved, key=np.mean)
  found += [
    common.compare(
      "steps: training for several tries solves more than cross-entropy",
      several,
      plain_steps,
      paper="56.5 against 55.6 (Mathlib), 39.5 against 37.4 (MiniF2F)",
    ),
    common.compare(
      "steps: all models together solve 2 points more than the best one",
      results["steps: union of all", "solved"],
      max(several, plain_steps, key=np.mean),
      margin=2.0,
      paper="62.2 against 56.5 (Mathlib), 43.6 against 39.5 (MiniF2F)",
    ),
  ]
  return found


def _trained_for(results: common.Results) -> list[int]:
  """The numbers of samples that products were trained for."""
  return [int(name.split("/")[0]) for name in results.extras if name.endswith("/curves")]


def figure(results: common.Results):
  """pass@N over training, the matrix of training N and test N, and confidences."""
  import matplotlib.pyplot as plt

  extras = results.extras
  trained = _trained_for(results)
  tested = [int(name.split("/")[1]) for name in extras if name.startswith("epochs/")]
  fig, axes = plt.subplots(1, 4, figsize=(18, 4), layout="constrained")
  for ax, m in zip(axes, (1, int(extras["judged"]))):
    curves = extras[f"{m}/curves"]
    for n, curve in zip(tested, curves):
      ax.plot(np.arange(1, len(curve) + 1) / len(curve), curve, ".-", label=f"pass@{n}")
    ax.set(title=trained_label(m), xlabel="share of training", ylabel="%", ylim=(0, 100))
  axes[0].legend(fontsize=7)
  matrix = np.array(
    [[results[trained_label(m), f"pass@{n}"].mean() for n in tested] for m in trained]
  )
  axes[2].imshow(matrix / matrix.max(0), cmap="viridis")
  for i, row in enumerate(matrix):
    for j, value in enumerate(row):
      axes[2].text(j, i, f"{value:.0f}", ha="center", va="center", color="white", fontsize=8)
  axes[2].set_xticks(range(len(tested)), tested)
  axes[2].set_yticks(range(len(trained)), trained)
  axes[2].set(xlabel="N of pass@N (%)", ylabel="N trained for", title="Relative to the best")
  for m in trained:
    values = extras[f"{m}/confidences"]
    axes[3].hist(values, bins=20, range=(0, 1), histtype="step", label=trained_label(m))
  axes[3].set(xlabel="confidence of the greedy answer", ylabel="test problems")
  axes[3].legend(fontsize=7)
  return fig


def abstract(config: Config, mesh):
  """The step on products, for a dry run."""
  model, length = direct.direct_decoder(config)
  steps = config.num_train // config.batch_size * config.num_epochs
  optimizer = shared.make_optimizer(config, steps)
  objective = direct.coverage_objective(model, float(config.train_samples[-1]))
  update = training.build_update(objective, optimizer, mesh=mesh)
  shape = (config.batch_size, length)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
  state = jax.eval_shape(
    lambda key: training.init_state(
      key, model.init(key, jnp.zeros(shape, jnp.int32))["params"], optimizer
    ),
    jax.random.key(0),
  )
  rows = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  mask = jax.ShapeDtypeStruct(shape, jnp.float32)
  batch = data.MultiplicationBatch(tokens, mask, rows, rows)
  return update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
