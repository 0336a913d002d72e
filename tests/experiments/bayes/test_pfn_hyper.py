import numpy as np

from experiments.bayes import pfn, pfn_hyper


def test_the_hyper_grid_is_made_of_equally_likely_values():
  lengthscales, outputscales, noises = pfn_hyper.hyper_grid(pfn.Config(), shape=(400, 2, 50))
  assert len(lengthscales) == 400 * 2 * 50
  shape, rate = pfn.Config().lengthscale_gamma
  np.testing.assert_allclose(lengthscales.mean(), shape / rate, rtol=0.01)
  shape, rate = pfn.Config().noise_gamma
  np.testing.assert_allclose(noises.mean(), shape / rate, rtol=0.05)
