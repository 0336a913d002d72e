"""Problems without a network: fixed embeddings of responses, of which a vector gives the logits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import metrics

BOTH_REFUSE = "both refuse"
BEFORE, AFTER = "refusals before (%)", "refusals after (%)"
_CLASSES = 2  # Class 0 refuses.
_SPREAD, _NORMS, _DIVISOR = 0.5, (0.5, 1.5), 4.0  # Of embeddings around the center of their class.


def draw_problem(config, key):
  """Embeddings `[m, d]` of responses, their classes `[m]`, and their logits before training."""
  num = config.responses
  keys = jax.random.split(key, 3)
  classes = jnp.arange(num) % _CLASSES
  centers = jax.random.normal(keys[0], (_CLASSES, config.response_dim))
  noise = _SPREAD * jax.random.normal(keys[1], (num, config.response_dim))
  norms = jax.random.uniform(keys[2], (num, 1), minval=_NORMS[0], maxval=_NORMS[1])
  logits = jnp.where(classes == 0, config.refusal_bias, 0.0)
  return norms * (centers[classes] + noise) / _DIVISOR, classes, logits


def pair_scores(embeddings):
  """Displacement score of every ordered pair, `[m, m]`, whose embedding is its one state."""
  num = len(embeddings)
  states = jnp.stack([embeddings, jnp.zeros_like(embeddings)], axis=1)
  chosen = jnp.broadcast_to(states[:, None], (num, *states.shape))
  mask = jnp.broadcast_to(jnp.array([False, True]), (num, num, 2))
  return metrics.centered_hidden_similarity(chosen, jnp.swapaxes(chosen, 0, 1), mask, mask)


def train_on_each_pair(config, embeddings, logits):
  """Log-probabilities `[m, m, m]` of all responses after training on each ordered pair alone.

  The gradient of any loss of the margin is along the difference of the two embeddings. Where
  gradient descent stops at a given margin is therefore known.
  """
  difference = embeddings[:, None] - embeddings[None]
  square = jnp.sum(jnp.square(difference), axis=-1, keepdims=True)
  step = config.margin / config.beta / jnp.where(square > 0, square, jnp.inf)
  moved = jnp.einsum("ijd,kd->ijk", step * difference, embeddings, precision="highest")
  return jax.nn.log_softmax(logits + moved)


def measure(config, key):
  """Means over problems: rank correlations and changes, of pairs within and across classes."""

  def of_problem(key):
    embeddings, classes, logits = draw_problem(config, key)
    after = train_on_each_pair(config, embeddings, logits)
    before = jax.nn.log_softmax(logits)
    change = jnp.diagonal(after, axis1=0, axis2=2).T - before[:, None]
    mass = jnp.sum(jnp.where(classes == 0, jnp.exp(after), 0.0), axis=-1)
    start = jnp.sum(jnp.where(classes == 0, jnp.exp(before), 0.0))
    return {"score": pair_scores(embeddings), "change": change, "mass": mass, "start": start}

  problems = jax.vmap(of_problem)(jax.random.split(key, config.problems))
  return problems | {"classes": jnp.arange(config.responses) % _CLASSES}


def summarize(config, measured: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """What `measure` gave of all seeds as quantities of kinds of pairs, one number a seed."""
  from scipy import stats

  classes = measured["classes"][0]
  within = classes[:, None] == classes[None]
  different = ~np.eye(len(classes), dtype=bool)
  kinds = {
    "pairs within a class": within & different,
    "pairs across classes": ~within,
    BOTH_REFUSE: within & different & (classes[:, None] == 0),
    "a refusal over another answer": ~within & (classes[:, None] == 0),
  }
  quantities = {}
  for name, chosen in kinds.items():
    score, change, mass = (measured[q][..., chosen] for q in ("score", "change", "mass"))
    correlation = [
      np.mean([stats.spearmanr(a, b).statistic for a, b in zip(*of_seed)])
      for of_seed in zip(score, change)
    ]
    quantities[name] = {
      "rank correlation": np.array(correlation),
      "change of the log-probability": change.mean((1, 2)),
      BEFORE: 100 * measured["start"].mean(1),
      AFTER: 100 * mass.mean((1, 2)),
    }
  return quantities
