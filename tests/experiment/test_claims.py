import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxlab import experiment
from jaxlab.experiment import compare, precondition, report, workdir


def test_the_interval_is_that_of_a_paired_t_test():
  method, baseline = np.array([1.0, 2.0, 3.0, 3.5]), np.array([0.8, 1.9, 2.7, 3.4])
  expected = stats.ttest_rel(method, baseline).confidence_interval(0.95)
  claim = compare("c", method, baseline)
  np.testing.assert_allclose(claim.interval, expected, rtol=1e-12)
  np.testing.assert_allclose(claim.difference, np.mean(method - baseline))
  assert (claim.measured, claim.baseline, claim.seeds) == (method.mean(), baseline.mean(), 4)
  turned = compare("c", method, baseline, better="lower")
  np.testing.assert_allclose(turned.interval, np.negative(expected)[::-1], rtol=1e-12)


def test_verdicts_follow_the_interval_and_the_margin():
  method, baseline = np.array([1.0, 2.0, 3.0]), np.array([0.8, 1.9, 2.7])
  low, high = compare("c", method, baseline).interval
  verdict = lambda margin: compare("c", method, baseline, margin=margin).verdict  # noqa: E731
  assert verdict(low - 1e-9) == "shown" and verdict(low + 1e-9) == "unresolved"
  assert verdict(high - 1e-9) == "unresolved" and verdict(high + 1e-9) == "refuted"
  # Unpaired, the spread over seeds would hide this difference.
  assert compare("c", method, baseline, margin=-0.1).verdict == "shown"


def test_thresholds_and_single_numbers():
  assert compare("c", [1.0, 1.0, 1.0], 0.9).verdict == "shown"
  assert compare("c", [1.0, 1.0, 1.0], 1.0).verdict == "unresolved"  # Strictly more.
  assert compare("c", 1.0, [0.9, 0.89, 0.88]).verdict == "shown"
  claim = compare("c", [5.0], [0.0])
  assert (claim.verdict, claim.interval) == ("unresolved", (-math.inf, math.inf))


@given(
  st.lists(st.floats(-5, 5), min_size=2, max_size=6),
  st.floats(-5, 5),
  st.sampled_from(["higher", "lower"]),
)
def test_exactly_one_verdict(values, margin, better):
  claim = compare("c", values, 0.5, margin=margin, better=better)
  low, high = claim.interval
  inside = {"shown": low > margin, "refuted": high < margin, "unresolved": low <= margin <= high}
  assert [name for name, holds in inside.items() if holds] == [claim.verdict]


def test_nothing_is_tested_where_a_precondition_fails():
  passed = precondition("p", [0.9, 0.8], at_least=0.8)
  failed = precondition("q", [0.9, 0.8], at_most=0.8)
  assert passed.met and not failed.met
  assert not precondition("n", [math.nan], at_least=0.0).met
  assert compare("c", [2.0, 2.1], 1.0, requires=[passed]).verdict == "shown"
  claim = compare("c", [2.0, 2.1], 1.0, requires=[passed, failed])
  assert claim.verdict == "no test"
  assert report.format_claim(claim).splitlines()[1] == "  not met: q (measured 0.85)"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_method_that_diverged_is_not_tested(value):
  claim = compare("c", [1.0, value, 1.0], 0.0)
  assert claim.verdict == "no test" and not claim.is_finite
  last = report.format_claim(claim, {"ours": ["accuracy"]}).splitlines()[-1]
  assert last == "  not judged: no finite values of ours"
  assert not precondition("p", [1.0, value], at_least=0.0).met


def test_errors():
  with pytest.raises(ValueError, match="better must be 'higher' or 'lower', got 'more'"):
    compare("c", [1.0], [1.0], better="more")
  with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
    compare("c", [1.0, 2.0, 3.0], [1.0, 2.0])
  with pytest.raises(ValueError, match="method must hold one number per seed"):
    compare("c", [[1.0]], [1.0])
  with pytest.raises(ValueError, match="'p' needs at_least or at_most"):
    precondition("p", [1.0])


def test_a_paper_has_one_headline_and_at_most_six_claims():
  make = lambda i, **options: compare(f"c{i}", [2.0, 2.1], 1.0, **options)  # noqa: E731
  experiment.check_claims([make(0, headline=True), *map(make, range(1, 6))])
  with pytest.raises(ValueError, match="one headline claim, got 0"):
    experiment.check_claims([make(0)])
  with pytest.raises(ValueError, match="at most 6 claims, got 7"):
    experiment.check_claims([make(0, headline=True), *map(make, range(1, 7))])
  with pytest.raises(ValueError, match="the same text"):
    experiment.check_claims([make(0, headline=True), make(0)])


def test_claims_survive_storage_and_are_printed():
  conditions = [precondition("p", 0.5, at_least=0.4)]
  claims = [
    compare("first", [2.0, 2.5], [1.0, 1.5], margin=0.5, headline=True, requires=conditions),
    compare("second", [1.0], math.inf, paper="3 points"),
  ]
  stored = workdir.encode_json([experiment.claim_to_stored(claim) for claim in claims])
  again = [experiment.claim_from_stored(c) for c in json.loads(json.dumps(stored, allow_nan=False))]
  assert again == claims
  assert stored[0]["requires"][0]["met"] is True
  assert report.format_claim(claims[0]) == (
    "shown: first (2.25 against 1.25, difference +1 [+1, +1], margin 0.5, n = 2)"
  )
  lines = report.format_claim(claims[1]).splitlines()
  assert lines[0].endswith("n = 1); paper: 3 points")
