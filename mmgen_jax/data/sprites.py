"""Sprites: generated pictures, captions and sounds of the same few attributes.

Nothing to download. `sprites_render` draws an example from (seed, index), this module
keeps them as a TFDS set and gives them as columns, and `sprites_checker` reads the
attributes back from whatever a model makes.
"""

import functools

import numpy as np

from mmgen_jax.data import audio, modality, read, sprites_render, sprites_sound
from mmgen_jax.data.examples import Column, Examples, Spec

FRAMES, MELS = 32, 32
SIZES = (32, 64)
VERSION = 1  # of what `load` makes of the stored records
SPLITS = ("train", "validation", "test")
_STARTS = {"train": 0, "validation": 2**40, "test": 2**41}  # of the splits' indices


def spec(
  *,
  level: int = 3,
  size: int = 32,
  seed: int = 0,
  train_examples: int = 30_000,
  validation_examples: int = 3_000,
  test_examples: int = 3_000,
  hold_out: int = 0,
) -> Spec:
  """Image size x size x 3, caption (words), sound (log-mel); a label per attribute.

  Args:
    level: 1 shape; 2 and size; 3 and colour; 4 and quadrant; 5 and background.
    size: of the pictures, 32 or 64 pixels.
    seed: of the examples.
    train_examples: how many; the first ones are the same however many there are.
    validation_examples: how many.
    test_examples: how many.
    hold_out: k > 1 keeps one combination of attributes in k out of every split, those
      whose attributes' numbers sum to a multiple of k; they are in "test_combinations",
      out of the examples that "test" would have had. Every value is still seen.

  Raises:
    ValueError: if an option is none of these.
  """
  names = sprites_render.names_of(level)
  if size not in SIZES:
    raise ValueError(f"sprites are drawn at {SIZES} pixels, got size={size!r}")
  if not 0 <= seed < 2**63:
    raise ValueError(f"the seed of sprites is from 0 to 2^63 - 1, got {seed!r}")
  for count in (train_examples, validation_examples, test_examples):
    if not 1 <= count < 2**31:
      raise ValueError(f"a split has from 1 to 2^31 - 1 examples, got {count!r}")
  if hold_out and (hold_out < 2 or len(names) < 2):
    raise ValueError(
      f"hold_out is 0, or 2 and more from level 2 on, got {hold_out!r} at level {level}"
    )
  values = {name: sprites_render.NAMES[name] for name in names}
  words = {word for every in values.values() for one in every for word in one.split()}
  words |= {"at"} if level >= 4 else set()
  words |= {"on"} if level >= 5 else set()
  rate_hz = sprites_sound.SAMPLE_RATE_HZ
  longest = (1, 2, 3, 6, 8)[level - 1]  # "small red heart at top left on dark"
  return Spec(
    "sprites",
    {
      "image": modality.image(size, size),
      "caption": modality.text(sorted(words), longest),
      "sound": modality.audio(
        FRAMES, MELS, rate_hz, seconds=sprites_sound.SAMPLES / rate_hz
      ),
    },
    values,
    (*SPLITS, "test_combinations") if hold_out else SPLITS,
  )


def load(
  split: str,
  data_dir,
  *,
  level: int = 3,
  size: int = 32,
  seed: int = 0,
  train_examples: int = 30_000,
  validation_examples: int = 3_000,
  test_examples: int = 3_000,
  hold_out: int = 0,
) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    ValueError: if there is no such split, or an option is none that `spec` takes.
  """
  counts = {
    "train": train_examples,
    "validation": validation_examples,
    "test": test_examples,
  }
  about = spec(
    level=level,
    size=size,
    seed=seed,
    hold_out=hold_out,
    **{f"{name}_examples": count for name, count in counts.items()},
  )
  about.check_split(split)
  wanted, split = split, "test" if split == "test_combinations" else split
  ranges = {name: (_STARTS[name], count) for name, count in counts.items()}
  # Not the other splits' sizes: they change nothing in this one.
  what = {"name": "sprites", "version": VERSION, "level": level, "size": size}
  what |= {"seed": seed, "examples": list(ranges[split])}

  def open_builder():
    from mmgen_jax.data import sprites_builder  # imports TFDS

    config = sprites_builder.config(level=level, size=size, seed=seed, ranges=ranges)
    return read.prepare(sprites_builder.Sprites, data_dir, config=config)

  columns = read.read(
    open_builder,
    split,
    functools.partial(
      _decode, caption=about.modalities["caption"], labels=tuple(about.label_names)
    ),
    what=what,
    data_dir=data_dir,
  )
  labels = {name: np.asarray(columns[f"label_{name}"]) for name in about.label_names}
  rows, more = None, {}
  if hold_out:
    held_out = sum(labels.values()) % hold_out == 0
    rows = np.flatnonzero(held_out == (wanted == "test_combinations")).astype(np.int32)
    labels, more = {k: v[rows] for k, v in labels.items()}, {"hold_out": hold_out}
  return Examples(
    "sprites",
    wanted,
    about.modalities,
    labels,
    about.label_names,
    {name: Column(columns[name], rows) for name in about.modalities},
    read.fingerprint(**what, split=wanted, **more),
  )


def _decode(records, *, caption: modality.Modality, labels: tuple[str, ...]):
  """Stored columns of some records: pixels, tokens, log-mels, labels."""
  words = [record["caption"].decode() for record in records]
  return {
    "image": np.stack([read.image_array(record["image"], 3) for record in records]),
    "caption": modality.tokenise(caption, words),
    "sound": audio.log_mel(
      np.stack([record["sound"] for record in records]),
      sample_rate_hz=sprites_sound.SAMPLE_RATE_HZ,
      frames=FRAMES,
      mels=MELS,
    ),
    **{
      f"label_{name}": np.array([record[name] for record in records], np.int32)
      for name in labels
    },
  }
