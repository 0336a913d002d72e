"""Two models of which everything is known: hidden factors of a regression, and a mixture."""

import functools

import jax
import jax.numpy as jnp

from experiments.kit import heads
from jaxlab import algorithms, data, metrics

PRETRAINED, SAMPLED, WRONG, PCA, JOINED = (
  "pretrained",
  "pretrained, head on sampled factors",
  "pretrained, too many factors",
  "principal components of the unlabeled inputs",
  "two phases on all inputs",
)
OWN, RIDGE, KNOWN, ZERO = "two phases on the labeled inputs", "ridge", "known model", "zero"
represent = algorithms.responsibilities
TARGETS = LATENT, REST = "of the factors", "of the rest of the inputs"
LINEAR, COMPOSITE = "logistic regression on the inputs", "centers and table trained jointly"


def factor_map(loadings: jax.Array) -> jax.Array:
  """Posterior means of the factors as a matrix `[d, r]` that inputs are multiplied by."""
  return algorithms.factor_posterior_mean(jnp.eye(len(loadings)), loadings)


def main_axes(inputs: jax.Array, num: int) -> jax.Array:
  """Axes of the largest mean squares, `[d, num]`."""
  return jnp.linalg.eigh(inputs.T @ inputs)[1][:, -num:]


def excess_risk(weights: jax.Array, best: jax.Array, loadings: jax.Array) -> jax.Array:
  """Mean squared distance of two linear predictions from inputs of covariance B Bᵀ + I."""
  gap = weights - best
  return jnp.sum(gap**2) + jnp.sum((gap @ loadings) ** 2)


def draw_factors(config, key):
  """Draws a problem.

  Returns:
    Loadings `[d, r]`; unlabeled inputs `[m, d]`; labeled ones `[n, d]`; their targets `[2, n]`, of
    the factors and of what these leave of the inputs; and the best weights of both, `[2, d]`.
  """
  keys, dim = jax.random.split(key, 6), config.num_dims
  deviation = config.factor_strength / jnp.sqrt(dim)
  loadings = deviation * jax.random.normal(keys[0], (dim, config.num_factors))
  beta, gamma = (
    x / jnp.linalg.norm(x)
    for x in (jax.random.normal(keys[1], (config.num_factors,)), jax.random.normal(keys[2], (dim,)))
  )
  sample = functools.partial(data.sample_factor_task, noise_std=config.noise)
  pool = sample(keys[3], loadings, beta, num_samples=config.num_unlabeled[-1])
  task = sample(keys[4], loadings, beta, num_samples=config.num_labeled[-1])
  rest = (task.inputs - task.latents @ loadings.T) @ gamma
  rest += config.noise * jax.random.normal(keys[5], rest.shape)
  known = factor_map(loadings)
  best = jnp.stack([known @ beta, gamma - known @ (gamma @ loadings)])
  return loadings, pool.inputs, task.inputs, jnp.stack([task.targets, rest]), best


def measure_factors(config, key) -> dict[str, dict[str, jax.Array]]:
  """Excess risks of all rows, in closed form.

  Returns:
    row -> quantity -> `[2, n]` or `[2, n, m]`: of the two targets, each number of labeled and of
    unlabeled inputs; and slopes `[]`, of the targets of the factors.
  """
  loadings, pool, inputs, targets, best = draw_factors(config, key)
  amounts, counts = jnp.array(config.num_unlabeled), jnp.array(config.num_labeled)

  def of_pool(amount):
    rows = heads.averaged(pool, heads.first_rows(len(pool), amount))
    models = (algorithms.factor_mle(rows, rank=r) for r in (config.num_factors, config.rank))
    return *models, main_axes(rows, config.num_factors)

  fitted, wrong, axes = jax.lax.map(of_pool, amounts)

  def at(count):
    used = heads.first_rows(len(inputs), count)
    labeled, seen = heads.averaged(inputs, used), heads.averaged(targets.T, used).T

    def risks(weights):
      return jax.vmap(excess_risk, in_axes=(0, 0, None))(weights, best, loadings)

    def of_model(model, posterior_loss=False):
      fit = functools.partial(algorithms.factor_regression, posterior_loss=posterior_loss)
      head = jax.vmap(lambda targets: fit(labeled, targets, model))(seen)
      return risks(head @ factor_map(model).T)

    def joined(amount):
      both = jnp.concatenate([heads.first_rows(len(pool), amount), used])
      rows = heads.averaged(jnp.concatenate([pool, inputs]), both)
      return of_model(algorithms.factor_mle(rows, rank=config.num_factors))

    def of_axes(axes):
      return risks(seen @ jnp.linalg.pinv(labeled @ axes).T @ axes.T)

    folds = jnp.arange(len(used)) % config.num_folds
    fit = functools.partial(heads.ridge, num_folds=config.num_folds)
    weights, chosen = jax.vmap(lambda y: fit(inputs, y, used, folds, config.penalties))(targets)
    at_edge = (chosen == 0) | (chosen == len(config.penalties) - 1)
    rows = {
      PRETRAINED: jax.vmap(of_model)(fitted),
      SAMPLED: jax.vmap(functools.partial(of_model, posterior_loss=True))(fitted),
      WRONG: jax.vmap(of_model)(wrong),
      PCA: jax.vmap(of_axes)(axes),
      JOINED: jax.lax.map(joined, amounts),
      OWN: of_model(algorithms.factor_mle(labeled, rank=config.num_factors)),
      RIDGE: risks(weights),
      KNOWN: of_model(loadings),
      ZERO: risks(jnp.zeros_like(best)),
    }
    return rows, at_edge.astype(jnp.float32)

  risks, at_edge = jax.lax.map(at, counts)
  found = {row: {"excess risk": jnp.moveaxis(x, -1, 0)} for row, x in risks.items()}
  found[RIDGE]["penalty at an edge"] = at_edge.T
  ours, known = (found[row]["excess risk"][0] for row in (PRETRAINED, KNOWN))
  # What the model's estimate costs with the most unlabeled inputs is too little to be measured.
  lost = ours[-1, :-1] - known[-1]
  found[PRETRAINED]["slope over m"] = metrics.scaling_exponent(amounts[:-1], lost).slope
  for row, values in ((PRETRAINED, ours[:, -1]), (KNOWN, known)):
    found[row]["slope over n"] = metrics.scaling_exponent(counts, values).slope
  return found


def measure_mixture(config, key) -> dict[str, dict[str, jax.Array]]:
  """Excess errors of all rows.

  Returns:
    row -> quantity -> `[n]` or `[n, m]`, of each number of labeled and of unlabeled inputs; and the
    share of components that the known model finds, `[]`.
  """
  keys, num = jax.random.split(key, 6), config.num_components
  centers = jax.random.normal(keys[0], (num, config.mixture_dims))
  centers *= config.center_norm / jnp.linalg.norm(centers, axis=1, keepdims=True)
  component_labels = jnp.arange(num, dtype=jnp.int32) % 2
  sample = functools.partial(data.sample_mixture_task, label_noise=config.label_noise)
  sizes = config.mixture_unlabeled[-1], config.mixture_labeled[-1], config.mixture_test
  pool, labeled, test = (
    sample(key, centers, component_labels, num_samples=size) for key, size in zip(keys[1:], sizes)
  )
  truth, posterior = component_labels[test.components], represent(test.inputs, centers)

  def wrong(scores):
    return jnp.mean((jnp.argmax(scores, axis=-1) != truth).astype(jnp.float32))

  least = wrong(posterior @ jax.nn.one_hot(component_labels, 2))

  def excess(scores):
    # Of labels that are flipped with a known probability; which ones are, adds no noise.
    return (1 - 2 * config.label_noise) * (wrong(scores) - least)

  def mixture(key, inputs):
    settings = {"num_restarts": config.num_restarts, "num_steps": config.em_steps}
    return algorithms.fit_isotropic_mixture(key, inputs, num_components=num, **settings).centers

  pools = [pool.inputs[:m] for m in config.mixture_unlabeled]
  fitted = [mixture(keys[4], inputs) for inputs in pools]
  axes = jnp.stack([main_axes(inputs - jnp.mean(inputs, axis=0), num) for inputs in pools])

  def at(count):
    inputs, labels = labeled.inputs[:count], labeled.labels[:count]
    rows = jnp.ones(count), jnp.arange(count) % config.num_folds
    choice = {"strengths": config.strengths, "num_folds": config.num_folds}

    def of_head(features, test_features):
      settings = {"num_classes": 2, "num_steps": config.head_steps, **choice}
      return excess(heads.logistic_regression(features, labels, *rows, **settings)(test_features))

    own = mixture(keys[5], inputs)
    models = jnp.stack([*fitted, own, centers])
    features = (jax.vmap(represent, in_axes=(None, 0))(x, models) for x in (inputs, test.inputs))
    by_model = jax.vmap(of_head)(*features)
    composite = heads.penalized(
      lambda params, inputs: represent(inputs, params["centers"]) @ params["table"],
      {"centers": own, "table": jnp.zeros((num, 2))},
      lambda params: params["table"],
      *(inputs, labels, *rows),
      **choice,
      num_steps=config.composite_steps,
      rate=0.01,
    )
    return {
      PRETRAINED: by_model[:-2],
      PCA: jax.vmap(of_head)(inputs @ axes, test.inputs @ axes),
      OWN: by_model[-2],
      LINEAR: of_head(inputs, test.inputs),
      COMPOSITE: excess(composite(test.inputs)),
      KNOWN: by_model[-1],
    }

  errors = jax.tree.map(lambda *x: jnp.stack(x), *map(at, config.mixture_labeled))
  found = {row: {"excess error": x} for row, x in errors.items()}
  right = jnp.argmax(posterior, axis=1) == test.components
  found[KNOWN]["right components"] = jnp.mean(right.astype(jnp.float32))
  return found
