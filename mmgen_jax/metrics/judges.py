"""Who reads attributes from examples, per data set and modality.

Sprites are read by their checker, which is not trained. For any other labelled set,
images and sounds are read by classifiers that the project trains on the real training
split, and a text is read by looking for it among the real ones. Where nothing can be
read (no labels), there is no judge, and nothing is claimed. An example without a label
(-1) teaches nothing.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from mmgen_jax.data import modality as modality_lib
from mmgen_jax.data import sprites_checker, sprites_render, sprites_sound
from mmgen_jax.data.augment import Augmentation
from mmgen_jax.data.examples import Examples
from mmgen_jax.metrics import channels, coherence
from mmgen_jax.metrics.extractor import Recipe, learnable, load_or_train

_IMAGE = Recipe()
_SOUND = Recipe(
  augment=Augmentation(
    shift=(3.0, 3.0), scale=(0.2, 0.1), gain=0.15, tilt=0.2, noise=0.1, erase=6
  )
)
_QUICK = Recipe(
  steps=400,
  batch_size=32,
  learning_rate=5e-3,
  width=16,
  dropout=0.1,
  augment=Augmentation(shift=(1.0, 1.0), scale=(0.05, 0.05)),
)
_DEFAULT = {"image": _IMAGE, "audio": _SOUND}
RECIPES = {  # (data set, kind), where the default would be too little or too much
  ("sprites", "image"): _QUICK,
  ("sprites", "audio"): dataclasses.replace(_QUICK, steps=120),
  ("digits", "image"): dataclasses.replace(_IMAGE, steps=1500),
  ("polydigits", "image"): dataclasses.replace(_IMAGE, steps=800, batch_size=64),
  ("stacked_mnist", "image"): dataclasses.replace(
    _IMAGE, steps=3000, augment=Augmentation(shift=(1.0, 1.0), scale=(0.1, 0.1))
  ),
  ("digits", "audio"): dataclasses.replace(_SOUND, steps=900, width=48, dropout=0.4),
}


class Judge(NamedTuple):
  """What reads attributes.

  Attributes:
    name: says what it is.
    sha256: of its weights or its source.
    read: stored values [n, ...] -> {label: int32 [n]}, `UNREADABLE` where it cannot.
  """

  name: str
  sha256: str
  read: Callable[[np.ndarray], Mapping[str, Int[np.ndarray, " n"]]]


class Reader(Protocol):
  """What gives features of stored values, and the labels that it reads."""

  @property
  def name(self) -> str: ...

  @property
  def sha256(self) -> str: ...

  def __call__(
    self, values: np.ndarray, /
  ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]: ...

  @property
  def classes(self) -> int:
    """How many `probabilities` are of; combinations of labels may be very many."""
    ...

  def probabilities(self, features: np.ndarray, /) -> np.ndarray:
    """The distribution [n, k] over its classes, from features."""
    ...


class Judges(NamedTuple):
  """All that an evaluation measures with.

  Attributes:
    readers: {modality: Judge}.
    extractors: {modality: Reader}, whose features distances are taken in.
  """

  readers: Mapping[str, Judge]
  extractors: Mapping[str, Reader]


def make(
  train: Examples,
  modalities: Sequence[str],
  directory: Path | str,
  *,
  labels: Sequence[str] = (),
  extract: bool = True,
  say: Callable[[str], None] = lambda message: None,
) -> Judges:
  """The judges of a data set; trains those that `directory` does not hold yet.

  Args:
    train: its real training split.
    modalities: which of its modalities are to be judged.
    directory: where trained judges are kept.
    labels: which of its labels count as attributes; by default `attributes(train)`.
    extract: whether extractors are wanted that are not needed to read.
    say: told how training goes.
  """
  labels = sorted(labels) or attributes(train)
  extractors, readers = {}, {}
  for name in sorted(modalities) if labels else ():
    modality, checked = train.modalities[name], train.name == "sprites"
    if checked:
      readers[name] = sprite_judge(train, name)
    if modality.kind == "text":
      if _meaning(train, name, labels)[1]:
        readers.setdefault(name, text_judge(train, name, labels))
    elif not len(learnable(train, name, labels)):
      say(f"no judge learns {name}: no example has it and all of {', '.join(labels)}")
    elif extract or not checked:
      recipe = RECIPES.get((train.name, modality.kind), _DEFAULT[modality.kind])
      called = f"mmgen-{train.name}-{name}-v1"
      if train.columns[name].stacked:
        e = channels.load_or_train(called, train, name, recipe, directory, say=say)
      else:
        e = load_or_train(called, train, name, labels, recipe, directory, say=say)
      extractors[name] = e
      readers.setdefault(name, as_judge(e))
  return Judges(readers, extractors)


def attributes(train: Examples) -> list[str]:
  """The labels that every text of a set says; without texts, all its named labels.

  Labels that no example has do not count, nor do texts without any label.
  """
  labels = sorted(set(train.labels) & set(train.label_names))
  labels = [x for x in labels if (np.asarray(train.labels[x]) >= 0).any()]
  texts = [name for name, m in train.modalities.items() if m.kind == "text"]
  names = [t for t in texts if any(len(learnable(train, t, [x])) for x in labels)]
  for name in names:
    labels = [x for x in labels if x in _meaning(train, name, labels)[1]]
  return labels


def as_judge(e: Reader) -> Judge:
  """A classifier as a Judge."""
  return Judge(e.name, e.sha256, lambda values: e(values)[1])


def sprite_judge(examples: Examples, name: str) -> Judge:
  """The checker of sprites, for one of their modalities."""
  level = sum(label in sprites_render.NAMES for label in examples.labels)
  modality = examples.modalities[name]
  kind = {"image": "image", "text": "caption", "audio": "sound"}[modality.kind]
  sources = (sprites_checker, sprites_render, sprites_sound)
  source = b"".join(Path(str(module.__file__)).read_bytes() for module in sources)

  def read(values):
    if modality.kind == "text":
      values = modality_lib.detokenise(modality, values)
    return sprites_checker.check(kind, values, level)

  return Judge(f"sprites-checker-{kind}", hashlib.sha256(source).hexdigest(), read)


def _meaning(examples: Examples, name: str, labels: Sequence[str]):
  """The distinct real texts, and {label: its value for each} for labels they fix.

  `UNREADABLE` for a text of which no example has the label.
  """
  rows = np.flatnonzero(examples.present[name])
  column = examples.columns[name]
  at = rows if column.rows is None else column.rows[rows]
  stored = np.unique(at)  # a million examples may share ten values
  texts, which = np.unique(column.values[stored], axis=0, return_inverse=True)
  which = which.reshape(-1)[np.searchsorted(stored, at)]
  meaning = {}
  for label in sorted(labels):
    values = np.asarray(examples.labels[label])[rows]
    known = values >= 0
    one = np.full(len(texts), coherence.UNREADABLE, np.int32)
    one[which[known]] = values[known]
    if known.any() and (one[which] == values)[known].all():
      meaning[label] = one
  return modality_lib.detokenise(examples.modalities[name], texts), meaning


def text_judge(examples: Examples, name: str, labels: Sequence[str]) -> Judge:
  """Reads a text by exact match with the real ones, for labels that these fix.

  A label in which two examples of one text differ is not said by the text, so it is not
  read from it. A text that no real example has is unreadable.
  """
  modality = examples.modalities[name]
  texts, meaning = _meaning(examples, name, labels)
  known = {text: i for i, text in enumerate(texts)}
  described = repr((texts, {k: v.tolist() for k, v in meaning.items()}))

  def read(values):
    strings = modality_lib.detokenise(modality, values)
    at = np.array([known.get(s, -1) for s in strings], np.int32)
    return {
      label: np.where(at >= 0, one[at], coherence.UNREADABLE).astype(np.int32)
      for label, one in meaning.items()
    }

  digest = hashlib.sha256(described.encode()).hexdigest()
  return Judge(f"exact-match-{examples.name}-{name}", digest, read)


def describe(judge: Judge, right: Mapping[str, np.ndarray]) -> dict:
  """What a record says of its judge; `right` is what it read correctly of real ones."""
  return {
    "name": judge.name,
    "sha256": judge.sha256,
    "accuracy": round(float(right["strict"].mean()), 6),
    "accuracy_count": len(right["strict"]),
  }
