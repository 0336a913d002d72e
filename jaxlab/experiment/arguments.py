"""The command line of an experiment, and what it sets before JAX starts."""

import dataclasses
import hashlib
import math
import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
from absl import flags

from jaxlab.experiment import flags as config_flags
from jaxlab.experiment.flags import UsageError
from jaxlab.training.mesh import initialize_multihost, make_mesh

_DEFAULT_MESH = "data:-1,model:1"
_DEFAULT_SEEDS = 5
FIRST_PILOT_SEED = 1000  # No measured run has so many seeds that it meets this one.
_MOST_DEVICES = 1024
_LONGEST_NAME = 120
_FEWEST_THREADS = 16
# A program that is not run need not be fast; its memory figures stay the same.
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

FRAME_FLAGS = {
  "preset": (str, "The sizes to start from; other flags change single fields."),
  "workdir": (
    str,
    "Where everything is written; default runs/<slug>/<preset> and what differs from it.",
  ),
  "seeds": (int, "Number of seeds; default 1 for smoke, else as the experiment says, or 5."),
  "pilot": (bool, "Draw other seeds than a measured run: for choosing settings beforehand."),
  "overwrite": (bool, "Remove what an earlier run left in the workdir and start anew."),
  "dry_run": (bool, "Compile one step from shapes, print its cost, run nothing."),
  "multihost": (bool, "One of several processes: JAX_COORDINATOR_ADDRESS and so on, or a cluster."),
  "mesh": (str, "Devices by axis; one size may be -1; default data:-1,model:1."),
  "host_devices": (
    int,
    "CPU devices to make; default: as the mesh says, else one per core, 4 at most.",
  ),
  "compilation_cache": (str, "Directory of compiled programs; empty: none."),
  "data_dir": (str, "Where data sets are prepared; default $JAXLAB_DATA_DIR or ~/.cache/jaxlab."),
  "debug": (bool, "Show the traceback of whatever ends the program."),
  "help": (bool, "Show this and stop."),
}


# Where things stand and how fast they go; another value measures the same numbers.
_PLACES = ("workdir", "overwrite", "compilation_cache", "data_dir", "host_devices", "debug")


class Arguments(NamedTuple):
  """A parsed command line.

  Attributes:
    preset: name of the preset.
    config: the preset with the flags that were given.
    workdir: the directory of the run.
    seeds: number of seeds.
    pilot: whether the seeds are others than those of a measured run.
    mesh: axis -> number of devices.
    host_devices: CPU devices to make, or None for as many as the mesh or the cores ask for.
    compilation_cache: directory of compiled programs, "" for none, None for the default.
    data_dir: directory of prepared data sets, or None for the default.
    overwrite: whether an earlier run goes.
    dry_run: whether to compile only.
    multihost: whether this is one of several processes.
    command: the command line that measures the same again, without what names places.
    resume: the command line that goes on with this run.
  """

  preset: str
  config: Any
  workdir: pathlib.Path
  seeds: int
  pilot: bool
  mesh: dict[str, int]
  host_devices: int | None
  compilation_cache: str | None
  data_dir: str | None
  overwrite: bool
  dry_run: bool
  multihost: bool
  command: str
  resume: str


def slug_of(module: ModuleType) -> str:
  """The experiment's name: its `PAPER`, else the module's own."""
  name = _module_name(module).rpartition(".")[2]
  return getattr(module, "PAPER", name)


def presets_of(module: ModuleType) -> Mapping[str, Any]:
  """The experiment's `PRESETS`; a module without them has one, its default `Config`."""
  return getattr(module, "PRESETS", None) or {"default": module.Config()}


def default_preset(module: ModuleType) -> str:
  """The preset of a command line that names none: laptop if there is one, else the first."""
  presets = presets_of(module)
  return "laptop" if "laptop" in presets else next(iter(presets))


def default_seeds(module: ModuleType, preset: str) -> int:
  """The number of seeds of a preset: as the module's `SEEDS` says, else 1 for smoke, else 5."""
  return {"smoke": 1, **getattr(module, "SEEDS", {})}.get(preset, _DEFAULT_SEEDS)


def define_flags(module: ModuleType) -> flags.FlagValues:
  """The flags of every experiment, and one for each field of the module's `Config`.

  Args:
    module: the experiment.

  Returns:
    Flags, none of them parsed yet.

  Raises:
    TypeError: if a field of `Config` cannot be a flag.
    ValueError: if a field has the name of a flag that every experiment has.
  """
  values = flags.FlagValues()
  for name, (annotation, help_text) in FRAME_FLAGS.items():
    if name == "preset":
      annotation = Literal[tuple(presets_of(module))]
    config_flags.define_flag(values, name, annotation, help_text)
  config_flags.define_config_flags(values, module.Config)
  return values


def read_arguments(module: ModuleType, values: flags.FlagValues, argv: Sequence[str]) -> Arguments:
  """What a parsed command line asks for.

  Args:
    module: the experiment.
    values: its flags, parsed.
    argv: the program's name and its flags.

  Returns:
    The `Arguments`.

  Raises:
    UsageError: if a value is not allowed or the values do not fit together.
  """
  given = {name: values[name].value for name in FRAME_FLAGS}
  preset = given["preset"] or default_preset(module)
  for name, most in (("seeds", FIRST_PILOT_SEED), ("host_devices", _MOST_DEVICES)):
    if given[name] is not None and not 1 <= given[name] <= most:
      raise UsageError(f"--{name}={given[name]} is not allowed: an integer from 1 to {most}.")
  base = presets_of(module)[preset]
  config = config_flags.config_from_flags(values, base)
  if hasattr(module, "validate"):
    with config_flags.refused_values():
      module.validate(config)
  usual_seeds = default_seeds(module, preset)
  seeds = given["seeds"] or usual_seeds
  changed = _changes(base, config) | ({} if seeds == usual_seeds else {"seeds": seeds})
  changed |= {"pilot": True} if given["pilot"] else {}
  default_workdir = f"runs/{slug_of(module)}/{_name_of_run(preset, changed)}"
  program = _program(module)
  places = [argument for argument in argv[1:] if _flag_name(argument) not in _PLACES]
  # A run that goes on must not be told to start anew.
  kept = [argument for argument in argv[1:] if _flag_name(argument) != "overwrite"]
  return Arguments(
    preset=preset,
    config=config,
    workdir=pathlib.Path(given["workdir"] or default_workdir).expanduser(),
    seeds=seeds,
    pilot=bool(given["pilot"]),
    mesh=_mesh_axes(given["mesh"] or _DEFAULT_MESH),
    host_devices=given["host_devices"],
    compilation_cache=given["compilation_cache"],
    data_dir=given["data_dir"],
    overwrite=bool(given["overwrite"]),
    dry_run=bool(given["dry_run"]),
    multihost=bool(given["multihost"]),
    command=shlex.join([*program, *places]),
    resume=shlex.join([*program, *kept]),
  )


def _changes(base: Any, config: Any) -> dict[str, Any]:
  """The fields in which a configuration differs from its preset."""
  names = [field.name for field in dataclasses.fields(base)]
  values = {name: getattr(config, name) for name in names}
  return {name: value for name, value in values.items() if value != getattr(base, name)}


def _name_of_run(preset: str, changed: Mapping[str, Any]) -> str:
  """A folder of its own for every configuration: "laptop,steps=40"."""
  texts = [f"{name}={config_flags.as_text(value)}" for name, value in changed.items()]
  name = re.sub(r"[^\w=+.,-]", "_", ",".join([preset, *texts]))
  if len(name) <= _LONGEST_NAME:
    return name
  return f"{preset},{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _flag_name(argument: str) -> str:
  return argument.lstrip("-").partition("=")[0]


def _module_name(module: ModuleType) -> str:
  """The name by which Python finds the module, also where it runs as `__main__`."""
  if module.__spec__ is not None:
    return module.__spec__.name.removesuffix(".__main__")
  return pathlib.Path(module.__file__).stem


def _program(module: ModuleType) -> list[str]:
  """How to start the module again."""
  if module.__spec__ is not None:
    return ["python", "-m", _module_name(module)]
  path = pathlib.Path(module.__file__)
  return [
    "python",
    str(path.relative_to(os.getcwd()) if path.is_relative_to(os.getcwd()) else path),
  ]


def _mesh_axes(text: str) -> dict[str, int]:
  axes = {}
  for part in text.split(","):
    name, _, size = part.strip().partition(":")
    if not name.isidentifier() or name in axes or not re.fullmatch(r"-1|[1-9]\d*", size):
      raise UsageError(
        f"--mesh={text} is not allowed: name:size between commas, each name once, at most one size "
        f"-1, for example {_DEFAULT_MESH}."
      )
    axes[name] = int(size)
  if "data" not in axes:
    raise UsageError(f"--mesh={text} has no axis data; for example {_DEFAULT_MESH}.")
  return axes


def start_jax(arguments: Arguments) -> None:
  """Sets what must be set before the first device is touched.

  Args:
    arguments: the parsed command line.

  Raises:
    UsageError: if `--host_devices` comes too late or other processes cannot be reached.
  """
  if arguments.data_dir is not None:
    os.environ["JAXLAB_DATA_DIR"] = arguments.data_dir
  if arguments.dry_run:
    jax.config.update("jax_platforms", "cpu")  # The mesh is simulated.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST_COMPILE}"
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  wanted = arguments.host_devices
  in_flags = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if wanted is None and jax.config.jax_num_cpu_devices < 1 and not in_flags:
    sizes = arguments.mesh.values()
    # A power of two up to four, by which the batches of the laptop presets divide.
    spread = 1 << min(cores.bit_length() - 1, 2)
    wanted = spread if -1 in sizes or arguments.multihost else math.prod(sizes)
  # LAPACK calls that XLA runs side by side, of several devices or of one program, wait for each
  # other for ever when they hold all threads of its pool. NPROC is its size, read once.
  os.environ["NPROC"] = str(max(_FEWEST_THREADS, 2 * cores, int(os.environ.get("NPROC", 0))))
  if wanted is not None:
    try:
      jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
      # A process that has used JAX keeps the devices it has.
      if arguments.host_devices is not None:
        raise UsageError(f"--host_devices={wanted} comes too late: JAX has started.") from error
  cache = arguments.compilation_cache
  if cache is None and jax.config.jax_compilation_cache_dir is None:
    cache = str(pathlib.Path("~/.cache/jaxlab/xla").expanduser())
  if cache is not None:
    jax.config.update("jax_compilation_cache_dir", cache or None)
  # A start compiles hundreds of programs that take hundredths of a second each.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if arguments.multihost:
    try:
      initialize_multihost()
    except (ValueError, RuntimeError) as error:
      raise UsageError(f"--multihost: {error}") from error


def mesh_from_axes(axes: dict[str, int]) -> jax.sharding.Mesh:
  """The mesh that `--mesh` asks for.

  Args:
    axes: axis -> number of devices; one may be -1.

  Returns:
    The mesh.

  Raises:
    UsageError: if there are too few devices.
  """
  try:
    return make_mesh(axes)
  except ValueError as error:
    text = ",".join(f"{name}:{size}" for name, size in axes.items())
    raise UsageError(f"--mesh={text} is not allowed: {error}.") from error
