r"""Fine-tunes a language model in a Hugging Face directory (GPT-2, Llama, Mistral, Qwen2, Qwen3).

  jaxlab finetune --checkpoint=DIR --data=FILE.jsonl --output=NEW_DIR \
      --objective=sft|dpo|rpo|ipo|kto|simpo|orpo|pass_at_n|masked_thought

FILE.jsonl has the columns prompt and response (or completion), or messages, or text; for
preferences prompt, chosen and rejected; for kto also prompt, response and label. Text is taken as
it is, messages through the chat template. NEW_DIR is what transformers loads, in float32; with
--lora_rank its directory `adapter` is what peft loads. The same command goes on after a kill, and
under another configuration, tokenizer or chat template, or with other data, it is refused.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from jaxlab._checks import check_range
from jaxlab.commands import objectives, program, runs
from jaxlab.commands.examples import Batches, Example, encode_rows, split_examples
from jaxlab.commands.objectives import Objective
from jaxlab.commands.rows import read_rows
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import Context, UsageError
from jaxlab.losses import sequence_log_prob
from jaxlab.models import DecoderConfig
from jaxlab.training.mesh import shard_batch
from jaxlab.training.state import TrainState
from jaxlab.training.update import build_evaluate, build_update

REQUIRED = ("checkpoint", "data", "output")


@dataclasses.dataclass(frozen=True)
class Config(runs.TrainingConfig):
  """What is trained on what, and how."""

  objective: Objective = "sft"  # What is minimised.
  batch_size: int = 8  # Rows (pairs are one row) of an update, all devices together.
  # Highest; AdamW, cosine to 0; none: 1e-4, for preferences 1e-5, a tenth without adapters.
  learning_rate: float | None = None
  # Strength of a preference objective, in orpo the weight of the odds; none: 0.1, in rpo 0.05, in
  # simpo 2.
  beta: float | None = None
  margin: float = 1.0  # Of simpo: what the scaled difference should exceed.
  sft_weight: float = 0.005  # Of rpo: weight of the chosen response's likelihood, times beta.
  num_samples: int = 16  # N of pass_at_n.
  mask_rate: float = 0.4  # Of masked_thought: share of response tokens replaced in the end.
  max_length: int | None = None  # Longer sequences are cut; none is the model's context.

  def __post_init__(self):
    super().__post_init__()
    self.check_counts(num_samples=1, max_length=2)
    check_range("sft_weight", self.sft_weight, "[0, inf)")
    check_range("mask_rate", self.mask_rate, "[0, 1]")
    if self.beta is not None and self.objective not in objectives.DEFAULT_BETAS:
      raise ValueError(f"beta {self.beta} is of preferences, {self.objective} has none.")


def run(config: Config) -> int:
  """Fine-tunes and saves, or goes on with a run that was stopped.

  Args:
    config: what is trained on what, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if data, checkpoint or settings cannot be used; nothing has been written then.
  """
  runs.check_directories(config)
  architecture = program.read_architecture(config.checkpoint)
  rate = objectives.default_learning_rate(config.objective, adapters=config.lora_rank > 0)
  config = runs.resolve(config, architecture, learning_rate=rate)
  tokenizer = program.read_tokenizer(config.checkpoint)
  train, held_out = _read_examples(config, architecture, tokenizer)
  start = runs.begin(config, architecture, num_examples=len(train))
  fit = functools.partial(_train, config, start, train, held_out)
  runs.train_and_save(config, start, tokenizer, fit)
  return 0


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


def _train(
  config: Config,
  start: runs.Start,
  train: list[Example],
  held_out: list[Example],
  context: Context,
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
    sft_weight=config.sft_weight,
    mask_rate=config.mask_rate,
    num_steps=start.num_steps,
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
    _update(config, loss_fn, start),
    batches,
    num_steps=start.num_steps,
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


def _update(config, loss_fn, start):
  """The update, with the frozen parameters as an argument: in a closure they would be constants."""
  shardings = jax.tree.map(lambda x: x.sharding, start.state)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
  def step(state, frozen, batch):
    def loss(trained, model_state, batch, key):
      return loss_fn(trained, frozen, batch, key, step=state.step)

    options = {"mesh": start.mesh, "accumulate": config.accumulate}
    update = build_update(loss, start.optimizer, **options)
    return update(state, batch)

  return lambda state, batch: step(state, start.frozen, shard_batch(batch, start.mesh))


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
