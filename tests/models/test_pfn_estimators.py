import functools
import pathlib
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import datasets
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxlab.losses.bar import bar_nll
from jaxlab.models import pfn_estimators
from jaxlab.models.pfn import PFN
from jaxlab.models.pfn_checkpoint import PFNTask, TrainedPFN, save_pfn
from jaxlab.models.pfn_estimators import PFNClassifier, PFNRegressor
from jaxlab.uncertainty.bar import bar_mean, bar_quantile, bar_variance


class _CountingPFN(PFN):
  """Records the number of points of each traced program, and the bound of its context."""

  traced = []

  @nn.compact
  def __call__(self, x, y, num_context, *, deterministic=True, max_context=None):
    self.traced.append((x.shape[1], max_context))
    return super().__call__(x, y, num_context, deterministic=deterministic, max_context=max_context)


@functools.cache
def _network(num_outputs, num_classes=None, num_features=4, module_class=PFN, **task):
  """A tiny network with random parameters, so that its outputs depend on everything."""
  module = module_class(num_outputs, 8, 1, 2, input_shift=0.0, input_scale=1.0)
  x, y = jnp.zeros((1, 1, num_features)), jnp.zeros((1, 1))
  params = jax.jit(module.init)(jax.random.key(0), x, y, 0)["params"]
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [jnp.asarray(0.7 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
  borders = None if num_classes else jnp.linspace(-3, 3, num_outputs + 1)
  task = PFNTask(num_features, num_classes=num_classes, **task)
  return TrainedPFN(module, jax.tree.unflatten(tree, leaves), task, borders)


def _data(num_rows, num_features=3, seed=0):
  rng = np.random.default_rng(seed)
  x = 5 + 3 * rng.normal(size=(num_rows, num_features))
  return x, 40 + 10 * np.sin(x[:, 0]) + rng.normal(size=num_rows)


def _logits(network, context_x, context_y, queries):
  """The network applied without padding."""
  padding = ((0, 0), (0, network.task.num_features - queries.shape[1]))
  x = np.pad(np.concatenate([context_x, queries]), padding)[None]
  y = np.concatenate([context_y, np.zeros(len(queries))])[None]
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  outputs = _apply(network.module, network.params, x, y, len(context_y))
  return outputs[0, len(context_y) :]


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, x, y, num_context):
  return module.apply({"params": params}, x, y, num_context)


@jax.jit
def _summary(logits, borders, targets):
  quantiles = [bar_quantile(logits, borders, q) for q in (0.1, 0.9)]
  moments = bar_mean(logits, borders), jnp.sqrt(bar_variance(logits, borders))
  return *moments, jnp.stack(quantiles, axis=-1), bar_nll(logits, targets, borders)


_ROUNDING = "the network computes in float32, rounding depends on a row's place in the batch"
_EXPECTED_FAILURES = {
  "check_regressors_train": "the network of the test is random",
  "check_classifiers_train": "the network of the test is random",
  "check_methods_sample_order_invariance": _ROUNDING,
  "check_methods_subset_invariance": _ROUNDING,
}


@parametrize_with_checks(
  [
    PFNRegressor(_network(6, num_features=24)),
    PFNClassifier(_network(24, num_classes=24, num_features=24)),
    PFNClassifier(_network(1, num_classes=2, num_features=24)),
  ],
  expected_failed_checks=lambda _: _EXPECTED_FAILURES,
)
def test_scikit_learn_conventions(estimator, check):
  check(estimator)


def test_regressor_matches_the_network():
  network = _network(6)
  (x, y), (queries, targets) = _data(10), _data(5, seed=1)
  mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
  shift, scale = y.mean(), y.std(ddof=1)
  logits = _logits(network, (x - mean) / std, (y - shift) / scale, (queries - mean) / std)
  model = PFNRegressor(network).fit(x, y)

  targets_scaled = jnp.asarray((targets - shift) / scale, jnp.float32)
  mean, std, quantiles, nll = _summary(logits, network.borders, targets_scaled)

  predicted, predicted_std = model.predict(queries, return_std=True)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(predicted, shift + scale * mean)
  close(predicted_std, scale * std)
  close(model.predict_quantiles(queries, (0.1, 0.9)), shift + scale * quantiles)
  close(model.log_prob(queries, targets), -nll - np.log(scale))
  np.testing.assert_array_equal(model.predict(queries), predicted)


def test_log_prob_integrates_to_one():
  x, y = _data(10)
  model = PFNRegressor(_network(6)).fit(x, y)
  grid = np.linspace(-300, 400, 4001)
  density = np.exp(model.log_prob(np.repeat(x[:1], grid.size, axis=0), grid))
  assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-2)


def test_predictions_follow_the_units_of_the_data():
  x, y = _data(10)
  model = PFNRegressor(_network(6))
  expected = model.fit(x, y).predict(x, return_std=True)
  mean, std = model.fit(1e5 * x - 7, 1e-3 * y + 2).predict(1e5 * x - 7, return_std=True)
  np.testing.assert_allclose(mean, 1e-3 * expected[0] + 2, rtol=1e-4)
  np.testing.assert_allclose(std, 1e-3 * expected[1], rtol=1e-3)


def test_unit_scaling_and_raw_targets():
  network = _network(6, input_scaling="unit", target_scaling="none")
  (x, _), (queries, targets) = _data(10), _data(5, seed=1)
  y = np.linspace(-1, 1, 10)
  low, span = x.min(axis=0), np.ptp(x, axis=0)
  logits = _logits(network, (x - low) / span, y, (queries - low) / span)
  mean, *_ = _summary(logits, network.borders, jnp.asarray(targets, jnp.float32))
  predicted = PFNRegressor(network).fit(x, y).predict(queries)
  np.testing.assert_allclose(predicted, mean, rtol=1e-4, atol=1e-4)


def test_classifier_matches_the_network_with_the_scaling_of_the_paper():
  network = _network(3, num_classes=3, num_features=6, rescale_features=True)
  (x, _), (queries, _) = _data(12), _data(5, seed=1)
  labels = np.arange(12) % 2
  both = np.concatenate([x, queries])
  mean, std = both.mean(axis=0), both.std(axis=0, ddof=1) * 3 / 6
  logits = _logits(network, (x - mean) / std, labels, (queries - mean) / std)
  model = PFNClassifier(network, transductive=True).fit(x, np.array(["no", "yes"])[labels])
  probs = model.predict_proba(queries)
  np.testing.assert_allclose(probs, jax.nn.softmax(logits[:, :2]), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(model.predict(queries), np.array(["no", "yes"])[probs.argmax(1)])


def test_single_output_is_the_logit_of_the_second_class():
  network = _network(1, num_classes=2)
  (x, _), (queries, _) = _data(12), _data(5, seed=1)
  labels = np.arange(12) % 2
  mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
  logits = _logits(network, (x - mean) / std, labels, (queries - mean) / std)
  probs = PFNClassifier(network).fit(x, labels).predict_proba(queries)
  np.testing.assert_allclose(probs[:, 1], jax.nn.sigmoid(logits[:, 0]), rtol=1e-4)


def test_data_sets_of_similar_sizes_share_a_program():
  _CountingPFN.traced.clear()
  model = PFNRegressor(_network(6, module_class=_CountingPFN))
  traced_before = len(_CountingPFN.traced)
  for num_context, num_queries in ((5, 4), (20, 9), (33, 31), (1, 63)):
    model.fit(*_data(num_context)).predict(_data(num_queries)[0])
  clone(model).fit(*_data(6)).predict(_data(3)[0])
  assert _CountingPFN.traced[traced_before:] == [(64, 32), (64, 64)]
  model.predict(_data(70)[0])
  assert _CountingPFN.traced[traced_before:] == [(64, 32), (64, 64), (128, 32)]


@pytest.mark.parametrize("num_context", [32, 33])
def test_contexts_that_fill_their_bound_or_need_the_next(num_context):
  network = _network(1, num_classes=2)
  (x, _), (queries, _) = _data(num_context), _data(40, seed=1)
  labels = np.arange(num_context) % 2
  mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
  logits = _logits(network, (x - mean) / std, labels, (queries - mean) / std)
  probs = PFNClassifier(network).fit(x, labels).predict_proba(queries)
  np.testing.assert_allclose(probs[:, 1], jax.nn.sigmoid(logits[:, 0]), rtol=1e-4)


def test_numpy_parameters_move_to_the_device_once():
  network = _network(6)
  x, y = _data(10)
  host = TrainedPFN(
    network.module, jax.device_get(network.params), network.task, np.asarray(network.borders)
  )
  model = PFNRegressor(host).fit(x, y)
  leaves = jax.tree.leaves((model.network_.params, model.network_.borders))
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  np.testing.assert_array_equal(model.predict(x), PFNRegressor(network).fit(x, y).predict(x))


def test_queries_in_chunks():
  (x, y), (queries, targets) = _data(10), _data(300, seed=1)
  whole = PFNRegressor(_network(6)).fit(x, y)
  parts = PFNRegressor(_network(6), max_queries=1).fit(x, y)
  np.testing.assert_allclose(parts.predict(queries), whole.predict(queries), rtol=1e-5)
  np.testing.assert_allclose(
    parts.log_prob(queries, targets), whole.log_prob(queries, targets), rtol=1e-4, atol=1e-4
  )
  labels = np.arange(10) % 2
  whole, parts = (
    PFNClassifier(_network(1, num_classes=2), max_queries=n).fit(x, labels) for n in (1024, 1)
  )
  np.testing.assert_allclose(
    parts.predict_proba(queries), whole.predict_proba(queries), rtol=1e-4, atol=1e-6
  )


def test_transductive_scaling_sees_all_queries_whatever_the_chunks():
  (x, y), (queries, _) = _data(10), _data(150, seed=1)
  network = _network(6)
  whole, parts, inductive = (
    PFNRegressor(network, max_queries=n, transductive=t).fit(x, y).predict(queries)
    for n, t in ((1024, True), (1, True), (1024, False))
  )
  np.testing.assert_allclose(parts, whole, rtol=1e-5)
  assert not np.allclose(inductive, whole, rtol=1e-3)


def test_directory_of_a_network(tmp_path):
  network = _network(6)
  x, y = _data(10)
  save_pfn(tmp_path, network.module, network.params, task=network.task, borders=network.borders)
  model = PFNRegressor(str(tmp_path))
  np.testing.assert_array_equal(
    clone(model).fit(x, y).predict(x), PFNRegressor(network).fit(x, y).predict(x)
  )
  assert np.isfinite(cross_val_score(model, x, y, cv=2)).all()
  with pytest.raises(FileNotFoundError):
    PFNRegressor(str(tmp_path / "none")).fit(x, y)


def test_large_context_warns_once():
  network = _network(6, max_context=8)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    PFNRegressor(network).fit(*_data(8))
  with pytest.warns(UserWarning, match="trained on at most 8") as record:
    model = PFNRegressor(network).fit(*_data(9))
    model.predict(_data(3)[0])
  assert len(record) == 1


def test_one_class_gets_probability_one():
  x, _ = _data(6)
  for network in (_network(1, num_classes=2), _network(3, num_classes=3)):
    model = PFNClassifier(network).fit(x, ["only"] * 6)
    np.testing.assert_array_equal(model.predict_proba(x), np.ones((6, 1)))
    assert set(model.predict(x)) == {"only"}


def test_degenerate_contexts_give_finite_predictions():
  queries = _data(4)[0]
  for x, y in (
    (np.full((1, 3), 2.0), [3.0]),
    (np.full((5, 3), 2.0), np.full(5, 3.0)),
    (np.linspace(1e8, 1e8 + 1, 15).reshape(5, 3), np.arange(5) * 1e-20),
  ):
    mean, std = PFNRegressor(_network(6)).fit(x, y).predict(queries, return_std=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()


def test_errors():
  x, y = _data(6)
  regressor, classifier = PFNRegressor(_network(6)), PFNClassifier(_network(3, num_classes=3))
  with pytest.raises(NotFittedError):
    regressor.predict(x)
  with pytest.raises(NotFittedError):
    regressor.log_prob(x, y)
  with pytest.raises(ValueError, match="0 sample"):
    regressor.fit(x[:0], y[:0])
  with pytest.raises(ValueError, match="NaN"):
    regressor.fit(np.where(x == x[2, 1], np.nan, x), y)
  with pytest.raises(ValueError, match="infinity"):
    regressor.fit(x, np.where(y == y[0], np.inf, y))
  with pytest.raises(ValueError, match="at most 4 features, but X has 5"):
    regressor.fit(*_data(6, num_features=5))
  with pytest.raises(ValueError, match="X has 2 features, but PFNRegressor is expecting 3"):
    regressor.fit(x, y).predict(x[:, :2])
  with pytest.raises(ValueError, match="too large"):
    regressor.fit(x, y).predict(x * 1e300)
  with pytest.raises(ValueError, match="quantiles"):
    regressor.predict_quantiles(x, (0.5, 1.5))
  with pytest.raises(ValueError, match="at most 3 classes, but y has 6"):
    classifier.fit(x, np.arange(6))
  with pytest.raises(ValueError, match="needs a network for regression"):
    PFNRegressor(_network(3, num_classes=3)).fit(x, y)
  with pytest.raises(ValueError, match="needs a network with an output per class"):
    PFNClassifier(_network(6)).fit(x, np.arange(6) % 2)
  with pytest.raises(ValueError, match="max_queries"):
    PFNRegressor(_network(6), max_queries=0).fit(x, y)
  with pytest.raises(ValueError, match="pfn must be"):
    PFNRegressor(3).fit(x, y)


# ------------------------------------------------------------------------- networks that come along


def test_the_default_regressor_beats_a_constant_and_is_calibrated():
  rng = np.random.default_rng(0)
  covered, gains = [], []
  for _ in range(8):
    x = rng.uniform(-3, 3, (80, 3))
    y = 5 + x @ rng.normal(size=3) + np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=80)
    model = PFNRegressor().fit(x[:50], y[:50])
    low, high = model.predict_quantiles(x[50:], (0.05, 0.95)).T
    covered.append(np.mean((low < y[50:]) & (y[50:] < high)))
    constant = stats.norm(y[:50].mean(), y[:50].std()).logpdf(y[50:]).mean()
    gains.append(model.log_prob(x[50:], y[50:]).mean() - constant)
  assert 0.8 < np.mean(covered) < 0.99
  assert min(gains) > 0 and np.mean(gains) > 0.4


def test_the_default_classifier_knows_irises():
  x, y = datasets.load_iris(return_X_y=True)
  names = np.array(["setosa", "versicolor", "virginica"])[y]
  assert cross_val_score(PFNClassifier(), x, names, cv=3).mean() > 0.8


@pytest.mark.parametrize(
  ("estimator", "kind"), [(PFNRegressor, "regressor"), (PFNClassifier, "classifier")]
)
def test_default_networks_are_small_and_described(estimator, kind):
  directory = pathlib.Path(pfn_estimators.__file__).with_name("networks")
  (weights,) = (directory / kind).glob("*.safetensors")
  assert weights.stat().st_size <= 1.5e6
  x, y = _data(12)
  network = estimator().fit(x, y > np.median(y)).network_
  assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {jnp.dtype("float32")}
  card = (directory / "README.md").read_text()
  assert f"{sum(leaf.size for leaf in jax.tree.leaves(network.params)):,}" in card
  with pytest.raises(ValueError, match=f"at most {network.task.num_features} features"):
    estimator().fit(np.ones((20, 17)), np.arange(20) % 2)
