import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.alignment import pass_at_n
from experiments.alignment import pass_at_n_chains as chains
from experiments.alignment import pass_at_n_direct as direct
from experiments.alignment import pass_at_n_models as shared
from jaxlab import data

SMOKE = pass_at_n.PRESETS["smoke"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("pass_at_n") / "run"
  flags = ["pass_at_n", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(pass_at_n, flags) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_training(smoke):
  rows = smoke["quantities"]
  for prefix, last in (("", "cross-entropy, best epoch and temperature"), ("chains: ", None)):
    assert {f"{prefix}cross-entropy", f"{prefix}trained for N = 4", last} - {None} <= set(rows)
  assert {"steps: cross-entropy", "steps: union of all"} <= set(rows)
  passes = [row[name]["mean"] for row in rows.values() for name in row if "pass@" in name]
  assert passes and all(0 <= value <= 100 for value in passes)
  assert all(claim["holds"] is None for claim in smoke["claims"])


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  flags = ["pass_at_n", "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(pass_at_n, flags) == 0
  assert "parameters" in capsys.readouterr().out


def test_pass_at_n_is_one_minus_the_chance_that_all_fail():
  probs = np.array([[0.3, 1e-4, 1.0], [0.5, 0.5, 0.1]])
  for n in (1.0, 16.0):
    np.testing.assert_allclose(
      shared.pass_at_n(np.log(probs), n), (1 - (1 - probs) ** n).mean(1), rtol=1e-5
    )


def test_problems_of_products_are_disjoint():
  parts = direct.direct_rows(SMOKE)
  assert [len(part.answers) for part in parts] == [16, 6, 6]
  rows = np.concatenate([part.tokens for part in parts])
  assert len(np.unique(rows, axis=0)) == 28


def test_epoch_and_temperature_are_chosen_on_validation():
  log_probs = np.log(
    np.array(
      # Evaluations at temperatures 1 and 2: validation prefers the second at 2, the first at 1.
      [[[[0.2], [0.1]], [[0.1], [0.4]]]]
    )
  )
  found = {
    n: {
      "validation": log_probs,
      "test": np.log(np.array([[[[0.3], [0.5]], [[0.6], [0.7]]]])),
      "greedy log-probs": np.log([[0.5]]),
      "greedy right": np.array([[True]]),
      "sampled": np.array([[0.6, 0.9]]),
    }
    for n in (1, 4)
  }
  rows, _ = direct.direct_table(SMOKE, found)
  np.testing.assert_allclose(rows["cross-entropy"]["pass@1"], [60], rtol=1e-5)
  np.testing.assert_allclose(rows["cross-entropy, best epoch"]["pass@1"], [30], rtol=1e-5)
  tempered = rows["cross-entropy, best epoch and temperature"]["pass@1"]
  np.testing.assert_allclose(tempered, [70], rtol=1e-5)
  ours = rows["trained for N = 4, best epoch and temperature"]["pass@1"]
  np.testing.assert_allclose(ours, tempered, rtol=1e-5)
  np.testing.assert_allclose(rows["trained for N = 4"]["over-confidence"], [-50], rtol=1e-5)


class Oracle:
  """A model of terse chains that knows the right step, and gives it the first place or the last."""

  def __init__(self, config, misled):
    self.config, self.misled = config, misled

  def apply(self, variables, tokens):
    del variables
    first = self.config.prompt_length
    problem = tokens[0, :first]
    rows = jnp.tile(problem, (self.config.modulus, 1))
    logits = jnp.full((tokens.shape[1], self.config.vocab_size), -jnp.inf)
    for depth in range(self.config.num_terms - 1):
      steps = jnp.tile(tokens[0, first : first + self.config.num_terms - 1] - 6, (len(rows), 1))
      steps = steps.at[:, depth].set(jnp.arange(self.config.modulus))
      valid = data.check_steps(self.config, rows, steps)[:, depth]
      scores = jnp.where(valid, 0.0, 50.0 if self.misled else -50.0)
      logits = logits.at[first - 1 + depth, 6:].set(scores)
    return type("Output", (), {"logits": logits[None]})


@pytest.mark.parametrize(
  ("misled", "branching", "solved"), [(False, 1, True), (True, 4, False), (True, 5, True)]
)
def test_search_follows_verified_steps(misled, branching, solved):
  config = pass_at_n.dataclasses.replace(SMOKE, branching=branching, num_expansions=8)
  terse = data.ModularChainConfig(modulus=5, num_terms=3, verbose=False)
  batch = data.modular_chain_batch(jax.random.key(0), terse, 4, clean=True)
  search = lambda key, tokens: chains._search(  # noqa: E731
    config, terse, Oracle(terse, misled), None, key, tokens
  )
  found = jax.vmap(search)(jax.random.split(jax.random.key(1), 4), batch.tokens)
  np.testing.assert_array_equal(found, [solved] * 4)


def test_answers_may_be_right_without_a_proof(monkeypatch):
  wrong = data.ModularChainConfig(modulus=3, num_terms=3, noise=0.5)
  texts = data.modular_chain_batch(jax.random.key(0), wrong, 60)
  responses = texts.tokens[:, None, wrong.prompt_length :]
  drawn = type("Output", (), {"tokens": responses})
  monkeypatch.setattr(chains.samplers, "generate_n", lambda *args, **kwargs: drawn)
  config = pass_at_n.dataclasses.replace(SMOKE, num_problems=60, num_judged=60, rollout_chunk=60)

  def sample(problems):
    found = chains._sample_right(
      config, wrong, None, None, problems, jax.random.key(0), num_samples=1
    )
    return {what: np.asarray(hits[:, 0]) for what, hits in found.items()}

  valid = np.all(data.check_steps(wrong, texts.tokens[:, : wrong.prompt_length], texts.steps), 1)
  found = sample(texts)
  np.testing.assert_array_equal(found["answers"], texts.steps[:, -1] == texts.answers)
  np.testing.assert_array_equal(found["proofs"], valid)
  assert np.any(found["answers"] & ~valid) and not np.all(found["answers"])
  # A text always reaches the answer that it teaches.
  assert np.all(sample(texts._replace(answers=texts.steps[:, -1]))["answers"])


@pytest.mark.parametrize(
  ("success", "expected"), [([0.0, 0.5, 0.05], {0, 2}), ([0.5, 0.9], {0, 1})]
)
def test_batches_are_full_of_what_is_rarely_reached(success, expected):
  rows = chains._rare_rows(jax.random.key(0), jnp.array(success), 0.1, (4, 25))
  assert rows.shape == (4, 25) and set(np.unique(rows).tolist()) == expected


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"judged_samples": 3}, "train_samples must hold 1, 3"),
    ({"temperatures": (0.5,)}, "temperatures must hold 1.0"),
    ({"refresh_steps": 7}, "refresh_steps must divide chain_steps 2400, got 7"),
  ],
)
def test_settings_that_do_not_go_together(changed, words):
  with pytest.raises(ValueError, match=words):
    pass_at_n.Config(**changed)
