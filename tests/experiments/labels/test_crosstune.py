import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.datasets import describe
from experiments.kit.train import Trained, adamw_cosine, train
from experiments.labels.crosstune import heads, rules, tasks
from experiments.labels.crosstune.__main__ import PRESETS, Config
from jaxlab import models

CONFIG = PRESETS["smoke"]
SIZES = tasks.sizes_of_texts(CONFIG)
KEY = jax.random.key(0)
TASK, TOKENS, _ = jax.device_get(jax.jit(functools.partial(tasks.draw_texts, CONFIG))(KEY))


def test_parts_of_the_texts():
  task = TASK
  few, made, checked, tested = (tasks.part(SIZES, name) for name in tasks.PARTS)
  order = np.concatenate([few, made, checked, tested])
  np.testing.assert_array_equal(order, np.arange(len(task.labels)))
  np.testing.assert_array_equal(task.labels[few], [0, 1, 2] * max(CONFIG.shots))
  np.testing.assert_array_equal(task.labels[made], np.repeat([0, 1, 2], CONFIG.num_generated))
  others = np.r_[few, checked, tested]
  np.testing.assert_array_equal(task.labels[others], task.truth[others])
  assert len(TOKENS) == len(order) and (CONFIG.vocab_size > TOKENS).all()


def test_digits_are_described_by_images_that_are_labeled():
  config = dataclasses.replace(CONFIG, num_described=2)
  task, sizes = tasks.draw_digits(config, seed=3), tasks.sizes_of_digits(config)
  (pool,) = describe("digits").splits(1797, seed=3)
  projection = np.random.default_rng([3, 1]).normal(size=(8, config.dim)) / math.sqrt(8)
  for digit in range(10):
    images = pool.inputs[pool.labels == digit][: 2 + config.headline_shots]
    states = [row @ projection for image in images for row in image[..., 0]]
    mean = np.mean(states[: 2 * 8], axis=0)
    np.testing.assert_allclose(task.descriptions[digit], mean, rtol=1e-4, atol=1e-5)
    few = task.states[: sizes["few"]][task.labels[: sizes["few"]] == digit]
    np.testing.assert_allclose(few.reshape(-1, config.dim), states, rtol=1e-4, atol=1e-5)
  assert len({row.tobytes() for row in task.states}) == sum(sizes.values())


def test_rules_match_a_loop():
  task = TASK
  found = jax.device_get(jax.jit(functools.partial(rules.read_texts, CONFIG))(KEY))
  rows = tasks.part(SIZES, "few", "validation", "test")
  states, words = task.states, task.descriptions
  words = words / np.linalg.norm(words, axis=1, keepdims=True)
  for place, row in enumerate(rows):
    mean = states[row].mean(0)
    best = [max(token @ word / np.linalg.norm(token) for token in states[row]) for word in words]
    for rule, scores in enumerate((words @ mean, best)):
      assert found["right"][0, rule, place] == (np.argmax(scores) == task.truth[row])
    np.testing.assert_allclose(found["features"][row], [*mean, *best], rtol=1e-4, atol=1e-5)
  test, counts = tasks.part(SIZES, "test"), np.zeros((CONFIG.num_test, 3))
  for i, row in enumerate(test):
    for token in TOKENS[row]:
      if token < 30:
        counts[i, token // 10] += 1
  np.testing.assert_allclose(found["oracle"], np.mean(counts.argmax(1) == task.truth[test]))


def test_search_uses_all_labeled_rows():
  right = np.zeros((3, 2, SIZES["few"] + CONFIG.num_validation + CONFIG.num_test), bool)
  num = SIZES["few"]
  right[1, 1, :6] = right[1, 1, -5:] = True  # Of two shots, all are right.
  right[2, 0, num : num + 7] = right[2, 0, -8:] = True
  assert rules.search(CONFIG, 2, right) == 8 / CONFIG.num_test
  right[1, 1, num : num + 2] = True
  assert rules.search(CONFIG, 2, right) == 5 / CONFIG.num_test


def test_arms_learn_from_their_rows_and_vectors_alone():
  task = TASK
  run = jax.jit(functools.partial(heads.learn, CONFIG, heads.make_head(CONFIG, 3), SIZES, KEY))
  few = np.arange(SIZES["few"] + SIZES["generated"]) < SIZES["few"]
  rows = np.stack([few, few, few, ~few])
  free, shuffled, described = range(3)
  vectors = np.array([free, shuffled, described, described])
  probs = np.asarray(run(task, rows, vectors)["probs"])[:, 0]
  labels = np.where(np.arange(len(task.labels)) < SIZES["few"], task.labels, 0)
  other = task._replace(labels=labels, descriptions=np.roll(task.descriptions, 1, axis=0))
  changed = np.asarray(run(other, rows, vectors)["probs"])[:, 0]
  np.testing.assert_array_equal(changed[0], probs[0])
  np.testing.assert_array_equal(changed[2], probs[1])
  for before, after in ((probs[1], probs[2]), (probs[3], changed[3]), (probs[0], probs[2])):
    assert np.abs(before - after).max() > 1e-6


def test_regression_learns_from_its_rows_alone():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 90)
  features = 4 * np.eye(3)[labels] + rng.normal(size=(90, 3))
  rows, splits = np.arange(90) < 40, (np.arange(40, 60), np.arange(60, 90))
  found = rules.regress((1.0, 1e6), splits, features, labels, labels, rows)
  assert found["validation"].shape == found["test"].shape == (2,)
  assert found["test"][0] > 0.9
  noise = np.where(rows, rng.integers(0, 3, 90), labels)
  assert rules.regress((1.0,), splits, features, noise, labels, rows)["test"][0] < 0.8


def test_the_mlp_has_as_many_parameters_as_the_attention():
  config, states = Config(), np.zeros((1, 2, Config.dim), np.float32)
  num = []
  for is_mlp in (False, True):
    module = heads.make_head(config, config.num_classes, is_mlp)
    params = dict(jax.eval_shape(module.init, KEY, states)["params"])
    params.pop("free", None)
    num.append(sum(math.prod(x.shape) for x in jax.tree.leaves(params)))
  attention, mlp = num
  assert abs(mlp / attention - 1) < 0.02


def test_tied_attention_finds_the_words_of_a_topic():
  sizes = {"class_overlap": 0.0, "distractor_rate": 0.5, "length": 12, "num_generated": 1}
  sizes |= {"shots": (16,), "num_steps": 200, "batch_size": 16, "num_test": 100}
  config = dataclasses.replace(Config(), **sizes, num_validation=10)
  module, of_config = heads.make_head(config, 8), tasks.sizes_of_texts(config)
  few, test = (tasks.part(of_config, name) for name in ("few", "test"))

  @jax.jit
  def run(key):
    task, tokens, _ = tasks.draw_texts(config, key)
    params = module.init(key, task.states[:1])["params"]
    tied, none = jnp.eye(config.dim), jnp.zeros(config.dim)
    kernels = {"query": 16 * tied, "key": 16 * tied, "value": tied}
    attention = params["LabelCrossAttention_0"]
    attention |= {name: {"kernel": x, "bias": none} for name, x in kernels.items()}
    given = {"descriptions": task.descriptions, "is_free": False}
    loss, optimizer = heads.head_loss(module, **given), adamw_cosine(1e-3, config.num_steps)
    batch = task.states[few], task.labels[few]
    start = Trained(params | {"LabelCrossAttention_0": attention}, {})
    num = {"num_steps": config.num_steps, "batch_size": config.batch_size}
    params = train(key, module, loss, optimizer, batch, start=start, **num).params
    states, labels = task.states[test], task.truth[test]
    right = jnp.argmax(module.apply({"params": params}, states, **given), -1) == labels
    made = params["LabelCrossAttention_0"]
    project = lambda name, x: x @ made[name]["kernel"] + made[name]["bias"]  # noqa: E731
    queries = jnp.broadcast_to(project("query", task.descriptions), (len(test), 8, config.dim))
    own = tokens[test] // config.topic_words == labels[:, None]
    values = jnp.broadcast_to(own[..., None], states.shape).astype(states.dtype)
    mask, keys = jnp.ones(own.shape, jnp.int32), project("key", states)
    mass = models.masked_attention(queries, keys, values, mask, num_heads=config.num_heads)
    return jnp.mean(right), jnp.mean(mass[jnp.arange(len(test)), labels])

  accuracy, mass = run(KEY)
  assert accuracy >= 0.95
  assert mass >= 0.7
