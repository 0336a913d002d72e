"""Checks and casts that every room shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, metrics
from jaxlab._checks import (
  as_accumulator,
  as_classes,
  as_flags,
  check_arrays,
  check_at_least,
  check_broadcast,
  check_choice,
  check_filled,
  check_increasing,
  check_pair,
  check_probabilities,
  check_range,
  is_known,
  reaches,
  weighted,
)


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(2), np.zeros(3), [0.1, 0.2], None])
def test_numbers_and_numpy_arrays_are_known(value):
  assert is_known(value)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [0.5, x], lambda x: {"a": x}])
def test_device_and_traced_arrays_are_not_known(wrap):
  assert not is_known(wrap(jnp.float32(1)))
  jax.eval_shape(lambda x: not is_known(wrap(x)) or pytest.fail("a traced value is known"), 1.0)


@pytest.mark.parametrize(
  ("given", "wanted"),
  [("bfloat16", "float32"), ("float32", "float32"), ("int32", "float32"), ("bool", "float32")],
)
def test_casts_to_float32_or_wider(given, wanted):
  cast = as_accumulator(jnp.ones(3, given))
  assert cast.dtype == wanted
  np.testing.assert_array_equal(cast, np.ones(3))


def test_keeps_float64_and_shares_the_widest_type():
  with jax.enable_x64(True):
    half, double = as_accumulator(jnp.ones(2, jnp.bfloat16), jnp.ones(3, jnp.float64))
  assert half.dtype == double.dtype == "float64"
  assert (half.shape, double.shape) == ((2,), (3,))


def test_flags_are_read_from_truth_values_and_numbers():
  for given in (np.array([True, False]), np.float32([1, 0])):
    flags, valid = jax.device_get(as_flags("hits", given))
    np.testing.assert_array_equal([flags, valid], [[True, False], [True, True]])
  flags, valid = jax.jit(lambda x: as_flags("hits", x))(np.float32([1, 0, 2, np.nan]))
  np.testing.assert_array_equal([flags, valid], [[1, 0, 0, 0], [1, 1, 0, 0]])
  for bad in (2, np.nan):
    with pytest.raises(ValueError, match="hits must be 0 or 1, got the values"):
      as_flags("hits", np.array([0, bad]))


@pytest.mark.parametrize(
  ("value", "interval", "allowed"),
  [
    (0.0, "[0, 1]", True),
    (1.0, "[0, 1]", True),
    (0.0, "(0, 1)", False),
    (1.0, "(0, 1)", False),
    (1e30, "(0, inf)", True),
    (np.inf, "(0, inf)", False),
    (np.inf, "(0, inf]", True),
    (np.nan, "(-inf, inf)", False),
    ([0.2, 1.2], "[0, 1]", False),
    (3, "[1, 5]", True),
  ],
)
def test_check_range_accepts_only_values_in_the_interval(value, interval, allowed):
  if allowed:
    check_range("alpha", value, interval)
  else:
    with pytest.raises(ValueError, match=r"alpha must lie in") as error:
      check_range("alpha", value, interval)
    assert interval in str(error.value) and str(value) in str(error.value)


def test_check_pair_wants_two_numbers_in_order():
  check_pair("scale", (0.5, 0.5), "(0, inf)")
  jax.jit(lambda high: check_pair("scale", (0.5, high), "(0, inf)") or high)(0.1)
  for values, words in (
    ((0.5, 0.1), "in order"),
    ((0.5,), "two numbers"),
    ((0.0, 0.5), r"\(0, inf\)"),
    ((0.5, np.nan), r"\(0, inf\)"),
  ):
    with pytest.raises(ValueError, match=f"scale must .*{words}"):
      check_pair("scale", values, "(0, inf)")


def test_check_range_does_not_check_traced_values():
  @jax.jit
  def scaled(alpha):
    check_range("alpha", alpha, "[0, 1]")
    return 2 * alpha

  assert scaled(3.0) == 6.0


def test_known_arrays_are_checked_under_jit():
  with pytest.raises(ValueError, match="alpha"):
    jax.jit(lambda x: check_range("alpha", np.float32(2), "[0, 1]") or x)(1.0)


def test_values_of_device_arrays_are_not_checked():
  check_range("alpha", jnp.full(3, 7.0), "[0, 1]")
  np.testing.assert_array_equal(as_classes("labels", jnp.array([0, -1, 5]), 3), [0, 3, 5])


@pytest.mark.parametrize("labels", [[0, -1], [0, 3]])
def test_known_labels_outside_the_classes_raise(labels):
  with pytest.raises(ValueError, match=rf"labels must lie in \[0, 3\), got {min(labels)} to"):
    as_classes("labels", np.array(labels), 3)


def test_the_first_label_outside_is_named():
  labels = np.zeros((4, 5), int)
  labels[2, 3], labels[3, 0] = 7, -1
  with pytest.raises(ValueError, match=r"got -1 to 7; the first outside is labels\[2, 3\]\."):
    as_classes("labels", labels, 3)
  with pytest.raises(ValueError, match=r"got 3 to 3\."):
    as_classes("labels", 3, 3)


def test_probabilities_are_refused_by_row():
  probs = np.full((4, 4), 0.25, np.float16)
  check_probabilities("probs", probs)
  check_probabilities("probs", jnp.ones((4, 4)))
  probs[2] = 0.5
  with pytest.raises(ValueError, match=r"probs must sum to 1, got 2.0 in row 2\."):
    check_probabilities("probs", probs)
  probs[2] = [1.5, -0.5, 0, 0]
  with pytest.raises(ValueError, match=r"probs must not be negative, got -0.5 in row 2\."):
    check_probabilities("probs", probs)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_narrow_labels_are_widened(dtype):
  labels = as_classes("labels", jnp.array([0, 100], dtype), 300)
  assert labels.dtype == "int32"
  np.testing.assert_array_equal(labels, [0, 100])


def test_labels_must_be_integers():
  with pytest.raises(TypeError, match="labels"):
    as_classes("labels", np.zeros(2), 3)


def test_empty_labels_are_accepted():
  assert as_classes("labels", np.zeros(0, int), 3).shape == (0,)


def test_check_at_least_names_the_count_and_the_minimum():
  check_at_least(1, num_steps=1, top_k=None)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    check_at_least(1, batch_size=2, num_steps=0)


def test_check_choice_lists_the_choices():
  check_choice("norm", "pre", ("pre", "post"))
  with pytest.raises(ValueError, match="norm must be one of 'pre', 'post', got 'both'"):
    check_choice("norm", "both", ("pre", "post"))


@pytest.mark.parametrize(
  "function",
  [
    losses.brier_loss,
    losses.correctness_aware_loss,
    losses.label_smoothed_cross_entropy,
    metrics.negative_log_likelihood,
  ],
)
def test_device_labels_outside_the_classes_give_nan_in_their_rows(function):
  values = jax.jit(function)(np.zeros((3, 3), np.float32), np.array([-1, 0, 3]))
  np.testing.assert_array_equal(np.isnan(values), [True, False, True])
  with pytest.raises(ValueError, match="labels must lie"):
    function(np.zeros((3, 3), np.float32), np.array([-1, 0, 3]))


@pytest.mark.parametrize(
  "arguments",
  [
    {"logits": (np.zeros((2, 3)), "float [..., k]"), "labels": (np.zeros(2, int), "int [...]")},
    {"logits": (np.zeros((2, 4, 3)), "[..., k]"), "labels": (np.zeros((2, 4), int), "int [...]")},
    {
      "logits": (np.zeros(3), "[..., k]"),
      "weights": ([1, 2, 3], "[k]"),
      "scale": (2.0, "float []"),
    },
    {
      "images": (np.zeros((5, 8, 8, 3)), "[b, h, h, 3]"),
      "mask": (np.zeros((5, 1), bool), "[b, *]"),
    },
    {
      "x": (np.zeros((2, 7, 7, 3)), "[b, ..., 3]"),
      "y": (None, "[b]"),
      "z": (np.zeros((7, 7)), "[...]"),
    },
    {"x": (jnp.zeros((2, 3), jnp.bfloat16), "float [b, k]")},
  ],
)
def test_arrays_that_fit_their_forms(arguments):
  check_arrays(**arguments)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    (
      {"logits": (np.zeros((2, 3)), "[..., k]"), "labels": (np.zeros(5, int), "int [...]")},
      ValueError,
      r"labels must have shape \[...\] with ... = \[2\], got \[5\]",
    ),
    (
      {"logits": (np.zeros((2, 3)), "float [b, k]"), "labels": (np.zeros(5, int), "int [b]")},
      ValueError,
      r"labels must have shape \[b\] with b = 2, got \[5\]",
    ),
    (
      {"logits": (np.zeros(3), "[b, k]")},
      ValueError,
      r"logits must have shape \[b, k\], got \[3\]",
    ),
    (
      {"kernel": (np.zeros((2, 3)), "[n, n]")},
      ValueError,
      r"kernel must .* \[n, n\], got \[2, 3\]",
    ),
    ({"points": (np.zeros((2, 3)), "[n, 2]")}, ValueError, r"points .* \[n, 2\], got \[2, 3\]"),
    ({"x": (1.0, "[..., k]")}, ValueError, r"x must have shape \[..., k\], got \[\]"),
    (
      {"labels": ([0.5, 1.0], "int [b]")},
      TypeError,
      r"labels must be of type int, got float32\[2\]",
    ),
    ({"mask": (np.ones(2), "bool [b]")}, TypeError, "mask must be of type bool, got float"),
    (
      {"logits": (np.ones(2, int), "float [b]")},
      TypeError,
      "logits must be of type float, got int",
    ),
    ({"x": (1.0, "k")}, ValueError, "a form must look like"),
  ],
)
def test_arrays_that_do_not_fit_are_named(arguments, error, message):
  with pytest.raises(error, match=message):
    check_arrays(**arguments)


def test_array_checks_of_traced_arrays():
  with pytest.raises(ValueError, match="labels must have shape"):
    jax.eval_shape(
      lambda x, y: check_arrays(logits=(x, "[b, k]"), labels=(y, "[b]")),
      *(np.zeros((2, 3)), np.zeros(3)),
    )


def test_a_weight_of_0_leaves_out_infinite_values():
  values, zeros = np.float32([np.inf, -np.inf, 2, np.nan]), np.zeros(4, np.float32)
  value, slopes = jax.jit(jax.vmap(jax.value_and_grad(weighted, (0, 1))))(zeros, values)
  np.testing.assert_array_equal(value, [0, 0, 0, np.nan])
  np.testing.assert_array_equal(slopes[0], [0, 0, 2, np.nan])
  np.testing.assert_array_equal(slopes[1], zeros)
  np.testing.assert_array_equal(jax.jit(weighted)(-3.0, values), -3 * values)


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 2.0, 1.0], [0.0, np.nan]])
def test_lists_that_do_not_increase_are_refused(values):
  with pytest.raises(ValueError, match=rf"^borders must .* got {values[-1]} after {values[-2]}"):
    check_increasing("borders", values)
  check_increasing("borders", jnp.array(values))
  check_increasing("borders", [0, 1, 2])


def test_check_broadcast_names_the_arrays_and_their_shapes():
  check_broadcast(rewards=np.zeros((4, 3)), reference=np.zeros((4, 1)), weights=1.0)
  with pytest.raises(ValueError, match=r"rewards and cost must .* got \[4, 3\] and \[4\]\."):
    check_broadcast(rewards=np.zeros((4, 3)), cost=np.zeros(4))


def test_check_filled_names_the_array_and_its_shape():
  check_filled(logits=np.zeros((1, 3)), scale=1.0)
  with pytest.raises(ValueError, match=r"scores must not be empty, got shape \[0, 3\]"):
    check_filled(logits=np.zeros(3), scores=np.zeros((0, 3)))


def test_values_reach_a_threshold_or_are_unknown():
  values = np.float32([0.2, 0.5, 0.9, np.inf, np.nan, 0.9])
  thresholds = np.float32([0.5, 0.5, 0.5, 0.5, 0.5, np.nan])
  for function in (reaches, jax.jit(reaches)):
    np.testing.assert_array_equal(function(values, thresholds), [0, 1, 1, 1, np.nan, np.nan])
  slope = jax.jit(jax.vmap(jax.grad(reaches)))(values[:3], thresholds[:3])
  np.testing.assert_array_equal(slope, 0)
