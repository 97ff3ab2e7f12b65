"""Captioned, sounding sprites as pure functions of (seed, index): NumPy only.

In the spirit of CdSprites+ (Sejnova, Vavrecka and Stepanova 2023,
https://arxiv.org/abs/2209.03048), rendered from signed distance functions, with
procedural textures and a sound that carries the same attributes.

Every random number of example i comes from a Philox counter that starts at
(stream, i) under the key `seed`, so an example is the same in whatever block, order or
process it is made.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Int16, UInt8

from mmgen_jax.data import sprites_sound as sound

NAMES: dict[str, tuple[str, ...]] = {  # in the order in which levels add them
  "shape": ("heart", "square", "ellipse"),
  "size": ("small", "big"),
  "colour": ("red", "green", "blue", "yellow", "pink"),
  "quadrant": ("top left", "top right", "bottom left", "bottom right"),
  "background": ("dark", "light"),
}
LEVELS = (1, 2, 3, 4, 5)
RGB = np.array(
  [[224, 44, 38], [44, 186, 78], [54, 98, 236], [240, 204, 44], [246, 112, 196]],
  np.float32,
)
WHITE = np.array([236, 236, 232], np.float32)  # the sprite where no colour is told
PLAIN = np.array([52, 56, 66], np.float32)  # the background where none is told
GROUND = np.array([[42, 46, 58], [198, 200, 204]], np.float32)  # dark, light

_LABELS, _LOOK, _GRAIN, _VOICE, _HISS = range(5)  # random streams of one example


def names_of(level: int) -> tuple[str, ...]:
  """The attributes that level `level` has, in the order of `NAMES`.

  Raises:
    ValueError: if there is no such level.
  """
  if level not in LEVELS:
    raise ValueError(f"sprites have levels {LEVELS[0]} to {LEVELS[-1]}, got {level!r}")
  return tuple(NAMES)[:level]


def _words(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
  """Raw random words, uint64 [n, count]; row i depends on (seed, indices[i]) alone."""
  bits = np.random.Philox(key=seed)
  state = bits.state  # of a new generator: nothing is buffered
  out = np.empty((len(indices), count), np.uint64)
  for row, index in zip(out, np.asarray(indices).tolist(), strict=True):
    state["state"]["counter"] = np.array([0, index, stream, 0], np.uint64)
    bits.state = state
    row[:] = bits.random_raw(count)
  return out


def _uniforms(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
  """Uniform numbers in [0, 1), float32 [count, n]."""
  return ((_words(seed, indices, stream, count) >> 40) * 2.0**-24).T.astype(np.float32)


def _noise(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
  """White noise, uniform in [-1, 1] in 255 steps, float32 [n, count]."""
  words = _words(seed, indices, stream, -(-count // 8))
  return (words.view(np.uint8)[:, :count].astype(np.float32) - 127.5) / 127.5


def attributes(
  seed: int, indices: Int[np.ndarray, " n"], level: int
) -> dict[str, Int[np.ndarray, " n"]]:
  """The attributes, int32 [n] each: independent and uniform; see `NAMES`."""
  draws = _uniforms(seed, indices, _LABELS, len(NAMES))
  return {
    name: (draw * len(NAMES[name])).astype(np.int32)
    for name, draw in zip(names_of(level), draws, strict=False)
  }


def caption(labels: Mapping[str, np.ndarray], level: int) -> list[str]:
  """Captions, e.g. "small red heart at top left on dark" at level 5."""
  names = names_of(level)
  order = [name for name in ("size", "colour", "shape") if name in names]
  rows = zip(*(np.asarray(labels[name]).tolist() for name in names), strict=True)
  out = []
  for row in rows:
    told = {name: NAMES[name][value] for name, value in zip(names, row, strict=True)}
    text = " ".join(told[name] for name in order)
    text += f" at {told['quadrant']}" if "quadrant" in told else ""
    out.append(text + (f" on {told['background']}" if "background" in told else ""))
  return out


def side_of(labels: Mapping[str, np.ndarray], level: int) -> np.ndarray:
  """Sprite sides before jitter, as parts of the picture's: a square of equal area."""
  if level == 1:
    return np.full(len(labels["shape"]), 0.40, np.float32)
  sides = (0.28, 0.48) if level < 4 else (0.18, 0.28)
  return np.array(sides, np.float32)[labels["size"]]


def _heart(x, y):
  """Signed distance to a heart of area 1, centroid at 0 (Quilez, 2D distances)."""
  scale, middle = 0.94483, 0.6566  # square root of the area; height of the centroid
  x, y = np.abs(x) * scale, y * scale + middle
  lobe = np.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - np.float32(np.sqrt(2) / 4)
  foot = 0.5 * np.maximum(x + y, 0)
  edge = np.minimum(x**2 + (y - 1) ** 2, (x - foot) ** 2 + (y - foot) ** 2)
  point = np.sqrt(edge) * np.sign(x - y)
  return np.where(x + y > 1, lobe, point) / scale


def _square(x, y):
  return np.maximum(np.abs(x), np.abs(y)) - 0.5


def _ellipse(x, y):
  """To first order at the edge; axes 1 : 0.58, area 1."""
  a, b = 0.7408, 0.4297
  inner = np.sqrt((x / a) ** 2 + (y / b) ** 2)
  slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2)
  return inner * (inner - 1) / np.maximum(slope, 1e-6)


def _plane(value) -> np.ndarray:
  return np.asarray(value, np.float32)[:, None, None]


_DISTANCE = (_heart, _square, _ellipse)


def coverage(
  shape: Int[np.ndarray, " n"], centre, side, angle, stretch, size: int
) -> Float[np.ndarray, "n size size"]:
  """How much of each pixel a sprite covers, float32 in [0, 1].

  Args:
    shape: index into `NAMES["shape"]`.
    centre: (x, y), float32 [n] each, in picture sides from the top left corner.
    side: float32 [n], side of the square of equal area, in picture sides.
    angle: float32 [n], radians anticlockwise.
    stretch: float32 [n], width is multiplied and height divided by it.
    size: of the picture, pixels.
  """
  grid = (np.arange(size, dtype=np.float32) + 0.5) / size
  out = np.empty((len(shape), size, size), np.float32)
  for kind, distance in enumerate(_DISTANCE):
    rows = np.flatnonzero(shape == kind)
    x = grid[None, None, :] - _plane(centre[0][rows])
    y = _plane(centre[1][rows]) - grid[None, :, None]  # up is positive
    c, s = _plane(np.cos(angle[rows])), _plane(np.sin(angle[rows]))
    wide, high = side[rows] * stretch[rows], side[rows] / stretch[rows]
    u, v = (c * x + s * y) / _plane(wide), (c * y - s * x) / _plane(high)
    out[rows] = np.clip(0.5 - distance(u, v) * _plane(side[rows] * size), 0, 1)
  return out


def _texture(draws, size: int, low: float, high: float) -> np.ndarray:
  """Stripes, checks or waves, float32 [n, size, size] in [-1, 1].

  `draws` are five uniforms [5, n]: kind, angle, period, two phases; periods run from
  `low` to `high` picture sides.
  """
  kind, angle, period, first, second = (draw[:, None, None] for draw in draws)
  grid = (np.arange(size, dtype=np.float32) + 0.5) / size
  x, y = grid[None, None, :], grid[None, :, None]
  turn = np.float32(2 * np.pi)
  rate = turn / (low + (high - low) * period)
  c, s = np.cos(np.pi * angle) * rate, np.sin(np.pi * angle) * rate
  along = np.sin(c * x + s * y + turn * first)
  across = np.sin(c * y - s * x + turn * second)
  mixed = np.where(kind < 2 / 3, along * across, 0.6 * (along + across))
  return np.clip(np.where(kind < 1 / 3, along, mixed), -1, 1)


def render(
  labels: Mapping[str, np.ndarray],
  seed: int,
  indices: Int[np.ndarray, " n"],
  *,
  level: int,
  size: int,
) -> UInt8[np.ndarray, "n size size 3"]:
  """Pictures of sprites with these attributes; (seed, index) sets all the rest."""
  names_of(level)
  draws = _uniforms(seed, indices, _LOOK, 20)
  signed = 2 * draws - 1
  side = side_of(labels, level) * (1 + 0.06 * signed[0])
  if level >= 4:
    quadrant = labels["quadrant"]
    centre = (
      0.27 + 0.46 * (quadrant % 2) + 0.03 * signed[1],
      0.27 + 0.46 * (quadrant // 2) + 0.03 * signed[2],
    )
  else:
    centre = (0.5 + 0.08 * signed[1], 0.5 + 0.08 * signed[2])
  angle, stretch = np.deg2rad(20) * signed[3], 1 + 0.05 * signed[4]
  cover = coverage(labels["shape"], centre, side, angle, stretch, size)

  shade = _plane(1 + 0.06 * signed[5])
  if level >= 3:
    colour = RGB[labels["colour"]]
    shade = shade * (0.86 + 0.14 * _texture(draws[6:11], size, 0.16, 0.26))
  else:
    colour = np.broadcast_to(WHITE, (len(indices), 3))
  ground = _plane(6 * signed[11]) + 3 * _noise(seed, indices, _GRAIN, size**2).reshape(
    -1, size, size
  )
  if level >= 5:
    base = GROUND[labels["background"]]
    ground = ground + 13 * _texture(draws[12:17], size, 0.14, 0.36)
  else:
    base = np.broadcast_to(PLAIN, (len(indices), 3))
  out = np.empty((len(indices), size, size, 3), np.uint8)
  for channel in range(3):
    behind = _plane(base[:, channel]) + ground
    front = _plane(colour[:, channel]) * shade
    out[..., channel] = np.clip(behind + cover * (front - behind) + 0.5, 0, 255)
  return out


def synthesise(
  labels: Mapping[str, np.ndarray],
  seed: int,
  indices: Int[np.ndarray, " n"],
  *,
  level: int,
) -> Int16[np.ndarray, "n samples"]:
  """Half-second 8 kHz sounds; (seed, index) sets what the attributes leave open.

  See `sprites_sound` for what carries which.
  """
  draws = _uniforms(seed, indices, _VOICE, 12)
  signed = 2 * draws[:5] - 1
  held_secs, onset_secs, note_hz, cue = sound.score(labels, level)
  wave = sound.voice(
    labels["shape"],
    note_hz=note_hz * (1 + 0.012 * signed[0]),
    held_secs=held_secs * (1 + 0.06 * signed[1]),
    onset_secs=onset_secs + 0.012 * signed[2],
    cue=cue,
    phases=draws[5:12],
  )
  wave *= (0.5 * 10 ** (0.1 * signed[3]))[:, None]
  if level >= 5:
    light = np.flatnonzero(labels["background"] == 1)
    loud = sound.BED * (1 + 0.15 * signed[4, light])
    wave[light] += loud[:, None] * _noise(seed, indices[light], _HISS, sound.SAMPLES)
  return np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def generate(
  seed: int, indices: Int[np.ndarray, " n"], level: int = 3, size: int = 32
) -> dict:
  """Whole examples: "image" uint8, "wave" int16, "caption" list, "labels" dict."""
  indices = np.asarray(indices)
  images = np.empty((len(indices), size, size, 3), np.uint8)
  waves = np.empty((len(indices), sound.SAMPLES), np.int16)
  labels = attributes(seed, indices, level)
  for first in range(0, len(indices), 128):  # blocks that fit a core's cache
    block = slice(first, first + 128)
    part = {name: value[block] for name, value in labels.items()}
    images[block] = render(part, seed, indices[block], level=level, size=size)
    waves[block] = synthesise(part, seed, indices[block], level=level)
  return {
    "image": images,
    "wave": waves,
    "caption": caption(labels, level),
    "labels": labels,
  }
