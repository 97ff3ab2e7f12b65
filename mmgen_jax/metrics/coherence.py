"""Coherence: do generated modalities say what the given ones said? Attributes only.

A judge (a checker or a classifier) reads attributes from generated examples; here they
are compared. An attribute that a judge could not read is -1 (`UNREADABLE`), which is
never right and agrees with nothing, not even with another -1. A truth of -1 is not known
(a folder's, where a cell is empty): such examples say nothing, see `known`.

Shi et al. (2019), https://arxiv.org/abs/1911.03393; Sutter et al. (2021),
https://arxiv.org/abs/2105.02470.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

UNREADABLE = -1
Attributes = Mapping[str, Int[np.ndarray, " n"]]


def correct(
  predicted: Attributes, truth: Attributes
) -> dict[str, Bool[np.ndarray, "n"]]:
  """Per example: is each attribute right, and under "strict", are all of them?

  False where the truth is not known; leave those out.

  Raises:
    ValueError: if `truth` lacks an attribute that was read, or none was.
  """
  if not predicted:
    raise ValueError("no attribute was read")
  if missing := sorted(set(predicted) - set(truth)):
    raise ValueError(f"truth has no attribute {missing[0]!r}; it has {sorted(truth)}")
  right = {
    name: (np.asarray(values) == truth[name]) & (np.asarray(values) != UNREADABLE)
    for name, values in predicted.items()
  }
  return right | {"strict": np.all(list(right.values()), axis=0)}


def readable(predicted: Attributes) -> Bool[np.ndarray, "n"]:
  """Per example: was every attribute read?"""
  return np.all([np.asarray(v) != UNREADABLE for v in predicted.values()], axis=0)


def known(truth: Attributes) -> Bool[np.ndarray, "n"]:
  """Per example: is the truth of every attribute known?"""
  return readable(truth)


def agree(predicted: Mapping[str, Attributes]) -> dict[str, Bool[np.ndarray, "n"]]:
  """Joint coherence, per example: do all modalities say the same?

  Args:
    predicted: {modality: attributes read from it}, generated together.

  Returns:
    For each attribute that at least two modalities carry, whether all of these agree on
    it; under "strict", whether they agree on all, and every modality is readable.

  Raises:
    ValueError: if no attribute is carried by two modalities.
  """
  carriers: dict[str, list[np.ndarray]] = {}
  for attributes in predicted.values():
    for name, values in attributes.items():
      carriers.setdefault(name, []).append(np.asarray(values))
  shared = {name: np.stack(values) for name, values in carriers.items()}
  out = {
    name: (values == values[0]).all(0) & (values[0] != UNREADABLE)
    for name, values in shared.items()
    if len(values) > 1
  }
  if not out:
    raise ValueError(f"no attribute is carried by two of {sorted(predicted)}")
  all_read = [readable(attributes) for attributes in predicted.values()]
  return out | {"strict": np.all([*out.values(), *all_read], axis=0)}


def classes(truth: Attributes, names) -> Int[np.ndarray, "n"]:
  """One integer per combination of the named attributes, for macro averages."""
  table = np.stack([np.asarray(truth[name]) for name in sorted(names)], axis=1)
  return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)
