"""Sprites as a TFDS builder that needs no TensorFlow."""

import dataclasses
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmgen_jax.data import sprites_render, sprites_sound

BLOCK = 256  # examples rendered at a time
WORKERS = 2  # threads: rendering and encoding leave the interpreter to the writer


@dataclasses.dataclass(kw_only=True, eq=False)
class SpritesConfig(tfds.core.BuilderConfig):
  """What a prepared set follows from; its name says all of it.

  Attributes:
    level: 1 to 5.
    size: of the pictures, pixels.
    seed: of the examples.
    ranges: {split: (index of the first example, number of them)}.
  """

  level: int = 3
  size: int = 32
  seed: int = 0
  ranges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def config(
  *, level: int, size: int, seed: int, ranges: dict[str, tuple[int, int]]
) -> SpritesConfig:
  """A configuration whose name tells it from all others."""
  counts = "_".join(str(number) for _, number in ranges.values())
  name = f"level{level}_{size}px_seed{seed}_{counts}"
  return SpritesConfig(name=name, level=level, size=size, seed=seed, ranges=ranges)


class Sprites(tfds.core.GeneratorBasedBuilder):
  """Stored in the order of the index."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Levels 1 to 5: image, caption, sound, attributes."}

  @property
  def _config(self) -> SpritesConfig:
    if not isinstance(self.builder_config, SpritesConfig):
      raise ValueError("sprites are built with config=sprites_builder.config(...)")
    return self.builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    config = self._config
    features = {
      "index": tfds.features.Scalar(np.int64),
      "image": tfds.features.Image(
        shape=(config.size, config.size, 3), encoding_format="png"
      ),
      "caption": tfds.features.Text(),
      "sound": tfds.features.Tensor(
        shape=(sprites_sound.SAMPLES,), dtype=np.int16, encoding="bytes"
      ),
    }
    for name in sprites_render.names_of(config.level):
      features[name] = tfds.features.ClassLabel(names=sprites_render.NAMES[name])
    return tfds.core.DatasetInfo(
      builder=self,
      description="Captioned, sounding sprites, drawn from (seed, index).",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # examples are independent of each other as they come
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    return {
      split: self._generate_examples(first, number)
      for split, (first, number) in self._config.ranges.items()
    }

  def _generate_examples(self, first: int, number: int):
    config = self._config

    def block(start: int) -> list[tuple[int, dict]]:
      indices = np.arange(first + start, first + min(start + BLOCK, number))
      made = sprites_render.generate(config.seed, indices, config.level, config.size)
      labels = {name: values.tolist() for name, values in made["labels"].items()}
      return [
        (
          start + i,
          {
            "index": index,
            "image": _png(made["image"][i]),
            "caption": made["caption"][i],
            "sound": made["wave"][i],
            **{name: values[i] for name, values in labels.items()},
          },
        )
        for i, index in enumerate(indices)
      ]

    yield from _ahead(block, range(0, number, BLOCK))


def _ahead(block, starts) -> Iterator[tuple[int, dict]]:
  """Rows of the blocks in order, a few blocks made ahead by threads."""
  with ThreadPoolExecutor(WORKERS) as pool:
    waiting = deque()
    for start in starts:
      waiting.append(pool.submit(block, start))
      if len(waiting) > WORKERS:
        yield from waiting.popleft().result()
    for made in waiting:
      yield from made.result()


def _png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png", compress_level=1)
  return file.getvalue()
