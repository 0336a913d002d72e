import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.weak_to_strong import students
from experiments.alignment.weak_to_strong.__main__ import PRESETS, by_roles
from experiments.alignment.weak_to_strong.enrichment import describe_errors
from experiments.alignment.weak_to_strong.students import ARMS, CEILING, EXPLICIT, NONE, Arm, Rows
from jaxlab import losses, models
from jaxlab.data import ImagePairs

N = 2000
RNG = np.random.default_rng(0)
# Students are surer where the weak model is, which is what confounds the score.
WEAK = RNG.beta(3, 2, N).astype(np.float32)
STRONG = RNG.beta(5, 1, N).astype(np.float32)
BASELINE = np.clip(0.6 * WEAK + 0.4 * RNG.beta(4, 1, N), 0, 1).astype(np.float32)
describe = jax.jit(describe_errors)


def test_measures_match_a_loop():
  conflict = np.where(RNG.random(N) < 0.3, 1 - BASELINE, BASELINE).astype(np.float32)
  right = np.flatnonzero(BASELINE > 0.5)
  right = right[np.argsort(BASELINE[right], kind="stable")]
  known, neither = (STRONG >= 0.75) & (WEAK < 0.75), (STRONG < 0.75) & (WEAK < 0.75)
  errors, expected, differences = 0, 0.0, []
  for i in range(10):
    rows = [row for k, row in enumerate(right) if k * 10 // len(right) == i]
    wrong = [row for row in rows if not conflict[row] > 0.5]
    errors += len(wrong)
    expected += len(wrong) * np.mean(known[rows])
    found = [conflict[[row for row in rows if of[row]]] <= 0.5 for of in (known, neither)]
    if all(map(len, found)):
      differences.append(found[0].mean() - found[1].mean())
  result = jax.tree.map(float, describe(BASELINE, conflict, STRONG, WEAK))
  assert result["conflict errors"] == errors
  np.testing.assert_allclose(result["matched share"], expected / errors, rtol=1e-5)
  ratio = result["score"] / result["matched share"]
  np.testing.assert_allclose(result["matched enrichment"], ratio, rtol=1e-5)
  np.testing.assert_allclose(
    result["excess of the error rate"], np.mean(differences), rtol=1e-4, atol=1e-6
  )
  parts = result["score, weak model wrong"] + result["score, weak model unsure"]
  np.testing.assert_allclose(parts, result["score"], rtol=1e-5)


def test_errors_by_confidence_alone_are_enriched_but_not_beyond_their_match():
  """Errors at random, errors of the unsure, and errors planted in the region."""

  @functools.partial(jax.jit, static_argnames="hits")
  def mean_of(keys, hits):
    def one(key):
      odds = 0.3 if hits == "random" else jnp.clip(3 * (1 - BASELINE), 0, 1)
      hit = jax.random.bernoulli(key, odds, (N,))
      found = describe_errors(BASELINE, jnp.where(hit, 0.0, BASELINE), STRONG, WEAK)
      return jnp.stack([found["enrichment"], found["matched enrichment"]])

    return jnp.mean(jax.vmap(one)(keys), axis=0)

  keys = jax.random.split(jax.random.key(0), 100)
  plain, matched = np.asarray(mean_of(keys, hits="random"))
  assert abs(plain - 1) < 0.03 and abs(matched - 1) < 0.03
  plain, matched = np.asarray(mean_of(keys, hits="unsure"))
  assert plain > 1.1 and abs(matched - 1) < 0.05
  planted = np.where((STRONG >= 0.75) & (WEAK < 0.75), np.float32(0), BASELINE)
  found = jax.tree.map(float, describe(BASELINE, planted, STRONG, WEAK))
  np.testing.assert_allclose(found["enrichment"], 1 / found["base share"], rtol=1e-5)
  assert found["matched enrichment"] > 1.4


def losses_of(arms, rows):
  """What each arm's update minimizes, by row; the logits, and three losses of them."""
  module = models.MLP(1, ())

  @jax.jit
  def evaluate(arms):
    params = module.init(jax.random.key(0), rows.first)["params"]

    def one(arm):
      loss = students.ranking_loss(module, arm, 0.5)
      done = jnp.full(len(rows.labels), 0.5)
      return loss(params, {}, (rows, done), jax.random.key(1)).values

    logits = students.margins(module, {"params": params}, rows)
    expected = (
      losses.sigmoid_cross_entropy(logits, rows.labels),
      losses.conflict_loss(logits, rows.labels, rows.truth),
      losses.confidence_auxiliary_loss(logits, rows.labels, step_fraction=0.5),
    )
    return jax.vmap(one)(arms), logits, expected

  stacked = jax.tree.map(lambda *values: np.float32(values), *arms)
  return jax.tree.map(np.asarray, evaluate(stacked))


def test_losses_of_the_arms():
  size = 16
  images = lambda: RNG.normal(size=(size, 5)).astype(np.float32)  # noqa: E731
  labels = RNG.uniform(size=size).astype(np.float32)
  truth, ink = RNG.integers(0, 2, (2, size)).astype(np.float32)
  rows = Rows(images(), images(), labels, truth, ImagePairs(images(), images(), ink))
  arms = Arm(), Arm(explicit=1), Arm(random=1), Arm(unsure=1), Arm(auxiliary=1), Arm(ink=1)
  found, logits, expected = losses_of(arms, rows)
  plain, explicit, random, unsure, auxiliary, inked = found
  for ours, theirs in zip((plain, explicit, auxiliary), expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert (inked > plain).all()
  pushed = [values - plain > 1e-6 for values in (explicit, random, unsure)]
  against = 0.5 * np.logaddexp(0, (2 * truth - 1) * logits)
  for values, hit in zip((explicit, random, unsure), pushed):
    np.testing.assert_allclose((values - plain)[hit], against[hit], rtol=1e-4)
  assert pushed[0].sum() == pushed[1].sum() >= pushed[2].sum() > 0
  assert not np.array_equal(pushed[0], pushed[1])
  assert (np.maximum(labels, 1 - labels)[pushed[2]] < 0.75).all()


def test_six_seeds_give_every_third_every_role():
  config = PRESETS["smoke"]
  tasks = [students.draw_task(config, seed) for seed in range(6)]
  first = {image.tobytes(): i for i in range(3) for image in tasks[2 * i].digits.inputs}
  roles = [
    {first[image.tobytes()] for image in images}
    for task in tasks
    for images in (task.teacher.first, task.student.first, task.test.first)
  ]
  assert all(len(thirds) == 1 for thirds in roles)
  assert len({tuple(map(min, roles[3 * i : 3 * i + 3])) for i in range(6)}) == 6


def test_arms_and_blocks():
  assert ARMS[EXPLICIT] == (Arm(explicit=1), NONE)
  for name, (arm, baseline) in ARMS.items():
    if name not in (NONE, CEILING):
      assert ARMS[baseline][0] == arm._replace(explicit=0, random=0, unsure=0, ink=0, reseed=0)
  np.testing.assert_array_equal(by_roles(np.arange(12.0)), np.arange(6) + 3)
  np.testing.assert_array_equal(by_roles(np.arange(5.0)), np.arange(5))
