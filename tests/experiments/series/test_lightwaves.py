import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from experiments.kit.datasets import Split
from experiments.series.lightwaves import features as by
from experiments.series.lightwaves import problems
from experiments.series.lightwaves.__main__ import PRESETS, validate
from jaxlab import algorithms, models

LAPTOP = PRESETS["laptop"]
SMALL = dataclasses.replace(
  LAPTOP, num_channels=6, num_informative=(2,), num_train=40, num_test=52, num_features=20,
  other_sizes=(10,), num_kernels=60, max_dilation_log2=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
  return problems.draw(SMALL, "2 of 6 channels", 0)


@pytest.fixture(scope="module")
def rows(small):
  return by.fixed_kernel_rows(SMALL, small, 0)


def test_motifs_differ_and_have_one_energy():
  gram = problems.motifs() @ problems.motifs().T
  np.testing.assert_allclose(np.diag(gram), 6)
  assert np.abs(gram - np.diag(np.diag(gram))).max() < 4


def test_informative_channels_hold_a_motif_of_their_class():
  config = dataclasses.replace(SMALL, amplitude=50.0, num_train=80)
  problem = problems.draw(config, "2 of 6 channels", 3)
  assert len(problem.informative) == 2
  for row, label in zip(*problem.train):
    for channel in range(6):
      # The place and kind that explain most, up to sign.
      waves = problems.motifs()
      fits = [[abs(row[channel, s : s + 12] @ w) for s in range(53)] for w in waves]
      kind = np.unravel_index(np.argmax(fits), (4, 53))[0]
      if channel in problem.informative:
        assert kind == (label + channel) % 4


def test_noise_is_autoregressive_and_says_nothing():
  config = dataclasses.replace(SMALL, num_train=2000)
  problem = problems.draw(config, "2 of 6 channels", 0)
  others = np.setdiff1d(np.arange(6), problem.informative)
  noise = problem.train.inputs[:, others]
  np.testing.assert_allclose(noise.mean((0, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(noise.std((0, 2)), 1, atol=1e-4)
  for lag in (1, 2):
    products = np.mean(noise[:, :, lag:] * noise[:, :, :-lag], axis=(0, 2))
    np.testing.assert_allclose(products, 0.6**lag, atol=0.03)
  np.testing.assert_array_equal(np.bincount(problem.train.labels), np.full(4, 500))
  assert problem.train.inputs.std((0, 2))[problem.informative].min() > 0


def test_seeds_draw_other_channels():
  drawn = {tuple(problems.draw(SMALL, "2 of 6 channels", seed).informative) for seed in range(6)}
  assert len(drawn) > 2


@pytest.mark.parametrize("name", ["japanese_vowels", "italy_power_demand"])
def test_archived_series_are_standardized_by_training_steps(name):
  pytest.importorskip("aeon")
  first, second = (problems.draw(SMALL, name, seed) for seed in (0, 1))
  channels, classes = problems.sizes(SMALL, name)
  assert first.train.inputs.shape[1] == channels
  assert len(np.unique(first.train.labels)) == classes
  assert not np.array_equal(first.train.inputs, second.train.inputs)
  assert first.informative is None
  if name == "italy_power_demand":
    np.testing.assert_allclose(first.train.inputs.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(first.train.inputs.std((0, 2)), 1, atol=1e-4)


def test_random_features_are_as_many_as_selected_ones(rows):
  for method, found in rows.items():
    assert len(found) == len(by.sizes_of(SMALL, method, 6))
  few, many = rows[by.RANDOM]
  assert few[by.PRODUCTS] < many[by.PRODUCTS]


def test_selections_are_those_of_the_library(small, rows):
  kernels = models.scattering_kernels(num_channels=6, max_dilation_log2=1)
  features = models.scatter_all_features(small.train.inputs, max_dilation_log2=1)
  selection = algorithms.select_kernel_features(
    lambda block: features, kernels, small.train.labels, num_classes=4, block_size=len(kernels),
    num_features=SMALL.num_features, pool_size=3 * SMALL.num_features,
  )  # fmt: skip
  light = rows[by.LIGHT][-1]
  chosen = np.repeat(selection.kernels[:, 0], selection.feature_mask.sum(1))
  assert light[by.READ] == len(np.unique(chosen))
  assert light[by.SHARE] == np.mean(np.isin(chosen, small.informative))
  products = sum(9 * 64 + 9 * 32 * used[4:].any() for used in selection.feature_mask)
  assert light[by.PRODUCTS] == products


def test_features_of_series_in_parts():
  series = np.random.default_rng(0).normal(size=(11, 2, 5))
  columns = np.array([1, 4, 9])
  found = by.in_parts(lambda part: np.cumsum(part, axis=2), series, 4, columns)
  np.testing.assert_array_equal(found, np.cumsum(series, axis=2).reshape(11, -1)[:, columns])


def test_products_count_level_two_where_it_is_used():
  assert by.fixed_products(np.array([0, 3, 8]), 11) == 9 * 22
  assert by.fixed_products(np.array([0, 4, 15]), 11) == 9 * (22 + 10)


def test_costs_of_random_kernels():
  lengths, counts = np.array([7, 9]), np.array([2, 1])
  kernels = None, lengths, None, np.array([2, 1]), np.array([0, 4]), counts, np.array([0, 3, 1])
  products, channels = by.kernel_costs(kernels, 20)
  assert channels == [{0, 3}, {1}]
  assert products.tolist() == [7 * 2 * (20 - 12), 9 * 1 * 20]


def test_rocket_rows(small):
  pytest.importorskip("aeon")
  rows = by.random_kernel_rows(SMALL, small, 0)
  assert [len(rows[m]) for m in (by.ROCKET, by.ORACLE, by.ROCKET_F)] == [3, 2, 1]
  reads = [row[by.READ] for row in rows[by.ROCKET]]
  assert reads == sorted(reads) and rows[by.ORACLE][-1][by.READ] == 2
  products = [row[by.PRODUCTS] for row in rows[by.ROCKET]]
  assert rows[by.ROCKET_F][0][by.PRODUCTS] <= products[-1] and products == sorted(products)


def test_the_head_is_a_ridge_classifier():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 60)
  values = (rng.normal(size=(60, 5)) + labels[:, None] * [1, 0, 0, 0, 2]).astype(np.float32)
  parts = Split(values[:40], labels[:40]), Split(values[40:], labels[40:])
  found = by.evaluate(problems.Problem(*parts), values[:40], values[40:])
  scaler = StandardScaler().fit(values[:40].astype(float))
  ridge = RidgeClassifierCV(alphas=40 * np.logspace(-3, 3, 10))
  ridge.fit(scaler.transform(values[:40].astype(float)), labels[:40])
  right = ridge.predict(scaler.transform(values[40:].astype(float))) == labels[40:]
  assert found[by.ACCURACY] == right.mean() and found[by.EDGE] in (0, 1)


def test_a_strong_motif_in_one_channel_is_found():
  """With certain motifs the best features lie in their channel, and classify."""
  config = dataclasses.replace(
    LAPTOP, num_informative=(1,), amplitude=4 * LAPTOP.amplitude, num_features=100, other_sizes=(),
    max_dilation_log2=1, num_channels=8, num_test=100,
  )  # fmt: skip
  problem = problems.draw(config, "1 of 8 channels", 0)
  rows = by.fixed_kernel_rows(config, problem, 0)
  assert rows[by.ANOVA][0][by.SHARE] >= 0.9
  assert rows[by.ANOVA][0][by.ACCURACY] >= 0.98 and rows[by.LIGHT][0][by.ACCURACY] >= 0.98


@pytest.mark.parametrize(
  "change",
  [{"num_features": 501}, {"num_informative": (25,)}, {"num_steps": 11}, {"long_sets": ("moon",)}],
)
def test_impossible_sizes_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(LAPTOP, **change))
