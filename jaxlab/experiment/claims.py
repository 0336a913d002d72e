"""A paper's statements, and the verdicts on them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes half a second to import.

from jaxlab.experiment.records import per_seed

CONFIDENCE = 0.95
MAX_CLAIMS = 6
VERDICTS = ("shown", "refuted", "unresolved", "no test")

Verdict = Literal["shown", "refuted", "unresolved", "no test"]


class Precondition(NamedTuple):
  """What must be the case for a claim to mean anything.

  Attributes:
    text: the condition, in one line.
    measured: the mean over seeds of what it is about.
    at_least: the smallest value that meets it, or None.
    at_most: the largest value that meets it, or None.
  """

  text: str
  measured: float
  at_least: float | None = None
  at_most: float | None = None

  @property
  def met(self) -> bool:
    """Whether the condition holds; what is not finite meets nothing."""
    above = self.at_least is None or self.measured >= self.at_least
    below = self.at_most is None or self.measured <= self.at_most
    return above and below and math.isfinite(self.measured)


@dataclasses.dataclass(frozen=True)
class Claim:
  """One statement of a paper, and what was measured of it.

  Attributes:
    text: the statement, in one line.
    headline: whether it is the sentence of the paper's abstract; a paper has one.
    verdict: "shown", "refuted", "unresolved" or "no test"; `compare` says when.
    measured: mean over seeds of the method.
    baseline: mean over seeds of what it was compared with.
    difference: mean over seeds of the paired differences, positive where the method is better.
    interval: 95% t-interval of `difference`.
    margin: by how much the method must be better.
    seeds: number of paired differences.
    paper: the paper's own figure, where it gives one.
    requires: the preconditions.
  """

  text: str
  headline: bool
  verdict: Verdict
  measured: float
  baseline: float
  difference: float
  interval: tuple[float, float]
  margin: float
  seeds: int
  paper: float | str | None = None
  requires: tuple[Precondition, ...] = ()

  @property
  def is_finite(self) -> bool:
    """Whether both sides are numbers in every seed: no method in it diverged."""
    return math.isfinite(self.difference)


def precondition(
  text: str, values: Any, *, at_least: float | None = None, at_most: float | None = None
) -> Precondition:
  """A condition on what was measured, without which a claim is not tested.

  Args:
    text: the condition, in one line.
    values: one number per seed, `[seeds]`, or one number; their mean is what counts.
    at_least: the smallest mean that meets the condition.
    at_most: the largest.

  Returns:
    The `Precondition`, for `compare(..., requires=...)`.

  Raises:
    ValueError: if neither bound is given, or `values` has more than one axis.
  """
  if at_least is None and at_most is None:
    raise ValueError(f"precondition {text!r} needs at_least or at_most.")
  return Precondition(text, float(np.mean(per_seed(values, "values"))), at_least, at_most)


def compare(
  text: str,
  method: Any,
  baseline: Any,
  *,
  better: Literal["higher", "lower"] = "higher",
  margin: float = 0.0,
  headline: bool = False,
  requires: Sequence[Precondition] = (),
  paper: float | str | None = None,
) -> Claim:
  """The claim that a method beats a baseline, decided by the paired differences over seeds.

  With d = method - baseline (its sign reversed where lower is better) and its 95% t-interval, the
  claim is *shown* if the whole interval lies above `margin`, *refuted* if all of it lies below, and
  *unresolved* if it holds `margin`. It is *no test* if a precondition failed or a value is not
  finite. Pairing takes out what a seed does to both sides.

  Args:
    text: the claim, in one line.
    method: one number per seed, `[seeds]`, or one number that no seed changes.
    baseline: likewise; one number may be a threshold.
    better: "higher" or "lower".
    margin: by how much the method must be better, in the quantity's units; negative for "at most
      that much worse". Fix it before the results are known.
    headline: whether this is the sentence of the paper's abstract.
    requires: preconditions, made by `precondition`.
    paper: the paper's own figure.

  Returns:
    A `Claim`.

  Raises:
    ValueError: if `better` is neither word, a side has more than one axis, or the two have
      different numbers of seeds.
  """
  if better not in ("higher", "lower"):
    raise ValueError(f"better must be 'higher' or 'lower', got {better!r}.")
  method, baseline = per_seed(method, "method"), per_seed(baseline, "baseline")
  if method.ndim == baseline.ndim == 1 and baseline.shape != method.shape:
    raise ValueError(
      f"method and baseline must have the same seeds, got shapes {method.shape} and "
      f"{baseline.shape}."
    )
  difference = np.atleast_1d(method - baseline if better == "higher" else baseline - method)
  interval = t_interval(difference)
  if not (all(condition.met for condition in requires) and np.all(np.isfinite(difference))):
    verdict = "no test"
  elif interval[0] > margin:
    verdict = "shown"
  elif interval[1] < margin:
    verdict = "refuted"
  else:
    verdict = "unresolved"
  return Claim(
    text=text,
    headline=headline,
    verdict=verdict,
    measured=float(np.mean(method)),
    baseline=float(np.mean(baseline)),
    difference=float(np.mean(difference)),
    interval=interval,
    margin=float(margin),
    seeds=difference.size,
    paper=paper,
    requires=tuple(requires),
  )


def t_interval(values: Any, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
  """The t-interval of a mean.

  Args:
    values: one number per seed, `[seeds]`.
    confidence: probability that the interval holds the mean.

  Returns:
    Its two ends; the whole line if there is one value alone or a value is not finite.

  Raises:
    ValueError: if `values` is empty or has more than one axis.
  """
  values = np.atleast_1d(per_seed(values, "values"))
  if values.size == 1 or not np.all(np.isfinite(values)):
    return -math.inf, math.inf
  quantile = special.stdtrit(values.size - 1, (1 + confidence) / 2)
  half = quantile * values.std(ddof=1) / math.sqrt(values.size)
  return float(values.mean() - half), float(values.mean() + half)


def check_claims(claims: Sequence[Claim]) -> None:
  """Holds the claims of a paper to the rules.

  Args:
    claims: all claims of one paper.

  Raises:
    ValueError: unless exactly one claim is the headline, there are at most six, and no two have the
      same text.
  """
  headlines = sum(claim.headline for claim in claims)
  if headlines != 1:
    raise ValueError(f"a paper has one headline claim, got {headlines}.")
  if len(claims) > MAX_CLAIMS:
    raise ValueError(f"a paper has at most {MAX_CLAIMS} claims, got {len(claims)}.")
  if len({claim.text for claim in claims}) < len(claims):
    raise ValueError("two claims have the same text.")


def claim_to_stored(claim: Claim) -> dict[str, Any]:
  """A claim as JSON holds it."""
  stored = dataclasses.asdict(claim) | {"interval": list(claim.interval)}
  stored["requires"] = [c._asdict() | {"met": c.met} for c in claim.requires]
  return stored


def claim_from_stored(stored: dict[str, Any]) -> Claim:
  """A claim out of what `claim_to_stored` made; infinities and NaN may have become text."""
  numbers = ("measured", "baseline", "difference", "margin")
  requires = tuple(
    Precondition(c["text"], float(c["measured"]), c["at_least"], c["at_most"])
    for c in stored["requires"]
  )
  interval = tuple(float(end) for end in stored["interval"])
  values = {name: float(stored[name]) for name in numbers}
  return Claim(**{**stored, **values, "interval": interval, "requires": requires})
