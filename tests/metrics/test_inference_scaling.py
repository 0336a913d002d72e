import fractions
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.metrics import inference_scaling

PROBLEMS, N = 4, 6
RNG = np.random.default_rng(0)
CORRECT = RNG.random((PROBLEMS, N)) < np.array([0.1, 0.4, 0.7, 0.0])[:, None]
SCORES = RNG.normal(size=(PROBLEMS, N)).astype(np.float32)
KS = tuple(range(1, N + 1))
KEY = jax.random.key(0)

pass_at_k = jax.jit(inference_scaling.pass_at_k, static_argnames=("num_samples", "k"))
coverage_curve = jax.jit(inference_scaling.coverage_curve, static_argnames="ks")
best_of_k = jax.jit(inference_scaling.best_of_k_accuracy, static_argnames="ks")
selection = jax.jit(
  inference_scaling.selection_accuracy_curve, static_argnames=("ks", "method", "num_subsets")
)
policy = jax.jit(lambda q, n: inference_scaling.optimal_coverage_policy(q, num_samples=n))


def exact_pass(c, n, k):
  return float(1 - fractions.Fraction(math.comb(n - c, k), math.comb(n, k)))


@pytest.mark.parametrize("k", KS)
def test_pass_at_k_is_the_average_over_subsets(k):
  for row in CORRECT:
    subsets = list(itertools.combinations(row, k))
    expected = np.mean([any(subset) for subset in subsets])
    result = pass_at_k(int(row.sum()), num_samples=N, k=k)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_pass_at_k_of_large_pools_matches_rational_arithmetic():
  counts = np.array([0, 1, 2, 10, 1000, 9_000, 9_999, 10_000])
  for k in (1, 7, 1000, 9_999, 10_000):
    expected = [exact_pass(int(c), 10_000, k) for c in counts]
    result = pass_at_k(counts, num_samples=10_000, k=k)
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-12)


def test_pass_at_k_is_monotone_and_ends_at_any_success():
  counts = np.arange(N + 1)
  table = np.stack([pass_at_k(counts, num_samples=N, k=k) for k in KS])
  assert np.all(np.diff(table, axis=0) >= 0) and np.all(np.diff(table, axis=1) >= 0)
  np.testing.assert_allclose(table[0], counts / N, rtol=1e-6)
  np.testing.assert_array_equal(table[-1], counts > 0)


def test_traced_counts_are_clipped():
  np.testing.assert_array_equal(pass_at_k(np.array([-3, 99]), num_samples=N, k=2), [0, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_narrow_counts(dtype):
  counts = np.array([0, 100], dtype)
  np.testing.assert_allclose(pass_at_k(counts, num_samples=300, k=1), [0, 1 / 3], rtol=1e-6)


def test_missing_entries_make_coverage_nan():
  correct = np.where(np.arange(N) == 2, np.nan, CORRECT).astype(np.float32)
  assert np.isnan(coverage_curve(correct, ks=KS)).all()


def test_coverage_curve_matches_exact_values():
  expected = [np.mean([exact_pass(int(c), N, k) for c in CORRECT.sum(1)]) for k in KS]
  result = coverage_curve(CORRECT, ks=KS)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  np.testing.assert_allclose(coverage_curve(CORRECT.astype(np.float32), ks=KS), result)


def test_coverage_of_one_rate_is_the_binomial():
  p, ks = 0.03, (1, 4, 16, 64)
  correct = np.random.default_rng(1).random((2000, 256)) < p
  expected = 1 - (1 - p) ** np.array(ks)
  np.testing.assert_allclose(coverage_curve(correct, ks=ks), expected, atol=0.01)


def test_best_of_k_is_the_average_over_subsets():
  tied = np.round(SCORES)
  for scores in (SCORES, tied):
    result = best_of_k(scores, CORRECT, ks=KS)
    for row, k in itertools.product(range(PROBLEMS), KS):
      chosen = [
        CORRECT[row, max(subset, key=lambda i: (scores[row, i], i))]
        for subset in itertools.combinations(range(N), k)
      ]
      np.testing.assert_allclose(result[row, k - 1], np.mean(chosen), rtol=1e-5)


def test_best_of_k_of_special_scores():
  oracle = best_of_k(CORRECT.astype(np.float32), CORRECT, ks=KS)
  expected = [[exact_pass(int(c), N, k) for k in KS] for c in CORRECT.sum(1)]
  np.testing.assert_allclose(oracle, expected, rtol=1e-5)
  always = best_of_k(SCORES, np.ones((PROBLEMS, N)), ks=KS)
  np.testing.assert_allclose(always, np.ones((PROBLEMS, N)), rtol=1e-6)
  np.testing.assert_allclose(best_of_k(SCORES, CORRECT, ks=(1,))[:, 0], CORRECT.mean(1), rtol=1e-6)


def test_integer_scores_are_not_rounded():
  scores = 2**24 + np.argsort(SCORES)
  ranks = np.argsort(np.argsort(scores)).astype(np.float32)
  np.testing.assert_array_equal(best_of_k(scores, CORRECT, ks=KS), best_of_k(ranks, CORRECT, ks=KS))


def test_missing_scores_make_their_problem_nan():
  scores = SCORES.copy()
  scores[2, 1] = np.nan
  result = best_of_k(scores, CORRECT, ks=KS)
  np.testing.assert_array_equal(np.isnan(result[:, 0]), np.arange(PROBLEMS) == 2)
  votes = selection(
    KEY,
    CORRECT.astype(int),
    CORRECT,
    ks=KS,
    scores=scores,
    method="weighted_majority",
    num_subsets=2000,
  )
  assert np.isnan(votes).any()


def slow_vote(answers, correct, weights, k):
  """Average over all subsets, ties shared among distinct answers."""
  credits = []
  for subset in itertools.combinations(range(len(answers)), k):
    votes, right = {}, {}
    for i in subset:
      if answers[i] >= 0:
        votes[answers[i]] = votes.get(answers[i], 0.0) + weights[i]
        right.setdefault(answers[i], []).append(correct[i])
    best = [a for a, v in votes.items() if np.isclose(v, max(votes.values()))]
    credits.append(np.mean([np.mean(right[a]) for a in best]) if best else 0.0)
  return np.mean(credits)


@pytest.mark.parametrize("method", ["majority", "weighted_majority"])
def test_votes_approach_the_average_over_subsets(method):
  answers = np.array([[0, 0, 1, 1, 2, 3], [5, 5, 5, 2, 2, -1], [-1, -1, -2, -1, -1, -1], [7] * 6])
  correct = answers == np.array([1, 5, -1, 3])[:, None]
  scores = RNG.random((PROBLEMS, N)).astype(np.float32) + 0.1
  weights = scores if method == "weighted_majority" else np.ones((PROBLEMS, N))
  result = selection(
    KEY, answers, correct & (answers >= 0), ks=KS, scores=scores, method=method, num_subsets=2000
  )
  for k in KS:
    rows = [slow_vote(a, c, w, k) for a, c, w in zip(answers, correct, weights)]
    # All n samples are one subset; smaller subsets are random.
    np.testing.assert_allclose(result[k - 1], np.mean(rows), atol=1e-5 if k == N else 0.02)


def test_absent_answers_do_not_win_over_negative_scores():
  answers = np.array([[0, 1, 1, 2]])
  scores = np.float32([[-1.0, -2.0, -3.0, -4.0]])
  result = selection(
    KEY, answers, answers == 0, ks=(4,), scores=scores, method="weighted_majority", num_subsets=2
  )
  np.testing.assert_array_equal(result, [1])


def test_selection_by_score_is_exact():
  answers = np.where(CORRECT, 1, 0)
  result = selection(KEY, answers, CORRECT, ks=KS, scores=SCORES, method="best_of_n")
  np.testing.assert_allclose(result, best_of_k(SCORES, CORRECT, ks=KS).mean(0), rtol=1e-5)


def test_selection_compiles_once(caplog):
  run = functools.partial(inference_scaling.selection_accuracy_curve, num_subsets=3)
  run(jax.random.key(1, impl="rbg"), CORRECT.astype(int), CORRECT, ks=KS)
  with jax.log_compiles():
    run(jax.random.key(2, impl="rbg"), CORRECT.astype(int), CORRECT, ks=KS)
  assert not [record for record in caplog.records if "Compiling" in record.message]


def test_clear_majority_always_wins():
  answers = np.array([[4] * 9 + [0]])
  result = selection(KEY, answers, answers == 4, ks=(3, 10), num_subsets=50)
  np.testing.assert_array_equal(result, [1, 1])


def test_rank_promotion_may_be_forbidden():
  with jax.numpy_rank_promotion("raise"):
    jax.eval_shape(lambda: inference_scaling.coverage_curve(CORRECT, ks=KS))
    jax.eval_shape(lambda: inference_scaling.best_of_k_accuracy(SCORES, CORRECT, ks=KS))
    jax.eval_shape(policy, np.ones((2, 3)), 2.0)
    jax.eval_shape(
      lambda: inference_scaling.inference_flops(
        num_params=np.ones((2, 1)), prompt_tokens=1, generated_tokens=np.ones(3), num_samples=1
      )
    )


def test_inference_flops_match_the_formula():
  result = inference_scaling.inference_flops(
    num_params=70e9, prompt_tokens=500, generated_tokens=np.array([100, 1000]), num_samples=10_000
  )
  expected = 2 * 70e9 * (500 + 10_000 * np.array([100.0, 1000.0]))
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  for name in ("num_params", "prompt_tokens", "generated_tokens", "num_samples"):
    sizes = {"num_params": 1, "prompt_tokens": 1, "generated_tokens": 1, "num_samples": 1}
    with pytest.raises(ValueError, match=f"{name} must lie .*got -1"):
      inference_scaling.inference_flops(**sizes | {name: -1})


def objective(p, q, n):
  return np.sum(q * -np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-15))), axis=-1)


@pytest.mark.parametrize("n", [1.0, 1.3, 2.0, 5.0, 40.0])
def test_policy_is_at_least_as_good_as_random_ones(n):
  q = np.random.default_rng(2).dirichlet(np.full(5, 0.7)).astype(np.float32)
  p = np.asarray(policy(q, n), np.float64)
  np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
  assert np.all(p >= 0)
  others = np.random.default_rng(3).dirichlet(np.full(5, 0.5), 10_000)
  corners = np.eye(5)
  for policies in (others, corners, 0.99 * p + 0.01 * corners):
    assert objective(p, q, n) >= objective(policies, q, n).max() - 1e-6
  active = p > 1e-6
  gain = q[active] * (1 - p[active]) ** (n - 1)
  if n > 1 and active.sum() > 1:
    np.testing.assert_allclose(gain, gain[0], rtol=1e-3)


def test_limits_of_the_optimal_policy():
  q = np.float32([[0.2, 0.5, 0.0, 0.3], [0.4, 0.1, 0.4, 0.1]])
  np.testing.assert_array_equal(policy(q, 1.0), [[0, 1, 0, 0], [1, 0, 0, 0]])
  uniform = [[1 / 3, 1 / 3, 0, 1 / 3], [0.25] * 4]
  np.testing.assert_allclose(policy(q, 1e6), uniform, atol=1e-5)
  two = np.asarray(policy(q, 2.0))
  assert two[1, 0] == two[1, 2] and two[1, 1] == two[1, 3]
  # For N close to 1, nearly all mass is on the most likely answers, shared on ties.
  np.testing.assert_allclose(policy(q, 1.001), [[0, 1, 0, 0], [0.5, 0, 0.5, 0]], atol=1e-6)


def slow_policy(q, n):
  costs = np.maximum(np.float64(q), 1e-300) ** (-1 / (n - 1))
  ranked = np.sort(costs)
  m = np.sum(np.arange(len(q)) * ranked < np.cumsum(ranked))
  return np.where(costs <= ranked[m - 1], 1 - (m - 1) * costs / ranked[:m].sum(), 0)


@pytest.mark.parametrize("n", [2.0, 30.0, 1e6])
def test_policy_over_many_answers_keeps_its_digits(n):
  q = np.float32(np.random.default_rng(5).uniform(0.5, 1, 100_000))
  p = np.asarray(policy(q, n), np.float64)
  np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
  np.testing.assert_allclose(p, slow_policy(q, n), rtol=1e-3, atol=1e-8)


def test_policy_of_impossible_and_missing_answers():
  q = np.float32([[0.2, 0.5, 0.0, 0.3], [0, 0, 0, 0], [0.2, np.nan, 0.1, 0.7]])
  p = np.asarray(policy(q, 3.0))
  np.testing.assert_allclose(p[:2].sum(1), 1, rtol=1e-6)
  np.testing.assert_array_equal(p[1], 0.25)
  assert p[0, 2] == 0 and np.isnan(p[2]).all() and np.isnan(policy(q, 1.0)[2]).all()


def test_gradient_of_the_policy():
  q = np.float32([0.2, 0.5, 0.0, 0.3])
  gradient = jax.jit(jax.jacfwd(policy, argnums=(0, 1)))
  for n in (1.0, 3.0):
    assert all(np.isfinite(part).all() for part in gradient(q, n))
  by_answer, by_samples = gradient(q, 3.0)
  small = 1e-3
  for i in (0, 1, 3):
    step = small * (np.arange(4) == i)
    slope = (slow_policy(q + step, 3.0) - slow_policy(q - step, 3.0)) / (2 * small)
    np.testing.assert_allclose(by_answer[:, i], slope, atol=1e-3)
  slope = (slow_policy(q, 3 + small) - slow_policy(q, 3 - small)) / (2 * small)
  np.testing.assert_allclose(by_samples, slope, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=6, max_size=6), st.floats(1.1, 200))
def test_policy_keeps_the_order_and_its_maximum_falls_with_samples(q, n):
  q = np.float32(q) / np.float32(sum(q))
  p = np.asarray(policy(q, n))
  order = np.argsort(q)
  assert np.all(np.diff(p[order]) >= -1e-6)
  np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
  assert np.max(policy(q, 2 * n)) <= p.max() + 1e-6


def test_greedy_calibration_matches_hand_computed_bins():
  confidence = np.float32([0.05, 0.1, 0.55, 0.6, 0.95, 1.0])
  correct = np.array([0, 1, 0, 1, 1, 0])
  result = jax.jit(inference_scaling.greedy_calibration)(np.log(confidence), correct)
  # Bins (0, .1], (.5, .6] and (.9, 1].
  gaps = [abs(0.075 - 0.5), abs(0.575 - 0.5), abs(0.975 - 0.5)]
  np.testing.assert_allclose(result.mean_confidence, confidence.mean(), rtol=1e-5)
  np.testing.assert_allclose(result.accuracy, 0.5)
  np.testing.assert_allclose(result.overconfidence, confidence.mean() - 0.5, rtol=1e-4)
  np.testing.assert_allclose(result.expected_calibration_error, np.mean(gaps), rtol=1e-5)
  never = inference_scaling.greedy_calibration(np.float32([-1e4]), np.array([False]))
  assert all(float(value) == 0 for value in never)


def test_vmap_matches_the_batched_call():
  np.testing.assert_allclose(
    jax.vmap(functools.partial(inference_scaling.pass_at_k, num_samples=N, k=3))(np.arange(4)),
    pass_at_k(np.arange(4), num_samples=N, k=3),
  )
  q = jax.nn.softmax(SCORES)
  np.testing.assert_allclose(jax.vmap(policy, (0, None))(q, 3.0), policy(q, 3.0), rtol=1e-5)
  mapped = jax.vmap(lambda n: policy(q[0], n))(jnp.array([1.0, 2.0, 9.0]))
  np.testing.assert_allclose(mapped, [policy(q[0], n) for n in (1.0, 2.0, 9.0)], rtol=1e-5)
  assert policy(q.astype(jnp.bfloat16), 3.0).dtype == jnp.float32


def test_errors():
  answers = np.zeros((PROBLEMS, N), int)
  select = functools.partial(inference_scaling.selection_accuracy_curve, KEY, answers, CORRECT)
  for call, message in (
    (lambda: inference_scaling.pass_at_k(1, num_samples=N, k=0), r"k must lie in \[1, 6\].*got 0"),
    (lambda: inference_scaling.pass_at_k(1, num_samples=N, k=7), "got 7"),
    (lambda: inference_scaling.pass_at_k(7, num_samples=N, k=2), "num_correct .*got 7"),
    (lambda: inference_scaling.coverage_curve(CORRECT, ks=()), "ks"),
    (lambda: inference_scaling.coverage_curve(CORRECT, ks=(1, 9)), "got 9"),
    (lambda: inference_scaling.best_of_k_accuracy(SCORES, CORRECT, ks=(0,)), "got 0"),
    (lambda: select(ks=()), "ks"),
    (lambda: select(ks=(7,)), "got 7"),
    (lambda: select(ks=(2,), method="oracle"), "method .*'oracle'"),
    (lambda: select(ks=(2,), method="best_of_n"), "scores"),
    (lambda: select(ks=(2,), num_subsets=0), "num_subsets .*got 0"),
    (lambda: inference_scaling.optimal_coverage_policy([0.5], num_samples=0.5), "num_samples"),
    (lambda: inference_scaling.optimal_coverage_policy([-0.5], num_samples=2), "answer_posterior"),
    (lambda: inference_scaling.greedy_calibration([-1.0], [True], num_bins=0), "num_bins"),
    (lambda: inference_scaling.optimal_coverage_policy(np.zeros((2, 0)), num_samples=2), "K must"),
    (lambda: inference_scaling.greedy_calibration([], []), "must not be empty"),
    (lambda: inference_scaling.coverage_curve(CORRECT[0], ks=(1,)), "correct must have shape"),
    (
      lambda: inference_scaling.best_of_k_accuracy(SCORES, CORRECT[:2], ks=(1,)),
      r"correct .* with problems = 4, n = 6, got \[2, 6\]",
    ),
    (lambda: select(ks=(1,), scores=SCORES[:1]), r"scores must .*got \[1, 6\]"),
    (lambda: inference_scaling.greedy_calibration(SCORES[0], CORRECT[0, :2]), "correct"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  with pytest.raises(TypeError, match="num_correct must be of type int, got float"):
    inference_scaling.pass_at_k(1.5, num_samples=N, k=2)
  with pytest.raises(TypeError, match="answers must be of type int"):
    inference_scaling.selection_accuracy_curve(KEY, SCORES, CORRECT, ks=(1,))
