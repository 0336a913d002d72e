"""How an entry of the contract table is written: one call of a public function.

An array is given by its shape: `f(B, 4)` are floats (`u` in (0, 1), `p` probabilities, `n` logs of
shares, `s` increasing, `t` the numbers 1, 2, ...), `c(B)` classes below 4, `b(B)` truth values. A
Python float is a hyper-parameter that may be traced; so is a float that a signature has as default.
Every other value is static.

`B` is the size of an axis of independent rows, and no other axis has it: what happens in one row of
an argument must stay in that row of the results.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

B = 3

# Why a contract does not apply to a function.
REASONS = {
  "integers": "gives integers or truth values, which have no gradient",
  "steps": "is constant between jumps, or ends its gradients by intent",
  "loop": "runs a while loop, which has no reverse mode",
  "mesh": "maps over devices itself",
  "split": "iterates over an array, which JAX splits by other operations if it has values",
  "part": "is kept by another function of the table, which does this part",
  "step": "is compiled by those who use it, and takes seconds operation by operation",
}


@dataclasses.dataclass(frozen=True)
class Example:
  """An array of a call, made when a contract needs it."""

  kind: str
  shape: tuple[int, ...]

  def abstract(self) -> jax.ShapeDtypeStruct:
    """Its shape and type."""
    return jax.eval_shape(lambda: self.draw(0)) if self.kind == "keys" else _shape_of(self.draw(0))

  def draw(self, seed: int) -> jax.Array | np.ndarray:
    """Its values."""
    rng = np.random.default_rng(seed)
    uniform = rng.uniform(0.1, 0.9, self.shape).astype(np.float32)
    return {
      "floats": lambda: rng.normal(size=self.shape).astype(np.float32),
      "shares": lambda: uniform,
      "probabilities": lambda: uniform / uniform.sum(-1, keepdims=True),
      "logs": lambda: np.log(uniform),
      "sorted": lambda: np.sort(rng.normal(size=self.shape).astype(np.float32)),
      "classes": lambda: rng.integers(0, 4, self.shape, np.int32),
      "bools": lambda: uniform < 0.7,
      "steps": lambda: np.arange(1.0, 1.0 + self.shape[0], dtype=np.float32),
      "keys": lambda: jax.random.split(jax.random.key(seed), self.shape),
    }[self.kind]()


def _kind(name: str) -> Callable[..., Example]:
  return lambda *shape: Example(name, shape)


f, u, p, n = _kind("floats"), _kind("shares"), _kind("probabilities"), _kind("logs")
s, t, c, b = _kind("sorted"), _kind("steps"), _kind("classes"), _kind("bools")
keys = _kind("keys")
KEY = keys()


@dataclasses.dataclass(frozen=True)
class Built:
  """A tree of arrays made by a function, such as parameters."""

  make: Callable


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a public function, and which contracts it keeps in another way."""

  args: tuple
  kwargs: dict
  # `use(function, *args, **kwargs)`, where the function gives functions and not arrays.
  use: Callable | None = None
  # Names of floats that are static.
  static: str = ""
  # Whether results have the type of arguments, where others are in float32 and int32, or wider.
  keeps: bool = False
  # Names of arguments in which a NaN need not show.
  quiet: str = ""
  # Contract -> word of `REASONS`.
  skip: dict = dataclasses.field(default_factory=dict)

  def but(self, **changes) -> "Call":
    """The call with other fields."""
    return dataclasses.replace(self, **changes)


def call(*args, **kwargs) -> Call:
  """The call of a function with these arguments."""
  return Call(args, kwargs)


class Bound:
  """A call of a function, as a function of a list of its arrays."""

  def __init__(self, function: Callable, entry: Call):
    kwargs = dict(entry.kwargs)
    names = [f"argument {i}" for i in range(len(entry.args))]
    if entry.use is None:
      parameters = inspect.signature(function).parameters
      names = [*parameters]
      given = {*names[: len(entry.args)], *kwargs}
      kwargs |= {
        name: x.default
        for name, x in parameters.items()
        if name not in given and isinstance(x.default, float)
      }
    self.entry = entry
    self._call = functools.partial(entry.use, function) if entry.use else function
    build = lambda x: jax.eval_shape(x.make) if isinstance(x, Built) else x  # noqa: E731
    self._tree = jax.tree.map(build, (entry.args, kwargs))
    paths, self._treedef = jax.tree.flatten_with_path(self._tree)
    self.leaves = [leaf for _, leaf in paths]
    self.names = [names[path[1].idx] if path[0].idx == 0 else path[1].key for path, _ in paths]
    fixed = entry.static.split()
    self.arrays = [i for i, x in enumerate(self.leaves) if isinstance(x, _ARRAYS)]
    self.floats = [
      i for i, x in enumerate(self.leaves) if isinstance(x, float) and self.names[i] not in fixed
    ]

  def __call__(self, arrays, floats=()):
    """The results for values of the arrays, and of the floats if they are given."""
    leaves = list(self.leaves)
    for i, value in [*zip(self.arrays, arrays), *zip(self.floats, floats)]:
      leaves[i] = value
    args, kwargs = jax.tree.unflatten(self._treedef, leaves)
    return self._call(*args, **kwargs)

  def abstract(self) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the arrays."""
    leaves = [self.leaves[i] for i in self.arrays]
    return [x.abstract() if isinstance(x, Example) else _shape_of(x) for x in leaves]

  def values(self) -> list[jax.Array]:
    """Values of the arrays, on a device, so that no check of the function can read them."""
    build = lambda x: jax.jit(x.make)() if isinstance(x, Built) else x  # noqa: E731
    leaves = jax.tree.leaves(jax.tree.map(build, (self.entry.args, self.entry.kwargs)))
    return [
      jax.device_put(x.draw(i) if isinstance(x, Example) else x)
      for i, x in enumerate(leaves)
      if isinstance(x, _ARRAYS)
    ]


_ARRAYS = (Example, np.ndarray, jax.Array, jax.ShapeDtypeStruct)


def is_float(x) -> bool:
  """Whether an array, or the shape of one, is of floats."""
  return jnp.issubdtype(x.dtype, jnp.floating)


def is_integer(x) -> bool:
  """Whether an array, or the shape of one, is of integers."""
  return jnp.issubdtype(x.dtype, jnp.integer)


def is_key(x) -> bool:
  """Whether an array, or the shape of one, is of random keys."""
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _shape_of(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
