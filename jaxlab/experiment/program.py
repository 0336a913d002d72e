"""Makes a module a program: flags, a directory, stages that survive a kill, a report.

An experiment is a module with::

  Config      a frozen dataclass; each field becomes a flag, its comment the flag's help
  run         (config, context) -> Results

and, where it wants them::

  PAPER       its name; the module's name otherwise
  PRESETS     {"smoke": Config(...), "laptop": Config(...), "paper": Config(...)}
  SEEDS       {"laptop": 8}: number of seeds by preset; 1 for smoke and 5 for others otherwise
  validate    (config) -> None; a ValueError says which sizes are impossible, before anything is
              written
  claims      (config, results) -> list of Claim, made by compare
  figure      (results) -> matplotlib Figure
  abstract    (config, mesh) -> (update, state, batch) as shapes, for --dry_run

It ends in `if __name__ == "__main__": experiment.main(sys.modules[__name__])`. Whatever `run` does
inside `context.fit`, `context.cached` and `context.over_seeds` survives a kill.

Exit status: 0 complete, 1 failed, 2 the command line cannot be obeyed (and nothing was written),
130 and 143 stopped by SIGINT and SIGTERM; then the same command goes on.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import pathlib
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging

from jaxlab._extras import import_extra
from jaxlab.experiment import claims as claiming
from jaxlab.experiment import flags as config_flags
from jaxlab.experiment import records, report, workdir
from jaxlab.experiment.arguments import (
  FIRST_PILOT_SEED,
  FRAME_FLAGS,
  Arguments,
  default_preset,
  define_flags,
  mesh_from_axes,
  presets_of,
  read_arguments,
  slug_of,
  start_jax,
)
from jaxlab.experiment.context import Context
from jaxlab.experiment.dry_run import print_cost, step_cost
from jaxlab.experiment.processes import agreed, check_agreement, on_process_0
from jaxlab.experiment.records import Results
from jaxlab.experiment.wall import guard
from jaxlab.training.signals import StopSignals
from jaxlab.training.writers import TensorBoardWriter, Writer


class About(NamedTuple):
  """What `--help` and the report say of an experiment.

  Attributes:
    title: one line.
    text: a paragraph.
    link: where to read more, or "".
    cost: preset -> what it takes, in words.
  """

  title: str
  text: str = ""
  link: str = ""
  cost: Mapping[str, str] = {}


def main(module: ModuleType, *, about: About | None = None) -> None:
  """Runs an experiment as a program: parses the command line and exits with a status.

  Args:
    module: the experiment, `sys.modules[__name__]`.
    about: what `--help` says; by default the module's docstring.
  """

  def run(argv: Sequence[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # Every checkpoint would report forty lines.
    return execute(module, argv, about=about)

  def parse_nothing(argv: Sequence[str]) -> Sequence[str]:
    flags.FLAGS(argv[:1])  # Flags of libraries keep their defaults; ours have a table of their own.
    return argv

  app.run(run, flags_parser=parse_nothing)


def execute(module: ModuleType, argv: Sequence[str], *, about: About | None = None) -> int:
  """Runs an experiment inside this process.

  Args:
    module: the experiment.
    argv: the program's name and its flags.
    about: as for `main`.

  Returns:
    The exit status.
  """
  about = about or _about(module)
  debug = "--debug" in argv

  def run() -> int:
    values = define_flags(module)
    config_flags.parse(values, argv)
    if values["help"].value:
      print(_help(module, about, values))
      return 0
    arguments = read_arguments(module, values, argv)
    start_jax(arguments)
    mesh = mesh_from_axes(arguments.mesh)
    if arguments.dry_run:
      print_cost(step_cost(module, arguments.config, mesh))
      return 0
    if hasattr(module, "figure"):  # Hours later it would be too late to find it missing.
      import_extra("matplotlib", extra="plots")
    asked = {
      "slug": slug_of(module),
      "preset": arguments.preset,
      "seeds": arguments.seeds,
      "pilot": arguments.pilot,
      "config": dataclasses.asdict(arguments.config),
    }
    of_all = {"versions": _versions(), "mesh": arguments.mesh, "command": arguments.command}
    check_agreement(asked | of_all)
    with contextlib.ExitStack() as held:
      on_process_0(lambda: held.enter_context(workdir.lock(arguments.workdir)))
      return guard(
        functools.partial(_run, module, about, arguments, mesh, asked),
        debug=debug,
        resume=f"to go on:\n  {arguments.resume}",
        advice="nothing was measured.",
      )

  return guard(run, debug=debug)


def _run(
  module: ModuleType,
  about: About,
  arguments: Arguments,
  mesh: jax.sharding.Mesh,
  asked: dict[str, Any],
) -> int:
  """Starts, continues or shows the run of a workdir that process 0 holds."""
  started, directory, writes = time.monotonic(), arguments.workdir, jax.process_index() == 0
  begin = functools.partial(workdir.begin, directory, asked, overwrite=arguments.overwrite)
  resumed = on_process_0(begin)
  title = f"{about.title}, preset {arguments.preset}, {arguments.seeds} seeds"
  title += " of a pilot" if arguments.pilot else ""
  first_seed = FIRST_PILOT_SEED if arguments.pilot else 0
  if agreed((directory / "results.json").exists()):
    if writes:
      _show(module, title, directory)
    return 0
  with StopSignals(note="stopping where nothing is lost; once more stops at once.") as signals:
    context = Context(
      workdir=directory,
      key=jax.random.key(first_seed),
      seeds=arguments.seeds,
      first_seed=first_seed,
      writers=_writers(directory),
      mesh=mesh,
      made_by=workdir.encode_json(asked),
      signals=signals,
    )
    results = module.run(arguments.config, context)
    _check_results(results, arguments.seeds)
    claims = module.claims(arguments.config, results) if hasattr(module, "claims") else []
    if not writes:
      return 0
    workdir.write_atomic(
      directory / "extras.npz", lambda file: workdir.save_tree(file, results.extras)
    )
    stored = {
      **asked,
      "command": arguments.command,
      **_provenance(mesh),
      # What the earlier processes of a run took is not known.
      "wall_seconds": None if resumed else time.monotonic() - started,
      "claims": [claiming.claim_to_stored(claim) for claim in claims],
      "records": records.to_stored(results),
    }
    # One that was left here is not of these results.
    (directory / "figure.png").unlink(missing_ok=True)
    workdir.save_json(directory / "results.json", stored)
    _show(module, title, directory)
    return 0


def _writers(directory: pathlib.Path) -> tuple[Callable[[str], Writer], ...]:
  if importlib.util.find_spec("tensorboardX") is None:
    print("No TensorBoard events: tensorboardX is not installed (pip install jaxlab[tensorboard]).")
    return ()
  return (lambda name: TensorBoardWriter(directory / "tensorboard" / name),)


def _check_results(results: Any, seeds: int) -> None:
  if not isinstance(results, Results):
    raise TypeError(f"run must return Results, got {type(results).__name__}.")
  for record in results:
    # Rows that cost much may have the first seeds alone.
    if record.values.ndim and len(record.values) > seeds:
      raise ValueError(
        f"{record.method}, {record.quantity} has {len(record.values)} values for {seeds} seeds."
      )


def _versions() -> dict[str, str]:
  return {
    "jax": jax.__version__,
    "flax": importlib.metadata.version("flax"),
    "jaxlab": importlib.metadata.version("jaxlab"),
  }


def _provenance(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  return {
    "versions": _versions(),
    "device": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
  }


def _show(module: ModuleType, title: str, directory: pathlib.Path) -> None:
  """Prints the stored results of a finished run, and draws its figure if there is none yet."""
  stored = workdir.load_json(directory / "results.json")
  results = records.from_stored(stored["records"], workdir.load_tree(directory / "extras.npz"))
  claims = [claiming.claim_from_stored(claim) for claim in stored["claims"]]
  report.print_report(title, results, claims)
  written = [directory / "results.json"]
  if hasattr(module, "figure"):
    written.append(directory / "figure.png")
    if not written[-1].exists():
      import matplotlib

      matplotlib.use("Agg")
      import matplotlib.pyplot as plt

      drawing = module.figure(results)
      workdir.write_atomic(written[-1], lambda file: drawing.savefig(file, format="png", dpi=150))
      plt.close(drawing)
  print(", ".join(map(str, written)))


def _about(module: ModuleType) -> About:
  """The module's docstring: its first line, and the rest."""
  title, _, text = inspect.cleandoc(module.__doc__ or slug_of(module)).partition("\n")
  return About(title.rstrip("."), " ".join(text.split()))


def _help(module: ModuleType, about: About, values: flags.FlagValues) -> str:
  """The paper, what each preset costs, and every flag with its value in each preset."""
  presets = presets_of(module)
  lines = [about.title, *([about.link] if about.link else []), ""]
  lines += [*textwrap.wrap(about.text, 100), ""] if about.text else []
  lines += [f"  --preset={name:<8} {about.cost.get(name, '')}".rstrip() for name in presets]
  lines += ["", f"Flags of this experiment, with their values in {', '.join(presets)}:"]
  for field in dataclasses.fields(module.Config):
    defaults = [config_flags.as_text(getattr(preset, field.name)) for preset in presets.values()]
    value = defaults[0] if len(set(defaults)) == 1 else " | ".join(defaults)
    lines += config_flags.flag_help(values[field.name], value)
  lines += ["", "Flags of every experiment:"]
  for name in FRAME_FLAGS:
    lines += config_flags.flag_help(
      values[name], default_preset(module) if name == "preset" else ""
    )
  return "\n".join(lines)
