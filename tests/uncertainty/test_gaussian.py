import jax
import numpy as np
import pytest

from jaxlab.uncertainty import gaussian

RNG = np.random.default_rng(0)


def test_gaussian_kl():
  mean_p, mean_q = RNG.normal(size=(2, 6)).astype(np.float32)
  p, q = RNG.uniform(0.1, 3, (2, 6)).astype(np.float32)
  p[0] = 1e-12 * q[0]
  kl = jax.jit(gaussian.gaussian_kl)
  expected = 0.5 * (np.log(q / p) + (p + (mean_p - mean_q) ** 2) / q - 1)
  np.testing.assert_allclose(kl(mean_p, p, mean_q, q), expected, rtol=1e-4)
  np.testing.assert_array_equal(kl(mean_p, p, mean_p, p), 0)
  near = q * np.float32(1 + 1e-3)
  small = np.asarray(kl(mean_q, near, mean_q, q))
  np.testing.assert_allclose(small, 0.25e-6, rtol=0.01)
  gradient = jax.jit(jax.grad(lambda v: kl(mean_q, v, mean_q, q).sum()))(q)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match="variance_p"):
    gaussian.gaussian_kl(0.0, 0.0, 0.0, 1.0)
