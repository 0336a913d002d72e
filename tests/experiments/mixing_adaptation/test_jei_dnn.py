import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.kit import datasets
from experiments.mixing_adaptation.jei_dnn import evaluation, exits
from experiments.mixing_adaptation.jei_dnn.__main__ import PRESETS
from experiments.mixing_adaptation.jei_dnn.network import network
from jaxlab import metrics


@pytest.fixture(scope="module")
def probs():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(400, 4, 5)) * np.array([1.0, 2.0, 3.0, 4.0])[:, None]
  exp = np.exp(logits)
  return exp / exp.sum(-1, keepdims=True)


def leave(confidence, thresholds):
  """First exit whose confidence reaches its threshold."""
  reached = np.concatenate([confidence >= thresholds, np.ones((len(confidence), 1), bool)], axis=1)
  return reached.argmax(1)


def test_sweeps_go_from_the_first_exit_to_the_last(probs):
  confidence = probs[:, :-1].max(-1)
  for sweep in (evaluation.one_threshold, evaluation.by_share):
    levels = [leave(confidence, thresholds).mean() for thresholds in sweep(confidence, 40)]
    assert min(levels) < 0.3 and max(levels) > 2.7


def test_shares_are_met_on_the_samples_they_are_set_on(probs):
  confidence = probs[:, :-1].max(-1)
  thresholds = list(evaluation.by_share(confidence, 40))
  ratio = np.geomspace(0.05, 20.0, 40)
  for i in (5, 20, 35):
    want = ratio[i] ** np.arange(4.0)
    got = np.bincount(leave(confidence, thresholds[i]), minlength=4) / len(probs)
    np.testing.assert_allclose(got, want / want.sum(), atol=0.01)


def test_the_oracle_knows_the_labels(probs):
  labels = probs[:, 0].argmax(-1)
  levels = evaluation.oracle(probs, labels, np.array([0.1, 0.4, 0.7, 1.0]), 10.0)
  assert np.all(levels == 0)
  right = metrics.exited_values(probs.argmax(-1) == labels[:, None], levels)
  assert np.all(right)


def test_gates_let_go_of_what_no_exit_can_tell_and_hold_what_the_next_one_can():
  # Half of the rows say nothing of their label at any exit; of the others the first exit is right
  # in four cases of five, the second always. Every threshold sends the hopeless rows to the end.
  config = dataclasses.replace(
    PRESETS["smoke"],
    batch_size=100,
    warmup_steps=200,
    joint_steps=400,
    period=50,
    cost_weights=(0.3,),
  )
  net = network(config, datasets.describe("mnist1d"))
  rng = np.random.default_rng(0)
  labels, hopeless = rng.integers(0, 2, (4, 1000)), rng.random((4, 1000)) < 0.5
  sure = np.where(hopeless, 0.0, 2.0 * labels - 1)
  first = np.where(rng.random(sure.shape) < 0.8, sure, -sure)
  features = np.float32(np.stack([first, sure, sure], -1)[..., None] * np.ones(config.width))
  params = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 40, 1), np.float32))["params"]
  own = {n: p for n, p in params.items() if n.startswith(("heads", "gates"))}
  kernel, bias = np.zeros((config.width, 10), np.float32), np.full(10, -9.0, np.float32)
  kernel[:, :2], bias[:2] = [-1.0, 1.0], 0.0
  own["heads_2"] = {"kernel": kernel, "bias": bias}  # As a backbone would have trained it.
  setting = {"learning_rate": 0.1, "gate_learning_rate": 1.0}
  train = jax.jit(functools.partial(exits.train_exits, config=config, net=net))
  own = {"exits": own, "features": list(features)}
  costs = np.float32([0.3, 0.65, 1.0])
  _, joint = train(jax.random.key(1), own, list(labels), costs, setting)
  levels = np.asarray(joint[1][1])[0, 0]
  assert np.mean(levels[hopeless[3]] == 0) > 0.95
  assert np.mean(levels[~hopeless[3]] == 1) > 0.95
