"""Training of semi-supervised methods as one program, and the choice of their settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Split
from experiments.kit.views import ViewFns
from jaxlab import algorithms
from jaxlab.experiment import Context

RNG = np.random.default_rng(0)
CENTERS = 2 * RNG.normal(size=(3, 4))


def _draw(num, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.arange(num) % 3
  return Split((CENTERS[labels] + rng.normal(size=(num, 4))).astype(np.float32), labels)


def _noise(scale):
  return lambda key, inputs: inputs + scale * jax.random.normal(key, inputs.shape)


VIEWS = ViewFns(_noise(0.1), _noise(1.0))
PROTOCOL = kit.Protocol(VIEWS, num_classes=3, num_steps=6, num_labeled=4, num_unlabeled=8)
LABELED, UNLABELED = _draw(3), _draw(20, 1)


def _trainer(learning_rate=0.1):
  return algorithms.semi_supervised_training(
    lambda params, inputs: inputs @ params,
    algorithms.fixmatch_method(threshold=0.5),
    optax.sgd(learning_rate),
    decay=0.5,
  )


def test_equals_a_loop_of_single_updates():
  trainer, key = _trainer(), jax.random.key(1)
  state = jax.jit(trainer.init)(np.zeros((4, 3), np.float32))

  def watch(state, batch, info):
    return {"loss": info.loss, "first": batch.indices[0], "weight": state.params[0, 0]}

  run = functools.partial(kit.learn, protocol=PROTOCOL, watch=watch, num_parts=3)
  learned = jax.jit(lambda: run(key, trainer, state, LABELED, UNLABELED))()

  @jax.jit
  def orders():
    first, second, last = jax.random.split(key, 3)
    sizes = {"num_steps": 6, "batch_size": 8}
    return kit.repeated_rows(first, 3, 6, 4), kit.epoch_rows(second, 20, **sizes), last

  @jax.jit
  def update(state, step, key, known, other):
    batch_key, method_key = jax.random.split(jax.random.fold_in(key, step))
    labeled_key, unlabeled_key = jax.random.split(batch_key)
    views = [
      algorithms.draw_views(k, x, weak_fn=VIEWS.weak, strong_fn=VIEWS.strong)
      for k, x in ((labeled_key, known.inputs), (unlabeled_key, other.inputs))
    ]
    targets = jax.nn.one_hot(known.labels, 3)
    batch = algorithms.SemiSupervisedBatch(views[0], targets, views[1], truth=other.labels)
    return trainer.update(method_key, state, batch)

  known, other, step_key = orders()
  losses, firsts, weights = [], [], []
  for i, (rows, others) in enumerate(zip(np.asarray(known), np.asarray(other))):
    parts = [Split(*(x[r] for x in split)) for split, r in ((LABELED, rows), (UNLABELED, others))]
    state, info = update(state, i, step_key, *parts)
    losses.append(info.loss)
    firsts.append(others[0])
    weights.append(np.asarray(state.params)[0, 0])
  np.testing.assert_allclose(learned.state.params, state.params, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(learned.state.average, state.average, rtol=1e-4, atol=1e-6)
  for name, values in (("loss", losses), ("first", firsts), ("weight", weights)):
    means = np.mean(np.reshape(values, (3, 2)), axis=1)
    np.testing.assert_allclose(learned.seen[name], means, rtol=1e-4, atol=1e-6)
  assert learned.bad_step == -1


def test_rows_repeat_only_once_all_others_came():
  rows = np.asarray(
    jax.jit(kit.repeated_rows, static_argnums=(1, 2, 3))(jax.random.key(0), 5, 3, 7)
  )
  assert rows.shape == (3, 7)
  counts = np.bincount(rows.ravel(), minlength=5)
  assert counts.min() == 4 and counts.max() == 5
  assert all(sorted(epoch) == list(range(5)) for epoch in rows.ravel()[:20].reshape(4, 5))


def _evaluate(key, splits, setting):
  trainer = _trainer(setting["learning_rate"])
  state = trainer.init(jnp.zeros((4, 3)))
  learned = kit.learn(key, trainer, state, *splits[:2], PROTOCOL)
  return kit.evaluate(trainer, learned, *splits[2:], views=VIEWS)


def test_a_setting_is_chosen_by_validation_and_never_one_that_broke_down(tmp_path, capsys):
  draws = [(_draw(3, s), _draw(20, s + 9), _draw(30, s + 5), _draw(60, s + 7)) for s in range(2)]
  splits = jax.tree.map(lambda *x: np.stack(x), *draws)
  context = Context(tmp_path, jax.random.key(0), seeds=2)
  rates = [{"learning_rate": 0.1}, {"learning_rate": np.inf}]
  methods = {"both": (_evaluate, rates), "one": (_evaluate, rates[:1])}
  measured = kit.search(context, "set", splits, methods)
  np.testing.assert_array_equal(measured["both"]["chosen/learning_rate"], 0.1)
  np.testing.assert_array_equal(measured["both"]["accuracy"], measured["one"]["accuracy"])
  assert np.all(measured["one"]["accuracy"] > 0.7)
  assert measured["one"]["utilization"].shape == (2, 1)
  # An infinite rate leaves parameters that are no numbers, and the next update is skipped.
  assert capsys.readouterr().out.count("parameters are not finite after step 1") == 2


def test_classes_may_be_merged_and_inputs_transformed():
  trainer = algorithms.semi_supervised_training(
    lambda params, inputs: inputs @ params, algorithms.supervised_method(), optax.sgd(0.1)
  )
  views = VIEWS._replace(clean=lambda inputs: -inputs)
  split = _draw(30)
  table = np.eye(4, dtype=np.float32)

  @jax.jit
  def scores():
    learned = kit.Learned(trainer.init(table), {}, -1)
    merge = lambda logits: jnp.maximum(logits[:, :2], logits[:, 2:])  # noqa: E731
    return kit.evaluate(trainer, learned, split, split, views=views, merge=merge)

  logits = np.maximum(-split.inputs[:, :2], -split.inputs[:, 2:])
  np.testing.assert_allclose(scores()["accuracy"], (logits.argmax(1) == split.labels).mean())


def test_parts_must_divide_the_steps():
  with pytest.raises(ValueError, match="num_parts=4 does not divide num_steps=6"):
    kit.learn(jax.random.key(0), _trainer(), None, LABELED, UNLABELED, PROTOCOL, num_parts=4)


def test_the_rate_falls_to_a_fifth():
  optimizer = kit.slow_cosine(0.5, 100)
  state = jax.jit(optimizer.init)(np.float32(0))
  set_count = jax.tree.map(lambda x: jnp.int32(99) if x.dtype == jnp.int32 else x, state)
  update = jax.jit(lambda state: optimizer.update(jnp.float32(1), state, jnp.float32(0))[0])
  first, last = update(state), update(set_count)
  np.testing.assert_allclose(first, -0.5 * 1.9, rtol=1e-6)  # Nesterov: 1 + .9.
  np.testing.assert_allclose(last / first, np.cos(7 * np.pi * 0.99 / 16), rtol=1e-5)
