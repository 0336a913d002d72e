import jax.numpy as jnp
import numpy as np

from experiments.bayes import lc_pfn, lc_pfn_real


def test_test_data_sets_are_apart():
  curves = {"dataset_ids": np.repeat(np.arange(20), 5)}
  test, rest = lc_pfn_real._split_data_sets(lc_pfn.Config(), curves, np.random.default_rng(0))
  assert not set(curves["dataset_ids"][test]) & set(curves["dataset_ids"][rest])
  assert len(test) == 25 and len(test) + len(rest) == 100


class _Oracle:
  """Knows every curve: logits that put all mass on the bar of the true value."""

  def __init__(self, borders):
    self.borders = borders

  def logits(self, values, observed):
    inside = (values[..., None] >= self.borders[:-1]) & (values[..., None] < self.borders[1:])
    return np.where(inside, 100.0, 0.0) if isinstance(values, np.ndarray) else 100.0 * inside


def test_an_oracle_stops_early_and_loses_nothing():
  rng = np.random.default_rng(0)
  config = lc_pfn.Config(length=10, num_orders=4, test_share=0.5)
  steps = np.arange(1, 11)
  final = rng.uniform(0.3, 0.9, 24)
  values = (final[:, None] * (1 - 0.5 / steps)).astype(np.float32)
  values[:, 8:] = np.nan
  curves = {
    "values": values,
    "lengths": np.full(24, 8),
    "dataset_ids": np.repeat(np.arange(4), 6),
  }
  oracle = _Oracle(jnp.linspace(0.0, 1.0, 400))
  part = lc_pfn_real.judge_stopping(config, oracle, curves, rng)
  row = part["rows"]["PFN"]
  assert row["stopping/steps ratio"] > 1.5
  assert row["stopping/regret"] < 0.003  # The width of a bar.
