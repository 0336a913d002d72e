r"""Fine-tunes a language model in a Hugging Face directory (GPT-2, Llama, Mistral, Qwen2, Qwen3).

  jaxlab finetune --checkpoint=DIR --data=FILE.jsonl --output=NEW_DIR \
      --objective=sft|dpo|ipo|kto|simpo|orpo|pass_at_n

FILE.jsonl has the columns prompt and response (or completion), or messages, or text; for
preferences prompt, chosen and rejected; for kto also prompt, response and label. Text is taken as
it is, messages through the chat template. NEW_DIR is what transformers loads, in float32; with
--lora_rank its directory `adapter` is what peft loads. The same command goes on after a kill, and
under another configuration, tokenizer or chat template, or with other data, it is refused.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab._checks import check_range
from jaxlab.commands import objectives, program
from jaxlab.commands.examples import Batches, Example, encode_rows, split_examples
from jaxlab.commands.objectives import Objective
from jaxlab.commands.rows import read_rows
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import Context, UsageError, workdir
from jaxlab.losses import sequence_log_prob
from jaxlab.models import DecoderConfig, DecoderLM, save_adapter, save_pretrained
from jaxlab.models.pretrained_adapters import adapter_targets
from jaxlab.models.pretrained_files import existing_directory
from jaxlab.training import fingerprint
from jaxlab.training.mesh import make_mesh, on_mesh, replicate, shard_batch
from jaxlab.training.state import TrainState, init_state, num_params
from jaxlab.training.update import build_evaluate, build_update
from jaxlab.weights.low_rank import LowRankConfig, init_low_rank, merge_low_rank

REQUIRED = ("checkpoint", "data", "output")
# Settings that say where and how to run, not what: a run may go on under others.
_FREE = ("checkpoint", "data", "output", "workdir", "log_every", "eval_every", "save_every")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained on what, and how."""

  checkpoint: str = ""  # Directory of the model: config.json, safetensors, tokenizer.json.
  data: str = ""  # JSONL file.
  output: str = ""  # New directory for the fine-tuned model.
  objective: Objective = "sft"  # What is minimised.
  workdir: str | None = None  # Checkpoints and metrics of the run; none is OUTPUT.run.
  steps: int | None = None  # Number of updates; none goes by epochs.
  epochs: int = 1  # Passes over the data.
  batch_size: int = 8  # Rows (pairs are one row) of an update, all devices together.
  accumulate: int = 1  # Pieces into which the rows of a device are cut to save memory.
  # Highest; AdamW, cosine to 0; none: 1e-4, for preferences 1e-5, a tenth without adapters.
  learning_rate: float | None = None
  warmup_share: float = 0.03  # Of the steps, in which the learning rate rises.
  weight_decay: float = 0.0  # Of AdamW.
  clip_norm: float = 1.0  # Largest norm of a gradient.
  # Strength of a preference objective, in orpo the weight of the odds; none: 0.1, in simpo 2.
  beta: float | None = None
  margin: float = 1.0  # Of simpo: what the scaled difference should exceed.
  num_samples: int = 16  # N of pass_at_n.
  max_length: int | None = None  # Longer sequences are cut; none is the model's context.
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
    least = dict.fromkeys(("epochs", "batch_size", "accumulate", "num_samples", "log_every"), 1)
    least |= dict.fromkeys(("steps", "save_every", "eval_every", "model_parallel"), 1)
    least |= {"max_length": 2, "lora_rank": 0, "chunk_size": 0}
    for name, low in least.items():
      value = getattr(self, name)
      if value is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
    if self.data_parallel < 1 and self.data_parallel != -1:
      raise ValueError(f"data_parallel must be at least 1, or -1, got {self.data_parallel}.")
    for name, interval in _INTERVALS.items():
      if getattr(self, name) is not None:
        check_range(name, getattr(self, name), interval)
    if self.beta is not None and self.objective not in objectives.DEFAULT_BETAS:
      raise ValueError(f"beta {self.beta} is of preferences, {self.objective} has none.")
    _ = self.lora  # Checks the targets.

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


def run(config: Config) -> int:
  """Fine-tunes and saves, or goes on with a run that was stopped.

  Args:
    config: what is trained on what, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if data, checkpoint or settings cannot be used; nothing has been written then.
  """
  output = pathlib.Path(config.output)
  directory = pathlib.Path(config.workdir or f"{output}.run")
  _check_directories(output, directory)
  architecture = program.read_architecture(config.checkpoint)
  config = dataclasses.replace(
    config,
    learning_rate=config.learning_rate
    or objectives.default_learning_rate(config.objective, adapters=config.lora_rank > 0),
    lora_targets=adapter_targets(config.lora_targets, architecture),
  )
  tokenizer = program.read_tokenizer(config.checkpoint)
  train, held_out = _read_examples(config, architecture, tokenizer)
  if config.batch_size > len(train):
    raise UsageError(
      f"--batch_size={config.batch_size} exceeds the {len(train)} examples to train on."
    )
  mesh = _make_mesh(config)
  num_steps = config.steps or config.epochs * math.ceil(len(train) / config.batch_size)
  optimizer = _optimizer(config, num_steps)
  start = _start(config, architecture, optimizer, mesh)

  asked = {name: v for name, v in dataclasses.asdict(config).items() if name not in _FREE}
  asked |= {
    "data_sha256": hashlib.sha256(pathlib.Path(config.data).read_bytes()).hexdigest(),
    "tokenizer": _tokenizer_fingerprint(config, tokenizer),
    "chat_template": fingerprint(tokenizer.chat_template),
    "architecture": dataclasses.asdict(architecture),
    "start": _sum_of_bits(start.merge(start.state.params, start.frozen)),
  }
  with workdir.lock(directory):
    workdir.begin(directory, asked)
    made_by = workdir.encode_json(asked)
    context = Context(directory, jax.random.key(config.seed), mesh=mesh, made_by=made_by)
    state = _train(config, context, start, optimizer, num_steps, train, held_out)
    _save(config, output, start, state.params)
  print(f"saved {output}", flush=True)
  return 0


def _check_directories(output: pathlib.Path, directory: pathlib.Path) -> None:
  """Finds before the training what would keep its result from being saved."""
  if os.path.lexists(output):
    raise UsageError(f"--output={output} is there already; nothing is overwritten.")
  if output.resolve() in (directory.resolve(), *directory.resolve().parents):
    raise UsageError(f"--output={output} would hold --workdir={directory}; keep them apart.")
  program.check_can_be_made("output", output)
  if not os.path.lexists(directory):
    program.check_can_be_made("workdir", directory)


def _tokenizer_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
  content = (existing_directory(config.checkpoint) / "tokenizer.json").read_bytes()
  return fingerprint([content, tokenizer.bos_token, tokenizer.eos_token])


def _sum_of_bits(params: chex.ArrayTree) -> int:
  """The sum of all bits as integers, which is the same however parameters are sharded."""
  words = [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in jax.tree.leaves(params)]
  return sum(int(jnp.sum(x, dtype=jnp.uint32)) for x in words) % 2**32


class _Start(NamedTuple):
  """What a run begins with.

  Attributes:
    model: the language model.
    state: the state of step 0, on the mesh; its parameters are those that are trained.
    frozen: parameters that are not trained.
    merge: `(trained, frozen) -> params` of the model.
  """

  model: DecoderLM
  state: TrainState
  frozen: chex.ArrayTree
  merge: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


def _make_mesh(config: Config) -> jax.sharding.Mesh:
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


def _read_examples(
  config: Config, architecture: DecoderConfig, tokenizer: Tokenizer
) -> tuple[list[Example], list[Example]]:
  """Examples to train on, and those held out."""
  longest = architecture.max_positions
  if config.max_length is not None and config.max_length > longest:
    raise UsageError(
      f"--max_length={config.max_length} exceeds the model's context of {longest} tokens."
    )
  rows = read_rows(config.data, objectives.data_kind(config.objective))
  examples, num_cut = encode_rows(
    rows,
    tokenizer,
    vocab_size=architecture.vocab_size,
    max_length=config.max_length or longest,
  )
  train, held_out = split_examples(examples, config.eval_share, config.seed)
  cut = f", {num_cut} of them cut to {config.max_length or longest} tokens" if num_cut else ""
  print(f"{len(train)} examples to train on, {len(held_out)} held out{cut}", flush=True)
  return train, held_out


def _optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
  warmup_steps = int(config.warmup_share * num_steps)
  schedule = optax.warmup_cosine_decay_schedule(
    config.learning_rate / (warmup_steps + 1), config.learning_rate, warmup_steps, num_steps
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, weight_decay=config.weight_decay),
  )


def _start(config, architecture, optimizer, mesh) -> _Start:
  """Reads the weights and makes the state of step 0."""
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
  return _Start(model, state, frozen, merge)


def _train(
  config: Config,
  context: Context,
  start: _Start,
  optimizer: optax.GradientTransformation,
  num_steps: int,
  train: list[Example],
  held_out: list[Example],
) -> TrainState:
  """The state after the last step."""
  batches = _batches(config, start, context, "train", train)
  held_out_batches = _batches(config, start, context, "held_out", held_out) if held_out else None
  loss_fn = objectives.build_loss(
    start.model,
    start.merge,
    objective=config.objective,
    beta=config.beta or objectives.DEFAULT_BETAS.get(config.objective, 0.0),
    margin=config.margin,
    num_samples=config.num_samples,
    chunk_size=config.chunk_size,
  )
  evaluate_all = build_evaluate(loss_fn, mesh=context.mesh)

  def evaluate(state):
    # Of the model state evaluation keeps nothing, so the frozen parameters may stand there.
    state = state._replace(model_state=start.frozen)
    metrics = evaluate_all(state, held_out_batches.epoch())
    return {name: value for name, value in metrics.items() if name != "weight"}

  result = context.fit(
    "train",
    start.state,
    _update(config, loss_fn, optimizer, start, context.mesh),
    batches,
    num_steps=num_steps,
    log_every=config.log_every,
    eval_every=config.eval_every if held_out else None,
    evaluate=evaluate if held_out else None,
    save_every=config.save_every,
  )
  return result.state


def _batches(config, start, context, name, examples) -> Batches:
  """Batches of examples, with log-probabilities under the start where the objective needs them."""
  longest = config.max_length or start.model.config.max_positions
  references = None
  if config.objective in objectives.WITH_REFERENCE:
    plain = Batches(examples, batch_size=config.batch_size, max_length=longest)
    references = context.cached(
      f"reference/{name}", _reference_log_probs, config, start, context.mesh, plain, len(examples)
    )
  seed = config.seed if name == "train" else None
  return Batches(
    examples,
    batch_size=config.batch_size,
    max_length=longest,
    seed=seed,
    references=references,
  )


def _reference_log_probs(config, start, mesh, batches, num_examples) -> np.ndarray:
  """Log-probabilities of all sequences before the first step, `[n, k]`."""

  @jax.jit
  def score(trained, frozen, tokens, mask):
    params = start.merge(trained, frozen)
    scores = objectives.score_tokens(start.model, params, tokens, chunk_size=config.chunk_size)
    return sequence_log_prob(scores, mask)

  log_probs = np.zeros((num_examples, 2), np.float32)
  for batch in batches.epoch():
    inputs = shard_batch((batch["tokens"], batch["mask"]), mesh)
    log_probs[batch["index"]] = jax.device_get(score(start.state.params, start.frozen, *inputs))
  return log_probs


def _update(config, loss_fn, optimizer, start, mesh):
  """The update, with the frozen parameters as an argument: in a closure they would be constants."""
  shardings = jax.tree.map(lambda x: x.sharding, start.state)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
  def step(state, frozen, batch):
    def loss(trained, model_state, batch, key):
      return loss_fn(trained, frozen, batch, key)

    update = build_update(loss, optimizer, mesh=mesh, accumulate=config.accumulate)
    return update(state, batch)

  return lambda state, batch: step(state, start.frozen, shard_batch(batch, mesh))


def _save(config: Config, output: pathlib.Path, start: _Start, trained: chex.ArrayTree) -> None:
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


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
