"""MAD-Bench: does a warning make a model see that a question assumes something false?

A model answers questions about pictures, and learns as a skill of its own to verify what they
assume. It has seen questions behind a warning, with check and answer, in all categories but one. In
this one the parts are known and their combination is not: what the warning does there is compared
with neutral words in its place, and with a bias towards objections. Three take turns to be the one.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.mad_bench import answerers, questions
from experiments.kit import plots, sizes
from experiments.kit.sweep import first_seeds, grid
from experiments.kit.train import adamw_cosine
from jaxlab import data, training
from jaxlab._checks import check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "mad_bench"
SEEDS = {"laptop": 6}
PLAIN, WARNING, NEUTRAL, VERIFY = "plain", "warning", "neutral prefix", "verification"
BIASED, ALWAYS = "plain, tuned bias", "always object"
METHODS = PLAIN, WARNING, NEUTRAL, BIASED, ALWAYS
DECEPTIVE, CONTROL, NOTICED = "deceptive accuracy", "control accuracy", "objections"
BASE, EVERYWHERE = "captions and true premises", "all categories warned"
ALL_BUT = {i: f"all but {data.CATEGORIES[i]} warned" for i in questions.HELD_OUT}
_SPREAD = len(data.CATEGORIES) / (len(data.CATEGORIES) - 1)  # All but one have the whole share.
UNTOLD, UNVERIFIED = "no deceptive questions", "no verification"  # Nor warnings of scenes.


@dataclasses.dataclass(frozen=True)
class Config:
  """The model and the questions it learns from."""

  pixels: bool = False  # Whether the model sees pictures, or tokens of what is in their cells.
  decoder: tuple[int, ...] = (64, 3)  # Width and blocks.
  num_heads: int = 4  # Its attention heads.
  base: tuple[int, float] = (4000, 2e-3)  # Updates and learning rate of the base model.
  num_steps: int = 3000  # Updates with every mix of questions from there on.
  other_seeds: int = 2  # Seeds of the mixes that no claim reads.
  num_warmup: int = 50  # The first of both, in which the learning rate rises.
  num_questions: int = 64  # Fresh texts per update.
  learning_rate: float = 2e-3  # AdamW, with a cosine to 0.
  verify: float = 0.25  # Share of questions to be verified alone, in all categories.
  warning: float = 0.25  # Share of questions behind the warning.
  neutral: float = 0.05  # Share of questions behind neutral words.
  deceptive: float = 0.1  # Of plain questions after objects, share of those that are not there.
  captions: float = 0.1  # Share of texts of the base model that tell what there is.
  num_questions_each: int = 200  # Of a category, to choose the bias, and others to test on.


PRESETS = {
  "smoke": Config(
    decoder=(8, 1), num_heads=2, base=(2, 1e-3), num_steps=2, num_warmup=1, num_questions=4,
    num_questions_each=2,
  ),
  "laptop": Config(),
  "paper": Config(
    pixels=True, decoder=(256, 4), num_heads=8, base=(20_000, 5e-4), num_steps=20_000,
    num_questions=256, learning_rate=5e-4, num_questions_each=1000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("verify", "warning", "neutral", "deceptive", "captions"))
  sizes.check_divides(2 * config.num_heads, decoder=config.decoder[0])
  sizes.check_at_most(min(config.base[0], config.num_steps) - 1, num_warmup=config.num_warmup)
  total = config.verify + _SPREAD * config.warning + config.neutral
  check_range("the sum of shares", total, "[0, 1]")


def mixes(config: Config) -> dict[str, dict[str, float]]:
  """What models learn, each from the base model on, as `questions.draw_mix` takes it."""
  shares = {name: getattr(config, name) for name in ("verify", "neutral", "deceptive")}
  every = shares | {"warned": config.warning, "captions": 0.0, "fresh": 0.0}
  every["held_out"] = float(questions.NONE)
  but = {i: every | {"warned": _SPREAD * config.warning, "held_out": float(i)} for i in ALL_BUT}
  return {
    **{name: but[i] for i, name in ALL_BUT.items()},
    UNTOLD: but[questions.BACKGROUND] | {"deceptive": 0.0},
    UNVERIFIED: but[questions.BACKGROUND] | {"verify": 0.0},
    EVERYWHERE: every,
  }


def run(config: Config, context: Context) -> Results:
  """Trains a base model, goes on with every mix of questions, and asks in every way."""
  results, rest = Results(), mixes(config)
  shape = jax.eval_shape(lambda: answerers.initial(config, jax.random.key(0)))
  start = np.zeros((context.seeds, training.num_params(shape)), np.float32)
  base = rest[EVERYWHERE] | dict.fromkeys(("verify", "neutral", "deceptive", "warned"), 0.0)
  base |= {"captions": config.captions, "fresh": 1.0}
  own = dataclasses.replace(config, **dict(zip(("num_steps", "learning_rate"), config.base)))
  first, fit = (functools.partial(answerers.fit, x) for x in (own, config))
  add(results, found := grid(context, "base model", first, start, [base]), [BASE])
  read = {name: rest.pop(name) for name in ALL_BUT.values()}
  few = first_seeds(context, config.other_seeds)
  for stage, some, mixed in (("answers", context, read), ("other answers", few, rest)):
    starts = found["params"][: some.seeds, 0]
    add(results, grid(some, stage, fit, starts, [*mixed.values()]), mixed)
  return results


def add(results: Results, found: dict[str, np.ndarray], mixed) -> None:
  """Adds what was measured after training on mixes, `[seeds, mixes, ...]`."""
  for k, mix in enumerate(mixed):
    percent = {name: 100 * x[:, k] for name, x in found.items()}
    for i, category in enumerate(data.CATEGORIES):
      where = {"training": mix, "category": category}
      verified, noticed = (percent[name][:, i] for name in ("verified", "noticed"))
      results.add({VERIFY: {"accuracy": verified}, PLAIN: {NOTICED: noticed}}, **where)
      for j, method in enumerate(METHODS):
        shares = percent["accuracy"][:, j, i].T
        results.add({method: dict(zip((CONTROL, DECEPTIVE), shares))}, **where)
    for j, method in enumerate(METHODS):
      results.add({method: {"harmonic mean": percent["harmonic mean"][:, j]}}, training=mix)
    results.add({VERIFY: {"questions admitted": percent["admitted"]}}, training=mix)
    bias, p_value = (found[name][:, k] for name in ("bias", "p value"))
    results.add({BIASED: {"bias": bias}, WARNING: {"McNemar's p": p_value}}, training=mix)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements; what the warning does to a category never leaves it out."""
  names = data.CATEGORIES

  def of(method, quantity, categories):
    """Means: of a category that may be held out where it is, of others over all trainings."""
    values = [
      results.select(quantity, method=method, training=training, category=names[i])
      for i in categories
      for training in ([ALL_BUT[i]] if i in ALL_BUT else ALL_BUT.values())
    ]
    return np.mean(values, axis=0)

  able = [i for i in range(len(names)) if of(PLAIN, CONTROL, [i]).mean() >= 80]
  skilled = [i for i in able if of(VERIFY, "accuracy", [i]).min() >= 85]  # In every seed.
  weak = [i for i in skilled if of(PLAIN, NOTICED, [i]).mean() <= 35]
  read = [i for i in questions.HELD_OUT if i in weak]
  kept = read or questions.HELD_OUT  # Where none is left there is no test, and all are shown.
  others = [i for i in able if i != questions.EXISTENCE] or questions.HELD_OUT  # Noticed ones too.

  def harmonic(method):
    control, deceptive = (of(method, x, kept) for x in (CONTROL, DECEPTIVE))
    return 2 * control * deceptive / np.maximum(control + deceptive, 1e-9)

  bounds = (
    ("plain true questions of 4 categories are answered in 80%", float(len(able)), 4, None),
    ("2 held out in turn are verified in 85% in every seed, plain false ones noticed in 35%",
     float(len(read)), 2, None),
    ("plain false premises are noticed in at most 35%", of(PLAIN, NOTICED, others), None, 35),
    ("those of the trained category in 70%", of(PLAIN, DECEPTIVE, [questions.EXISTENCE]), 70, None),
  )  # fmt: skip
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = functools.partial(compare, requires=requires)
  warned, plain = (of(method, DECEPTIVE, kept) for method in (WARNING, PLAIN))
  # A warning that costs true answers fails: what it gains in such a seed does not count.
  fall = of(PLAIN, CONTROL, kept) - of(WARNING, CONTROL, kept)
  without_cost = np.where(fall > 5, np.minimum(warned, plain), warned)
  return [
    claim("in a category never warned of, the warning resists 10 points more of false premises; "
          "a seed where it costs over 5 points of true ones gains nothing", without_cost, plain,
          margin=10.0, headline=True, paper="doubles accuracy at best"),
    claim("plain true questions are answered 40 points more often than false ones corrected",
          of(PLAIN, CONTROL, others), of(PLAIN, DECEPTIVE, others), margin=40.0,
          paper="accuracy of 5 to 35% but for GPT-4V"),
    claim("it resists 10 points more than neutral words in its place", warned,
          of(NEUTRAL, DECEPTIVE, kept), margin=10.0),
    claim("its harmonic mean is 5 points above that of a tuned bias towards objections",
          harmonic(WARNING), harmonic(BIASED), margin=5.0),
  ]  # fmt: skip


def figure(results: Results):
  """Deceptive accuracy by category as bars, control accuracy as dots; held out where shaded."""
  figure, (ax,) = plots.panels(1, width=9.0, height=4.0)
  training = lambda i: ALL_BUT.get(i, ALL_BUT[questions.BACKGROUND])  # noqa: E731
  for j, method in enumerate((PLAIN, NEUTRAL, BIASED, WARNING)):
    places = np.arange(len(data.CATEGORIES)) + 0.2 * (j - 1.5)
    bars, dots = (
      [
        results.select(quantity, method=method, training=training(i), category=category).mean()
        for i, category in enumerate(data.CATEGORIES)
      ]
      for quantity in (DECEPTIVE, CONTROL)
    )
    ax.bar(places, bars, width=0.18, label=method)
    ax.plot(places, dots, "k.", label="true premises" if j == 0 else None)
  for i in questions.HELD_OUT:
    ax.axvspan(i - 0.5, i + 0.5, color="gray", alpha=0.15, linewidth=0)
  ax.set_xticks(range(len(data.CATEGORIES)), data.CATEGORIES)
  ax.set(ylabel="right answers (%)", ylim=(0, 102))
  plots.legend_below(figure, ax, columns=5)
  return figure


def abstract(config: Config, mesh):
  """An update of the model, for a dry run."""
  model, rows = answerers.network(config), config.num_questions
  optimizer = adamw_cosine(config.learning_rate, config.num_steps, num_warmup=config.num_warmup)
  shapes = ((rows, 24, 24, 3), "f4"), *(((rows, questions.WIDTH), kind) for kind in ("i4", "?"))
  batch = questions.Rows(*(jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes))

  def init(key):
    return training.init_state(key, answerers.initial(config, key), optimizer)

  state = jax.eval_shape(init, jax.random.key(0))
  return training.build_update(answerers.answer_loss(model), optimizer, mesh=mesh), state, batch


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
