import contextlib
import csv
import io
import json
import sys

import jax
import numpy as np
import pytest
import threadpoolctl

from jaxlab import metrics
from jaxlab.commands import audit, labeled_files, program

N, K = 60, 4


def execute(*arguments):
  """Exit status, what was printed, and what was said of errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(audit, ["audit", *map(str, arguments)])
  return status, out.getvalue(), err.getvalue()


def draw(seed=0):
  """Probabilities of a good model, and labels of which some are wrong."""
  rng = np.random.default_rng(seed)
  true = rng.integers(0, K, N)
  logits = rng.normal(size=(N, K)) + 4 * np.eye(K)[true]
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = np.where(rng.random(N) < 0.2, (true + 1) % K, true)
  return probs.astype(np.float32), labels


def audited(directory, probs, labels, *arguments, save=np.savez):
  path = directory / ("probs.npz" if save is np.savez else "probs.npy")
  save(path, probs)
  np.save(directory / "labels.npy", labels)
  files = f"--probabilities={path}", f"--labels={directory / 'labels.npy'}"
  status, out, err = execute(*files, f"--out={directory / 'audit'}", *arguments)
  return status, out, err, *written(directory)


def written(directory):
  if not (directory / "audit.json").exists():
    return None, None
  with open(directory / "audit.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  return json.loads((directory / "audit.json").read_text()), rows


@pytest.mark.parametrize("save", [np.savez, np.save])
def test_suspects_and_estimates_are_those_of_the_functions(tmp_path, save):
  probs, labels = draw()
  status, out, err, report, suspects = audited(tmp_path, probs, labels, save=save)
  assert (status, err) == (0, "")

  @jax.jit
  def expected(probs, labels):
    counts = metrics.confident_joint(probs, labels)
    return {
      "issues": metrics.find_label_issues(probs, labels),
      "number": metrics.num_label_issues(probs, labels),
      "counts": counts,
      "joint": metrics.estimate_joint(counts),
      "thresholds": metrics.confident_thresholds(probs, labels),
      **metrics.noise_matrices(counts)._asdict(),
    }

  wanted = jax.device_get(expected(probs, labels))
  rows = [int(suspect["row"]) for suspect in suspects]
  assert sorted(rows) == np.flatnonzero(wanted["issues"]).tolist() and len(rows) > 2
  own = probs[rows, labels[rows]]
  assert (np.diff(own) >= 0).all()
  assert list(suspects[0]) == [
    "row",
    "label",
    "predicted",
    "quality",
    "label_prob",
    "predicted_prob",
  ]
  for suspect, row, prob in zip(suspects, rows, own):
    best = probs[row].argmax()
    assert (int(suspect["label"]), int(suspect["predicted"])) == (labels[row], best)
    numbers = [float(suspect[name]) for name in ("quality", "label_prob", "predicted_prob")]
    np.testing.assert_allclose(numbers, [prob, prob, probs[row, best]], atol=1e-6)
  assert report["suspects"] == len(rows) and report["confident_learning_issues"] == wanted["number"]
  np.testing.assert_array_equal(report["confident_joint"], wanted["counts"])
  for name in ("joint", "prior", "noise", "inverse_noise"):
    np.testing.assert_allclose(report[name], wanted[name], atol=1e-7)
  by_class = report["by_class"]
  np.testing.assert_allclose([x["threshold"] for x in by_class], wanted["thresholds"], atol=1e-7)
  assert [x["labels"] for x in by_class] == np.bincount(labels, minlength=K).tolist()
  assert sum(x["suspects"] for x in by_class) == len(rows)
  first = report["most_confused"][0]
  off = wanted["counts"] * (1 - np.eye(K, dtype=int))
  assert first["rows"] == off.max() == off[first["label"], first["true"]]
  assert report["accuracy"] == np.mean(probs.argmax(1) == labels)
  assert f"{len(rows)} labels are suspect" in out and "audit.png" in out
  assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_methods_and_scores_are_chosen_and_runs_are_alike(tmp_path):
  probs, labels = draw()
  options = "--method=predicted_neq_given", "--quality=normalized_margin"
  first = audited(tmp_path, probs, labels, *options)
  assert first == audited(tmp_path, probs, labels, *options)
  _, _, _, report, suspects = first
  rows = [int(suspect["row"]) for suspect in suspects]
  assert sorted(rows) == np.flatnonzero(probs.argmax(1) != labels).tolist()
  margins = [float(suspect["quality"]) for suspect in suspects]
  assert margins == sorted(margins) and max(margins) < 0.5
  assert (report["method"], report["quality"]) == ("predicted_neq_given", "normalized_margin")


def test_a_class_without_labels_and_no_suspect_at_all(tmp_path):
  labels = np.arange(N) % 2
  status, out, _, report, suspects = audited(tmp_path, np.eye(K)[labels], labels)
  assert status == 0 and suspects == [] and report["classes_without_labels"] == [2, 3]
  assert "2 classes without a label, which no row is found to be of: 2, 3" in out
  assert report["by_class"][2] == {"class": 2, "labels": 0, "suspects": 0, "threshold": "nan"}
  assert (tmp_path / "audit.csv").read_text().startswith("row,label,predicted,")


@pytest.mark.shipping
def test_a_million_rows_of_a_thousand_classes_are_not_copied():
  shapes = ((10**6, 1000), np.float32), ((10**6,), np.int32)
  arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  options = {"method": "both", "quality": "normalized_margin"}
  memory = audit._audit.lower(*arrays, 1.0, **options).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.1 * memory.argument_size_in_bytes


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  status, out, *_ = audited(tmp_path, *draw())
  assert status == 0 and "no picture: matplotlib is needed here" in out
  assert "jaxlab[plots]" in out and not (tmp_path / "audit.png").exists()
  assert (tmp_path / "audit.json").exists() and (tmp_path / "audit.csv").exists()


def changed(at, value):
  probs, labels = draw()
  probs[at] = value
  return probs, labels


@pytest.mark.parametrize(
  "probs, labels, message",
  [
    (*changed(17, 0.5), "probs.npz: probabilities must sum to 1, got 2.0 in row 17."),
    (*changed((8, 2), np.nan), "probs.npz: probabilities must sum to 1, got nan in row 8."),
    (*changed(5, [1.5, -0.5, 0, 0]), "probabilities must not be negative, got -0.5 in row 5."),
    (draw()[0], np.arange(N), "labels.npy must lie in [0, 4), the classes of"),
    (draw()[0], np.arange(N) - 1, "row 0 has -1."),
    (draw()[0], draw()[1][:-1], "labels.npy has 59 rows, --probabilities="),
    (draw()[0], draw()[1] + 0.5, "must hold integers [rows], got float64 of shape [60]."),
    (draw()[0][0], draw()[1], "must hold floats [rows, classes], got float32 of shape [4]."),
    (np.eye(4, dtype=int)[draw()[1]], draw()[1], "must hold floats [rows, classes], got int64"),
    (np.ones((N, 1)), draw()[1], "must have rows and at least 2 classes, got shape [60, 1]."),
    (np.ones((0, 4)), np.arange(0), "must have rows and at least 2 classes, got shape [0, 4]."),
  ],
)
def test_arrays_that_cannot_be_used(tmp_path, probs, labels, message):
  status, out, err, *found = audited(tmp_path, probs, labels)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1
  assert found == [None, None]


def test_files_that_cannot_be_read(tmp_path):
  np.savez(tmp_path / "two.npz", a=draw()[0], b=draw()[0])
  np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
  whole = io.BytesIO()
  np.savez(whole, draw()[0])
  (tmp_path / "cut.npz").write_bytes(whole.getvalue()[:200])
  (tmp_path / "empty.npy").touch()
  np.save(tmp_path / "labels.npy", draw()[1])
  for name, message in (
    ("none.npz", "No such file"),
    ("two.npz", "must have an array 'probabilities', there is a, b."),
    ("objects.npy", "Python objects in dtype"),
    ("cut.npz", "is a damaged file"),
    ("empty.npy", "is a damaged file"),
  ):
    files = f"--probabilities={tmp_path / name}", f"--labels={tmp_path / 'labels.npy'}"
    status, _, err = execute(*files, f"--out={tmp_path / 'audit'}")
    assert status == 2 and f"--probabilities={tmp_path / name}" in err and message in err
  np.savez(tmp_path / "named.npz", probabilities=draw()[0], b=draw()[0])
  files = f"--probabilities={tmp_path / 'named.npz'}", f"--labels={tmp_path / 'labels.npy'}"
  assert execute(*files, f"--out={tmp_path / 'audit'}")[0] == 0


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "--out must be given"),
    (["--out=a"], "--probabilities must be given, or --table in place of both."),
    (["--out=a", "--probabilities=p"], "--labels must be given, or --table in place of both."),
    (["--out=a", "--table=t"], "--label must be given: the column of the labels of --table."),
    (["--out=a", "--table=t", "--labels=l"], "table stands in place of probabilities and labels."),
    (["--out=a", "--probabilities=p", "--model=boosted"], "model boosted is of a table"),
    (["--out=a", "--fraction=0"], "fraction must lie in (0, 1], got 0.0."),
    (["--out=a", "--table=t", "--num_folds=1"], "num_folds must lie in [2, inf), got 1."),
    (["--out=a", "--method=best"], "one of prune_by_noise_rate, prune_by_class, both"),
  ],
)
def test_what_cannot_be_obeyed(arguments, message):
  status, out, err = execute(*arguments)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_output_that_cannot_be_written_is_found_first(tmp_path):
  (tmp_path / "file").write_text("")
  status, out, err = execute(f"--out={tmp_path / 'file' / 'x'}", "--table=nothing", "--label=a")
  assert (status, out) == (2, "") and f"--out={tmp_path / 'file' / 'x.json'} cannot be made" in err


# ------------------------------------------------------------------------------------------ tables


def table_text(num=90, seed=0):
  """A table whose label is told by a number, or where that is missing by a text."""
  rng = np.random.default_rng(seed)
  kinds = np.array(["cat", "dog", "owl"])
  true = rng.integers(0, 3, num)
  labels = np.where(rng.random(num) < 0.1, (true + 1) % 3, true)
  lines = ["size,color,note,empty,kind"]
  for i, (a, b) in enumerate(zip(true, labels)):
    size = "" if i % 7 == 0 else f"{3 * a + 0.3 * rng.normal():.3f}"
    lines.append(f'{size},"col,{a}",free text {i},,{kinds[b]}')
  return "\n".join(lines) + "\n", true, labels, kinds


@pytest.mark.parametrize("model", ["logistic", "boosted"])
def test_a_table_is_predicted_from_its_columns(tmp_path, model):
  text, true, labels, kinds = table_text()
  (tmp_path / "t.csv").write_text(text)
  arguments = f"--table={tmp_path / 't.csv'}", "--label=kind", f"--model={model}"
  arguments += "--num_folds=3", f"--out={tmp_path / 'audit'}"
  with threadpoolctl.threadpool_limits(1):  # Threads of two workers wait for each other.
    status, out, err = execute(*arguments)
  assert (status, err) == (0, "") and "predicts 90 labels by 3 columns" in out
  report, suspects = written(tmp_path)
  assert report["columns_left_out"] == {"empty": "it is empty"}
  assert [x["class"] for x in report["by_class"]] == kinds.tolist()
  rows = np.array([int(suspect["row"]) for suspect in suspects])
  wrong = np.flatnonzero(true != labels)
  assert len(set(rows) & set(wrong)) >= 0.7 * len(wrong) and np.isin(rows, wrong).mean() >= 0.7
  for suspect, row in zip(suspects, rows):
    assert int(suspect["line"]) == row + 2 and suspect["label"] == kinds[labels[row]]
  settings = {"model": model, "num_folds": 3, "seed": 0}
  assert settings.items() <= report.items()


def test_columns_of_numbers_and_texts_are_told_apart(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text('\ufeffa , b,id,"y"\n1,x,i0,10\nnan,,i1,9\n\n-2e1,"x\ny",i2,9\n3,x,i3,10\n')
  table = labeled_files.read_table(str(path), "y")
  assert table.names == ["9", "10"] and table.lines == [2, 3, 6, 7]
  np.testing.assert_array_equal(table.labels, [1, 0, 0, 1])
  np.testing.assert_array_equal(table.inputs[:, 0], [1, np.nan, -20, 3])
  np.testing.assert_array_equal(table.inputs[:, 1], [1, 0, 2, 1])
  np.testing.assert_array_equal(table.is_text, [False, True, True])
  many = "".join(f"{i},text {i},{i % 2}\n" for i in range(300))
  path.write_text("a,b,y\n" + many)
  table = labeled_files.read_table(str(path), "y")
  assert table.left_out == {"b": "it has 300 different texts, more than 255"}
  assert table.inputs.shape == (300, 1)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", " has no rows."),
    ("a,y\n", " has no rows."),
    ("a,b\n1,2\n", "--label=y is no column of"),
    ("a,a,y\n1,2,3\n", "has two columns 'a'."),
    ("a,y\n1,x\n2\n", "t.csv, line 3 has 1 entries, the first line 2."),
    ("a,y\n1,x\n2,\n", "t.csv, line 3 has no label in 'y'."),
    ("a,y\n1,x\n2,x\n", "has only one class, 'x', in the column 'y'."),
    ("a,y\n1,x\n2,x\n3,z\n", "t.csv, line 4 is the only row with label 'z'"),
    ("a,y\n1,x\ninf,x\n3,z\n4,z\n", "t.csv, line 3 is infinite in 'a'."),
    ("y\nx\nx\nz\nz\n", "has no column to predict labels by beside 'y'."),
    ('a,y\n"1,x\n', "cannot be read"),
  ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
  (tmp_path / "t.csv").write_text(text)
  status, out, err = execute(
    f"--table={tmp_path / 't.csv'}", "--label=y", f"--out={tmp_path / 'audit'}"
  )
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1
  assert written(tmp_path) == (None, None)


def test_a_missing_package_and_a_missing_table(tmp_path, monkeypatch):
  out = f"--out={tmp_path / 'audit'}"
  status, _, err = execute(f"--table={tmp_path / 'none.csv'}", "--label=y", out)
  assert status == 2 and "none.csv: " in err and "No such file" in err
  (tmp_path / "t.csv").write_text("a,y\n1,x\n2,x\n3,z\n4,z\n")
  few = f"--table={tmp_path / 't.csv'}", "--label=y", out
  status, _, err = execute(*few)
  assert status == 2 and "num_folds must be at most 4, the rows, got 5." in err
  monkeypatch.setitem(sys.modules, "sklearn.compose", None)
  status, _, err = execute(*few, "--num_folds=2")
  assert status == 2 and "sklearn is needed here" in err and "pip install 'jaxlab[sklearn]'" in err
