import functools

import jax
import numpy as np
import pytest

from jaxlab import samplers

K, D, N = 5, 3, 16
RNG = np.random.default_rng(0)
backup = jax.jit(samplers.backup_level)
widen = jax.jit(samplers.should_widen)
select = jax.jit(functools.partial(samplers.select_leaf, max_depth=4))
expand = jax.jit(samplers.expand_leaf)
enter = jax.jit(samplers.backup_path)
commit = jax.jit(samplers.commit_move)


def slow_backup(values, visits, real, embeddings, known, child, path, score, threshold, weight):
  """The arithmetic of one level, sibling by sibling."""
  values, visits, real, embeddings = (
    np.array(x, float) for x in (values, visits, real, embeddings)
  )
  visits[child] += 1
  real[child] += 1
  if known[child]:
    embeddings[child] += (path - embeddings[child]) / real[child]
  else:
    embeddings[child] = path
  for i in range(len(values)):
    if i == child or not known[i]:
      continue
    norms = np.linalg.norm(embeddings[i]) * np.linalg.norm(embeddings[child])
    cosine = embeddings[i] @ embeddings[child] / norms
    if cosine >= threshold:
      before, part = visits[i], weight * cosine
      visits[i] += part
      values[i] = (values[i] * before + part * score) / visits[i]
  values[child] += (score - values[child]) / visits[child]
  return values, visits, real, embeddings, known | (np.arange(len(values)) == child)


@pytest.mark.parametrize("child", [0, 3])
@pytest.mark.parametrize(
  ("threshold", "weight"), [(0.95, 0.2), (0.2, 0.2), (0.2, 0.0), (-1.0, 1.0)]
)
def test_backup_of_a_level_matches_a_loop(child, threshold, weight):
  known = np.array([True, True, False, False, True])
  real = RNG.integers(1, 5, K) * known
  level = (
    RNG.uniform(-1, 1, K).astype(np.float32),
    (real + 0.3 * known).astype(np.float32),
    real.astype(np.int32),
    RNG.normal(size=(K, D)).astype(np.float32),
    known,
  )
  level[3][4] = 1.1 * level[3][1]
  path = RNG.normal(size=D).astype(np.float32) + level[3][1]
  options = {"similarity_threshold": threshold, "similarity_weight": weight}
  result = backup(*level, child_index=child, path_embedding=path, value=0.5, **options)
  expected = slow_backup(*level, child, path, 0.5, threshold, weight)
  for ours, theirs in zip(result, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_selection_matches_its_formula():
  values, priors = RNG.uniform(-1, 1, (2, K)).astype(np.float32)
  visits = np.float32([0, 1, 2.5, 0, 7])
  bounds = {"parent_visits": 9.0, "min_value": -1.5, "max_value": 0.5}
  scores = jax.jit(samplers.selection_scores)(values, visits, priors, exploration=0.7, **bounds)
  scaled = np.where(visits == 0, 0, (values + 1.5) / (2 + 1e-5))
  np.testing.assert_allclose(scores, scaled + 0.7 * priors * 3 / (1 + visits), rtol=1e-5)


def test_widening_needs_children_that_are_alike_and_bad():
  embeddings = RNG.normal(size=(K, D)).astype(np.float32)
  values = np.float32([-0.5, -0.1, -1.0, 5.0, 5.0])
  spread = np.linalg.norm(np.var(embeddings[:3], axis=0, ddof=1))
  for factor, expected in ((0.99, False), (1.01, True)):
    options = {"set_length": 4, "num_children": 3, "variance_per_token": factor * spread / 4}
    assert bool(widen(embeddings, values, **options)) == expected
  options |= {"variance_per_token": 1e6}
  assert not widen(embeddings, values, **options | {"num_children": 4})  # One is good.
  assert not widen(embeddings, values, **options | {"num_children": 1})
  assert not widen(embeddings, values, **options, max_children=3)
  assert not widen(np.where(embeddings == embeddings[1], np.nan, embeddings), values, **options)


def test_priors():
  priors = jax.jit(samplers.candidate_priors)
  for greedy, sampled in ((0.5, [0.1, 0.2]), (0.05, [0.1, 0.2]), (0.35, [0.3, 0.2])):
    weight = max(min(greedy, sum(sampled)), max(sampled) + min(sampled))
    weights = np.array([weight, *sampled])
    np.testing.assert_allclose(
      priors(greedy, np.float32(sampled)), weights / weights.sum(), rtol=1e-6
    )
  np.testing.assert_allclose(priors(0.3, np.float32([0.1, -1.0])), [2 / 3, 1 / 3, 0], rtol=1e-6)
  np.testing.assert_allclose(priors(0.3, np.float32([-1.0, -1.0])), [1, 0, 0])
  np.testing.assert_allclose(priors(0.0, np.float32([0.0, -1.0])), [0.5, 0.5, 0])
  mixed = jax.jit(samplers.mix_prior)(np.float32([0.5, 0.5, 0, 0]), uniform_weight=0.2)
  np.testing.assert_allclose(mixed, [0.45, 0.45, 0.05, 0.05], rtol=1e-6)


def test_self_evaluation_needs_both_orders():
  yes, no = [1.0, -1.0], [-1.0, 1.0]
  first, second = np.float32([yes, yes, no, no, [1, 1]]), np.float32([no, yes, no, yes, no])
  score = jax.jit(samplers.self_evaluation_score)
  np.testing.assert_array_equal(score(first, second), [1, 0, 0, -1, 0])
  second[1, 0] = np.nan
  np.testing.assert_array_equal(score(1e4 * first, second), [1, np.nan, 0, -1, 0])


def grown(num_visits, weight=0.0, uniform=True):
  """A tree after visits that score at random and give each leaf three children."""
  tree, scores = samplers.init_rewind_tree(capacity=64, embedding_dim=D, set_width=2), []
  tokens = np.array([[1, 2], [3, 9], [4, 9]], np.int32)
  lengths, priors = np.array([2, 1, 0], np.int32), np.float32([0.6, 0.4, 9.0])
  if uniform:
    priors = np.float32([0.5, 0.5, 0.0])
  for _ in range(num_visits):
    path = np.asarray(select(tree))
    leaf = path[path >= 0][-1]
    if len(path[path >= 0]) < 4:
      tree = expand(tree, leaf, tokens, lengths, priors)
    scores.append((path, np.float32(RNG.choice([-1, 0, 1]))))
    embeddings = RNG.normal(size=(4, D)).astype(np.float32)
    tree = enter(tree, path, embeddings, scores[-1][1], similarity_weight=weight)
  return jax.device_get(tree), scores


def test_without_similarity_values_are_mean_scores():
  tree, scores = grown(12)
  for node in range(int(tree.num_nodes)):
    through = [score for path, score in scores if node in path]
    assert tree.visits[node] == tree.real_visits[node] == len(through)
    if through:
      np.testing.assert_allclose(tree.value[node], np.mean(through), atol=1e-6)
    children = np.flatnonzero(tree.parent == node)
    if len(children) and tree.depth[node] < 3:
      assert tree.real_visits[children].sum() == len(through) - 1
  assert not tree.has_embedding[0] and tree.has_embedding[1:][tree.real_visits[1:] > 0].all()
  short = tree.token_length == 1
  assert short.any() and not tree.tokens[short, 1].any()


def test_the_path_follows_the_best_scores():
  tree, _ = grown(9)
  path, node, expected = select(tree), 0, [0]
  while (children := np.flatnonzero(tree.parent == node)).size and len(expected) < 4:
    scaled = np.where(tree.visits[children] == 0, 0, (tree.value[children] + 1) / (2 + 1e-5))
    bonus = 2 * tree.prior[children] * np.sqrt(tree.visits[node]) / (1 + tree.visits[children])
    node = children[np.argmax(scaled + bonus)]
    expected.append(node)
  np.testing.assert_array_equal(path, expected + [-1] * (4 - len(expected)))


def test_similar_siblings_share_a_score():
  tree = samplers.init_rewind_tree(capacity=64, embedding_dim=D, set_width=2)
  tree = expand(
    tree, 0, np.ones((3, 2), np.int32), np.ones(3, np.int32), np.float32([0.6, 0.3, 0.1])
  )
  path = np.array([0, 1, -1, -1], np.int32)
  same = np.ones((4, D), np.float32)
  for node, score in ((1, 1.0), (2, -1.0)):
    tree = enter(
      tree, np.where(path == 1, node, path), same, np.float32(score), similarity_weight=0.2
    )
  np.testing.assert_allclose(tree.visits[:4], [2, 1.2, 1, 0], rtol=1e-6)
  np.testing.assert_allclose(tree.value[:4], [0, 0.8 / 1.2, -1, 0], rtol=1e-6, atol=1e-7)
  np.testing.assert_array_equal(tree.real_visits[:4], [2, 1, 1, 0])
  assert tree.min_value == -1 and tree.max_value == 1


def test_a_move_keeps_what_is_below_it():
  tree, _ = grown(20, weight=0.2, uniform=False)
  children = np.flatnonzero(tree.parent == 0)
  best = max(children, key=lambda i: (tree.visits[i], tree.value[i]))
  move, tokens = jax.device_get(commit(tree, uniform_weight=0.5))
  np.testing.assert_array_equal(tokens, tree.tokens[best])
  below = [best]
  for node in range(int(tree.num_nodes)):
    if tree.parent[node] in below:
      below.append(node)
  assert move.num_nodes == len(below) > 3 and move.root == 0
  for name in ("depth", "tokens", "token_length", "visits", "real_visits", "value", "embedding"):
    np.testing.assert_array_equal(getattr(move, name)[: len(below)], getattr(tree, name)[below])
  assert move.parent[0] == -1 and (move.parent[len(below) :] == -1).all()
  np.testing.assert_array_equal(np.take(below, move.parent[1 : len(below)]), tree.parent[below[1:]])
  own = np.flatnonzero(move.parent == 0)
  np.testing.assert_allclose(
    move.prior[own], 0.5 * tree.prior[np.take(below, own)] + 0.25, rtol=1e-6
  )
  # The search goes on from there.
  assert np.asarray(select(move))[0] == 0 and np.asarray(select(move))[1] in own


def test_a_root_without_children_stays():
  tree = samplers.init_rewind_tree(capacity=64, embedding_dim=D, set_width=2)
  move, tokens = commit(tree, uniform_weight=0.5)
  assert move.num_nodes == 1 and not np.any(tokens)
  np.testing.assert_array_equal(select(move), [0, -1, -1, -1])


def test_a_full_tree_takes_no_more():
  tree = samplers.init_rewind_tree(capacity=4, embedding_dim=D, set_width=2)
  given = np.ones((2, 2), np.int32), np.ones(2, np.int32), np.ones(2, np.float32)
  tree = samplers.expand_leaf(samplers.expand_leaf(tree, 0, *given), 1, *given)
  np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 1])
  assert tree.num_nodes == 4


def test_errors():
  level = np.ones(K), np.ones(K), np.ones(K, int), np.ones((K, D)), np.ones(K, bool)
  with pytest.raises(ValueError, match=r"similarity_threshold must lie in \[-1, 1\], got 1.5"):
    samplers.backup_level(
      *level, child_index=0, path_embedding=np.ones(D), value=1.0, similarity_threshold=1.5
    )
  with pytest.raises(ValueError, match="path_embedding must have shape"):
    samplers.backup_level(*level, child_index=0, path_embedding=np.ones(D + 1), value=1.0)
  bounds = {"parent_visits": 1.0, "min_value": -1.0, "max_value": 1.0}
  with pytest.raises(ValueError, match=r"exploration must lie in \[0, inf\), got -1"):
    samplers.selection_scores(*level[:2], np.ones(K), exploration=-1.0, **bounds)
  with pytest.raises(ValueError, match=r"uniform_weight must lie in \[0, 1\], got 2"):
    samplers.mix_prior(np.ones(K), uniform_weight=2)
  with pytest.raises(ValueError, match="capacity must be at least 2, got 1"):
    samplers.init_rewind_tree(capacity=1, embedding_dim=D)
  tree = samplers.init_rewind_tree(capacity=3, embedding_dim=D)
  with pytest.raises(ValueError, match="capacity must be at least 4 for 3 children, got 3"):
    samplers.expand_leaf(tree, 0, np.ones((3, 10), int), np.ones(3, int), np.ones(3))
