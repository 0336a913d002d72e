"""Methods x settings x seeds: the same budget for each, settings chosen on validation per seed."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from experiments.kit.datasets import stack_seeds
from jaxlab import experiment

Setting = Mapping[str, float]


def sweep(
  context: experiment.Context,
  stage: str,
  evaluate: Callable[..., Mapping[str, Any]],
  draw: Callable[[int], Any],
  *,
  methods: Mapping[str, Sequence[Setting]],
  select: str,
  better: Literal["higher", "lower"] = "higher",
) -> dict[str, dict[str, np.ndarray]]:
  """Evaluates every setting of every method on every seed, and keeps the best setting per seed.

  All methods and settings of a seed share its data and its key, hence initialization and order.

  Args:
    context: of the run; every method is a cached stage.
    stage: name of the stages: `stage/method`.
    evaluate: `(key, splits, method, setting) -> {quantity: array}`: traceable; the values of the
      setting are traced, so that a method is one program.
    draw: `seed -> splits`, the data of a seed.
    methods: method -> its settings, equally many for each; each maps names to numbers.
    select: the quantity, of validation data, that chooses the setting.
    better: whether a higher or a lower one is better.

  Returns:
    method -> quantity -> `[seeds, ...]` at the chosen setting. The quantities `chosen/<name>` say
    what was chosen, of every hyper-parameter that has more than one value.

  Raises:
    ValueError: if methods have different numbers of settings.
  """
  budgets = {method: len(settings) for method, settings in methods.items()}
  if len(set(budgets.values())) != 1:
    raise ValueError(f"methods must have equally many settings, got {budgets}.")
  splits = stack_seeds(draw, context.seed_numbers)
  chosen = {}
  for method, settings in methods.items():
    name = stage + "/" + re.sub(r"[^\w=+,. -]", "", method)
    scores = grid(context, name, functools.partial(evaluate, method=method), splits, settings)
    chosen[method] = choose(scores, settings, select=select, better=better)
  return chosen


def each_seed(
  context: experiment.Context, stage: str, function: Callable[..., Any], *arguments: Any
) -> Any:
  """Runs a function for every seed: one program, and one cached stage.

  Args:
    context: of the run.
    stage: name of the stage.
    function: `(key, *arguments) -> pytree of arrays`, traceable. Stages of the same function object
      with arguments of the same shapes share a program.
    *arguments: pytrees of arrays with a leading axis of seeds.

  Returns:
    The results as NumPy arrays, with a leading axis of seeds.
  """
  return context.over_seeds(stage, _of_arguments(function), arguments=arguments)


def first_seeds(context: experiment.Context, most: int) -> experiment.Context:
  """The run with its first seeds alone, which keep their keys, for rows that no claim reads.

  Args:
    context: of the run.
    most: number of seeds, if there are so many.
  """
  return dataclasses.replace(context, seeds=min(most, context.seeds))


def by_seed(function: Callable[..., Any], *arguments: Any) -> Any:
  """Calls a function of NumPy arrays on every seed's part of the arguments, and stacks its results.

  Args:
    function: gives a pytree of arrays of the same shapes for every seed.
    *arguments: pytrees of arrays with a leading axis of seeds.
  """
  num_seeds = len(jax.tree.leaves(arguments)[0])
  parts = (jax.tree.map(lambda x, i=i: x[i], arguments) for i in range(num_seeds))
  return jax.tree.map(lambda *x: np.stack(x), *(function(*part) for part in parts))


def add_along(
  results: experiment.Results,
  measured: Mapping[str, Mapping[str, np.ndarray]],
  axes: Mapping[str, Sequence[Any]],
  **setting: Any,
) -> None:
  """Adds records of arrays that have axes of settings.

  Args:
    results: what they are added to.
    measured: method -> quantity -> `[seeds, ...]`, whose further axes are the first of `axes`.
    axes: setting -> its values, in the order of the axes.
    **setting: of all records.
  """
  for method, quantities in measured.items():
    for quantity, values in quantities.items():
      for place in np.ndindex(values.shape[1:]):
        where = {name: options[i] for (name, options), i in zip(axes.items(), place)}
        results.add({method: {quantity: values[(slice(None), *place)]}}, **setting, **where)


@functools.cache
def _of_arguments(function):
  return lambda key, arguments: function(key, *arguments)


def grid(
  context: experiment.Context,
  stage: str,
  evaluate: Callable[..., Mapping[str, Any]],
  splits: Any,
  settings: Sequence[Setting],
) -> dict[str, np.ndarray]:
  """Evaluates settings on all seeds, one program for all of them.

  Args:
    context: of the run.
    stage: name of the stages: `stage/0` of the first setting.
    evaluate: `(key, splits, setting=...) -> {quantity: array}`, traceable. Its `bad_step`, if any,
      is no score: see `run_seeds`.
    splits: data of all seeds, with a leading axis of seeds.
    settings: each maps the same hyper-parameters to numbers, or to one number per seed.

  Returns:
    quantity -> `[seeds, settings, ...]`.
  """
  run_fn, scores = _at_setting(evaluate), []
  for i, setting in enumerate(settings):
    repeated = {name: np.full(context.seeds, value) for name, value in setting.items()}
    scores.append(run_seeds(context, f"{stage}/{i}", run_fn, arguments=(splits, repeated)))
  return {name: np.stack([score[name] for score in scores], axis=1) for name in scores[0]}


def run_seeds(
  context: experiment.Context, stage: str, run_fn: Callable[..., Mapping[str, Any]], **options: Any
) -> dict[str, Any]:
  """`context.over_seeds` of trainings: says in which seeds one broke down.

  Args:
    context: of the run.
    stage: name of the stage.
    run_fn: gives a dict, whose `bad_step`, if any, is that of `kit.train.Trained`.
    **options: as for `context.over_seeds`.

  Returns:
    The results `[seeds, ...]` but for `bad_step`.
  """
  results = dict(context.over_seeds(stage, run_fn, **options))
  for seed, steps in enumerate(results.pop("bad_step", ())):
    if np.any(steps >= 0):
      first = np.min(steps[steps >= 0])
      print(f"{stage}, seed {seed}: parameters are not finite after step {first}", flush=True)
  return results


@functools.cache  # Grids of one function are one program.
def _at_setting(evaluate):
  def one(key, argument):
    splits, setting = argument
    return evaluate(key, splits, setting=setting)

  return one


def choose(
  scores: Mapping[str, np.ndarray],
  settings: Sequence[Setting],
  *,
  select: str,
  better: Literal["higher", "lower"] = "higher",
) -> dict[str, np.ndarray]:
  """The scores of the setting that each seed's validation data prefers.

  Args:
    scores: quantity -> `[seeds, settings, ...]`, as of `grid`.
    settings: the settings.
    select: the quantity `[seeds, settings]` that chooses; NaN is never chosen if there is a number.
    better: whether a higher or a lower one is better.

  Returns:
    quantity -> `[seeds, ...]`, and `chosen/<name>` of every hyper-parameter that differs.
  """
  sign = {"higher": -1.0, "lower": 1.0}[better]
  values = sign * np.asarray(scores[select])
  best = np.argmin(np.where(np.isnan(values), np.inf, values), axis=1)
  seeds = np.arange(len(best))
  chosen = {name: values[seeds, best] for name, values in scores.items()}
  for name in settings[0]:
    options = np.array([setting[name] for setting in settings])
    if len(set(options.tolist())) > 1:
      chosen[f"chosen/{name}"] = options[best]
  return chosen


def best_of(
  measured: Mapping[str, Mapping[str, np.ndarray]],
  methods: Sequence[str],
  *,
  select: str = "validation",
  better: Literal["higher", "lower"] = "higher",
) -> dict[str, np.ndarray]:
  """The scores of the method that each seed's validation data prefers.

  Args:
    measured: method -> quantity -> `[seeds, ...]`, as of `sweep`.
    methods: those to choose from; the first wins a tie.
    select: the quantity that chooses.
    better: whether a higher or a lower one is better.

  Returns:
    quantity -> `[seeds, ...]`, of the quantities that all methods have.
  """
  shared = set.intersection(*(set(measured[method]) for method in methods))
  names = [name for name in measured[methods[0]] if name in shared]
  scores = {name: np.stack([measured[m][name] for m in methods], axis=1) for name in names}
  return choose(scores, [{}] * len(methods), select=select, better=better)


def choose_for_all(
  scores: Mapping[str, np.ndarray],
  settings: Sequence[Setting],
  *,
  select: str,
  better: Literal["higher", "lower"] = "higher",
) -> tuple[int, dict[str, np.ndarray]]:
  """The scores of the one setting of the best mean over seeds: what a pilot freezes.

  Args:
    scores: quantity -> `[seeds, settings, ...]`, as of `grid`.
    settings: the settings.
    select: the quantity `[seeds, settings]` that chooses; a NaN of some seed rules a setting out.
    better: whether a higher or a lower one is better.

  Returns:
    The number of the setting; and quantity -> `[seeds, ...]`, with a number `chosen/<name>` of
    every hyper-parameter that differs.
  """
  means = {"higher": -1.0, "lower": 1.0}[better] * np.mean(scores[select], axis=0)
  best = int(np.argmin(np.where(np.isnan(means), np.inf, means)))
  chosen = {name: values[:, best] for name, values in scores.items()}
  for name, value in settings[best].items():
    if len({setting[name] for setting in settings}) > 1:
      chosen[f"chosen/{name}"] = value
  return best, chosen


def amount_needed(
  amounts: Sequence[float], errors: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """How much data a baseline needs for the error of another method, per seed.

  Args:
    amounts: of data, increasing.
    errors: of the baseline with each amount, `[seeds, amounts]`, at least 0; it counts as never
      rising.
    error: to be reached, `[seeds]`.

  Returns:
    Amounts `[seeds]`, between whose logarithms those of the errors are interpolated, never beyond
    the first and the last one; and whether even the last one does not reach the error.
  """
  logs = np.log(np.maximum(np.minimum.accumulate(errors, axis=1), 1e-9))
  wanted = np.log(np.maximum(error, 1e-9))
  needed = [np.interp(-x, -row, np.log(amounts)) for x, row in zip(wanted, logs)]
  return np.exp(needed), wanted < logs[:, -1]
