import json
import math

import numpy as np
import pytest

from jaxlab import experiment
from jaxlab.experiment import Results, records, report, workdir


def results():
  made = Results()
  for dataset, shift in (("digits", 0.0), ("mnist1d", 1.0)):
    made.add(
      {
        m: {"accuracy": [shift + i, shift + i + 0.5], "loss": [1.0, 2.0]}
        for i, m in enumerate("ab")
      },
      dataset=dataset,
    )
  made.add({"a": {"accuracy": [9.0, 9.5]}}, dataset="digits", shots=5)
  made.add({"floor": {"accuracy": 0.1}})
  return made


def test_select_gives_one_number_per_seed():
  made = results()
  np.testing.assert_array_equal(made.select("accuracy", method="b", dataset="mnist1d"), [2.0, 2.5])
  np.testing.assert_array_equal(made.select("accuracy", method="a", shots=5), [9.0, 9.5])
  np.testing.assert_array_equal(
    made.select("accuracy", method="b", average=("dataset",)), [1.5, 2.0]
  )
  assert made.select("accuracy", method="floor") == 0.1
  # None asks for the records without that setting.
  np.testing.assert_array_equal(
    made.select("accuracy", method="a", dataset="digits", shots=None), [0.0, 0.5]
  )


@pytest.mark.parametrize(
  ("where", "message"),
  [
    ({"method": "a", "dataset": "mnist1"}, "no record has quantity 'accuracy', method 'a', datas"),
    ({"method": "b"}, r"has 2 values of dataset \('digits', 'mnist1d'\): name one"),
    ({"method": "a", "dataset": "digits"}, r"2 values of shots \(None, 5\)"),
    ({"dataset": "mnist1d"}, r"2 values of method \('a', 'b'\)"),
    ({"average": ("dataset",), "shots": None}, r"3 values of method \('a', 'b', 'floor'\)"),
  ],
)
def test_select_refuses_what_is_missing_or_ambiguous(where, message):
  with pytest.raises(ValueError, match=message):
    results().select("accuracy", **where)


def test_distinct_and_matching_keep_the_order():
  made = results()
  assert made.distinct("method") == ["a", "b", "floor"]
  assert made.distinct("dataset", method="b") == ["digits", "mnist1d"]
  assert made.distinct("shots") == [5]
  assert made.distinct("quantity") == ["accuracy", "loss"]
  assert [r.method for r in made.matching(quantity="loss", dataset="digits")] == ["a", "b"]
  assert len(made) == len(list(made)) == 10


def test_add_refuses():
  made = results()
  with pytest.raises(ValueError, match="two records with method 'a', quantity 'loss', dataset"):
    made.add({"a": {"loss": [1.0, 2.0]}}, dataset="digits")
  with pytest.raises(ValueError, match="must hold one number per seed, got an array of shape"):
    made.add({"c": {"loss": [[1.0, 2.0]]}})
  with pytest.raises(ValueError, match="must not be named 'values'"):
    made.add({"c": {"loss": [1.0]}}, values=3)
  with pytest.raises(ValueError, match=r"setting sizes must be text, a number or None, got \(1,"):
    made.add({"c": {"loss": [1.0]}}, sizes=(1, 2))


def test_quantity_is_mean_and_standard_error():
  values = [1.0, 2.0, 4.0, 7.5]
  mean = sum(values) / 4
  variance = sum((v - mean) ** 2 for v in values) / 3
  measured = experiment.quantity(values)
  np.testing.assert_allclose(measured, (mean, math.sqrt(variance / 4)), rtol=1e-12)
  assert experiment.quantity([2.0]).mean == experiment.quantity(2.0).mean == 2.0
  assert math.isnan(experiment.quantity([2.0]).standard_error)
  for wrong in ([], [[1.0, 2.0]]):
    with pytest.raises(ValueError, match="values must hold one number per seed"):
      experiment.quantity(wrong)


def test_records_survive_storage():
  made = Results(extras={"grid": np.arange(3)})
  made.add({"a": {"x": [1, math.nan, math.inf]}}, noise=0.5, kind=None)
  made.add({"a": {"y": 3}})
  text = json.dumps(workdir.encode_json(records.to_stored(made)), allow_nan=False)
  again = records.from_stored(json.loads(text), made.extras)
  np.testing.assert_array_equal(again.select("x", method="a"), made.select("x", method="a"))
  assert again.records[0].setting == {"noise": 0.5, "kind": None}
  assert again.select("y", method="a") == 3.0 and again.extras is not None


def test_tables_show_digits_that_mean_something(capsys):
  assert report.format_quantity([0.1234, 0.1239]) == "0.12365 ± 0.00025"
  assert report.format_quantity([1000.0, 3000.0]) == "2000 ± 1e+03"
  assert report.format_quantity(3.0) == "3"
  report.print_report("Title", results(), [])
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines[0] == ["Title"]
  assert ["method", "dataset", "accuracy", "loss"] in lines
  assert ["b", "mnist1d", "2.25", "±", "0.25", "1.50", "±", "0.50"] in lines
  # The rows of another set of quantities stand in a table of their own.
  assert ["method", "dataset", "shots", "accuracy"] in lines
  assert ["a", "digits", "5", "9.25", "±", "0.25"] in lines and ["floor", "0.1"] in lines


def test_a_method_that_diverged_is_shown_as_diverged(capsys):
  made = results()
  made.add({"hot": {"accuracy": [math.nan, 0.5], "loss": [math.inf, 0.5], "time": [1.0, 1.0]}})
  assert made.diverged() == {"hot": ["accuracy", "loss"]}
  report.print_report("T", made, [experiment.compare("c", made.select("loss", method="hot"), 0.0)])
  out = capsys.readouterr().out
  assert "not finite in 1 of 2 seeds" in out and "nan" not in out.split("no test")[0]
  assert "hot diverged, or had nothing to measure: accuracy, loss\n" in out
  assert out.endswith("not judged: no finite values of hot\n")


def test_wide_tables_are_cut_and_curves_are_counted(capsys):
  made = Results()
  made.add({"ours": {f"q{i}": [1.0, 2.0] for i in range(8)}})
  for step in range(70):
    made.add({"ours": {"loss": [1.0, 2.0]}}, step=step)
  report.print_report("T", made, [])
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ["method", *(f"q{i}" for i in range(6))] in lines and ["method", "q6", "q7"] in lines
  assert ["loss:", "70", "records,", "in", "results.json"] in lines


def test_times_are_not_reproducible():
  rows = [{"method": "a", "quantity": q, "values": [1.0]} for q in ("nll", "fit seconds")]
  content = {"wall_seconds": 3.0, "seeds": 1, "records": rows, "claims": []}
  assert report.reproducible(content) == {"seeds": 1, "records": rows[:1], "claims": []}
