"""Digits: pairs that share the digit and nothing else, speakers kept apart."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from test_media import wav

from mmgen_jax import data
from mmgen_jax.data import digits, feeds, modality, read, spoken_digits

SPLITS = ("train", "validation", "test", "test_speaker")


def tone(digit: int, speaker: int, index: int) -> np.ndarray:
  time = np.arange(800 + 10 * index) / 8000
  return 3000 * np.sin(2 * np.pi * (300 + 150 * digit + 20 * speaker) * time)


def names_and_contents(speakers=("theo", "lucas"), recordings=7):
  for digit in range(10):
    for s, speaker in enumerate(speakers):
      for i in range(recordings):
        yield f"fsdd-1.0/recordings/{digit}_{speaker}_{i}.wav", wav(tone(digit, s, i))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  path = tmp_path_factory.mktemp("raw") / "fsdd.zip"
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in names_and_contents():
      archive.writestr(name, content)
    archive.writestr("fsdd-1.0/README.md", "not a recording")
  return path


@pytest.fixture
def small_mnist(monkeypatch):
  """In the place of MNIST: 60 images a split, which say their digit and number."""

  def stored(name, split, data_dir, *, size, fit):
    assert (name, size, fit) == ("mnist", 32, "pad")
    label = np.random.default_rng(len(split)).integers(0, 10, 60).astype(np.int32)
    image = np.zeros((60, 32, 32, 1), np.uint8)
    image[:, 0, 0, 0], image[:, 0, 1, 0] = label, np.arange(60)
    return {"image": image, "label": label, "source": f"made/{split}"}

  monkeypatch.setattr(digits.images, "stored", stored)


def check_pairs(examples):
  """Image, sound and word agree in the digit that the label names."""
  labels = examples.labels["digit"]
  some = np.random.default_rng(0).integers(0, len(examples), 200)
  rows = examples.rows(some)
  words = modality.detokenise(examples.modalities["word"], rows["word"])
  assert words == [digits.WORDS[d] for d in labels[some]]
  return rows


def test_pairs_are_dealt_evenly():
  rng = np.random.default_rng(0)
  first, second = rng.integers(0, 10, 500), rng.integers(0, 10, 70)
  left, right = digits.pair(first, second, repeats=4, seed=1)
  assert left.dtype == right.dtype == np.int32
  np.testing.assert_array_equal(first[left], second[right])
  assert (np.bincount(left, minlength=500) == 4).all()  # every image in every repeat
  for digit in range(10):
    dealt = np.bincount(right, minlength=70)[second == digit]
    assert dealt.max() - dealt.min() <= 1
  assert len(set(zip(left.tolist(), right.tolist(), strict=True))) > 1500  # of 2000
  again = digits.pair(first, second, repeats=4, seed=1)
  np.testing.assert_array_equal(again, (left, right))
  assert (digits.pair(first, second, repeats=4, seed=2)[1] != right).any()
  with pytest.raises(ValueError, match="no recording of the digit 3"):
    digits.pair(np.array([3]), np.array([1]), 1, 0)


def test_clip_finds_the_word_and_sets_its_level():
  burst = np.sin(np.arange(2000)) * np.hanning(2000)
  cases = [(0, 2000, 300), (5000, 7500, 20000), (9000, 16000, 90), (9000, 11000, 900)]
  for start, total, level in cases:
    sound = np.zeros(total)
    sound[start : start + 2000] = level * burst
    made = digits.clip(np.rint(sound).astype(np.int16)).astype(np.float64)
    assert made.shape == (8000,)
    energy = made**2
    centre = np.arange(8000) @ energy / energy.sum()
    expected = {7500: 6000, 11000: 7000}.get(total, 4000)  # kept whole; at the end
    assert abs(centre - expected) < 20
    level = np.sqrt(energy.sum() / 2000) / 32768
    assert abs(level - 0.1) < 0.005
  assert not digits.clip(np.zeros(100, np.int16)).any()


def test_zip_and_folder_hold_the_same(raw, tmp_path):
  with zipfile.ZipFile(raw) as archive:
    archive.extractall(tmp_path)
  of_zip, of_folder = (
    [(key, content) for key, _, content in spoken_digits.recordings(path)]
    for path in (raw, tmp_path)
  )
  assert len(of_zip) == 140 and of_zip == of_folder


def test_every_split_keeps_its_own_recordings(raw, small_mnist, tmp_path):
  made = {
    split: data.load("digits", split, tmp_path, raw=str(raw), repeats=3)
    for split in SPLITS
  }
  assert {split: len(e) for split, e in made.items()} == {
    "train": 180,
    "validation": 60,
    "test": 60,
    "test_speaker": 60,
  }
  theo, lucas = (digits.SPEAKERS.index(name) for name in ("theo", "lucas"))
  for split, examples in made.items():
    check_pairs(examples)
    expected = {theo} if split == "test_speaker" else {lucas}
    assert set(examples.labels["speaker"].tolist()) == expected
  sounds = {split: e.columns["sound"].values for split, e in made.items()}
  assert {k: len(v) for k, v in sounds.items()} == {
    "train": 20,
    "validation": 50,
    "test": 50,
    "test_speaker": 70,
  }
  of_train = {sound.tobytes() for sound in sounds["train"]}
  for split in SPLITS[1:]:
    assert not of_train & {sound.tobytes() for sound in sounds[split]}
  assert len({e.fingerprint for e in made.values()}) == 4
  other = data.load("digits", "train", tmp_path, held_out_speakers=("lucas",))
  assert set(other.labels["speaker"].tolist()) == {theo}  # and raw is not needed again
  assert other.fingerprint != made["train"].fingerprint
  feed = feeds.resident_feed(made["train"], seed=0, batch_size=8)
  small = feed.data["columns"]["word"]
  assert small["values"].dtype == small["rows"].dtype == np.uint8


def test_raw_comes_from_the_environment(raw, small_mnist, tmp_path, monkeypatch):
  monkeypatch.setattr(read, "offline_reason", lambda url: "no route")
  monkeypatch.delenv("MMGEN_RAW_AUDIO", raising=False)
  with pytest.raises(FileNotFoundError, match="no route.*MMGEN_RAW_AUDIO"):
    data.load("digits", "test", tmp_path)
  monkeypatch.setenv("MMGEN_RAW_AUDIO", str(raw))
  assert len(data.load("digits", "test", tmp_path)) == 60


@pytest.mark.parametrize(
  "files, message",
  [
    ({"a.txt": b""}, "no recordings called DIGIT_SPEAKER_INDEX.wav"),
    ({"1_nobody_0.wav": b""}, "unknown speaker"),
    ({"a/1_theo_0.wav": b"", "b/1_theo_0.wav": b""}, "same recording twice"),
    ({"1_theo_0.wav": b"nonsense"}, "1_theo_0.wav: not a wav, FLAC, Ogg or MP3 file"),
    ({"1_theo_0.wav": wav([])}, "1_theo_0.wav: a sound file without samples"),
    ({"1_theo_0.wav": wav([1, 2], 16000)}, "sampled at 16000 Hz; wanted 8000"),
  ],
)
def test_bad_recordings_are_named(tmp_path, files, message):
  for name, content in files.items():
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    data.load("digits", "train", tmp_path, raw=str(tmp_path / "raw"))
  assert not list((tmp_path / "spoken_digits").glob("1.0.0"))  # nothing half-made


def test_bad_zip_and_bad_options_are_named(raw, tmp_path):
  broken = tmp_path / "broken.zip"
  content = bytearray(raw.read_bytes())
  content[len(content) // 2] ^= 1  # within a recording: its CRC is wrong
  broken.write_bytes(content)
  with pytest.raises(ValueError, match="sound zip"):
    list(spoken_digits.recordings(broken))
  with pytest.raises(FileNotFoundError, match="no raw audio at"):
    list(spoken_digits.recordings(tmp_path / "nowhere"))
  for held_out in [(), ("nobody",), digits.SPEAKERS]:
    with pytest.raises(ValueError, match="held_out_speakers"):
      data.spec("digits", held_out_speakers=held_out)
  with pytest.raises(ValueError, match="repeats=0"):
    data.spec("digits", repeats=0)


def test_real_digits(data_root, tmp_path, monkeypatch):
  monkeypatch.setenv("MMGEN_CACHE_DIR", str(tmp_path))
  mnist, zipped = (
    os.path.join(data_root, *part)
    for part in (["tfds"], ["raw", "free_spoken_digit.zip"])
  )
  speech = {
    split: data.load("digits", split, mnist, raw=zipped) for split in SPLITS[1:]
  }
  assert {split: len(e) for split, e in speech.items()} == {
    "validation": 5000,
    "test": 10000,
    "test_speaker": 10000,
  }
  about = data.spec("digits")
  theo = digits.SPEAKERS.index("theo")
  for split, examples in speech.items():
    assert examples.modalities == about.modalities
    rows = check_pairs(examples)
    assert rows["image"].any((1, 2, 3)).all() and not rows["image"][:, :2].any()
    assert rows["sound"].max((1, 2)).min() > 50
    heard = examples.labels["speaker"] == theo
    assert heard.all() if split == "test_speaker" else not heard.any()
    assert len(np.unique(examples.labels["digit"])) == 10
  assert len(speech["test"].columns["sound"].values) == 250  # 5 speakers, 10 digits, 5
  assert len(speech["test_speaker"].columns["sound"].values) == 500
  code = (
    "import sys; from mmgen_jax import data;"
    "data.load('digits', 'test', sys.argv[1]);"
    "sys.exit(' '.join({'tensorflow', 'tensorflow_datasets'} & set(sys.modules)) or 0)"
  )  # a second start opens the cache, and needs neither the zip nor TFDS
  done = subprocess.run([sys.executable, "-c", code, mnist], capture_output=True)
  assert done.returncode == 0, done.stderr
