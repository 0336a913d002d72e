"""A real experiment, as small as one can be: a line fitted by noisy descent."""

import dataclasses
import os
import signal
import sys
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import experiment
from jaxlab.training.state import init_state
from jaxlab.training.update import LossOutput, build_update

PAPER = "tiny"


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes."""

  features: int = 4  # Inputs of the line.
  steps: int = 40  # Updates per seed.
  rate: float = 0.1  # Learning rate.
  # Where the weights begin:
  # at zero, or at one.
  start: Literal["zeros", "ones"] = "zeros"
  widths: tuple[int, ...] = (1, 2)  # Read by nobody.
  noisy: bool = True  # Whether inputs are perturbed by the step's key.
  delay: float = 0.0  # Seconds to wait before each batch.
  break_at: int | None = None  # Step whose batch is not finite.
  signal_at: int | None = None  # Step at which the process sends itself SIGINT.

  def __post_init__(self):
    if self.steps < 0:
      raise ValueError(f"steps must not be negative, got {self.steps}")


PRESETS = {
  "smoke": Config(steps=4),
  "laptop": Config(),
  "paper": Config(features=2_000_000_000),
}


def validate(config):
  if config.features == 7:
    raise ValueError(f"features=7 does not go with {config.steps} steps")


class Batches:
  """Rows of a random line; a position says it all."""

  def __init__(self, seed, config):
    self.seed, self.config, self.position = seed, config, 0

  def __iter__(self):
    return self

  def __next__(self):
    time.sleep(self.config.delay)
    rng = np.random.default_rng((self.seed, self.position))
    x = rng.normal(size=(8, self.config.features)).astype(np.float32)
    if self.position == self.config.break_at:
      x[0] = np.nan
    if self.position == self.config.signal_at:
      os.kill(os.getpid(), signal.SIGINT)
    self.position += 1
    return {"x": x, "y": x @ np.arange(self.config.features, dtype=np.float32)}

  def get_state(self):
    return {"position": self.position}

  def set_state(self, state):
    self.position = state["position"]


def build(config, mesh):
  def loss_fn(params, model_state, batch, key):
    x = batch["x"]
    if config.noisy:
      x = x + 0.1 * jax.random.normal(key, x.shape)
    return LossOutput((x @ params - batch["y"]) ** 2)

  optimizer = optax.sgd(config.rate, momentum=0.5)

  def init(key):
    start = {"zeros": jnp.zeros, "ones": jnp.ones}[config.start]
    return init_state(key, start(config.features), optimizer)

  return init, build_update(loss_fn, optimizer, mesh=mesh)


def run(config, context):
  init, update = build(config, context.mesh)
  losses, scores = [], []
  for seed, number in enumerate(context.seed_numbers):
    result = context.fit(
      f"line/seed{seed}",
      init(context.seed_key(seed)),
      update,
      Batches(number, config),
      num_steps=config.steps,
      log_every=2,
    )
    losses.append([row["loss"] for row in result.history])
    started = time.monotonic()
    score = context.cached(f"score/seed{seed}", _score, result.state.params, seed)
    score["descent"]["score seconds"] = time.monotonic() - started
    scores.append(score)
  results = experiment.Results(extras={"losses": np.array(losses)})
  results.add(jax.tree.map(lambda *values: np.array(values), *scores))
  results.add({"nothing": {"dimension": config.features}})
  return results


def _score(params, seed):
  target = np.arange(len(params))
  error = {"descent": np.asarray(params) - target, "nothing": target + 0.01 * seed}
  return {name: {"error": np.linalg.norm(e)} for name, e in error.items()}


def claims(config, results):
  descent, nothing = (results.select("error", method=m) for m in ("descent", "nothing"))
  return [
    experiment.compare(
      "Descent comes nearer than nothing",
      descent,
      nothing,
      better="lower",
      headline=True,
      paper=0.0,
    ),
    experiment.compare(
      "Nothing comes nearer than descent",
      nothing,
      descent,
      better="lower",
      requires=[experiment.precondition("the line has a thousand inputs", 4.0, at_least=1000)],
    ),
  ]


def figure(results):
  import matplotlib.pyplot as plt

  fig, ax = plt.subplots()
  ax.plot(results.extras["losses"].T)
  return fig


def abstract(config, mesh):
  init, update = build(config, mesh)
  state = jax.eval_shape(init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((8, config.features), jnp.float32)
  return update, state, {"x": rows, "y": jax.ShapeDtypeStruct((8,), jnp.float32)}


if __name__ == "__main__":
  experiment.main(sys.modules[__name__])
