"""Reads images that hold a grey image in each channel, one channel at a time.

Such images make as many modes as there are combinations (StackedMNIST: 1000); a
classifier of single grey images knows them all.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.metrics import extractor
from mmgen_jax.metrics.extractor import Extractor, Recipe

LABEL = "class"  # of a single grey image


@dataclasses.dataclass(frozen=True)
class ByChannel:
  """An extractor of grey images, for each channel.

  Attributes:
    single: the classifier, which reads `LABEL`.
    labels: what the class of each channel is called.
  """

  single: Extractor
  labels: tuple[str, ...]

  @property
  def name(self) -> str:
    """Says what it is."""
    return f"{self.single.name}-by-channel"

  @property
  def sha256(self) -> str:
    """Of the classifier's weights."""
    return self.single.sha256

  def __call__(
    self, values: UInt8[np.ndarray, "n h w c"]
  ) -> tuple[Float[np.ndarray, "n d"], dict[str, Int[np.ndarray, " n"]]]:
    """Features of the channels, one after the other, and the class of each."""
    n, h, w, c = values.shape
    grey = np.moveaxis(values, -1, 1).reshape(n * c, h, w, 1)
    features, read = self.single(grey)
    classes = read[LABEL].reshape(n, c).T
    return features.reshape(n, -1), dict(zip(self.labels, classes, strict=True))

  @property
  def classes(self) -> int:
    """Of `probabilities`: the modes."""
    return self.single.classes ** len(self.labels)

  def probabilities(
    self, features: Float[np.ndarray, "n d"]
  ) -> Float[np.ndarray, "n k"]:
    """The distribution over all modes."""
    of_channels = np.split(features, len(self.labels), axis=1)
    return extractor.joint([self.single.probabilities(f) for f in of_channels])


def channel_labels(examples: Examples) -> tuple[str, ...]:
  """The labels that are the classes of the channels: the named ones, in order."""
  return tuple(name for name in examples.label_names if name in examples.labels)


def singles(examples: Examples, name: str) -> Examples:
  """The grey images that a set is stacked of, each once, with its class.

  Those that no example uses are left out, and those of which no class is known.

  Raises:
    ValueError: if the channels of the modality are not rows with a label each.
  """
  column, labels = examples.columns[name], channel_labels(examples)
  stacked = column.rows if column.stacked else None
  if stacked is None or len(labels) != stacked.shape[1]:
    raise ValueError(f"{examples.name}: no label for each channel of {name!r}")
  rows = stacked.T.reshape(-1)
  classes = np.concatenate([examples.labels[label] for label in labels])
  known = classes >= 0
  rows, classes = rows[known], classes[known]
  seen, first = np.unique(rows, return_index=True)
  values, classes = np.asarray(column.values[seen]), classes[first]
  content = hashlib.sha256(np.ascontiguousarray(values).tobytes() + classes.tobytes())
  h, w, c = values.shape[1:]
  return Examples(
    f"{examples.name}-singles",
    examples.split,
    {"image": modality.image(h, w, c)},
    {LABEL: classes.astype(np.int32)},
    {LABEL: examples.label_names[labels[0]]},
    {"image": Column(values)},
    content.hexdigest(),
  )


def load_or_train(
  called: str,
  examples: Examples,
  name: str,
  recipe: Recipe,
  directory: Path | str,
  *,
  say: Callable[[str], None] = lambda message: None,
) -> ByChannel:
  """The reader of a stacked modality; see `extractor.load_or_train`."""
  e = extractor.load_or_train(
    called, singles(examples, name), "image", [LABEL], recipe, directory, say=say
  )
  return ByChannel(e, channel_labels(examples))
