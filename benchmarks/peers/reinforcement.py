"""Iterations of TRL's GRPO and RLOO trainers, as their training loops make them."""

import datasets
import numpy as np
import transformers
import trl

from benchmarks.peers.preference_training import word_tokenizer

_TRAINERS = {
  "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"loss_type": "grpo"}),
  "rloo": (trl.RLOOTrainer, trl.RLOOConfig, {}),
}


class TRLIterations:
  """A trainer on random prompts, which samples, scores and learns in every step."""

  def __init__(
    self,
    objective: str,
    checkpoint: str,
    directory: str,
    *,
    prompts: np.ndarray,
    num_samples: int,
    max_new_tokens: int,
    vocab_size: int,
    learning_rate: float,
    beta: float,
  ):
    trainer, config, options = _TRAINERS[objective]
    num_prompts = len(prompts)
    arguments = config(
      output_dir=f"{directory}/trl",
      per_device_train_batch_size=num_prompts * num_samples,
      num_generations=num_samples,
      max_completion_length=max_new_tokens,
      # No end before the last token, on both sides.
      generation_kwargs={"min_new_tokens": max_new_tokens},
      learning_rate=learning_rate,
      beta=beta,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      disable_dropout=True,
      report_to=[],
      **options,
    )
    texts = [" ".join(f"w{i}" for i in row) for row in prompts]
    self._trainer = trainer(
      model=transformers.AutoModelForCausalLM.from_pretrained(checkpoint),
      args=arguments,
      reward_funcs=_even_share,
      train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
      processing_class=word_tokenizer(vocab_size),
    )
    # Set as in its training loop before the first step.
    self._trainer.create_optimizer()
    self._trainer.current_gradient_accumulation_steps = 1
    self._inputs = next(iter(self._trainer.get_train_dataloader()))

  def step(self) -> float:
    """One iteration; the loss."""
    self._trainer.model.train()
    loss = self._trainer.training_step(self._trainer.model, self._inputs, None)
    self._trainer.optimizer.step()
    self._trainer.optimizer.zero_grad()
    return float(loss)

  def samples(self) -> np.ndarray:
    """Prompts and responses of the last iteration, grouped by prompt, `[prompts, n, T]`."""
    buffered = self._trainer._buffered_inputs[0]
    tokens = np.concatenate(
      [buffered[f"{part}_ids"].numpy() for part in ("prompt", "completion")], 1
    )
    groups = {}
    for row, prompt in zip(tokens, buffered["prompt_ids"].tolist()):
      groups.setdefault(tuple(prompt), []).append(row)
    return np.stack([np.stack(rows) for rows in groups.values()])

  def tensors(self) -> dict[str, np.ndarray]:
    """The parameters, by the names of the checkpoint."""
    return {n: x.detach().numpy().copy() for n, x in self._trainer.model.state_dict().items()}


def _even_share(completion_ids, **_):
  """The reward: how many of the tokens are even."""
  return [float(np.mean(np.asarray(ids) % 2 == 0)) for ids in completion_ids]
