import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from jaxlab import algorithms, augment

B, T, C, D, CLASSES = 4, 5, 3, 2, 3
J, K = 2, 3
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(B, T, C)).astype(np.float32)
MASK = RNG.random((B, T, C)) < 0.5
MASK[1] = False
LENGTHS = np.array([5, 5, 3, 4])
LABELS = np.array([0, 2, 1, 1])
TIMES = np.broadcast_to(np.linspace(0, 1, T, dtype=np.float32), (B, T))
KEY = jax.random.key(3)
PARAMS = {
  "encoder": RNG.normal(size=(C, D)).astype(np.float32),
  "decoder": RNG.normal(size=(D, C)).astype(np.float32),
  "mask": RNG.normal(size=C).astype(np.float32),
  "classifier": RNG.normal(size=(C, CLASSES)).astype(np.float32),
  "rate": np.full(C, 0.5, np.float32),
  "bias": np.full(C, 0.3, np.float32),
}


def call(params, values, mask, labels, lengths=LENGTHS, num_latents=K, num_samples=J, rate=0.4):
  def encode(filled, times):
    mean = jnp.tanh(filled @ params["encoder"]) + times[..., None]
    return mean, jnp.full_like(mean, 0.5)

  def decode(z, times):
    mean = z @ params["decoder"]
    return mean, 0.2 + jax.nn.softplus(mean)

  def classify(series, times, lengths):
    inside = jnp.arange(T) < (T if lengths is None else lengths[:, None])
    pooled = jnp.sum(jnp.where(inside[..., None], series, 0), axis=-2)
    return jax.nn.log_softmax(pooled @ params["classifier"])

  return algorithms.not_miwae_objective(
    KEY,
    encode,
    decode,
    lambda series: jnp.tanh(series * params["mask"]),
    classify,
    lambda z: -jnp.sum(z**2, axis=(-2, -1)) / 2 - T * D * jnp.log(2 * jnp.pi) / 2,
    values,
    mask,
    TIMES,
    labels,
    num_latents=num_latents,
    num_samples=num_samples,
    dropout_rate=rate,
    rate=params["rate"],
    bias=params["bias"],
    lengths=lengths,
  )


@functools.partial(jax.jit, static_argnames=("num_latents", "num_samples", "rate"))
def gradients(params, values, mask, labels, **kwargs):
  total = lambda x: (lambda y: (y.loss.sum(), y))(call(x, values, mask, labels, **kwargs))  # noqa: E731
  return jax.grad(total, has_aux=True)(params)


predict = jax.jit(lambda values, mask: call(PARAMS, values, mask, None))


@jax.jit
def draws(mask):
  latent_key, value_key, dropout_key = jax.random.split(KEY, 3)
  dropout = augment.observation_dropout(dropout_key, mask, rate=0.4, num_draws=(J, K))
  noise = (
    jax.random.normal(latent_key, (K, B, T, D)),
    jax.random.normal(value_key, (J, K, B, T, C)),
  )
  return *noise, dropout.kept


def slow(values, mask):
  """Loss, class log-probabilities and completions by loops over the draws of the same keys."""
  inside = np.arange(T) < LENGTHS[:, None]
  mask = mask & inside[..., None]
  noise_z, noise_x, kept = map(np.asarray, draws(mask))
  loss, log_p_y, completed = np.zeros(B), np.zeros((J, K, B, CLASSES)), np.zeros((J, K, B, T, C))
  for b in range(B):
    filled = np.where(mask[b], values[b], 0)
    mean_z = np.tanh(filled @ PARAMS["encoder"]) + TIMES[b][:, None]
    for j in range(J):
      ratios = []
      for k in range(K):
        z = mean_z + 0.5 * noise_z[k, b]
        mean = z @ PARAMS["decoder"]
        std = 0.2 + np.log1p(np.exp(mean))
        ratio = stats.norm.logpdf(z).sum() - stats.norm.logpdf(z, mean_z, 0.5).sum()
        ratio += stats.norm.logpdf(filled, mean, std)[mask[b]].sum()
        keep = kept[j, k, b]
        ratio += np.where(keep, np.log(0.6), np.log(0.4))[mask[b]].sum()
        x = mean + std * noise_x[j, k, b]
        for c in range(C):
          last = last_time = 0.0
          for t in range(T):
            if keep[t, c]:
              last, last_time, x[t, c] = filled[t, c], TIMES[b, t], filled[t, c]
            else:
              share = np.exp(-(0.5 * (TIMES[b, t] - last_time) + 0.3))
              x[t, c] = share * last + (1 - share) * x[t, c]
        logits = np.tanh(x * PARAMS["mask"])
        log_p_mask = -np.log1p(np.exp(np.where(keep, -logits, logits)))[inside[b]].sum()
        log_p_y[j, k, b] = log_softmax(x[inside[b]].sum(0) @ PARAMS["classifier"])
        completed[j, k, b] = x
        ratios.append(ratio + log_p_mask + log_p_y[j, k, b, LABELS[b]])
      loss[b] -= (logsumexp(ratios) - np.log(K)) / J
  return loss, log_p_y, completed


@functools.cache
def trained():
  return jax.tree.map(np.asarray, gradients(PARAMS, VALUES, MASK, LABELS))


def test_objective_matches_a_loop():
  _, output = trained()
  loss, log_p_y, completed = slow(VALUES, MASK)
  np.testing.assert_allclose(output.imputed, completed, atol=1e-5)
  np.testing.assert_allclose(output.log_p_y, log_p_y, atol=1e-4)
  np.testing.assert_allclose(output.loss, loss, rtol=1e-4)
  np.testing.assert_allclose(logsumexp(output.log_w, axis=1), 0, atol=1e-5)


def test_gradients_reach_all_parts_and_missing_values_none():
  gradient, output = trained()
  for name, value in gradient.items():
    assert np.isfinite(value).all() and np.abs(value).sum() > 0, name
  assert np.isfinite(output.loss).all()  # Of the second series nothing is observed.
  inside = MASK & (np.arange(T) < LENGTHS[:, None])[..., None]
  spoiled = np.where(inside, VALUES, np.nan)
  for x, y in zip(
    jax.tree.leaves(gradients(PARAMS, spoiled, MASK, LABELS)), jax.tree.leaves(trained())
  ):
    np.testing.assert_array_equal(x, y)


def test_predictions_drop_nothing():
  output = predict(VALUES, MASK)
  inside = MASK & (np.arange(T) < LENGTHS[:, None])[..., None]
  assert (np.asarray(output.loss) == 0).all()
  observed = np.broadcast_to(inside, output.imputed.shape)
  np.testing.assert_array_equal(
    np.asarray(output.imputed)[observed], np.broadcast_to(VALUES, observed.shape)[observed]
  )
  # The same weights for all completions, since they come from the latent draws alone.
  np.testing.assert_array_equal(output.log_w[0], output.log_w[1])


def test_errors():
  for name, value in (("num_latents", 0), ("num_samples", 0)):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
      call(PARAMS, VALUES, MASK, LABELS, **{name: value})
  with pytest.raises(ValueError, match=r"dropout_rate must lie in \[0, 1\), got 1"):
    call(PARAMS, VALUES, MASK, LABELS, rate=1.0)
  with pytest.raises(ValueError, match=r"lengths must lie in \[1, 5\]"):
    call(PARAMS, VALUES, MASK, LABELS, lengths=np.array([0, 5, 5, 5]))
  with pytest.raises(ValueError, match="labels must have shape"):
    call(PARAMS, VALUES, MASK, LABELS[:2])
