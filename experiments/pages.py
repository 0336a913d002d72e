"""The pages made from the catalogue and the committed results: nobody types a number."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import catalogue
from experiments.catalogue import Paper
from jaxlab.experiment import Claim
from jaxlab.experiment.report import format_paper

_BEGIN, _END = "<!-- papers:begin -->", "<!-- papers:end -->"
_IN_README = 10
_COLORS = {
  "shown": "tab:green",
  "refuted": "tab:red",
  "unresolved": "tab:gray",
  "no test": "tab:orange",
}
_MADE = "<!-- Made by `python -m experiments.catalogue --write`; edit papers.toml instead. -->"
_RULE = """Every number comes from a run of the printed command; its `results.json` is committed in
`experiments/results`, and a page says so if the run was interrupted. A claim compares a method
with a baseline by the 95% t-interval of the paired differences over seeds, against a margin: it is
**shown** if the whole interval lies beyond the margin, **refuted** if all of it lies on the other
side, and **unresolved** if the interval holds the margin. It is **no test** where a precondition
failed, for example where the baseline did not fail and there was nothing to cure.
"""


def pages(root: pathlib.Path = catalogue.ROOT) -> dict[pathlib.Path, str]:
  """The pages as they should read.

  Args:
    root: the repository.

  Returns:
    A dict from path to content: `docs/papers.md`, a page per paper, and `README.md` with the table
    between its markers.

  Raises:
    ValueError: if a committed result belongs to no paper or breaks the rules, or `README.md` has
      not both markers, in order.
  """
  papers = catalogue.load_papers(root / "experiments" / "papers.toml")
  results = root / "experiments" / "results"
  strangers = sorted(path.name for path in results.glob("*.json") if path.stem not in papers)
  if strangers:
    raise ValueError(f"{results.name}/{strangers[0]} belongs to no paper of the catalogue.")
  stored = {slug: _checked(slug, results) for slug in papers}
  texts = {root / "docs" / "papers.md": _index(papers, stored)}
  for slug, paper in papers.items():
    has_figure = (root / "experiments" / "figures" / f"{slug}.png").exists()
    selection = catalogue.measured(slug, root / "experiments" / "selections")
    page = _page(paper, stored[slug], has_figure, selection)
    texts[root / "docs" / "papers" / f"{slug}.md"] = page
  readme = root / "README.md"
  first = [paper for paper in papers.values() if stored[paper.slug]][:_IN_README]
  texts[readme] = _between_markers(readme, _table(first, stored, "docs/papers"))
  return texts


def stale(root: pathlib.Path = catalogue.ROOT) -> list[pathlib.Path]:
  """The pages that are missing, differ from what they should be, or belong to no paper."""
  wanted = pages(root)
  different = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
  return different + [p for p in (root / "docs" / "papers").glob("*.md") if p not in wanted]


def write(root: pathlib.Path = catalogue.ROOT) -> list[pathlib.Path]:
  """Brings the pages and the picture of all headlines up to date; returns what changed."""
  changed, wanted = stale(root), pages(root)
  for path in changed:
    if path in wanted:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(wanted[path], encoding="utf-8")
    else:
      path.unlink()
  if changed or not (root / "docs" / "headlines.png").exists():
    _draw_headlines(root)
  return changed


def _checked(slug: str, results: pathlib.Path) -> dict[str, Any] | None:
  stored = catalogue.measured(slug, results)
  if stored and (stored["slug"], stored["preset"]) != (slug, "laptop"):
    raise ValueError(
      f"{results.name}/{slug}.json holds results of {stored['slug']!r} with preset "
      f"{stored['preset']!r}; only those of {slug!r} with 'laptop' are quoted."
    )
  return stored


def _index(papers: Mapping[str, Paper], stored: Mapping[str, Any]) -> str:
  lines = ["# Papers and measured claims", "", _MADE, "", _RULE]
  for family in dict.fromkeys(paper.family for paper in papers.values()):
    members = [paper for paper in papers.values() if paper.family == family]
    lines += [f"## {family.replace('_', ' ').capitalize()}", "", _table(members, stored, "papers")]
  # The site nests the pages under this one.
  lines += ["```{toctree}", ":hidden:", ":glob:", "", "papers/*", "```", ""]
  return "\n".join(lines)


def _table(papers: list[Paper], stored: Mapping[str, Any], folder: str) -> str:
  """One line per paper: title, headline claim, numbers, verdict."""
  rows = ["| Paper | Headline claim | Measured | Verdict |", "| --- | --- | --- | --- |"]
  for paper in papers:
    claims = catalogue.claims_of(stored[paper.slug])
    headline = catalogue.headline_of(claims)
    cells = [f"[{_cell(paper.title)}]({folder}/{paper.slug}.md), {_cell(paper.venue)}"]
    if headline is None:
      cells += [_cell(paper.claim), "", "not measured"]
    else:
      others = [claim for claim in claims if not claim.headline]
      also = f"; of {len(others)} more: {catalogue.tally(others)}" if others else ""
      cells += [_cell(headline.text), _numbers(headline), f"**{headline.verdict}**{also}"]
    rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows) + "\n"


def _page(
  paper: Paper,
  stored: Mapping[str, Any] | None,
  has_figure: bool,
  selection: Mapping[str, Any] | None,
) -> str:
  lines = [f"# {paper.title}", "", _MADE, "", f"[{paper.venue}]({paper.link}) · {paper.family}", ""]
  lines += [f"> {paper.claim}", "", paper.idea, "", "$$", paper.equation.strip(), "$$", ""]
  lines += ["```python", paper.snippet.strip(), "```", "", "## Run", ""]
  command = stored["command"] if stored else f"python -m {paper.experiment}"
  lines += ["```", command, "```", ""]
  lines += [f"- `--preset={preset}`: {cost}" for preset, cost in paper.cost.items()]
  if selection:
    lines += ["", "Settings were chosen beforehand, on other seeds, by", ""]
    lines += ["```", selection["command"], "```"]
  lines += ["", "## Measured", ""]
  lines += _measured(stored) if stored else ["Nothing was measured yet.", ""]
  if has_figure:
    lines += [f"![{paper.title}](../../experiments/figures/{paper.slug}.png)", ""]
  if paper.deviations:
    lines += ["## Differences from the paper", "", *(f"- {d}" for d in paper.deviations), ""]
  lines += ["## Functions", "", ", ".join(f"`{name}`" for name in paper.functions), ""]
  return "\n".join(lines)


def _measured(stored: Mapping[str, Any]) -> list[str]:
  claims = catalogue.claims_of(stored)
  unbroken = stored["wall_seconds"]
  took = f"{unbroken / 60:.0f} minutes" if unbroken else "an interrupted run"
  lines = [
    f"Preset {stored['preset']}, {stored['seeds']} seeds, {took} on {stored['device']}, "
    f"JAX {stored['versions']['jax']}.",
    "",
    "| | Claim | Method, baseline | Difference [95% interval] | Margin | Paper |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for claim in claims:
    text = f"**{claim.text}**" if claim.headline else claim.text
    both = f"{claim.measured:.4g}, {claim.baseline:.4g}"
    cells = (claim.verdict, text, both, _numbers(claim), f"{claim.margin:g}", format_paper(claim))
    lines.append(f"| {' | '.join(map(_cell, cells))} |")
  conditions = dict.fromkeys(condition for claim in claims for condition in claim.requires)
  if conditions:
    lines += ["", "Preconditions:", ""]
    lines += [
      f"- {'met' if c.met else '**not met**'}: {c.text} (measured {c.measured:.4g})"
      for c in conditions
    ]
  return [*lines, ""]


def _numbers(claim: Claim) -> str:
  low, high = claim.interval
  if not math.isfinite(low):
    return f"{claim.difference:+.3g}, {claim.seeds} seed"
  return f"{claim.difference:+.3g} [{low:+.3g}, {high:+.3g}]"


def _draw_headlines(root: pathlib.Path) -> None:
  """Every headline's difference less its margin, each scaled to its own interval."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  papers = catalogue.load_papers(root / "experiments" / "papers.toml")
  results = root / "experiments" / "results"
  rows = {s: catalogue.headline_of(catalogue.claims_of(_checked(s, results))) for s in papers}
  rows = {s: c for s, c in rows.items() if c and math.isfinite(c.interval[0])}
  if not rows:
    return
  figure, ax = plt.subplots(figsize=(9.5, 0.9 + 0.3 * len(rows)), layout="constrained")
  for i, claim in enumerate(rows.values()):
    low, middle, high = (
      x - claim.margin for x in (claim.interval[0], claim.difference, claim.interval[1])
    )
    scale = max(abs(low), abs(high)) or 1.0
    color = _COLORS[claim.verdict]
    ax.plot([low / scale, high / scale], [i, i], color=color, lw=2)
    ax.plot(middle / scale, i, "o", color=color)
    ax.text(1.1, i, f"{_numbers(claim)}, margin {claim.margin:g}", va="center", fontsize=8)
  for verdict, color in _COLORS.items():
    ax.plot([], [], "o-", color=color, label=verdict)
  ax.spines[["top", "right", "left"]].set_visible(False)
  ax.axvline(0.0, color="black", lw=0.8)
  ax.set_yticks(range(len(rows)), rows)
  ax.set(xlim=(-1.05, 1.05), xticks=[-1, 0, 1], ylim=(len(rows) - 0.5, -0.5))
  ax.set_xticklabels(["worse", "margin", "better"])
  ax.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
  figure.savefig(root / "docs" / "headlines.png", dpi=110)
  plt.close(figure)


def _between_markers(path: pathlib.Path, content: str) -> str:
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  begin, end = text.find(_BEGIN), text.find(_END)
  if not 0 <= begin < end:
    raise ValueError(f"{path.name} needs the lines {_BEGIN} and {_END}, in this order.")
  return f"{text[: begin + len(_BEGIN)]}\n{content}{text[end:]}"


def _cell(text: str) -> str:
  return " ".join(str(text).split()).replace("|", "\\|")
