"""Speech: one epoch of gradients in buckets of both lengths, and in random batches."""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import models, samplers

PACKAGES = ()
_FRAMES_PER_SECOND, _BANDS, _VOCABULARY = 20, 16, 64
_FIXED, _WIDTH = 8, 40  # Utterances of a random batch; widths are multiples, so that few compile.
_BUCKETS = {"num_buckets": 8, "num_sub_buckets": 2}
_OURS, _PEER, _SORTED = "buckets by duration and tokens", f"random batches of {_FIXED}", "sorted"
_GROUP = "utterances of 0.5 to 30 s, recognizer of 2 + 2 layers, d 64"
ROWS = (
  Row(_GROUP, _OURS, _PEER, goal=1.3, unit="utterance"),
  Row(_GROUP, _SORTED, _PEER, unit="utterance"),
)


class _Batch(NamedTuple):
  frames: np.ndarray
  lengths: np.ndarray
  tokens: np.ndarray


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  num = 48 if quick else 480
  rng = np.random.default_rng(0)
  # Many are short and some are long; how fast one speaks differs.
  short = np.clip(5 * np.exp(0.6 * rng.normal(size=num)), 0.5, 30)
  seconds = np.where(rng.random(num) < 0.3, rng.uniform(15, 30, num), short)
  if quick:
    seconds = seconds / 10
  tokens = np.clip(np.round(2 * np.exp(0.3 * rng.normal(size=num)) * seconds), 1, None)
  lengths = np.stack([np.ceil(seconds * _FRAMES_PER_SECOND), tokens], axis=1).astype(int)
  orders = {
    _OURS: _in_buckets(lengths),
    _PEER: np.array_split(rng.permutation(num), num // _FIXED),
    _SORTED: np.array_split(np.argsort(lengths[:, 0]), num // _FIXED),
  }
  model = models.SpeechEncoderDecoder(2, 2, dim=64, vocab_size=_VOCABULARY)
  example = _padded(rng, lengths[:1], (_WIDTH, 8))
  inputs = jax.tree.map(jnp.asarray, tuple(example))
  params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
  gradient = jax.jit(jax.grad(functools.partial(_loss, model)))
  epochs, padded = {}, {}
  for name, order in orders.items():
    batches = [_padded(rng, lengths[rows], _widths(lengths[rows])) for rows in order]
    epochs[name] = functools.partial(_epoch, gradient, params, batches)
    padded[name] = sum(batch.frames.shape[0] * batch.frames.shape[1] for batch in batches)
  times = measure.interleave(
    {name: Timed(call, num) for name, call in epochs.items()}, quick=quick, repetitions=5
  )
  real, seen = lengths[:, 0].sum(), np.sort(np.concatenate(orders[_OURS]))
  for row in ROWS:
    fewer = 1 - padded[row.ours] / padded[row.peer]
    checks = {"every utterance once": bool(np.array_equal(seen, np.arange(num)))}
    if row.goal:
      checks["30% fewer padded frames"] = bool(fewer >= 0.3)
    shares = {name: 1 - real / padded[name] for name in (row.ours, row.peer)}
    notes = {f"share of padding, {name}": share for name, share in shares.items()}
    yield measure.result(row, times, checks=checks, notes=notes | {"fewer frames": fewer})


def _in_buckets(lengths: np.ndarray) -> Sequence[np.ndarray]:
  """Batches of at most as many padded frames as a random one of the longest utterances."""
  bounds = samplers.estimate_duration_token_bins(*lengths.T.astype(float), **_BUCKETS).bins
  # Outliers fit into the last bucket of their duration.
  bounds = np.array(bounds, float)
  last = np.append(bounds[1:, 0] != bounds[:-1, 0], True)
  bounds[last, 1] = lengths[:, 1].max()
  bounds[-1, 0] = lengths[:, 0].max()
  rows = [max(int(_FIXED * lengths[:, 0].max() // frames), 1) for frames, _ in bounds]
  return list(samplers.bucket_batches(0, lengths.astype(float), bounds, batch_sizes=rows))


def _widths(lengths: np.ndarray) -> tuple[int, int]:
  """The longest of each kind, rounded up."""
  return tuple(int(-(-most // unit) * unit) for most, unit in zip(lengths.max(0), (_WIDTH, 8)))


def _padded(rng, lengths: np.ndarray, widths: tuple[int, int]) -> _Batch:
  frames = rng.normal(size=(len(lengths), widths[0], _BANDS)).astype(np.float32)
  tokens = rng.integers(1, _VOCABULARY, (len(lengths), widths[1]))
  tokens = np.where(np.arange(widths[1]) < lengths[:, 1:], tokens, 0)
  return _Batch(frames, lengths[:, 0].astype(np.int32), tokens.astype(np.int32))


def _loss(model, params, batch: _Batch):
  logits = model.apply({"params": params}, *batch[:2], batch.tokens)[:, :-1]
  targets = batch.tokens[:, 1:]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.sum(losses * (targets > 0))


def _epoch(gradient, params, batches: Sequence[_Batch]):
  for batch in batches:
    found = gradient(params, batch)
  return found


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
