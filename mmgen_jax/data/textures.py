"""Ten procedural backgrounds, each with its own structure and palette; no files needed.

A texture is a function of a seed: the same pixels for ever, whatever NumPy is used.
"""

import numpy as np
from jaxtyping import Float, UInt8

from mmgen_jax.data.order import uniform

Seed = tuple[int, ...]
Plane = Float[np.ndarray, "h w"]


def _noise(seed: Seed, size: int, cells: int, octaves: int = 4) -> Plane:
  """Value noise in [0, 1] that wraps around: smooth random grids, finer and fainter."""
  total, weight = np.zeros((size, size)), 0.0
  at = np.arange(size) / size
  for octave in range(octaves):
    n = cells * 2**octave
    grid = uniform((*seed, octave), n * n).reshape(n, n)
    low = np.floor(at * n).astype(int) % n
    t = at * n % 1.0
    t = t * t * (3 - 2 * t)
    rows = grid[low] * (1 - t)[:, None] + grid[(low + 1) % n] * t[:, None]
    both = rows[:, low] * (1 - t) + rows[:, (low + 1) % n] * t
    total, weight = total + both * 0.5**octave, weight + 0.5**octave
  return total / weight


def _grid(size: int) -> tuple[Plane, Plane]:
  y, x = np.mgrid[:size, :size] / size
  return x, y


def _stretch(x: Plane) -> Plane:
  return (x - x.min()) / (np.ptp(x) + 1e-9)


def _points(seed: Seed, size: int, count: int) -> tuple[Plane, Plane, np.ndarray]:
  """Distances to the nearest and second nearest of some points, which is nearest."""
  x, y = _grid(size)
  px, py = uniform((*seed, 0), count), uniform((*seed, 1), count)
  dx = (x[..., None] - px + 0.5) % 1.0 - 0.5
  dy = (y[..., None] - py + 0.5) % 1.0 - 0.5
  d = np.hypot(dx, dy)
  near = np.partition(d, 1, axis=-1)
  return near[..., 0], near[..., 1], d.argmin(-1)


def _clouds(seed, size):
  return _stretch(_noise(seed, size, 8))


def _stars(seed, size):
  near, _, which = _points(seed, size, size * size // 300)
  glow = np.exp(-((near * size) ** 2) / (0.6 + 2 * uniform((*seed, 2), 10**4)[which]))
  return np.clip(0.35 * _noise(seed, size, 4) + glow, 0, 1)


def _stripes(seed, size):
  x, y = _grid(size)
  bend = 0.06 * _noise(seed, size, 4, 2)
  return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * np.pi * (14 * x + 8 * y + 20 * bend)))


def _voronoi(seed, size):
  _, _, which = _points(seed, size, 160)
  return uniform((*seed, 2), 160)[which]


def _marble(seed, size):
  x, y = _grid(size)
  veins = np.sin(2 * np.pi * (4 * x + 3 * y + 3 * _noise(seed, size, 4, 5)))
  return 1 - np.abs(veins) ** 0.5


def _rings(seed, size):
  x, y = _grid(size)
  r = np.hypot(x - 0.5, y - 0.5) + 0.04 * _noise(seed, size, 6, 3)
  return (r * 22) % 1.0


def _bricks(seed, size):
  x, y = _grid(size)
  row = np.floor(y * 24).astype(int)
  column = np.floor(x * 10 + 0.5 * (row % 2)).astype(int) % 10
  tone = uniform(seed, 240)[row * 10 + column]
  u, v = (x * 10 + 0.5 * (row % 2)) % 1.0, (y * 24) % 1.0
  mortar = (u < 0.09) | (v < 0.2)
  return np.where(mortar, 1.0, 0.55 * tone)


def _cracks(seed, size):
  near, next_near, _ = _points(seed, size, 220)
  return np.clip((next_near - near) * 26, 0, 1)


def _plaid(seed, size):
  x, y = _grid(size)
  bands = uniform(seed, 64)
  across, down = bands[(x * 32).astype(int)], bands[32 + (y * 32).astype(int)]
  return 0.5 * (across + down)


def _islands(seed, size):
  return np.floor(_stretch(_noise(seed, size, 7, 3)) * 6) / 5


# Colours at heights 0, 1/2 and 1, all far from the grey that is its own negative.
_TEXTURES = {
  "clouds": (_clouds, ("#1b3a6b", "#3f7fc4", "#cfe6ff")),
  "rings": (_rings, ("#4a1f06", "#a8551b", "#e8a34a")),
  "voronoi": (_voronoi, ("#7a1030", "#e0508a", "#ffd0dc")),
  "stars": (_stars, ("#04040c", "#3a2a72", "#fff6c8")),
  "marble": (_marble, ("#e6e8e4", "#b4c2b8", "#2c4a3c")),
  "stripes": (_stripes, ("#083c18", "#2e9a3c", "#d2f06a")),
  "bricks": (_bricks, ("#5a0c08", "#b83820", "#f0dcc8")),
  "cracks": (_cracks, ("#041e22", "#0a8c94", "#b4fff0")),
  "plaid": (_plaid, ("#2a0650", "#7a28c8", "#f0c8ff")),
  "islands": (_islands, ("#06206a", "#e8d82a", "#f4fae0")),
}
NAMES = tuple(_TEXTURES)


def _colours(plane: Plane, palette) -> UInt8[np.ndarray, "h w 3"]:
  stops = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in palette]
  bands = [np.interp(plane, (0, 0.5, 1), band) for band in zip(*stops, strict=True)]
  return np.rint(np.stack(bands, -1)).astype(np.uint8)


def texture(name: str, seed: int, size: int = 256) -> UInt8[np.ndarray, "h w 3"]:
  """One background, square.

  Raises:
    ValueError: if there is no texture of this name.
  """
  if name not in _TEXTURES:
    raise ValueError(f"no texture {name!r}; there are {NAMES}")
  plane, palette = _TEXTURES[name]
  return _colours(plane((seed, NAMES.index(name)), size), palette)
