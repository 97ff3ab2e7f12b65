"""Poly digits: the same digit, written by other hands, before 2 to 10 backgrounds.

The construction of PolyMNIST (Sutter, Daunhawer and Vogt, 2021,
https://arxiv.org/abs/2105.02470): in each modality a random MNIST image of the digit,
cut out at 128 and inverted on a random crop of the modality's one background. Here the
backgrounds are procedural (`data.textures`), or a folder of pictures of your own, so
figures are not comparable with PolyMNIST's. Modalities share the digit and nothing else.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from mmgen_jax.data import images, modality, order, read, textures
from mmgen_jax.data.examples import Column, Examples, Spec

SIDE = 28
MOST = 10  # modalities
VERSION = 1  # of what `load` makes of the stored records
_MNIST = {"train": "train[:55000]", "validation": "train[55000:]", "test": "test"}
_COUNTS = {"train": 55_000, "validation": 5000, "test": 10_000}
DIGITS = tuple("0123456789")


def spec(
  *,
  backgrounds: int = 5,
  seed: int = 0,
  photos: str = "",
  likelihood: str = "laplace",
  train_examples: int = 55_000,
  validation_examples: int = 5000,
  test_examples: int = 10_000,
) -> Spec:
  """Images m0, m1, ... of 28 x 28 x 3; the digit.

  Args:
    backgrounds: how many there are, and so modalities: 2 to 10.
    seed: of backgrounds, pairs and crops.
    photos: a folder of at least so many pictures; the first ones by sorted name are the
      backgrounds. "": procedural ones.
    likelihood: of the pictures; Laplace in the literature.
    train_examples: how many; the first ones are the same however many there are.
    validation_examples: how many.
    test_examples: how many.

  Raises:
    ValueError: if an option is none of these.
  """
  del photos
  if not 2 <= backgrounds <= MOST:
    raise ValueError(f"backgrounds must be 2 to {MOST}, got {backgrounds}")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed must be in [0, 2^32), got {seed}")
  counts = train_examples, validation_examples, test_examples
  for n, (split, most) in zip(counts, _COUNTS.items(), strict=True):
    if not 1 <= n <= most:
      raise ValueError(f"{split}_examples must be 1 to {most}, got {n}")
  return Spec(
    "polydigits",
    {f"m{m}": modality.image(SIDE, SIDE, 3, likelihood) for m in range(backgrounds)},
    {"digit": DIGITS},
  )


def load(split: str, data_dir, **options) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    FileNotFoundError: if MNIST has to be fetched first, or there are no photos.
    ValueError: if there is no such split, or an option is none that `spec` takes.
  """
  about = spec(**options)
  about.check_split(split)
  m, seed = len(about.modalities), options.get("seed", 0)
  counts = {s: options.get(f"{s}_examples", n) for s, n in _COUNTS.items()}
  backgrounds = _backgrounds(m, seed, options.get("photos", ""))
  digest = hashlib.sha256(b"".join(b.tobytes() for b in backgrounds)).hexdigest()
  mnist = lambda split: images.stored("mnist", _MNIST[split], data_dir, size=SIDE)
  what = {"name": "polydigits", "version": VERSION, "modalities": m, "seed": seed}
  what |= {"backgrounds": digest, "source": mnist(split)["source"]}
  what |= {"examples": counts[split]}

  def open_builder():
    from mmgen_jax.data import polydigits_builder  # imports TFDS

    config = polydigits_builder.PolyDigitsConfig(
      name=f"m{m}_seed{seed}_{digest[:8]}_{'_'.join(map(str, counts.values()))}",
      seed=seed,
      counts=counts,
    )
    return read.prepare(
      polydigits_builder.PolyDigits,
      data_dir,
      config=config,
      backgrounds=backgrounds,
      mnist={s: mnist(s) for s in _MNIST},
    )

  columns = read.read(
    open_builder,
    split,
    functools.partial(_decode, names=tuple(about.modalities)),
    what=what,
    data_dir=data_dir,
  )
  return Examples(
    "polydigits",
    split,
    about.modalities,
    {"digit": np.asarray(columns["digit"])},
    about.label_names,
    {name: Column(columns[name]) for name in about.modalities},
    read.fingerprint(**what, split=split),
  )


def _backgrounds(m: int, seed: int, photos: str) -> list[np.ndarray]:
  """One picture per modality, uint8 [h, w, 3], both sides at least 28."""
  if not photos:
    return [textures.texture(name, seed) for name in textures.NAMES[:m]]
  kinds = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
  folder = Path(photos).expanduser()
  files = sorted(f for f in folder.glob("*") if f.suffix.lower() in kinds)[:m]
  if len(files) < m:
    raise FileNotFoundError(
      f"{len(files)} pictures in photos={photos!r}, {m} modalities need as many"
    )
  pictures = [read.image_array(file.read_bytes(), 3) for file in files]
  for file, picture in zip(files, pictures, strict=True):
    if min(picture.shape[:2]) < SIDE:
      raise ValueError(f"{file} is {picture.shape[:2]}: at least {SIDE} pixels a side")
  return pictures


def pairs(digit: np.ndarray, modalities: int, seed: order.Seed) -> np.ndarray:
  """Rows of MNIST [modalities, n], of one digit in each column, in random order.

  Of each digit, example i has the i-th image of a permutation, another one for each
  modality: every image occurs once in each.
  """
  seed = seed if isinstance(seed, tuple) else (seed,)
  columns = []
  for value in range(10):
    rows = np.flatnonzero(digit == value)
    dealt = [order.permutation((*seed, value, m), len(rows)) for m in range(modalities)]
    columns.append(rows[np.stack(dealt)])
  together = np.concatenate(columns, axis=1)
  return together[:, order.permutation((*seed, 10), together.shape[1])]


def compose(
  digits: np.ndarray, background: np.ndarray, seed: order.Seed, first: int = 0
) -> np.ndarray:
  """Random crops of a background, uint8 [n, 28, 28, 3], inverted where a digit is.

  Args:
    digits: uint8 [n, 28, 28]; on where above 128.
    background: uint8 [h, w, 3].
    seed: of the corners; example i's follows from (seed, first + i).
    first: see `seed`.
  """
  corner = order.uniform(seed, 2 * (first + len(digits))).reshape(-1, 2)[first:]
  room = np.array(background.shape[:2]) - SIDE + 1
  y, x = (corner * room).astype(int).T
  window = np.lib.stride_tricks.sliding_window_view(background, (SIDE, SIDE, 3))
  crops = window[y, x, 0]
  return np.where((digits > 128)[..., None], 255 - crops, crops)


def _decode(records, *, names: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Stored columns of some records, whose modalities are side by side in one picture."""
  strips = np.stack([read.image_array(record["strip"], 3) for record in records])
  parts = np.split(strips, len(names), axis=2)
  digit = np.array([record["digit"] for record in records], np.int32)
  return {"digit": digit, **dict(zip(names, parts, strict=True))}
