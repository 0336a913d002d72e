"""The catalogue of papers: `papers.toml`, what was measured of each, and the table of both.

python -m experiments.catalogue --write    writes the table into docs/papers.md and README.md
python -m experiments.catalogue --check    exit status 1 if one of the two is stale
"""

import argparse
import difflib
import importlib
import pathlib
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import report
from experiments.workdir import read_json

ROOT = pathlib.Path(__file__).parent.parent
PAPERS = ROOT / "experiments" / "papers.toml"
RESULTS = ROOT / "experiments" / "results"

_BEGIN = "<!-- papers:begin -->"
_END = "<!-- papers:end -->"


class Paper(NamedTuple):
  """One entry of the catalogue.

  Attributes:
    slug: its name here.
    family: the package that holds its experiment.
    title: the paper's title.
    venue: where it was published, and when.
    arxiv: its number on arXiv.
    claim: the sentence that the experiment tests.
    experiment: the experiment's module.
    functions: dotted names of the functions that implement it.
    cost: preset -> what it takes, in words.
  """

  slug: str
  family: str
  title: str
  venue: str
  arxiv: str
  claim: str
  experiment: str
  functions: tuple[str, ...]
  cost: Mapping[str, str]

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
    papers[slug] = Paper(slug=slug, **{**entry, "functions": tuple(entry["functions"])})
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


def measured(slug: str, results: pathlib.Path = RESULTS) -> dict[str, dict[str, Any]]:
  """The committed results of a paper.

  Args:
    slug: the paper.
    results: the directory of `<slug>.json`, or `<slug>.<task>.json` where an experiment has
      several tasks; each a copy of a `results.json`.

  Returns:
    A dict from the file's name without ending to its content; empty if nothing was measured.

  Raises:
    ValueError: if a file holds the results of another paper or preset.
  """
  paths = sorted([*results.glob(f"{slug}.json"), *results.glob(f"{slug}.*.json")])
  stored = {path.name.removesuffix(".json"): read_json(path) for path in paths}
  for name, content in stored.items():
    if (content["slug"], content["preset"]) != (slug, "laptop"):
      raise ValueError(
        f"{results.name}/{name}.json holds results of {content['slug']!r} with preset "
        f"{content['preset']!r}; only those of {slug!r} with 'laptop' are quoted."
      )
  return stored


def claims_of(stored: Mapping[str, Mapping[str, Any]]) -> list[report.Claim]:
  """All claims in what `measured` returns."""
  return [claim for content in stored.values() for claim in report.from_stored(content)[1]]


def claim_state(claims: Sequence[report.Claim]) -> str:
  """How many claims hold, in words: "2 of 3 hold, 1 not judged", or "not measured"."""
  if not claims:
    return "not measured"
  count = Counter(claim.holds for claim in claims)
  state = f"{count[True]} of {len(claims)} hold"
  return f"{state}, {count[None]} not judged" if count[None] else state


def table(papers: Mapping[str, Paper], results: pathlib.Path = RESULTS) -> str:
  """The catalogue as a Markdown table.

  Args:
    papers: what `load_papers` returns.
    results: the directory of committed results.

  Returns:
    One row a paper: title and link, how to run it, and every claim with what was measured.

  Raises:
    ValueError: if a file in `results` belongs to no paper.
  """
  strangers = [path.name for path in sorted(results.glob("*.json"))]
  strangers = [name for name in strangers if name.split(".")[0] not in papers]
  if strangers:
    raise ValueError(f"{results.name}/{strangers[0]} belongs to no paper of the catalogue.")
  rows = [
    "| Family | Paper | Run | Measured on a laptop |",
    "| --- | --- | --- | --- |",
  ]
  for paper in papers.values():
    claims = claims_of(measured(paper.slug, results))
    lines = [claim_state(claims), *map(report.format_claim, claims)]
    cells = (
      paper.family,
      f"[{_cell(paper.title)}]({paper.link}), {_cell(paper.venue)}",
      f"`python -m {paper.experiment}`",
      "<br>".join(map(_cell, lines)),
    )
    rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows) + "\n"


def pages(root: pathlib.Path = ROOT) -> dict[pathlib.Path, str]:
  """The files that hold the table, as they should read.

  Args:
    root: the repository, with `papers.toml` and `results` in its folder `experiments`.

  Returns:
    A dict from path to content: `docs/papers.md`, and `README.md` with the table between its
    markers.

  Raises:
    ValueError: if `README.md` has not both markers, in order, or for what `table` refuses.
  """
  papers = load_papers(root / "experiments" / "papers.toml")
  content, readme = table(papers, root / "experiments" / "results"), root / "README.md"
  page = (
    "# Papers and measured claims\n\n"
    "<!-- Made by `python -m experiments.catalogue --write`; edit papers.toml instead. -->\n\n"
    "Every number comes from a run with the laptop preset whose `results.json` is committed in\n"
    "`experiments/results`. A claim holds if the mean of the paired differences over seeds\n"
    "exceeds its margin by more than one standard error; with fewer than three seeds it is not\n"
    "judged.\n\n"
    f"{content}"
  )
  return {root / "docs" / "papers.md": page, readme: _between_markers(readme, content)}


def main(argv: Sequence[str] | None = None, *, root: pathlib.Path = ROOT) -> int:
  """Writes or checks the pages; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.catalogue", description="The table of papers and measured claims."
  )
  action = parser.add_mutually_exclusive_group(required=True)
  action.add_argument("--write", action="store_true", help="write docs/papers.md and README.md")
  action.add_argument("--check", action="store_true", help="exit status 1 if one of them is stale")
  arguments = parser.parse_args(argv)
  try:
    wanted = pages(root)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  stale = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
  for path in stale:
    if arguments.write:
      path.parent.mkdir(exist_ok=True)
      path.write_text(wanted[path], encoding="utf-8")
    print(f"{path.relative_to(root)}: {'written' if arguments.write else 'stale'}")
  if stale and arguments.check:
    print("`python -m experiments.catalogue --write` brings it up to date.", file=sys.stderr)
    return 1
  return 0


def _between_markers(path: pathlib.Path, content: str) -> str:
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  begin, end = text.find(_BEGIN), text.find(_END)
  if not 0 <= begin < end:
    raise ValueError(f"{path.name} needs the lines {_BEGIN} and {_END}, in this order.")
  return f"{text[: begin + len(_BEGIN)]}\n{content}{text[end:]}"


def _cell(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
  sys.exit(main())
