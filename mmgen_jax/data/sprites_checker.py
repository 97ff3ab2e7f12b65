"""Reads a sprite's attributes back from a picture, a caption or a sound.

No training: templates drawn by `sprites_render`, compared by cosine. It judges
generated samples, so it says `UNREADABLE` rather than guess: nothing there, a blur
between two shapes, two sprites at once or a caption out of order count for no value.
Its own accuracy on held-out real examples is to be printed beside every score made
with it.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmgen_jax.data import audio, sprites_sound
from mmgen_jax.data import sprites_render as sprites

UNREADABLE = -1
KINDS = ("image", "caption", "sound")
Labels = dict[str, Int[np.ndarray, " n"]]

GRID = 32  # pictures are read at this many pixels a side
BLOCK = 256  # examples compared at a time

# The least cosine with the best template, and how far that has to be above the best one
# of another value. Real examples pass, also blurred by half a pixel under noise of
# 8 / 255; of blends of two sprites few do.
IMAGE_MATCH, IMAGE_MARGIN = 0.965, {"shape": 0.016, "size": 0.10}
SOUND_MATCH = 0.87
SOUND_MARGIN = {"shape": 0.08, "size": 0.20, "colour": 0.10, "quadrant": 0.08}


def check(kind: str, values, level: int) -> Labels:
  """The attributes read, int32 [n] each: a value of `NAMES` or `UNREADABLE`.

  Args:
    kind: "image" (uint8 [n, size, size, 3], size a multiple of 32), "caption" (strings)
      or "sound" (log-mel, uint8 [n, 32, 32]).
    values: n of them, real or generated.
    level: which attributes to look for.

  Raises:
    ValueError: for another kind, dtype or shape.
  """
  sprites.names_of(level)
  if kind == "caption":
    return read_captions(values, level)
  if kind not in KINDS:
    raise ValueError(f"the checker reads {KINDS}, not {kind!r}")
  values = np.asarray(values)
  shape = (GRID, GRID) if kind == "sound" else (*values.shape[1:3], 3)
  if values.dtype != np.uint8 or values.shape[1:] != shape:
    raise ValueError(
      f"{kind} must be uint8 [n, {'32, 32' if kind == 'sound' else 'size, size, 3'}],"
      f" got {values.dtype} {list(values.shape)}"
    )
  read = read_images if kind == "image" else read_sounds
  parts = [
    read(values[first : first + BLOCK], level) for first in range(0, len(values), BLOCK)
  ] or [read_captions([], level)]  # of none, nothing
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_captions(captions: Sequence[str], level: int) -> Labels:
  """Attributes of captions; only those well formed for the level are read."""
  known = _captions(level)
  names = sprites.names_of(level)
  nothing = (UNREADABLE,) * len(names)
  rows = np.array([known.get(text, nothing) for text in captions], np.int32)
  return dict(zip(names, rows.reshape(-1, len(names)).T, strict=True))


@functools.cache
def _captions(level: int) -> dict[str, tuple[int, ...]]:
  names = sprites.names_of(level)
  rows = list(itertools.product(*(range(len(sprites.NAMES[name])) for name in names)))
  columns = dict(zip(names, np.array(rows, np.int32).T, strict=True))
  return dict(zip(sprites.caption(columns, level), rows, strict=True))


def _best(scores, values, margin: float, readable) -> np.ndarray:
  """The value of the best template, int32 [n], where it is clearly the best.

  Args:
    scores: cosines [n, k].
    values: int [k], what each template stands for.
    margin: the least distance to the best template of another value.
    readable: bool [n], whether to look at all.
  """
  kinds = np.unique(values)
  by_value = np.stack([scores[:, values == kind].max(1) for kind in kinds], 1)
  if len(kinds) > 1:
    first, second = -np.partition(-by_value, 1, axis=1)[:, :2].T
    readable = readable & (first - second >= margin)
  return np.where(readable, kinds[by_value.argmax(1)], UNREADABLE).astype(np.int32)


# Pictures


def read_images(images: UInt8[np.ndarray, "n size size 3"], level: int) -> Labels:
  """Attributes of pictures: a sprite's mask against templates, its hue, its place."""
  names = sprites.names_of(level)
  pixels = _shrink(images)
  if level >= 3:
    mask, colour, readable = _mask_by_hue(pixels)
  else:
    mask, readable = _mask_by_light(pixels)
    colour = np.full(len(pixels), UNREADABLE, np.int32)
  window, bank, shapes, sizes = _image_bank(level)
  crop, centre = _crop(mask, window)
  energy = np.sqrt(
    (mask**2).sum((1, 2))
  )  # of all of it: a second sprite counts against
  scores = crop.reshape(len(crop), -1) @ bank / np.maximum(energy, 1e-6)[:, None]
  readable &= scores.max(1) >= IMAGE_MATCH
  out = {"shape": _best(scores, shapes, IMAGE_MARGIN["shape"], readable)}
  if level >= 2:
    out["size"] = _best(scores, sizes, IMAGE_MARGIN["size"], readable)
  if level >= 3:
    out["colour"] = np.where(readable, colour, UNREADABLE).astype(np.int32)
  if level >= 4:
    clear = readable & (np.abs(centre - 0.5) > 0.08).all(1)
    quadrant = 2 * (centre[:, 0] > 0.5) + (centre[:, 1] > 0.5)
    out["quadrant"] = np.where(clear, quadrant, UNREADABLE).astype(np.int32)
  if level >= 5:
    light = np.median(pixels.mean(-1).reshape(len(pixels), -1), axis=1)
    value = np.where(light < 90, 0, np.where(light > 150, 1, UNREADABLE))
    out["background"] = np.where(readable, value, UNREADABLE).astype(np.int32)
  return {name: out[name] for name in names}


def _shrink(images) -> Float[np.ndarray, "n 32 32 3"]:
  """Pictures at `GRID` pixels a side, float32, 0 to 255: means of squares."""
  n, high, wide, _ = images.shape
  if high != wide or high % GRID:
    raise ValueError(
      f"the checker reads square pictures of a multiple of {GRID} pixels,"
      f" got {high} x {wide}"
    )
  parts = high // GRID
  if parts == 1:
    return images.astype(np.float32)
  return images.reshape(n, GRID, parts, GRID, parts, 3).mean((2, 4), dtype=np.float32)


def _soft_mask(amount, full) -> np.ndarray:
  """`amount` as a part of `full` [n], with little set to 0 and much to 1."""
  part = amount / np.maximum(full, 1e-6)[:, None, None]
  return np.clip((part - 0.25) / 0.45, 0, 1)


def _brightest(amount, count: int) -> np.ndarray:
  """The mean of the `count` largest values of each picture, [n]."""
  flat = amount.reshape(len(amount), -1)
  return np.partition(flat, -count, 1)[:, -count:].mean(1)


def _mask_by_light(pixels):
  """Mask [n, h, w] of what is lighter than the background, and whether there is any."""
  grey = pixels.mean(-1)
  grey = grey - np.median(grey.reshape(len(grey), -1), axis=1)[:, None, None]
  full = _brightest(grey, 40)
  return _soft_mask(grey, full), full > 80


def _mask_by_hue(pixels):
  """Mask [n, h, w] of the one saturated hue, its colour [n], whether there is one."""
  chroma = pixels - pixels.mean(-1, keepdims=True)
  behind = np.median(chroma.reshape(len(chroma), -1, 3), axis=1)[:, None, None]
  calm = _smooth(chroma)  # noise has no hue of its own
  strength = np.linalg.norm(calm - behind, axis=-1)
  hue = (calm * (strength**2)[..., None]).sum((1, 2))
  hue /= np.maximum(np.linalg.norm(hue, axis=-1, keepdims=True), 1e-6)
  along = ((calm - behind) * hue[:, None, None]).sum(-1)
  amount = ((chroma - behind) * hue[:, None, None]).sum(-1)
  full = _brightest(amount, 24)
  amount = np.where(along > 0.15 * full[:, None, None], amount, 0)

  wanted = sprites.RGB - sprites.RGB.mean(-1, keepdims=True)
  length = np.linalg.norm(wanted, axis=-1)
  near = hue @ (wanted / length[:, None]).T
  colour = near.argmax(1)
  strong = strength > 0.4 * full[:, None, None]
  other = strong & (along < 0.9 * strength)  # pixels of another hue
  readable = (
    (near.max(1) > 0.98)
    & (full > 0.5 * length[colour])
    & (other.sum((1, 2)) <= 0.1 * strong.sum((1, 2)))
  )
  return _soft_mask(amount, full), colour, readable


def _smooth(values) -> np.ndarray:
  """Means of 3 x 3 pixels, weighted by 1 2 1, of [n, h, w, c]."""
  wide = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  wide = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
  return (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 16


def _crop(mask, window: int):
  """Squares around the masks' centroids, and the centroids (y, x) in picture sides."""
  n = len(mask)
  total = np.maximum(mask.sum((1, 2)), 1e-6)
  place = np.arange(GRID, dtype=np.float32) + 0.5
  y, x = mask.sum(2) @ place / total, mask.sum(1) @ place / total
  rows = np.floor(y).astype(int)[:, None] + np.arange(window)
  columns = np.floor(x).astype(int)[:, None] + np.arange(window)
  padded = np.pad(mask, ((0, 0), (window // 2,) * 2, (window // 2,) * 2))
  crop = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
  return crop, np.stack([y, x], 1) / GRID


@functools.cache
def _image_bank(level: int):
  """Unit masks [window^2, k] around a centroid in the middle pixel; shapes, sizes [k].

  The window is even and its middle pixel is (window / 2, window / 2).
  """
  window = 28 if level < 4 else 20
  around = (-0.4, 0.0, 0.4) if level < 4 else (-0.5, -0.25, 0.0, 0.25, 0.5)
  sizes = (0,) if level == 1 else (0, 1)
  grid = itertools.product(
    range(3),
    sizes,
    (0.96, 1.03, 1.10),  # masks come out a little larger than sprites
    np.deg2rad([-18, -12, -6, 0, 6, 12, 18]),
    (0.965, 1.035),
    around,
    around,
  )
  shape, size, scale, angle, stretch, right, down = np.array(list(grid), np.float32).T
  labels = {"shape": shape.astype(np.int32), "size": size.astype(np.int32)}
  pixel = 1 / window
  masks = sprites.coverage(
    labels["shape"],
    (0.5 + (0.5 + right) * pixel, 0.5 + (0.5 + down) * pixel),
    sprites.side_of(labels, level) * scale * GRID / window,
    angle,
    stretch,
    window,
  ).reshape(len(shape), -1)
  masks /= np.linalg.norm(masks, axis=1, keepdims=True)
  return window, np.ascontiguousarray(masks.T), labels["shape"], labels["size"]


# Sounds


def read_sounds(log_mels: UInt8[np.ndarray, "n 32 32"], level: int) -> Labels:
  """Attributes of log-mel sounds: what stands out of the floor, against templates."""
  names = sprites.names_of(level)
  floor = np.percentile(log_mels.reshape(len(log_mels), -1), 30, axis=1)
  dark, light = floor < 20, (floor > 35) & (floor < 120)
  excess = _excess(log_mels, light if level >= 5 else np.zeros(len(log_mels), bool))
  energy = np.linalg.norm(excess, axis=1)
  out = {name: np.full(len(log_mels), UNREADABLE, np.int32) for name in names}
  for bed, rows in ((False, dark), (True, light)) if level >= 5 else ((False, dark),):
    bank, values = _sound_bank(level, bed)
    scores = excess[rows] @ bank / np.maximum(energy[rows], 1e-6)[:, None]
    heard = (energy[rows] > 25) & (scores.max(1) >= SOUND_MATCH)
    for name in names[:4]:
      out[name][rows] = _best(scores, values[name], SOUND_MARGIN[name], heard)
    if level >= 5:
      out["background"][rows] = np.where(heard, int(bed), UNREADABLE)
  return out


def _excess(log_mels, bed) -> np.ndarray:
  """Height of values above silence or above the bed of noise, float32 [n, 1024].

  Its root, so that the partials tell as much as the note: they are what shape is.
  """
  values = log_mels.astype(np.float32)
  floor = np.where(np.asarray(bed)[:, None], _bed() + 30, 60.0).astype(np.float32)
  return np.sqrt(np.maximum(values - floor[:, None, :], 0).reshape(len(values), -1))


@functools.cache
def _bed() -> np.ndarray:
  """The mean stored value of the bed of noise, float32 [mels]."""
  noise = np.random.Generator(np.random.Philox(key=0)).uniform(-1, 1, (64, 4000))
  return _log_mel(sprites_sound.BED * noise).mean((0, 1), dtype=np.float32)


def _log_mel(wave) -> np.ndarray:
  return audio.log_mel(
    np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16),
    sample_rate_hz=sprites_sound.SAMPLE_RATE_HZ,
    frames=GRID,
    mels=GRID,
  )


@functools.cache
def _sound_bank(level: int, bed: bool):
  """Unit templates [1024, k] and {attribute: int32 [k]}."""
  log_mels, values = _notes(min(level, 4))
  templates = _excess(log_mels, np.full(len(log_mels), bed))
  templates /= np.linalg.norm(templates, axis=1, keepdims=True)
  return np.ascontiguousarray(templates.T), values


@functools.cache
def _notes(level: int):
  """Log-mels, uint8 [k, 32, 32], of every sound with some jitter; attributes [k]."""
  names = sprites.names_of(level)
  grid = itertools.product(
    *(range(len(sprites.NAMES[name])) for name in names),
    (-0.011, 0.0, 0.011),  # onset, seconds
    (-0.006, 0.006),  # note
  )
  table = np.array(list(grid), np.float32).T
  values = {n: v.astype(np.int32) for n, v in zip(names, table, strict=False)}
  k = table.shape[1]
  held_secs, onset_secs, note_hz, cue = sprites_sound.score(values, level)
  wave = sprites_sound.voice(
    values["shape"],
    note_hz=note_hz * (1 + table[-1]),
    held_secs=held_secs,
    onset_secs=onset_secs + table[-2],
    cue=cue,
    phases=np.random.Generator(np.random.Philox(key=1)).random((7, k), np.float32),
  )
  return _log_mel(0.5 * wave), values
