"""Factors as a TFDS builder that needs no TensorFlow."""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmgen_jax.data import factors


@dataclasses.dataclass(kw_only=True, eq=False)
class FactorsConfig(tfds.core.BuilderConfig):
  """What a prepared set follows from; its name says all of it.

  Attributes:
    seed: of the order.
    ranges: {split: (place of the first example in the order, number of them)}.
  """

  seed: int = 0
  ranges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def config(*, seed: int, ranges: dict[str, tuple[int, int]]) -> FactorsConfig:
  """A configuration whose name tells it from all others."""
  counts = "_".join(str(number) for _, number in ranges.values())
  return FactorsConfig(name=f"seed{seed}_{counts}", seed=seed, ranges=ranges)


class Factors(tfds.core.GeneratorBasedBuilder):
  """Stored in the random order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Binary sprites of five factors."}

  @property
  def _config(self) -> FactorsConfig:
    if not isinstance(self.builder_config, FactorsConfig):
      raise ValueError("factors are built with config=factors_builder.config(...)")
    return self.builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    shape = (factors.PIXELS, factors.PIXELS, 1)
    features = {
      "index": tfds.features.Scalar(np.int32),
      "image": tfds.features.Image(shape=shape, encoding_format="png"),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="Binary sprites of known factors, drawn from the index.",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # they come in a random order
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    ranges = self._config.ranges.items()
    return {split: self._generate_examples(*where) for split, where in ranges}

  def _generate_examples(self, first: int, number: int):
    chosen = factors.order(self._config.seed)[first : first + number]
    for start in range(0, number, factors.BLOCK):
      indices = chosen[start : start + factors.BLOCK]
      pictures = factors.render(factors.factors_of(indices))
      for i, (index, picture) in enumerate(zip(indices, pictures, strict=True)):
        yield start + i, {"index": index, "image": _png(picture)}


def _png(pixels: np.ndarray) -> bytes:
  """One bit per pixel."""
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0]).convert("1").save(file, "png", compress_level=1)
  return file.getvalue()
