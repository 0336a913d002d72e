from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses


class Output(NamedTuple):
  features: jax.Array
  logits: jax.Array


PARAMS = {
  "body": {"kernel": jnp.array([[1.0, 0.3], [-0.2, 0.8]]), "bias": jnp.zeros(2)},
  "head": {"kernel": jnp.array([[1.0, -1.0, 0.0], [0.0, 0.5, -0.5]]), "bias": jnp.zeros(3)},
}


def apply_fn(params, inputs):
  features = jnp.tanh(inputs @ params["body"]["kernel"] + params["body"]["bias"])
  return Output(features, features @ params["head"]["kernel"] + params["head"]["bias"])


def is_head(path):
  return path[0] == "head"


pseudo_labels = jax.jit(algorithms.centroid_pseudo_labels, static_argnames="num_rounds")


@pytest.fixture(scope="module")
def sets():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(30, 2)).astype(np.float32)
  labels = np.argmax(inputs @ np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]), axis=1)
  return (inputs[:7], labels[:7]), (inputs[7:], labels[7:])


# ------------------------------------------------------------------------------- pseudo-labels


def slow_pseudo_labels(features, probs, num_rounds=2):
  features, probs = np.asarray(features, np.float64), np.asarray(probs, np.float64)
  rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  affinity, labels = probs, probs.argmax(1)
  for _ in range(num_rounds):
    new = np.zeros_like(labels)
    centroids = [
      sum(affinity[i, c] * rows[i] for i in range(len(rows))) / (1e-8 + affinity[:, c].sum())
      for c in range(probs.shape[1])
    ]
    for i, row in enumerate(rows):
      best = np.inf
      for c in sorted(set(labels)):
        distance = 1 - row @ centroids[c] / np.linalg.norm(centroids[c])
        if distance < best:
          best, new[i] = distance, c
    labels = new
    affinity = np.eye(probs.shape[1])[labels]
  return labels


@pytest.fixture(scope="module")
def clusters():
  """Three clusters in five dimensions, and predictions of five classes, some of them wrong."""
  rng = np.random.default_rng(1)
  truth = np.repeat([0, 2, 3], 20)
  centers = 4 * np.eye(5)[:3]
  features = centers[np.repeat([0, 1, 2], 20)] + 0.3 * rng.normal(size=(60, 5))
  guesses = truth.copy()
  guesses[[1, 25, 47]] = [3, 0, 2]
  probs = 0.9 * np.eye(5)[guesses] + 0.02
  return features.astype(np.float32), probs.astype(np.float32), truth


def test_pseudo_labels_correct_a_few_wrong_predictions(clusters):
  features, probs, truth = clusters
  result = pseudo_labels(features, probs)
  assert result.dtype == jnp.int32
  np.testing.assert_array_equal(result, truth)
  assert not np.isin(result, [1, 4]).any()  # No sample is predicted as one of these.


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_pseudo_labels_match_a_slow_loop(num_rounds):
  rng = np.random.default_rng(2)
  for _ in range(5):
    features, probs = rng.normal(size=(40, 3)), rng.dirichlet(np.full(6, 0.3), 40)
    result = pseudo_labels(features, probs, num_rounds=num_rounds)
    np.testing.assert_array_equal(result, slow_pseudo_labels(features, probs, num_rounds))


def test_scale_of_large_features_does_not_matter(clusters):
  features, probs, _ = clusters
  rng = np.random.default_rng(3)
  features = 1e6 * rng.normal(size=features.shape)
  result = pseudo_labels(features, probs)
  np.testing.assert_array_equal(result, pseudo_labels(10 * features, probs))
  np.testing.assert_array_equal(result, pseudo_labels(1e28 * features, probs))


def test_pseudo_labels_of_one_sample_one_class_and_ties():
  assert pseudo_labels(np.ones((1, 2)), np.array([[0.1, 0.7, 0.2]])) == 1
  same = pseudo_labels(np.ones((4, 2)), np.eye(3)[[2, 1, 2, 1]])
  np.testing.assert_array_equal(same, 1)  # All centroids are alike: the lowest predicted class.
  rng = np.random.default_rng(0)
  one = pseudo_labels(rng.normal(size=(4, 2)), np.tile([0.2, 0.5, 0.3], (4, 1)))
  np.testing.assert_array_equal(one, 1)


def test_a_sample_that_is_not_finite_moves_no_centroid(clusters):
  features, probs, truth = clusters
  features, probs = features.copy(), probs.copy()
  features[3, 1], features[30, 0], probs[50, 2] = np.nan, np.inf, np.nan
  expected = truth.copy()
  expected[[3, 30, 50]] = -1
  np.testing.assert_array_equal(pseudo_labels(features, probs), expected)


def test_no_gradient_flows_through_pseudo_labels(clusters):
  features, probs, _ = clusters

  def loss(features):
    labels = algorithms.centroid_pseudo_labels(features, probs)
    return jnp.sum(labels.astype(jnp.float32))

  np.testing.assert_array_equal(jax.jit(jax.grad(loss))(features), 0.0)


def test_pseudo_label_errors():
  for shapes, name in (
    (((3, 2), (4, 2)), "probs"),
    (((3, 2), (3,)), "probs"),
    (((3,), (3, 2)), "features"),
  ):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
      algorithms.centroid_pseudo_labels(*map(jnp.ones, shapes))
  with pytest.raises(ValueError, match="num_rounds"):
    algorithms.centroid_pseudo_labels(jnp.ones((3, 2)), jnp.ones((3, 2)), num_rounds=0)


# --------------------------------------------------------------------------------- fine-tuning


def tune(sets, optimizer, *, trainable=lambda path: True, train_fn=None, apply_fn=apply_fn, **more):
  data, validation = sets
  settings = {"num_steps": 20, "batch_size": 5, "eval_every": 5} | more
  run = jax.jit(
    lambda key, params: algorithms.fine_tune(
      key,
      apply_fn,
      params,
      optimizer,
      data,
      validation,
      trainable=trainable,
      train_fn=train_fn,
      **settings,
    )
  )
  return lambda params, seed=0: run(jax.random.key(seed), params)


def test_zero_learning_rate_returns_the_initial_parameters(sets):
  result = tune(sets, optax.sgd(0.0))(PARAMS)
  assert isinstance(result, algorithms.FineTuned)
  assert result.best_step == 0
  jax.tree.map(np.testing.assert_array_equal, result.params, PARAMS)
  logits = apply_fn(PARAMS, sets[1][0]).logits
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, sets[1][1]).mean()
  np.testing.assert_allclose(result.best_validation_loss, loss, rtol=1e-6)


def test_frozen_leaves_stay_bitwise_equal(sets):
  result = tune(sets, optax.adamw(0.1, weight_decay=0.1), trainable=is_head)(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, result.params["body"], PARAMS["body"])
  assert np.any(result.params["head"]["kernel"] != PARAMS["head"]["kernel"])
  assert result.best_step > 0


def test_the_best_evaluation_is_kept(sets):
  """Large steps soon increase the loss: compares with the best evaluation of a Python loop."""
  data, validation = sets
  optimizer = optax.adam(0.8)

  def loss(params, inputs, labels):
    logits = apply_fn(params, inputs).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  result = tune(sets, optimizer, batch_size=7, num_steps=12, eval_every=2)(PARAMS)
  # Batches of the size of the set are whole epochs: their order does not matter.
  step = jax.jit(lambda params: jax.grad(loss)(params, *data))
  params, state, scores, kept = PARAMS, optimizer.init(PARAMS), [], []
  for i in range(13):
    if i % 2 == 0:
      scores.append(float(loss(params, *validation)))
      kept.append(params)
    updates, state = optimizer.update(step(params), state, params)
    params = optax.apply_updates(params, updates)
  best = int(np.argmin(scores))
  assert result.best_step == 2 * best
  np.testing.assert_allclose(result.best_validation_loss, scores[best], rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), result.params, kept[best])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), result.last_params, kept[-1]
  )


def test_examples_are_repeated_equally_often(sets):
  """A frozen optimizer that sums gradients of a linear loss would see each of 7 rows 5 times."""
  (inputs, _), _ = sets
  seen = {"counts": jnp.zeros(7), "gate": jnp.ones(())}

  def logits_fn(params, inputs):
    return jnp.zeros((inputs.shape[0], 3)) * params["gate"]

  def train_fn(params, rows):
    counts = params["counts"].at[rows[:, 0].astype(int)].add(1.0)
    return logits_fn(params, rows), params | {"counts": counts}

  row_numbers = jnp.arange(7.0)[:, None]
  marked = ((row_numbers, jnp.zeros(7, int)), (row_numbers, jnp.zeros(7, int)))

  # The validation loss falls with the number of rows seen, so that the last step is the best.
  def apply(params, inputs):
    return jnp.tile(jnp.array([jnp.sum(params["counts"]), 0.0, 0.0]), (inputs.shape[0], 1))

  result = tune(
    marked,
    optax.sgd(0.1),
    apply_fn=apply,
    train_fn=train_fn,
    trainable=lambda path: path == ("gate",),
    num_steps=7,
    batch_size=5,
    eval_every=7,
  )(seen)
  assert result.best_step == 7
  np.testing.assert_array_equal(result.params["counts"], 5.0)


def test_apply_fn_may_return_plain_logits(sets):
  plain = tune(sets, optax.sgd(0.5), apply_fn=lambda p, x: apply_fn(p, x).logits)(PARAMS)
  whole = tune(sets, optax.sgd(0.5))(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, plain, whole)


def test_steps_after_the_last_evaluation_are_skipped(sets):
  some = tune(sets, optax.sgd(0.5), num_steps=5)(PARAMS)
  more = tune(sets, optax.sgd(0.5), num_steps=9)(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, some, more)
  assert tune(sets, optax.sgd(0.5), num_steps=4)(PARAMS).best_step == 0


def test_non_finite_loss_is_never_the_best(sets):
  (inputs, labels), validation = sets
  result = tune(((np.full_like(inputs, np.nan), labels), validation), optax.sgd(0.5))(PARAMS)
  assert result.best_step == 0 and np.isfinite(result.best_validation_loss)
  jax.tree.map(np.testing.assert_array_equal, result.params, PARAMS)


def test_vmap_over_keys(sets):
  run = tune(sets, optax.sgd(0.5))
  many = jax.vmap(lambda seed: run(PARAMS, seed))(jnp.arange(2))
  one = run(PARAMS, 1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4), many, one)


def test_linear_probe_fine_tune_matches_two_stages(sets):
  data, validation = sets
  optimizers = optax.adam(0.1), optax.adam(0.02)
  settings = {"batch_size": 5, "eval_every": 5}

  @jax.jit
  def both(key):
    result = algorithms.linear_probe_fine_tune(
      key,
      apply_fn,
      PARAMS,
      *optimizers,
      data,
      validation,
      num_head_steps=10,
      num_steps=20,
      is_head=is_head,
      **settings,
    )
    head_key, key = jax.random.split(key)
    probed = algorithms.fine_tune(
      head_key,
      apply_fn,
      PARAMS,
      optimizers[0],
      data,
      validation,
      num_steps=10,
      trainable=is_head,
      **settings,
    )
    second = algorithms.fine_tune(
      key,
      apply_fn,
      probed.params,
      optimizers[1],
      data,
      validation,
      num_steps=20,
      trainable=lambda path: True,
      **settings,
    )
    return result, second, probed

  result, second, probed = both(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, result, second)
  assert result.best_validation_loss <= probed.best_validation_loss


def test_fine_tuning_errors(sets):
  data, validation = sets
  for name in ("num_steps", "batch_size", "eval_every"):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
      tune(sets, optax.sgd(0.1), **{name: 0})(PARAMS)
  with pytest.raises(ValueError, match="trainable"):
    tune(sets, optax.sgd(0.1), trainable=lambda path: False)(PARAMS)
  with pytest.raises(
    ValueError, match="the number of rows of validation must be at least 1, got 0"
  ):
    tune((data, (np.zeros((0, 2)), np.zeros(0, int))), optax.sgd(0.1))(PARAMS)
  with pytest.raises(ValueError, match="labels must lie"):
    algorithms.fine_tune(
      jax.random.key(0),
      apply_fn,
      PARAMS,
      optax.sgd(0.1),
      (data[0], np.full(7, 3)),
      validation,
      num_steps=1,
      batch_size=1,
      trainable=is_head,
    )


# -------------------------------------------------------------------- information maximization


def test_information_maximization_step_matches_its_formula(sets):
  inputs, optimizer = sets[1][0][:8], optax.sgd(0.1)
  adapter = algorithms.information_maximization_adaptation(
    apply_fn, optimizer, pseudo_label_weight=0.3, trainable=lambda path: not is_head(path)
  )
  update, start = jax.jit(adapter.update), adapter.init(PARAMS)
  state, info = update(jax.random.key(0), start, inputs)
  outputs = apply_fn(PARAMS, inputs)
  np.testing.assert_allclose(info.logits, outputs.logits, rtol=1e-6)
  labels = pseudo_labels(outputs.features, jax.nn.softmax(outputs.logits))

  @jax.jit
  @jax.value_and_grad
  def loss(body, labels):
    logits = apply_fn(PARAMS | {"body": body}, inputs).logits
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses.information_maximization_loss(logits) + 0.3 * cross_entropy)

  value, gradient = loss(PARAMS["body"], labels)
  np.testing.assert_allclose(info.loss, value, rtol=1e-5)
  jax.tree.map(
    lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-4, atol=1e-6),
    state.params["body"],
    PARAMS["body"],
    gradient,
  )
  jax.tree.map(np.testing.assert_array_equal, state.params["head"], PARAMS["head"])
  given = jnp.zeros(8, jnp.int32)
  _, info = update(jax.random.key(0), start, inputs, given)
  np.testing.assert_allclose(info.loss, loss(PARAMS["body"], given)[0], rtol=1e-5)


def test_stream_passes_pseudo_labels(sets):
  inputs = sets[1][0][:8].reshape(2, 4, 2)
  labels = jnp.array([[0, 1, 2, 0], [1, 1, 1, 2]])
  adapter = algorithms.information_maximization_adaptation(
    apply_fn, optax.sgd(0.1), trainable=lambda path: True
  )
  state = adapter.init(PARAMS)
  _, infos = algorithms.adapt_stream(jax.random.key(0), adapter, state, inputs, labels)
  update = jax.jit(adapter.update)
  for i in range(2):
    state, info = update(jax.random.key(0), state, inputs[i], labels[i])
    np.testing.assert_allclose(infos.loss[i], info.loss, rtol=1e-5)


def test_negative_pseudo_label_weight_raises():
  with pytest.raises(ValueError, match="pseudo_label_weight"):
    algorithms.information_maximization_adaptation(
      apply_fn, optax.sgd(0.1), pseudo_label_weight=-1.0, trainable=is_head
    )
