import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit.prior_fitting import PriorTrainer, fit_prior, score_seeds
from jaxlab import algorithms, losses, models, samplers, training

BORDERS = jnp.linspace(-2.0, 2.0, 6)


@pytest.fixture(scope="module")
def trainer_of():
  @functools.cache
  def build(mesh):
    return PriorTrainer(
      models.PFN(5, embed_dim=8, num_layers=1, num_heads=2),
      functools.partial(samplers.gp_prior, batch_size=2, num_points=6),
      lambda logits, targets: losses.bar_nll(logits, targets, BORDERS),
      num_steps=4,
      batch_size=8,
      learning_rate=1e-2,
      mesh=mesh,
    )

  return build


def test_the_data_do_not_depend_on_the_number_of_devices(trainer_of):
  traces = []
  for devices in (1, 4):
    trainer = trainer_of(training.make_mesh({"data": devices}))
    state, batches = trainer.init(jax.random.key(0)), trainer.batches(0)
    trace = []
    for _ in range(4):
      state, metrics = trainer.update(state, next(batches))
      trace.append(float(metrics["loss"]))
    traces.append(trace)
  np.testing.assert_allclose(*traces, rtol=2e-5)


def test_the_loss_is_the_mean_over_queries(trainer_of):
  trainer = trainer_of(training.make_mesh({"data": 1}))
  state = trainer.init(jax.random.key(0))
  params = jax.tree.map(np.asarray, state.params)
  batch = next(trainer.batches(0))
  _, metrics = trainer.update(state, batch)
  c = int(batch["num_context"][0])

  @jax.jit
  def nll_of(data):
    draw = trainer.prior_fn(jax.random.wrap_key_data(data))
    logits = trainer.module.apply({"params": params}, draw.x, draw.y, c)
    return losses.bar_nll(logits, draw.targets, BORDERS)

  nll = np.concatenate([nll_of(data)[:, c:] for data in batch["key"]])
  np.testing.assert_allclose(metrics["loss"], nll.mean(), rtol=1e-5)
  assert metrics["weight"] == nll.size


def test_one_program_is_a_loop_of_updates():
  def prior(key, *, step):
    x = jax.random.normal(key, (3, 2, 1))
    return samplers.PriorBatch(x, x[..., 0], x[..., 0] * step)

  def line(params, x, y, num_context):
    return x[..., 0] * params

  options = {"max_context": 1, "scheduled": True}
  fitting = algorithms.prior_fitting(
    line, optax.sgd(0.1), prior, lambda z, y: (z - y) ** 2 / 2, **options
  )

  @jax.jit
  def run(key, start):
    fit = fit_prior(
      key, fitting, start, num_steps=6, evaluate=lambda params: 2 * params, eval_every=2
    )
    state, params, losses = fitting.init(start), [], []
    for update_key in jax.random.split(key, 6):
      state, info = fitting.update(update_key, state)
      params.append(state.params)
      losses.append(info.loss)
    return fit, jnp.stack(params), jnp.stack(losses)

  key = jax.random.key(0)
  fit, params, losses = jax.tree.map(np.asarray, run(key, 1.0))
  np.testing.assert_allclose(fit.losses, losses, rtol=1e-5)
  np.testing.assert_allclose(fit.scores, 2 * params[1::2], rtol=1e-5)
  np.testing.assert_allclose(fit.params, params[-1], rtol=1e-5)
  assert fit.bad_step == -1
  assert int(run(key, np.inf)[0].bad_step) == 0
  with pytest.raises(ValueError, match="num_steps"):
    fit_prior(key, fitting, 1.0, num_steps=6, eval_every=4)


def test_rows_hold_one_score_per_seed():
  class Context:
    seeds = 2

    def cached(self, name, fn, *args):
      assert name == f"task/seed{args[0]}"
      return fn(*args)

  rows = score_seeds(Context(), "task", lambda seed: {"ours": {"NLL": [1.0 + seed, 5.0]}})
  np.testing.assert_array_equal(rows["ours"]["NLL"], [[1.0, 5.0], [2.0, 5.0]])
