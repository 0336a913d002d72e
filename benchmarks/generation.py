"""Greedy generation beside `transformers.generate`: one checkpoint of random weights, float32."""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.roofline import roof
from jaxlab import models, samplers, training

PACKAGES = ("torch", "transformers")
_PROMPT = 16
_OURS, _PEER, _SINGLE = "jaxlab", "transformers", "jaxlab, one device"


class Size(NamedTuple):
  """A model and a batch without an end token; `goal` is the requested speedup."""

  num_layers: int
  hidden_size: int
  num_heads: int
  batch_size: int
  goal: float
  vocab_size: int = 1024
  new_tokens: int = 64

  @property
  def group(self) -> str:
    """Its name."""
    return f"{self.num_layers} layers, d {self.hidden_size}, batch {self.batch_size}"


SIZES = (
  Size(2, 64, 4, 1, 20.0),
  Size(2, 64, 4, 8, 5.0),
  Size(2, 64, 4, 64, 2.5),
  Size(12, 768, 12, 1, 2.0, vocab_size=50_257, new_tokens=32),
  Size(12, 768, 12, 8, 2.0, vocab_size=50_257, new_tokens=32),
  Size(6, 384, 6, 64, 1.3, new_tokens=32),
)
# Rows per device below which another device gains nothing.
_ROWS_PER_DEVICE = 32
ROWS = tuple(
  row
  for size in SIZES
  for row in (
    Row(size.group, _OURS, _PEER, goal=size.goal, unit="token"),
    Row(size.group, _SINGLE, _PEER, unit="token"),
  )
  if row.ours == _OURS or size.batch_size > _ROWS_PER_DEVICE
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from benchmarks.peers.generation import TransformersGreedy  # Imported here: it needs an extra.

  mesh = measure.start(divides=SIZES[-1].batch_size)
  devices, machine = mesh.size, roof(mesh, quick=quick)
  for size in SIZES:
    problem = size._replace(new_tokens=4, vocab_size=64, num_layers=1) if quick else size
    config = models.decoder_config(
      family="gpt2",
      vocab_size=problem.vocab_size,
      hidden_size=problem.hidden_size,
      num_layers=problem.num_layers,
      num_heads=problem.num_heads,
      max_positions=1024,
    )
    prompts = np.asarray(
      jax.random.randint(jax.random.key(1), (size.batch_size, _PROMPT), 0, problem.vocab_size)
    )
    with tempfile.TemporaryDirectory() as directory:
      start = models.DecoderLM(config).init(jax.random.key(0), prompts[:1, :1])["params"]
      models.save_pretrained(f"{directory}/model", start, config)
      peer = TransformersGreedy(f"{directory}/model", prompts, problem.new_tokens)
      loaded = models.load_pretrained(f"{directory}/model")
    split = size.batch_size > _ROWS_PER_DEVICE
    functions = {
      _OURS: _greedy(loaded, prompts, problem.new_tokens, devices if split else 1),
      _PEER: peer.generate,
    }
    if split:
      functions[_SINGLE] = _greedy(loaded, prompts, problem.new_tokens, 1)
    same = np.mean(np.asarray(functions[_OURS]()) == peer.generate())
    times = measure.interleave(
      {name: Timed(call, problem.new_tokens) for name, call in functions.items()},
      quick=quick,
      repetitions=9,
    )
    cache = 2 * np.prod(
      (size.batch_size, _PROMPT + problem.new_tokens, config.num_layers, config.hidden_size)
    )
    notes = {"share of tokens alike": same, "MiB of the cache": 4 * cache / 2**20}
    # A token reads every weight once, and multiplies with it for every row; of tables that are not
    # also the output layer it reads a row.
    lookups = {"position"} if config.tie_embeddings else {"position", "embed"}
    parts = {name: part for name, part in start.items() if name not in lookups}
    weights = sum(leaf.size for leaf in jax.tree.leaves(parts))
    seconds = float(np.median(times[_OURS]))
    notes |= machine.of_reading(4 * weights, seconds)
    notes |= machine.of_flops(2 * weights * size.batch_size, seconds)
    for row in (row for row in ROWS if row.group == size.group):
      # Random weights leave near ties, and one different token changes all that follow.
      checks = {"the same text, up to near ties": same > 0.9}
      yield measure.result(row, times, checks=checks, notes=notes if row.goal else None)


def _greedy(loaded: models.Pretrained, prompts: np.ndarray, new_tokens: int, num_devices: int):
  """A compiled call that gives the new tokens, its batch spread over devices."""
  mesh = training.make_mesh({"data": num_devices})
  rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
  tokens = jax.device_put(prompts, rows)
  lengths = jax.device_put(np.full(len(prompts), prompts.shape[1], np.int32), rows)
  fns = samplers.flax_decode_fns(loaded.model, jax.device_put(loaded.params, whole))

  @jax.jit
  def generate(fns, tokens, lengths):
    key = jax.random.key(0)
    return samplers.generate(
      key, fns, tokens, lengths, max_new_tokens=new_tokens, temperature=0.0
    ).tokens.astype(jnp.int32)

  return partial(generate, fns, tokens, lengths)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
