"""A folder of the user's own: images, captions, sounds, and a listing of them.

See `data.listing` for the listing. The folder is prepared once, as a TFDS set, for
every state it is in; a changed file or line prepares it anew.
"""

import collections
import functools
import re

import numpy as np

from mmgen_jax.data import listing as listing_lib
from mmgen_jax.data import modality, read
from mmgen_jax.data.audio import checked_filters, log_mel
from mmgen_jax.data.examples import Column, Examples, Spec

VERSION = 1  # of what `load` makes of the stored records
FIT = "resize"  # of pictures
LONGEST_CAPTION = 64


def spec(
  *,
  folder: str,
  listing: str = "",
  size: int = 32,
  tokens: int = 0,
  words: int = 1000,
  seconds: float = 1.0,
  sample_rate_hz: int = 8000,
  frames: int = 32,
  mels: int = 32,
) -> Spec:
  """The modalities and labels that the listing names.

  Args:
    folder: path of the user's folder.
    listing: name of the CSV or JSONL file in it; "": the only one.
    size: of the images; the shorter side is scaled to it, the centre kept.
    tokens: of a caption, longer ones are cut; 0: as many as the longest training
      caption has, at most `LONGEST_CAPTION`.
    words: size of the vocabulary, the most frequent of the training captions.
    seconds: of the sounds; of longer ones the loudest stretch is kept.
    sample_rate_hz: of the sounds.
    frames: of the log-mel spectrogram.
    mels: of the log-mel spectrogram.
  """
  sizes = dict(size=size, words=words, frames=frames, mels=mels, seconds=seconds)
  bad = {k: v for k, v in (sizes | {"rate": sample_rate_hz}).items() if v <= 0}
  if bad or tokens < 0:
    raise ValueError(f"folder: sizes must be positive, got {bad or {'tokens': tokens}}")
  listed = listing_lib.read_listing(folder, listing)
  modalities = {}
  if "image" in listed.modalities:
    modalities["image"] = modality.image(size, size, 3)
  if "caption" in listed.modalities:
    train = [tokens_of(row.caption) for row in listed.rows if row.split == "train"]
    length = tokens or min(LONGEST_CAPTION, max(map(len, train), default=1)) or 1
    modalities["caption"] = modality.text(vocabulary(train, words), length)
  if "audio" in listed.modalities:
    form = {"sample_rate_hz": sample_rate_hz, "frames": frames, "mels": mels}
    checked_filters(**form, samples=round(seconds * sample_rate_hz))
    modalities["audio"] = modality.audio(frames, mels, sample_rate_hz, seconds=seconds)
  names = {label: listed.names(label) for label in listed.labels}
  return Spec("folder", modalities, names)


def tokens_of(caption: str) -> list[str]:
  """Words and punctuation marks of a caption, in lower case."""
  return re.findall(r"\w+|[^\w\s]", caption.lower())


def vocabulary(captions: list[list[str]], size: int) -> list[str]:
  """The most frequent tokens, at most `size`; ties by the alphabet."""
  counts = collections.Counter(token for tokens in captions for token in tokens)
  return sorted(sorted(counts), key=lambda token: -counts[token])[:size]


def load(split: str, data_dir, **options) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    ValueError: naming file and line, for whatever is wrong with the folder.
  """
  about = spec(**options)
  about.check_split(split)
  listed = listing_lib.read_listing(options["folder"], options.get("listing", ""))
  if split not in {row.split for row in listed.rows}:
    raise ValueError(f"{listed.path} has no row of the split {split!r}")
  rate_hz = options.get("sample_rate_hz", 8000)
  form = {
    "size": options.get("size", 32),
    "samples": round(options.get("seconds", 1.0) * rate_hz),
    "sample_rate_hz": rate_hz,
  }
  sound = about.modalities.get("audio")

  from mmgen_jax.data import folder_builder  # imports TFDS

  key = folder_builder.folder_key(listed, **form)
  columns = read.read(
    lambda: read.prepare(
      folder_builder.FolderExamples, data_dir, listing=listed, key=key, **form
    ),
    split,
    functools.partial(_decode, names=listed.modalities, sound=sound),
    what={
      "name": "folder",
      "version": VERSION,
      "key": key,
      "sound": sound.shape if sound else None,
    },
    data_dir=data_dir,
  )
  rows = [row for row in listed.rows if row.split == split]
  stored = {name: Column(columns[name]) for name in about.modalities if name in columns}
  if "caption" in about.modalities:
    stored["caption"] = Column(_captions(about.modalities["caption"], rows))
  for name, column in stored.items():
    present = np.array([bool(getattr(row, name)) for row in rows])
    if not present.all():
      stored[name] = Column(column.values, present=present)
  labels = np.asarray(columns["labels"])
  return Examples(
    "folder",
    split,
    about.modalities,
    {name: labels[:, i] for i, name in enumerate(listed.labels)},
    about.label_names,
    stored,
    read.fingerprint(
      name="folder",
      version=VERSION,
      split=split,
      form=form,
      sound=sound.shape if sound else None,
      words=[about.modalities[n].vocabulary for n in about.modalities],
      digest=read.fingerprint(rows=np.asarray(columns["digest"]).tolist()),
    ),
  )


def _captions(caption: modality.Modality, rows) -> np.ndarray:
  length = caption.shape[0]
  strings = [" ".join(tokens_of(row.caption)[:length]) for row in rows]
  return modality.tokenise(caption, strings)


def _decode(records, *, names, sound) -> dict[str, np.ndarray]:
  columns = {
    name: np.stack([r[name] for r in records]) for name in ("labels", "digest")
  }
  if "image" in names:
    columns["image"] = np.stack([read.image_array(r["image"], 3) for r in records])
  if "audio" in names:
    clips = np.stack([record["audio"] for record in records])
    rate_hz, (frames, mels) = sound.sample_rate_hz, sound.shape
    columns["audio"] = log_mel(clips, sample_rate_hz=rate_hz, frames=frames, mels=mels)
  return columns
