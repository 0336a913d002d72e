"""Speech: how much of training is padding, and what a decoder of few layers costs.

Corpora are put into batches at random, sorted, and in buckets by duration and by tokens, all within
the memory that a random batch of the worst utterances takes. Then recognizers learn spoken digits
from random batches, buckets of as many utterances or padded positions, and with layers moved to the
encoder.
"""

import dataclasses
import functools
import math
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.speech_efficiency import corpora, recognizers
from experiments.inference.speech_efficiency.corpora import KEPT
from experiments.kit import plots, sizes
from jaxlab import samplers, training
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "speech_efficiency"
RANDOM, BUCKETS, SHIFTED = "random batches", "buckets", "buckets, layers in the encoder"
EVEN = "buckets of as many utterances"
LOSS, ERROR = "validation loss", "token error rate"
POSITIONS, NEEDED, COMPUTED = "computed positions", "positions for the loss", "positions in all"
COMPILER = "search by the compiler's memory"


@dataclasses.dataclass(frozen=True)
class Config:
  """The corpora, the spoken digits, and the recognizers."""

  num_corpora: int = 4  # Corpora of a seed.
  num_utterances: int = 20_000  # In a corpus.
  random_batch: int = 16  # Utterances of a random batch, which set the memory.
  pool: int = 2000  # Utterances that are sorted at a time.
  num_buckets: int = 30  # By duration.
  sub_buckets: tuple[int, ...] = (2, 4)  # By tokens, in each of them; the first is compared.
  outlier: float = 4.0  # Deviations of tokens a second from which on an utterance is dropped.
  max_digits: int = 12  # Of a spoken utterance.
  num_train: int = 8000  # Utterances to train on.
  num_test: int = 500  # Others to validate on, and others to test on.
  buckets: tuple[int, int] = (5, 2)  # Of training: by duration, and by tokens in each.
  random_rows: int = 16  # Utterances of a random batch in training.
  dim: int = 64  # Width of recognizers.
  num_heads: int = 4  # Their attention heads.
  balanced: tuple[int, int] = (3, 3)  # Layers of encoder and decoder.
  shifted: tuple[int, int] = (5, 1)  # As many, most of them in the encoder.
  learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)  # AdamW; chosen on another seed.
  warmup: int = 100  # Updates until the rate falls with the root of the step.
  num_steps: int = 750  # Updates.
  even_steps: int = 1600  # Updates with buckets of as many utterances, which compute less in each.
  eval_every: int = 50  # Updates between losses of validation; divides both.
  num_searched: int = 2  # Of the shortest buckets, whose batch the compiler's memory sizes too.
  search_gap: float = 0.1  # At which that search ends.


PRESETS = {
  "smoke": Config(
    num_corpora=1, num_utterances=60, random_batch=4, pool=20, num_buckets=3, sub_buckets=(2,),
    max_digits=2, num_train=24, num_test=4, buckets=(2, 1), random_rows=2, dim=8, num_heads=2,
    balanced=(1, 1), shifted=(1, 1), learning_rates=(1e-3,), warmup=2, num_steps=2, even_steps=2,
    eval_every=1, num_searched=1, search_gap=0.9,
  ),
  "laptop": Config(),
  "paper": Config(
    num_utterances=200_000, max_digits=24, num_train=50_000, num_test=2000, buckets=(30, 2),
    random_rows=64, dim=256, balanced=(4, 4), shifted=(7, 1), learning_rates=(3e-4, 1e-3, 3e-3),
    num_steps=20_000, even_steps=40_000, eval_every=500,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  check_range("search_gap", config.search_gap, "(0, 1)")
  check_at_least(2, num_buckets=config.num_buckets, buckets=config.buckets[0])
  sizes.check_divides(2 * config.num_heads, dim=config.dim)
  sizes.check_divides(config.eval_every, num_steps=config.num_steps, even_steps=config.even_steps)
  sizes.check_at_most(config.num_utterances, random_batch=config.random_batch, pool=config.pool)
  sizes.check_at_most(config.num_train, random_rows=config.random_rows)


def run(config: Config, context: Context) -> Results:
  """Puts corpora into batches, trains recognizers, and sizes batches by the compiler's memory."""
  results = Results()
  cached = lambda i: context.cached(f"corpora/{i}", corpora.compare_samplers, config, i)  # noqa: E731
  found = jax.tree.map(lambda *x: np.array(x), *map(cached, context.seed_numbers))
  for outliers, of_samplers in found.items():
    results.add(of_samplers, outliers=outliers)
  shapes = recognizers.bucket_shapes(config)
  train(config, context, shapes, results)
  search(config, context, shapes, results)
  return results


def train(config: Config, context: Context, shapes, results: Results) -> None:
  """Trains on random batches and on buckets, and with layers moved to the encoder."""
  keys = [context.seed_key(i) for i in range(context.seeds)]
  other = jax.random.fold_in(context.key, context.seeds)  # Of the seed that chooses rates.
  *lengths, of_other = recognizers.lengths_of(config, [*keys, other])
  rates, last = {}, {}
  for name in (RANDOM, EVEN, BUCKETS):
    own, _, own_shapes = fit_by(config, shapes, name).args
    batches = recognizers.plan(own, own_shapes, 0, of_other, random=name == RANDOM)
    losses = [tune(config, context, shapes, name, x, other, batches) for x in config.learning_rates]
    rates[name] = config.learning_rates[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]
  rates[SHIFTED] = rates[BUCKETS]
  for name, rate in rates.items():
    own, layers, own_shapes = (fit := fit_by(config, shapes, name)).args
    plan = functools.partial(recognizers.plan, own, own_shapes, random=name == RANDOM)
    plans = jax.tree.map(lambda *x: np.stack(x), *map(plan, context.seed_numbers, lengths))
    data = np.stack([*map(jax.random.key_data, keys)])
    arguments = data, plans, np.full(len(keys), rate, np.float32)
    found = context.over_seeds(name, fit, arguments=arguments)
    chosen = {"learning rate": rate, ERROR: 100 * found["error"]}
    results.add({name: describe(config, layers, plans, lengths) | chosen})
    every, losses = config.eval_every, found[LOSS]
    positions = np.cumsum(plans.positions, axis=1)[:, every - 1 :: every]
    for i, values in enumerate(zip(losses.T, positions.T), start=1):
      results.add({name: dict(zip((LOSS, POSITIONS), values))}, update=every * i)
    last.setdefault(RANDOM, losses[:, -1])  # Random batches come first.
    needed = [positions_for(*x) for x in zip(positions, losses, last[RANDOM])]
    results.add({name: {NEEDED: needed, COMPUTED: positions[:, -1]}})


@functools.cache  # One object, and so one compiled program.
def fit_by(config: Config, shapes, name: str) -> functools.partial:
  """`recognizers.fit` with the configuration, layers and shapes of a sampler."""
  layers = config.shifted if name == SHIFTED else config.balanced
  if name == EVEN:
    shapes = tuple(shape._replace(rows=config.random_rows) for shape in shapes)
    config = dataclasses.replace(config, num_steps=config.even_steps)
  return functools.partial(recognizers.fit, config, layers, shapes)


def tune(config: Config, context: Context, shapes, name: str, rate: float, key, plan) -> float:
  """The last loss of validation with a learning rate, by the program of the measured seeds."""
  inputs = jax.random.key_data(key), plan, np.float32(rate)
  arguments = jax.tree.map(lambda x: np.stack([x] * context.seeds), inputs)
  options = {"num_seeds": context.seeds, "only": [0] * context.mesh.shape["data"]}
  options |= {"arguments": arguments, "mesh": context.mesh}
  stage, program = f"tuning/{name}, rate {rate:g}", fit_by(config, shapes, name)
  found = context.cached(stage, training.over_seeds, context.key, program, **options)
  return float(found[LOSS][0, -1])


def describe(config: Config, layers: tuple[int, int], plans, lengths) -> dict[str, np.ndarray]:
  """Padding and sizes of a training."""
  real = [(x @ [0.25, 1])[i[i >= 0]].sum() for x, i in zip(lengths, plans.rows)]
  model = jax.eval_shape(lambda: recognizers.initial(config, layers, jax.random.key(0)))
  return {
    "padding": 1 - np.array(real) / plans.positions.sum(axis=1),
    "mean batch": np.mean((plans.rows >= 0).sum(axis=2), axis=1),
    "parameters": training.num_params(model),
    "sequential layer steps": [layers[0] + layers[1] * x[:, 1].mean() for x in lengths],
  }


def positions_for(positions: np.ndarray, losses: np.ndarray, loss: float) -> float:
  """Where a training first has a loss, on lines between evaluations; all positions if nowhere."""
  return float(np.interp(-loss, -np.minimum.accumulate(losses), positions))


def search(config: Config, context: Context, shapes, results: Results) -> None:
  """Batch sizes by the compiler's plan of memory, for as much as a random batch takes."""
  memory = functools.partial(recognizers.gradient_bytes, config, config.balanced)
  budget = context.cached("memory of a random batch", memory, shapes[-1])
  for i, shape in enumerate(shapes[: config.num_searched]):

    def largest(shape=shape):
      fits = lambda rows: memory(shape._replace(rows=rows)) <= budget  # noqa: E731
      options = {"start_batch_size": shape.rows, "relative_gap": config.search_gap}
      return samplers.search_batch_size(fits, **options)._asdict()

    found = context.cached(f"memory/{i}", largest) | {"by positions": shape.rows}
    results.add({COMPILER: found}, frames=shape.frames, tokens=shape.tokens)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, sub = config.num_buckets, config.sub_buckets[0]
  both, alone = f"2-D, {few} x {sub}", f"1-D, {few * sub}"

  def of(name: str, quantity: str):
    return results.select(quantity, method=name, outliers=KEPT)

  correlation, once = (of(corpora.ORACLE, x) for x in ("correlation", corpora.ONCE))
  errors = [results.select(ERROR, method=name) for name in (SHIFTED, BUCKETS)]
  ratio = lambda x: np.divide(*(results.select(x, method=name) for name in (EVEN, RANDOM)))  # noqa: E731
  separate = (
    precondition("durations and tokens correlate at .9 or less", correlation, at_most=0.9),
    precondition("all samplers see every utterance once", once, at_least=1),
  )
  text, bounds = "the recognizer errs on 1 to 20% of the tokens", {"at_least": 1, "at_most": 20}
  learns = precondition(text, errors[1], **bounds)
  # Where the loss is never reached, all positions stand for those that it would need.
  enough = precondition("these compute as many positions in all", ratio(COMPUTED), at_least=1)
  claim = functools.partial(compare, better="lower")
  compute = {name: of(name, "compute") for name in (both, alone, corpora.POOL)}
  return [
    compare(f"mean batches of {few} x {sub} buckets are 4 times as large as random ones (log)",
            of(both, "log batch"), of(corpora.RANDOM, "log batch"), margin=math.log(4),
            headline=True, requires=separate, paper="up to 5 times"),
    compare("half of the audio frames of random batches are padding",
            of(corpora.RANDOM, "audio padding"), 0.5, requires=separate[1:],
            paper="more than 50% of the computation"),
    claim(f"buckets of both lengths take 10% less than {few * sub} by duration alone",
          compute[both] / compute[alone], 1.0, margin=0.1, requires=separate),
    claim("and 10% less than a sorted pool", compute[both] / compute[corpora.POOL], 1.0,
          margin=0.1, requires=separate),
    claim("buckets of as many utterances reach their last loss in 70% of the positions",
          ratio(NEEDED), 1.0, margin=0.3, requires=(learns, enough),
          paper="4 times fewer GPUs, or half the time"),
    claim("with most layers in the encoder, token errors rise by 1 point at most", *errors,
          margin=-1.0, requires=[learns], paper="accuracy is preserved"),
  ]  # fmt: skip


def figure(results: Results):
  """Padding and padded compute of all samplers; loss by computed positions."""
  figure, (left, middle, right) = plots.panels(3, width=4.6, height=4.0)
  kept = Results(r for r in results if r.field("outliers") == KEPT)
  for quantity in ("audio padding", "token padding"):
    plots.intervals(left, kept, quantity, by="method", color="quantity")
  left.set(ylabel="share of padding", ylim=(0, 1))
  left.legend(fontsize=7)
  plots.intervals(middle, kept, "compute", by="method")
  middle.set(ylabel="padded compute of an utterance", ylim=(0, None))
  plots.paths(right, results, POSITIONS, LOSS, along="update")
  right.set(yscale="log")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update on a batch of the worst shape, for a dry run."""
  layers, shape = config.balanced, recognizers.worst_shape(config)
  loss = recognizers.text_loss(recognizers.network(config, layers))
  optimizer = recognizers.optimizer_of(config, config.learning_rates[0])

  def init(key):
    return training.init_state(key, recognizers.initial(config, layers, key), optimizer)

  update = training.build_update(loss, optimizer, mesh=mesh)
  return update, jax.eval_shape(init, jax.random.key(0)), recognizers.abstract_batch(shape)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
