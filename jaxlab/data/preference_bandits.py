"""A contextual bandit whose comparisons cover a part of the responses alone."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least, check_range

_HIDDEN = 64
_COVERED_SHARE = 0.95


class PreferenceBandit(NamedTuple):
  """Prompts, all responses to each, and comparisons of some of them.

  Attributes:
    features: of the responses, `[X, Y, d]`.
    rewards: true rewards, of mean 0 and variance 1, `[X, Y]`.
    reference_log_probs: log-probabilities under the reference in nats, `[X, Y]`.
    baseline_probs: probabilities under the baseline, from which compared responses come, `[X, Y]`.
    supported: which responses the comparisons cover, bool `[X, Y]`.
    comparisons: prompt, chosen and rejected response, int32 `[n, 3]`.
  """

  features: chex.Array
  rewards: chex.Array
  reference_log_probs: chex.Array
  baseline_probs: chex.Array
  supported: chex.Array
  comparisons: chex.Array


def preference_bandit(
  key: chex.PRNGKey,
  *,
  num_prompts: int = 256,
  num_responses: int = 24,
  num_features: int = 24,
  num_covered: int = 6,
  num_comparisons: int = 4000,
  temperature: chex.Numeric = 1.0,
) -> PreferenceBandit:
  """Draws a bandit in which a policy can leave what the comparisons cover.

  Rewards are a random network of the features: 64 hidden units with tanh. The reference prefers
  responses along one random direction of the features, and the covered ones are those farthest
  along it. The baseline has a mass of .95 on them (1 if they are all) and the rest on the others,
  both in proportion to the reference. A comparison has a uniform prompt and two different covered
  responses drawn from the baseline.

  Args:
    key: random key.
    num_prompts: number X of prompts.
    num_responses: number Y of responses to each.
    num_features: number d of features.
    num_covered: responses to each prompt that comparisons cover, 2 to Y.
    num_comparisons: number n of comparisons.
    temperature: of the preferences, > 0: the response of reward a is chosen over that of reward b
      with probability sigmoid((a - b) / temperature).

  Returns:
    A `PreferenceBandit`, in float32.

  Raises:
    ValueError: if a count is less than 1, `num_covered` lies outside [2, num_responses], or
      `temperature` <= 0.

  Reference: a setting for Liu et al., Provably Mitigating Overoptimization in RLHF, NeurIPS 2024,
  https://arxiv.org/abs/2405.16436.
  """
  check_at_least(1, num_prompts=num_prompts, num_features=num_features)
  check_at_least(1, num_comparisons=num_comparisons)
  if not 2 <= num_covered <= num_responses:
    raise ValueError(f"num_covered must lie in [2, {num_responses}], got {num_covered}.")
  check_range("temperature", temperature, "(0, inf)")
  keys = jax.random.split(key, 7)
  size = num_prompts, num_responses
  features = jax.random.normal(keys[0], (*size, num_features))
  scale = num_features**-0.5
  hidden = jnp.tanh(features @ (scale * jax.random.normal(keys[1], (num_features, _HIDDEN))))
  rewards = hidden @ jax.random.normal(keys[2], (_HIDDEN,))
  rewards = (rewards - rewards.mean()) / rewards.std()

  along = features @ jax.random.normal(keys[3], (num_features,))
  reference = jax.nn.log_softmax(0.5 * scale * along)
  ranks = jnp.argsort(jnp.argsort(along, descending=True), axis=-1)
  supported = ranks < num_covered
  covered = jnp.where(supported, reference, -jnp.inf)
  baseline = jax.nn.softmax(covered)
  if num_covered < num_responses:
    others = jax.nn.softmax(jnp.where(supported, -jnp.inf, reference))
    baseline = _COVERED_SHARE * baseline + (1 - _COVERED_SHARE) * others

  prompts = jax.random.randint(keys[4], (num_comparisons,), 0, num_prompts)
  # The two largest of scores with Gumbel noise are two draws without replacement.
  noise = jax.random.gumbel(keys[5], (num_comparisons, num_responses))
  _, pairs = jax.lax.top_k(covered[prompts] + noise, 2)
  first, second = pairs.astype(jnp.int32).T
  gap = (rewards[prompts, first] - rewards[prompts, second]) / temperature
  is_first = jax.random.bernoulli(keys[6], jax.nn.sigmoid(gap))
  chosen, rejected = jnp.where(is_first, first, second), jnp.where(is_first, second, first)
  comparisons = jnp.stack([prompts, chosen, rejected], axis=1)
  return PreferenceBandit(features, rewards, reference, baseline, supported, comparisons)
