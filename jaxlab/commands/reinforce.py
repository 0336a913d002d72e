r"""Trains a language model in a Hugging Face directory on its own responses, which are verified.

  jaxlab reinforce --checkpoint=DIR --data=PROMPTS.jsonl --output=NEW_DIR \
      --verifier=my_module.my_function [--objective=rloo|grpo|online_dpo|best_of_n|rejection]
  jaxlab reinforce ... --pattern='answer is (\d+)'

PROMPTS.jsonl has the column prompt, text or messages, and others that the verifier reads. It is a
function `(response, columns) -> reward`, which gives a number, True or False, or None for what it
cannot score; a module of the current directory will do. --pattern searches the response; what its
first group finds last must be the column answer. NEW_DIR is what transformers loads, in float32;
with --lora_rank its directory `adapter` is what peft loads. The same command goes on after a kill.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import algorithms
from jaxlab._checks import check_range
from jaxlab.algorithms import PostTraining, PostTrainingState, Rollout
from jaxlab.commands import program, runs, verifiers
from jaxlab.commands.examples import Batches, Example, encode_prompts, split_examples
from jaxlab.commands.objectives import score_tokens
from jaxlab.commands.rows import Row, read_rows
from jaxlab.commands.verifiers import Verifier
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import Context, UsageError
from jaxlab.samplers import flax_decode_fns
from jaxlab.training.mesh import shard_batch
from jaxlab.training.state import TrainState

REQUIRED = ("checkpoint", "data", "output")
OnlineObjective = Literal["rloo", "grpo", "online_dpo", "best_of_n", "rejection"]
_DEFAULT_BETAS = {"rloo": 0.05, "grpo": 0.04, "online_dpo": 0.1}
_EVALUATION = np.uint32(2**32 - 1)  # No step has this number.


@dataclasses.dataclass(frozen=True)
class Config(runs.TrainingConfig):
  """What is trained on which prompts, and how."""

  data: str = ""  # JSONL file of prompts.
  verifier: str | None = None  # Dotted name of a Python function `(response, columns) -> reward`.
  pattern: str | None = (
    None  # Regular expression that a response must hold, in place of a verifier.
  )
  objective: OnlineObjective = "rloo"  # How rewards become a loss.
  num_samples: int = 8  # Responses to a prompt.
  max_new_tokens: int = 128  # Longest response.
  num_updates: int = 1  # Updates on the same responses.
  batch_size: int = 8  # Prompts of an update, all devices together.
  # Highest; AdamW, cosine to 0; none: 1e-5, a tenth without adapters.
  learning_rate: float | None = None
  # Weight of the divergence from the start: none: 0.05 in rloo, 0.04 in grpo, 0.1 in online_dpo.
  beta: float | None = None
  clip: float = 0.2  # Ratios are clipped at 1 - clip and 1 + clip; of rloo and grpo.
  threshold: float = 1.0  # Least reward of a response that rejection learns from.

  def __post_init__(self):
    super().__post_init__()
    fewest = 1 if self.objective in ("best_of_n", "rejection") else 2
    self.check_counts(num_samples=fewest, max_new_tokens=1, num_updates=1)
    check_range("clip", self.clip, "[0, inf)")
    check_range("threshold", self.threshold, "(-inf, inf)")
    if self.beta is not None and self.objective not in _DEFAULT_BETAS:
      raise ValueError(f"beta {self.beta} is of a divergence, which {self.objective} has not.")
    if self.verifier is not None and self.pattern is not None:
      raise ValueError(
        f"verifier {self.verifier} and pattern {self.pattern} are given, one is used."
      )


def run(config: Config) -> int:
  """Trains and saves, or goes on with a run that was stopped.

  Args:
    config: what is trained on which prompts, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if prompts, checkpoint, verifier or settings cannot be used.
  """
  if config.verifier is None and config.pattern is None:
    raise UsageError("--verifier or --pattern must be given.")
  runs.check_directories(config)
  architecture = program.read_architecture(config.checkpoint)
  rate = 1e-5 if config.lora_rank > 0 else 1e-6
  config = runs.resolve(config, architecture, learning_rate=rate)
  tokenizer = program.read_tokenizer(config.checkpoint)
  longest = architecture.max_positions - config.max_new_tokens
  if longest < 1:
    raise UsageError(
      f"--max_new_tokens={config.max_new_tokens} leaves no room for a prompt in the context of "
      f"{architecture.max_positions} tokens."
    )
  rows = read_rows(config.data, "prompts")
  sizes = {"vocab_size": architecture.vocab_size, "max_length": longest}
  examples = encode_prompts(rows, tokenizer, **sizes)
  judge = _Judge(config, tokenizer, rows)
  train, held_out = split_examples(examples, config.eval_share, config.seed)
  print(f"{len(train)} prompts to train on, {len(held_out)} held out", flush=True)
  start = runs.begin(config, architecture, num_examples=len(train))
  ends = program.end_tokens(config.checkpoint, tokenizer, architecture.vocab_size)
  trainer = _Trainer(config, start, judge, ends)
  fit = functools.partial(_train, config, start, trainer, train, held_out)
  runs.train_and_save(config, start, tokenizer, fit, made_by={"end_tokens": ends})
  return 0


class _Judge:
  """Texts of responses, and their rewards."""

  def __init__(self, config: Config, tokenizer: Tokenizer, rows: list[Row]):
    self._tokenizer = tokenizer
    self._rows = {row.line: row for row in rows}
    self._verifier: Verifier
    if config.verifier is not None:
      self._verifier = verifiers.function_verifier(config.verifier)
    else:
      self._verifier = verifiers.pattern_verifier(config.pattern)
    # What fails on nothing is found before the training.
    verifiers.score(self._verifier, [""], rows[:1])

  def __call__(self, rollout: Rollout, examples: list[Example]) -> tuple[np.ndarray, float]:
    """Rewards `[b, n]`, and the share of responses without text."""
    tokens, mask = jax.device_get((rollout.tokens, rollout.mask))
    rows = [self._rows[example.line] for example in examples for _ in range(tokens.shape[1])]
    texts = [
      self._tokenizer.decode(row[kept], skip_special_tokens=True)
      for row, kept in zip(tokens.reshape(len(rows), -1), mask.reshape(len(rows), -1))
    ]
    rewards = verifiers.score(self._verifier, texts, rows).reshape(mask.shape[:2])
    return rewards, float(np.mean([not text.strip() for text in texts]))


class _Trainer:
  """The two programs of an update: one samples, one learns; rewards are computed in between."""

  def __init__(self, config: Config, start: runs.Start, judge: _Judge, ends: tuple[int, ...]):
    self._config, self._start, self._judge, self._ends = config, start, judge, ends
    # The state's own buffers are given to the updates.
    self._reference = jax.tree.map(jnp.copy, start.state.params)
    self._sample = jax.jit(self._sample_program)
    shardings = jax.tree.map(lambda x: x.sharding, start.state)
    options = {"donate_argnums": 0, "out_shardings": (shardings, None)}
    self._learn = jax.jit(self._learn_program, **options)

  def update(self, examples: list[Example], state: TrainState, batch: Mapping[str, Any]):
    """One step on a batch of these examples, `(state, metrics)`."""
    key = jax.random.fold_in(state.key, state.step)
    rollout, rewards, empty = self.judged(key, examples, state, batch)
    rewards = shard_batch(rewards, self._start.mesh)
    state, info = self._learn(state, self._start.frozen, self._reference, rollout, rewards)
    return state, info | {"empty": np.float32(empty)}

  def judged(self, key, examples: list[Example], state: TrainState, batch: Mapping[str, Any]):
    """Samples of a batch of prompts, their rewards, and the share without text."""
    lengths = batch["mask"][:, 0].sum(-1, dtype=np.int32)
    prompts = shard_batch((batch["tokens"][:, 0], lengths), self._start.mesh)
    rollout = self._sample(key, state.params, self._start.frozen, prompts)
    return rollout, *self._judge(rollout, [examples[i] for i in batch["index"]])

  def _sample_program(self, key, trained, frozen, prompts) -> Rollout:
    return self._build(frozen).sample(key, PostTrainingState(trained, None, None, None), prompts)

  def _learn_program(self, state, frozen, reference, rollout, rewards):
    config, trainer = self._config, self._build(frozen)
    if config.bfloat16:
      # Rounded otherwise than in the sampler, they would not be those of the loss.
      rows = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
      scores = self._log_probs(frozen)(state.params, rows).reshape(rollout.tokens.shape)
      rollout = rollout._replace(log_probs=scores)
    policy = PostTrainingState(state.params, reference, state.opt_state, state.step)
    policy, info = trainer.learn(policy, rollout, rewards)
    shares = {
      "constant": info.num_constant / config.batch_size,
      "unused": info.num_unused / config.batch_size,
      "unscorable": info.num_unscorable / rewards.size,
    }
    names = ("loss", "reward", "kl", "length")
    metrics = {name: getattr(info, name) for name in names} | shares
    step = {"step": policy.step, "params": policy.params, "opt_state": policy.opt_state}
    return state._replace(**step), metrics

  def _build(self, frozen: chex.ArrayTree) -> PostTraining:
    config, start = self._config, self._start

    def rollout_fn(key, trained, prompts):
      fns = flax_decode_fns(start.model, start.merge(trained, frozen))
      sizes = {"num_samples": config.num_samples, "max_new_tokens": config.max_new_tokens}
      return algorithms.sample_rollout(key, fns, *prompts, eos_token_id=self._ends, **sizes)

    beta = config.beta or _DEFAULT_BETAS.get(config.objective, 0.0)
    objective = {
      "rloo": lambda: algorithms.rloo_objective(clip_low=config.clip),
      "grpo": lambda: algorithms.grpo_objective(clip_low=config.clip, kl_coefficient=beta),
      "online_dpo": lambda: algorithms.online_dpo_objective(beta=beta),
      "best_of_n": algorithms.best_of_n_objective,
      "rejection": lambda: algorithms.rejection_sampling_objective(threshold=config.threshold),
    }[config.objective]()
    return algorithms.post_training(
      rollout_fn, None, self._log_probs(frozen), objective, start.optimizer,
      kl_penalty=beta if config.objective == "rloo" else 0.0,
      num_updates=config.num_updates, accumulate=config.accumulate,
    )  # fmt: skip

  def _log_probs(self, frozen: chex.ArrayTree):
    start, chunk_size = self._start, self._config.chunk_size

    def log_prob_fn(trained, tokens):
      params = start.merge(trained, frozen)
      return score_tokens(start.model, params, tokens, chunk_size=chunk_size)

    return log_prob_fn


def _train(config, start, trainer, train, held_out, context: Context) -> TrainState:
  """The state after the last step."""
  longest = start.model.config.max_positions - config.max_new_tokens
  options = {"batch_size": config.batch_size, "max_length": longest}

  def evaluate(state):
    key, rewards, weights = jax.random.fold_in(state.key, _EVALUATION), [], []
    for i, batch in enumerate(Batches(held_out, **options).epoch()):
      _, scores, _ = trainer.judged(jax.random.fold_in(key, i), held_out, state, batch)
      rewards.append(scores)
      weights.append(np.broadcast_to(batch["weight"][:, None], scores.shape))
    scores, weights = np.concatenate(rewards), np.concatenate(weights)
    weights = weights * np.isfinite(scores)
    return {"reward": np.sum(np.where(weights, scores, 0)) / max(np.sum(weights), 1)}

  result = context.fit(
    "train",
    start.state,
    functools.partial(trainer.update, train),
    Batches(train, seed=config.seed, **options),
    num_steps=start.num_steps,
    log_every=config.log_every,
    eval_every=config.eval_every if held_out else None,
    evaluate=evaluate if held_out else None,
    save_every=config.save_every,
  )
  return result.state


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
