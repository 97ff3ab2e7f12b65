"""The Free Spoken Digit Dataset as a TFDS builder that needs no TensorFlow.

Z. Jackson and others, https://github.com/Jakobovski/free-spoken-digit-dataset
(doi:10.5281/zenodo.1342401): English digits, 8 kHz mono int16, 50 recordings of each
digit by each of six speakers.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mmgen_jax.data import read, waves
from mmgen_jax.data.digits import SAMPLE_RATE_HZ, SPEAKERS, WORDS

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
NAME = re.compile(r"(?:^|/)(\d)_([a-z]+)_(\d+)\.wav$")


class SpokenDigits(tfds.core.GeneratorBasedBuilder):
  """One TFDS split, "recordings", in the order of digit, speaker, index."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "All six speakers."}

  def __init__(self, *, raw: str | os.PathLike | None = None, **kwargs):
    """A builder over raw recordings.

    Args:
      raw: the set's zip file, or a folder that holds the wav files at any depth. None:
        $MMGEN_RAW_AUDIO, else it is downloaded. Not needed once prepared.
      **kwargs: of the base class.
    """
    self._raw = raw or os.environ.get("MMGEN_RAW_AUDIO")
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
      "digit": tfds.features.ClassLabel(names=WORDS),
      "speaker": tfds.features.ClassLabel(names=SPEAKERS),
      "recording": tfds.features.Scalar(np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="English digits, 8 kHz, by six speakers.",
      features=tfds.features.FeaturesDict(features),
      homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
      disable_shuffling=True,  # the order is ours, and the same for any raw form
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    raw = self._raw
    if raw is None:
      _check_network()
      raw = dl_manager.download(URL)
    return {"recordings": self._generate_examples(raw)}

  def _generate_examples(self, raw):
    for key, name, data in recordings(raw):
      digit, speaker, index = key
      yield (
        f"{digit}_{speaker}_{index:04d}",
        {
          "audio": read_recording(data, name),
          "digit": digit,
          "speaker": speaker,
          "recording": index,
        },
      )


def _check_network() -> None:
  offline = read.offline_reason("https://github.com")
  if offline:
    raise FileNotFoundError(
      f"the spoken digits are not here and github.com cannot be reached ({offline});"
      f" fetch {URL} elsewhere and give it by --config.data.options.raw=FILE.zip or the"
      " environment variable MMGEN_RAW_AUDIO"
    )


def recordings(raw) -> Iterator[tuple[tuple[int, str, int], str, bytes]]:
  """((digit, speaker, index), file name, content) of every wav file, sorted.

  Raises:
    FileNotFoundError: if there is nothing at `raw`.
    ValueError: if it holds no such recordings, one twice, or a stranger's.
  """
  raw = Path(os.fspath(raw)).expanduser()
  if not raw.exists():
    raise FileNotFoundError(f"no raw audio at {raw}")
  if raw.is_dir():
    names = [str(path.relative_to(raw)) for path in raw.rglob("*.wav")]
    yield from _sorted(raw, names, lambda name: (raw / name).read_bytes())
    return
  try:
    with zipfile.ZipFile(raw) as archive:
      yield from _sorted(raw, archive.namelist(), archive.read)
  except zipfile.BadZipFile as error:  # also a recording whose CRC is wrong
    raise ValueError(f"{raw} is neither a folder nor a sound zip: {error}") from None


def _sorted(raw, names, read):
  found: dict[tuple[int, str, int], str] = {}
  for name in names:
    match = NAME.search(name)
    if match is None:
      continue
    key = int(match[1]), match[2], int(match[3])
    if key in found:
      raise ValueError(f"{raw} has the same recording twice: {found[key]} and {name}")
    if key[1] not in SPEAKERS:
      raise ValueError(f"{raw}: {name} is by an unknown speaker; known are {SPEAKERS}")
    found[key] = name
  if not found:
    raise ValueError(f"{raw} has no recordings called DIGIT_SPEAKER_INDEX.wav")
  for key in sorted(found):
    yield key, found[key], read(found[key])


def read_recording(content: bytes, name: str) -> np.ndarray:
  """Samples, int16 [t]."""
  try:
    samples, rate_hz = waves.read_sound(content)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from None
  if rate_hz != SAMPLE_RATE_HZ:
    raise ValueError(f"{name} is sampled at {rate_hz} Hz; wanted {SAMPLE_RATE_HZ}")
  return waves.to_int16(samples)
