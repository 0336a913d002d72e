"""Greedy generation as a user of transformers would write it."""

import numpy as np
import torch
import transformers


class TransformersGreedy:
  """A checkpoint directory, and the continuation of fixed prompts."""

  def __init__(self, directory: str, prompts: np.ndarray, new_tokens: int):
    self._model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    # Without an end token both sides generate the same number of tokens.
    self._model.generation_config.eos_token_id = None
    self._inputs = torch.tensor(prompts, dtype=torch.long)
    self._options = {
      "max_new_tokens": new_tokens,
      "do_sample": False,
      "attention_mask": torch.ones_like(self._inputs),
      "pad_token_id": 0,
    }

  @torch.inference_mode()
  def generate(self) -> np.ndarray:
    """The new tokens, `[b, new_tokens]`."""
    texts = self._model.generate(self._inputs, **self._options)
    return texts[:, self._inputs.shape[1] :].numpy()
