r"""Scores a file of samples: coverage, votes and verifiers by the number of samples.

  jaxlab score SAMPLES.jsonl
  jaxlab score SAMPLES.jsonl --ks=1,10,100 --output=DIR/name
  jaxlab score RPC.jsonl --others=RAIN.jsonl,ADAPTIVE.jsonl

SAMPLES.jsonl is what `jaxlab sample` wrote, or another sampler: an object a line with the columns
prompt, samples (a list) and correct (a list of true and false). Columns that it may have too:

  answers                a list, null for none: accuracy of votes among k samples
  log_probs, num_tokens  lists: votes by probability, the most probable sample, and rpc
  verdict                a list of what a verifier gives: its errors, the best of k samples by it,
                         and the reward of the first that it accepts, by the number of attempts
  chosen                 {"index": i}, or null: accuracy of the choice
  cost                   {"flops": f} of all samples: with --others, accuracy against cost

Values at k are means over all subsets of k samples (votes: over random ones), and coverage comes
with a 95% interval over prompts. A line that cannot be used is named and left out. OUTPUT.json gets
the numbers, OUTPUT.png the curves; both are written anew.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import metrics, samplers
from jaxlab._checks import check_range
from jaxlab._extras import import_extra
from jaxlab.commands import program, rows, scored_files
from jaxlab.commands.scored_files import Pool
from jaxlab.experiment import UsageError, workdir

REQUIRED = ("file",)
POSITIONAL = "file"
_SECONDS = 10  # Between lines of progress.
_BLOCK = 64  # Prompts of one call of rpc.


@dataclasses.dataclass(frozen=True)
class Config:
  """What is scored, and how."""

  file: str = ""  # JSONL file (or .jsonl.gz, .json, .parquet) of samples.
  output: str | None = None  # Beginning of the names of what is written; none: FILE.scores.
  ks: tuple[int, ...] = ()  # Numbers of samples; none: 1, 2, 4, ... and all.
  others: tuple[str, ...] = ()  # More files, to draw the accuracy of all against their cost.
  num_samples: int | None = None  # Samples of a line that count; none: as many as every line has.
  num_subsets: int = 100  # Random subsets of samples of a prompt that vote; of rpc a tenth.
  accept: float = 0.5  # Least verdict of a sample that the verifier accepts.
  false_positive_cost: float = 1.0  # Of an accepted wrong sample; an accepted right one gives 1.
  seed: int = 0  # Of the subsets.

  def __post_init__(self):
    for name in ("num_samples", "num_subsets"):
      if getattr(self, name) is not None:
        check_range(name, getattr(self, name), "[1, inf)")
    check_range("ks", self.ks, "[1, inf)")
    check_range("accept", self.accept, "(-inf, inf)")
    check_range("false_positive_cost", self.false_positive_cost, "[0, inf)")
    check_range("seed", self.seed, "[0, 4294967295]")


def run(config: Config) -> int:
  """Scores, prints, and writes numbers and curves.

  Args:
    config: what is scored, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if the file cannot be scored or the output cannot be written.
  """
  read = functools.partial(rows.read_usable, parse=scored_files.parse_line)
  lines, faults = read(config.file, flag="FILE")
  points = {}
  if config.others:
    points[config.file] = scored_files.as_point("FILE", lines)
    for path in config.others:
      others, left_out = read(path, flag="--others")
      rows.tell_faults(left_out)
      points[path] = scored_files.as_point("--others", others)
  lines, short, num_samples = scored_files.choose_size(lines, config.num_samples)
  faults += short
  rows.tell_faults(faults)
  ks = _numbers(config.ks, num_samples)
  longer = sum(len(line.texts) > num_samples for line in lines)
  pool = scored_files.as_pool(lines, num_samples=num_samples)
  scores = {"prompts": len(lines), "left_out": faults, "num_samples": num_samples}
  scores |= {"longer": longer, "missing": pool.missing, "ks": ks}
  scores |= _scores(config, pool, ks)
  scores["by_cost"] = [{"file": path, **point._asdict()} for path, point in points.items()]
  _print(scores)
  output = pathlib.Path(config.output or config.file.removesuffix(".jsonl") + ".scores")
  picture = output.with_name(f"{output.name}.png")
  with program.usage_errors(f"--output={output}"):
    workdir.save_json(output.with_name(f"{output.name}.json"), scores)
    figure = _figure(scores)
    workdir.write_atomic(picture, lambda file: figure.savefig(file, format="png", dpi=150))
  print(f"saved {output}.json and {output}.png", flush=True)
  return 0


def _numbers(ks: Sequence[int], num_samples: int) -> list[int]:
  """The numbers of samples, in order."""
  if ks and max(ks) > num_samples:
    raise UsageError(
      f"--ks={max(ks)} exceeds the {num_samples} samples that every line has; --num_samples leaves "
      "out lines with fewer."
    )
  powers = (2**i for i in range(num_samples.bit_length()))
  return sorted(set(ks or (*powers, num_samples)))


def _scores(config: Config, pool: Pool, ks: list[int]) -> dict[str, Any]:
  """All that the columns of the file allow, by name."""
  solved = np.asarray(_pass_at_ks(pool.correct, ks=tuple(ks)), np.float64)
  coverage = solved.mean(axis=0)
  spread = solved.std(axis=0, ddof=1) if len(solved) > 1 else np.full(len(ks), np.nan)
  scores = {
    "coverage": coverage,
    "coverage_half_width": 1.96 * spread / np.sqrt(len(solved)),
    "coverage_law": _law(ks, coverage),
  }
  if pool.answers is not None:
    scores["votes"] = _votes(config, pool, ks)
  if pool.chosen is not None:
    scores["chosen"] = float(np.mean(pool.chosen))
  if pool.verdict is not None:
    scores["verifier"] = _verifier(config, pool, ks)
  return scores


@functools.partial(jax.jit, static_argnames="ks")
def _pass_at_ks(correct: jax.Array, *, ks: tuple[int, ...]) -> jax.Array:
  count = jnp.sum(correct, axis=1)
  values = [metrics.pass_at_k(count, num_samples=correct.shape[1], k=k) for k in ks]
  return jnp.stack(values, axis=1)


def _law(ks: list[int], coverage: np.ndarray) -> dict[str, float] | str:
  """The law exp(a k^b), or why there is none."""
  if np.sum((coverage > 0) & (coverage < 1)) < 2:
    return "not fitted: coverage lies strictly between 0 and 1 at fewer than two numbers of samples"
  fitted = metrics.fit_exponentiated_power_law(np.array(ks), coverage)
  law = {"a": float(fitted.a), "b": float(fitted.b)}
  return law | {"largest_error": float(np.max(np.abs(_coverage_by(law, np.array(ks)) - coverage)))}


def _coverage_by(law: dict[str, float], ks: np.ndarray) -> np.ndarray:
  return np.exp(law["a"] * ks ** law["b"])


def _votes(config: Config, pool: Pool, ks: list[int]) -> dict[str, np.ndarray]:
  """Accuracies of choices among k samples, by the rule of choice."""
  key = jax.random.key(config.seed)
  votes = {"majority": None}
  if pool.scores is not None:
    votes |= {"weighted_majority": np.exp(pool.scores), "best_of_n": pool.scores}
  names = {"weighted_majority": "weighted by probability", "best_of_n": "most probable"}
  curves = {
    names.get(method, method): _accuracies(
      key, pool.answers, pool.correct, scores,
      ks=tuple(ks), method=method, num_subsets=config.num_subsets,
    )
    for method, scores in votes.items()
  }  # fmt: skip
  if pool.scores is not None:
    # Each of its votes fits a mixture.
    curves["rpc"] = _rpc_accuracies(key, pool, ks, num_subsets=-(-config.num_subsets // 10))
  return {name: np.asarray(curve, np.float64) for name, curve in curves.items()}


@functools.partial(jax.jit, static_argnames=("ks", "method", "num_subsets"))
def _accuracies(key, answers, correct, scores, *, ks, method, num_subsets) -> jax.Array:
  options = {"ks": ks, "scores": scores, "method": method, "num_subsets": num_subsets}
  return metrics.selection_accuracy_curve(key, answers, correct, **options)


def _rpc_accuracies(key, pool: Pool, ks: list[int], *, num_subsets: int) -> np.ndarray:
  """Accuracy of the answer of the most confidence by rpc, a block of prompts at a time."""
  num_prompts, told, values = len(pool.answers), time.monotonic(), []
  block = min(_BLOCK, num_prompts)
  for start in range(0, num_prompts, block):
    # The last block is filled up with prompts from the beginning.
    index = np.arange(start, start + block) % num_prompts
    columns = [x[index] for x in (pool.answers, pool.correct, pool.scores, pool.texts)]
    found = _rpc_accuracy(key, index, *columns, np.array(ks), num_subsets=num_subsets)
    values.append(np.asarray(found)[: num_prompts - start])
    if time.monotonic() - told > _SECONDS:
      told = time.monotonic()
      print(f"rpc: {start + len(values[-1])} of {num_prompts} prompts", flush=True)
  return np.mean(np.concatenate(values), axis=0)


@functools.partial(jax.jit, static_argnames="num_subsets")
def _rpc_accuracy(key, index, answers, correct, scores, texts, ks, *, num_subsets) -> jax.Array:
  """The same for each prompt, over random subsets of k of its samples, `[prompts, len(ks)]`."""

  def of_prompt(row):
    i, answers, correct, scores, texts = row
    places = jnp.tile(jnp.arange(answers.shape[0]), (num_subsets, 1))
    places = jax.random.permutation(jax.random.fold_in(key, i), places, axis=1, independent=True)
    counted = (places[:, None] < ks[None, :, None]) & (answers >= 0)[None, None]
    answers, scores, texts = (jnp.broadcast_to(x, counted.shape) for x in (answers, scores, texts))
    options = {"path_ids": texts, "mask": counted}
    confidence = samplers.pruned_consistency_confidence(answers, scores, **options)
    best = samplers.best_of_n(confidence, mask=counted)
    return jnp.mean(correct[best] & jnp.any(counted, axis=-1), axis=0)

  return jax.lax.map(of_prompt, (index, answers, correct, scores, texts))


def _verifier(config: Config, pool: Pool, ks: list[int]) -> dict[str, Any]:
  accepted = pool.verdict >= config.accept  # NaN is not accepted.
  values = jax.device_get(_verifier_values(
    accepted, pool.correct, np.nan_to_num(pool.verdict, nan=-np.inf),
    config.false_positive_cost, ks=tuple(ks),
  ))  # fmt: skip
  statistics, best, rewards, optimal = values
  return {
    **{name: float(value) for name, value in statistics._asdict().items()},
    "without_verdict": int(np.isnan(pool.verdict).sum()),
    "best_of_k": np.asarray(best, np.float64),
    "reward": np.asarray(rewards, np.float64),
    "best_number_of_attempts": int(optimal),
  }


@functools.partial(jax.jit, static_argnames="ks")
def _verifier_values(accepted, correct, verdict, cost, *, ks: tuple[int, ...]):
  rewards = metrics.resampling_reward_curve(
    accepted, correct, attempts=ks, false_positive_cost=cost
  )
  return (
    metrics.verifier_statistics(accepted, correct),
    jnp.mean(metrics.best_of_k_accuracy(verdict, correct, ks=ks), axis=0),
    rewards,
    metrics.optimal_num_samples(rewards, jnp.array(ks)),
  )


def _curves(scores: dict[str, Any]) -> dict[str, np.ndarray]:
  """Accuracies by the number of samples."""
  curves = {"pass@k": scores["coverage"], **scores.get("votes", {})}
  if "verifier" in scores:
    curves["best by verdict"] = scores["verifier"]["best_of_k"]
  return curves


def _print(scores: dict[str, Any]) -> None:
  print(f"{scores['prompts']} prompts, {scores['num_samples']} samples of each")
  if scores["longer"]:
    print(f"{scores['longer']} of them have more samples, which do not count")
  for name, count in scores["missing"].items():
    print(f"column {name!r} is missing in {count} lines, and is not scored")
  if "votes" not in scores:
    print("there are no votes: not every line has the column 'answers'")
  table = _curves(scores)
  table = {"pass@k": table.pop("pass@k"), "  +-": scores["coverage_half_width"], **table}
  if "verifier" in scores:
    table["reward of the first accepted"] = scores["verifier"]["reward"]
  width = max(map(len, table))
  print(f"{'k':{width}}" + "".join(f"{k:9}" for k in scores["ks"]))
  for name, values in table.items():
    print(f"{name:{width}}" + "".join(f"{value:9.4f}" for value in values))
  law = scores["coverage_law"]
  if isinstance(law, dict):
    law = "exp({a:.4g} k^{b:.4g}), off by {largest_error:.2g} at most".format(**law)
  print(f"law of coverage: {law}")
  if "chosen" in scores:
    print(f"accuracy of the choices: {scores['chosen']:.4f}")
  for point in scores["by_cost"]:
    told = "{file}: accuracy {accuracy:.4f} at {flops:.4g} FLOPs per prompt, {prompts} prompts"
    print(told.format(**point))
  for name, value in scores.get("verifier", {}).items():
    if np.ndim(value) == 0:
      print(f"verifier, {name.replace('_', ' ')}: {value:.4g}")


def _figure(scores: dict[str, Any]):
  """Accuracies by the number of samples, reward by that of attempts, accuracy against cost."""
  ks, law = np.array(scores["ks"]), scores["coverage_law"]
  num_panels = 1 + ("verifier" in scores) + bool(scores["by_cost"])
  figure = import_extra("matplotlib.figure", extra="plots").Figure(
    figsize=(4.8 * num_panels, 3.6), layout="constrained"
  )
  axes = figure.subplots(1, num_panels, squeeze=False)[0]
  for name, values in _curves(scores).items():
    half_width = scores["coverage_half_width"] if name == "pass@k" else None
    axes[0].errorbar(ks, values, half_width, marker=".", capsize=2, label=name)
  if isinstance(law, dict):
    line = np.geomspace(ks[0], ks[-1], 100)
    axes[0].plot(line, _coverage_by(law, line), ":", color="gray", label="law of coverage")
  if "chosen" in scores:
    axes[0].axhline(scores["chosen"], linestyle="--", color="gray", label="choices of the file")
  axes[0].set(xscale="log", ylim=(-0.03, 1.03), xlabel="samples k", ylabel="share of prompts")
  axes[0].legend(fontsize=7)
  if "verifier" in scores:
    axes[1].plot(ks, scores["verifier"]["reward"], ".-")
    axes[1].set(xscale="log", xlabel="attempts", ylabel="reward of the first accepted sample")
  for ax in axes[: 1 + ("verifier" in scores)]:
    ax.set_xticks(ks, [str(k) for k in ks], minor=False)
    ax.minorticks_off()
  for point in scores["by_cost"]:
    axes[-1].plot(point["flops"], point["accuracy"], "o", label=pathlib.Path(point["file"]).name)
  if scores["by_cost"]:
    axes[-1].set(xscale="log", ylim=(-0.03, 1.03), xlabel="FLOPs per prompt", ylabel="accuracy")
    axes[-1].legend(fontsize=7)
  return figure


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
