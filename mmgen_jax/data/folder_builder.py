"""A user's folder as a TFDS builder that needs no TensorFlow."""

import hashlib
import io
import os

import numpy as np
import tensorflow_datasets as tfds

from mmgen_jax.data import pixels, waves
from mmgen_jax.data.listing import SPLITS, Listing, Row


class FolderExamples(tfds.core.GeneratorBasedBuilder):
  """The rows of a listing, in its order; pictures and sounds in their final form."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = []

  def __init__(
    self,
    *,
    listing: Listing,
    key: str,
    size: int,
    samples: int,
    sample_rate_hz: int,
    **kwargs,
  ):
    """A builder over a checked listing.

    Args:
      listing: what to prepare.
      key: names this state of the folder; the TFDS config.
      size: of the pictures, height and width.
      samples: of a sound.
      sample_rate_hz: of a sound.
      **kwargs: of the base class.
    """
    self._listing, self._size = listing, size
    self._samples, self._rate = samples, sample_rate_hz
    config = tfds.core.BuilderConfig(name=key, description=str(listing.path))
    super().__init__(config=config, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features: dict = {
      "line": tfds.features.Scalar(np.int32),
      "digest": tfds.features.Scalar(np.int64),
      "labels": tfds.features.Tensor(
        shape=(len(self._listing.labels),), dtype=np.int32
      ),
    }
    for name in self._listing.modalities:
      features[f"has_{name}"] = tfds.features.Scalar(np.uint8)
      features[name] = {
        "image": tfds.features.Image(shape=(self._size, self._size, 3)),
        "caption": tfds.features.Text(),
        "audio": tfds.features.Tensor(shape=(self._samples,), dtype=np.int16),
      }[name]
    return tfds.core.DatasetInfo(
      builder=self,
      description="A folder of the user's own.",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    there = {row.split for row in self._listing.rows}
    return {name: self._generate_examples(name) for name in SPLITS if name in there}

  def _generate_examples(self, split: str):
    names = {label: self._listing.names(label) for label in self._listing.labels}
    rows = [row for row in self._listing.rows if row.split == split]
    for place, row in enumerate(rows):  # TFDS keeps examples in the order of their keys
      yield place, self._example(row, names)

  def _example(self, row: Row, names: dict[str, tuple[str, ...]]) -> dict:
    digest = hashlib.sha256(repr((row.caption, row.labels)).encode())
    example: dict = {"line": row.line}
    for name in self._listing.modalities:
      cell = getattr(row, name)
      example[f"has_{name}"] = int(bool(cell))
      if name == "caption":
        example[name] = cell
        continue
      content = (self._listing.folder / cell).read_bytes() if cell else b""
      digest.update(hashlib.sha256(content).digest())
      convert = self._picture if name == "image" else self._sound
      try:
        example[name] = convert(content)
      except Exception as error:
        where = self._listing.where(row)
        raise ValueError(f"{where}: {name} {cell} cannot be read: {error}") from None
    example["labels"] = np.array(
      [
        names[label].index(value) if value else -1
        for label, value in row.labels.items()
      ],
      np.int32,
    )
    example["digest"] = int.from_bytes(digest.digest()[:8], "little", signed=True)
    return example

  def _picture(self, content: bytes) -> io.BytesIO:
    """An encoded picture of any kind as PNG, RGB, size x size; black for none."""
    from PIL import Image

    encoded = io.BytesIO()
    values = np.zeros((self._size, self._size, 3), np.uint8)
    if content:
      values = pixels.fit(pixels.open_rgb(content), self._size, "resize")
    Image.fromarray(values).save(encoded, "PNG")
    encoded.seek(0)
    return encoded

  def _sound(self, content: bytes) -> np.ndarray:
    """The loudest stretch of a sound file, at our rate; silence after a short one."""
    if not content:
      return np.zeros(self._samples, np.int16)
    sound, rate_hz = waves.read_sound(content)
    return waves.stretch(sound, rate_hz, self._rate, self._samples)


def folder_key(listing: Listing, **options) -> str:
  """Names one state of a folder: the listing, its order, its files' sizes and times."""
  digest = hashlib.sha256(listing.path.read_bytes())
  digest.update(repr(sorted(options.items())).encode())
  digest.update(repr([row.line for row in listing.rows]).encode())
  for row in listing.rows:
    for cell in filter(None, (row.image, row.audio)):
      stat = os.stat(listing.folder / cell)
      digest.update(f"{cell} {stat.st_size} {stat.st_mtime_ns}".encode())
  return digest.hexdigest()[:16]
