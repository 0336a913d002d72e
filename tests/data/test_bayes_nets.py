import itertools

import jax
import numpy as np
import pytest

from jaxlab import data

KEY = jax.random.key(0)
NETS = [
  data.random_bayes_net(jax.random.key(seed), num_variables=6, num_edges=7, max_parents=3)
  for seed in range(4)
]
# 0 -> 1 <- 2, 1 -> 3.
COLLIDER = np.array([[-1, -1], [0, 2], [-1, -1], [-1, 1]], np.int32)
CPT = np.random.default_rng(0).uniform(0.1, 0.9, (4, 4)).astype(np.float32)
STATES = np.array([*itertools.product((0, 1), repeat=6)], np.int32)
log_prob = jax.jit(data.joint_log_prob)


def slow_probability(parents, cpt, state):
  total = 1.0
  for i, row in enumerate(parents):
    entry = sum(state[p] * 2**j for j, p in enumerate(row) if p >= 0)
    total *= cpt[i, entry] if state[i] else 1 - cpt[i, entry]
  return total


def table(net):
  """Probabilities of all states, by a loop."""
  cpt = np.float64(net.cpt)
  return np.array([slow_probability(net.parents, cpt, state) for state in STATES])


@pytest.mark.parametrize("net", NETS)
def test_random_nets(net):
  assert net.parents.shape == (6, 3) and net.cpt.shape == (6, 8)
  assert (net.parents >= 0).sum() == 7 and (net.cpt >= 0).all() and (net.cpt <= 1).all()
  edges = {frozenset((i, int(p))) for i, row in enumerate(net.parents) for p in row if p >= 0}
  assert len(edges) == 7 and all(len(edge) == 2 for edge in edges)
  log_probs = np.asarray(log_prob(net.parents, net.cpt, STATES))
  np.testing.assert_allclose(np.exp(log_probs), table(net), atol=1e-6)
  np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("enumerated", [16, 0])
def test_exact_probabilities(net, enumerated, monkeypatch):
  monkeypatch.setattr("jaxlab.data.bayes_nets._ENUMERATED", enumerated)
  probs = table(net)
  np.testing.assert_allclose(
    data.marginal_probabilities(net.parents, net.cpt), probs @ STATES, atol=1e-6
  )
  information = data.pairwise_mutual_information(net.parents, net.cpt)
  np.testing.assert_array_equal(information, information.T)
  assert (np.diag(information) == 0).all()
  for i, j in itertools.permutations(range(6), 2):
    joint = np.zeros((2, 2))
    np.add.at(joint, (STATES[:, i], STATES[:, j]), probs)
    for value in (0, 1):
      ours = data.conditional_probability(net.parents, net.cpt, i, j, value)
      total = joint[:, value].sum()
      np.testing.assert_allclose(ours, joint[1, value] / total if total else np.nan, atol=1e-6)
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    terms = np.where(joint > 0, joint * np.log(np.where(joint > 0, joint / product, 1)), 0)
    np.testing.assert_allclose(information[i, j], terms.sum(), atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_joint_distributions_have_an_axis_for_each_variable(net):
  for variables in [(4,), (5, 0, 2), (1, 3, 0, 2, 5, 4)]:
    expected = np.zeros((2,) * len(variables))
    np.add.at(expected, tuple(STATES[:, variables].T), table(net))
    found = data.joint_distribution(*net, variables)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_large_nets_are_as_exact():
  net = data.random_bayes_net(KEY, num_variables=40, num_edges=40)
  information = data.pairwise_mutual_information(net.parents, net.cpt)
  i, j = np.unravel_index(np.argmax(information), information.shape)
  states = np.asarray(data.sample_bayes_net(KEY, net.parents, net.cpt, num_samples=20000))
  known = states[:, j] == 1
  expected = data.conditional_probability(net.parents, net.cpt, i, j, 1)
  error = np.sqrt(max(expected * (1 - expected), 1e-4) / known.sum())
  assert abs(states[known, i].mean() - expected) < 5 * error
  marginals = data.marginal_probabilities(net.parents, net.cpt)
  np.testing.assert_allclose(states.mean(0), marginals, atol=0.02)


def test_samples_follow_the_joint_distribution():
  sample = jax.jit(data.sample_bayes_net, static_argnames="num_samples")
  for draw in (sample, data.sample_bayes_net):  # Traced parents, and known ones.
    states = np.asarray(draw(KEY, COLLIDER, CPT, num_samples=20000))
    assert states.dtype == np.int32
    counts = np.bincount(states @ [8, 4, 2, 1], minlength=16) / 20000
    every = itertools.product((0, 1), repeat=4)
    expected = np.array([slow_probability(COLLIDER, CPT, state) for state in every])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected / 20000)).all()


def test_impossible_evidence_gives_nan():
  cpt = CPT.copy()
  cpt[0, 0] = 0.0
  assert np.isnan(data.conditional_probability(COLLIDER, cpt, 1, 0, 1))
  assert 0 < data.conditional_probability(COLLIDER, cpt, 1, 0, 0) < 1
  assert log_prob(COLLIDER, cpt, np.array([[1, 0, 0, 0]]))[0] == -np.inf


def test_errors():
  cyclic = np.array([[-1, 2], [0, -1], [1, -1], [-1, 1]], np.int32)
  for call in (
    lambda: data.marginal_probabilities(cyclic, CPT),
    lambda: data.sample_bayes_net(KEY, cyclic, CPT, num_samples=1),
    lambda: data.graph_distances(cyclic),
  ):
    with pytest.raises(ValueError, match="parents must have no cycle, got 0 -> 1 -> 2 -> 0"):
      call()
  for parents, message in (
    (np.where(COLLIDER == 2, 4, COLLIDER), r"parents must lie in \[-1, 4\)"),
    (np.where(COLLIDER == 2, 0, COLLIDER), r"parents of variable 1 must be distinct, got \[0 0\]"),
  ):
    with pytest.raises(ValueError, match=message):
      data.marginal_probabilities(parents, CPT)
  with pytest.raises(ValueError, match=r"cpt must have shape \[4, 4\]"):
    data.marginal_probabilities(COLLIDER, CPT[:, :2])
  with pytest.raises(ValueError, match="condition must differ from target, got 1 for both"):
    data.conditional_probability(COLLIDER, CPT, 1, 1, 0)
  with pytest.raises(ValueError, match=r"target must lie in \[0, 4\), got 4"):
    data.conditional_probability(COLLIDER, CPT, 4, 1, 0)
  with pytest.raises(ValueError, match=r"variables\[1\] must differ from variables\[0\], got 2"):
    data.joint_distribution(COLLIDER, CPT, (2, 2))
  with pytest.raises(ValueError, match="condition_value must be one of 0, 1, got 2"):
    data.conditional_probability(COLLIDER, CPT, 0, 1, 2)
  with pytest.raises(ValueError, match=r"num_edges must lie in \[0, 3\], got 4"):
    data.random_bayes_net(KEY, num_variables=3, num_edges=4)
  with pytest.raises(ValueError, match="num_edges must be at most 4 with max_parents=1"):
    data.random_bayes_net(KEY, num_variables=5, num_edges=10, max_parents=1)
