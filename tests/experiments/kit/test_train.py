"""Training of small networks as one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit import datasets
from experiments.kit import train as kit
from jaxlab import models

_MODULE = models.MLP(2, widths=(4,), norm=models.GhostBatchNorm)


@pytest.fixture(scope="module")
def split():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 40).astype(np.int32)
  inputs = rng.normal(size=(40, 3)).astype(np.float32) + 3.0 * labels[:, None]
  return datasets.Split(inputs, labels)


def _train(split, optimizer=None, **options):
  settings = {"num_steps": 6, "batch_size": 10} | options
  return kit.train(
    jax.random.key(0),
    _MODULE,
    kit.classification_loss(_MODULE),
    optimizer or kit.sgd_cosine(0.3, 6, weight_decay=0.1),
    split,
    **settings,
  )


def test_equals_a_loop_of_single_steps(split):
  trained = jax.jit(lambda: _train(split))()
  init_key, order_key, _ = jax.random.split(jax.random.key(0), 3)
  variables = _MODULE.init(init_key, split.inputs[:10])
  params, stats = variables["params"], variables["batch_stats"]
  rates = optax.cosine_decay_schedule(0.3, 6)
  optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rates, momentum=0.9))
  opt_state = optimizer.init(params)

  def loss(params, stats, inputs, labels):
    output, state = _MODULE.apply(
      {"params": params, "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
    )
    values = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
    return values.mean(), state["batch_stats"]

  grad = jax.jit(jax.grad(loss, has_aux=True))
  for rows in kit.epoch_rows(order_key, 40, num_steps=6, batch_size=10):
    grads, stats = grad(params, stats, split.inputs[rows], split.labels[rows])
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trained.params, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    trained.variables["batch_stats"],
    stats,
  )


def test_learns_and_is_evaluated_on_the_way(split):
  trained = jax.jit(
    lambda: _train(
      split,
      optax.sgd(0.3, momentum=0.9),
      num_steps=60,
      eval_every=20,
      evaluate=lambda t: kit.accuracy(_MODULE, t.variables, split),
    )
  )()
  assert trained.scores.shape == (3,)
  assert trained.scores[-1] > 0.9
  assert trained.scores[-1] == kit.accuracy(_MODULE, trained.variables, split)


def test_goes_on_from_a_start(split):
  trained = _train(split)
  again = _train(split, num_steps=1, start=trained)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained.params, again.params)
  assert 0 < max(jax.tree.leaves(moved)) < 1.0


def test_a_schedule_reaches_the_loss_of_its_step(split):
  seen = kit.classification_loss(
    _MODULE, lambda apply, key, batch: apply(batch[0].inputs).logits[:, 0] * batch[1]
  )
  settings = {"num_steps": 3, "batch_size": 10}

  def run(schedule):
    return kit.train(
      jax.random.key(0), _MODULE, seen, optax.sgd(0.1), split, schedule=schedule, **settings
    ).params

  start, still = run(jnp.zeros(3)), run(jnp.zeros(3))
  jax.tree.map(np.testing.assert_array_equal, start, still)
  late, early = run(jnp.array([0.0, 0.0, 1.0])), run(jnp.array([1.0, 0.0, 0.0]))
  kernels = [np.asarray(params["head"]["kernel"]) for params in (start, late, early)]
  assert not np.allclose(kernels[0], kernels[1]) and not np.allclose(kernels[1], kernels[2])


def test_every_epoch_sees_every_row_once():
  rows = kit.epoch_rows(jax.random.key(1), 10, num_steps=7, batch_size=3)
  assert rows.shape == (7, 3)
  for epoch in (rows[:3], rows[3:6]):
    assert len(np.unique(epoch)) == 9
  assert not np.array_equal(rows[:3], rows[3:6])


def test_predict_is_evaluation_mode_in_any_batch_size(split):
  trained = _train(split)
  inputs = jnp.asarray(split.inputs)
  whole = _MODULE.apply(trained.variables, inputs)
  for batch_size in (7, 40):
    output = kit.predict(_MODULE, trained.variables, inputs, batch_size=batch_size)
    np.testing.assert_allclose(output.logits, whole.logits, atol=1e-5)
    assert output.features.shape == (40, 4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 41}, r"batch_size must lie in \[1, 40\], got 41"),
    ({"eval_every": 4, "evaluate": lambda t: 0}, "eval_every=4 does not divide num_steps=6"),
  ],
)
def test_bad_arguments(split, options, message):
  with pytest.raises(ValueError, match=message):
    _train(split, **options)
