import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, metrics
from jaxlab.metrics import step_credit

B, S, C, K = 200, 4, 3, 10
RNG = np.random.default_rng(0)
SUCCESSES = RNG.integers(0, K + 1, (B, S + 1))
VALUES = (SUCCESSES / K).astype(np.float32)
CANDIDATES = (RNG.integers(0, K + 1, (B, S, C)) / K).astype(np.float32)
MASK = RNG.random((B, S)) < 0.7
MASK[:3] = False

values_of = jax.jit(step_credit.prefix_values, static_argnames="num_rollouts")
advantages_of = jax.jit(step_credit.step_advantages)
critical = jax.jit(step_credit.critical_step)
pairs_of = jax.jit(step_credit.select_step_pairs)
sensitivity = jax.jit(
  step_credit.distance_sensitivity, static_argnames=("num_bins", "max_distance")
)


def slow_critical(counts, threshold, mask):
  """In whole numbers of successes, which do not round."""
  drops = np.diff(counts)
  valid = [i for i in range(len(drops)) if mask[i]]
  if not valid:
    return -1
  large = [i for i in valid if drops[i] <= -round(threshold * K)]
  return large[0] if large else min(valid, key=lambda i: (drops[i], i))


def test_values_and_advantages():
  values = values_of(SUCCESSES, num_rollouts=K)
  np.testing.assert_allclose(values, SUCCESSES / K, rtol=1e-6)
  advantages = advantages_of(values)
  np.testing.assert_allclose(advantages, np.diff(SUCCESSES, axis=-1) / K, atol=1e-6)
  total = VALUES[:, -1] - VALUES[:, 0]
  np.testing.assert_allclose(advantages.sum(-1), total, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_critical_step_matches_a_loop(threshold):
  advantages = advantages_of(VALUES)
  for mask in (MASK, np.ones_like(MASK)):
    expected = [slow_critical(n, threshold, m) for n, m in zip(SUCCESSES, mask)]
    result = critical(advantages, threshold=threshold, mask=mask)
    np.testing.assert_array_equal(result, expected)
  np.testing.assert_array_equal(critical(advantages, threshold=threshold), expected)


def test_a_critical_step_drops_by_the_threshold_or_most_of_all():
  values = np.zeros((B, S + 1), np.float32)
  values[0] = 0.6, 0.6, 0.1, 0.1, 0
  values[1] = 0.6, 0.5, 0.3, 0.3, 0.1
  values[2] = 0.9, 0.6, 0.1, 0.1, 0  # 0.3 to the last digit but one.
  np.testing.assert_array_equal(critical(advantages_of(values))[:4], [1, 1, 0, 0])


def test_steps_that_do_not_count_and_unknown_ones():
  advantages = np.array(advantages_of(VALUES))
  expected = critical(advantages, mask=MASK)
  spoiled = np.where(MASK, advantages, np.nan)
  np.testing.assert_array_equal(critical(spoiled, mask=MASK), expected)
  advantages[7, 2] = np.nan
  steps = np.asarray(critical(advantages))
  assert steps[7] == -1 and np.all(steps[8:] >= 0)
  spoiled = np.where(np.arange(B)[:, None] == 7, np.float32(np.nan), VALUES)
  pairs = jax.device_get(pairs_of(spoiled, CANDIDATES))
  assert (pairs.step[7], pairs.candidate[7], pairs.valid[7]) == (-1, -1, False)
  assert np.isnan(pairs.gap[7]) and np.isfinite(pairs.gap[8:]).all()


@pytest.mark.parametrize("margin", [0.1, 0.3, 0.5])
def test_pairs_match_a_loop(margin):
  pairs = pairs_of(VALUES, CANDIDATES, margin=margin, mask=MASK)
  expected = []
  for counts, others, mask in zip(SUCCESSES, np.rint(CANDIDATES * K).astype(int), MASK):
    step = slow_critical(counts, 0.3, mask)
    if step < 0:
      expected.append((-1, -1, 0.0, False))
      continue
    best = int(np.argmax(others[step]))
    gap = others[step][best] - counts[step + 1]
    valid = gap >= round(margin * K) and others[step][best] > 0
    expected.append((step, best, gap / K, valid))
  for name, result, column in zip(pairs._fields, pairs, zip(*expected)):
    np.testing.assert_allclose(result, column, atol=1e-6, err_msg=name)
  assert 0 < np.mean(pairs.valid) < 1


def test_pairs_without_a_better_candidate_are_not_valid():
  values = np.tile(np.float32([0.6, 0.6, 0.2, 0.2, 0]), (B, 1))
  worse = np.full_like(CANDIDATES, 0.1)
  assert not np.any(pairs_of(values, worse).valid)
  zero = pairs_of(np.zeros_like(values), 0 * worse, margin=0.0)
  assert not np.any(zero.valid) and not np.any(zero.gap)  # It is no worse, but never right.
  unknown = pairs_of(values, worse * np.nan)
  assert not np.any(unknown.valid) and np.all(unknown.candidate == -1)


def test_a_pair_of_steps_is_a_pair_of_sequences_with_a_shared_prefix():
  """The log-probabilities of what two sequences share cancel in DPO."""
  policy, reference = RNG.normal(-2, 1, (2, 2, 5, S)).astype(np.float32)
  for log_probs in (policy, reference):
    log_probs[1, :, :2] = log_probs[0, :, :2]  # Two steps are shared, the third differs.
    log_probs[:, :, 3:] = 0
  dpo = jax.jit(losses.dpo_loss)
  steps = dpo(*policy[:, :, 2], *reference[:, :, 2])
  np.testing.assert_allclose(dpo(*policy.sum(-1), *reference.sum(-1)), steps, rtol=1e-5)


def test_dpo_on_pairs_by_advantage_tilts_the_reference_by_it():
  """One state: pairs come from mu, and s(A+ - A-) prefers; the optimum is mu exp(A / beta)."""
  mu, advantages, beta = np.array([0.4, 0.3, 0.2, 0.1]), np.array([-0.5, 0.2, 0.9, 0.1]), 0.5
  pairs = RNG.choice(4, (100_000, 2), p=mu)
  gap = advantages[pairs[:, 0]] - advantages[pairs[:, 1]]
  swapped = RNG.random(len(pairs)) > 1 / (1 + np.exp(-gap))
  pairs[swapped] = pairs[swapped, ::-1]
  counts = np.zeros((4, 4))
  np.add.at(counts, tuple(pairs.T), 1 / len(pairs))

  def loss(logits, reference):
    policy = jax.nn.log_softmax(logits)
    chosen, rejected = (jnp.repeat(x[:, None], 4, 1) for x in (policy, reference))
    return jnp.sum(counts * losses.dpo_loss(chosen, chosen.T, rejected, rejected.T, beta=beta))

  @jax.jit
  def trained(reference):
    step = lambda logits, _: (logits - 20 * jax.grad(loss)(logits, reference), None)  # noqa: E731
    return jax.nn.softmax(jax.lax.scan(step, reference, length=2000)[0])

  optimum = mu * np.exp(advantages / beta)
  policy = np.asarray(trained(np.float32(np.log(mu))))
  assert np.abs(policy - optimum / optimum.sum()).sum() / 2 < 0.02
  # The weighted likelihood of draws from mu has the same optimum.
  weights = mu * np.asarray(losses.advantage_weights(advantages, beta=beta))
  np.testing.assert_allclose(weights / weights.sum(), optimum / optimum.sum(), rtol=1e-5)


@pytest.mark.parametrize(("num_bins", "max_distance"), [(4, 12), (5, 7), (1, 3), (8, 3)])
def test_sensitivity_matches_a_loop(num_bins, max_distance):
  base, perturbed = RNG.normal(-2, 1, B), RNG.normal(-3, 1, (B, C))
  distances = RNG.integers(-1, 15, (B, C))
  bins = [[] for _ in range(num_bins)]
  for i, j in np.ndindex(B, C):
    if distances[i, j] >= 0:
      place = min(int(distances[i, j]) * num_bins // max_distance, num_bins - 1)
      bins[place].append(base[i] - perturbed[i, j])
  expected = [np.mean(x) if x else np.nan for x in bins]
  options = {"num_bins": num_bins, "max_distance": max_distance}
  result = sensitivity(np.float32(base), np.float32(perturbed), np.int8(distances), **options)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  hidden = np.where(distances < 0, np.nan, perturbed)
  again = sensitivity(np.float32(base), np.float32(hidden), np.int8(distances), **options)
  np.testing.assert_array_equal(again, result)


def test_half_precision_and_small_shapes():
  half = jnp.asarray(VALUES, jnp.bfloat16)
  assert advantages_of(half).dtype == jnp.float32
  no_step = jax.eval_shape(metrics.select_step_pairs, VALUES[:, :1], CANDIDATES[:, :0])
  assert no_step.gap.shape == (B,)
  single = jax.jit(metrics.select_step_pairs)(VALUES[5], CANDIDATES[5])
  np.testing.assert_array_equal(single.step, pairs_of(VALUES, CANDIDATES).step[5])


def test_errors():
  for call, message in (
    (lambda: metrics.prefix_values(SUCCESSES, num_rollouts=0), "num_rollouts .* 1, got 0"),
    (lambda: metrics.prefix_values(np.array([11]), num_rollouts=K), r"successes .*\[0, 10\]"),
    (lambda: metrics.step_advantages(np.zeros((2, 0))), r"prefix_values must hold .*\(2, 0\)"),
    (lambda: metrics.critical_step(VALUES, threshold=-0.1), "threshold .*-0.1"),
    (lambda: metrics.critical_step(VALUES, mask=MASK), r"mask must have shape \[..., S\]"),
    (lambda: metrics.select_step_pairs(VALUES, CANDIDATES, threshold=-1.0), "threshold .*-1.0"),
    (lambda: metrics.select_step_pairs(VALUES, CANDIDATES, margin=-1.0), "margin .*-1.0"),
    (lambda: metrics.select_step_pairs(VALUES, CANDIDATES[:, 1:]), r"candidate_values .*4, C\]"),
    (lambda: metrics.select_step_pairs(VALUES, CANDIDATES[..., :0]), "C must be at least 1"),
    (
      lambda: metrics.distance_sensitivity(
        VALUES[:, 0], VALUES, SUCCESSES, num_bins=0, max_distance=3
      ),
      "num_bins .*0",
    ),
    (
      lambda: metrics.distance_sensitivity(
        VALUES[:, 0], VALUES, SUCCESSES, num_bins=2, max_distance=0
      ),
      "max_distance .*0",
    ),
    (
      lambda: metrics.distance_sensitivity(
        VALUES[:, 0], VALUES, SUCCESSES[1:], num_bins=2, max_distance=3
      ),
      "distances must have shape",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(call)
