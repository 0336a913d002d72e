"""Lists the papers: `python -m experiments [--family=...] [--search=...] [--show=SLUG]`."""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table

from experiments import catalogue
from jaxlab.experiment import report
from jaxlab.experiment.records import from_stored
from jaxlab.experiment.wall import guard


def main(argv: Sequence[str] | None = None, *, root: pathlib.Path = catalogue.ROOT) -> int:
  """Prints the catalogue, a part of it, or one paper; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments", description="The papers, their experiments, what was measured."
  )
  parser.add_argument("--family", help="only the papers of one family")
  parser.add_argument("--search", help="only the papers that mention these words")
  parser.add_argument("--show", metavar="SLUG", help="everything about one paper")
  arguments = parser.parse_args(argv)
  papers = catalogue.load_papers(root / "experiments" / "papers.toml")
  results = root / "experiments" / "results"
  try:
    if arguments.show:
      _show(catalogue.find_paper(papers, arguments.show), results)
    else:
      _list(_choose(list(papers.values()), arguments.family, arguments.search), results)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _choose(
  papers: list[catalogue.Paper], family: str | None, search: str | None
) -> list[catalogue.Paper]:
  families = sorted({paper.family for paper in papers})
  if family is not None:
    if family not in families:
      near = difflib.get_close_matches(family, families, n=3) or families
      raise ValueError(f"--family={family} is no family; there is {', '.join(near)}.")
    papers = [paper for paper in papers if paper.family == family]
  words = (search or "").lower().split()
  return [paper for paper in papers if all(word in _text(paper) for word in words)]


def _text(paper: catalogue.Paper) -> str:
  parts = (paper.slug, paper.family, paper.title, paper.venue, paper.arxiv, paper.claim)
  return " ".join([*parts, *paper.functions]).lower()


def _list(papers: list[catalogue.Paper], results: pathlib.Path) -> None:
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  for column in ("family", "slug", "title", "headline", "other claims"):
    table.add_column(column)
  for paper in papers:
    claims = catalogue.claims_of(catalogue.measured(paper.slug, results))
    headline = catalogue.headline_of(claims)
    others = [claim for claim in claims if not claim.headline]
    verdicts = (headline.verdict if headline else "not measured", catalogue.tally(others))
    table.add_row(paper.family, paper.slug, paper.title, *verdicts)
  report.console().print(table)
  print(f"{len(papers)} papers; --show=SLUG says more, python -m experiments.FAMILY.SLUG runs one.")


def _show(paper: catalogue.Paper, directory: pathlib.Path) -> None:
  print(f"{paper.title} ({paper.venue})\n{paper.link}\n\n{paper.claim}\n")
  print(f"python -m {paper.experiment}")
  for preset, cost in paper.cost.items():
    print(f"  --preset={preset}: {cost}")
  print("\n" + "\n".join(paper.functions) + "\n")
  stored = catalogue.measured(paper.slug, directory)
  if stored is None:
    print("Nothing was measured yet.")
    return
  title = f"{paper.slug}, {stored['preset']}, {stored['seeds']} seeds"
  report.print_report(title, from_stored(stored["records"]), catalogue.claims_of(stored))


if __name__ == "__main__":
  sys.exit(guard(main))
