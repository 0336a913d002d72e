"""What a configuration would cost, without the hardware and without allocating the model."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core

from jaxlab.experiment.flags import UsageError
from jaxlab.training.state import num_params


class Cost(NamedTuple):
  """The cost of one program.

  Attributes:
    params: number of parameters.
    flops: floating-point operations of the matrix products and convolutions of one call, over all
      devices; loops of unknown length count once.
    argument_bytes: state and batch, on one device.
    output_bytes: results on one device that do not take over an argument's memory.
    temporary_bytes: intermediate values, on one device.
    devices: number of devices of the mesh.
  """

  params: int
  flops: float
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  devices: int

  @property
  def bytes_per_device(self) -> int:
    """All that one device must hold at once."""
    return self.argument_bytes + self.output_bytes + self.temporary_bytes


def step_cost(module: Any, config: Any, mesh: jax.sharding.Mesh) -> Cost:
  """Compiles an experiment's training step from shapes alone.

  The module says what to compile: `abstract(config, mesh) -> (update, *arguments)`, where the
  arguments are pytrees of `jax.ShapeDtypeStruct` (from `jax.eval_shape`), the first one the state.
  One call of `update` should be one step.

  Args:
    module: the experiment.
    config: its configuration.
    mesh: the mesh, of devices of any kind.

  Returns:
    The step's `Cost`.

  Raises:
    UsageError: if the module has no `abstract`.
    TypeError: if an argument holds allocated arrays.
  """
  if not hasattr(module, "abstract"):
    raise UsageError(
      f"--dry_run needs a function abstract(config, mesh) in {module.__name__}, which has none: "
      "this experiment cannot be tried without being run."
    )
  update, *arguments = module.abstract(config, mesh)
  for leaf in jax.tree.leaves(arguments):
    if isinstance(leaf, jax.Array):
      raise TypeError(
        f"abstract() of {module.__name__} returned an array of shape {leaf.shape}; a dry run takes "
        "shapes (jax.eval_shape, jax.ShapeDtypeStruct) and allocates nothing."
      )
  lower = getattr(update, "lower", None) or jax.jit(update).lower
  memory = lower(*arguments).compile().memory_analysis()
  state = arguments[0]
  return Cost(
    params=num_params(getattr(state, "params", state)),
    flops=count_flops(update, *arguments),
    argument_bytes=memory.argument_size_in_bytes,
    # What is donated is listed as an argument and as an output.
    output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    devices=mesh.size,
  )


def print_cost(cost: Cost) -> None:
  """Prints a `Cost`, one number a line."""
  parts = (
    f"arguments {_si(cost.argument_bytes)}B, outputs {_si(cost.output_bytes)}B, "
    f"temporaries {_si(cost.temporary_bytes)}B"
  )
  print(f"parameters        {cost.params:,}")
  print(f"FLOPs a step      {_si(cost.flops)} ({cost.flops:.0f}; matrix products, convolutions)")
  print(f"bytes a device    {_si(cost.bytes_per_device)}B ({cost.bytes_per_device}; {parts})")
  print(f"devices           {cost.devices}")


def count_flops(fn: Callable[..., Any], *arguments: Any) -> float:
  """Floating-point operations of a function's matrix products and convolutions.

  The compiler's own count sees the body of a loop once, and one device's share; this one counts
  every turn of a scan, and all devices.

  Args:
    fn: a function of arrays.
    *arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.

  Returns:
    Multiplications and additions of one call. Of the branches of a condition the dearest counts; a
    while loop, whose length is not known, counts once.
  """
  return _jaxpr_flops(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * _size(equation.outvars[0]) * math.prod(left[i] for i in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _size(equation.outvars[0]) * math.prod(kernel) / out_features
  inner = [_jaxpr_flops(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
  if name == "cond":
    return max(inner)
  total = sum(inner, 0.0)
  if name == "scan":
    return total * params["length"]
  if name == "shard_map":
    # Inside, shapes are one device's along the axes that are manual; the name varies with JAX.
    axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
    return total * math.prod(params["mesh"].shape[axis] for axis in axes)
  return total


def _size(variable: Any) -> int:
  return math.prod(variable.aval.shape)


def _jaxprs(value: Any) -> list[Any]:
  """The programs inside one parameter of an equation."""
  if isinstance(value, jax.extend.core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, jax.extend.core.Jaxpr):
    return [value]
  if isinstance(value, tuple | list):
    return [jaxpr for item in value for jaxpr in _jaxprs(item)]
  return []


def _si(value: float) -> str:
  """A number with three digits and its decimal prefix."""
  for prefix in ("", "k", "M", "G", "T", "P"):
    if abs(value) < 1000:
      return f"{value:.3g} {prefix}"
    value /= 1000
  return f"{value:.3g} E"
