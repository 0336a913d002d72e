"""Steps of TRL's DPO trainer, as its training loop makes them."""

import datasets
import numpy as np
import tokenizers
import transformers
import trl


class TRLSteps:
  """A trainer on random text, and its steps on the first batch.

  Attributes:
    tokens: the batch, chosen texts first, `[2 pairs, T]`.
    mask: which tokens belong to the response, `[2 pairs, T]`.
  """

  def __init__(
    self,
    checkpoint: str,
    directory: str,
    *,
    num_pairs: int,
    prompt_length: int,
    response_length: int,
    vocab_size: int,
    learning_rate: float,
  ):
    rng = np.random.default_rng(0)

    def texts(length):
      ids = rng.integers(2, vocab_size, (num_pairs, length))
      return [" ".join(f"w{i}" for i in row) for row in ids]

    columns = {"prompt": texts(prompt_length)}
    columns |= {name: [f" {x}" for x in texts(response_length)] for name in ("chosen", "rejected")}
    arguments = trl.DPOConfig(
      output_dir=f"{directory}/trl",
      per_device_train_batch_size=num_pairs,
      learning_rate=learning_rate,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      disable_dropout=True,
      report_to=[],
    )
    self._trainer = trl.DPOTrainer(
      model=checkpoint,
      args=arguments,
      train_dataset=datasets.Dataset.from_dict(columns),
      processing_class=word_tokenizer(vocab_size),
    )
    # Set as in its training loop before the first step.
    self._trainer.create_optimizer()
    self._trainer.current_gradient_accumulation_steps = 1
    self._inputs = next(iter(self._trainer.get_train_dataloader()))
    self.tokens = self._inputs["input_ids"].numpy()
    self.mask = self._inputs["completion_mask"].numpy()

  def step(self) -> float:
    """One step; the loss before it."""
    loss = self._trainer.training_step(self._trainer.model, self._inputs)
    self._trainer.optimizer.step()
    self._trainer.optimizer.zero_grad()
    return float(loss)


def word_tokenizer(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer of words w2, w3, ..., which are the tokens 2, 3, ...; 0 pads and 1 ends."""
  words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab_size)}
  core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
  core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="<pad>", eos_token="<eos>"
  )
