r"""Samples from a language model in a Hugging Face directory, and chooses among the samples.

  jaxlab sample --checkpoint=DIR --prompts=FILE.jsonl --out=SAMPLES.jsonl --method=rpc \
      --num_samples=16 --pattern='answer is (\d+)'
  jaxlab sample ... --method=rain --verifier=my_module.is_harmless
  jaxlab sample ... --method=speculative --small=SMALL_DIR

Methods: sample draws; majority draws and chooses the answer of most samples; rpc chooses by the
probabilities of the distinct samples, improbable ones left out; rain searches for what a judge
accepts, and rewinds; nudging lets a small aligned model write where the model is uncertain;
adaptive lets a small model write where it is certain; speculative draws as the model does, with
drafts of a small one. `jaxlab score SAMPLES.jsonl` scores the file.

FILE.jsonl has the column prompt, which holds text or messages, and others, which are copied; one of
them may be answer. A line that cannot be used is named and left out. SAMPLES.jsonl gets an object a
line:

  samples, answers   texts, and what --pattern finds in each: its first group at the last match
  votes, confidence  samples with the same answer; majority: their share, rpc: that in the
                     probabilities, else the probability per token of the sample
  log_probs          of each sample under the model, in nats; of adaptive under each token's writer
  chosen             of majority and rpc: the answer that won; null where no sample has one
  correct, verdict   whether an answer is that of the column answer; what --verifier gives
  cost               tokens, and FLOPs: two per parameter and token that a model reads or writes

The judge of rain is --verifier, a function `(response, columns) -> True, False, a number in [0, 1],
or None`, or else --pattern, which a good response holds; what it cannot score (None, NaN) counts as
1/2. The same command goes on after a kill, and under another configuration it is refused.
"""

import dataclasses
import datetime
import hashlib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_range
from jaxlab.commands import (
  answers,
  program,
  rows,
  runs,
  sample_files,
  sampling,
  verifiers,
)
from jaxlab.commands.decoders import OPTIONS, PAIRS, Method
from jaxlab.commands.judges import Judge
from jaxlab.commands.sampling import BatchSampler, Entry, Sampler, Side, TextSampler, Weights
from jaxlab.commands.verifiers import Verifier
from jaxlab.experiment import UsageError, workdir
from jaxlab.training import fingerprint
from jaxlab.training.mesh import make_mesh

REQUIRED = ("checkpoint", "prompts", "out")
# Settings that say where things are, not what is asked for: a run may go on under others.
_FREE = ("checkpoint", "small", "adapter", "prompts", "out", "workdir")
_SECONDS = 10  # Between lines of progress.


@dataclasses.dataclass(frozen=True)
class Config:
  """What is sampled from what, and how."""

  checkpoint: str = ""  # Directory of the model: config.json, safetensors, tokenizer.json.
  prompts: str = ""  # JSONL file (or .jsonl.gz, .json, .parquet) with the column prompt.
  out: str = ""  # New JSONL file.
  workdir: str | None = None  # What is asked for, and the report; none is OUT.run.
  method: Method = "sample"  # How texts are sampled, and one is chosen.
  small: str | None = None  # Directory of the second model, of nudging, adaptive and speculative.
  adapter: str | None = None  # Directory of low-rank adapters in peft's format, of --checkpoint.
  pattern: str | None = None  # Regular expression of an answer; none: all of a sample is one.
  verifier: str | None = None  # Dotted name of a Python function `(response, columns) -> reward`.
  num_samples: int | None = None  # Samples of a prompt; none: 8, in rain and nudging 1.
  max_new_tokens: int = 128  # Longest sample.
  temperature: float | None = None  # 0 takes the most probable token; none: 1. Not of nudging.
  top_k: int | None = None  # Draw among the k most probable tokens. Not of rain, nudging.
  top_p: float | None = None  # Draw among the fewest tokens of this mass. Not of rain, nudging.
  num_candidates: int | None = None  # Of rain: children of a leaf; none: 10.
  max_iterations: int | None = None  # Of rain: visits before a move; none: 50.
  min_visits: int | None = None  # Of rain: a move with more is kept early; none: 6.
  value_threshold: float | None = None  # Of rain: if its value in [-1, 1] exceeds this; none: 0.8.
  top_prob_threshold: float | None = None  # Of nudging: below it the model is uncertain; none: 0.4.
  look_ahead: int | None = None  # Of nudging by text: tokens of one completion; none: 16.
  entropy_threshold: float | None = None  # Of adaptive: bits above which it takes over; none: 1.
  window: int | None = None  # Of adaptive: tokens in the mean of the entropy; none: 5.
  min_dwell: int | None = None  # Of adaptive: fewest tokens between changes; none: 10.
  num_draft_tokens: int | None = None  # Of speculative: tokens of a draft; none: 4.
  # Prompts of a batch, all devices together; all samples of them are drawn at once.
  batch_size: int = 8
  seed: int = 0  # Of the draws.
  bfloat16: bool = False  # Keep parameters and compute in bfloat16.
  data_parallel: int = -1  # Devices over which batches are split; -1 for all that are left.
  model_parallel: int = 1  # Devices over which parameters are split.

  def __post_init__(self):
    for name, interval in _INTERVALS.items():
      if getattr(self, name) is not None:
        check_range(name, getattr(self, name), interval)
    for name, methods in OPTIONS.items():
      if getattr(self, name) is not None and self.method not in methods:
        value = getattr(self, name)
        raise ValueError(f"{name} {value} is of {', '.join(methods)}; {self.method} has none.")
    if (self.small is not None) != (self.method in PAIRS):
      given = "needs the directory of a small model" if self.small is None else "has no small model"
      raise ValueError(f"small is {self.small}, and {self.method} {given}.")
    if self.method == "nudging" and self.num_samples not in (None, 1):
      raise ValueError(f"nudging draws nothing: num_samples must be 1, got {self.num_samples}.")
    if self.method == "rain":
      if self.temperature == 0:
        raise ValueError("temperature must lie in (0, inf) for rain, got 0.0.")
      if self.model_parallel > 1 or self.data_parallel > 1:
        raise ValueError("rain, which asks a Python function on its way, runs on one device.")
      if self.verifier is None and self.pattern is None:
        raise ValueError("rain needs a judge: verifier or pattern.")
    if self.data_parallel < 1 and self.data_parallel != -1:
      raise ValueError(f"data_parallel must be at least 1, or -1, got {self.data_parallel}.")

  @property
  def options(self) -> dict[str, Any]:
    """Options of the method that are given."""
    values = {name: getattr(self, name) for name in OPTIONS}
    return {name: value for name, value in values.items() if value is not None}

  @property
  def samples_per_prompt(self) -> int:
    """Samples of a prompt."""
    return self.num_samples or (1 if self.method in ("rain", "nudging") else 8)


_COUNT = "[1, inf)"
_INTERVALS = {
  "num_samples": _COUNT,
  "max_new_tokens": _COUNT,
  "temperature": "[0, inf)",
  "top_k": _COUNT,
  "top_p": "(0, 1]",
  "num_candidates": _COUNT,
  "max_iterations": _COUNT,
  "min_visits": "[0, inf)",
  "value_threshold": "[-1, 1]",
  "top_prob_threshold": "[0, 1]",
  "look_ahead": _COUNT,
  "entropy_threshold": "[0, inf)",
  "window": _COUNT,
  "min_dwell": _COUNT,
  "num_draft_tokens": _COUNT,
  "batch_size": _COUNT,
  "seed": "[0, 4294967295]",
  "model_parallel": _COUNT,
}


def run(config: Config) -> int:
  """Samples, or goes on with a run that was stopped.

  Args:
    config: what is sampled from what, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if prompts, models, verifier or settings cannot be used.
  """
  out = pathlib.Path(config.out)
  directory = pathlib.Path(config.workdir or f"{out}.run")
  sample_files.check_new("out", out, begun=(directory / "config.json").exists())
  sides = [sampling.read_side("checkpoint", config.checkpoint)]
  if config.small is not None:
    sides.append(sampling.read_side("small", config.small))
  by_text = _is_by_text(config, sides)
  sizes = {"method": config.method, "max_new_tokens": config.max_new_tokens}
  parse = sampling.entry_parser(sides, **sizes)
  entries, faults = rows.read_usable(config.prompts, parse, flag="--prompts")
  verifier, judge = _verifiers(config, sides[0], entries)
  rows.tell_faults(faults)
  mesh = _make_mesh(config)
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  models = [
    sampling.read_weights(side, mesh, dtype=dtype, adapter=adapter)
    for side, adapter in zip(sides, (config.adapter, None))
  ]
  sampler = _sampler(config, sides, models, mesh, judge, by_text=by_text)
  find = None if config.pattern is None else verifiers.answer_finder(config.pattern)

  def sample(key: chex.PRNGKey, batch: list[Entry]) -> list[dict[str, Any]]:
    return answers.output_lines(
      [entry.row for entry in batch],
      sampler(key, batch),
      method=config.method,
      find=find,
      verifier=verifier,
      num_params=[model.num_params for model in models],
      prompt_tokens=[len(entry.tokens[0]) for entry in batch],
    )

  with workdir.lock(directory):
    workdir.begin(directory, _asked(config, sides, models))
    start = sample_files.continue_lines("out", out, [entry.row.line for entry in entries])
    with program.usage_errors(f"--out={out}"):
      sample_files.append_lines(out, [])
    _write(config, out, entries, start, sample)
    _report(out, directory, faults)
  return 0


def _is_by_text(config: Config, sides: Sequence[Side]) -> bool:
  """Whether two models share only the text, which nudging alone can work with."""
  other = sampling.other_token(*sides) if len(sides) > 1 else None
  if other is None:
    return False
  if config.method != "nudging":
    raise UsageError(f"--method={config.method} needs models of one vocabulary: {other}.")
  print(f"the vocabularies differ, so that the models share the text: {other}", flush=True)
  return True


def _verifiers(
  config: Config, side: Side, entries: Sequence[Entry]
) -> tuple[Verifier | None, Judge | None]:
  """What gives verdicts, and what judges a search."""
  verifier = None if config.verifier is None else verifiers.function_verifier(config.verifier)
  judging = verifier
  if config.pattern is not None:
    by_pattern = verifiers.pattern_verifier(config.pattern)
    judging = verifier or by_pattern
  judge = Judge(judging, side.tokenizer.decode) if config.method == "rain" else None
  # What fails on nothing is found before the weights are read.
  first = [entries[0].row]
  if judge is not None:
    judge.begin(first)
    judge.scores(np.zeros(1, np.int32), np.zeros((1, 1), np.int32), np.zeros(1, np.int32))
    judge.finish()
  elif verifier is not None:
    verifiers.score(verifier, [""], first)
  return verifier, judge


def _make_mesh(config: Config) -> jax.sharding.Mesh:
  # A search calls back into Python.
  data = 1 if config.method == "rain" else config.data_parallel
  try:
    mesh = make_mesh({"data": data, "model": config.model_parallel})
  except ValueError as error:
    raise UsageError(f"--data_parallel, --model_parallel: {error}.") from error
  if config.batch_size % mesh.shape["data"]:
    raise UsageError(
      f"--batch_size={config.batch_size} does not divide by the {mesh.shape['data']} devices of "
      "--data_parallel."
    )
  return mesh


def _sampler(config, sides, models, mesh, judge: Judge | None, *, by_text: bool) -> Sampler:
  decode_fns = [model.decode_fns for model in models]
  if by_text:
    sizes = {"max_new_tokens": config.max_new_tokens}
    return TextSampler(sides, decode_fns, options=config.options, **sizes)
  return BatchSampler(
    sides,
    decode_fns,
    mesh,
    method=config.method,
    batch_size=config.batch_size,
    num_samples=config.samples_per_prompt,
    max_new_tokens=config.max_new_tokens,
    options=config.options,
    judge=judge,
  )


def _asked(config: Config, sides: Sequence[Side], models: Sequence[Weights]) -> dict[str, Any]:
  """What a run must have been asked for to be gone on with."""
  asked = {name: v for name, v in dataclasses.asdict(config).items() if name not in _FREE}
  asked["prompts_sha256"] = hashlib.sha256(pathlib.Path(config.prompts).read_bytes()).hexdigest()
  for side, model in zip(sides, models):
    asked[side.flag] = {
      "architecture": dataclasses.asdict(side.architecture),
      "weights": runs.sum_of_bits(model.params),
      "tokenizer": runs.tokenizer_fingerprint(side.directory, side.tokenizer),
      "chat_template": fingerprint(side.tokenizer.chat_template),
      "end_tokens": side.end_tokens,
    }
  return asked


def _write(
  config: Config,
  out: pathlib.Path,
  entries: Sequence[Entry],
  start: int,
  sample: Callable[[chex.PRNGKey, list[Entry]], list[dict[str, Any]]],
) -> None:
  """Writes the lines that the file lacks; a batch that is there in part is drawn again."""
  key, size, told = jax.random.key(config.seed), config.batch_size, time.monotonic()
  if start:
    print(f"goes on after {start} of {len(entries)} prompts", flush=True)
  began, done, num_tokens = told, start, 0
  while done < len(entries):
    number = done // size
    batch = list(entries[number * size : (number + 1) * size])
    lines = sample(jax.random.fold_in(key, number), batch)
    sample_files.append_lines(out, lines[done - number * size :])
    done = number * size + len(batch)
    num_tokens += sum(line["cost"]["generated_tokens"] for line in lines)
    now = time.monotonic()
    if now - told > _SECONDS or done == len(entries):
      told = now
      left = (now - began) / (done - start) * (len(entries) - done)
      print(
        f"{done} of {len(entries)} prompts, {num_tokens / (now - began):.0f} tokens/s, "
        f"{datetime.timedelta(seconds=round(left))} left",
        flush=True,
      )


def _report(out: pathlib.Path, directory: pathlib.Path, faults: Sequence[str]) -> None:
  counts = answers.totals(sample_files.read_lines(out)) | {"prompts left out": len(faults)}
  workdir.save_json(directory / "results.json", {**counts, "faults": faults})
  for name, value in counts.items():
    print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.4g}")
  print(f"saved {out}", flush=True)


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
