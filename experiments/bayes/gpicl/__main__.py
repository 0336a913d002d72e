"""Does a network that reads labeled examples learn to learn, or to recognize its tasks?

Digits of three classes become tasks by random projections and permutations of the labels. A network
of 16 tasks may recognize which one it reads; one of ever new tasks has to compare examples. Both
meet three other classes, and signals, beside classifiers that know nothing but the context.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.bayes.gpicl import baselines, networks, tasks
from experiments.bayes.gpicl.networks import BIASED, LSTM, OUTER, UNLIMITED, Row
from experiments.bayes.gpicl.tasks import NEW, OWN, SIGNALS, UNSEEN
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import add_along, choose_for_all, each_seed, first_seeds, grid
from jaxlab import metrics, training
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "gpicl"
LAST, FIRST, IMPROVEMENT = "last accuracy", "first accuracy", "improvement"
IN_TIME, PLATEAU = "leaves the plateau in time", "plateau"
LOSS, HALF = "training loss", "training loss at half"


@dataclasses.dataclass(frozen=True)
class Config:
  """The tasks, the networks, their training, and the baselines."""

  dataset: str = "digits"  # Of the tasks; or mnist, fashion_mnist.
  num_classes: int = 3  # Classes of a task; the base classes, and as many unseen ones.
  train_per_class: int = 122  # Rows of a base class that tasks of the training are made of.
  held_out_per_class: int = 52  # Its other rows; an unseen class has the sum of both.
  signals_per_class: int = 60  # Rows of mnist1d.
  output_dim: int = 8  # Features of a task.
  sequence_length: int = 24  # Examples of a sequence.
  window: int = 8  # Positions at either end of a sequence that are averaged.
  num_tasks: tuple[int, ...] = (16, 256)  # Of the networks of few tasks; the first has the claims.
  bias: float = 0.8  # Share of tasks whose labels keep their names, at a biased start.
  bias_share: float = 0.5  # Of the updates, after which that share has fallen to 0.
  embed_dim: int = 64  # Width of the transformer.
  num_layers: int = 3  # Its layers.
  num_heads: int = 4  # Its attention heads.
  lstm_dim: int = 128  # Width of the LSTM.
  outer_dim: int = 48  # Width of the outer-product LSTM.
  num_steps: int = 1600  # Updates.
  batch_size: int = 64  # Sequences per update.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of Adam, to choose from on one more seed.
  num_warmup: int = 100  # Updates of the warm-up.
  eval_every: int = 50  # Updates between looks at the loss on new tasks.
  num_watched: int = 256  # Sequences of that loss.
  num_test: int = 2000  # Test sequences of a condition.
  strengths: tuple[float, ...] = (0.1, 1.0, 10.0)  # C of logistic regression, to choose from.
  num_validation: int = 500  # Sequences of the base classes that choose it.
  logistic_steps: int = 200  # Of its fit, at every position.
  other_seeds: int = 2  # Seeds of the rows that no claim reads.


PRESETS = {
  "smoke": Config(
    train_per_class=12, held_out_per_class=6, signals_per_class=6, output_dim=4, sequence_length=6,
    window=2, num_tasks=(1,), embed_dim=8, num_layers=1, num_heads=2, lstm_dim=4, outer_dim=4,
    num_steps=4, batch_size=4, learning_rates=(1e-3,), num_warmup=2, eval_every=2, num_watched=4,
    num_test=40, num_validation=10, logistic_steps=2, other_seeds=1,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="mnist", num_classes=5, train_per_class=5000, held_out_per_class=1000,
    signals_per_class=500, output_dim=784, sequence_length=100, bias=0.5,
    num_tasks=(16, 2**12, 2**16, 2**20, 2**24), embed_dim=256,
    num_layers=4, num_heads=8, lstm_dim=512, outer_dim=256, num_steps=50_000, batch_size=512,
    learning_rates=(1e-4, 3e-4), num_warmup=1000, eval_every=500, other_seeds=5,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("bias", "bias_share"))
  for name in ("strengths", "learning_rates", "bias_share"):
    check_range(name, np.array(getattr(config, name)), "(0, inf)")
  sizes.check_known(("digits", "mnist", "fashion_mnist"), dataset=(config.dataset,))
  dataset = datasets.describe(config.dataset)
  check_at_least(2, num_classes=config.num_classes)
  sizes.check_at_most(dataset.num_classes // 2, num_classes=config.num_classes)
  rows = sum(dataset.num_rows) // dataset.num_classes
  sizes.check_at_most(rows, train_per_class=config.train_per_class)
  sizes.check_at_most(rows - config.train_per_class, held_out_per_class=config.held_out_per_class)
  sizes.check_at_most(config.sequence_length // 2, window=config.window)
  sizes.check_divides(config.num_heads, embed_dim=config.embed_dim)
  sizes.check_divides(config.eval_every, num_steps=config.num_steps)
  if len(set(config.num_tasks)) < len(config.num_tasks):
    raise ValueError(f"num_tasks must differ, got {config.num_tasks}.")


def run(config: Config, context: Context) -> Results:
  """Chooses a learning rate for every architecture, trains all rows, and adds the baselines."""
  results = Results()
  drawn = datasets.stack_seeds(functools.partial(tasks.draw, config), context.seed_numbers)
  rows = networks.rows_of(config)

  @functools.cache  # Rows that differ in their bias alone are one program.
  def program(architecture, num_tasks):
    return functools.partial(networks.measure, config, architecture, num_tasks)

  rates = {}
  for name in dict.fromkeys(row.architecture for row in rows.values()):
    rates[name] = choose_rate(config, context, name, program(name, 0))
    about = networks.size_of(config, name) | {"learning rate": rates[name]}
    results.add({f"{name}, as built": about})
  for name, row in rows.items():
    some = context
    if name == networks.NAMED or row.num_tasks in config.num_tasks[1:]:
      some = first_seeds(context, config.other_seeds)
    own = jax.tree.map(lambda x, n=some.seeds: x[:n], drawn)
    measure, settings = program(*row[:2]), [row.setting(rates[row.architecture])]
    found = grid(some, f"networks/{name}", measure, own, settings)
    add(config, results, name, {key: x[:, 0] for key, x in found.items()}, row.num_tasks)
  found = each_seed(context, "baselines", functools.partial(baselines.measure, config), drawn)
  for name, scores in found.items():
    add(config, results, name, scores)
  results.add({"chance": {LAST: 1 / config.num_classes}}, condition=UNSEEN)
  return results


def choose_rate(config: Config, context: Context, name: str, measure) -> float:
  """The learning rate of the lowest training loss without bias, on the seed after the last one."""
  rates = config.learning_rates
  if len(rates) == 1:
    return rates[0]
  number = context.first_seed + context.seeds
  key = jax.random.fold_in(context.key, number)
  other = dataclasses.replace(context, key=key, seeds=1, first_seed=number)
  drawn = datasets.stack_seeds(functools.partial(tasks.draw, config), other.seed_numbers)
  settings = [Row().setting(rate) for rate in rates]
  scores = grid(other, f"learning rate/{name}", measure, drawn, settings)
  best, _ = choose_for_all(scores, settings, select=LOSS, better="lower")
  return rates[best]


def add(config: Config, results: Results, name: str, found, num_tasks: int = 0) -> None:
  """Adds the records of a row: of all conditions, along positions, along updates, and others."""
  conditions, found = tasks.conditions_of(num_tasks), dict(found)
  curve = {"accuracy": found.pop("accuracy")[:, conditions.index(UNSEEN)]}
  positions = range(1, config.sequence_length + 1)
  add_along(results, {name: curve}, {"position": positions}, condition=UNSEEN)
  scores = {key: found.pop(key) for key in (FIRST, LAST, IMPROVEMENT)}
  add_along(results, {name: scores}, {"condition": conditions})
  losses = {key: found.pop(key) for key in ("evaluation loss",) if key in found}
  updates = range(config.eval_every, config.num_steps + 1, config.eval_every)
  add_along(results, {name: losses}, {"update": updates})
  results.add({name: found})


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  # fmt: off
  few, window = f"{config.num_tasks[0]} tasks", config.window
  chance = 1 / config.num_classes

  def of(method, quantity=LAST, condition=UNSEEN):
    return results.select(quantity, method=method, condition=condition)

  def own(method, quantity):
    return results.select(quantity, method=method)

  def honest(*methods):
    """Before any label is seen, a network is right by chance, or it has seen the label."""
    gaps = [np.abs(of(method, FIRST) - chance) for method in methods]
    limit = 3 * np.sqrt(chance * (1 - chance) / config.num_test)
    text = f"at the first position accuracy is within {limit:.3f} of chance"
    return precondition(text, np.max(gaps, axis=0), at_most=limit)

  late, change = np.sum(own(UNLIMITED, IN_TIME) == 0), 1 - own(LSTM, LOSS) / own(LSTM, HALF)
  nearest, signals = of(baselines.NEAREST), of(UNLIMITED, LAST, SIGNALS)
  left, learned, able, flat = (
    precondition(text, values, at_least=low, at_most=high) for text, values, low, high in (
      ("all seeds but one leave the plateau before 60% of the updates", late, None, 1),
      (f"{few}: last accuracy on them is .75 or more", of(few, LAST, OWN), 0.75, None),
      ("1-nearest neighbor is right on .55 to .90", nearest, 0.55, 0.9),
      ("the LSTM's training loss falls by less than 2% in the second half", change, None, 0.02),
    )
  )
  return [
    compare(f"unseen classes: unlimited tasks give .15 more accuracy at the last {window} "
            f"positions than {few}", of(UNLIMITED), of(few), margin=0.15, headline=True,
            requires=(left, learned, able, honest(UNLIMITED, few)),
            paper="learning of unseen data begins at about 2^13 tasks"),
    compare(f"{few} are recognized: accuracy grows along their sequences by .15 more than along "
            "those of new tasks", of(few, IMPROVEMENT, OWN), of(few, IMPROVEMENT, NEW),
            margin=0.15, requires=(learned, honest(few))),
    compare("unseen classes: a recurrent state that is a matrix gives .05 more than an LSTM",
            of(OUTER), of(LSTM), margin=0.05, requires=(able, flat, honest(OUTER, LSTM)),
            paper="accessible state decides, parameters do not"),
    compare("a biased start shortens the plateau, by .2 in logarithms",
            np.log(own(BIASED, PLATEAU)), np.log(own(UNLIMITED, PLATEAU)), better="lower",
            margin=0.2, requires=(left, honest(BIASED, UNLIMITED))),
    compare(f"mnist1d by a network of {config.dataset}: accuracy grows by .10 from the first "
            f"{window} positions to the last", signals,
            signals - of(UNLIMITED, IMPROVEMENT, SIGNALS), margin=0.1,
            requires=(left, honest(UNLIMITED)),
            paper="networks of MNIST learn from other data"),
  ]
  # fmt: on


def figure(results: Results):
  """Accuracy on unseen classes by position, and the loss on new tasks by updates."""
  figure, (left, right) = plots.panels(2, width=5.8, height=4.6)
  plots.curves(left, results, "accuracy", x="position", condition=UNSEEN)
  chance = results.select(LAST, method="chance").item()
  classes = round(1 / chance)
  for line in left.lines:
    name = line.get_label()
    if results.matching(method=name, quantity=LOSS):
      seen = OWN if results.matching(method=name, condition=OWN) else NEW
      means = (
        results.select(quantity, method=name, condition=condition).mean().item()
        for quantity, condition in ((IMPROVEMENT, seen), (IMPROVEMENT, UNSEEN), (LAST, seen))
      )
      regime = metrics.in_context_regime(*means, num_classes=classes).replace("_", " ")
      line.set_label(f"{name}: {regime}")
    else:
      line.set_linestyle("--")
  left.axhline(chance, color="black", linestyle=":", label="chance")
  left.set_title(UNSEEN)
  plots.legend_below(figure, left, columns=4)
  plots.curves(right, results, "evaluation loss", x="update")
  right.axhline(0.9 * np.log(classes), color="black", linestyle=":")
  right.set(title=f"{NEW}; the dotted line ends the plateau", yscale="log")
  return figure


def abstract(config: Config, mesh):
  """An update of the transformer, for a dry run."""
  module = networks.network(config, networks.TRANSFORMER)
  shape = config.batch_size, config.sequence_length
  tokens = jax.ShapeDtypeStruct((*shape, config.output_dim + config.num_classes), jnp.float32)

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = module.apply({"params": params}, batch[0])
    return training.LossOutput(jnp.mean(networks.cross_entropy(logits, batch[1]), axis=1))

  optimizer = networks.optimizer(config, config.learning_rates[0])
  batch = tokens, jax.ShapeDtypeStruct(shape, jnp.int32)
  return abstract_step(module, loss, optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
