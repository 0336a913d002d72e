"""Several processes of one run: they must ask for the same, and they refuse together."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlab.experiment.flags import UsageError
from jaxlab.experiment.workdir import encode_json, first_difference
from jaxlab.training.mesh import texts_of_processes


def agreed(value: bool) -> bool:
  """What process 0 says, in every process: files may show up at different times on each host."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_agreement(asked: Mapping[str, Any]) -> None:
  """Raises, in every process, unless all were asked for the same.

  Args:
    asked: what must be the same: configuration, versions, command.

  Raises:
    UsageError: naming a process, the first field that differs from process 0's, and both values.
  """
  first, *others = map(json.loads, texts_of_processes(json.dumps(encode_json(asked))))
  for process, other in enumerate(others, start=1):
    difference = first_difference(first, other)
    if difference:
      name, wanted, given = difference
      raise UsageError(
        f"process {process} was started with {name} = {given!r}, process 0 with {wanted!r}: all "
        "processes of a run have one command and the same versions."
      )


def on_process_0(fn: Callable[[], Any]) -> Any:
  """Calls a function in process 0 alone, for all of them.

  Args:
    fn: gives what JSON holds.

  Returns:
    What it gave, in every process.

  Raises:
    UsageError: in every other process, with the words of what `fn` raised in process 0; there it is
      raised as it is.
  """
  if jax.process_count() == 1:
    return fn()
  given, error = None, None
  if jax.process_index() == 0:
    try:
      given = fn()
    except Exception as raised:  # The others must hear of it before it ends this process.
      error = raised
  answer = {"value": given, "refused": None if error is None else str(error)}
  first = json.loads(texts_of_processes(json.dumps(answer))[0])
  if error is not None:
    raise error
  if first["refused"] is not None:
    raise UsageError(f"process 0 refused: {first['refused']}")
  return first["value"]
