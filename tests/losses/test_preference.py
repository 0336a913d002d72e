import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses
from jaxlab.losses import sequence

B = 6
RNG = np.random.default_rng(0)
# Policy and reference, chosen and rejected.
PAIRS = tuple((-20 + 5 * RNG.normal(size=(4, B))).astype(np.float32))
LENGTHS = np.array([3, 1, 0, 7, 4, 9]), np.array([2, 5, 3, 0, 4, 8])
REFERENCED = ("dpo_loss", "robust_dpo_loss", "ipo_loss", "hinge_loss")
jitted = {
  name: jax.jit(getattr(losses, name))
  for name in ("simpo_loss", "implicit_reward", *REFERENCED[1:])
}
jitted["dpo_loss"] = jax.jit(losses.dpo_loss, static_argnames="reference_free")
jitted["rpo_loss"] = jax.jit(losses.rpo_loss, static_argnames="average")


def gradient(loss):
  return jax.jit(
    jax.grad(lambda *pairs, **settings: loss(*pairs, **settings).sum(), argnums=(0, 1, 2, 3))
  )


slopes = {name: gradient(jitted[name]) for name in REFERENCED}


def log_sigmoid(x):
  return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def log_ratios(pairs):
  chosen, rejected, ref_chosen, ref_rejected = (np.asarray(x, np.float64) for x in pairs)
  return chosen - ref_chosen, rejected - ref_rejected


def slow(name, pairs, beta, smoothing=0.0):
  """The formulas of the papers."""
  chosen, rejected = log_ratios(pairs)
  delta = chosen - rejected
  if name == "dpo_loss":
    return -(1 - smoothing) * log_sigmoid(beta * delta) - smoothing * log_sigmoid(-beta * delta)
  if name == "robust_dpo_loss":
    terms = (1 - smoothing) * log_sigmoid(beta * delta) - smoothing * log_sigmoid(-beta * delta)
    return -terms / (1 - 2 * smoothing)
  if name == "ipo_loss":
    return (delta - 1 / (2 * beta)) ** 2
  return np.maximum(0, 1 - beta * delta)


@pytest.mark.parametrize("name", REFERENCED)
def test_losses_match_the_formulas(name):
  smoothed = name in ("dpo_loss", "robust_dpo_loss")
  for beta in (0.1, 0.7):
    for smoothing in (0.0, 0.3) if smoothed else (0.0,):
      keywords = {"beta": beta} | ({"label_smoothing": smoothing} if smoothed else {})
      expected = slow(name, PAIRS, beta, smoothing)
      np.testing.assert_allclose(jitted[name](*PAIRS, **keywords), expected, rtol=1e-5, atol=1e-6)


def test_defaults():
  for name, expected in (
    ("dpo_loss", slow("dpo_loss", PAIRS, 0.1)),
    ("robust_dpo_loss", slow("robust_dpo_loss", PAIRS, 0.1, 0.1)),
    ("ipo_loss", slow("ipo_loss", PAIRS, 0.1)),
    ("hinge_loss", slow("hinge_loss", PAIRS, 0.1)),
  ):
    np.testing.assert_allclose(jitted[name](*PAIRS), expected, rtol=1e-5)


def test_losses_of_a_policy_equal_to_its_reference():
  same = (PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1])
  np.testing.assert_allclose(jitted["dpo_loss"](*same), np.full(B, np.log(2)), rtol=1e-6)
  np.testing.assert_allclose(jitted["ipo_loss"](*same, beta=0.2), np.full(B, 1 / 0.16), rtol=1e-6)
  np.testing.assert_array_equal(jitted["hinge_loss"](*same), np.ones(B))
  np.testing.assert_array_equal(jitted["implicit_reward"](PAIRS[0], PAIRS[0]), np.zeros(B))


@pytest.mark.parametrize("name", REFERENCED)
def test_adding_a_constant_to_both_responses_changes_nothing(name):
  moved = (PAIRS[0] + 8, PAIRS[1] + 8, *PAIRS[2:])
  np.testing.assert_allclose(jitted[name](*moved), jitted[name](*PAIRS), rtol=1e-5, atol=1e-5)


def test_label_smoothing_of_one_half_is_symmetric_in_the_pair():
  swapped = (PAIRS[1], PAIRS[0], PAIRS[3], PAIRS[2])
  loss = jitted["dpo_loss"]
  result = loss(*PAIRS, label_smoothing=0.5)
  np.testing.assert_allclose(result, loss(*swapped, label_smoothing=0.5), rtol=1e-6)


def test_robust_loss_is_unbiased_under_flips():
  rate = 0.2
  flipped = (PAIRS[1], PAIRS[0], PAIRS[3], PAIRS[2])
  clean, noisy = (jitted["robust_dpo_loss"](*x, label_smoothing=rate) for x in (PAIRS, flipped))
  mean = (1 - rate) * clean + rate * noisy
  np.testing.assert_allclose(mean, jitted["dpo_loss"](*PAIRS), rtol=1e-5, atol=1e-6)


def test_gradient_of_dpo_matches_the_closed_form():
  beta, smoothing = 0.3, 0.1
  chosen, rejected, *reference = slopes["dpo_loss"](*PAIRS, beta=beta, label_smoothing=smoothing)
  ratios = log_ratios(PAIRS)
  expected = -beta * (sigmoid(-beta * (ratios[0] - ratios[1])) - smoothing)
  np.testing.assert_allclose(chosen, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(rejected, -expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", REFERENCED)
def test_no_gradient_reaches_the_reference(name):
  policy_chosen, policy_rejected, *reference = slopes[name](*PAIRS)
  assert np.any(policy_chosen != 0)
  np.testing.assert_array_equal(policy_chosen, -policy_rejected)
  for slope in reference:
    np.testing.assert_array_equal(slope, np.zeros(B))


def test_hinge_has_gradient_0_at_its_kink():
  at_kink = np.float32([8.0]), np.float32([0.0]), np.zeros(1, np.float32), np.zeros(1, np.float32)
  for slope in slopes["hinge_loss"](*at_kink, beta=0.125):
    np.testing.assert_array_equal(slope, [0])


def test_reference_free_ignores_the_reference():
  hidden = (*PAIRS[:2], PAIRS[2] * np.nan, PAIRS[3] * np.nan)
  zeros = (*PAIRS[:2], PAIRS[2] * 0, PAIRS[3] * 0)
  result = jitted["dpo_loss"](*hidden, reference_free=True)
  np.testing.assert_array_equal(result, jitted["dpo_loss"](*zeros))


def test_ipo_with_lengths_matches_the_formula():
  chosen, rejected = log_ratios(PAIRS)
  lengths = (np.maximum(x, 1) for x in LENGTHS)
  expected = (chosen / next(lengths) - rejected / next(lengths) - 5.0) ** 2
  result = jitted["ipo_loss"](*PAIRS, chosen_lengths=LENGTHS[0], rejected_lengths=LENGTHS[1])
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_simpo_matches_the_formula():
  chosen, rejected = (np.asarray(x, np.float64) / np.maximum(n, 1) for x, n in zip(PAIRS, LENGTHS))
  loss = jitted["simpo_loss"]
  for beta, margin, smoothing in ((2.0, 1.0, 0.0), (1.5, 0.3, 0.2)):
    z = beta * (chosen - rejected) - margin
    expected = -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
    result = loss(*PAIRS[:2], *LENGTHS, beta=beta, margin=margin, label_smoothing=smoothing)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    loss(*PAIRS[:2], *LENGTHS), loss(*PAIRS[:2], *LENGTHS, beta=2.0, margin=1.0), rtol=1e-6
  )


def test_simpo_of_equal_lengths_is_dpo_without_a_reference():
  length = np.full(B, 4)
  result = jitted["simpo_loss"](*PAIRS[:2], length, length, beta=2.0, margin=0.0)
  expected = jitted["dpo_loss"](*PAIRS, beta=0.5, reference_free=True)
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_rpo_is_dpo_plus_the_likelihood_of_the_baseline():
  loss, base = jitted["rpo_loss"], PAIRS[0] + 3
  for beta, weight in ((0.05, 0.005), (0.3, 0.7)):
    preference = slow("dpo_loss", PAIRS, beta)
    settings = {"beta": beta, "sft_weight": weight}
    np.testing.assert_allclose(
      loss(*PAIRS, **settings), preference - weight * beta * PAIRS[0], rtol=1e-5
    )
    result = loss(*PAIRS, baseline_log_probs=base, **settings)
    np.testing.assert_allclose(result, preference - weight * beta * base, rtol=1e-5)
    # The mean form, whose weight beta does not scale.
    lengths = {"baseline_lengths": LENGTHS[0], "average": True}
    result = loss(*PAIRS, baseline_log_probs=base, **lengths, **settings)
    expected = preference - weight * base / np.maximum(LENGTHS[0], 1)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
  np.testing.assert_allclose(loss(*PAIRS), loss(*PAIRS, beta=0.05, sft_weight=0.005), rtol=1e-6)


def test_rpo_without_its_baseline_is_dpo():
  settings = {"beta": 0.2, "label_smoothing": 0.1}
  result = jitted["rpo_loss"](*PAIRS, sft_weight=0.0, **settings)
  np.testing.assert_allclose(result, jitted["dpo_loss"](*PAIRS, **settings), rtol=1e-6)
  # Also where the chosen response is impossible under the policy.
  impossible = (PAIRS[0] * np.inf, *PAIRS[1:])
  result = jitted["rpo_loss"](*impossible, sft_weight=0.0, label_smoothing=0.0)
  np.testing.assert_array_equal(result, np.full(B, np.inf))


def test_gradient_of_rpo_matches_the_closed_form():
  beta, weight = 0.3, 0.5
  slope = gradient(losses.rpo_loss)
  chosen, rejected, *reference = slope(*PAIRS, beta=beta, sft_weight=weight)
  ratios = log_ratios(PAIRS)
  preference = beta * sigmoid(-beta * (ratios[0] - ratios[1]))
  np.testing.assert_allclose(chosen, -preference - weight * beta, rtol=1e-5)
  np.testing.assert_allclose(rejected, preference, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(reference, np.zeros((2, B)))
  extreme = tuple(np.full(B, x, np.float32) for x in (-1e4, 1e4, 0.0, 0.0))
  assert np.isfinite(slope(*extreme, beta=beta, sft_weight=weight)).all()


def test_errors_of_rpo():
  for keywords, message in (
    ({"beta": 0.0}, r"beta must lie in \(0, inf\), got 0.0"),
    ({"sft_weight": -0.1}, r"sft_weight must lie in \[0, inf\), got -0.1"),
    ({"label_smoothing": 0.7}, "label_smoothing"),
    ({"average": True}, "average needs baseline_lengths"),
    ({"baseline_log_probs": PAIRS[0][:2]}, "^baseline_log_probs must have shape"),
    ({"baseline_lengths": LENGTHS[0][:2], "average": True}, "^baseline_lengths must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      losses.rpo_loss(*PAIRS, **keywords)


def test_implicit_reward():
  reward = jitted["implicit_reward"]
  np.testing.assert_allclose(reward(PAIRS[0], PAIRS[2], beta=0.3), 0.3 * (PAIRS[0] - PAIRS[2]))
  slope = jax.jit(jax.grad(lambda p, r: reward(p, r).sum(), (0, 1)))(PAIRS[0], PAIRS[2])
  np.testing.assert_allclose(slope[0], np.full(B, 0.1), rtol=1e-6)
  np.testing.assert_array_equal(slope[1], np.zeros(B))
  # DPO is the Bradley-Terry loss of the implicit reward.
  rewards = reward(PAIRS[0], PAIRS[2]), reward(PAIRS[1], PAIRS[3])
  result = jax.jit(losses.bradley_terry_loss)(*rewards)
  np.testing.assert_allclose(result, jitted["dpo_loss"](*PAIRS), rtol=1e-5)


@pytest.mark.parametrize("name", REFERENCED)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_margins_are_finite(name, size):
  pairs = tuple(np.full(2, x, np.float32) for x in (size, -size, 0.0, 0.0))
  keywords = {"label_smoothing": 0.1} if name in ("dpo_loss", "robust_dpo_loss") else {}
  np.testing.assert_allclose(
    jitted[name](*pairs, **keywords), slow(name, pairs, 0.1, smoothing=0.1), rtol=1e-5
  )
  assert all(np.isfinite(slope).all() for slope in slopes[name](*pairs, **keywords))


@pytest.mark.parametrize("name", ["dpo_loss", "robust_dpo_loss"])
def test_an_impossible_rejected_response_costs_nothing(name):
  pairs = [*PAIRS]
  pairs[1] = np.where(np.arange(B) == 2, -np.inf, PAIRS[1])
  values = jitted[name](*pairs, label_smoothing=0.0)
  expected = np.where(np.arange(B) == 2, 0, jitted[name](*PAIRS, label_smoothing=0.0))
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_half_precision_is_cast_and_settings_may_be_traced():
  half = tuple(jnp.asarray(x, jnp.bfloat16) for x in PAIRS)
  wide = tuple(x.astype(jnp.float32) for x in half)
  betas = jnp.array([0.05, 0.1, 1.0])
  for name in REFERENCED:
    result = jitted[name](*half)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, jitted[name](*wide), rtol=1e-6)
    mapped = jax.vmap(lambda beta, f=jitted[name]: f(*PAIRS, beta=beta))(betas)
    one_by_one = [jitted[name](*PAIRS, beta=beta) for beta in betas]
    np.testing.assert_allclose(mapped, np.stack(one_by_one), rtol=1e-5)


def test_masked_tokens_change_nothing():
  """From tokens to loss, with infinities where the mask is 0."""
  tokens = -RNG.random((4, B, 5)).astype(np.float32)
  mask = RNG.random((B, 5)) < 0.6

  def loss(tokens, mask):
    return losses.dpo_loss(*sequence.sequence_log_prob(tokens, mask)).sum()

  masks = np.broadcast_to(mask, tokens.shape)
  slope = jax.jit(jax.value_and_grad(loss))
  value, gradient = slope(np.where(masks, tokens, -np.inf), masks)
  np.testing.assert_allclose(value, loss(tokens, masks), rtol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", REFERENCED)
def test_errors(name):
  loss = getattr(losses, name)
  for beta in (0.0, -1.0, np.nan):
    with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\)"):
      loss(*PAIRS, beta=beta)
  with pytest.raises(ValueError, match="^policy_rejected must have shape"):
    loss(PAIRS[0][:-1], *PAIRS[1:])
  if name in ("dpo_loss", "robust_dpo_loss"):
    for smoothing in (-0.1, 0.6) if name == "dpo_loss" else (-0.1, 0.5):
      with pytest.raises(ValueError, match=f"label_smoothing must lie .*{smoothing}"):
        loss(*PAIRS, label_smoothing=smoothing)
  if name == "ipo_loss":
    with pytest.raises(ValueError, match="rejected_lengths is None"):
      loss(*PAIRS, chosen_lengths=LENGTHS[0])
    with pytest.raises(ValueError, match="chosen_lengths is None"):
      loss(*PAIRS, rejected_lengths=LENGTHS[0])
    with pytest.raises(ValueError, match="^rejected_lengths must have shape"):
      loss(*PAIRS, chosen_lengths=LENGTHS[0], rejected_lengths=LENGTHS[0][:3])


def test_errors_without_a_reference():
  for keywords, message in (
    ({"beta": 0.0}, "beta"),
    ({"label_smoothing": 0.7}, "label_smoothing"),
    ({"margin": np.nan}, "margin"),
  ):
    with pytest.raises(ValueError, match=message):
      losses.simpo_loss(*PAIRS[:2], *LENGTHS, **keywords)
  with pytest.raises(ValueError, match="^chosen_lengths must have shape"):
    losses.simpo_loss(*PAIRS[:2], LENGTHS[0][:3], LENGTHS[1])
  with pytest.raises(ValueError, match="beta"):
    losses.implicit_reward(*PAIRS[:2], beta=-1.0)
  with pytest.raises(ValueError, match="^reference_log_probs must have shape"):
    losses.implicit_reward(PAIRS[0], PAIRS[1][:2])
