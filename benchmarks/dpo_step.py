"""A step of direct preference optimization beside TRL: one model, one batch, float32, AdamW."""

import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.roofline import roof
from jaxlab import losses, models, training
from jaxlab.experiment import count_flops

PACKAGES = ("torch", "transformers", "trl")
_OURS, _PEER = "jaxlab", "TRL"
_PAIRS, _PROMPT, _RESPONSE, _VOCABULARY = 16, 16, 47, 1024
_LEARNING_RATE = 1e-4


class Size(NamedTuple):
  """A model, and the requested speedup."""

  num_layers: int
  hidden_size: int
  num_heads: int
  goal: float

  @property
  def group(self) -> str:
    """Its name."""
    length = _PROMPT + _RESPONSE + 1  # TRL ends a response.
    return f"{self.num_layers} layers, d {self.hidden_size}, {_PAIRS} pairs of {length} tokens"


SIZES = (Size(2, 64, 4, 2.0), Size(6, 384, 6, 1.0))
ROWS = tuple(Row(size.group, _OURS, _PEER, goal=size.goal, unit="step") for size in SIZES)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from benchmarks.peers.preference_training import TRLSteps  # Imported here: it needs an extra.

  mesh = measure.start(divides=_PAIRS)
  machine = roof(mesh, quick=quick)
  for size, row in zip(SIZES, ROWS):
    config = models.decoder_config(
      family="llama",
      vocab_size=_VOCABULARY,
      hidden_size=size.hidden_size,
      num_layers=1 if quick else size.num_layers,
      num_heads=size.num_heads,
      max_positions=256,
    )
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = models.DecoderLM(config).init(jax.random.key(0), tokens)["params"]
    with tempfile.TemporaryDirectory() as directory:
      models.save_pretrained(f"{directory}/model", params, config)
      peer = TRLSteps(
        f"{directory}/model",
        directory,
        num_pairs=_PAIRS,
        prompt_length=_PROMPT,
        response_length=_RESPONSE,
        vocab_size=_VOCABULARY,
        learning_rate=_LEARNING_RATE,
      )
      loaded = models.load_pretrained(f"{directory}/model")
    step = _Steps(loaded, peer.tokens, peer.mask, mesh)
    gaps = [abs(step() - peer.step()) for _ in range(4)]
    times = measure.interleave({_OURS: step, _PEER: peer.step}, quick=quick, repetitions=9)
    same = {"the first four losses agree to 1e-3": max(gaps) < 1e-3}
    notes = {"largest gap of the losses": max(gaps)}
    notes |= machine.of_flops(step.flops(), float(np.median(times[_OURS])))
    yield measure.result(row, times, checks=same, notes=notes)


class _Steps:
  """Our side: the reference runs in every step, as it does in TRL's."""

  def __init__(self, loaded: models.Pretrained, tokens, mask, mesh):
    def log_probs(params, batch):
      rows = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
      logits = loaded.model.apply({"params": params}, rows).logits
      scores = losses.causal_token_log_probs(logits, rows).reshape(batch["tokens"].shape)
      return jnp.moveaxis(losses.sequence_log_prob(scores, batch["mask"]), -1, 0)

    def loss(params, reference, batch, key):
      del key
      policy, frozen = log_probs(params, batch), log_probs(reference, batch)
      return training.LossOutput(losses.dpo_loss(*policy, *frozen), model_state=reference)

    self._loss = loss
    optimizer = optax.adamw(_LEARNING_RATE, weight_decay=0.0)
    self._update = training.build_update(loss, optimizer, mesh=mesh)
    self._state = training.init_state(
      jax.random.key(0), loaded.params, optimizer, model_state=jax.tree.map(jnp.copy, loaded.params)
    )
    # The peer's rows are all chosen responses, then all rejected ones.
    pairs = (np.stack(np.split(np.asarray(x), 2), axis=1) for x in (tokens, mask))
    self._batch = dict(zip(("tokens", "mask"), pairs))

  def flops(self) -> float:
    """Floating point operations of the passes of a step."""

    def total(params, reference, batch):
      return self._loss(params, reference, batch, None).values.sum()

    return count_flops(jax.grad(total), self._state.params, self._state.model_state, self._batch)

  def __call__(self) -> float:
    """One step; the loss before it."""
    self._state, measured = self._update(self._state, self._batch)
    return float(measured["loss"])


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
