import dataclasses

import jax
import numpy as np
import pytest

from experiments.alignment.rl_incorrect_data import rows
from experiments.alignment.rl_incorrect_data.__main__ import PRESETS
from experiments.alignment.rl_incorrect_data.problems import draw_problems
from experiments.kit import chains as kit
from jaxlab import data

SMOKE = PRESETS["smoke"]
CHAINS = data.ModularChainConfig(7, 4, False, 0.3, 0.5, 0.0)
COUNTS = 12, 9, 5, 6
N, K, S, C, ROLLOUTS = 8, 3, 3, 2, 8
T = CHAINS.prompt_length + CHAINS.response_length
RNG = np.random.default_rng(0)
SAMPLES = {
  "tokens": RNG.integers(0, 4, (N, K, T)),
  "correct": RNG.random((N, K)) < np.linspace(0, 1, N)[:, None],
  "right": RNG.random((N, K, S)) < 0.8,
}
SAMPLES["correct"][0] = False
SAMPLES["correct"][-1] = True
SAMPLES["tokens"][3, 1] = SAMPLES["tokens"][3, 0]
right = jax.jit(lambda tokens: kit.right_steps(CHAINS, tokens))
entries = jax.jit(lambda tokens, steps: kit.entries(CHAINS, tokens, steps))


def drawn(**options):
  return draw_problems(CHAINS, COUNTS, 3, **options)


def test_problems_share_a_table_and_no_test_problem_is_learned():
  problems = drawn()
  for texts, num in zip(problems[1:5], (9, 9, 5, 6)):
    assert texts.tokens.shape == (num, T) and texts.answers.shape == (num,)
  prompt = CHAINS.prompt_length
  np.testing.assert_array_equal(
    problems.train.tokens[:, :prompt], problems.clean.tokens[:, :prompt]
  )
  np.testing.assert_array_equal(problems.train.answers, problems.clean.answers)
  learned = {tuple(row[:prompt]) for row in problems.train.tokens.tolist()}
  assert not learned & {tuple(row[:prompt]) for row in problems.test.tokens.tolist()}
  # The shared table names every wrong step of the texts.
  for texts, always in ((problems.train, False), (problems.misled, True)):
    steps = texts.tokens[:, prompt:-1] - 6
    wrong = problems.wrong_values[jax.device_get(entries(texts.tokens[:6], steps[:6]))]
    is_right, steps = np.asarray(right(texts.tokens[:6])), steps[:6]
    assert np.all(is_right | (wrong == steps))
    if always:
      np.testing.assert_array_equal(is_right, wrong < 0)


def test_another_corpus_is_wrong_everywhere():
  problems = drawn(other_corpus=True)
  assert problems.corpus.shape == (12, T)
  assert not np.any(right(problems.corpus[:6]))


def test_right_solutions_are_repeated_until_there_are_enough():
  out = rows.right_solutions(40, SAMPLES)
  expected = {}
  for i, k in np.ndindex(N, K):
    if SAMPLES["correct"][i, k]:
      expected[i, tuple(SAMPLES["tokens"][i, k].tolist())] = None
  chosen = [tokens for _, tokens in expected]
  assert [tuple(row) for row in out.tokens.tolist()] == [chosen[i % len(chosen)] for i in range(40)]
  assert out.mask.all() and not out.advantages.any()
  spotless = rows.right_solutions(40, SAMPLES, spotless=True)
  fine = SAMPLES["correct"] & SAMPLES["right"].all(-1)
  allowed = {tuple(row) for row in SAMPLES["tokens"][fine].tolist()}
  assert {tuple(row) for row in spotless.tokens.tolist()} == allowed


def test_nothing_to_learn_leaves_empty_masks():
  out = rows.right_solutions(4, SAMPLES | {"correct": np.zeros((N, K), bool)})
  assert out.tokens.shape == (4, T) and not out.mask.any()


def test_pairs_of_solutions_hold_a_right_and_a_wrong_one():
  pairs = rows.solution_pairs(N, CHAINS, SAMPLES)
  expected = []
  for tokens, correct in zip(SAMPLES["tokens"], SAMPLES["correct"]):
    if correct.any() and not correct.all():
      expected.append((tokens[correct][0], tokens[~correct][0]))
  for i in range(N):
    chosen, rejected = expected[i % len(expected)]
    np.testing.assert_array_equal(pairs.chosen_tokens[i], chosen)
    np.testing.assert_array_equal(pairs.rejected_tokens[i], rejected)
  np.testing.assert_array_equal(pairs.chosen_mask[0], np.arange(T) >= CHAINS.prompt_length)


HITS = RNG.random((1, N, S + 1, ROLLOUTS)) < np.array([0.8, 0.6, 0.3, 0.0])[:, None]
OTHERS = {
  "tokens": RNG.integers(0, 4, (1, N, C, T)),
  "hits": RNG.random((1, N, C, ROLLOUTS)) < 0.6,
}


@pytest.mark.parametrize("choice", rows.CHOICES)
def test_pairs_of_steps_match_a_loop(choice):
  config = dataclasses.replace(SMOKE, threshold=0.3, margin=0.1)
  chosen = rows.choose_steps(config, HITS, choice)
  used = 2 if choice == rows.FEW else ROLLOUTS
  of_others = {**OTHERS, "hits": OTHERS["hits"][..., :used]}
  pairs = rows.select_pairs(config, chosen, of_others)
  for i in range(N):
    counts = HITS[0, i, :, :used].sum(-1)
    others = of_others["hits"][0, i].sum(-1)
    drops = np.diff(counts) / used
    step = next((j for j in range(S) if drops[j] <= -0.3 + 1e-9), int(np.argmin(drops)))
    if choice == rows.RANDOM:
      step = int(chosen["mask"][0, i].argmax())
      assert chosen["mask"][0, i].sum() == 1
    assert chosen["step"][0, i] == pairs["step"][0, i] == step
    best = int(np.argmax(others))
    gap = (others[best] - counts[step + 1]) / used
    assert pairs["candidate"][0, i] == best
    assert pairs["valid"][0, i] == (gap >= 0.1 - 1e-9 and others[best] > 0)
    np.testing.assert_allclose(pairs["advantages"][0, i], (others - counts[step]) / used, atol=1e-6)
  of_seed = {name: x[0] for name, x in pairs.items()}
  out = rows.step_pairs(N, CHAINS, SAMPLES, of_seed)
  usable = np.flatnonzero(of_seed["valid"] & ~SAMPLES["correct"].all(1))
  wrong = rows.wrong_solutions(SAMPLES)
  for i in range(N):
    j = usable[i % len(usable)]
    place = CHAINS.prompt_length + of_seed["step"][j]
    tokens = OTHERS["tokens"][0, j, of_seed["candidate"][j]]
    np.testing.assert_array_equal(out.chosen_tokens[i], tokens)
    np.testing.assert_array_equal(out.rejected_tokens[i], wrong[j])
    assert out.chosen_mask[i].argmax() == place


def test_weighted_steps_are_those_of_wrong_solutions_and_the_others():
  chosen = rows.choose_steps(SMOKE, HITS, rows.CRITICAL)
  pairs = rows.select_pairs(SMOKE, chosen, OTHERS)
  chosen, pairs = ({name: x[0] for name, x in part.items()} for part in (chosen, pairs))
  out = rows.weighted_steps(N * (1 + C), SAMPLES, chosen, pairs)
  wrong = np.flatnonzero(~SAMPLES["correct"].all(1))
  num = len(wrong)
  np.testing.assert_array_equal(out.tokens[:num], rows.wrong_solutions(SAMPLES)[wrong])
  np.testing.assert_array_equal(out.advantages[:num], chosen["advantages"][wrong])
  assert out.mask[:num].all()
  np.testing.assert_array_equal(
    out.tokens[num : num * (1 + C)], pairs["tokens"][wrong].reshape(-1, T)
  )
  for i in range(num * C):
    j, step = wrong[i // C], pairs["step"][wrong[i // C]]
    np.testing.assert_array_equal(np.flatnonzero(out.mask[num + i]), [step])
    assert out.advantages[num + i, step] == pairs["advantages"][j, i % C]
