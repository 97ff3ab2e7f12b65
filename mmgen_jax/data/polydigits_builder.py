"""Poly digits as a TFDS builder that needs no TensorFlow."""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmgen_jax.data import polydigits

BLOCK = 1000  # examples composed at a time
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(kw_only=True, eq=False)
class PolyDigitsConfig(tfds.core.BuilderConfig):
  """What a prepared set follows from, beside its backgrounds; the name says all of it.

  Attributes:
    seed: of pairs and crops.
    counts: {split: number of examples}.
  """

  seed: int = 0
  counts: dict[str, int] = dataclasses.field(default_factory=dict)


class PolyDigits(tfds.core.GeneratorBasedBuilder):
  """An example is one strip, its modalities from left to right, and the digit."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Inverted MNIST digits on crops of 2 to 10 backgrounds."}

  def __init__(self, *, backgrounds, mnist, **kwargs):
    """Made by `polydigits.load`, from arrays.

    Args:
      backgrounds: uint8 [h, w, 3], one per modality.
      mnist: {split: {"image": uint8 [n, 28, 28, 1], "label": [n]}}.
      **kwargs: of the base class.
    """
    self._backgrounds, self._mnist = backgrounds, mnist
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    width = polydigits.SIDE * len(self._backgrounds)
    features = {
      "strip": tfds.features.Image(
        shape=(polydigits.SIDE, width, 3), encoding_format="png"
      ),
      "digit": tfds.features.ClassLabel(names=list(polydigits.DIGITS)),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="One digit in several hands, inverted on several backgrounds.",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # the pairs are in random order as they come
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    assert isinstance(self.builder_config, PolyDigitsConfig)
    counts = self.builder_config.counts
    return {split: self._generate_examples(split, n) for split, n in counts.items()}

  def _generate_examples(self, split: str, count: int):
    assert isinstance(self.builder_config, PolyDigitsConfig)
    seed = (self.builder_config.seed, _SPLITS.index(split))
    mnist, digits = self._mnist[split], np.asarray(self._mnist[split]["label"])
    m = len(self._backgrounds)
    rows = polydigits.pairs(digits, m, seed)[:, :count]
    for first in range(0, count, BLOCK):
      part = rows[:, first : first + BLOCK]
      strips = [
        polydigits.compose(
          mnist["image"][part[i]][..., 0], self._backgrounds[i], (*seed, i), first
        )
        for i in range(m)
      ]
      for j, strip in enumerate(np.concatenate(strips, axis=2)):
        yield first + j, {"strip": _png(strip), "digit": int(digits[part[0, j]])}


def _png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png", compress_level=1)
  return file.getvalue()
