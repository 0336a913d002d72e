"""The networks of `PFNRegressor()` and `PFNClassifier()`: trains them and writes their model card.

`make networks` puts both into the package. Each is fitted to a prior of tables, then held against
the posterior of that prior, where one can be computed, and against usual estimators, on fresh data
of the prior and on real tables.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.bayes.pfn import tables
from experiments.default_networks.card import (
  FREQUENCIES,
  LOGISTIC,
  NETWORK,
  NLL,
  PENALTIES,
  POSTERIOR,
  RIDGE,
  card,
)
from experiments.default_networks.priors import (
  NUM_CLASSES,
  NUM_FEATURES,
  class_prior,
  on_unit_cube,
  regression_prior,
)
from experiments.kit.prior_fitting import PriorTrainer
from experiments.kit.sizes import check_at_most, check_sizes
from jaxlab import algorithms, experiment, losses, models, samplers
from jaxlab.experiment import Context, Results
from jaxlab.experiment.workdir import write_atomic

PAPER = "default_networks"
REAL = ("iris", "wine", "breast_cancer")


@dataclasses.dataclass(frozen=True)
class Config:
  """How both networks are trained, and how much they are evaluated on."""

  output: str = ""  # Where networks and card are written; empty for the working directory.
  embed_dim: int = 64  # Width of the networks.
  num_layers: int = 3  # Encoder layers.
  num_bars: int = 200  # Bars of the predictive distribution.
  batch_size: int = 16  # Data sets per update.
  num_steps: int = 8000  # Updates.
  learning_rate: float = 2e-3  # Peak of the schedule.
  warmup_fraction: float = 0.1  # Share of the updates that the learning rate rises.
  min_context: int = 5  # Smallest context of the training.
  max_context: int = 100  # Largest.
  num_queries: int = 14  # Points of a data set beyond the largest context.
  context_sizes: tuple[int, ...] = (10, 30, 100)  # Where the networks are evaluated.
  num_test: int = 50  # Fresh data sets of the prior for each of them.
  num_draws: int = 2000  # Draws of hyper-parameters behind the posterior.
  num_splits: int = 10  # Splits of a real table.


PRESETS = {
  "smoke": Config(
    embed_dim=8,
    num_layers=1,
    num_bars=10,
    batch_size=8,
    num_steps=2,
    max_context=30,
    context_sizes=(30,),
    num_test=2,
    num_draws=20,
    num_splits=1,
  ),
  "laptop": Config(),
}
SEEDS = {"laptop": 1}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible."""
  check_sizes(config, shares=("warmup_fraction",))
  check_at_most(config.max_context, context_sizes=max(config.context_sizes))
  check_at_most(config.max_context, min_context=config.min_context)


def run(config: Config, context: Context) -> Results:
  """Trains both networks, evaluates them, and writes them with their card."""
  results = Results()
  networks = {
    "regressor": train_regressor(config, context),
    "classifier": train_classifier(config, context),
  }
  score_regressor(config, context, models.PFNRegressor(networks["regressor"]), results)
  score_classifier(config, context, models.PFNClassifier(networks["classifier"]), results)
  directory = pathlib.Path(config.output or context.workdir)
  for name, network in networks.items():
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), network.params)
    options = dict(task=network.task, borders=network.borders)
    models.save_pfn(directory / name, network.module, params, **options)
  text = card(config, results, networks).encode()
  write_atomic(directory / "README.md", lambda file: file.write(text))
  return results


def train(config: Config, context: Context, name: str, module, prior_fn, loss_fn) -> dict:
  """Parameters of a network that was fitted to a prior."""
  names = ("num_steps", "batch_size", "learning_rate", "warmup_fraction", "min_context")
  trainer = PriorTrainer(
    module,
    prior_fn,
    loss_fn,
    max_context=config.max_context + 1,
    steps_per_call=min(100, config.num_steps),
    mesh=context.mesh,
    **{field: getattr(config, field) for field in names},
  )
  (params,) = trainer.train(context, name, seeds=1)
  return params


def task_of(config: Config, name: str, **options) -> models.PFNTask:
  """The data sets that a network expects."""
  sizes = dict(num_features=NUM_FEATURES[name], max_context=config.max_context)
  return models.PFNTask(**sizes, **options)


def train_regressor(config: Config, context: Context) -> models.TrainedPFN:
  """The network of densities."""
  prior_fn = functools.partial(regression_prior, num_points=config.max_context + config.num_queries)
  draw = jax.jit(algorithms.prior_bar_borders, static_argnums=(1, 2))
  # Twice as wide, since nothing can be resolved within the outer bars.
  borders = 2 * np.asarray(draw(context.key, prior_fn, config.num_bars))
  module = network(config, config.num_bars)
  nll = functools.partial(losses.bar_nll, borders=borders)
  params = train(config, context, "regressor", module, prior_fn, nll)
  return models.TrainedPFN(module, params, task_of(config, "regressor"), borders)


def train_classifier(config: Config, context: Context) -> models.TrainedPFN:
  """The network of class probabilities."""
  prior_fn = functools.partial(class_prior, num_points=config.max_context + config.num_queries)

  def loss_fn(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))

  module = network(config, NUM_CLASSES)
  params = train(config, context, "classifier", module, prior_fn, loss_fn)
  task = task_of(config, "classifier", num_classes=NUM_CLASSES)
  return models.TrainedPFN(module, params, task)


def network(config: Config, num_outputs: int) -> models.PFN:
  """A transformer that takes standardized inputs."""
  sizes = (num_outputs, config.embed_dim, config.num_layers)
  return models.PFN(*sizes, input_shift=0.0, input_scale=1.0)


# -------------------------------------------------------------------------------------- evaluation


def fresh(config: Config, prior_fn, count: int, num_context: int) -> list[tuple]:
  """Context and queries `(x, y)` of data sets of `count` inputs or classes, new to the network."""
  one = functools.partial(prior_fn, num_points=num_context)
  group = jax.eval_shape(one, jax.random.key(0)).y.shape[0]
  key = jax.random.fold_in(jax.random.key(1), count)
  keys = jax.random.split(key, -(-config.num_test // group))
  batch = _drawn(keys, count, prior_fn, num_context + config.num_queries)
  sets = zip(np.asarray(batch.x, np.float64), np.asarray(batch.y, np.float64))
  n = num_context
  return [((x[:n], y[:n]), (x[n:], y[n:])) for x, y in sets]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _drawn(keys, count, prior_fn, num_points):
  draw = functools.partial(prior_fn, num_points=num_points)
  return samplers.draw_data_sets(keys, lambda key: draw(key, count))


def score_regressor(config: Config, context: Context, model, results: Results) -> None:
  """Negative log-likelihoods on data of the prior and on the table `diabetes`."""
  keys = jax.random.split(context.key, config.num_draws)
  ridge = tables.regressors(0)[RIDGE]

  def on_prior(num_used, num_context):
    scores = {NETWORK: [], POSTERIOR: [], RIDGE: []}
    for seen, asked in fresh(config, regression_prior, num_used, num_context):
      scores[NETWORK].append(-model.fit(*seen).log_prob(*asked).mean())
      scores[RIDGE].append(tables.score_gaussian(ridge, seen, asked)["NLL"])
      scores[POSTERIOR].append(posterior_nll(keys, num_used, seen, asked))
    return {method: {NLL: np.mean(values)} for method, values in scores.items()}

  for num_used in (1, 3, NUM_FEATURES["regressor"]):
    for size in config.context_sizes:
      scores = context.cached(f"regressor/{num_used}/{size}", on_prior, num_used, size)
      results.add(scores, data="prior", inputs=num_used, rows=size)

  def on_diabetes(num_context):
    x, y = tables.table_of("diabetes", "target")
    y = (y - y.mean()) / y.std()
    rng = np.random.default_rng(num_context)
    orders = [rng.permutation(len(y)) for _ in range(config.num_splits)]
    splits = [(order[:num_context], order[num_context:]) for order in orders]
    methods = {
      NETWORK: lambda train, test: {"NLL": -model.fit(*train).log_prob(*test).mean()},
      **{n: functools.partial(tables.score_gaussian, e) for n, e in tables.regressors(0).items()},
    }
    scores = tables.mean_over_splits(methods, x, y, splits)
    return {method: {NLL: row["NLL"]} for method, row in scores.items()}

  for size in config.context_sizes:
    scores = context.cached(f"diabetes/{size}", on_diabetes, size)
    results.add(scores, table="diabetes", rows=size)


def posterior_nll(keys, num_used: int, seen, asked) -> float:
  """Of the prior's posterior, by sampling of its hyper-parameters."""
  shift, scale = seen[1].mean(), seen[1].std()
  targets = ((y - shift) / scale for y in (seen[1], asked[1]))
  points = (on_unit_cube(x) for x, _ in (seen, asked))
  log_probs = tables.sampled_posterior(keys, *points, *targets, num_used)
  return float(np.log(scale) - np.mean(log_probs))


def score_classifier(config: Config, context: Context, model, results: Results) -> None:
  """Negative log-likelihoods on data of the prior and on real tables."""

  def nll(estimator, train, test):
    known = np.isin(test[1], train[1])  # No method gives a class a share that it never saw.
    probs = estimator.fit(*train).predict_proba(test[0][known])
    return log_loss(test[1][known], probs, labels=np.unique(train[1]))

  def logistic(penalty):
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))

  def mean_scores(pairs):
    pairs = [p for p in pairs if len(np.unique(p[0][1])) > 1 and np.isin(p[1][1], p[0][1]).any()]
    named = {NETWORK: [model], LOGISTIC: map(logistic, PENALTIES), FREQUENCIES: [DummyClassifier()]}
    return {
      method: {NLL: min(np.mean([nll(e, *pair) for pair in pairs]) for e in estimators)}
      for method, estimators in named.items()
    }

  def on_prior(num_classes, num_context):
    return mean_scores(fresh(config, class_prior, num_classes, num_context))

  def on_table(load, num_context):
    x, y = load(return_X_y=True)
    x = x[:, : NUM_FEATURES["classifier"]]  # The first inputs, where a table has more.
    rng = np.random.default_rng(num_context)
    orders = [rng.permutation(len(y)) for _ in range(config.num_splits)]
    parts = ((order[:num_context], order[num_context:]) for order in orders)
    return mean_scores([((x[a], y[a]), (x[b], y[b])) for a, b in parts])

  for num_classes in (2, 5):
    for size in config.context_sizes:
      scores = context.cached(f"classifier/{num_classes}/{size}", on_prior, num_classes, size)
      results.add(scores, data="prior", classes=num_classes, rows=size)
  for name in REAL:
    load = getattr(datasets, f"load_{name}")
    for size in config.context_sizes:
      scores = context.cached(f"{name}/{size}", on_table, load, size)
      results.add(scores, table=name, rows=size)


if __name__ == "__main__":
  experiment.main(sys.modules[__name__])
