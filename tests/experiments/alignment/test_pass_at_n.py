import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import catalogue
from experiments.alignment.pass_at_n import chains, products
from experiments.alignment.pass_at_n.__main__ import PRESETS, Config
from jaxlab import samplers
from jaxlab.experiment import Results
from jaxlab.experiment.records import from_stored

SMOKE = PRESETS["smoke"]
CONTEXT = types.SimpleNamespace(seeds=1)


def test_pass_at_n_is_one_minus_the_chance_that_all_fail():
  probs = np.array([[0.3, 1e-4, 1.0], [0.5, 0.5, 0.1]])
  for n in (1, 16):
    expected = 100 * (1 - (1 - probs) ** n)
    np.testing.assert_allclose(products.pass_at(np.log(probs), n), expected, rtol=1e-9)
  np.testing.assert_array_equal(products.pass_at(np.array([1e-7, -np.inf]), 4), [100, 0])


def test_no_side_of_the_split_sees_a_mirrored_product_of_another():
  train, fresh = jax.jit(lambda: products.problems(SMOKE, jax.random.key(3)))()
  sides = [
    train.tokens,
    *(np.moveaxis(part, -1, 0) for part in products.parts(SMOKE, fresh.tokens.T)),
  ]
  assert [len(side) for side in sides] == [16, 6, 6]
  pairs = [{tuple(sorted(row[[0, 2]].tolist())) for row in np.asarray(side)} for side in sides]
  for i in range(3):
    assert not pairs[i] & pairs[i - 1]


def test_smoothed_and_weighted_cross_entropy_is_that_of_a_loop():
  model = products.decoder(SMOKE)

  @jax.jit
  def evaluate(key):
    rows = products.problems(SMOKE, key).train
    params = model.init(key, rows.tokens)["params"]
    values = products.objective(model, 16.0, 0.2)(params, {}, (rows,), key).values
    logits = model.apply({"params": params}, rows.tokens).logits
    return values, rows.tokens, jax.nn.log_softmax(logits)

  for value, row, log_prob in zip(*map(np.asarray, evaluate(jax.random.key(1)))):
    places = range(4, len(row))
    right = [log_prob[i - 1, row[i]] for i in places]
    smoothed = [0.8 * p + 0.2 * log_prob[i - 1].mean() for i, p in zip(places, right)]
    p = np.exp(np.sum(right, dtype=np.float64))
    weight = 16 * p * (1 - p) ** 15 / (1 - (1 - p) ** 16)
    np.testing.assert_allclose(value, -weight * np.mean(smoothed), rtol=1e-3)


def test_what_both_losses_use_won_the_search():
  stored, laptop = catalogue.measured("pass_at_n", catalogue.SELECTIONS), PRESETS["laptop"]
  assert stored["pilot"]
  same = ("learning_rate", "decoder", "batch_size", "num_train", "temperatures", "search_epochs")
  search = {name: stored["config"][name] for name in same}
  # The field had another name when the search ran.
  search["headline_samples"] = stored["config"]["judged_samples"]
  config = json.loads(json.dumps(dataclasses.asdict(PRESETS["search"])))
  assert search == {name: config[name] for name in search}
  results, recipes = from_stored(stored["records"]), products.recipes(laptop)
  for method in products.METHODS.values():
    best = {}
    records = results.matching(method=method, quantity=products.TUNED)
    assert len(records) == 7 * 4 * 10
    for record in records:
      name = next(n for n, r in recipes.items() if r.items() <= record.setting.items())
      recipe = record.setting["epochs"], name
      best[recipe] = max(best.get(recipe, 0.0), record.values.mean())
    won = sorted(best, key=best.get)[-2:]
    assert set(won) == {(laptop.chosen_epochs, name) for name in laptop.chosen_regularizers}


def likelihoods(shares):
  return np.log(np.array(shares, float))


def test_a_search_tries_the_same_recipes_for_both_losses(monkeypatch):
  config = dataclasses.replace(SMOKE, search_epochs=(2, 4))

  def fake(context, stage, evaluate, splits, settings):
    assert splits is None and evaluate.func is products.train_and_evaluate
    assert [setting["num_samples"] for setting in settings] == [1, 4]
    values = likelihoods([[0.1], [evaluate.keywords["dropout"] or 0.2]])[None, :, None, :, None]
    return {"log_probs": np.broadcast_to(values, (3, 2, 1, 2, 13))}

  monkeypatch.setattr(products, "grid", fake)
  results = Results()
  products.search(config, CONTEXT, results)
  tried = [
    [record.setting for record in results.matching(method=method)]
    for method in products.METHODS.values()
  ]
  assert tried[0] == tried[1] and len(tried[0]) == 2 * 4 * 2
  where = {"epochs": 4, "temperature": 2.0, **products.PLAIN}
  for dropout, share in ((0.0, 0.2), (0.1, 0.1)):
    value = results.select(products.TUNED, method="coverage loss", **where | {"dropout": dropout})
    np.testing.assert_allclose(value, [100 * (1 - (1 - share) ** 4)] * 3)


def test_regularizer_and_temperature_are_chosen_on_validation(monkeypatch):
  # On 6 validation problems weight decay is better at the first temperature, for all that one sees.
  def fake(context, stage, evaluate, splits, settings):
    if "greedy" in evaluate.keywords:
      one = np.zeros((1, 2))
      return {
        "log_probs": np.zeros((1, 2, 2, 1, 13)),
        "greedy accuracy": one,
        "overconfidence": one,
      }
    decay = evaluate.keywords["dropout"] == 0
    shares = np.full((2, 2, 13), 0.1)
    shares[:, 0, :6] = 0.3 if decay else 0.2
    shares[1, 0, 7:] = 0.4 if decay else 0.8
    answers = np.tile(np.arange(13), (1, 2, 1))
    return {"log_probs": likelihoods(shares)[None, :, None], "answers": answers}

  monkeypatch.setattr(products, "grid", fake)
  results = Results()
  config = dataclasses.replace(SMOKE, chosen_regularizers=("dropout", "weight_decay"))
  products.measure(config, CONTEXT, results)
  percent = {share: 100 * (1 - (1 - share) ** 4) for share in (0.1, 0.4, 0.8)}
  for method, name, share in (
    ("cross-entropy", products.CHOSEN, 0.1),
    ("coverage loss", products.CHOSEN, 0.4),
    ("coverage loss", "dropout", 0.8),
  ):
    where = {"method": method, "regularizer": name}
    np.testing.assert_allclose(results.select(products.TUNED, **where), [percent[share]])
    assert results.select("chosen/temperature", **where) == [1]
  ends = [results.select(f"{end} end of the bootstrap") for end in ("low", "high")]
  np.testing.assert_allclose(ends, percent[0.4] - percent[0.1])


def test_the_epoch_is_chosen_on_validation():
  # Of 6 validation problems the first epoch is better, of 6 test problems the second.
  shares = np.concatenate([np.full((2, 7), 0.4), np.full((2, 6), 0.1)], axis=-1)
  shares[1, :7], shares[1, 7:] = 0.2, 0.7
  log_probs = np.log(shares)[None, None, :, None]
  log_probs = np.tile(log_probs, (1, 2, 1, 1, 1))
  trained = {"log_probs": log_probs, "overconfidence": np.array([[0.1, 0.2]])}
  trained["greedy accuracy"] = trained["overconfidence"]
  results = Results()
  products.add_every_n(SMOKE, results, trained)
  where = {"train_samples": 4, "test_samples": 1}
  for chosen, expected in (("nothing", 70), ("epoch", 10)):
    value = results.select("pass@N", **where, chosen=chosen)
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
  assert results.select("chosen/epoch", **where) == [1]
  by_epoch = [results.select("pass@N by epoch", **where, epoch=epoch) for epoch in (1, 2)]
  np.testing.assert_allclose(np.concatenate(by_epoch), [10, 70], rtol=1e-6)
  np.testing.assert_allclose(results.select("overconfidence", train_samples=4), [20])


def test_the_bootstrap_draws_seeds_and_groups_of_problems():
  rng = np.random.default_rng(1)
  groups = np.tile(np.arange(500), (8, 4))
  values = np.take_along_axis(rng.normal(size=(8, 500)), groups, axis=1)
  for of_seeds in (np.zeros(8), np.linspace(-1, 1, 8)):
    values += of_seeds[:, None]
    low, high = products.bootstrap(values, groups)
    error = ((values.mean(1).var() + 1 / 500) / 8) ** 0.5
    np.testing.assert_allclose(
      [low, high], values.mean() + error * np.array([-1.96, 1.96]), atol=0.4 * error
    )


def test_a_chain_is_solved_if_every_step_is_among_its_tries():
  """A search with verified steps finds what the product over steps says."""
  probs = np.array([0.6, 0.2, 0.5])
  tries, count = 3, 4000

  def propose(key, depth):
    right = jax.random.bernoulli(key, jnp.array(probs)[depth], (tries,))
    # Of several right ones only the first goes on: they are the same step.
    return jnp.where(right & (jnp.cumsum(right) == 1), 1, 0), jnp.zeros(tries)

  def proceed(depth, action):
    return depth + 1, jnp.where(action == 1, jnp.where(depth == 2, 1, 0), -1)

  @jax.jit
  def search(keys):
    options = {"num_expansions": 3, "branching": tries, "max_depth": 3}
    root = jnp.zeros((), jnp.int32)
    return jax.vmap(
      lambda key: samplers.best_first_search(key, propose, proceed, root, **options).solved
    )(keys)

  solved = np.mean(search(jax.random.split(jax.random.key(0), count)))
  expected = np.prod(products.pass_at(np.log(probs), tries) / 100)
  np.testing.assert_allclose(solved, expected, atol=3 * (expected * (1 - expected) / count) ** 0.5)


def test_update_and_temperature_are_chosen_on_validation():
  # Two evaluations, one temperature, four problems of validation, four to test on.
  validation, test = np.array([[30.0], [20.0]]), np.array([[10.0], [90.0]])
  chances = np.concatenate([np.tile(validation, 4), np.tile(test, 4)], axis=1)[None, :, None]
  best = chains.chosen(SMOKE, chances)
  assert best["chosen/update"] == [1]
  np.testing.assert_array_equal(best["test"], [[10] * 4])


def test_samples_must_hold_the_number_of_the_headline():
  with pytest.raises(ValueError, match="samples must hold 1 and 3"):
    Config(headline_samples=3)
