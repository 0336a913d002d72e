import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers

V, WIDTH, EOS, COMMA = 7, 6, 0, 5
RNG = np.random.default_rng(1)
TABLE = (1.5 * RNG.normal(size=(V, V))).astype(np.float32)
# A text has one of 97 numbers, and each number a verdict.
MIXED = RNG.choice([-1.0, -1.0, 0.0, 1.0], 97).astype(np.float32)
BAD = RNG.choice([-1.0, -1.0, -1.0, 0.0], 97).astype(np.float32)
GOOD = np.ones(97, np.float32)
PROMPT = np.array([1, 2], np.int32)


def summing_decode_fns(table):
  """A model whose next token depends on the sum of all tokens so far, which its cache holds."""

  def apply(tokens, cache, positions):
    rows = jnp.arange(tokens.shape[0])[:, None]
    cache = cache.at[rows, positions].set(tokens, mode="drop")
    seen = jnp.arange(cache.shape[1])[None, None] <= positions[..., None]
    sums = jnp.sum(jnp.where(seen, cache[:, None], 0), axis=-1)
    return jnp.asarray(table)[sums % V], cache

  return samplers.DecodeFns(lambda b, t: jnp.zeros((b, t), jnp.int32), apply)


FNS = summing_decode_fns(TABLE)


def number_of(tokens, length):
  weights = np.arange(1, tokens.shape[0] + 1)
  return jnp.sum(jnp.where(weights <= length, weights * (3 * tokens + 1), 0)) % 97


def counts_of(tokens, length):
  inside = jnp.arange(tokens.shape[0]) < length
  return jnp.zeros(V).at[tokens].add(inside.astype(jnp.float32))


def alike(tokens, length):
  return jnp.ones(V) + 0.01 * counts_of(tokens, length)


@jax.jit
def search_tokens(key, verdicts, are_alike):
  """Sets of one token, which are not sampled."""
  return samplers.rewind_generate(
    key,
    FNS,
    PROMPT,
    evaluate_fn=lambda tokens, length: verdicts[number_of(tokens, length)],
    embed_fn=lambda *part: jnp.where(are_alike, alike(*part), counts_of(*part)),
    max_new_tokens=WIDTH,
    num_candidates=3,
    set_lengths=(1,),
    max_iterations=16,
    extra_iterations=5,
    min_visits=3,
    value_threshold=0.4,
    eos_token_id=EOS,
  )


class Node:
  def __init__(self, parent, token, prior):
    self.parent, self.token, self.prior = parent, token, prior
    self.children, self.visits, self.real, self.value, self.embedding = [], 0.0, 0, 0.0, None


def slow_search(verdicts, are_alike):
  """The same with objects and loops: answer, visits of each move, values, and children added."""
  candidates, iterations, extra, min_visits, threshold = 3, 16, 5, 3, 0.4
  answer, totals, values, num_added = [], [], [], 0

  def embed(tokens):
    counts = np.bincount(tokens, minlength=V)
    return 1 + 0.01 * counts if are_alike else counts.astype(float)

  def next_probs(text):
    logits = TABLE[(sum(PROMPT) + sum(text)) % V].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()

  def top(text, number):
    probs = next_probs(text)
    tokens = np.argsort(-probs, kind="stable")[:number]
    return tokens, probs[tokens] / probs[tokens].sum()

  root = Node(None, None, 1.0)
  while True:
    limit = max(iterations, root.real + extra)
    totals.append(0)
    while root.real < limit:
      totals[-1] += 1
      node, text, path = root, list(answer), [root]
      while node.children:
        spread = [child.embedding for child in node.children]
        if len(spread) < 20 and all(e is not None for e in spread):
          norm = np.linalg.norm(np.var(spread, axis=0, ddof=1))
          if norm < 0.03 and max(child.value for child in node.children) < 0:
            tokens, probs = top(text, len(spread) + 1)
            for token, prob in zip(tokens, probs):
              if token not in [child.token for child in node.children]:
                prior = 0.75 * prob + 0.25 / len(tokens) if node is root else prob
                node.children.append(Node(node, token, prior))
                num_added += 1

        def score(child, node=node):
          mean = (child.value + 1) / (2 + 1e-5) if child.visits else 0.0
          return mean + 2 * child.prior * np.sqrt(node.visits) / (1 + child.visits)

        node = max(node.children, key=score)
        text.append(node.token)
        path.append(node)
      whole = [*PROMPT, *text]
      g = verdicts[sum((i + 1) * (3 * token + 1) for i, token in enumerate(whole)) % 97]
      if not (text and text[-1] == EOS) and len(text) < WIDTH:
        tokens, probs = top(text, candidates)
        if node is root:
          probs = 0.75 * probs + 0.25 / len(probs)
        node.children = [Node(node, token, prob) for token, prob in zip(tokens, probs)]
      for depth in range(len(path) - 1, -1, -1):
        node = path[depth]
        node.visits += 1
        node.real += 1
        if depth:
          part = text[len(answer) + depth - 1 :]
          new, old = embed(part), node.embedding
          node.embedding = new if old is None else old + (new - old) / node.real
          for other in node.parent.children:
            if other is node or other.embedding is None:
              continue
            norms = np.linalg.norm(other.embedding) * np.linalg.norm(node.embedding)
            cosine = other.embedding @ node.embedding / norms
            if cosine >= 0.95:
              before, weight = other.visits, 0.2 * cosine
              other.visits += weight
              other.value = (other.value * before + weight * g) / other.visits
        node.value += (g - node.value) / node.visits
      best = max(root.children, key=lambda child: (child.visits, child.value), default=None)
      if best and best.real > min_visits and best.value > threshold:
        break
    if best is None:
      break
    answer.append(best.token)
    values.append(best.value)
    root, root.parent = best, None
    for child in root.children:
      child.prior = 0.75 * child.prior + 0.25 / len(root.children)
    if best.token == EOS or len(answer) == WIDTH:
      break
  return answer, totals, values, num_added


@pytest.mark.parametrize("are_alike", [False, True])
@pytest.mark.parametrize("verdicts", [MIXED, BAD, GOOD], ids=["mixed", "bad", "good"])
def test_search_over_tokens_matches_a_loop(verdicts, are_alike):
  """The model's cache is rewound at every visit; a slot too many would change its logits."""
  output = search_tokens(jax.random.key(0), verdicts, are_alike)
  answer, totals, values, num_added = slow_search(verdicts, are_alike)
  assert output.tokens.tolist() == answer + [0] * (WIDTH - len(answer))
  assert output.length == len(answer) and output.num_moves == len(values)
  assert output.num_iterations == sum(totals)
  np.testing.assert_allclose(output.committed_values[: len(values)], values, rtol=1e-4, atol=1e-5)
  assert (num_added > 0) == (are_alike and verdicts is not GOOD)
  if verdicts is GOOD:
    # The first visit finds the root without children.
    assert totals[0] == 1 + 4 and answer[0] == np.argmax(TABLE[PROMPT.sum() % V])


@functools.partial(jax.jit, static_argnames="width")
@functools.partial(jax.vmap, in_axes=(0, None))
def search_runs(key, wants_clause, width=WIDTH):
  """Longer sets; the judge looks for whole clauses, or for texts without the token 2."""

  def judge(tokens, length):
    last = tokens[length - 1]
    whole = (last == COMMA) | (last == EOS) | (length == 2 + width)
    clean = ~jnp.any((tokens[2:] == 2) & (jnp.arange(width) < length - 2))
    return jnp.where(jnp.where(wants_clause, whole, clean), 1.0, -1.0)

  return samplers.rewind_generate(
    key,
    FNS,
    PROMPT,
    evaluate_fn=judge,
    embed_fn=counts_of,
    max_new_tokens=width,
    num_candidates=3,
    set_lengths=(1, 2, 4),
    max_iterations=12,
    extra_iterations=5,
    min_visits=2,
    candidate_top_k=4,
    temperature=1.3,
    eos_token_id=EOS,
    clause_end_ids=COMMA,
    num_tries=4,
  )


KEYS = jax.random.split(jax.random.key(5), 40)


def test_texts_are_judged_at_the_end_of_a_clause():
  output = jax.device_get(search_runs(KEYS, True))
  for row in range(len(KEYS)):
    length, moves = output.length[row], output.num_moves[row]
    np.testing.assert_array_equal(output.committed_values[row], np.arange(3) < moves)
    answer = output.tokens[row, :length]
    assert not output.tokens[row, length:].any() and EOS not in answer[:-1]
    assert answer[-1] == EOS or length == WIDTH
    # Sets of 1, 2 and 4 tokens, the last of which the text's end makes shorter.
    assert moves == np.searchsorted([1, 3, 7], length) + 1


def test_answers_are_better_than_samples():
  output = jax.device_get(search_runs(KEYS, False))
  sampled = samplers.generate_n(
    KEYS[0], FNS, PROMPT[None], [2], num_samples=200, max_new_tokens=WIDTH, eos_token_id=EOS
  )
  clean, clean_samples = (~(x == 2).any(-1) for x in (output.tokens, np.asarray(sampled.tokens[0])))
  assert clean_samples.mean() < 0.7 and clean.mean() > 0.95
  evaluated = output.num_evaluated / output.num_iterations
  assert (evaluated > 2).all() and (evaluated <= 2 + WIDTH).all()


def test_errors():
  options = {"evaluate_fn": None, "embed_fn": None, "max_new_tokens": 3, "eos_token_id": EOS}
  search = functools.partial(samplers.rewind_generate, KEYS[0], FNS, **options)
  for name, value in (
    ("num_candidates", 0),
    ("max_iterations", 0),
    ("min_visits", -1),
    ("value_threshold", 1.5),
    ("temperature", 0.0),
    ("exploration", -1.0),
    ("uniform_weight", 2.0),
  ):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
      search(PROMPT, **{name: value})
  with pytest.raises(ValueError, match=r"set_lengths\[1\] must be at least 1, got 0"):
    search(PROMPT, set_lengths=(1, 0))
  with pytest.raises(ValueError, match="num_tries must be at least 9, got 3"):
    search(PROMPT, num_tries=3)
  with pytest.raises(ValueError, match="length of prompt_tokens must be at least 1, got 0"):
    search(PROMPT[:0])
  with pytest.raises(TypeError, match="prompt_tokens must be of type int, got float64"):
    search(PROMPT.astype(float))
