"""What sampled errors say of a task: the fitted law, its tail, and how sure that is."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxlab import metrics

PER_TARGET = BIAS, SANKARAN, SHARE = (
  "inductive bias", "by Sankaran's tail", "share of draws that reach it",
)  # fmt: skip
MEAN, DEVIATION = "test error", "its deviation"
DISTANCE, LOW, HIGH = "Kolmogorov-Smirnov distance", "bootstrap, 2.5%", "bootstrap, 97.5%"


@jax.jit
def _tails(targets, law):
  law = [x[..., None] for x in law]
  return metrics.noncentral_chi2_surprisal(targets, *law), metrics.sankaran_tail(targets, *law)


@jax.jit
def _resampled(errors, rows, target):
  laws = jax.vmap(metrics.noncentral_chi2_moments)(errors[rows])
  return metrics.noncentral_chi2_surprisal(target, *laws)


def biases(
  errors: np.ndarray, targets: Sequence[float], *, num_resamples: int
) -> dict[str, np.ndarray]:
  """Bias that a space needs by sampled errors `[seeds, s]`, and what it is read from.

  The bootstrap fits by moments, and is of the first of the wanted errors. Gives quantities
  `[seeds]`, those of every wanted error `[seeds, targets]`, and the `law` `[seeds, 3]`.
  """
  rng, found = np.random.default_rng(0), []
  for sample in np.asarray(errors, np.float64):
    bias = metrics.required_inductive_bias(sample, targets[0])
    rows = rng.integers(len(sample), size=(num_resamples, len(sample)))
    with jax.enable_x64(True):
      law = np.array([bias.df, bias.nc, bias.scale])
      tails = _tails(np.array(targets), law)
      resampled = np.asarray(_resampled(sample, rows, targets[0]))
    low, high = np.percentile(resampled, (2.5, 97.5))
    scores = {BIAS: np.asarray(tails[0]), SANKARAN: np.asarray(tails[1])}
    scores[SHARE] = np.mean(sample[:, None] <= np.array(targets), axis=0)
    scores |= {MEAN: np.mean(sample), DEVIATION: np.std(sample), DISTANCE: bias.ks_distance}
    found.append(scores | {LOW: low, HIGH: high, "law": law})
  return jax.tree.map(lambda *x: np.stack(x), *found)
