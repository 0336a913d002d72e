"""Training of small networks as one program."""

import functools

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

  @jax.jit
  def begin():
    init_key, order_key, _ = jax.random.split(jax.random.key(0), 3)
    rows = kit.epoch_rows(order_key, 40, num_steps=6, batch_size=10)
    return _MODULE.init(init_key, split.inputs[:10]), rows

  variables, order = begin()
  params, stats = variables["params"], variables["batch_stats"]
  rates = optax.cosine_decay_schedule(0.3, 6)
  optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rates, momentum=0.9))

  def loss(params, stats, inputs, labels):
    output, state = _MODULE.apply(
      {"params": params, "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
    )
    values = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
    return values.mean(), state["batch_stats"]

  @jax.jit
  def step(params, stats, opt_state, inputs, labels):
    grads, stats = jax.grad(loss, has_aux=True)(params, stats, inputs, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state

  opt_state = jax.jit(optimizer.init)(params)
  for rows in np.asarray(order):
    batch = split.inputs[rows], split.labels[rows]
    params, stats, opt_state = step(params, stats, opt_state, *batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trained.params, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    trained.variables["batch_stats"],
    stats,
  )


def test_batches_may_be_drawn_anew(split):
  def draw(key, batch_size):
    rows = jax.random.randint(key, (batch_size,), 0, 40)
    return datasets.Split(*(jnp.asarray(array)[rows] for array in split))

  @jax.jit
  def run(key):
    loss, optimizer = kit.classification_loss(_MODULE), optax.sgd(0.1)
    options = {"num_steps": 2, "batch_size": 10}
    drawn = kit.train(key, _MODULE, loss, optimizer, draw, **options)
    init_key, order_key, _ = jax.random.split(key, 3)
    variables = dict(_MODULE.init(init_key, split.inputs[:10]))
    start = kit.Trained(variables.pop("params"), variables)
    for step_key in jax.random.split(order_key, 2):
      rows = draw(step_key, 10)
      start = kit.train(
        key, _MODULE, loss, optimizer, rows, start=start, num_steps=1, batch_size=10
      )
    return drawn.params, start.params

  drawn, by_hand = run(jax.random.key(5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), drawn, by_hand)


def test_learns_and_is_evaluated_on_the_way(split):
  evaluate = lambda trained: kit.accuracy(_MODULE, trained.variables, split)  # noqa: E731
  options = {"num_steps": 60, "eval_every": 20, "evaluate": evaluate}
  trained = jax.jit(lambda: _train(split, optax.sgd(0.3, momentum=0.9), **options))()
  scores = np.asarray(trained.scores)
  assert scores.shape == (3,) and scores[-1] > 0.9
  assert scores[-1] == jax.jit(evaluate)(trained)


def test_a_training_that_diverges_measures_nothing(split):
  trained = jax.jit(lambda rate: _train(split, kit.sgd_cosine(rate, 6, weight_decay=0.1)))
  measure = jax.jit(lambda trained: kit.accuracy(_MODULE, trained.variables, split))
  assert 0 <= measure(trained(0.3)) <= 1
  assert np.isnan(measure(trained(1e30)))


def test_no_number_agrees_with_no_label():
  logits = np.float32([[0, 1], [np.nan, 1], [np.inf, 0], [-np.inf, 0]])
  found = jax.jit(kit.agrees)(logits, np.array([1, 1, 0, 0]))
  np.testing.assert_array_equal(found, [1, np.nan, np.nan, 0])


def test_goes_on_from_a_start(split):
  trained = jax.jit(lambda: _train(split))()
  again = jax.jit(lambda start: _train(split, num_steps=1, start=start))(trained)
  pairs = jax.device_get((trained.params, again.params))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *pairs)
  assert 0 < max(jax.tree.leaves(moved)) < 1.0


def test_a_schedule_reaches_the_loss_of_its_step(split):
  seen = kit.classification_loss(
    _MODULE, lambda apply, key, batch: apply(batch[0].inputs).logits[:, 0] * batch[1]
  )
  settings = {"num_steps": 3, "batch_size": 10}

  @jax.jit
  def run(schedule):
    return kit.train(
      jax.random.key(0), _MODULE, seen, optax.sgd(0.1), split, schedule=schedule, **settings
    ).params

  start, late, early = (run(np.float32(s)) for s in ((0, 0, 0), (0, 0, 1), (1, 0, 0)))
  kernels = [np.asarray(params["head"]["kernel"]) for params in (start, late, early)]
  assert not np.allclose(kernels[0], kernels[1]) and not np.allclose(kernels[1], kernels[2])


def test_every_epoch_sees_every_row_once():
  draw = jax.jit(lambda key: kit.epoch_rows(key, 10, num_steps=7, batch_size=3))
  rows = np.asarray(draw(jax.random.key(1)))
  assert rows.shape == (7, 3)
  for epoch in (rows[:3], rows[3:6]):
    assert len(np.unique(epoch)) == 9
  assert not np.array_equal(rows[:3], rows[3:6])


def test_predict_is_evaluation_mode_in_any_batch_size(split):
  variables = jax.jit(lambda: _train(split))().variables
  whole = jax.jit(_MODULE.apply)(variables, split.inputs)
  for batch_size in (7, 40):
    predict = functools.partial(kit.predict, _MODULE, batch_size=batch_size)
    output = jax.jit(predict)(variables, split.inputs)
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


@pytest.mark.parametrize("bad", [0, 3, 5, None])
def test_the_first_bad_step_is_told(split, bad):
  rates = jnp.full(6, 0.1).at[6 if bad is None else bad].set(jnp.inf)
  optimizer = optax.sgd(lambda step: rates[step])
  trained = jax.jit(lambda: _train(split, optimizer, eval_every=3, evaluate=lambda now: 0.0))()
  assert trained.bad_step == (-1 if bad is None else bad)


def test_the_rate_rises_in_the_first_updates_and_falls_as_a_cosine():
  optimizer = kit.adamw_cosine(0.4, 8, weight_decay=0.0, num_warmup=4)

  def step(state, _):
    updates, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
    return state, -updates

  # Of a constant gradient Adam's update is the rate.
  rates = jax.jit(lambda: jax.lax.scan(step, optimizer.init(jnp.zeros(())), length=8)[1])()
  falling = 0.2 * (1 + np.cos(np.pi * np.arange(4) / 4))
  np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, *falling], rtol=1e-4)


def test_the_best_parameters_are_kept():
  """A step of 1 away from the best place at 3: the last parameters are not those that are kept."""
  loss = kit.values_loss(lambda params, key, rows: params["place"] * jnp.ones(len(rows[0])))

  def validate(params):
    return jnp.where(params["place"] < 0, jnp.nan, (params["place"] - 3) ** 2), params["place"] + 1

  @jax.jit
  def fit(key):
    options = {"num_steps": 6, "batch_size": 2, "eval_every": 1}
    inputs = {"place": jnp.float32(5.0)}, loss, optax.sgd(1.0), (jnp.zeros(4),), validate
    return kit.train_to_best(key, *inputs, **options)

  trained = jax.device_get(fit(jax.random.key(0)))
  assert trained.params["place"] == 3 and trained.scores == (0, 4)


def test_scores_are_calibrated_on_validation():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 4000)
  logits = 5 * (np.eye(3)[labels] + rng.normal(size=(4000, 3))).astype(np.float32)
  halves = np.split(logits, 2), np.split(labels, 2)
  found = jax.jit(lambda x, y: kit.calibrated_scores(*x, labels=y))(*halves)
  scaled = [logits[2000:] / t for t in np.geomspace(0.5, 20, 100)]
  true = [x[np.arange(2000), labels[2000:]] - np.log(np.exp(x).sum(1)) for x in scaled]
  nll = [-np.mean(x) for x in true]
  assert min(nll) <= found["NLL"] + 1e-5 < min(nll) + 0.003
  right = np.mean(logits[2000:].argmax(1) == labels[2000:])
  np.testing.assert_allclose(found["accuracy"], right, rtol=1e-6)
  assert found["ECE"] < 0.04


def test_batches_are_drawn_from_the_rows_that_are_used(split):
  used = np.arange(40) % 4 == 1
  rows = datasets.Split(split.inputs, np.arange(40))
  drawn = jax.jit(lambda key: kit.drawn_from(rows, used)(key, 400))(jax.random.key(1))
  counts = np.bincount(drawn.labels, minlength=40)
  assert counts[~used].sum() == 0 and counts[used].min() > 15
  np.testing.assert_allclose(drawn.inputs, split.inputs[drawn.labels], rtol=1e-6)


def test_the_squared_loss_is_a_mean_over_outputs(split):
  module, targets = models.MLP(2, widths=(4,)), np.eye(2, dtype=np.float32)[split.labels]

  @jax.jit
  def both(key):
    variables = module.init(key, split.inputs)
    batch = datasets.Split(split.inputs, jnp.asarray(targets))
    found = kit.squared_loss(module)(variables["params"], {}, batch, key).values
    return found, module.apply(variables, split.inputs).logits

  found, predicted = both(jax.random.key(2))
  np.testing.assert_allclose(found, ((predicted - targets) ** 2).mean(1), rtol=1e-5, atol=1e-6)
