"""Random changes of grids that leave their meaning: one example at a time, by its key."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How far a grid [h w c] in [-1, 1] is changed; zeros leave it as it is.

  On a log-mel the first axis is time, the second pitch: shifts and stretches are another
  moment, speed and voice; gain and tilt another loudness and microphone; blanked bands
  are SpecAugment (Park et al., 2019, https://arxiv.org/abs/1904.08779).

  Attributes:
    shift: largest shift of each axis, in cells.
    scale: largest stretch of each axis, in logarithm.
    gain: standard deviation of an offset of all values that are not at the floor.
    tilt: likewise, of an offset that grows over the second axis from minus itself to
      itself.
    noise: standard deviation of white noise.
    erase: widest band of rows, and of columns, that is blanked.
  """

  shift: tuple[float, float] = (0.0, 0.0)
  scale: tuple[float, float] = (0.0, 0.0)
  gain: float = 0.0
  tilt: float = 0.0
  noise: float = 0.0
  erase: int = 0


def _resampling(key, n: int, shift: float, scale: float) -> Float[Array, "n n"]:
  """Linear interpolation at shifted and stretched positions; rows sum to one."""
  stretch, offset = jax.random.uniform(key, (2,), minval=-1.0)
  middle = (n - 1) / 2
  at = (jnp.arange(n) - middle) * jnp.exp(scale * stretch) + middle + shift * offset
  at = jnp.clip(at, 0, n - 1)[:, None]
  return jnp.maximum(0.0, 1.0 - jnp.abs(at - jnp.arange(n)[None]))


def _blank_band(key, x, axis: int, widest: int):
  first, length = jax.random.uniform(key, (2,))
  first = first * x.shape[axis]
  at = jnp.arange(x.shape[axis])
  band = (at >= first) & (at < first + length * (widest + 1) - 1)
  return jnp.where(jnp.expand_dims(band, (1 - axis, 2)), -1.0, x)


def augment(
  key: Key[Array, ""], x: Float[Array, "h w c"], how: Augmentation
) -> Float[Array, "h w c"]:
  """x, changed at random; `jax.vmap` it over keys and examples."""
  k = jax.random.split(key, 6)
  h, w, _ = x.shape
  if any(how.shift) or any(how.scale):
    rows = _resampling(k[0], h, how.shift[0], how.scale[0])
    columns = _resampling(k[1], w, how.shift[1], how.scale[1])
    x = jnp.einsum("ij,jkc,lk->ilc", rows, x, columns)
  if how.gain or how.tilt:
    gain, tilt = jax.random.normal(k[2], (2,))
    slope = jnp.linspace(-1.0, 1.0, w)[None, :, None]
    louder = x + how.gain * gain + how.tilt * tilt * slope
    x = jnp.where(x > -0.98, louder, x)
  if how.noise:
    x = x + how.noise * jax.random.normal(k[3], x.shape)
  if how.erase:
    x = _blank_band(k[4], _blank_band(k[5], x, 0, how.erase), 1, how.erase)
  return jnp.clip(x, -1.0, 1.0)
