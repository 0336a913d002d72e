import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses

RNG = np.random.default_rng(0)
INPUTS, HELD_OUT = RNG.normal(size=(2, 8, 4)).astype(np.float32)
LABELS, HELD_OUT_LABELS = RNG.integers(0, 3, (2, 8)).astype(np.int32)
TEACHER = RNG.normal(0, 2, (8, 3)).astype(np.float32)
WEIGHTS = RNG.normal(0, 0.5, (4, 3)).astype(np.float32)
RATIO = RNG.uniform(0.2, 0.8, 8).astype(np.float32)
RATE, TEMPERATURE = 0.7, 1.5


def softmax(z):
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


def student_loss(weights, ratio, inputs=INPUTS, labels=LABELS, teacher=TEACHER):
  return losses.fused_distillation_loss(inputs @ weights, teacher, labels, ratio).mean()


def held_out_loss(weights, inputs=HELD_OUT, labels=HELD_OUT_LABELS):
  return optax.softmax_cross_entropy_with_integer_labels(inputs @ weights, labels).mean()


def after_step(ratio):
  """The held-out loss of a linear student, and its gradient by the ratios, in double precision."""
  inputs, held_out, weights = map(np.float64, (INPUTS, HELD_OUT, WEIGHTS))
  scores, onehot = inputs @ weights, np.eye(3)
  soft = TEMPERATURE * (softmax(scores / TEMPERATURE) - softmax(TEACHER / TEMPERATURE))
  hard = softmax(scores) - onehot[LABELS]
  slope = inputs.T @ (ratio[:, None] * soft + (1 - ratio)[:, None] * hard) / 8
  moved = weights - RATE * slope
  probs = softmax(held_out @ moved)
  value = -np.log(probs[np.arange(8), HELD_OUT_LABELS]).mean()
  outer = held_out.T @ (probs - onehot[HELD_OUT_LABELS]) / 8
  agreement = np.einsum("nd,dk,nk->n", inputs, outer, soft - hard)
  return value, -RATE / 8 * agreement


hypergradient = jax.jit(
  lambda ratio: algorithms.virtual_step_gradient(
    student_loss, held_out_loss, WEIGHTS, ratio, inner_learning_rate=RATE
  )
)


def test_gradient_of_a_linear_student():
  found = jax.device_get(hypergradient(RATIO))
  value, expected = after_step(np.float64(RATIO))
  np.testing.assert_allclose(found.outer_loss, value, rtol=1e-5)
  np.testing.assert_allclose(found.gradient, expected, rtol=1e-3, atol=1e-6)
  for i in range(8):
    step = 1e-4 * np.eye(8)[i]
    change = after_step(RATIO + step)[0] - after_step(RATIO - step)[0]
    np.testing.assert_allclose(found.gradient[i], change / 2e-4, rtol=1e-3, atol=1e-6)


def test_a_wrong_teacher_loses_weight_and_a_wrong_label_gains_it():
  centers = 2 * np.eye(3, 4, dtype=np.float32)
  truth = np.arange(24) % 3
  inputs = centers[truth] + 0.3 * RNG.normal(size=(24, 4)).astype(np.float32)
  wrong_teacher = np.arange(24) < 12
  teacher = 4 * np.eye(3, dtype=np.float32)[(truth + wrong_teacher) % 3]
  labels = np.where(wrong_teacher, truth, (truth + 1) % 3)
  found = jax.jit(
    lambda ratio: algorithms.virtual_step_gradient(
      lambda w, r: student_loss(w, r, inputs, labels, teacher),
      lambda w: held_out_loss(w, centers[:3], np.arange(3)),
      np.zeros((4, 3), np.float32),
      ratio,
      inner_learning_rate=RATE,
    )
  )(np.full(24, 0.5, np.float32))
  gradient = np.asarray(found.gradient)
  assert gradient[wrong_teacher].mean() > 0 > gradient[~wrong_teacher].mean()


def inner_toy(position, scores, points):
  return jnp.sum(jax.nn.softmax(scores) * jnp.square(position - points)) / 2


def outer_toy(position, target):
  return jnp.square(position - target) / 2


def test_a_quadratic_problem_is_solved():
  """The inner optimum is the weighted mean of two points; the outer one puts it where it should."""
  solver = algorithms.bilevel(
    inner_toy, outer_toy, optax.sgd(0.5), optax.sgd(2.0), inner_learning_rate=0.5
  )
  points = np.float32([-1.0, 1.0])

  @jax.jit
  def solve():
    def step(state, _):
      return solver.update(state, points, 0.4)

    return jax.lax.scan(step, solver.init(np.float32(-0.7), np.zeros(2, np.float32)), None, 300)

  state, info = jax.device_get(solve())
  np.testing.assert_allclose(state.inner, 0.4, atol=1e-4)
  np.testing.assert_allclose(state.outer[1] - state.outer[0], np.log(7 / 3), atol=1e-3)
  assert info.outer_grad_norm[-1] < 1e-5 < info.outer_grad_norm[0] and state.step == 300


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_outer_first_and_every_few_steps(every):
  """A line of numbers: the inner loss is (x - y a)^2 / 2, the outer one (x - b)^2 / 2."""
  solver = algorithms.bilevel(
    lambda x, y, a: jnp.square(x - y * a) / 2,
    lambda x, b: jnp.square(x - b) / 2,
    optax.sgd(0.3),
    optax.sgd(0.2, momentum=0.5),
    inner_learning_rate=0.6,
    outer_every=every,
  )
  batches = RNG.normal(size=(7, 2)).astype(np.float32)
  run = jax.jit(
    lambda x, y: jax.lax.scan(
      lambda state, row: solver.update(state, row[0], row[1]), solver.init(x, y), batches
    )
  )
  state, info = jax.device_get(run(np.float32(0.5), np.float32(-0.4)))
  x, y, momentum = 0.5, -0.4, 0.0
  for i, (a, b) in enumerate(np.float64(batches)):
    outer_loss = slope = 0.0
    if i % every == 0:
      moved = x - 0.6 * (x - y * a)
      outer_loss, slope = (moved - b) ** 2 / 2, (moved - b) * 0.6 * a
      momentum = 0.5 * momentum + slope
      y -= 0.2 * momentum
    expected = [(x - y * a) ** 2 / 2, outer_loss, abs(slope)]
    np.testing.assert_allclose([z[i] for z in info], expected, rtol=1e-4, atol=1e-6)
    x -= 0.3 * (x - y * a)
  np.testing.assert_allclose([state.inner, state.outer], [x, y], rtol=1e-5)
  assert state.step == 7


def test_errors():
  for value in (0, -0.1):
    with pytest.raises(ValueError, match="inner_learning_rate"):
      algorithms.virtual_step_gradient(
        student_loss, held_out_loss, WEIGHTS, RATIO, inner_learning_rate=value
      )
    with pytest.raises(ValueError, match="inner_learning_rate"):
      algorithms.bilevel(
        inner_toy, outer_toy, optax.sgd(1.0), optax.sgd(1.0), inner_learning_rate=value
      )
  with pytest.raises(ValueError, match="outer_every must be at least 1, got 0"):
    algorithms.bilevel(
      inner_toy,
      outer_toy,
      optax.sgd(1.0),
      optax.sgd(1.0),
      inner_learning_rate=1.0,
      outer_every=0,
    )
