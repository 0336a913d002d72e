"""Common corruptions of images at five severities, as functions of arrays, for any image size."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_choice, check_range

# Constants of each kind at severities 1 to 5, as published for sides of 32 and of 224 pixels.
_CONSTANTS = {
  "gaussian_noise": ([0.04, 0.06, 0.08, 0.09, 0.1], [0.08, 0.12, 0.18, 0.26, 0.38]),
  "shot_noise": ([500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
  "impulse_noise": ([0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27]),
  "gaussian_blur": ([0.4, 0.6, 0.7, 0.8, 1.0], [1, 2, 3, 4, 6]),
  "defocus_blur": (
    [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
  ),
  "motion_blur": (
    [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
  ),
  "brightness": ([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
  "contrast": ([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
  "fog": (
    [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
  ),
  "pixelate": ([0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
  # In units of the side; the constants for 224 pixels were published for a side of 244.
  "elastic_transform": (
    [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    244
    / 224
    * np.array(
      [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]
    ),
  ),
  "jpeg_compression": ([80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
}

IMAGE_CORRUPTIONS = tuple(_CONSTANTS)


def corrupt_images(
  key: chex.PRNGKey, images: chex.Array, *, kind: str, severity: chex.Numeric
) -> jax.Array:
  """Corrupts images as cameras, weather and compression do.

  The kinds and constants are those of Hendrycks and Dietterich: CIFAR-10-C for a side min(h, w) of
  32 pixels, ImageNet-C for 224. In between, constants are interpolated linearly in the logarithm of
  the side; smaller images have the constants of 32, larger ones those of 224. Lengths of the
  elastic transform are shares of the side. Some kinds differ from the published code, so that they
  run as array programs:

  - gaussian_noise, shot_noise (Poisson counts), impulse_noise (salt and pepper), contrast, and
    brightness (of the value in HSV, also for one channel): as published;
  - gaussian_blur, defocus_blur (a smoothed disc) and motion_blur (half a Gaussian along a
    line, at one angle in ±45° per image): as published, with the image reflected at its edges;
  - fog: octaves of smooth noise in place of the fractal; amplitudes fall by the published factor;
  - pixelate: means over the cells of the published coarse grid;
  - elastic_transform: the published affine jitter and smoothed displacement in one resampling;
  - jpeg_compression: the 8 x 8 cosine transform, quantized by the standard's tables at the
    published quality, without chroma subsampling; unless there are three channels, all are luma.

  The results are not rounded to 8 bits.

  Args:
    key: random key; deterministic kinds ignore it.
    images: values in [0, 1], `[b, h, w, c]`; three channels are red, green and blue.
    kind: one of `IMAGE_CORRUPTIONS`.
    severity: an integer in 1..5, which may be traced; outside, a traced one gives NaN.

  Returns:
    The corrupted images in [0, 1], in the shape and dtype of `images`.

  Raises:
    ValueError: if the kind is unknown (the message lists the names) or `severity` lies outside
      1..5.

  Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
  and Perturbations, ICLR 2019, https://arxiv.org/abs/1903.12261.
  """
  check_choice("kind", kind, _CONSTANTS)
  check_range("severity", severity, "[1, 5]")
  check_arrays(images=(images, "float [b, h, w, c]"), severity=(severity, "int []"))
  return _corrupted(key, jnp.asarray(images), jnp.asarray(severity), kind)


@partial(jax.jit, static_argnames="kind")
def _corrupted(key, images, severity, kind):
  """One program per kind and shape: constants are looked up, so that severities share it."""
  table = _constants(kind, min(images.shape[1:3]))
  constants = jnp.asarray(table, jnp.float32)[jnp.clip(severity, 1, 5) - 1]
  corrupted = _FUNCTIONS[kind](key, as_accumulator(images), constants, table.max(0))
  known = (severity >= 1) & (severity <= 5)
  return jnp.where(known, jnp.clip(corrupted, 0, 1), jnp.nan).astype(images.dtype)


def _constants(kind: str, side: int) -> np.ndarray:
  """The constants for a side, `[5]` or `[5, constants]`."""
  small, large = (np.asarray(rows, np.float64) for rows in _CONSTANTS[kind])
  share = np.clip(math.log(side / 32) / math.log(224 / 32), 0, 1)
  return (1 - share) * small + share * large


def _gaussian_noise(key, x, std, most):
  return x + std * jax.random.normal(key, x.shape, x.dtype)


def _shot_noise(key, x, photons, most):
  if jax.random.key_impl(key) != "threefry2x32":  # The only kind of key that `poisson` takes.
    key = jax.random.wrap_key_data(jax.random.bits(key, (2,)), impl="threefry2x32")
  counts = jax.random.poisson(key, x * photons).astype(x.dtype)
  return jnp.where(jnp.isnan(x), x, counts / photons)


def _impulse_noise(key, x, share, most):
  hit_key, color_key = jax.random.split(key)
  hit = jax.random.bernoulli(hit_key, share, x.shape)
  return jnp.where(hit, jax.random.bernoulli(color_key, 0.5, x.shape).astype(x.dtype), x)


def _gaussian_blur(key, x, std, most):
  return _separable(x, *(_gaussian_matrix(n, std, 4 * most) for n in x.shape[1:3]))


def _separable(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns)


def _gaussian_matrix(size: int, std: jax.Array, reach: float) -> jax.Array:
  """Matrix that blurs one axis, reflected at its ends, `[size, size]`."""
  reach = math.ceil(reach)
  source = jnp.arange(-reach, size + reach)
  distance = jnp.arange(size)[:, None] - source[None]
  weights = jnp.exp(-jnp.square(distance / jnp.maximum(std, 1e-3)) / 2)
  weights = jnp.where(jnp.abs(distance) <= reach, weights, 0)
  weights /= weights.sum(1, keepdims=True)
  folded = source % (2 * size)
  folded = jnp.minimum(folded, 2 * size - 1 - folded)
  return weights @ jax.nn.one_hot(folded, size, dtype=weights.dtype)


def _defocus_blur(key, x, constants, most):
  radius, alias = constants
  reach = math.ceil(most[0]) + 2
  offsets = jnp.arange(-reach, reach + 1)
  disc = jnp.square(offsets)[None] + jnp.square(offsets)[:, None] <= jnp.square(radius)
  smooth = _gaussian_matrix(offsets.size, alias, 2)
  kernel = smooth @ disc.astype(x.dtype) @ smooth.T
  return _filter(x, jnp.broadcast_to(kernel / kernel.sum(), (x.shape[0], *kernel.shape)))


def _motion_blur(key, x, constants, most):
  radius, std = constants
  reach = math.ceil(2 * most[0])
  steps = jnp.arange(reach + 1)
  weights = jnp.where(steps <= 2 * radius, jnp.exp(-jnp.square(steps / std) / 2), 0)
  angle = jax.random.uniform(key, (x.shape[0], 1), x.dtype, -jnp.pi / 4, jnp.pi / 4)

  def spread(position):
    """Shares of the two pixels around each step, `[b, steps, pixels]`."""
    distance = position[..., None] - jnp.arange(-reach, reach + 1)[None, None]
    return jnp.maximum(1 - jnp.abs(distance), 0)

  rows, columns = (spread(steps[None] * side(angle)) for side in (jnp.sin, jnp.cos))
  kernel = jnp.einsum("s,bsy,bsx->byx", weights / weights.sum(), rows, columns)
  return _filter(x, kernel)


def _filter(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves each image, reflected at its edges, with its kernel `[b, 2r + 1, 2r + 1]`."""
  reach = kernel.shape[1] // 2
  padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="symmetric")
  size = padded.shape[1:3]
  product = jnp.fft.rfft2(padded, axes=(1, 2)) * jnp.fft.rfft2(kernel, size)[..., None]
  return jnp.fft.irfft2(product, size, axes=(1, 2))[:, 2 * reach :, 2 * reach :].astype(x.dtype)


def _brightness(key, x, constant, most):
  value = x.max(-1, keepdims=True)
  brighter = jnp.clip(value + constant, 0, 1)
  return jnp.where(value > 0, x / jnp.where(value > 0, value, 1) * brighter, brighter)


def _contrast(key, x, factor, most):
  mean = x.mean((1, 2), keepdims=True)
  return mean + factor * (x - mean)


def _fog(key, x, constants, most):
  strength, decay = constants
  octaves = math.ceil(math.log2(max(x.shape[1:3])))
  haze = 0.0
  for i, octave_key in enumerate(jax.random.split(key, octaves + 1)):
    noise = jax.random.uniform(octave_key, (x.shape[0], 2**i + 1, 2**i + 1, 1), x.dtype)
    matrices = (_linear_matrix(n, 2**i + 1) for n in x.shape[1:3])
    haze += decay ** (-i) * _separable(noise, *matrices)
  low, high = haze.min((1, 2), keepdims=True), haze.max((1, 2), keepdims=True)
  haze = (haze - low) / jnp.maximum(high - low, 1e-6)
  brightest = x.max((1, 2, 3), keepdims=True)
  return (x + strength * haze) * brightest / (brightest + strength)


def _linear_matrix(size: int, knots: int) -> jax.Array:
  """Matrix that interpolates linearly between evenly spaced knots, `[size, knots]`."""
  position = jnp.linspace(0, knots - 1, size)
  return jnp.maximum(1 - jnp.abs(position[:, None] - jnp.arange(knots)[None]), 0)


def _pixelate(key, x, share, most):
  def cell_means(size):
    cells = jnp.maximum(jnp.floor(size * share), 1)
    cell = jnp.floor((jnp.arange(size) + 0.5) * cells / size)
    same = (cell[:, None] == cell[None]).astype(x.dtype)
    return same / same.sum(1, keepdims=True)

  return _separable(x, *map(cell_means, x.shape[1:3]))


def _elastic_transform(key, x, constants, most):
  rows, height, width, _ = x.shape
  side = min(height, width)
  strength, std, jitter = side * constants
  field_key, corner_key = jax.random.split(key)
  noise = jax.random.uniform(field_key, (rows, height, width, 2), x.dtype, -1.0, 1.0)
  field = strength * _separable(
    noise, *(_gaussian_matrix(n, std, 3 * side * most[1]) for n in (height, width))
  )
  # Three corners of a square around the center move; the affine map follows them.
  corners = jax.random.uniform(corner_key, (rows, 3, 1, 1, 2), x.dtype, -jitter, jitter)
  square = 2 * max(side // 3, 1)
  down = ((jnp.arange(height) - height // 2) / square)[None, :, None, None]
  across = ((jnp.arange(width) - width // 2) / square)[None, None, :, None]
  plane = (0.5 + down) * corners[:, 0] + (across - down) * corners[:, 1]
  plane += (0.5 - across) * corners[:, 2]
  grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
  return jax.vmap(_resample)(x, grid[None] + plane + field)


def _resample(image: jax.Array, positions: jax.Array) -> jax.Array:
  """The image `[h, w, c]` at `positions` `[h, w, 2]`, reflected at its edges."""
  coordinates = tuple(jnp.moveaxis(positions, -1, 0))

  def channel(plane):
    return jax.scipy.ndimage.map_coordinates(plane, coordinates, order=1, mode="reflect")

  return jax.vmap(channel, -1, -1)(image)


# ITU-T T.81, annex K: quantization of luma and chroma at quality 50.
_LUMA = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ]
)
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array(
  [
    [0.299, 0.587, 0.114],
    [-0.168735892, -0.331264108, 0.5],
    [0.5, -0.418687589, -0.081312411],
  ]
)
_CENTER = np.array([128, 0, 0]).reshape(1, 1, 1, 3)
_FREQUENCY, _PLACE = np.arange(8)[:, None], np.arange(8)
_COSINES = np.cos(np.pi * (2 * _PLACE + 1) * _FREQUENCY / 16) * np.where(
  _FREQUENCY == 0, math.sqrt(1 / 8), 0.5
)


def _jpeg_compression(key, x, quality, most):
  rows, height, width, channels = x.shape
  color = channels == 3
  levels = 255 * x
  # Luma is centered; chroma already is.
  levels = levels @ _TO_YCC.T - _CENTER if color else levels - 128
  pads = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
  padded = jnp.pad(levels, pads, mode="edge")
  blocks = padded.reshape(rows, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8, channels)
  scale = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
  tables = np.stack([_LUMA, _CHROMA, _CHROMA] if color else [_LUMA] * channels, -1)
  steps = jnp.clip(jnp.floor((tables * jnp.floor(scale) + 50) / 100), 1, 255)
  waves = jnp.einsum("uy,bnymxc,vx->bnumvc", _COSINES, blocks, _COSINES)
  steps = steps[None, None, :, None]
  waves = steps * jnp.round(waves / steps)
  restored = jnp.einsum("uy,bnumvc,vx->bnymxc", _COSINES, waves, _COSINES)
  restored = restored.reshape(padded.shape)[:, :height, :width]
  if color:
    restored = (restored + _CENTER) @ np.linalg.inv(_TO_YCC).T
  else:
    restored = restored + 128
  return restored / 255


_FUNCTIONS = {
  "gaussian_noise": _gaussian_noise,
  "shot_noise": _shot_noise,
  "impulse_noise": _impulse_noise,
  "gaussian_blur": _gaussian_blur,
  "defocus_blur": _defocus_blur,
  "motion_blur": _motion_blur,
  "brightness": _brightness,
  "contrast": _contrast,
  "fog": _fog,
  "pixelate": _pixelate,
  "elastic_transform": _elastic_transform,
  "jpeg_compression": _jpeg_compression,
}
