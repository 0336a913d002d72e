"""Holds every public function to the contracts of the library, mostly by tracing it alone."""

import collections
import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import catalogue
from jaxlab import training
from tests.contracts.calls import REASONS, B, Bound, Call, is_float, is_integer, is_key
from tests.contracts.known_faults import KNOWN_FAULTS
from tests.contracts.table import EXEMPT, ROOMS

CALLS: dict[str, Call] = {
  f"{room}.{name}": entry for room, table in ROOMS.items() for name, entry in table.items()
}
PAPERS = catalogue.load_papers()
_MESH = jax.sharding.AbstractMesh((2,), ("data",))
_SPEC = jax.sharding.PartitionSpec


@functools.cache
def bound(name: str) -> Bound:
  room, _, function = name.partition(":")[0].partition(".")
  return Bound(getattr(importlib.import_module(f"jaxlab.{room}"), function), CALLS[name])


@functools.cache
def result(name: str):
  """Shapes and types of the results."""
  call = bound(name)
  return jax.eval_shape(call, call.abstract())


def with_gradients(name: str):
  """The function of the arrays that gives the results and, if there are any, gradients."""
  call = bound(name)
  where = [i for i, x in enumerate(call.abstract()) if is_float(x)]
  if not differentiable(name):
    return call

  def total(moved, arrays):
    arrays = list(arrays)
    for i, x in zip(where, moved):
      arrays[i] = x
    out = call(arrays)
    floats = [x for x in jax.tree.leaves(out) if is_float(x)]
    return sum(jnp.sum(x.astype(jnp.float32)) for x in floats), out

  return lambda arrays: jax.grad(total, has_aux=True)([arrays[i] for i in where], arrays)


def differentiable(name: str) -> bool:
  call = bound(name)
  return (
    "gradients" not in call.entry.skip
    and any(map(is_float, call.abstract()))
    and any(map(is_float, jax.tree.leaves(result(name))))
  )


def described(tree):
  return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def retyped(shapes, dtype, which):
  return [jax.ShapeDtypeStruct(x.shape, dtype) if which(x) else x for x in shapes]


def check_rank_promotion(name):
  """No array is broadcast against one of more axes."""
  call = bound(name)
  with jax.numpy_rank_promotion("raise"):
    jax.eval_shape(call, call.abstract())


def check_vmap(name):
  """Mapped over everything, it gives the loop's shapes; floats may be traced."""
  call = bound(name)
  stacked = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in call.abstract()]
  if not stacked:
    return
  floats = [jax.ShapeDtypeStruct((2,), jnp.float32) for _ in call.floats]
  mapped = jax.eval_shape(jax.vmap(call), stacked, floats)
  assert described(mapped) == [((2, *shape), dtype) for shape, dtype in described(result(name))]


def check_types(name):
  """Half floats are accumulated in float32, narrow integers widened; any kind of keys will do."""
  call = bound(name)
  shapes, expected = call.abstract(), jax.tree.leaves(result(name))
  for narrow in ("bfloat16", "int8"), ("float16", "uint8"):
    floats, integers = map(jnp.dtype, narrow)
    if any(is_float(x) or is_integer(x) for x in shapes):
      narrowed = retyped(retyped(shapes, floats, is_float), integers, is_integer)
      given = {floats, integers}
      results = [x.dtype for x in jax.tree.leaves(jax.eval_shape(call, narrowed))]
      if call.entry.keeps:
        assert given & {*results}, f"{given} give none of their own, but {results}"
        results = [y.dtype if x in given else x for x, y in zip(results, expected)]
      assert results == [x.dtype for x in expected], given
  rbg = jax.eval_shape(lambda: jax.random.key(0, impl="rbg")).dtype
  if any(map(is_key, shapes)):
    jax.eval_shape(call, retyped(shapes, rbg, is_key))


def check_shard_map(name):
  """It keeps to the default checks where devices differ in rows, or else in all arrays."""
  call, function = bound(name), with_gradients(name)
  shapes = call.abstract()
  if not shapes:
    return
  rows = [B in x.shape for x in shapes]
  varying = rows if any(rows) else [True] * len(shapes)

  def on_a_device(arrays):
    arrays = [x[0] if differs else x for x, differs in zip(arrays, varying)]
    return jax.tree.map(lambda y: y[None], function(arrays))

  specs = [_SPEC("data") if differs else _SPEC() for differs in varying]
  mapped = jax.shard_map(on_a_device, mesh=_MESH, in_specs=(specs,), out_specs=_SPEC("data"))
  stacked = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in shapes]
  jax.eval_shape(mapped, [y if v else x for v, x, y in zip(varying, shapes, stacked)])


def check_lowering(name):
  """It is lowered for TPUs and for CUDA, with its gradients."""
  function = jax.jit(with_gradients(name))
  jax.export.export(function, platforms=("tpu", "cuda"))(bound(name).abstract())


@functools.cache
def operations(name: str, trace: int):
  """What a call runs, as one of several traces has it."""
  call = bound(name)
  return flattened(jax.make_jaxpr(lambda arrays: call(arrays))(call.abstract()))


_CALLS = ("custom_jvp_call", "custom_vjp_call", "jit")


def flattened(closed):
  """The equations of a program; those with derivatives of their own run as their operations."""
  equations = []
  for x in closed.jaxpr.eqns:
    inner = (
      x.params.get("call_jaxpr", x.params.get("jaxpr")) if x.primitive.name in _CALLS else None
    )
    equations += [x] if inner is None else flattened(inner)
  return equations


def check_jit(name):
  """Compiled it runs what it runs eagerly, where it could read values and branch on them."""
  call = bound(name)
  arrays = call.values()
  eager, traced = (
    [(x.primitive.name, *(y.aval.str_short() for y in x.outvars)) for x in equations]
    for equations in (flattened(jax.make_jaxpr(lambda: call(arrays))()), operations(name, 0))
  )
  assert eager == traced


def check_compiles_once(name):
  """A second eager call compiles nothing.

  What an eager call compiles is kept by its operations and their parameters, of which the bodies
  of loops are a part; the function runs only if a second trace has others.
  """
  first, second = operations(name, 0), operations(name, 1)
  if len(first) == len(second) and all(map(same, first, second)):
    return
  call = bound(name)
  arrays = call.values()
  call(arrays)
  before = num_programs()
  call(arrays)
  assert num_programs() == before, f"compiles {num_programs() - before} programs again"


def same(equation, other) -> bool:
  try:
    return equation.primitive is other.primitive and equation.params == other.params
  except ValueError:  # Arrays have no single truth value.
    return False


_EVENTS = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: _EVENTS.update([event]))


def num_programs() -> int:
  """How many programs this process has asked for."""
  return _EVENTS["/jax/core/compile/backend_compile_duration"]


@functools.cache
def program(name: str):
  """Values of the arrays, and the compiled function with fixed and with traced floats."""
  call = bound(name)
  floats = [call.leaves[i] for i in call.floats]
  both = jax.jit(lambda arrays, floats: (call(arrays), call(arrays, floats)))
  return call.values(), lambda arrays: both(arrays, floats)


def check_traced_floats(name):
  """Hyper-parameters give the same if they are traced."""
  if bound(name).floats:
    arrays, function = program(name)
    fixed, traced = map(jax.tree.leaves, function(arrays))
    for ours, theirs in zip(fixed, traced):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def check_nan(name):
  """A NaN in a row of an argument shows in that row of the results, and in no other."""
  call = bound(name)
  for i, shape in enumerate(call.abstract()):
    if B not in shape.shape or not is_float(shape):
      continue
    arrays, function = program(name)
    spoiled = list(arrays)
    spoiled[i] = np.array(arrays[i])
    np.moveaxis(spoiled[i], shape.shape.index(B), 0)[1] = np.nan
    argument, shown = call.names[call.arrays[i]], False
    clean, out = (jax.tree.leaves(function(x)[0]) for x in (arrays, spoiled))
    for x, y in zip(clean, out):
      if B in x.shape:
        x, y = (np.moveaxis(np.asarray(z), z.shape.index(B), 0) for z in (x, y))
        np.testing.assert_array_equal(x[::2], y[::2], f"a NaN of {argument} is in other rows")
        shown |= not is_float(y) or bool(np.isnan(y[1]).any())
    assert shown or argument in call.entry.quiet.split(), f"a NaN of {argument} is lost"


CHECKS = {
  "rank_promotion": check_rank_promotion,
  "vmap": check_vmap,
  "types": check_types,
  "shard_map": check_shard_map,
  "lowering": check_lowering,
  "jit": check_jit,
  "compiles_once": check_compiles_once,
  "traced_floats": check_traced_floats,
  "nan": check_nan,
}


def is_function(x) -> bool:
  return callable(x) and not inspect.isclass(x)


@pytest.mark.parametrize("room", ROOMS)
def test_every_function_has_an_entry(room):
  module = importlib.import_module(f"jaxlab.{room}")
  functions = {f"{room}.{x}" for x in module.__all__ if is_function(getattr(module, x))}
  exempt = {x for names in EXEMPT.values() for x in names.split() if x.startswith(f"{room}.")}
  called = {f"{room}.{name.partition(':')[0]}" for name in ROOMS[room]}
  assert not called & exempt
  assert called | exempt == functions
  assert {name for name, _ in KNOWN_FAULTS} <= {*CALLS}
  for entry in ROOMS[room].values():
    assert set(entry.skip) <= {"gradients", *CHECKS} and set(entry.skip.values()) <= set(REASONS)


@pytest.mark.parametrize("slug", PAPERS)
def test_a_papers_step_is_lowered_for_tpu_and_cuda(slug):
  module = catalogue.load_experiment(PAPERS[slug])
  mesh = training.make_mesh({"data": 2, "model": 1})
  update, *arguments = module.abstract(module.PRESETS["paper"], mesh)
  jax.export.export(jax.jit(update), platforms=("tpu", "cuda"))(*arguments)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("contract", CHECKS)
def test_contract(name, contract):
  if contract in CALLS[name].skip:
    return
  if (name, contract) in KNOWN_FAULTS:
    with pytest.raises(Exception):  # noqa: B017
      CHECKS[contract](name)
  else:
    CHECKS[contract](name)
