import jax
import jax.numpy as jnp
import numpy as np
from experiments.classification import Split

from experiments.mixing_adaptation import decoupled_mixup
from experiments.mixing_adaptation import decoupled_mixup_semi as semi
from jaxlab import models


def test_weak_views_shift_and_strong_views_blank():
  signals = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40, 1)), jnp.float32)
  weak = semi._shifted(jax.random.key(0), signals)
  shifts = {
    next(s for s in range(-2, 3) if np.array_equal(np.roll(x, s, 0), y))
    for x, y in zip(np.asarray(signals), np.asarray(weak))
  }
  assert shifts == set(range(-2, 3))
  blank = (semi._strong_view(jax.random.key(0), signals) == 0).sum((1, 2))
  assert blank.min() == 0 and 8 <= blank.max() <= 10  # A quarter of 40 at most.


def test_the_averaged_network_follows_the_network():
  module = models.ConvNet(10, widths=(2,), strides=(2,))
  signals = Split(np.random.default_rng(0).normal(size=(8, 40, 1)).astype(np.float32), np.arange(8))
  config = decoupled_mixup.Config(semi_batch=4, semi_steps=10)
  variables = dict(jax.eval_shape(module.init, jax.random.key(0), signals.inputs))
  state = {
    "step": jax.ShapeDtypeStruct((), jnp.int32),
    "average": variables,
    "batch_stats": variables["batch_stats"],
  }
  for eta in (None, 0.1):
    loss = semi.semi_supervised_loss(config, module, signals, eta)
    batch = (signals.inputs[:4],)
    found = jax.eval_shape(loss, variables["params"], state, batch, jax.random.key(0))
    assert found.values.shape == (4,)
    assert jax.tree.structure(found.model_state) == jax.tree.structure(state)
