"""Language models that experiments share: trained once, stored, and loaded by all of them.

The file of a model is named after the hash of what it is made by. The seeds of a run are members of
one model, which one program trains.

python -m experiments.kit.zoo --list        the models of seed 0, and where they are
python -m experiments.kit.zoo --make=NAME   trains one, unless it is there
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import chex
import jax
import numpy as np

from experiments.kit.language_models import decoder, fit_decoder
from jaxlab import data, experiment, models, training
from jaxlab.data.sources import data_root
from jaxlab.experiment.wall import guard
from jaxlab.experiment.workdir import encode_json, load_tree, save_tree, write_atomic


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """A language model that experiments share: what it is trained on, and how.

  Attributes:
    task: the texts: `data.ModularChainConfig`, or another dataclass that has `vocab_size`,
      `prompt_length`, `response_length`, and `draw(key, batch_size)` whose batch has `tokens` and
      `loss_mask`. Of its `table_seed`, if it has one, programs see a traced integer.
    hidden_size: width of the decoder.
    num_layers: its blocks.
    num_heads: its attention heads.
    num_steps: updates.
    batch_size: fresh texts per update.
    learning_rate: at the first update.
    family: of the decoder, as of `models.decoder_config`. Texts whose parts stand at fixed places
      are learned in fewer updates with the learned positions of "gpt2".
    seed: of parameters and texts.
  """

  task: Any = data.ModularChainConfig()
  hidden_size: int = 48
  num_layers: int = 2
  num_heads: int = 4
  num_steps: int = 1500
  batch_size: int = 128
  learning_rate: float = 3e-3
  family: str = "llama"
  seed: int = 0

  @property
  def model(self) -> models.DecoderLM:
    """The decoder."""
    length = self.task.prompt_length + self.task.response_length
    names = "hidden_size", "num_layers", "num_heads", "family"
    sizes = {name: getattr(self, name) for name in names}
    return decoder(self.task.vocab_size, length, **sizes)

  @property
  def path(self) -> pathlib.Path:
    """The file of its parameters, in the directory of data sets."""
    name = f"{training.fingerprint(self._made_by)}.npz"
    return pathlib.Path(os.fspath(data_root())) / "language_models" / name

  @property
  def _made_by(self) -> Any:
    task = {"name": type(self.task).__name__, **dataclasses.asdict(self.task)}
    return encode_json({"version": 2, **dataclasses.asdict(self), "task": task})

  @property
  def seeds(self) -> tuple[int, int]:
    """Its seed and that of the task's table, 0 where there is none."""
    return self.seed, getattr(self.task, "table_seed", 0)

  def with_seeds(self, seed: chex.Numeric, table_seed: chex.Numeric) -> Self:
    """The same model of other seeds, which may be traced."""
    has_table = hasattr(self.task, "table_seed")
    task = dataclasses.replace(self.task, table_seed=table_seed) if has_table else self.task
    return dataclasses.replace(self, task=task, seed=seed)

  def draw(self, key: chex.PRNGKey, batch_size: int) -> Any:
    """Texts of the task."""
    of_chains = functools.partial(data.modular_chain_batch, config=self.task)
    return getattr(self.task, "draw", of_chains)(key, batch_size=batch_size)

  def load(self) -> chex.ArrayTree:
    """Its parameters, NumPy arrays: from the file, or trained and stored on the first use.

    Raises:
      DamagedFileError: if the file is no longer as it was written.
      NonFiniteLossError: if training breaks down.
      OSError: if the file cannot be written.
    """
    _make((self,), [0])
    return load_tree(self.path, made_by=self._made_by)

  def load_seeds(self, context: experiment.Context, stage: str) -> chex.ArrayTree:
    """Its parameters for every seed of a run, `[seeds, ...]`; each seed has a table of its own.

    What is not stored yet is trained by one program, as many seeds at a time as there are devices.

    Args:
      context: of the run.
      stage: name of the stages: `stage/0` of the first seeds.

    Raises:
      DamagedFileError: as for `load`.
      NonFiniteLossError: likewise.
      OSError: likewise.
    """
    members = tuple(self.with_seeds(seed, seed) for seed in context.seed_numbers)
    per_call = context.mesh.shape["data"]
    for first in range(0, len(members), per_call):
      some = [i % len(members) for i in range(first, first + per_call)]
      # As a stage it can be stopped and says how long it took; what it made is in the files.
      context.cached(f"{stage}/{first}", _make, members, some, context.mesh, context.device_get)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(each.load() for each in members))


def _make(
  members: tuple[BaseModel, ...],
  some: Sequence[int],
  mesh: jax.sharding.Mesh | None = None,
  device_get: Callable[[chex.ArrayTree], chex.ArrayTree] = jax.device_get,
) -> int:
  """Trains those of some members, which differ in seeds, that have no file; gives how many."""
  with contextlib.ExitStack() as stack:
    for path in sorted({members[i].path for i in some}):
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(path.with_suffix(".lock"), "w"))
      fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may be training it.
    missing = {members[i]: place for place, i in enumerate(some) if not members[i].path.exists()}
    if missing:
      names = ", ".join(member.path.name for member in missing)
      print(f"training {names} for {members[0].num_steps} steps", flush=True)
      seeds = np.array([member.seeds for member in members], np.int32)
      options = {"num_seeds": len(members), "arguments": seeds, "mesh": mesh, "only": some}
      program = _training(members[0].with_seeds(0, 0))
      made = device_get(training.over_seeds(jax.random.key(0), program, **options))
      for member, place in missing.items():
        _store(member, *jax.tree.map(lambda x, place=place: x[place], made))
    return len(missing)


@functools.cache  # Members that differ in seeds alone share a program.
def _training(base: BaseModel):
  def run(key, seeds):
    del key
    own = base.with_seeds(*seeds)
    sizes = {name: getattr(base, name) for name in ("num_steps", "batch_size", "learning_rate")}
    trained = fit_decoder(jax.random.key(own.seed), base.model, own.draw, **sizes)
    return trained.params, trained.bad_step

  return run


def _store(member: BaseModel, params: chex.ArrayTree, bad_step: np.ndarray) -> None:
  if bad_step >= 0:
    raise training.NonFiniteLossError(int(bad_step), "params", float("nan"))
  write_atomic(member.path, lambda file: save_tree(file, params, made_by=member._made_by))


def ladder(
  task: data.ModularChainConfig,
  rungs: Sequence[tuple[int, int, int, Sequence[float]]],
  **options: Any,
) -> dict[str, BaseModel]:
  """Decoders of growing strength, which is set by the errors of the texts that they learn.

  What a decoder has learned after too few updates differs between seeds far more.

  Args:
    task: the texts, but for their noise.
    rungs: width, blocks, attention heads, and the shares of noise.
    **options: other fields of every `BaseModel`.

  Returns:
    The models by names such as `d24x1-noise0.2`: width, blocks, noise.
  """
  return {
    f"d{width}x{blocks}-noise{noise:g}": BaseModel(
      dataclasses.replace(task, noise=noise), width, blocks, heads, **options
    )
    for width, blocks, heads, noises in rungs
    for noise in noises
  }


# The zoo: width, blocks, attention heads, and the shares of noise in texts.
LADDER = (24, 1, 2, (0.25, 0.2, 0.15)), (48, 1, 4, (0.1, 0.05, 0.0))
# What a step restates stands at fixed places: one block with learned positions finds it.
FAMILY = "gpt2"

BASE_MODELS = {
  "chains-weak": BaseModel(hidden_size=32, num_steps=1000),
  "chains": BaseModel(),
  "chains-strong": BaseModel(hidden_size=64, num_steps=3000),
  **ladder(data.ModularChainConfig(), LADDER, family=FAMILY),
}


def main(argv: list[str]) -> int:
  """Runs the command line; gives the exit status."""
  parser = argparse.ArgumentParser(prog="python -m experiments.kit.zoo")
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument("--list", action="store_true", help="the base models, and where they are")
  group.add_argument("--make", choices=BASE_MODELS, metavar="NAME", help="train one: %(choices)s")
  arguments = parser.parse_args(argv)
  for name in BASE_MODELS if arguments.list else [arguments.make]:
    base = BASE_MODELS[name]
    if arguments.make:
      base.load()
    state = "made" if base.path.exists() else "not made yet"
    size = models.num_parameters(base.model.config)
    print(f"{name}: {size:,} parameters, {state}: {base.path}")
  return 0


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv[1:]), debug=False))
