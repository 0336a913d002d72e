"""One table that ranks all methods of `jaxlab.uncertainty` which say how far a prediction is off.

`rank` has its columns. `measure_table` fills it on real points whose truth is known: any of the
rows nearest to a point, itself among them, may answer for it, and so the probability of an answer
is its share of these.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.neighbors import NearestNeighbors

from experiments.kit import answer_prior
from experiments.kit.datasets import Split, stack_seeds
from experiments.kit.sweep import run_seeds
from experiments.kit.train import classification_loss, drawn_from, train
from jaxlab import algorithms, data, losses, metrics, models, uncertainty
from jaxlab.experiment import Context, Results

SPEARMAN, REJECTION, FOREIGN = "Spearman with the error", "rejection ratio", "AUROC, foreign inputs"
PAIRS, ENSEMBLE, GP, DEUP, PFN = "pairs", "ensemble", "GP", "DEUP", "PFN"
_NUM_NEIGHBORS = 10  # Rows that answer for a point.
_WIDTH = 20  # Columns of a table, so that all share a program.
# Settings of a GP of errors; lengths are in units of the root of the number of inputs.
_SPACE = {"outputscales": (0.001, 0.003, 0.01, 0.03), "noises": (0.003, 0.01, 0.03)}
_LENGTHS = (0.25, 0.5, 1.0, 2.0)


def rank(scores: chex.Array, errors: chex.Array, foreign: chex.Array) -> dict[str, jax.Array]:
  """How do the scores of a method order errors, and foreign inputs above familiar ones?

  Args:
    scores: epistemic uncertainty of familiar inputs, `[n]`.
    errors: true errors there, `[n]`.
    foreign: scores of foreign inputs, `[m]`.
  """
  both = jnp.concatenate([scores, foreign])
  return {
    SPEARMAN: metrics.spearman_correlation(scores, errors),
    REJECTION: metrics.rejection_ratio(scores, errors),
    FOREIGN: metrics.auroc(both, jnp.arange(len(both)) >= len(scores)),
  }


def gp_error_model(
  features: chex.Array,
  targets: chex.Array,
  *,
  lengthscales: Sequence[float],
  outputscales: Sequence[float],
  noises: Sequence[float],
) -> Callable[[chex.Array], jax.Array]:
  """A GP around the mean target, at the settings of the highest marginal likelihood.

  Args:
    features: `[n, d + 1]`, of which the last says what was seen, and has length 1.
    targets: errors, `[n]`.
    lengthscales: of the other features, to choose from.
    outputscales: to choose from.
    noises: variances to choose from.

  Returns:
    `features [m, d + 1] -> [m]`, the expected targets.
  """
  grid = np.stack(np.meshgrid(lengthscales, outputscales, noises, indexing="ij"), axis=-1)
  grid = jnp.asarray(grid.reshape(-1, 3), jnp.float32)
  mean, num_inputs = jnp.mean(targets), features.shape[1] - 1

  def settings(row):
    lengths = jnp.append(jnp.broadcast_to(row[0], (num_inputs,)), 1.0)
    return {"lengthscale": lengths, "outputscale": row[1], "noise": row[2]}

  def evidence(row):
    return uncertainty.gp_log_marginal_likelihood(features, targets - mean, **settings(row))

  evidences = jax.lax.map(evidence, grid)
  best = grid[jnp.argmax(jnp.where(jnp.isnan(evidences), -jnp.inf, evidences))]

  def predict(queries):
    posterior = uncertainty.gp_posterior(features, targets - mean, queries, **settings(best))
    return mean + posterior.mean

  return predict


class AnsweredTable(NamedTuple):
  """Points with two answers to train on, and others whose probability of an answer 1 is known.

  Attributes:
    inputs: standardized, and padded with zeros to 20 columns, `[n, 20]`.
    answers: 0 or 1, int32 `[n, 2]`.
    queries: other points, `[m, 20]`.
    probs: probabilities of their answers 1, `[m]`.
    foreign: queries whose columns were shuffled, each by itself, `[m, 20]`.
    num_inputs: columns that are not padding, a scalar.
  """

  inputs: chex.Array
  answers: chex.Array
  queries: chex.Array
  probs: chex.Array
  foreign: chex.Array
  num_inputs: chex.Array


def draw_table(name: str, num_train: int, num_test: int, seed: int) -> AnsweredTable:
  """Draws points of a table of two classes, and the answers of two of the nearest rows of each.

  Args:
    name: a set of `data.load_source` of at most 20 features.
    num_train: training points.
    num_test: queries.
    seed: of the draw.
  """
  arrays = data.as_arrays(data.load_source(name, split="all"))
  features, labels = arrays["features"].astype(np.float64), arrays["label"].astype(np.int32)
  rng, width = np.random.default_rng(seed), features.shape[1]
  features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
  rows = rng.permutation(len(features))[: num_train + num_test]
  nearest = NearestNeighbors(n_neighbors=_NUM_NEIGHBORS).fit(features)
  given = labels[nearest.kneighbors(features[rows], return_distance=False)]
  padded = np.pad(features[rows], ((0, 0), (0, _WIDTH - width))).astype(np.float32)
  chosen = rng.integers(0, _NUM_NEIGHBORS, (num_train, 2))
  queries = padded[num_train:]
  probs = given[num_train:].mean(1).astype(np.float32)
  answers = np.take_along_axis(given[:num_train], chosen, axis=1)
  foreign = rng.permuted(queries, axis=0)
  return AnsweredTable(padded[:num_train], answers, queries, probs, foreign, np.float32(width))


def measure_table(
  key: chex.PRNGKey,
  inputs: tuple[AnsweredTable, chex.ArrayTree],
  *,
  widths: Sequence[int],
  num_steps: int,
  batch_size: int,
  num_members: int,
) -> Mapping[str, Mapping[str, jax.Array]]:
  """Ranks pairs, an ensemble, a GP, DEUP and a PFN, by the errors of their own probabilities.

  Args:
    key: random key.
    inputs: the points, and parameters of a PFN, as `answer_prior.fit` gives them.
    widths: of all networks.
    num_steps: updates of each.
    batch_size: points per update.
    num_members: of the ensemble.

  Returns:
    row -> quantity -> scalar.
  """
  table, fitted = inputs
  keys, everything = jax.random.split(key, 3), jnp.ones(len(table.inputs), bool)
  answer = jnp.mean(table.answers.astype(jnp.float32), axis=1)
  noise = jnp.mean(uncertainty.replicate_variance(table.answers)) / 2  # Of the mean answer.

  def network(key, num_outputs, loss, targets, used):
    """Scores of a network that learns from the rows that are used."""
    module = models.MLP(num_outputs, widths)
    loss_fn = lambda apply, key, batch: loss(apply(batch.inputs).logits, batch.labels)  # noqa: E731

    batch = drawn_from(Split(table.inputs, targets), used)
    sizes = {"num_steps": num_steps, "batch_size": batch_size}
    optimizer = optax.adamw(1e-3, weight_decay=0.1)
    trained = train(key, module, classification_loss(module, loss_fn), optimizer, batch, **sizes)
    return lambda x: module.apply(trained.variables, x).logits

  def plain(key, used=everything):
    loss = lambda logits, y: optax.sigmoid_binary_cross_entropy(logits[:, 0], y)  # noqa: E731
    logits = network(key, 1, loss, answer, used)
    return lambda x: jax.nn.sigmoid(logits(x)[:, 0])

  def scaled(x, seen):
    seen = jnp.broadcast_to(seen, len(x)).astype(jnp.float32)
    inputs = x / jnp.sqrt(table.num_inputs)
    return uncertainty.error_features(inputs, include=("x", "seen"), seen=seen)

  pair_loss = lambda logits, y: losses.pair_nll(logits.reshape(-1, 2, 2), *y.T)  # noqa: E731
  pair_logits = network(keys[0], 4, pair_loss, table.answers, everything)

  both = jnp.concatenate([table.queries, table.foreign])
  joint = losses.pair_log_probs(pair_logits(both).reshape(-1, 2, 2))
  variance = uncertainty.epistemic_variance(joint)
  pairs = uncertainty.class_error_estimate(uncertainty.pair_marginal(joint), variance)

  members = jax.lax.map(lambda key: plain(key)(both), jax.random.split(keys[1], num_members))
  members = jnp.stack([1 - members, members], axis=-1)
  variance = uncertainty.ensemble_variance(members)
  ensemble = uncertainty.class_error_estimate(jnp.mean(members, axis=0), variance)

  given = scaled(table.inputs, 0), answer - jnp.mean(answer)
  settings = uncertainty.fit_gp(*given)
  mean, total = uncertainty.gp_posterior(*given, scaled(both, 0), **settings._asdict())
  gp = uncertainty.total_error_estimate(mean + jnp.mean(answer), total, settings.noise)

  found = algorithms.cross_validated_errors(
    keys[2], lambda key, x, y, mask, _: plain(key, mask), lambda model, x: model(x),
    lambda model, x, seen_x, mask: scaled(x, mask), table.inputs, answer, kind="squared",
  )  # fmt: skip
  total = gp_error_model(*found, lengthscales=_LENGTHS, **_SPACE)(scaled(both, 0))
  deup = uncertainty.total_error_estimate(members[0, :, 1], total, noise)

  # The prior knows the probabilities, so that their variance holds no noise.
  mean, variance = answer_prior.posterior(fitted, table.inputs, answer)(both)
  pfn = uncertainty.total_error_estimate(mean, variance + noise, noise)

  ranked, num = {}, len(table.queries)
  estimates = {PAIRS: pairs, ENSEMBLE: ensemble, GP: gp, DEUP: deup, PFN: pfn}
  for row, estimate in estimates.items():
    probs, scores = estimate.prediction[:num], estimate.epistemic
    errors = jnp.square(table.probs - (probs[:, 1] if probs.ndim == 2 else probs))
    ranked[row] = {"squared error": jnp.mean(errors), **rank(scores[:num], errors, scores[num:])}
  return ranked


def run_tables(config, context: Context, results: Results, *, num_seeds: int) -> None:
  """Adds the ranking of `measure_table` on every table, in the first seeds.

  Args:
    config: has `tables`, names of KEEL's, `table_train` and `table_test` points, `table_steps`
      updates, `prior_steps` of the PFN, `batch_size` and `num_members`.
    context: of the run.
    results: what the records are added to, with the setting `problem`.
    num_seeds: of the run's seeds.
  """
  sizes = {"num_steps": config.table_steps, "batch_size": config.batch_size}
  options = {"widths": (32, 32), "num_members": config.num_members}
  measure = functools.partial(measure_table, **sizes, **options)
  # One network, which has seen no table, serves them all.
  of_prior = {"num_context": config.table_train, "num_steps": config.prior_steps}
  fit = functools.partial(answer_prior.fit, width=_WIDTH, **of_prior)
  fitted = run_seeds(context, "table/PFN", fit, num_seeds=1)
  results.add({PFN: {"loss on its prior": fitted["loss"]}})
  params = jax.tree.map(lambda x: np.repeat(x, num_seeds, axis=0), fitted["params"])
  for name in config.tables:
    counts = config.table_train, config.table_test
    draw = functools.partial(draw_table, f"keel/{name}", *counts)
    tables = stack_seeds(draw, context.seed_numbers[:num_seeds])
    inputs = {"num_seeds": num_seeds, "arguments": (tables, params)}
    found = context.over_seeds(f"table/{name}", measure, **inputs)
    results.add(found, problem=f"table {name}")
