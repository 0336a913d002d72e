import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import augment

B = 6
KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 300)
IMAGES = np.random.default_rng(0).normal(size=(B, 8, 6, 2)).astype(np.float32)
SIGNALS = IMAGES.reshape(B, 48, 2)
LABELS = np.array([0, 1, 2, 3, 4, 0])
POLICIES = {
  "mixup": (augment.mixup, IMAGES),
  "cutmix": (augment.cutmix, IMAGES),
  "saliency_box_mix": (augment.saliency_box_mix, IMAGES),
  "segment_mix": (augment.segment_mix, SIGNALS),
}
policies = pytest.mark.parametrize(("policy", "inputs"), POLICIES.values(), ids=POLICIES)


@pytest.fixture(scope="module")
def mixed():
  """The output of each policy for many keys."""
  return {
    name: jax.device_get(jax.jit(jax.vmap(lambda key, p=policy, x=inputs: p(key, x, LABELS)))(KEYS))
    for name, (policy, inputs) in POLICIES.items()
  }


@pytest.mark.parametrize("name", POLICIES)
def test_labels_partners_and_ratio_are_consistent(mixed, name):
  result = mixed[name]
  np.testing.assert_array_equal(result.labels_a, np.tile(LABELS, (len(KEYS), 1)))
  np.testing.assert_array_equal(result.labels_b, LABELS[result.permutation])
  np.testing.assert_array_equal(np.sort(result.permutation), np.tile(range(B), (len(KEYS), 1)))
  assert ((result.ratio >= 0) & (result.ratio <= 1)).all()
  if name != "saliency_box_mix":  # One ratio per batch, but there the borders clip each row.
    assert (result.ratio == result.ratio[:, :1]).all()


def test_mixup_interpolates(mixed):
  for i in range(20):
    result = jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64), mixed["mixup"])
    share = result.ratio[:, None, None, None]
    expected = share * IMAGES + (1 - share) * IMAGES[result.permutation.astype(int)]
    np.testing.assert_allclose(result.inputs, expected, rtol=1e-4, atol=1e-6)


def test_ratios_follow_the_beta_distribution_and_partners_are_uniform(mixed):
  assert stats.kstest(np.asarray(mixed["mixup"].ratio[:, 0]), "uniform").pvalue > 1e-3
  counts = np.array([(mixed["mixup"].permutation[:, 0] == i).sum() for i in range(B)])
  assert stats.chisquare(counts).pvalue > 1e-3
  draw_mix = jax.jit(augment.draw_mix, static_argnames=("batch_size", "per_example", "majority"))
  draws = jax.device_get(draw_mix(KEY, batch_size=2000, alpha=0.3, per_example=True))
  assert stats.kstest(np.asarray(draws.ratio), stats.beta(0.3, 0.3).cdf).pvalue > 1e-3
  folded = draw_mix(KEY, batch_size=2000, alpha=0.3, per_example=True, majority=True)
  np.testing.assert_allclose(folded.ratio, np.maximum(draws.ratio, 1 - draws.ratio))


@pytest.mark.parametrize("name", ["cutmix", "saliency_box_mix", "segment_mix"])
def test_pixels_come_from_row_or_partner_and_ratio_counts_them(mixed, name):
  result, inputs = mixed[name], POLICIES[name][1]
  partners = inputs[np.asarray(result.permutation)]
  taken = np.all(result.inputs == partners, axis=-1)
  assert (taken | np.all(result.inputs == inputs, axis=-1)).all()
  itself = np.asarray(result.permutation) == np.arange(B)
  counted = np.where(itself, result.ratio, 1 - taken.reshape(len(KEYS), B, -1).mean(-1))
  np.testing.assert_allclose(counted, result.ratio, atol=1e-6)


def test_centers_cover_the_image(mixed):
  """Every pixel is covered by some draw, because centers are uniform over the image."""
  for name in ("cutmix", "segment_mix"):
    inputs = POLICIES[name][1]
    other = mixed[name].permutation[:, 0] != 0
    covered = np.any(mixed[name].inputs[:, 0] != inputs[0], axis=-1)[np.asarray(other)]
    assert covered.any(0).all()


def test_saliency_box_contains_the_salient_pixel():
  images = np.zeros((4, 8, 8, 1), np.float32)
  peaks = [(2, 2), (5, 3), (4, 6), (3, 5)]
  for image, (y, x) in zip(images, peaks):
    image[y, x] = 1
  mix = jax.jit(jax.vmap(lambda key: augment.saliency_box_mix(key, images, np.arange(4))))
  result = jax.device_get(mix(KEYS[:40]))
  for inputs, permutation, ratio in zip(result.inputs, result.permutation, result.ratio):
    for image, partner, share in zip(inputs, permutation, ratio):
      if share < 1:  # A box that is not empty shows the object of its label.
        assert image[peaks[partner]] == 1


def test_per_example_draws_one_ratio_per_row(mixed):
  for name in ("mixup", "cutmix", "segment_mix"):
    policy, inputs = POLICIES[name]
    own = jax.jit(functools.partial(policy, per_example=True))(KEY, inputs, LABELS)
    assert len(np.unique(own.ratio)) > 2


@policies
def test_label_trees_half_precision_and_batch_of_one(policy, inputs):
  labels = {"class": LABELS, "soft": np.eye(5, dtype=np.float32)[LABELS]}
  mix = jax.jit(policy)
  result = jax.device_get(mix(KEY, inputs.astype(jnp.bfloat16), labels))
  assert result.inputs.dtype == jnp.bfloat16 and result.ratio.dtype == jnp.float32
  np.testing.assert_array_equal(result.labels_a["soft"], labels["soft"])
  np.testing.assert_array_equal(result.labels_b["soft"].argmax(-1), result.labels_b["class"])
  alone = mix(KEY, inputs[:1], LABELS[:1])
  np.testing.assert_allclose(alone.inputs, inputs[:1], rtol=1e-6)


@policies
def test_a_list_of_numbers_is_an_array_of_labels(policy, inputs):
  for labels, shape in ((LABELS.tolist(), (B,)), (np.eye(5)[LABELS].tolist(), (B, 5))):
    mixed = jax.eval_shape(lambda x, labels=labels: policy(KEY, x, labels), inputs)
    assert mixed.labels_a.shape == mixed.labels_b.shape == shape
  pair = jax.eval_shape(lambda x: policy(KEY, x, [LABELS, LABELS]), inputs)
  assert [leaf.shape for leaf in pair.labels_b] == [(B,), (B,)]


@policies
def test_an_empty_batch_is_empty(policy, inputs):
  mixed = jax.eval_shape(lambda x: policy(KEY, x, LABELS[:0]), inputs[:0])
  assert mixed.inputs.shape == (0, *inputs.shape[1:]) and mixed.ratio.shape == (0,)


@policies
def test_policies_check_alpha_and_labels(policy, inputs):
  for alpha in (0.0, -1.0, np.nan):
    with pytest.raises(ValueError, match="alpha"):
      policy(KEY, inputs, LABELS, alpha=alpha)
  with pytest.raises(
    ValueError, match=r"labels\['soft'\] must have shape \[6, \.\.\.\], got \[3\]"
  ):
    policy(KEY, inputs, {"class": LABELS, "soft": LABELS[:3]})
  spread = jax.jit(jax.vmap(lambda alpha: policy(KEY, inputs, LABELS, alpha=alpha).ratio))
  assert np.isfinite(spread(jnp.array([1e-3, 1.0, 1e3]))).all()


def test_policies_check_the_rank_of_inputs():
  with pytest.raises(ValueError, match="images must have shape"):
    augment.cutmix(KEY, SIGNALS, LABELS)
  with pytest.raises(ValueError, match="signals must have shape"):
    augment.segment_mix(KEY, IMAGES, LABELS)


def test_manifold_mixup_in_one_program():
  layers = jax.vmap(lambda key: augment.mixing_layer(key, num_layers=3))(KEYS)
  assert layers.dtype == jnp.int32
  assert stats.chisquare(np.bincount(layers, minlength=3)).pvalue > 1e-3
  draw = augment.draw_mix(KEY, batch_size=B, per_example=True)

  @jax.jit
  def network(chosen):
    def mix(layer, hidden):
      mixed = augment.interpolate_pairs(hidden, draw.permutation, draw.ratio)
      return jnp.where(layer == chosen, mixed, hidden)

    return mix(1, jnp.square(mix(0, IMAGES)))

  share = np.asarray(draw.ratio)[:, None, None, None]
  mean = lambda x: share * x + (1 - share) * x[np.asarray(draw.permutation)]  # noqa: E731
  np.testing.assert_allclose(network(0), np.square(mean(IMAGES)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(network(1), mean(np.square(IMAGES)), rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="num_layers"):
    augment.mixing_layer(KEY, num_layers=0)


def test_pairs_of_batches_are_mixed_in_one_ratio():
  others, targets = IMAGES[::-1] + 1, np.eye(5, dtype=np.float32)[LABELS]
  guesses = np.full((B, 5), 0.2, np.float32)

  def pairs(keep_first):
    def mix(key):
      return augment.mixup_pairs(key, IMAGES, others, targets, guesses, keep_first=keep_first)

    return jax.device_get(jax.jit(jax.vmap(mix))(jax.random.split(jax.random.key(2), 300)))

  first, free = pairs(True), pairs(False)
  assert first.ratio.shape == (300,) and first.ratio.min() >= 0.5 and first.ratio.max() <= 1
  np.testing.assert_allclose(first.ratio, np.maximum(free.ratio, 1 - free.ratio), rtol=1e-6)
  assert stats.kstest(free.ratio, stats.beta(0.75, 0.75).cdf).pvalue > 0.01
  for i in range(5):
    share = first.ratio[i]
    np.testing.assert_allclose(
      first.inputs[i], share * IMAGES + (1 - share) * others, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(first.targets[i], share * targets + (1 - share) * guesses, rtol=1e-5)
  with pytest.raises(ValueError, match=r"alpha must lie in \(0, inf\), got 0"):
    augment.mixup_pairs(KEY, IMAGES, others, targets, guesses, alpha=0)
  with pytest.raises(ValueError, match="targets_b must have shape"):
    augment.mixup_pairs(KEY, IMAGES, others, targets, guesses[:, :2])
