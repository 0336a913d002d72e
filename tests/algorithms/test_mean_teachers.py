from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses


class Output(NamedTuple):
  features: chex.Array
  logits: chex.Array


def forward(params, inputs):
  hidden = inputs @ params["dense"]
  centered = hidden - hidden.mean(0)
  features = jnp.tanh(centered * jax.lax.rsqrt(jnp.square(centered).mean(0) + 1e-5))
  return Output(features, features @ params["head"])


def flip(key, inputs):
  del key
  return inputs[:, ::-1]


def noisy(key, inputs):
  return inputs + 0.1 * jax.random.normal(key, inputs.shape)


def project(params, features):
  return features @ params["w"]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  return {
    "dense": rng.normal(size=(4, 5)).astype(np.float32),
    "head": rng.normal(size=(5, 3)).astype(np.float32),
  }


@pytest.fixture(scope="module")
def projector():
  return {"w": np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)}


@pytest.fixture(scope="module")
def batches():
  return np.random.default_rng(2).normal(size=(4, 6, 4)).astype(np.float32)


PROTOTYPES = np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)
SGD = optax.sgd(0.1)


def rmt(optimizer=SGD, augment=flip, **kwargs):
  return algorithms.robust_mean_teacher(
    forward, augment, optimizer, prototypes=PROTOTYPES, project_fn=project, **kwargs
  )


# A teacher that differs from the student distinguishes the two.
def apart(state):
  return state._replace(teacher=jax.tree.map(lambda x: 0.5 * x + 0.1, state.student))


def test_update_matches_its_formulas(params, projector, batches):
  x = batches[0]
  labels = np.array([0, 1, 2, 0, 1, 2])
  source = (batches[1], labels)
  adapter = rmt(
    alpha=0.3,
    decay=0.9,
    temperature=0.5,
    self_training_weight=0.7,
    contrastive_weight=0.2,
    source_weight=0.4,
  )
  state = apart(adapter.init(params, projector))
  new, info = jax.jit(adapter.update)(jax.random.key(0), state, x, source)
  teacher = forward(state.teacher, x).logits

  def loss(student, projector):
    clean, augmented = forward(student, x), forward(student, x[:, ::-1])
    agreement = [_sce(out.logits, teacher, 0.3) for out in (clean, augmented)]
    nearest = jnp.asarray(PROTOTYPES)[losses.nearest_prototypes(clean.features, PROTOTYPES)]
    views = jnp.stack(
      [project(projector, f) for f in (nearest, clean.features, augmented.features)], axis=1
    )
    contrast = losses.multiview_contrastive_loss(views, temperature=0.5)
    replay = -jax.nn.log_softmax(forward(student, source[0]).logits)[jnp.arange(6), labels]
    consistency = (agreement[0] + agreement[1]) / 2
    return 0.7 * consistency.mean() + 0.2 * contrast.mean() + 0.4 * replay.mean()

  value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  value, grads = value_and_grad(state.student, state.projector)
  np.testing.assert_allclose(info.loss, value, rtol=1e-5)
  np.testing.assert_allclose(info.logits, forward(params, x).logits + teacher, rtol=1e-5, atol=1e-6)
  for name in params:
    student = params[name] - 0.1 * grads[0][name]
    np.testing.assert_allclose(new.student[name], student, rtol=1e-4, atol=1e-6)
    mean = 0.9 * state.teacher[name] + 0.1 * student
    np.testing.assert_allclose(new.teacher[name], mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(new.projector["w"], projector["w"] - 0.1 * grads[1]["w"], rtol=1e-4)


def _sce(s, t, alpha):
  ls, lt = jax.nn.log_softmax(s), jax.lax.stop_gradient(jax.nn.log_softmax(t))
  return -((1 - alpha) * (jnp.exp(lt) * ls).sum(-1) + alpha * (jnp.exp(ls) * lt).sum(-1))


def test_projector_is_unchanged_without_the_contrastive_loss(params, projector, batches):
  adapter = rmt(contrastive_weight=0.0)
  state = apart(adapter.init(params, projector))
  new, _ = jax.jit(adapter.update)(jax.random.key(0), state, batches[0])
  np.testing.assert_array_equal(new.projector["w"], projector["w"])


def test_stream_with_replay_matches_a_loop(params, projector, batches):
  adapter = rmt(optax.adam(1e-2), augment=noisy, source_weight=1.0)
  key, start = jax.random.key(5), adapter.init(params, projector)
  source = (batches[::-1], np.tile(np.arange(6) % 3, (4, 1)))
  last, infos = algorithms.adapt_stream(key, adapter, start, batches, source)
  state, update = start, jax.jit(adapter.update)
  for i, k in enumerate(jax.random.split(key, 4)):
    state, info = update(k, state, batches[i], (source[0][i], source[1][i]))
    np.testing.assert_allclose(infos.logits[i], info.logits, rtol=1e-3, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), last, state)


@pytest.mark.parametrize("where", ["inputs", "source"])
def test_non_finite_batch_changes_no_model(params, projector, batches, where):
  adapter = rmt(optax.adam(1e-2), source_weight=1.0)
  state = apart(adapter.init(params, projector))
  x, source = batches[0].copy(), batches[1].copy()
  (x if where == "inputs" else source)[0, 0] = np.nan
  new, info = jax.jit(adapter.update)(
    jax.random.key(0), state, x, (source, jnp.zeros(6, jnp.int32))
  )
  assert info.skipped == 1 and not np.any(info.selected)
  jax.tree.map(np.testing.assert_array_equal, new, state)


def test_replay_needs_source_data(params, projector, batches):
  adapter = rmt(source_weight=1.0)
  with pytest.raises(ValueError, match="source_weight=1.0 needs a source_batch"):
    adapter.update(jax.random.key(0), adapter.init(params, projector), batches[0])


@pytest.mark.parametrize(
  "bad",
  [
    {"alpha": 1.2},
    {"decay": -0.1},
    {"temperature": 0.0},
    {"source_weight": -1.0},
    {"contrastive_weight": np.nan},
  ],
)
def test_hyper_parameters_out_of_range(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    rmt(**bad)


def test_hyper_parameters_may_be_traced(params, projector, batches):
  def loss(alpha):
    adapter = rmt(alpha=alpha)
    state = apart(adapter.init(params, projector))
    return adapter.update(jax.random.key(0), state, batches[0])[1].loss

  many = jax.jit(jax.vmap(loss))(jnp.array([0.0, 0.5]))
  np.testing.assert_allclose(many[1], jax.jit(loss)(0.5), rtol=1e-5)


def test_batch_of_one(params, projector, batches):
  adapter = rmt()
  start = adapter.init(params, projector)
  _, info = jax.jit(adapter.update)(jax.random.key(0), start, batches[0, :1])
  assert np.isfinite(info.loss) and info.logits.shape == (1, 3)


def test_warm_up_matches_a_loop_with_its_own_rate(params, projector, batches):
  adapter = rmt(optax.adam(1e-3))
  state = apart(adapter.init(params, projector))
  bad = batches.copy()
  bad[1, 0] = np.nan
  schedule = optax.sgd(lambda i: 0.1 * (i + 1) / 4)
  warm = algorithms.mean_teacher_warm_up(forward, schedule, state, bad, alpha=0.5, decay=0.8)
  student, teacher = state.student, state.teacher
  grad = jax.jit(jax.grad(lambda p, x, t: _sce(forward(p, x).logits, t, 0.5).mean()))
  for i, x in enumerate(np.delete(bad, 1, axis=0)):
    grads = grad(student, x, forward(teacher, x).logits)
    # A batch that is left out does not count as a step.
    student = jax.tree.map(lambda p, g, i=i: p - 0.1 * (i + 1) / 4 * g, student, grads)
    teacher = jax.tree.map(lambda t, p: 0.8 * t + 0.2 * p, teacher, student)
  for name in params:
    np.testing.assert_allclose(warm.student[name], student[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(warm.teacher[name], teacher[name], rtol=1e-4, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, warm.opt_state, state.opt_state)
  jax.tree.map(np.testing.assert_array_equal, warm.projector, state.projector)


def cotta(optimizer=SGD, augment=noisy, **kwargs):
  kwargs = {"num_augmentations": 3, "restore_prob": 0.0} | kwargs
  return algorithms.continual_mean_teacher(forward, augment, optimizer, **kwargs)


def test_teacher_averages_augmentations_if_the_source_is_uncertain(params, batches):
  x, key = batches[0], jax.random.key(1)
  for threshold, expected in (
    (0.0, forward(params, x).logits),
    (1.1, jnp.mean(jnp.stack([forward(params, noisy(k, x)).logits for k in _keys(key)]), 0)),
  ):
    adapter = cotta(confidence_threshold=threshold, decay=0.6)
    new, info = jax.jit(adapter.update)(key, adapter.init(params), x)
    np.testing.assert_allclose(info.logits, expected, rtol=1e-4, atol=1e-5)
    target = jax.nn.softmax(expected)

    def loss(p, target=target):
      return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(forward(p, x).logits), -1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(info.loss, value, rtol=1e-4)
    student = params["head"] - 0.1 * grads["head"]
    np.testing.assert_allclose(new.student["head"], student, rtol=1e-4, atol=1e-5)
    mean = 0.6 * params["head"] + 0.4 * student
    np.testing.assert_allclose(new.teacher["head"], mean, rtol=1e-4, atol=1e-5)


def _keys(key):
  return jax.random.split(jax.random.split(key)[0], 3)


def test_restoring_resets_parameters_to_the_source(params, batches):
  def run(restore_prob):
    adapter = cotta(optax.sgd(1.0), restore_prob=restore_prob)
    state, update = adapter.init(params), jax.jit(adapter.update)
    state, _ = update(jax.random.key(0), state, batches[0])
    return update(jax.random.key(1), state, batches[1])[0]

  back = run(1.0)
  jax.tree.map(np.testing.assert_array_equal, back.student, back.source)
  jax.tree.map(np.testing.assert_array_equal, back.source, params)
  assert not np.array_equal(back.teacher["head"], params["head"])
  some = run(0.5)
  share = np.mean(np.asarray(some.student["dense"]) == params["dense"])
  assert 0.2 < share < 0.8


def test_non_finite_batch_leaves_the_continual_teacher_unchanged(params, batches):
  adapter = cotta()
  bad = batches.copy()
  bad[1, 0] = np.nan
  state, infos = algorithms.adapt_stream(jax.random.key(0), adapter, adapter.init(params), bad)
  np.testing.assert_array_equal(infos.skipped, [0, 1, 0, 0])
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_continual_mean_teacher_errors():
  with pytest.raises(ValueError, match="num_augmentations"):
    cotta(num_augmentations=0)
  with pytest.raises(ValueError, match="restore_prob"):
    cotta(restore_prob=1.5)
  with pytest.raises(ValueError, match="decay"):
    cotta(decay=1.5)
