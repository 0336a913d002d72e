"""What commands that train a checkpoint share: settings, start, directory of the run, output."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import check_range
from jaxlab.commands import program
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import Context, UsageError, workdir
from jaxlab.models import DecoderConfig, DecoderLM, save_adapter, save_pretrained
from jaxlab.models.pretrained_adapters import adapter_targets
from jaxlab.models.pretrained_files import existing_directory
from jaxlab.training import fingerprint
from jaxlab.training.mesh import make_mesh, on_mesh, replicate
from jaxlab.training.state import TrainState, init_state, num_params
from jaxlab.weights.low_rank import LowRankConfig, init_low_rank, merge_low_rank

# Settings that say where and how to run, not what: a run may go on under others.
_FREE = ("checkpoint", "data", "output", "workdir", "log_every", "eval_every", "save_every")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """What is trained, and how; a command adds its own settings."""

  checkpoint: str = ""  # Directory of the model: config.json, safetensors, tokenizer.json.
  data: str = ""  # JSONL file.
  output: str = ""  # New directory for the trained model.
  workdir: str | None = None  # Checkpoints and metrics of the run; none is OUTPUT.run.
  steps: int | None = None  # Number of updates; none goes by epochs.
  epochs: int = 1  # Passes over the data.
  batch_size: int = 8  # Rows of an update, all devices together.
  accumulate: int = 1  # Pieces into which the rows of a device are cut to save memory.
  learning_rate: float | None = None  # Highest; AdamW, cosine to 0; none: 1e-5 or less.
  warmup_share: float = 0.03  # Of the steps, in which the learning rate rises.
  weight_decay: float = 0.0  # Of AdamW.
  clip_norm: float = 1.0  # Largest norm of a gradient.
  beta: float | None = None  # Strength of an objective.
  lora_rank: int = 8  # Rank of the adapters; 0 trains all parameters.
  lora_alpha: float = 16.0  # Scale of the adapters, divided by the rank.
  # Adapted matrices; also mlp/up and so on, or their names in peft (q_proj).
  lora_targets: tuple[str, ...] = ("attention/q", "attention/v")
  remat: bool = False  # Recompute activations in the backward pass: less memory, more time.
  bfloat16: bool = False  # Compute in bfloat16; parameters stay float32.
  chunk_size: int = 0  # Positions whose logits exist at a time; 0 for all.
  eval_share: float = 0.05  # Share of the lines held out.
  log_every: int = 10  # Steps between lines of progress.
  eval_every: int = 100  # Steps between evaluations on the lines held out.
  save_every: int | None = None  # Steps between checkpoints; none makes about ten.
  seed: int = 0  # Of adapters, order and held-out lines.
  data_parallel: int = -1  # Devices over which batches are split; -1 for all that are left.
  model_parallel: int = 1  # Devices over which parameters are split.

  def __post_init__(self):
    least = dict.fromkeys(("epochs", "batch_size", "accumulate", "log_every"), 1)
    least |= dict.fromkeys(("steps", "save_every", "eval_every", "model_parallel"), 1)
    least |= {"lora_rank": 0, "chunk_size": 0}
    self.check_counts(**least)
    if self.data_parallel < 1 and self.data_parallel != -1:
      raise ValueError(f"data_parallel must be at least 1, or -1, got {self.data_parallel}.")
    for name, interval in _INTERVALS.items():
      if getattr(self, name) is not None:
        check_range(name, getattr(self, name), interval)
    _ = self.lora  # Checks the targets.

  def check_counts(self, **least: int) -> None:
    """Raises if a setting is below what it must be at least; None passes.

    Args:
      **least: the smallest values by the names of the settings.

    Raises:
      ValueError: naming the setting and its value.
    """
    for name, low in least.items():
      value = getattr(self, name)
      if value is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")

  @property
  def lora(self) -> LowRankConfig | None:
    """Settings of the adapters, None where all parameters are trained."""
    if self.lora_rank == 0:
      return None
    return LowRankConfig(self.lora_rank, self.lora_alpha, self.lora_targets)


_INTERVALS = {
  "learning_rate": "(0, inf)",
  "warmup_share": "[0, 1)",
  "weight_decay": "[0, inf)",
  "clip_norm": "(0, inf)",
  "beta": "(0, inf)",
  "lora_alpha": "(0, inf)",
  "eval_share": "[0, 1)",
  "seed": "[0, 4294967295]",
}
_Config = TypeVar("_Config", bound=TrainingConfig)


class Start(NamedTuple):
  """What a run begins with.

  Attributes:
    model: the language model.
    state: the state of step 0, on the mesh; its parameters are those that are trained.
    frozen: parameters that are not trained.
    merge: `(trained, frozen) -> params` of the model.
    optimizer: the gradient transformation.
    num_steps: number of updates.
    mesh: the devices, axes `data` and `model`.
  """

  model: DecoderLM
  state: TrainState
  frozen: chex.ArrayTree
  merge: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]
  optimizer: optax.GradientTransformation
  num_steps: int
  mesh: jax.sharding.Mesh


def check_directories(config: TrainingConfig) -> None:
  """Finds before the training what would keep its result from being saved.

  Args:
    config: the settings.

  Raises:
    UsageError: if the output is there already, would hold the run, or one cannot be made.
  """
  output, directory = pathlib.Path(config.output), _directory(config)
  if os.path.lexists(output):
    raise UsageError(f"--output={output} is there already; nothing is overwritten.")
  if output.resolve() in (directory.resolve(), *directory.resolve().parents):
    raise UsageError(f"--output={output} would hold --workdir={directory}; keep them apart.")
  program.check_can_be_made("output", output)
  if not os.path.lexists(directory):
    program.check_can_be_made("workdir", directory)


def _directory(config: TrainingConfig) -> pathlib.Path:
  return pathlib.Path(config.workdir or f"{pathlib.Path(config.output)}.run")


def resolve(config: _Config, architecture: DecoderConfig, *, learning_rate: float) -> _Config:
  """The settings with what depends on the model in its place.

  Args:
    config: the settings.
    architecture: of the model.
    learning_rate: the highest one where none is given.

  Returns:
    Settings without a learning rate of None, and with the model's own names of matrices.
  """
  return dataclasses.replace(
    config,
    learning_rate=config.learning_rate or learning_rate,
    lora_targets=adapter_targets(config.lora_targets, architecture),
  )


def begin(config: TrainingConfig, architecture: DecoderConfig, *, num_examples: int) -> Start:
  """Reads the weights and makes the state of step 0.

  Args:
    config: the settings, resolved.
    architecture: of the model.
    num_examples: rows to train on.

  Returns:
    The `Start`.

  Raises:
    UsageError: if a batch exceeds the rows or does not fit the devices, or weights or targets
      cannot be used.
  """
  if config.batch_size > num_examples:
    raise UsageError(
      f"--batch_size={config.batch_size} exceeds the {num_examples} examples to train on."
    )
  mesh = _make_mesh(config)
  num_steps = config.steps or config.epochs * -(-num_examples // config.batch_size)
  optimizer = _optimizer(config, num_steps)
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  model = DecoderLM(architecture, dtype=dtype, remat=config.remat)
  params = program.read_params(config.checkpoint, mesh)
  key = jax.random.key(config.seed)
  lora = config.lora
  if lora is None:
    trained, frozen, merge = params, {}, lambda trained, frozen: trained
  else:
    with program.usage_errors("--lora_targets"):
      trained = init_low_rank(jax.random.fold_in(key, 1), params, lora)
    frozen, merge = params, lambda trained, frozen: merge_low_rank(frozen, trained, lora)
  state = init_state(key, trained, optimizer)
  state = jax.tree.map(lambda x: x if on_mesh(x, mesh) else replicate(x, mesh), state)
  size = f"{num_params(trained):,} of {num_params(params):,}"
  print(f"{size} parameters are trained", flush=True)
  return Start(model, state, frozen, merge, optimizer, num_steps, mesh)


def _make_mesh(config: TrainingConfig) -> jax.sharding.Mesh:
  axes = {"data": config.data_parallel, "model": config.model_parallel}
  try:
    mesh = make_mesh(axes)
  except ValueError as error:
    raise UsageError(f"--data_parallel, --model_parallel: {error}.") from error
  pieces = mesh.shape["data"] * config.accumulate
  if config.batch_size % pieces:
    raise UsageError(
      f"--batch_size={config.batch_size} does not divide by {pieces}: {mesh.shape['data']} devices "
      f"x accumulate {config.accumulate}."
    )
  return mesh


def _optimizer(config: TrainingConfig, num_steps: int) -> optax.GradientTransformation:
  warmup_steps = int(config.warmup_share * num_steps)
  schedule = optax.warmup_cosine_decay_schedule(
    config.learning_rate / (warmup_steps + 1), config.learning_rate, warmup_steps, num_steps
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, weight_decay=config.weight_decay),
  )


def train_and_save(
  config: TrainingConfig,
  start: Start,
  tokenizer: Tokenizer,
  train: Callable[[Context], TrainState],
  *,
  made_by: Mapping[str, Any] | None = None,
) -> None:
  """Trains in the run's directory, where a killed run goes on, and saves the model.

  Args:
    config: the settings, resolved.
    start: what the run begins with.
    tokenizer: of the model.
    train: gives the state after the last step.
    made_by: what else a run must have been made by to be gone on with, as JSON holds it.

  Raises:
    UsageError: if another run holds the directory, or one of other settings or data stands there.
  """
  output, directory = pathlib.Path(config.output), _directory(config)
  asked = {name: v for name, v in dataclasses.asdict(config).items() if name not in _FREE}
  asked |= {
    "data_sha256": hashlib.sha256(pathlib.Path(config.data).read_bytes()).hexdigest(),
    "tokenizer": tokenizer_fingerprint(config.checkpoint, tokenizer),
    "chat_template": fingerprint(tokenizer.chat_template),
    "architecture": dataclasses.asdict(start.model.config),
    "start": sum_of_bits(start.merge(start.state.params, start.frozen)),
    **(made_by or {}),
  }
  with workdir.lock(directory):
    workdir.begin(directory, asked)
    encoded = workdir.encode_json(asked)
    context = Context(directory, jax.random.key(config.seed), mesh=start.mesh, made_by=encoded)
    state = train(context)
    _save(config, output, start, state.params)
  print(f"saved {output}", flush=True)


def tokenizer_fingerprint(directory: str, tokenizer: Tokenizer) -> str:
  """What tells the tokenizers of runs apart.

  Args:
    directory: where it was read from.
    tokenizer: the tokenizer.

  Returns:
    A digest of its file and its special tokens.
  """
  content = (existing_directory(directory) / "tokenizer.json").read_bytes()
  return fingerprint([content, tokenizer.bos_token, tokenizer.eos_token])


def sum_of_bits(params: chex.ArrayTree) -> int:
  """What tells the weights of runs apart, the same however they are sharded.

  Args:
    params: the parameters.

  Returns:
    The sum of all bits as integers.
  """
  return int(_sum_of_bits(params))


@jax.jit
def _sum_of_bits(params: chex.ArrayTree) -> jax.Array:
  words = [
    jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) for x in jax.tree.leaves(params)
  ]
  return sum(jnp.sum(x, dtype=jnp.uint32) for x in words)


def _save(config, output: pathlib.Path, start: Start, trained: chex.ArrayTree) -> None:
  """Writes the model, and the adapters in it, in one step."""
  architecture = start.model.config
  output.parent.mkdir(parents=True, exist_ok=True)
  scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
  try:
    params = start.merge(trained, start.frozen)
    save_pretrained(scratch / "model", params, architecture, tokenizer_from=config.checkpoint)
    lora = config.lora
    if lora is not None:
      save_adapter(scratch / "model" / "adapter", trained, lora, architecture)
    os.rename(scratch / "model", output)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
