import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.bayes.inductive_bias import kernels, networks, tails
from experiments.bayes.inductive_bias.__main__ import EXACT, PRESETS, SPHERE, log_ratios, validate
from jaxlab.experiment import Results

RNG = np.random.default_rng(0)


def test_the_saddlepoint_is_right_where_the_law_is_known():
  """C = c I, whose error is a noncentral chi-square variable, far into both tails."""
  for num, variance, size in ((10, 0.3, 2.0), (400, 0.02, 0.1), (3, 1.0, 0.0)):
    gaps = np.full(num, size / num)
    law = kernels.ErrorLaw(np.full(num, variance / num), gaps)
    known = stats.ncx2(num, size / (variance / num), scale=variance / num)
    if size == 0:
      known = stats.chi2(num, scale=variance / num)
    np.testing.assert_allclose(law.mean, known.mean(), rtol=1e-9)
    for probability in (1e-40, 1e-12, 1e-3, 0.2, 0.9, 0.999):
      error = known.ppf(probability)
      expected = -np.log(known.cdf(error))
      found = kernels.exact_surprisal(law, error)
      np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.003)


def test_drawn_errors_follow_their_exact_law():
  config = dataclasses.replace(
    PRESETS["laptop"], dims=(4, 8), sphere_train=20, sphere_test=15, few_samples=4000,
    num_samples=4000, few_points=15, few_error=0.3,
  )  # fmt: skip
  tasks = kernels.sphere_tasks(config, 0)
  np.testing.assert_allclose(np.linalg.norm(tasks.inputs, axis=-1), 1, rtol=1e-6)
  assert not tasks.inputs[0, :, 4:].any()
  found = jax.jit(lambda key, x: kernels.sphere_errors(config, key, x))(jax.random.key(0), tasks)
  found = jax.device_get(found)
  for i, errors in enumerate(found["errors"]):
    task = jax.tree.map(lambda x, i=i: x[i], tasks)
    law = kernels.exact_law(task, 1.0, 1.0, config.jitter)
    np.testing.assert_allclose(errors.mean(), law.mean, rtol=0.03)
    variance = np.sum(2 * law.variances**2 + 4 * law.variances * law.gaps)
    np.testing.assert_allclose(errors.var(), variance, rtol=0.1)
    for share in (0.05, 0.3):
      exact = kernels.exact_surprisal(law, np.quantile(errors, share))
      np.testing.assert_allclose(exact, -np.log(share), atol=0.25)
    share = np.exp(-kernels.exact_surprisal(law, config.few_error))
    np.testing.assert_allclose(found["few"][i], share, atol=0.03)


def test_the_saddlepoint_agrees_with_importance_sampling():
  """Draws tilted to the wanted error, weighted by how much too frequent they are."""
  task = jax.tree.map(lambda x: x[2], kernels.sphere_tasks(PRESETS["laptop"], 0))
  variances, gaps = law = kernels.exact_law(task, 1.0, 1.0, 2e-5)
  tilt = -2000.0
  rest = 1 - 2 * tilt * variances
  noise = RNG.normal(size=(20_000, len(gaps)))
  errors = np.sum((np.sqrt(variances / rest) * noise + np.sqrt(gaps) / rest) ** 2, axis=1)
  target = np.median(errors)
  generating = np.sum(tilt * gaps / rest - np.log(rest) / 2)
  weights = np.where(errors <= target, np.exp(tilt * (target - errors)), 0.0)
  expected = tilt * target - generating - np.log(np.mean(weights))
  assert expected > 10
  np.testing.assert_allclose(kernels.exact_surprisal(law, target), expected, atol=0.05)


def test_fitted_tails_agree_with_exact_ones():
  """The implementation check: errors of a kernel space on a sphere, drawn in float64."""
  task = jax.tree.map(lambda x: x[3], kernels.sphere_tasks(PRESETS["laptop"], 0))
  law = kernels.exact_law(task, 1.0, 1.0, 2e-5)
  noise = RNG.normal(size=(4000, len(law.gaps)))
  errors = np.sum((np.sqrt(law.variances) * noise + np.sqrt(law.gaps)) ** 2, axis=1)
  np.testing.assert_allclose(errors.mean(), law.mean, rtol=0.01)
  targets = 0.01, np.quantile(errors, 0.02)
  scores = tails.biases(errors[None], targets, num_resamples=20)
  exact = np.array([kernels.exact_surprisal(law, target) for target in targets])
  assert 60 < exact[0] < 90
  np.testing.assert_allclose(exact[1], -np.log(0.02), atol=0.25)
  assert np.all(np.abs(np.log(scores[tails.BIAS][0] / exact)) < 0.2)
  assert scores[tails.LOW][0] < scores[tails.BIAS][0, 0] * 1.2 < 1.5 * scores[tails.HIGH][0]
  np.testing.assert_array_equal(scores[tails.SHARE][0], [0, 0.02])


def test_the_evidence_chooses_among_all_settings():
  config = dataclasses.replace(PRESETS["smoke"], lengthscales=(1.0, 2.0, 3.0), variances=(0.1, 1.0))
  task = kernels.image_task(config, 0)
  np.testing.assert_array_equal(task.targets.sum(1), 1)
  found = jax.jit(lambda key, x: kernels.image_errors(config, key, x))(jax.random.key(0), task)
  x, y = task.flat.inputs.astype(np.float64), task.targets
  distances = ((x[:, None] - x[None]) ** 2).sum(-1)
  values = {}
  for length in config.lengthscales:
    for variance in config.variances:
      gram = variance * (np.exp(-distances / (2 * length**2)) + config.jitter * np.eye(len(x)))
      normal = stats.multivariate_normal(np.zeros(len(x)), gram)
      values[length, variance] = sum(normal.logpdf(column) for column in y.T)
  length, variance = max(values, key=values.get)
  expected = [[length, variance], [1, 1], [length, variance / 4], [length, variance * 4]]
  np.testing.assert_allclose(found["settings"], expected, rtol=1e-6)
  for row, errors in zip(expected, found["errors"]):
    law = kernels.exact_law(task, *row, config.jitter)
    deviation = np.sqrt(np.sum(2 * law.variances**2 + 4 * law.variances * law.gaps))
    assert abs(np.mean(errors) - law.mean) < 5 * deviation / np.sqrt(len(errors))


def test_networks_learn_and_their_errors_are_means():
  config = dataclasses.replace(PRESETS["smoke"], num_steps=150, learning_rate=1e-2)
  task = kernels.image_task(config, 0)
  train = jax.jit(lambda key, x: networks.train_errors(config, networks.MLP, key, x))
  found = train(jax.random.key(0), task)
  assert found["errors"].shape == found["training"].shape == (config.num_networks,)
  assert np.all(found["training"] < 0.08) and len(set(np.asarray(found["errors"]))) == 8


def test_the_cnn_is_a_sum_over_patches():
  module, images = networks.SmallCNN(3, (2, 4)), RNG.normal(size=(2, 4, 4, 1)).astype(np.float32)
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  found = jax.jit(module.apply)({"params": params}, images).logits

  def convolve(image, kernel, bias):
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((*image.shape[:2], len(bias)))
    for i, j in np.ndindex(image.shape[:2]):
      out[i, j] = np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias
    return np.maximum(out, 0)

  for image, outputs in zip(images, found):
    hidden = convolve(image, *(params["Conv_0"][name] for name in ("kernel", "bias")))
    pooled = np.zeros((2, 2, 2))
    for i, j in np.ndindex(2, 2):
      pooled[i, j] = hidden[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
    hidden = convolve(pooled, *(params["Conv_1"][name] for name in ("kernel", "bias")))
    head = params["Dense_0"]
    np.testing.assert_allclose(outputs, hidden.ravel() @ head["kernel"] + head["bias"], rtol=1e-3)


def test_permuted_images_hold_the_same_pixels_in_the_same_other_places():
  task = kernels.image_task(PRESETS["smoke"], 0)
  mixed, again = networks.permuted(task, 3), networks.permuted(task, 3)
  np.testing.assert_array_equal(mixed.inputs, again.inputs)
  assert not np.array_equal(mixed.inputs, task.inputs)
  both = [np.concatenate([x.inputs, x.test_inputs]).reshape(-1, 64) for x in (task, mixed)]
  columns = [sorted(map(tuple, x.T)) for x in both]
  assert columns[0] == columns[1]


def test_log_ratios_are_means_over_the_range():
  results = Results()
  results.add({SPHERE: {EXACT: [20.0, 5.0], tails.BIAS: [10.0, 5.0]}}, dim=4)
  results.add({SPHERE: {EXACT: [100.0, 200.0], tails.BIAS: [100.0, 1.0]}}, dim=8)
  results.add({kernels.TUNED: {EXACT: [1.0, 9.0], tails.BIAS: [0.0, 1.0]}}, target=0.02)
  results.add({kernels.TUNED: {EXACT: [50.0, 9.0], tails.BIAS: [1.0, 1.0]}}, target=0.015)
  found = log_ratios(PRESETS["laptop"], results)
  np.testing.assert_allclose(found[0], np.log(2) / 2)
  assert np.isnan(found[1])


@pytest.mark.parametrize(
  "change",
  [{"dims": (8, 4, 16)}, {"compared": (4, 8, 64)}, {"num_samples": 1500}, {"few_points": 51}],
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(PRESETS["laptop"], **change))
