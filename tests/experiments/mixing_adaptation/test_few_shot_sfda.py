"""Domains of the scenarios."""

import numpy as np
import pytest

from experiments.mixing_adaptation.few_shot_sfda import __main__ as experiment
from experiments.mixing_adaptation.few_shot_sfda import domains


def test_counts_are_those_of_the_scenarios():
  config = experiment.Config()
  for scenario in domains.SCENARIOS:
    source, target = domains.class_counts(config, scenario)
    assert source.sum() == config.num_source and target.sum() == config.num_target
    # One shot for validation and three for training leave some to evaluate on.
    assert target.min() > 4
  source, target = domains.class_counts(config, "open set")
  assert np.all(source[7:] == 0) and abs(target[7:].sum() - 800) <= 1
  source, target = domains.class_counts(config, "label shift")
  assert 90 < source[9] / source[0] < 110 and 90 < target[0] / target[9] < 110


def test_domains_are_disjoint_and_shifted():
  config = experiment.PRESETS["smoke"]
  source, targets = domains.make_domains(config, "closed", 0)
  assert targets.inputs.shape == (1, 200, 40, 1) and targets.labels.shape == (1, 200)
  np.testing.assert_allclose(source.inputs.mean(), 0.0, atol=1e-5)
  np.testing.assert_array_equal(np.bincount(source.labels), 12)
  near = np.abs(source.inputs[:, None] - targets.inputs[0]).max((2, 3)).min()
  assert near > 0.1
  other, _ = domains.make_domains(config, "closed", 1)
  assert np.any(other.inputs != source.inputs)


def test_a_pool_without_enough_rows_is_refused():
  labels = np.array([0, 0, 1])
  with pytest.raises(ValueError, match="class 1 has 1 rows, 2 are needed"):
    domains.draw_rows(np.random.default_rng(0), labels, np.array([1, 2]))
