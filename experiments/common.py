"""The experiment binary: a module with a paper's experiment becomes a program.

An experiment is a module with

  PAPER       its slug in papers.toml
  Config      a frozen dataclass; each field becomes a flag, its comment the flag's help
  PRESETS     {"smoke": Config(...), "laptop": Config(...), "paper": Config(...)}
  run         (config, context) -> Results
  claims      (results) -> list of Claim, mostly by `compare`
  figure      (results) -> matplotlib Figure
  abstract    (config, mesh) -> (update, state, batch) as shapes, for --dry_run

and ends in `if __name__ == "__main__": common.main(sys.modules[__name__])`. Whatever `run` does
inside `context.fit` and `context.cached` survives a kill.

Exit status: 0 complete, 1 failed, 2 the command line cannot be obeyed (and nothing was written),
130 and 143 stopped by SIGINT and SIGTERM; then the same command goes on.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
from absl import app, flags, logging

import jaxlab
from experiments import catalogue, config_flags, dry_run, report, workdir
from experiments.config_flags import UsageError
from experiments.context import Context, agreed
from experiments.report import Claim, Quantity, Results, compare, quantity
from jaxlab.training.loop import Interrupted, NonFiniteLossError
from jaxlab.training.mesh import initialize_multihost, make_mesh
from jaxlab.training.writers import TensorBoardWriter, Writer

__all__ = ["Claim", "Context", "Quantity", "Results", "compare", "execute", "main", "quantity"]

_HELP = ("-h", "--helpshort", "--helpfull")
_DEFAULT_PRESET = "laptop"
_DEFAULT_MESH = "data:-1,model:1"
_DEFAULT_SEEDS = {"smoke": 1, "laptop": 3, "paper": 3}

_FRAME_FLAGS = {
  "preset": (str, "The sizes to start from; other flags change single fields."),
  "workdir": (str, "Where everything is written; default runs/<slug>/<preset>."),
  "seeds": (int, "Number of seeds; default 1 for smoke, else 3."),
  "overwrite": (bool, "Remove what an earlier run left in the workdir and start anew."),
  "dry_run": (bool, "Compile one step from shapes, print its cost, run nothing."),
  "multihost": (bool, "One of several processes: JAX_COORDINATOR_ADDRESS and so on, or a cluster."),
  "mesh": (str, "Devices by axis; one size may be -1; default data:-1,model:1."),
  "host_devices": (
    int,
    "CPU devices to make; default: as the mesh says, else one a core, 4 at most.",
  ),
  "compilation_cache": (str, "Directory of compiled programs; empty: none."),
  "data_dir": (str, "Where data sets are prepared; default $JAXLAB_DATA_DIR or ~/.cache/jaxlab."),
  "help": (bool, "Show this and stop."),
}


class Arguments(NamedTuple):
  """A parsed command line.

  Attributes:
    preset: name of the preset.
    config: the preset with the flags that were given.
    workdir: the directory of the run.
    seeds: number of seeds.
    mesh: axis -> number of devices.
    host_devices: CPU devices to make, or None for as many as the mesh or the cores ask for.
    compilation_cache: directory of compiled programs, "" for none, None for the default.
    data_dir: directory of prepared data sets, or None for the default.
    overwrite: whether an earlier run goes.
    dry_run: whether to compile only.
    multihost: whether this is one of several processes.
    command: the command line that goes on with this run.
  """

  preset: str
  config: Any
  workdir: pathlib.Path
  seeds: int
  mesh: dict[str, int]
  host_devices: int | None
  compilation_cache: str | None
  data_dir: str | None
  overwrite: bool
  dry_run: bool
  multihost: bool
  command: str


def main(module: ModuleType, *, papers: pathlib.Path = catalogue.PAPERS) -> None:
  """Runs an experiment as a program: parses the command line and exits with a status.

  Args:
    module: the experiment, `sys.modules[__name__]`.
    papers: the catalogue that knows it.
  """

  def run(argv: Sequence[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # Every checkpoint would report forty lines.
    return execute(module, argv, papers=papers)

  def parse_nothing(argv: Sequence[str]) -> Sequence[str]:
    flags.FLAGS(argv[:1])  # Flags of libraries keep their defaults; ours have a table of their own.
    return argv

  app.run(run, flags_parser=parse_nothing)


def execute(
  module: ModuleType, argv: Sequence[str], *, papers: pathlib.Path = catalogue.PAPERS
) -> int:
  """Runs an experiment inside this process.

  Args:
    module: the experiment.
    argv: the program's name and its flags.
    papers: the catalogue that knows it.

  Returns:
    The exit status.
  """
  paper = catalogue.find_paper(catalogue.load_papers(papers), module.PAPER)
  try:
    values = _define_flags(module)
    config_flags.parse(values, ["--help" if a in _HELP else a for a in argv])
    if values["help"].value:
      print(_help(module, paper, values))
      return 0
    arguments = _arguments(module, values, argv)
    _start_jax(arguments)
    mesh = _make_mesh(arguments.mesh)
    if arguments.dry_run:
      dry_run.print_cost(dry_run.dry_run(module, arguments.config, mesh))
      return 0
    writes = jax.process_index() == 0
    with workdir.lock(arguments.workdir) if writes else contextlib.nullcontext():
      return _run(module, paper, arguments, mesh, writes)
  except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _run(
  module: ModuleType,
  paper: catalogue.Paper,
  arguments: Arguments,
  mesh: jax.sharding.Mesh,
  writes: bool,
) -> int:
  """Starts, continues or shows the run of a workdir that this process holds."""
  started, directory = time.monotonic(), arguments.workdir
  asked = {
    "slug": module.PAPER,
    "preset": arguments.preset,
    "seeds": arguments.seeds,
    "config": dataclasses.asdict(arguments.config),
  }
  resumed = writes and workdir.begin(directory, asked, overwrite=arguments.overwrite)
  title = f"{paper.title}, preset {arguments.preset}, {arguments.seeds} seeds"
  if agreed((directory / "results.json").exists()):
    if writes:
      _show(module, title, directory)
    return 0
  try:
    with _stop_signals():
      context = Context(
        workdir=directory,
        key=jax.random.key(0),
        seeds=arguments.seeds,
        writers=_writers(directory),
        mesh=mesh,
        smoke=arguments.preset == "smoke",
      )
      results = module.run(arguments.config, context)
      claims = module.claims(results)
      _check_seeds(results, arguments.seeds)
      if not writes:
        return 0
      workdir.write_atomic(
        directory / "extras.npz", lambda file: workdir.save_tree(file, dict(results.extras))
      )
      # What the earlier processes of a run took is not known.
      wall_seconds = None if resumed else time.monotonic() - started
      stored = asked | _provenance(mesh) | {"wall_seconds": wall_seconds}
      workdir.write_json(directory / "results.json", stored | report.to_stored(results, claims))
      _show(module, title, directory)
      return 0
  except NonFiniteLossError as error:
    print(f"error: {error}; nothing was measured.", file=sys.stderr)
    return 1
  except (Interrupted, _Stopped) as stop:
    print(f"{stop}; to go on:\n  {arguments.command}", file=sys.stderr)
    return 128 + stop.signum


def _define_flags(module: ModuleType) -> flags.FlagValues:
  values = flags.FlagValues()
  for name, (annotation, help_text) in _FRAME_FLAGS.items():
    if name == "preset":
      annotation = Literal[tuple(module.PRESETS)]
    config_flags.define_flag(values, name, annotation, help_text)
  config_flags.define_config_flags(values, module.Config)
  return values


def _arguments(module: ModuleType, values: flags.FlagValues, argv: Sequence[str]) -> Arguments:
  given = {name: values[name].value for name in _FRAME_FLAGS}
  preset = given["preset"] or _DEFAULT_PRESET
  if preset not in module.PRESETS:
    raise UsageError(f"there is no preset {preset!r}; --preset takes {', '.join(module.PRESETS)}.")
  for name in ("seeds", "host_devices"):
    if given[name] is not None and given[name] < 1:
      raise UsageError(f"--{name}={given[name]} is not allowed: an integer of at least 1.")
  return Arguments(
    preset=preset,
    config=config_flags.config_from_flags(values, module.PRESETS[preset]),
    workdir=pathlib.Path(given["workdir"] or f"runs/{module.PAPER}/{preset}"),
    seeds=given["seeds"] or _DEFAULT_SEEDS.get(preset, 3),
    mesh=_mesh_axes(given["mesh"] or _DEFAULT_MESH),
    host_devices=given["host_devices"],
    compilation_cache=given["compilation_cache"],
    data_dir=given["data_dir"],
    overwrite=bool(given["overwrite"]),
    dry_run=bool(given["dry_run"]),
    multihost=bool(given["multihost"]),
    # A run that goes on must not be told to start anew.
    command=shlex.join([*_program(module), *(a for a in argv[1:] if a.lstrip("-") != "overwrite")]),
  )


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


def _program(module: ModuleType) -> list[str]:
  """How to start the module again."""
  if module.__spec__ is not None:
    return ["python", "-m", module.__spec__.name]
  return ["python", module.__file__]


def _start_jax(arguments: Arguments) -> None:
  """Sets what must be set before the first device is touched."""
  if arguments.data_dir is not None:
    os.environ["JAXLAB_DATA_DIR"] = arguments.data_dir
  if arguments.dry_run:
    jax.config.update("jax_platforms", "cpu")  # The mesh is simulated.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  wanted = arguments.host_devices
  in_flags = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if wanted is None and jax.config.jax_num_cpu_devices < 1 and not in_flags:
    sizes = arguments.mesh.values()
    # A power of two up to four, by which the batches of the laptop presets divide.
    spread = 1 << min(cores.bit_length() - 1, 2)
    wanted = spread if -1 in sizes or arguments.multihost else math.prod(sizes)
  if wanted is not None:
    try:
      jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
      # A process that has used JAX keeps the devices it has.
      if arguments.host_devices is not None:
        raise UsageError(f"--host_devices={wanted} comes too late: JAX has started.") from error
    else:
      # With no more threads in XLA's pool than devices, LAPACK calls in a sharded program wait for
      # each other for ever.
      threads = max(2 * cores, 2 * wanted, int(os.environ.get("NPROC", 0)))
      os.environ["NPROC"] = str(threads)
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


def _make_mesh(axes: dict[str, int]) -> jax.sharding.Mesh:
  try:
    return make_mesh(axes)
  except ValueError as error:
    text = ",".join(f"{name}:{size}" for name, size in axes.items())
    raise UsageError(f"--mesh={text} is not allowed: {error}.") from error


class _Stopped(BaseException):
  """A signal came outside of training; no `except Exception` in between may swallow it."""

  def __init__(self, signum: int):
    super().__init__(signum)
    self.signum = signum

  def __str__(self) -> str:
    return f"stopped by {signal.Signals(self.signum).name}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
  """Turns SIGTERM and SIGINT into `_Stopped`; `fit`, which saves first, has its own handlers."""

  def stop(signum: int, frame: Any) -> None:
    raise _Stopped(signum)

  previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def _writers(directory: pathlib.Path) -> tuple[Callable[[str], Writer], ...]:
  if importlib.util.find_spec("tensorboardX") is None:
    print("No TensorBoard events: tensorboardX is not installed (pip install jaxlab[tensorboard]).")
    return ()
  return (lambda name: TensorBoardWriter(directory / "tensorboard" / name),)


def _check_seeds(results: Results, seeds: int) -> None:
  for method, row in results.quantities.items():
    for name, values in row.items():
      if values.ndim and len(values) != seeds:
        raise ValueError(f"{method}/{name} has {len(values)} values for {seeds} seeds.")


def _provenance(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  return {
    "versions": {
      "jax": jax.__version__,
      "flax": importlib.metadata.version("flax"),
      "jaxlab": jaxlab.__version__,
    },
    "device": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
  }


def _show(module: ModuleType, title: str, directory: pathlib.Path) -> None:
  """Prints the stored results of a finished run, and draws its figure if there is none yet."""
  stored = workdir.read_json(directory / "results.json")
  results, claims = report.from_stored(stored, workdir.load_tree(directory / "extras.npz"))
  report.print_report(title, results, claims)
  path = directory / "figure.png"
  if not path.exists():
    import matplotlib

    matplotlib.use("Agg")
    drawing = module.figure(results)
    workdir.write_atomic(path, lambda file: drawing.savefig(file, format="png", dpi=150))
  print(f"{directory / 'results.json'}, {path}")


def _help(module: ModuleType, paper: catalogue.Paper, values: flags.FlagValues) -> str:
  """The paper, what each preset costs, and every flag with its value in each preset."""
  presets = module.PRESETS
  lines = [f"{paper.title} ({paper.venue})", paper.link, "", *textwrap.wrap(paper.claim, 100), ""]
  lines += [f"  --preset={name:<8} {paper.cost.get(name, 'not stated')}" for name in presets]
  lines += ["", f"Flags of this experiment, with their values in {', '.join(presets)}:"]
  for field in dataclasses.fields(module.Config):
    defaults = [config_flags.as_text(getattr(preset, field.name)) for preset in presets.values()]
    value = defaults[0] if len(set(defaults)) == 1 else " | ".join(defaults)
    lines += _flag_help(values[field.name], f" [{value}]")
  lines += ["", "Flags of every experiment:"]
  for name in _FRAME_FLAGS:
    lines += _flag_help(values[name], f" [{_DEFAULT_PRESET}]" if name == "preset" else "")
  return "\n".join(lines)


def _flag_help(flag: flags.Flag, default: str) -> list[str]:
  allowed = "true or false" if flag.boolean else flag.parser.syntactic_help
  return [f"  --{flag.name}: {allowed}{default}", f"      {flag.help}"]
