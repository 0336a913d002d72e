import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bayes import prior_training
from jaxlab import losses, models, samplers, training

OPTIONS = dict(seed=3, batch_size=8, max_context=6, group_size=2)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def test_batches_are_a_function_of_seed_and_position():
  first = prior_training.PriorBatches(**OPTIONS)
  seen = take(first, 4)
  again = prior_training.PriorBatches(**OPTIONS)
  take(again, 2)
  state = again.get_state()
  resumed = prior_training.PriorBatches(**OPTIONS)
  resumed.set_state(state)
  for expected, got in zip(seen[2:], take(resumed, 2)):
    np.testing.assert_array_equal(expected["key"], got["key"])
    np.testing.assert_array_equal(expected["num_context"], got["num_context"])
  assert not np.array_equal(seen[0]["key"], seen[1]["key"])
  other = next(prior_training.PriorBatches(**{**OPTIONS, "seed": 4}))
  assert not np.array_equal(seen[0]["key"], other["key"])


def test_context_sizes_are_shared_by_a_batch_and_keep_to_their_range():
  batches = prior_training.PriorBatches(**OPTIONS, min_context=2, steps_per_call=50)
  sizes = next(batches)["num_context"]
  assert sizes.shape == (50, 4)
  assert (sizes == sizes[:, :1]).all()
  assert set(np.unique(sizes)) == {2, 3, 4, 5}


def test_group_size_must_divide_the_batch():
  with pytest.raises(ValueError, match="batch_size 8.*group_size 3"):
    prior_training.PriorBatches(**{**OPTIONS, "group_size": 3})


@pytest.fixture(scope="module")
def trainer_of():
  prior_fn = functools.partial(samplers.gp_prior, batch_size=2, num_points=6)
  borders = jnp.linspace(-2.0, 2.0, 6)

  def build(mesh):
    return prior_training.prior_trainer(
      models.PFN(5, embed_dim=8, num_layers=1, num_heads=2),
      prior_fn,
      lambda logits, targets: losses.bar_nll(logits, targets, borders),
      num_steps=4,
      batch_size=8,
      group_size=2,
      num_points=6,
      num_features=1,
      max_context=6,
      learning_rate=1e-2,
      mesh=mesh,
    )

  return build


def test_the_data_do_not_depend_on_the_number_of_devices(trainer_of):
  losses_seen = []
  for devices in (1, 4):
    trainer = trainer_of(training.make_mesh({"data": devices}))
    state = trainer.init(jax.random.key(0))
    batches = prior_training.PriorBatches(seed=0, **trainer.batches)
    trace = []
    for _ in range(4):
      state, metrics = trainer.update(state, next(batches))
      trace.append(float(metrics["loss"]))
    losses_seen.append(trace)
  np.testing.assert_allclose(*losses_seen, rtol=2e-5)


def test_the_loss_is_the_mean_over_queries(trainer_of):
  trainer = trainer_of(None)
  state = trainer.init(jax.random.key(0))
  params = jax.tree.map(np.asarray, state.params)
  batch = next(prior_training.PriorBatches(seed=0, **trainer.batches))
  _, metrics = trainer.update(state, batch)
  c = int(batch["num_context"][0])
  prior_fn = functools.partial(samplers.gp_prior, batch_size=2, num_points=6)
  total, count = 0.0, 0
  for data in batch["key"]:
    draw = prior_fn(jax.random.wrap_key_data(jnp.asarray(data)))
    logits = trainer.module.apply({"params": params}, draw.x, draw.y, c)
    nll = losses.bar_nll(logits, draw.targets, jnp.linspace(-2.0, 2.0, 6))
    total += float(nll[:, c:].sum())
    count += nll[:, c:].size
  np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)
  assert metrics["weight"] == count


def test_bars_hold_equal_shares_of_fresh_targets():
  prior_fn = functools.partial(samplers.gp_prior, batch_size=1, num_points=5)
  borders = prior_training.prior_borders(jax.random.key(0), prior_fn, 8)
  draw = prior_training.draw_data_sets(prior_fn, jax.random.key(1), 4000)
  assert draw.x.shape == (4000, 5, 1) and draw.y.shape == (4000, 5)
  shares, _ = np.histogram(draw.y, np.asarray(borders))
  np.testing.assert_allclose(shares / draw.y.size, 1 / 8, atol=0.015)


def test_rows_hold_one_score_a_seed():
  class Trainer(prior_training.PriorTrainer):
    def train(self, context, name, seed, **options):
      assert options == {"save_every": 5}
      return {"stage": name}

  class Context:
    seeds = 2

    def cached(self, name, fn, *args):
      return {"ours": {"NLL": fn(*args)["ours"]["NLL"], "stage": name}}

  def score(seed, params):
    assert params == {"stage": f"task/seed{seed}"}
    return {"ours": {"NLL": 1.0 + seed}}

  trainer = Trainer(None, None, None, {}, 1, 1, ())
  rows = trainer.train_and_score(Context(), "task", score, save_every=5)
  stages = ["task/scores/seed0", "task/scores/seed1"]
  assert rows == {"ours": {"task/NLL": [1.0, 2.0], "task/stage": stages}}
