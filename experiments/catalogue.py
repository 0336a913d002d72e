"""The catalogue of papers, `papers.toml`, and what was measured of each.

python -m experiments.catalogue --write         writes the pages made from it and from results/
python -m experiments.catalogue --check         exit status 1 if one of them is stale
python -m experiments.catalogue --quote=WORKDIR makes a finished laptop run the quoted one: its
                                                numbers and figure go to results/ and figures/;
                                                the numbers of a pilot go to selections/
"""

import argparse
import collections
import dataclasses
import difflib
import importlib
import io
import pathlib
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from jaxlab import experiment
from jaxlab.experiment.arguments import default_seeds
from jaxlab.experiment.records import from_stored
from jaxlab.experiment.wall import guard
from jaxlab.experiment.workdir import (
  encode_json,
  first_difference,
  load_json,
  load_tree,
  write_atomic,
)

ROOT = pathlib.Path(__file__).parent.parent
PAPERS = ROOT / "experiments" / "papers.toml"
RESULTS = ROOT / "experiments" / "results"
FIGURES = ROOT / "experiments" / "figures"
SELECTIONS = ROOT / "experiments" / "selections"

_MOST_BYTES = 80_000


class Paper(NamedTuple):
  """One entry of the catalogue.

  Attributes:
    slug: its name here.
    family: the package that holds its experiment.
    title: the paper's title.
    venue: where it was published, and when.
    arxiv: its number on arXiv.
    claim: the sentence of the abstract that the headline claim tests.
    idea: what it does and why, in two or three sentences.
    equation: its central equation, in LaTeX.
    snippet: about ten lines of Python that use its functions and run as they stand.
    experiment: the experiment's module.
    functions: public names of the functions that implement it.
    cost: preset -> what it takes, in words.
    deviations: where the experiment differs from the paper, and changes made after results were
      seen, each with its reason.
  """

  slug: str
  family: str
  title: str
  venue: str
  arxiv: str
  claim: str
  idea: str
  equation: str
  snippet: str
  experiment: str
  functions: tuple[str, ...]
  cost: Mapping[str, str]
  deviations: tuple[str, ...]

  @property
  def link(self) -> str:
    """Address of the paper."""
    return f"https://arxiv.org/abs/{self.arxiv}"


def load_papers(path: pathlib.Path = PAPERS) -> dict[str, Paper]:
  """Reads the catalogue.

  Args:
    path: the TOML file.

  Returns:
    A dict from slug to `Paper`, in the file's order.

  Raises:
    ValueError: if an entry lacks a field or has one too many; the message names slug and field.
  """
  entries = tomllib.loads(path.read_text(encoding="utf-8"))
  papers = {}
  for slug, entry in entries.items():
    fields = set(Paper._fields) - {"slug"}
    for what, names in (("lacks", fields - set(entry)), ("has an unknown", set(entry) - fields)):
      if names:
        raise ValueError(f"{path.name}: [{slug}] {what} field {sorted(names)[0]!r}.")
    lists = {name: tuple(entry[name]) for name in ("functions", "deviations")}
    papers[slug] = Paper(slug=slug, **{**entry, **lists})
  return papers


def find_paper(papers: Mapping[str, Paper], slug: str) -> Paper:
  """One paper of the catalogue.

  Raises:
    ValueError: if there is none of that slug; the message names the near ones.
  """
  if slug not in papers:
    near = difflib.get_close_matches(slug, papers, n=3) or sorted(papers)
    raise ValueError(f"no paper {slug!r} in the catalogue; there is {', '.join(near)}.")
  return papers[slug]


def resolve(name: str) -> Any:
  """The object behind a dotted public name: `jaxlab.losses.bar_nll`.

  Raises:
    ImportError: if the module cannot be imported.
    AttributeError: if it has no such name.
  """
  module, _, attribute = name.rpartition(".")
  return getattr(importlib.import_module(module), attribute)


def load_experiment(paper: Paper) -> ModuleType:
  """The module of a paper's experiment: a file, or the `__main__` of a package."""
  module = importlib.import_module(paper.experiment)
  is_package = hasattr(module, "__path__")
  return importlib.import_module(f"{paper.experiment}.__main__") if is_package else module


def about(paper: Paper) -> experiment.About:
  """What `--help` of a paper's experiment says."""
  return experiment.About(f"{paper.title} ({paper.venue})", paper.claim, paper.link, paper.cost)


def run(module: ModuleType) -> None:
  """Runs a paper's experiment as a program.

  Args:
    module: the experiment, `sys.modules[__name__]`, with its slug as `PAPER`.
  """
  experiment.main(module, about=about(find_paper(load_papers(), module.PAPER)))


def measured(slug: str, results: pathlib.Path = RESULTS) -> dict[str, Any] | None:
  """The committed result of a paper: a parsed `results.json`, or None if there is none."""
  path = results / f"{slug}.json"
  return load_json(path) if path.exists() else None


def selection(slug: str) -> experiment.Results:
  """What a paper's pilot measured, from which the settings of the other runs are taken.

  Raises:
    ValueError: if no pilot of the paper was quoted.
  """
  stored = measured(slug, SELECTIONS)
  if stored is None:
    raise ValueError(f"no pilot of {slug} was quoted: there is no selections/{slug}.json.")
  return from_stored(stored["records"])


def claims_of(stored: Mapping[str, Any] | None) -> list[experiment.Claim]:
  """The claims in what `measured` returns."""
  return [experiment.claim_from_stored(claim) for claim in (stored or {"claims": []})["claims"]]


def headline_of(claims: Sequence[experiment.Claim]) -> experiment.Claim | None:
  """The headline among a paper's claims, or None if nothing was measured."""
  return next((claim for claim in claims if claim.headline), None)


def tally(claims: Sequence[experiment.Claim]) -> str:
  """How many claims have which verdict, in words: "2 shown, 1 unresolved"."""
  count = collections.Counter(claim.verdict for claim in claims)
  return ", ".join(f"{n} {verdict}" for verdict, n in count.items())


def quote(workdir: pathlib.Path) -> str:
  """Makes a finished laptop run the one that tables and pages quote.

  A pilot is the record of how the settings of a configuration were chosen; any preset may be one.

  Args:
    workdir: the run's directory.

  Returns:
    The paper's slug.

  Raises:
    ValueError: if the run is unfinished or was interrupted; if a run that is no pilot is of another
      preset or configuration, or its claims break the rules.
  """
  if not (workdir / "results.json").exists():
    raise ValueError(f"{workdir} holds no results.json: the run is not finished.")
  stored = load_json(workdir / "results.json")
  paper = find_paper(load_papers(), stored["slug"])
  if stored["wall_seconds"] is None:
    raise ValueError(f"{workdir} is not from one unbroken run; start it anew with --overwrite.")
  if stored["pilot"]:
    SELECTIONS.mkdir(exist_ok=True)
    shutil.copyfile(workdir / "results.json", SELECTIONS / f"{paper.slug}.json")
    return paper.slug
  module = load_experiment(paper)
  config = encode_json(dataclasses.asdict(module.PRESETS["laptop"]))
  wanted = {"preset": "laptop", "seeds": default_seeds(module, "laptop"), "config": config}
  difference = first_difference({name: stored[name] for name in wanted}, wanted)
  if difference:
    name, ran, asked = difference
    raise ValueError(f"{workdir} ran with {name} = {ran!r}, the laptop preset has {asked!r}.")
  experiment.check_claims(claims_of(stored))
  shutil.copyfile(workdir / "results.json", RESULTS / f"{paper.slug}.json")
  results = from_stored(stored["records"], load_tree(workdir / "extras.npz"))
  draw_figure(paper, results)
  return paper.slug


def draw_figure(paper: Paper, results: experiment.Results) -> None:
  """Draws a paper's figure into `figures/<slug>.png`, at most 80 kB."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  drawing = load_experiment(paper).figure(results)
  for dpi in (100, 80, 64, 50, 40):
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=dpi)
    content = few_colors(buffer)
    if len(content) <= _MOST_BYTES:
      break
  plt.close(drawing)
  write_atomic(FIGURES / f"{paper.slug}.png", lambda file: file.write(content))


def few_colors(png: io.BytesIO) -> bytes:
  """The picture with a palette of 128 colors, a quarter of the bytes."""
  import PIL.Image

  small = io.BytesIO()
  PIL.Image.open(png).convert("RGB").quantize(128).save(small, format="png", optimize=True)
  return small.getvalue()


def main(argv: Sequence[str] | None = None, *, root: pathlib.Path = ROOT) -> int:
  """Writes or checks the pages, or quotes a run; returns the exit status."""
  from experiments import pages

  parser = argparse.ArgumentParser(
    prog="python -m experiments.catalogue", description="Papers, their pages, what was measured."
  )
  action = parser.add_mutually_exclusive_group(required=True)
  action.add_argument("--write", action="store_true", help="write the pages")
  action.add_argument("--check", action="store_true", help="exit status 1 if a page is stale")
  action.add_argument("--quote", metavar="WORKDIR", type=pathlib.Path, help="quote a finished run")
  arguments = parser.parse_args(argv)
  try:
    if arguments.quote:
      print(f"{quote(arguments.quote)} is quoted; --write brings the pages up to date.")
      return 0
    stale = pages.write(root) if arguments.write else pages.stale(root)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  for path in stale:
    print(f"{path.relative_to(root)}: {'written' if arguments.write else 'stale'}")
  if stale and arguments.check:
    print("`python -m experiments.catalogue --write` brings it up to date.", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(guard(main))
