import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, uncertainty

RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=(60, 5))).astype(np.float32)
TRANSFORMED = (LOGITS + RNG.normal(size=(3, 60, 5))).astype(np.float32)
LABELS = np.where(RNG.random(60) < 0.5, LOGITS.argmax(1), RNG.integers(0, 5, 60))
cues_of = jax.jit(uncertainty.transform_cues, static_argnames="top_k")
fit = jax.jit(
  functools.partial(uncertainty.fit_adaptive_temperature, num_steps=200, batch_size=50),
  static_argnames="loss_fn",
)
KEY = jax.random.key(0)


def softmax(z):
  scores = np.exp(z - z.max(-1, keepdims=True))
  return scores / scores.sum(-1, keepdims=True)


def test_cues_match_a_loop():
  expected = []
  for row in range(60):
    classes = sorted(range(5), key=lambda j: (-LOGITS[row, j], j))[:4]
    expected.append([softmax(z[row])[j] for z in TRANSFORMED for j in classes])
  np.testing.assert_allclose(cues_of(LOGITS, TRANSFORMED), expected, rtol=1e-5)


def test_cues_of_the_input_itself_are_its_top_probabilities():
  cues = cues_of(LOGITS, np.stack([LOGITS, LOGITS]), top_k=3).reshape(60, 2, 3)
  np.testing.assert_allclose(
    cues, np.sort(softmax(LOGITS))[:, None, :-4:-1].repeat(2, 1), rtol=1e-5
  )
  assert np.all(np.diff(cues) <= 0)
  # The first classes on ties.
  tied = cues_of(np.zeros((1, 5)), np.log([[[0.1, 0.2, 0.3, 0.15, 0.25]]]), top_k=2)
  np.testing.assert_allclose(tied, [[0.1, 0.2]], rtol=1e-5)


def test_missing_logits_give_missing_cues_in_their_row():
  logits = LOGITS.copy()
  logits[7, 2] = np.nan
  cues = cues_of(logits, TRANSFORMED)
  np.testing.assert_array_equal(np.isnan(cues).any(1), np.arange(60) == 7)
  none = jax.eval_shape(uncertainty.transform_cues, LOGITS[:0], TRANSFORMED[:, :0])
  assert none.shape == (0, 12)


def test_cues_do_not_depend_on_the_order_of_classes():
  order = RNG.permutation(5)
  np.testing.assert_allclose(
    cues_of(LOGITS[:, order], TRANSFORMED[:, :, order]), cues_of(LOGITS, TRANSFORMED), rtol=1e-5
  )


def test_temperatures_stay_inside_the_interval():
  params = uncertainty.init_adaptive_temperature(KEY, num_cues=12)
  assert params.hidden_kernel.shape == (12, 5) and params.kernel.shape == (5,)
  assert np.all(np.abs(params.hidden_kernel) <= 12**-0.5)
  assert np.all(np.abs(params.kernel) <= 5**-0.5) and params.bias == 1.5
  cues = cues_of(LOGITS, TRANSFORMED)
  hidden = np.maximum(cues @ params.hidden_kernel + params.hidden_bias, 0)
  temperature = jax.jit(uncertainty.adaptive_temperature)
  np.testing.assert_allclose(temperature(params, cues), hidden @ params.kernel + 1.5, rtol=1e-5)
  wild = jax.tree.map(lambda x: 1e3 * x, params)
  for sign in (1, -1):
    values = temperature(wild._replace(kernel=sign * wild.kernel, bias=sign * wild.bias), cues)
    assert np.all((values >= np.float32(0.1)) & (values <= 10))
  grad = jax.grad(lambda p: temperature(p, cues).sum())(params._replace(bias=jnp.float32(99.0)))
  assert not any(np.any(leaf) for leaf in grad)


@pytest.mark.parametrize("loss_fn", [losses.correctness_aware_loss, losses.brier_loss])
def test_fit_lowers_its_loss_and_keeps_the_predictions(loss_fn):
  cues = cues_of(LOGITS, TRANSFORMED)
  start = uncertainty.init_adaptive_temperature(jax.random.split(KEY)[0], num_cues=12)
  fitted = fit(KEY, LOGITS, cues, LABELS, loss_fn=loss_fn)

  def calibrated(params):
    temperature = uncertainty.adaptive_temperature(params, cues)
    return uncertainty.apply_temperature(LOGITS, temperature=temperature)

  assert loss_fn(calibrated(fitted), LABELS).mean() < loss_fn(calibrated(start), LABELS).mean()
  np.testing.assert_array_equal(calibrated(fitted).argmax(1), LOGITS.argmax(1))


def test_fit_separates_right_from_wrong_if_the_cue_does():
  right = RNG.random(60) < 0.5
  labels = np.where(right, LOGITS.argmax(1), LOGITS.argmin(1))
  cues = np.stack([right, ~right], 1).astype(np.float32)
  fitted = fit(KEY, LOGITS, cues, labels, learning_rate=0.05)
  temperature = uncertainty.adaptive_temperature(fitted, cues)
  assert temperature[right].max() < 0.3 and temperature[~right].min() > 3


def test_fit_of_small_sets_and_under_vmap():
  cues = cues_of(LOGITS, TRANSFORMED)
  small = functools.partial(
    uncertainty.fit_adaptive_temperature,
    logits=LOGITS[:1],
    cues=cues[:1],
    labels=LABELS[:1],
    num_steps=3,
  )
  keys = jax.random.split(KEY, 2)
  mapped, single = jax.jit(jax.vmap(small))(keys), jax.jit(small)(keys[1])
  jax.tree.map(lambda m, s: np.testing.assert_allclose(m[1], s, rtol=1e-5), mapped, single)


def test_fit_compiles_once_and_traces_where_arrays_vary_over_devices(caplog):
  options = dict(num_steps=3, batch_size=20)
  run = functools.partial(uncertainty.fit_adaptive_temperature, **options)
  cues = np.ones((60, 2), np.float32)
  run(jax.random.key(1, impl="rbg"), LOGITS, cues, LABELS)
  with jax.log_compiles():
    run(jax.random.key(2, impl="rbg"), LOGITS, cues, LABELS)
  assert not [record for record in caplog.records if "Compiling" in record.message]

  def local(*data):
    return jax.tree.map(lambda leaf: leaf[None], run(KEY, *data))

  mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.PartitionSpec("d")
  with jax.numpy_rank_promotion("raise"):
    fits = jax.eval_shape(
      jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over), LOGITS, cues, LABELS
    )
  assert fits.kernel.shape == (2, 5)


def test_errors():
  with pytest.raises(ValueError, match=r"top_k must lie in \[1, 5\], got 6"):
    uncertainty.transform_cues(LOGITS, TRANSFORMED, top_k=6)
  with pytest.raises(ValueError, match=r"transformed_logits must .* b = 60, k = 5, got \[3, 59"):
    uncertainty.transform_cues(LOGITS, TRANSFORMED[:, 1:])
  params = uncertainty.init_adaptive_temperature(KEY, num_cues=2)
  with pytest.raises(ValueError, match="max_temperature must lie in .2, inf., got 1"):
    uncertainty.adaptive_temperature(params, np.ones((3, 2)), min_temperature=2, max_temperature=1)
  with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
    uncertainty.init_adaptive_temperature(KEY, num_cues=2, hidden=0)
  with pytest.raises(ValueError, match=r"learning_rate must lie in .* got -1"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS, LOGITS, LABELS, learning_rate=-1)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS, LOGITS, LABELS - 5)
  with pytest.raises(ValueError, match="logits must not be empty"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS[:0], LOGITS[:0], LABELS[:0])
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS, LOGITS, LABELS, num_steps=0)
  with pytest.raises(ValueError, match=r"cues must .* n = 60, got \[59, 5\]"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS, LOGITS[1:], LABELS)
  with pytest.raises(TypeError, match="labels must be of type int"):
    uncertainty.fit_adaptive_temperature(KEY, LOGITS, LOGITS, LABELS / 2)
  with pytest.raises(ValueError, match=r"cues must have shape \[\*, 2\], got \[3, 4\]"):
    uncertainty.adaptive_temperature(params, np.ones((3, 4)))
