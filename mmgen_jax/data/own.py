"""What somebody brings, a caption, a picture, a sound file, as a data set stores it."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.data import DATASETS, modality, pixels, waves
from mmgen_jax.data.audio import log_mel
from mmgen_jax.data.examples import Spec
from mmgen_jax.data.folder import tokens_of
from mmgen_jax.data.modality import Modality

SHOWN = 24  # words of a vocabulary, in an error


def stored(
  about: Spec, options: Mapping[str, Any], name: str, value: str
) -> np.ndarray:
  """One value of modality `name` in stored form, [*shape].

  Args:
    about: the data set.
    options: of the data set.
    name: of the modality.
    value: of a text, the text; of an image or a sound, the path of a file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it cannot be read, or a text is too long or has words that were not in
      training.
  """
  m = about.modalities[name]
  if m.kind == "text":
    return _text(m, name, value)
  path = Path(value).expanduser()
  if not path.is_file():
    raise FileNotFoundError(f"{name}: there is no file {value!r}")
  module: Any = importlib.import_module(DATASETS[about.name])
  try:
    if m.kind == "image":
      fit = getattr(module, "FIT", options.get("fit", ""))
      return _picture(m, path.read_bytes(), fit)
    sound, rate_hz = waves.read_sound(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{name}: {value}: {error}") from None
  if clip_of := getattr(module, "clip_of", None):
    clip = clip_of(sound, rate_hz)
  else:
    length = round(m.seconds * m.sample_rate_hz)
    clip = waves.stretch(sound, rate_hz, m.sample_rate_hz, length)
  frames, mels = m.shape
  form = {"sample_rate_hz": m.sample_rate_hz, "frames": frames, "mels": mels}
  return log_mel(clip[None], **form)[0]


def _text(m: Modality, name: str, value: str) -> np.ndarray:
  units = tokens_of(value) if m.unit == "word" else list(value.lower())
  if unknown := sorted(set(units) - set(m.vocabulary)):
    known = m.vocabulary[len(modality.SPECIAL) :]
    more = ", ..." if len(known) > SHOWN else ""
    raise ValueError(
      f"{name}: {', '.join(map(repr, unknown))} was not in training; what was:"
      f" {', '.join(known[:SHOWN])}{more}"
    )
  joint = " " if m.unit == "word" else ""
  return modality.tokenise(m, [joint.join(units)])[0]


def _picture(m: Modality, content: bytes, fit: str) -> np.ndarray:
  size, _, channels = m.shape
  picture = pixels.open_rgb(content)
  if channels == 1:
    picture = picture.convert("L")
  return pixels.fit(picture, size, fit or pixels.default_fit(picture.size, size))
