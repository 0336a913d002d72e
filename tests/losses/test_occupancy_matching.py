import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import losses

B, T, V = 6, 5, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, T + 1, V)).astype(np.float32)
ACTIONS = RNG.integers(0, V, (B, T))
LENGTHS = np.array([5, 3, 0, 1, 5, 2])
TERMINATED = np.array([True, True, True, False, False, True])
ROWS = LOGITS, ACTIONS, LENGTHS, TERMINATED
values = jax.jit(losses.soft_values)
rewards = jax.jit(losses.soft_rewards)
loss = jax.jit(losses.occupancy_matching_loss, static_argnames="source")
slope = jax.jit(
  jax.grad(lambda z, *rest, **kw: losses.occupancy_matching_loss(z, *rest, **kw).sum()),
  static_argnames="source",
)
data, model = (functools.partial(loss, source=source) for source in ("data", "model"))


def slow_terms(logits, actions, length, terminated, discount, weights=(1,) * T):
  """The sums of the specification for one row, step by step."""
  logits = np.float64(logits)
  v = [np.log(np.sum(np.exp(row))) for row in logits]
  total, u, q, tail = 0.0, 0.0, 0.0, 0.0
  for t in range(length):
    r = logits[t, actions[t]] - discount * v[t + 1]
    total += weights[t] * discount**t * r
    u += weights[t] * discount**t * (v[t] - discount * v[t + 1])
    q += weights[t] * discount**t * r**2
  if terminated:
    rho = (1 - discount) * v[length]
    tail = discount**length / (1 - discount) * rho
    u += discount**length * v[length]
    q += discount**length / (1 - discount) * rho**2
  return total, u, q, tail


@pytest.mark.parametrize(("discount", "alpha"), [(0.99, 1.0), (0.7, 0.2)])
def test_losses_match_a_loop(discount, alpha):
  expected = []
  for row in zip(*ROWS):
    total, u, q, tail = slow_terms(*row, discount)
    of_model = 0.5 * u + q / (8 * alpha)
    expected.append((of_model - total - tail, of_model))
  keywords = {"discount": discount, "alpha": alpha}
  result = data(*ROWS, **keywords), model(*ROWS, **keywords)
  np.testing.assert_allclose(np.transpose(result), expected, rtol=2e-5, atol=2e-5)


def test_weighted_losses_match_a_loop():
  weights = RNG.integers(0, 2, (B, T)).astype(np.float32)
  expected = []
  for row, of_actions in zip(zip(*ROWS), weights):
    total, u, q, tail = slow_terms(*row, 0.9, of_actions)
    of_model = 0.5 * u + q / 8
    expected.append((of_model - total - tail, of_model))
  result = (f(*ROWS, discount=0.9, weights=weights) for f in (data, model))
  np.testing.assert_allclose(np.transpose(list(result)), expected, rtol=2e-5, atol=2e-5)


def test_defaults():
  keywords = {"discount": 0.99, "alpha": 1.0}
  np.testing.assert_allclose(data(*ROWS), data(*ROWS, **keywords), rtol=1e-6)


def test_values_and_rewards_match_a_loop():
  expected = np.log(np.exp(np.float64(LOGITS)).sum(-1))
  np.testing.assert_allclose(values(LOGITS), expected, rtol=1e-5)
  slow = np.zeros((B, T))
  for b in range(B):
    for t in range(LENGTHS[b]):
      slow[b, t] = LOGITS[b, t, ACTIONS[b, t]] - 0.9 * expected[b, t + 1]
  result = rewards(LOGITS, ACTIONS, LENGTHS, discount=0.9)
  np.testing.assert_allclose(result, slow, rtol=1e-5, atol=1e-6)


def test_without_penalty_both_forms_on_data_are_maximum_likelihood():
  log_probs = np.take_along_axis(
    LOGITS[:, :-1] - np.asarray(values(LOGITS))[:, :-1, None], ACTIONS[..., None], 2
  )[..., 0]
  real = np.arange(T) < LENGTHS[:, None]
  expected = -np.sum(np.where(real, 0.9 ** np.arange(T) * log_probs, 0.0), axis=1)
  keywords = {"discount": 0.9, "alpha": np.inf}
  result = data(*ROWS, **keywords) + model(*ROWS, **keywords)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_values_of_finished_sequences_telescope():
  """Without penalty the loss of the model is half of the first value."""
  result = model(*ROWS, discount=0.9, alpha=np.inf)
  first = 0.5 * np.asarray(values(LOGITS))[:, 0]
  np.testing.assert_allclose(result[TERMINATED], first[TERMINATED], rtol=1e-4)


def test_potentials_change_nothing_but_the_penalty():
  """Scores that are shifted by a function of the state shape rewards as a potential does."""
  shift = RNG.normal(size=(B, T + 1)).astype(np.float32)
  moved = LOGITS + shift[..., None]
  real = np.arange(T) < LENGTHS[:, None]
  change = rewards(moved, ACTIONS, LENGTHS, discount=0.9)
  change -= rewards(LOGITS, ACTIONS, LENGTHS, discount=0.9)
  expected = np.where(real, shift[:, :-1] - 0.9 * shift[:, 1:], 0.0)
  np.testing.assert_allclose(change, expected, atol=1e-5)
  # Data less the model's half: -(sum of rewards) - tail + U, with U the whole first value.
  keywords = {"discount": 0.9, "alpha": np.inf}

  def invariant(logits):
    rows = (logits, *ROWS[1:])
    return (data(*rows, **keywords) + model(*rows, **keywords))[TERMINATED]

  np.testing.assert_allclose(invariant(moved), invariant(LOGITS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", ["data", "model"])
def test_nothing_after_the_length_counts(fill, source):
  states = np.arange(T + 1) > LENGTHS[:, None]
  hidden = np.where(states[..., None], np.float32(fill), LOGITS)
  junk = np.where(states[:, 1:], -100, ACTIONS)
  rows = hidden, junk, *ROWS[2:]
  np.testing.assert_array_equal(loss(*rows, source=source), loss(*ROWS, source=source))
  gradient = np.asarray(slope(*rows, source=source))
  np.testing.assert_array_equal(gradient, slope(*ROWS, source=source))
  assert np.isfinite(gradient).all() and not gradient[states].any()
  np.testing.assert_array_equal(rewards(*rows[:3], discount=0.9), rewards(*ROWS[:3], discount=0.9))


def test_gradients_reach_the_next_state():
  """No term is held constant: the slope of the likelihood is that of a softmax."""
  keywords = {"discount": 0.9, "alpha": np.inf}
  gradient = sum(np.asarray(slope(*ROWS, source=x, **keywords)) for x in ("data", "model"))
  real = (np.arange(T + 1) < LENGTHS[:, None])[..., None]
  targets = np.concatenate([np.eye(V)[ACTIONS], np.zeros((B, 1, V))], axis=1)
  weights = 0.9 ** np.arange(T + 1)[:, None]
  shares = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  expected = np.where(real, weights * (shares - targets), 0.0)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("source", ["data", "model"])
def test_extreme_and_forbidden_scores(source):
  logits = np.where(LOGITS > 0, 1e4, -1e4).astype(np.float32)
  assert np.isfinite(loss(logits, *ROWS[1:], source=source)).all()
  assert np.isfinite(slope(logits, *ROWS[1:], source=source)).all()
  # A fifth action that no state allows.
  masked = np.where(np.eye(V, dtype=bool)[(ACTIONS[:, [0]] + 1) % V], -np.inf, LOGITS)
  masked = np.where((np.arange(T + 1) == 0)[:, None], masked, LOGITS).astype(np.float32)
  assert np.isfinite(loss(masked, *ROWS[1:], source=source)).all()
  assert np.isfinite(slope(masked, *ROWS[1:], source=source)).all()


def test_bad_values_stay_in_their_rows():
  second = np.arange(B) == 1
  with_nan = np.where(second[:, None, None], np.nan, LOGITS)
  np.testing.assert_array_equal(np.isnan(data(with_nan, *ROWS[1:])), second)
  for actions in (np.where(second[:, None], V, ACTIONS), np.where(second[:, None], -1, ACTIONS)):
    np.testing.assert_array_equal(np.isnan(data(LOGITS, actions, *ROWS[2:])), second)
  for length in (-1, T + 1):
    lengths = jnp.where(second, length, LENGTHS)
    np.testing.assert_array_equal(np.isnan(data(LOGITS, ACTIONS, lengths, TERMINATED)), second)


def test_half_precision():
  half = jnp.asarray(LOGITS, jnp.bfloat16)
  for result in (values(half), rewards(half, *ROWS[1:3], discount=0.9), data(half, *ROWS[1:])):
    assert result.dtype == jnp.float32
  np.testing.assert_allclose(data(half, *ROWS[1:]), data(*ROWS), atol=0.1)


def test_the_exact_objective_has_its_optimum_near_the_law_of_the_data():
  """All texts of three steps from four tokens, weighted by their exact probabilities."""
  num_steps, shape = 3, (V,) * 3
  texts = np.stack(np.unravel_index(np.arange(V**num_steps), shape), axis=1)
  law = [np.random.default_rng(t).dirichlet(np.full(V, 2.0), V**t) for t in range(num_steps)]
  # The states of step t are the texts of t tokens, by their number.
  states = np.stack(
    [np.ravel_multi_index(texts[:, :t].T, shape[:t]) if t else texts[:, 0] * 0 for t in range(4)], 1
  )
  chance = np.prod([law[t][states[:, t], texts[:, t]] for t in range(num_steps)], axis=0)
  ended, lengths = np.ones(len(texts), bool), np.full(len(texts), num_steps)

  def expected_loss(tables):
    logits = jnp.stack([table[states[:, t]] for t, table in enumerate(tables)], axis=1)
    own = jax.nn.log_softmax(logits[:, :-1])
    own = jnp.take_along_axis(own, texts[..., None], axis=2)[..., 0].sum(1)
    rows = logits, texts, lengths, ended
    keywords = {"discount": 0.9, "alpha": 1.0}
    of_data = losses.occupancy_matching_loss(*rows, source="data", **keywords)
    of_model = losses.occupancy_matching_loss(*rows, source="model", **keywords)
    return chance @ of_data + jax.lax.stop_gradient(jnp.exp(own)) @ of_model

  adam = optax.adam(1e-2)

  @jax.jit
  def descend(tables):
    def step(carry, _):
      tables, state = carry
      moves, state = adam.update(jax.grad(expected_loss)(tables), state)
      return (optax.apply_updates(tables, moves), state), None

    (tables, _), _ = jax.lax.scan(step, (tables, adam.init(tables)), None, length=3000)
    return [jax.nn.softmax(table) for table in tables]

  learned = descend([np.zeros((V**t, V), np.float32) for t in range(num_steps + 1)])
  for probabilities, true in zip(learned, law):
    assert 0.5 * np.abs(np.asarray(probabilities) - true).sum(1).max() < 0.02


def test_errors():
  for keywords, message in (
    ({"discount": 0.0}, r"discount must lie in \(0, 1\)"),
    ({"discount": 1.0}, "discount"),
    ({"alpha": 0.0}, r"alpha must lie in \(0, inf\]"),
    ({"source": "expert"}, "source must be one of 'data', 'model'"),
    ({"lengths": LENGTHS + 1}, r"lengths must lie in \[0, 5\]"),
    ({"logits": LOGITS[:, 1:]}, r"logits must have shape \[..., 6, v\]"),
    ({"terminated": TERMINATED[1:]}, "terminated must have shape"),
    ({"weights": ACTIONS[:, 1:]}, "weights must have shape"),
  ):
    names = ("logits", "actions", "lengths", "terminated")
    arguments = {**dict(zip(names, ROWS)), "source": "data"} | keywords
    with pytest.raises(ValueError, match=message):
      losses.occupancy_matching_loss(**arguments)
  with pytest.raises(TypeError, match="terminated must be of type bool"):
    losses.occupancy_matching_loss(*ROWS[:3], LENGTHS, source="data")
  with pytest.raises(TypeError, match="actions must be of type int"):
    losses.soft_rewards(LOGITS, np.float32(ACTIONS), LENGTHS, discount=0.5)
  with pytest.raises(ValueError, match="discount"):
    losses.soft_rewards(*ROWS[:3], discount=1.5)
