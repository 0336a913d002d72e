r"""Finds labels that are probably wrong, by the probabilities of a model that did not see them.

  jaxlab audit --probabilities=PROBS.npz --labels=LABELS.npy --out=DIR/name
  jaxlab audit --table=FILE.csv --label=COLUMN --model=boosted --out=DIR/name

PROBS.npz (or .npy) holds floats [rows, classes]: out-of-sample probabilities, such as those of
cross-validation. LABELS.npy holds integers [rows]; classes count from 0. Of an .npz the only array
counts, or the one called probabilities, or labels.

FILE.csv has a first line of names. Its labels are predicted here, by scikit-learn and
cross-validation: from all other columns, numbers and texts, of which entries may be missing.

OUT.csv gets the suspect labels, the worst first:

  row, line        position among the rows, from 0; line of FILE.csv
  label, predicted  the label, and the most probable class
  quality          how well the label fits, by --quality: 0 is worst
  label_prob, predicted_prob
                   probabilities of both classes

OUT.json gets counts, thresholds, the estimated joint distribution of labels and true classes (rows
are labels) and the noise that it implies; OUT.png the joint and the quality, where matplotlib is
installed. All are written anew.
"""

import csv
import dataclasses
import functools
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import metrics
from jaxlab._checks import check_range
from jaxlab._extras import import_extra
from jaxlab._programs import map_over_rows
from jaxlab.commands import labeled_files, program
from jaxlab.commands.labeled_files import Labeled, Model
from jaxlab.experiment import UsageError, workdir

REQUIRED = ("out",)
_OF_TABLE = ("label", "model", "num_folds")
_COLUMNS = ("row", "line", "label", "predicted", "quality", "label_prob", "predicted_prob")
_PAIRS = 20  # Pairs of classes that are most confused.
_SHOWN = 5  # Of them, of suspects and of classes without labels, that are printed.
_NAMED, _WRITTEN = 40, 12  # Classes whose names fit beside a picture, and numbers into it.


@dataclasses.dataclass(frozen=True)
class Config:
  """Whose labels are audited, and how."""

  probabilities: str | None = None  # File of probabilities, .npz or .npy.
  labels: str | None = None  # File of labels, .npy or .npz.
  table: str | None = None  # CSV file in place of both.
  label: str | None = None  # Of the table: column of the labels.
  model: Model | None = None  # Of the table: what predicts labels; none: logistic.
  num_folds: int | None = None  # Of the table: parts of cross-validation; none: 5.
  out: str = ""  # Beginning of the names of what is written.
  # What flags a label: `jaxlab.metrics.find_label_issues` explains the methods.
  method: Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"
  ] = "prune_by_noise_rate"
  # What ranks the labels: `jaxlab.metrics.label_quality` explains the scores.
  quality: Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"] = (
    "self_confidence"
  )
  fraction: float = 1.0  # Of the estimated errors that the first three methods flag.
  seed: int = 0  # Of the table: of the folds and the model.

  def __post_init__(self):
    check_range("fraction", self.fraction, "(0, 1]")
    check_range("seed", self.seed, "[0, 4294967295]")
    if self.num_folds is not None:
      check_range("num_folds", self.num_folds, "[2, inf)")
    if self.table is not None and (self.probabilities or self.labels):
      raise ValueError("table stands in place of probabilities and labels.")
    for name in _OF_TABLE:
      if self.table is None and getattr(self, name) is not None:
        raise ValueError(f"{name} {getattr(self, name)} is of a table; there is none.")

  @property
  def of_table(self) -> dict[str, Any]:
    """How labels of a table are predicted."""
    options = {"model": self.model or "logistic", "num_folds": self.num_folds or 5}
    return options | {"seed": self.seed}


class Found(NamedTuple):
  """What is found of every row, `[n]` each.

  Attributes:
    is_suspect: whether the label is probably wrong.
    quality: how well it fits, small values being suspicious.
    predicted: the most probable class.
    predicted_prob: its probability.
    label_prob: probability of the label.
  """

  is_suspect: np.ndarray
  quality: np.ndarray
  predicted: np.ndarray
  predicted_prob: np.ndarray
  label_prob: np.ndarray


def run(config: Config) -> int:
  """Audits, prints, and writes suspects, numbers and pictures.

  Args:
    config: whose labels are audited, and how.

  Returns:
    The exit status.

  Raises:
    UsageError: if the files cannot be used or the output cannot be written.
  """
  out = pathlib.Path(config.out)
  files = {end: out.with_name(f"{out.name}.{end}") for end in ("csv", "json", "png")}
  program.check_can_be_made("out", files["json"])
  rows = _read(config)
  probs, labels = jnp.asarray(rows.probs), jnp.asarray(rows.labels)
  rows = rows._replace(probs=None)  # They are on the device, and once is enough.
  options = {"method": config.method, "quality": config.quality}
  found, estimates = jax.device_get(_audit(probs, labels, config.fraction, **options))
  report = _report(config, rows, found, estimates)
  suspects = _suspects(rows, found)
  _print(report, suspects)
  with program.usage_errors(f"--out={out}"):
    columns = [name for name in _COLUMNS if name != "line" or rows.lines is not None]
    content = _as_csv(suspects, columns)
    workdir.write_atomic(files["csv"], lambda file: file.write(content))
    workdir.save_json(files["json"], report)
    if not _draw(files["png"], report, found):
      del files["png"]
  print(f"saved {', '.join(map(str, files.values()))}", flush=True)
  return 0


def _read(config: Config) -> Labeled:
  if config.table is None:
    for name in ("probabilities", "labels"):
      if getattr(config, name) is None:
        raise UsageError(f"--{name} must be given, or --table in place of both.")
    return labeled_files.read_arrays(config.probabilities, config.labels)
  if config.label is None:
    raise UsageError("--label must be given: the column of the labels of --table.")
  table = labeled_files.read_table(config.table, config.label)
  num_rows, num_columns = table.inputs.shape
  print(f"predicts {num_rows} labels by {num_columns} columns", flush=True)
  with program.usage_errors(f"--table={config.table}"):
    return labeled_files.cross_validate(table, **config.of_table)


@functools.partial(jax.jit, static_argnames=("method", "quality"))
def _audit(probs, labels, fraction, *, method: str, quality: str):
  """What is found of every row, and estimates of classes by their names."""

  def predict(probs, labels):
    own = jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
    return jnp.argmax(probs, axis=1), jnp.max(probs, axis=1), own

  thresholds = metrics.confident_thresholds(probs, labels)
  counts = metrics.confident_joint(probs, labels, thresholds=thresholds)
  estimates = {
    "number": metrics.num_label_issues(probs, labels),
    "thresholds": thresholds,
    "counts": counts,
    "joint": metrics.estimate_joint(counts),
    **metrics.noise_matrices(counts)._asdict(),
  }
  found = Found(
    metrics.find_label_issues(probs, labels, method=method, fraction=fraction),
    metrics.label_quality(probs, labels, method=quality),
    *map_over_rows(predict, probs, labels, width=probs.shape[1]),
  )
  return found, estimates


def _report(
  config: Config, rows: Labeled, found: Found, estimates: dict[str, np.ndarray]
) -> dict[str, Any]:
  """What OUT.json gets."""
  names, num_classes = rows.names, len(rows.names)
  sizes = np.bincount(rows.labels, minlength=num_classes)
  suspects = np.bincount(rows.labels[found.is_suspect], minlength=num_classes)
  number, counts = int(estimates.pop("number")), estimates.pop("counts")
  estimates = {name: np.float64(x).round(8) for name, x in estimates.items()}
  # The threshold of a class without labels is never reached.
  thresholds = np.where(sizes > 0, estimates.pop("thresholds"), np.nan)
  wrong = counts * (1 - np.eye(num_classes, dtype=int))
  order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
  pairs = [divmod(int(place), num_classes) for place in order if wrong.flat[place]]
  settings = ("method", "quality", "fraction")
  return {
    "rows": len(rows.labels),
    "classes": num_classes,
    **{name: getattr(config, name) for name in settings},
    **({} if config.table is None else config.of_table),
    "columns_left_out": rows.left_out,
    "accuracy": float(np.mean(found.predicted == rows.labels)),
    "suspects": int(suspects.sum()),
    "confident_learning_issues": number,
    "classes_without_labels": [names[i] for i in np.flatnonzero(sizes == 0)],
    "by_class": [
      {"class": names[i], "labels": sizes[i], "suspects": suspects[i], "threshold": thresholds[i]}
      for i in range(num_classes)
    ],
    "most_confused": [
      {"label": names[given], "true": names[true], "rows": wrong[given, true]}
      for given, true in pairs
    ],
    "confident_joint": counts,
    **estimates,
  }


def _suspects(rows: Labeled, found: Found) -> list[dict[str, Any]]:
  """The suspect labels, the worst first."""
  order = np.flatnonzero(found.is_suspect)
  order = order[np.argsort(found.quality[order], kind="stable")]
  return [
    {
      "row": row,
      **({} if rows.lines is None else {"line": rows.lines[row]}),
      "label": rows.names[rows.labels[row]],
      "predicted": rows.names[found.predicted[row]],
      **{
        name: f"{getattr(found, name)[row]:.6f}"
        for name in ("quality", "label_prob", "predicted_prob")
      },
    }
    for row in order.tolist()
  ]


def _as_csv(suspects: list[dict[str, Any]], columns: Sequence[str]) -> bytes:
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(suspects)
  return text.getvalue().encode()


def _print(report: dict[str, Any], suspects: list[dict[str, Any]]) -> None:
  for name, why in report["columns_left_out"].items():
    print(f"column {name!r} was left out: {why}")
  print(
    f"{report['rows']} rows, {report['classes']} classes; the most probable class is the label in "
    f"{report['accuracy']:.1%}"
  )
  missing = report["classes_without_labels"]
  if missing:
    shown = ", ".join(map(str, missing[:_SHOWN])) + ", ..." * (len(missing) > _SHOWN)
    print(f"{len(missing)} classes without a label, which no row is found to be of: {shown}")
  print(
    f"{report['suspects']} labels are suspect ({report['suspects'] / report['rows']:.1%}) by "
    f"{report['method']}, {report['confident_learning_issues']} are issues of confident learning"
  )
  for pair in report["most_confused"][:_SHOWN]:
    print("  label {label!r}, probably {true!r}: {rows} rows".format(**pair))
  for suspect in suspects[:_SHOWN]:
    place = f"line {suspect['line']}" if "line" in suspect else f"row {suspect['row']}"
    told = "  {label!r}, predicted {predicted!r} at {predicted_prob}, quality {quality}"
    print(f"{place:>12}:" + told.format(**suspect))


def _draw(path: pathlib.Path, report: dict[str, Any], found: Found) -> bool:
  """Draws the joint off its diagonal, and the quality of labels; False without matplotlib."""
  try:
    figures = import_extra("matplotlib.figure", extra="plots")
  except ImportError as error:
    print(f"no picture: {error}")
    return False
  figure = figures.Figure(figsize=(10.5, 4.5), layout="constrained")
  left, right = figure.subplots(1, 2)
  shares = 100 * report["joint"]
  diagonal = np.eye(len(shares), dtype=bool)
  image = left.imshow(np.where(diagonal, np.nan, shares), cmap="Reds", vmin=0)
  figure.colorbar(image, label="% of rows, where label and true class differ")
  names = [str(row["class"]) for row in report["by_class"]]
  if len(names) <= _NAMED:
    left.set_xticks(range(len(names)), names, rotation=90)
    left.set_yticks(range(len(names)), names)
  if len(names) <= _WRITTEN:
    for (i, j), share in np.ndenumerate(shares):
      left.text(j, i, f"{share:.1f}", ha="center", va="center", fontsize=7)
  left.set(xlabel="true class, estimated", ylabel="label", title="joint distribution (%)")
  _, bins, _ = right.hist(found.quality, bins=50, color="lightgray", label="all labels")
  right.hist(found.quality[found.is_suspect], bins=bins, color="tab:red", label="suspect ones")
  right.set(xlabel=f"quality of a label, {report['quality']}", ylabel="rows", yscale="log")
  right.legend(fontsize=8)
  workdir.write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))
  return True


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
