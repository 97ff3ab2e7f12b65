"""StackedMNIST's triples as a TFDS builder that needs no TensorFlow."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from mmgen_jax.data import stacked_mnist


@dataclasses.dataclass(kw_only=True, eq=False)
class StackedMnistConfig(tfds.core.BuilderConfig):
  """What a prepared set follows from; its name says all of it.

  Attributes:
    seed: of the triples.
    counts: {split: number of examples}.
  """

  seed: int = 0
  counts: dict[str, int] = dataclasses.field(default_factory=dict)


def config(*, seed: int, counts: dict[str, int]) -> StackedMnistConfig:
  """A configuration whose name tells it from all others."""
  name = "_".join([f"seed{seed}", *map(str, counts.values())])
  return StackedMnistConfig(name=name, seed=seed, counts=counts)


class StackedMnist(tfds.core.GeneratorBasedBuilder):
  """Rows of MNIST's splits as `images` cuts them, and the digits there."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Triples, dealt without replacement."}

  def __init__(self, *, digits: Mapping[str, np.ndarray] | None = None, **kwargs):
    """A builder over MNIST.

    Args:
      digits: {split: the digit of every row}; not needed once prepared.
      **kwargs: of the base class.
    """
    self._digits = digits or {}
    super().__init__(**kwargs)

  @property
  def _config(self) -> StackedMnistConfig:
    if not isinstance(self.builder_config, StackedMnistConfig):
      raise ValueError("built with config=stacked_mnist_builder.config(...)")
    return self.builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"rows": tfds.features.Tensor(shape=(3,), dtype=np.int32)}
    for name in stacked_mnist.CHANNELS:
      features[name] = tfds.features.ClassLabel(num_classes=10)
    return tfds.core.DatasetInfo(
      builder=self,
      description="Which three digits of MNIST are the colours of one image.",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # they come in a random order
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    counts = self._config.counts.items()
    return {split: self._generate_examples(split, count) for split, count in counts}

  def _generate_examples(self, split: str, count: int):
    digits = self._digits[split]
    rows = stacked_mnist.triples(self._config.seed, split, count, len(digits))
    for i, (row, labels) in enumerate(zip(rows, digits[rows], strict=True)):
      named = zip(stacked_mnist.CHANNELS, map(int, labels), strict=True)
      yield i, {"rows": row, **dict(named)}
