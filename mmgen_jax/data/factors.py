"""Factors: binary sprites of five known factors, every combination of them once.

The construction of dSprites (Matthey et al., "dSprites: Disentanglement testing Sprites
dataset", 2017, https://github.com/google-deepmind/dsprites-dataset): 3 shapes, 6 scales,
40 orientations and 32 x 32 places make 737,280 pictures, here drawn from the index
alone. The pixels are not dSprites' own, so numbers on them are not "dSprites".
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from mmgen_jax.data import modality, read, sprites_render
from mmgen_jax.data.examples import Column, Examples, Spec

SHAPES = ("square", "ellipse", "heart")
SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
TOTAL = 737_280
PIXELS = 64
LARGEST = 0.3  # side at scale 1 of the square of equal area, in picture sides
VERSION = 1  # of what `load` makes of the stored records
BLOCK = 256  # pictures drawn at a time


def factors_of(indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 5"]:
  """The factors of pictures, in the order of `SIZES`; the last one varies fastest.

  Raises:
    ValueError: if there is no such index.
  """
  indices = np.asarray(indices)
  if indices.size and not (0 <= indices.min() and indices.max() < TOTAL):
    raise ValueError(f"indices go from 0 to {TOTAL - 1}, got {indices}")
  return np.stack(np.unravel_index(indices, tuple(SIZES.values())), 1).astype(np.int32)


def index_of(factors: Int[np.ndarray, "n 5"]) -> Int[np.ndarray, " n"]:
  """The inverse of `factors_of`."""
  columns = tuple(np.asarray(factors).T)
  return np.asarray(np.ravel_multi_index(columns, tuple(SIZES.values())))


def render(factors: Int[np.ndarray, "n 5"]) -> UInt8[np.ndarray, "n 64 64 1"]:
  """Pictures, 0 or 255, of these factors.

  Scales are 0.5 to 1, orientations 40 of the whole turn, places 0.25 to 0.75 of the
  picture: no sprite touches the border. A square looks the same after a quarter of a
  turn and an ellipse after half of one, as in dSprites.
  """
  factors = np.asarray(factors)
  drawn_as = [sprites_render.NAMES["shape"].index(name) for name in SHAPES]
  out = np.empty((len(factors), PIXELS, PIXELS, 1), np.uint8)
  for first in range(0, len(factors), BLOCK):
    shape, scale, turn, x, y = factors[first : first + BLOCK].T
    part = lambda value, name: (value / (SIZES[name] - 1)).astype(np.float32)
    cover = sprites_render.coverage(
      np.array(drawn_as)[shape],
      (0.25 + 0.5 * part(x, "x"), 0.25 + 0.5 * part(y, "y")),
      LARGEST * (0.5 + 0.5 * part(scale, "scale")),
      (2 * np.pi * turn / SIZES["orientation"]).astype(np.float32),
      np.ones(len(shape), np.float32),
      PIXELS,
    )
    out[first : first + BLOCK, ..., 0] = np.where(cover >= 0.5, 255, 0)
  return out


@functools.cache
def order(seed: int) -> Int[np.ndarray, " n"]:
  """The random order of all indices that the splits are parts of."""
  return np.random.default_rng(seed).permutation(TOTAL).astype(np.int32)


def spec(
  *,
  seed: int = 0,
  train_examples: int = 60_000,
  validation_examples: int = 3_000,
  test_examples: int = 3_000,
) -> Spec:
  """Image 64 x 64 x 1, Bernoulli; one label per factor.

  The splits are disjoint parts of one random order of all combinations. Published
  protocols train on all 737,280 and have no test split; metrics may `render` any.

  Args:
    seed: of the order.
    train_examples: how many; the first ones are the same however many there are.
    validation_examples: how many.
    test_examples: how many.

  Raises:
    ValueError: if there are not so many.
  """
  counts = (train_examples, validation_examples, test_examples)
  if min(counts) < 1 or sum(counts) > TOTAL:
    raise ValueError(
      f"splits have at least 1 example each, and {TOTAL} in all, got {counts}"
    )
  if seed < 0:
    raise ValueError(f"the seed of factors is at least 0, got {seed}")
  names = {name: tuple(map(str, range(size))) for name, size in SIZES.items()}
  image = modality.image(PIXELS, PIXELS, 1, likelihood="bernoulli")
  return Spec("factors", {"image": image}, names | {"shape": SHAPES})


def load(
  split: str,
  data_dir,
  *,
  seed: int = 0,
  train_examples: int = 60_000,
  validation_examples: int = 3_000,
  test_examples: int = 3_000,
) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    ValueError: if there is no such split, or an option is none that `spec` takes.
  """
  counts = {
    "test": test_examples,
    "validation": validation_examples,
    "train": train_examples,
  }
  about = spec(seed=seed, **{f"{name}_examples": n for name, n in counts.items()})
  about.check_split(split)
  # Test first, train last, so that the training set's size moves no other split.
  starts = {"test": 0, "validation": test_examples}
  starts["train"] = test_examples + validation_examples
  ranges = {name: (starts[name], count) for name, count in counts.items()}
  what = {"name": "factors", "version": VERSION, "seed": seed}
  what |= {"examples": list(ranges[split])}

  def open_builder():
    from mmgen_jax.data import factors_builder  # imports TFDS

    config = factors_builder.config(seed=seed, ranges=ranges)
    return read.prepare(factors_builder.Factors, data_dir, config=config)

  columns = read.read(open_builder, split, _decode, what=what, data_dir=data_dir)
  factors = factors_of(np.asarray(columns["index"]))
  return Examples(
    "factors",
    split,
    about.modalities,
    dict(zip(SIZES, factors.T.copy(), strict=True)),
    about.label_names,
    {"image": Column(columns["image"])},
    read.fingerprint(**what, split=split),
  )


def _decode(records) -> dict[str, np.ndarray]:
  pictures = [read.image_array(record["image"], 1) for record in records]
  index = np.array([record["index"] for record in records], np.int32)
  return {"image": np.stack(pictures), "index": index}
