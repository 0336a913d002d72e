"""Methods of linen modules as functions that carry their parameters."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax


def with_params(model: nn.Module, method: str, params: chex.ArrayTree, *args: Any) -> Any:
  """A method with its parameters and first arguments, as a function that is a pytree of arrays.

  Args:
    model: the module.
    method: name of the method.
    params: the parameters.
    *args: arrays, the method's first arguments.

  Returns:
    A `jax.tree_util.Partial` of the other arguments. For equal modules they have equal structure,
    so that one compiled program serves all values of the arrays.
  """
  return jax.tree_util.Partial(_Method(model, method), params, *args)


@dataclasses.dataclass(frozen=True)
class _Method:
  model: nn.Module
  name: str

  def __call__(self, params, *args):
    return self.model.apply({"params": params}, *args, method=self.name)
