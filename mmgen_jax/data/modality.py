"""What a modality is: declared once, by the data set; everything else reads it here.

A modality has two forms. *Stored*: what a data set holds and a feed moves, small
integers (uint8 pixels, uint8 log-mel, int32 tokens). *Model space*: what networks see
and produce, float32 in [-1, 1] for images and sound, int32 tokens for text.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Kind = Literal["image", "text", "audio"]
PAD, UNKNOWN = 0, 1  # the first two entries of every vocabulary
SPECIAL = ("<pad>", "<unk>")


@dataclasses.dataclass(frozen=True)
class Modality:
  """One modality of a data set.

  Attributes:
    kind: "image", "text" or "audio".
    shape: of one stored example: image (h, w, c); text (t,); audio (frames, mels).
    likelihood: the name of a distribution in `mmgen_jax.likelihoods`.
    vocabulary: text only; the strings that token ids stand for, `SPECIAL` first.
    unit: text only; "word" or "char", what one token is.
    sample_rate_hz: audio only.
    seconds: audio only; how long a clip is.
  """

  kind: Kind
  shape: tuple[int, ...]
  likelihood: str
  vocabulary: tuple[str, ...] = ()
  unit: Literal["word", "char"] = "word"
  sample_rate_hz: int = 0
  seconds: float = 0.0


def image(
  height: int, width: int, channels: int = 3, likelihood="gaussian"
) -> Modality:
  """An image modality, stored as uint8 (h, w, c)."""
  return Modality("image", (height, width, channels), likelihood)


def audio(
  frames: int, mels: int, sample_rate_hz: int, likelihood="laplace", seconds=1.0
) -> Modality:
  """A log-mel modality, stored as uint8 (frames, mels); see `data.audio.log_mel`."""
  form = {"sample_rate_hz": sample_rate_hz, "seconds": seconds}
  return Modality("audio", (frames, mels), likelihood, **form)


def text(
  words: Sequence[str], length: int, unit: Literal["word", "char"] = "word"
) -> Modality:
  """A text modality of at most `length` tokens out of `words` (specials are added)."""
  vocabulary = SPECIAL + tuple(words)
  return Modality("text", (length,), "categorical", vocabulary, unit)


def tokenise(modality: Modality, strings: Sequence[str]) -> np.ndarray:
  """Token ids, int32 [n, t]: padded with PAD, unknown units as UNKNOWN.

  Raises:
    ValueError: if a string has more tokens than the modality holds.
  """
  ids = {word: i for i, word in enumerate(modality.vocabulary)}
  out = np.full((len(strings), *modality.shape), PAD, np.int32)
  for row, string in zip(out, strings, strict=True):
    units = string.split() if modality.unit == "word" else list(string)
    if len(units) > len(row):
      raise ValueError(
        f"text {string!r} has {len(units)} tokens; this modality holds {len(row)}"
      )
    row[: len(units)] = [ids.get(unit, UNKNOWN) for unit in units]
  return out


def detokenise(modality: Modality, tokens: np.ndarray) -> list[str]:
  """Strings from token ids [n, t]; each ends at its first PAD."""
  joint = " " if modality.unit == "word" else ""
  strings = []
  for row in np.asarray(tokens):
    ends = np.flatnonzero(row == PAD)
    row = row[: ends[0]] if len(ends) else row
    strings.append(joint.join(modality.vocabulary[i] for i in row))
  return strings


def to_model(modality: Modality, stored: Array) -> Array:
  """Stored values in model space; works on any leading axes, inside jit."""
  if modality.kind == "text":
    return stored.astype(jnp.int32)
  # One rounding only, so that no compiler's choice (a fused multiply-add, say) shows:
  # the two feeds must agree bit for bit.
  return (stored.astype(jnp.float32) * 2.0 - 255.0) / 255.0


def to_stored(modality: Modality, value: np.ndarray) -> np.ndarray:
  """Model-space values as stored ones (uint8 or int32), rounded and clipped."""
  value = np.asarray(value)
  if modality.kind == "text":
    return value.astype(np.int32)
  return np.clip(np.rint((value + 1.0) * 127.5), 0, 255).astype(np.uint8)


def check_shapes(modalities: Mapping[str, Modality], rows: Mapping[str, np.ndarray]):
  """Raises ValueError if a stored array does not have its modality's shape."""
  for name, modality in modalities.items():
    if name not in rows:
      raise ValueError(f"modality {name!r} is missing; there are {sorted(rows)}")
    if rows[name].shape[1:] != modality.shape:
      raise ValueError(
        f"modality {name!r} has shape {rows[name].shape[1:]} per example,"
        f" declared was {modality.shape}"
      )
