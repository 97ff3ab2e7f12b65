"""Augmentation of what a discriminator sees, real and generated alike, with gradients.

Every operation is a function of (key, one grid [h w c] in [-1, 1], strength) and is
applied with a probability of `strength`; at 0 a pipe is the identity. Shapes are static:
what a transform might reach beyond the border is padded for the worst case. All are
affine in the pixels, so R1 and R2 reach through them to the picture before.

An augmentation does not leak into what is generated as long as the distribution of
augmented pictures tells that of the pictures: operations that are skipped often enough
do (a random turn by 90 degrees, if it is skipped now and then; not if it is always
done). Karras et al., "Training Generative Adversarial Networks with Limited Data", 2020,
section 2.2 and appendix C, https://arxiv.org/abs/2006.06676: safe up to a strength of
0.8 or so. DiffAugment's own form always applies its operations, whose parameters are
mild: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", 2020,
https://arxiv.org/abs/2006.10738.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Grid = Float[Array, "h w c"]
Pipe = Callable[[Key[Array, ""], Grid, Float[Array, ""] | float], Grid]

_DIAGONAL = np.full(3, 1 / math.sqrt(3), np.float32)  # of grey, in RGB
SYM6 = np.array(  # low-pass filter of the wavelet "symlet 6": orthonormal
  [
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057),
    *(-0.048311742585633, 0.4910559419267466, 0.787641141030194),
    *(0.3379294217276218, -0.07263752278646252, -0.021060292512300564),
    *(0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
  ]
)
_CENTRE = float(np.arange(12) @ SYM6 / SYM6.sum())  # where its mass is
_TAP, _AROUND = round(_CENTRE - 0.5), 3  # of a pixel itself; pixels that 12 taps reach


def shift(x: Grid, by: Int[Array, "2"], most: tuple[int, int], mode: str) -> Grid:
  """The grid moved `by` (down, right) <= `most`; outside as `np.pad`'s `mode`."""
  padded = jnp.pad(x, [(most[0],) * 2, (most[1],) * 2, (0, 0)], mode=mode)
  start = [most[0] - by[0], most[1] - by[1], 0]
  return jax.lax.dynamic_slice(padded, start, x.shape)


def cutout(x: Grid, centre: Float[Array, "2"]) -> Grid:
  """Zero (grey) in a box of half the height and width; `centre` in [0, 1]."""
  inside = [
    jnp.abs((jnp.arange(n) + 0.5) / n - c) < 0.25
    for n, c in zip(x.shape[:2], centre, strict=True)
  ]
  return jnp.where((inside[0][:, None] & inside[1])[..., None], 0.0, x)


def colour_matrix(brightness, contrast, flip, angle, saturation) -> Float[Array, "3 4"]:
  """[A | b] of the colours' x -> A x + b; (0, 1, 0, 0, 1) changes nothing.

  In this order: all channels plus `brightness`, times `contrast`; the luma mirrored
  where `flip`; hues turned by `angle` (radians) around grey; what is not grey times
  `saturation`. Karras et al., 2020, appendix B.
  """
  grey = jnp.asarray(np.outer(_DIAGONAL, _DIAGONAL))
  x, y, z = _DIAGONAL
  cross = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
  a = contrast * (jnp.eye(3) - 2.0 * flip * grey)
  turn = jnp.cos(angle) * (jnp.eye(3) - grey) + jnp.sin(angle) * cross + grey
  a = (grey + saturation * (jnp.eye(3) - grey)) @ turn @ a
  return jnp.concatenate([a, a @ jnp.full((3, 1), brightness)], 1)


def recolour(x: Grid, matrix: Float[Array, "3 4"]) -> Grid:
  """Colours through `colour_matrix`; grids that are not RGB count as grey ones."""
  a, b = matrix[:, :3], matrix[:, 3]
  return x @ a.T + b if x.shape[-1] == 3 else x * a.sum() / 3 + b.mean()


def source(scale, before, stretch, after, moved) -> Float[Array, "2 3"]:
  """Where a point (down, right from the centre) of a warped picture comes from.

  The picture was enlarged by `scale`, turned by `before`, stretched by `stretch` across
  and its inverse upright, turned by `after`, then moved by `moved` pixels.
  """

  def turn(angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])

  back = turn(-before) @ jnp.diag(jnp.array([stretch, 1 / stretch])) @ turn(-after)
  back = back / scale
  return jnp.concatenate([back, -(back @ moved)[:, None]], 1)


@functools.cache
def _axis(n: int, factor: int) -> tuple[np.ndarray, np.ndarray, int, float]:
  """Resampling of one axis: up [factor * padded, n], down [n, factor * around], offset.

  Reflection reaches n - 1 pixels beyond the border, the most that there is. A factor of
  2 filters by SYM6; `down` undoes `up`, since the filter is orthonormal.
  """
  margin = n - 1
  pad = np.eye(n)[np.pad(np.arange(n), margin, mode="reflect")]
  if factor == 1:
    return pad, np.eye(n), 0, 0.0

  def filtered(pixels: int) -> np.ndarray:
    up = np.zeros((2 * pixels, pixels))
    for i in range(pixels):
      for tap, h in enumerate(SYM6):
        if 0 <= 2 * i + tap - _TAP < 2 * pixels:
          up[2 * i + tap - _TAP, i] = h * math.sqrt(2)
    return up

  down = filtered(n + 2 * _AROUND).T[_AROUND:-_AROUND] / 2
  return filtered(len(pad)) @ pad, down, _AROUND, _CENTRE - _TAP


def warp(x: Grid, back: Float[Array, "2 3"], supersampling: int = 2) -> Grid:
  """The grid with every point taken from where `back` (of `source`) says, reflected.

  Bilinear between points of a grid of `supersampling` (1 or 2) times the density; at 2,
  up and down by the wavelet's filter, which does not alias (Karras et al., 2020).
  """
  axes = [_axis(n, supersampling) for n in x.shape[:2]]
  ups = [axis[0].astype(np.float32) for axis in axes]
  downs = [axis[1].astype(np.float32) for axis in axes]
  dense = jnp.einsum("ih,hwc,jw->ijc", ups[0], x, ups[1])
  _, _, around, offset = axes[0]
  middles = [(n - 1) / 2 for n in x.shape[:2]]
  at = [
    (np.arange(down.shape[1]) - offset) / supersampling - around - middle
    for down, middle in zip(downs, middles, strict=True)
  ]
  points = jnp.stack(jnp.meshgrid(*map(np.float32, at), indexing="ij"))
  points = jnp.einsum("ab,bij->aij", back[:, :2], points) + back[:, 2, None, None]
  rows = [
    supersampling * (p + middle + n - 1) + offset
    for p, middle, n in zip(points, middles, x.shape[:2], strict=True)
  ]
  take = lambda c: jax.scipy.ndimage.map_coordinates(c, rows, 1, mode="nearest")
  moved = jax.vmap(take, -1, -1)(dense)
  return jnp.einsum("hi,ijc,wj->hwc", downs[0], moved, downs[1])


def _either(key, p, value, otherwise):
  """`value` with probability p."""
  return jnp.where(jax.random.bernoulli(key, p), value, otherwise)


def _blit(key, x, p):
  """A mirror image, turns by 90 degrees, whole-pixel shifts up to an eighth."""
  k = jax.random.split(key, 6)
  x = jnp.where(jax.random.bernoulli(k[0], p / 2), x[:, ::-1], x)
  square = x.shape[0] == x.shape[1]
  turns = [jnp.rot90(x, i if square else 2 * i) for i in range(4 if square else 2)]
  x = jnp.stack(turns)[_either(k[1], p, jax.random.randint(k[2], (), 0, len(turns)), 0)]
  size = jnp.array(x.shape[:2])
  by = jnp.rint(jax.random.uniform(k[3], (2,), minval=-1, maxval=1) / 8 * size)
  by = _either(k[4], p, by.astype(jnp.int32), 0)
  return shift(x, by, (x.shape[0] // 8 + 1, x.shape[1] // 8 + 1), "reflect")


def _geometry(key, x, p, supersampling):
  """Scales, turns around any angle, stretches, shifts by fractions of a pixel."""
  k, normal = jax.random.split(key, 10), jax.random.normal
  rotate = 1.0 - jnp.sqrt(1.0 - jnp.asarray(p))  # of the two, one is made with p
  angle = lambda key: jax.random.uniform(key, minval=-math.pi, maxval=math.pi)
  scale = _either(k[0], p, jnp.exp2(0.2 * normal(k[1])), 1.0)
  stretch = _either(k[2], p, jnp.exp2(0.2 * normal(k[3])), 1.0)
  before = _either(k[4], rotate, angle(k[5]), 0.0)
  after = _either(k[6], rotate, angle(k[7]), 0.0)
  moved = normal(k[8], (2,)) / 8 * jnp.array(x.shape[:2])
  moved = _either(k[9], p, moved, 0.0)
  return warp(x, source(scale, before, stretch, after, moved), supersampling)


def _colour(key, x, p):
  """Brightness, contrast, luma, hue, saturation: Karras et al., 2020, appendix B."""
  k, normal = jax.random.split(key, 9), jax.random.normal
  angle = jax.random.uniform(k[5], minval=-math.pi, maxval=math.pi)
  matrix = colour_matrix(
    _either(k[0], p, 0.2 * normal(k[1]), 0.0),
    _either(k[2], p, jnp.exp2(0.5 * normal(k[3])), 1.0),
    jax.random.bernoulli(k[4], p / 2).astype(jnp.float32),
    _either(k[6], p, angle, 0.0),
    _either(k[7], p, jnp.exp2(normal(k[8])), 1.0),
  )
  return recolour(x, matrix)


def _noise(key, x, p):
  """Gaussian, its standard deviation |N(0, 0.1^2)|: Karras et al., 2020, appendix B.

  Where real pictures have grain of their own, it hides how a generator's differs.
  """
  chosen, how_much, key = jax.random.split(key, 3)
  sigma = jnp.abs(0.1 * jax.random.normal(how_much))
  return _either(chosen, p, x + sigma * jax.random.normal(key, x.shape), x)


def _cutout(key, x, p):
  chosen, centre = jax.random.split(key)
  return _either(chosen, p, cutout(x, jax.random.uniform(centre, (2,))), x)


def _mild_colour(key, x, p):
  """Brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5: Zhao et al., 2020."""
  k = jax.random.split(key, 6)
  x = _either(k[0], p, x + jax.random.uniform(k[1]) - 0.5, x)
  grey = x.mean(-1, keepdims=True)
  x = _either(k[2], p, grey + 2 * jax.random.uniform(k[3]) * (x - grey), x)
  return _either(
    k[4], p, x.mean() + (0.5 + jax.random.uniform(k[5])) * (x - x.mean()), x
  )


def _translation(key, x, p):
  """Whole-pixel shifts up to an eighth, zeros outside: Zhao et al., 2020."""
  chosen, key = jax.random.split(key)
  most = (round(x.shape[0] / 8), round(x.shape[1] / 8))
  by = jax.random.randint(key, (2,), -jnp.array(most), jnp.array(most) + 1)
  return shift(x, _either(chosen, p, by, 0), most, "constant")


def _mirror(key, x, p):
  return jnp.where(jax.random.bernoulli(key, p / 2), x[:, ::-1], x)


PIPES: dict[str, dict[str, Callable]] = {  # in the order in which they are applied
  "ada": {
    "blit": _blit,
    "geometry": _geometry,
    "colour": _colour,
    "noise": _noise,
    "cutout": _cutout,
  },
  "diffaugment": {
    "mirror": _mirror,
    "colour": _mild_colour,
    "translation": _translation,
    "noise": _noise,
    "cutout": _cutout,
  },
}


def make_pipe(kind: str, ops: Mapping[str, float], supersampling: int = 2) -> Pipe:
  """`pipe(key, x, strength) -> x` of one example.

  Args:
    kind: "ada" or "diffaugment".
    ops: {operation: what `strength` is multiplied by for it}; see `PIPES`. R3GAN's for
      CIFAR-10: blit, geometry and cutout 1, colour 0.5.
    supersampling: of "geometry": 2 as published, 1 for a plain bilinear warp, which
      costs a quarter and blurs.

  Raises:
    ValueError: for an unknown kind or operation, or a supersampling that is not 1 or 2.
  """
  if kind not in PIPES:
    raise ValueError(f"augmentation must be one of {sorted(PIPES)}, got {kind!r}")
  if unknown := sorted(set(ops) - set(PIPES[kind])):
    raise ValueError(f"{kind} has no operation {unknown}; it has {list(PIPES[kind])}")
  if supersampling not in (1, 2):
    raise ValueError(f"supersampling must be 1 or 2, got {supersampling}")

  def pipe(key, x, strength):
    for i, (name, op) in enumerate(PIPES[kind].items()):
      if name in ops:
        more = (supersampling,) if name == "geometry" else ()
        x = op(jax.random.fold_in(key, i), x, strength * ops[name], *more)
    return x

  return pipe


def adapt(
  now: Mapping[str, Array],
  sign: Float[Array, ""],
  step: Int[Array, ""],
  *,
  target: float,
  batch_size: int,
  images: float,
  interval: int = 4,
) -> dict[str, Array]:
  """The adaptive strength after an update: up where D is too sure of real examples.

  Every `interval` updates the mean of sign D(x) since the last time is held against
  `target`, and the strength moves by what takes it from 0 to 1 in `images` images.
  Karras et al., 2020, section 3.1.

  Args:
    now: {"strength", "signs": their sum since the last change}.
    sign: mean over real examples of this update; of D(x) - D(G(z)) for a relativistic
      loss, whose logits have no zero.
    step: updates before this one.
    target: 0.6 in the paper.
    batch_size: of an update.
    images: 500,000 in the paper.
    interval: in updates.
  """
  signs, due = now["signs"] + sign, (step + 1) % interval == 0
  change = jnp.sign(signs / interval - target) * (batch_size * interval / images)
  strength = jnp.where(due, now["strength"] + change, now["strength"])
  return {
    "strength": jnp.clip(strength, 0.0, 1.0),
    "signs": jnp.where(due, 0.0, signs),
  }
