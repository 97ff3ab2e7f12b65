"""Digits, real: MNIST images, spoken digits, and the digit's English word.

Pairs share the digit only: every repeat deals each image of a digit once, beside
recordings and words dealt from fresh permutations, in the manner of MNIST-SVHN-Text
(Sutter, Daunhawer and Vogt, 2021, https://arxiv.org/abs/2105.02470). Values are stored
once; an example is a row number in each column.

The recordings fall into three groups that share nothing: a held-out speaker
("test_speaker"); of the others, indices 0-4 as the authors of the set have it
("validation" and "test"); the rest ("train").
"""

import functools
import hashlib

import numpy as np

from mmgen_jax.data import images, modality, order, read, waves
from mmgen_jax.data.audio import log_mel
from mmgen_jax.data.examples import Column, Examples, Spec

SPLITS = ("train", "validation", "test", "test_speaker")
WORDS = "zero one two three four five six seven eight nine".split()
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SAMPLE_RATE_HZ = 8000
TEST_RECORDINGS = 5  # of each digit and speaker
VERSION = 1  # of what `load` makes of the stored records

_IMAGES = {
  "train": "train[:55000]",
  "validation": "train[55000:]",
  "test": "test",
  "test_speaker": "test",
}


def spec(
  *,
  frames: int = 32,
  mels: int = 32,
  held_out_speakers: tuple[str, ...] = ("theo",),
  repeats: int = 20,
  raw: str = "",
) -> Spec:
  """Image 32x32x1, word (5 letters), sound (one second, log-mel); label and speaker.

  Args:
    frames: of the log-mel spectrogram.
    mels: of the log-mel spectrogram.
    held_out_speakers: never heard in training.
    repeats: how often the training images are dealt.
    raw: the recordings' zip or folder; needed once, see `spoken_digits`.
  """
  del raw
  unknown = sorted(set(held_out_speakers) - set(SPEAKERS))
  if unknown or not 0 < len(set(held_out_speakers)) < len(SPEAKERS):
    raise ValueError(
      f"held_out_speakers={held_out_speakers}: name some, not all, of {SPEAKERS}"
    )
  if repeats < 1:
    raise ValueError(f"repeats={repeats}: at least 1")
  letters = sorted(set("".join(WORDS)))
  return Spec(
    "digits",
    {
      "image": modality.image(32, 32, 1),
      "sound": modality.audio(frames, mels, SAMPLE_RATE_HZ),
      "word": modality.text(letters, max(map(len, WORDS)), "char"),
    },
    {"digit": tuple(WORDS), "speaker": SPEAKERS},
    SPLITS,
  )


def load(split: str, data_dir, **options) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    FileNotFoundError: if MNIST or the recordings have to be fetched first.
    ValueError: if they are not what they should be.
  """
  about = spec(**options)
  about.check_split(split)
  sound = about.modalities["sound"]
  speech = _speech(sound.shape, data_dir, options.get("raw") or None)
  pictures = images.stored("mnist", _IMAGES[split], data_dir, size=32, fit="pad")

  held_out = options.get("held_out_speakers", ("theo",))
  heard = np.isin(speech["speaker"], [SPEAKERS.index(name) for name in held_out])
  early = speech["recording"] < TEST_RECORDINGS
  wanted = {"train": ~heard & ~early, "test_speaker": heard}.get(split, ~heard & early)
  kept = np.flatnonzero(wanted)
  repeats = options.get("repeats", 20) if split == "train" else 1
  seed = 1 + SPLITS.index(split)
  pairs = pair(pictures["label"], speech["digit"][kept], repeats, seed)
  digit = pictures["label"][pairs[0]].astype(np.int32)
  return Examples(
    "digits",
    split,
    about.modalities,
    {"digit": digit, "speaker": speech["speaker"][kept][pairs[1]].astype(np.int32)},
    about.label_names,
    {
      "image": Column(pictures["image"], pairs[0]),
      "sound": Column(np.asarray(speech["sound"])[kept], pairs[1]),
      "word": Column(modality.tokenise(about.modalities["word"], WORDS), digit),
    },
    read.fingerprint(
      name="digits",
      version=VERSION,
      split=split,
      sound=sound.shape,
      held_out=sorted(held_out),
      repeats=repeats,
      images=pictures["source"],
      recordings=hashlib.sha256(speech["sound"].tobytes()).hexdigest(),
    ),
  )


def pair(
  first: np.ndarray, second: np.ndarray, repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of equal digits: int32 row numbers into both, sorted by nothing.

  In each repeat every row of `first` occurs once; the rows of `second` are dealt from
  permutations, a fresh one as soon as one is used up.

  Args:
    first: digits [n].
    second: digits [m].
    repeats: of `first`.
    seed: of the permutations.
  """
  pairs = []
  for digit in range(10):
    mine, theirs = np.flatnonzero(first == digit), np.flatnonzero(second == digit)
    if len(mine) and not len(theirs):
      raise ValueError(f"no recording of the digit {digit} for {len(mine)} images")
    if not len(mine):
      continue
    deals = -(-len(mine) * repeats // len(theirs))
    left = [
      mine[order.permutation((seed, digit, 0, r), len(mine))] for r in range(repeats)
    ]
    right = [
      theirs[order.permutation((seed, digit, 1, d), len(theirs))] for d in range(deals)
    ]
    left = np.concatenate(left)
    pairs.append(np.stack([left, np.concatenate(right)[: len(left)]]))
  joined = np.concatenate(pairs, axis=1).astype(np.int32)
  shuffled = joined[:, order.permutation((seed, 10), joined.shape[1])]
  return shuffled[0], shuffled[1]


def _speech(shape: tuple[int, ...], data_dir, raw) -> dict[str, np.ndarray]:
  """All recordings: log-mel "sound", "digit", "speaker", "recording"."""
  frames, mels = shape

  def open_builder():
    from mmgen_jax.data.spoken_digits import SpokenDigits  # imports TFDS

    return read.prepare(SpokenDigits, data_dir, raw=raw)

  columns = read.read(
    open_builder,
    "recordings",
    functools.partial(_decode, frames=frames, mels=mels),
    what={"name": "spoken_digits", "version": VERSION, "frames": frames, "mels": mels},
    data_dir=data_dir,
  )
  return {name: np.asarray(values) for name, values in columns.items()}


def _decode(records, *, frames: int, mels: int) -> dict[str, np.ndarray]:
  clips = np.stack([clip(record["audio"]) for record in records])
  numbers = {
    name: np.array([record[name] for record in records], np.int32)
    for name in ("digit", "speaker", "recording")
  }
  sound = log_mel(clips, sample_rate_hz=SAMPLE_RATE_HZ, frames=frames, mels=mels)
  return {"sound": sound, **numbers}


def clip_of(sound: np.ndarray, rate_hz: int) -> np.ndarray:
  """`clip` of a sound of any rate, float64 [t] in [-1, 1)."""
  return clip(waves.to_int16(waves.resample(sound, rate_hz, SAMPLE_RATE_HZ)))


def clip(wave: np.ndarray, samples: int = SAMPLE_RATE_HZ) -> np.ndarray:
  """One second, int16 [samples], at a common level, its energy in the middle.

  A longer recording keeps its loudest second; a shorter one lies in silence. The level
  is that of the loudest quarter of a second, set to -20 dB of full scale. Speakers
  differ by 30 dB in level, and one of them pauses before he speaks: a kernel classifier
  that never heard a speaker reads his digits with .58 accuracy on average over the six
  from raw levels and starts, .80 with the level set, .87 with both.
  """
  wave = wave.astype(np.float64)
  first, _ = waves.loudest(wave, min(samples, len(wave)))
  energy = wave[first : first + samples] ** 2
  centre = first + np.arange(len(energy)) @ energy / max(energy.sum(), 1.0)
  room = len(wave) - samples  # to move in; all of a short recording is kept
  first = int(np.clip(np.rint(centre - samples / 2), min(0, room), max(0, room)))
  wave = np.pad(wave[max(0, first) :], (max(0, -first), samples))[:samples]
  _, power = waves.loudest(wave, samples // 4)
  return waves.to_int16(wave * (0.1 / np.sqrt(max(power, 1.0))))
