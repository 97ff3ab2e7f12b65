"""Prepared TFDS sets as columns: the cache, TFDS image sets, names and options."""

import io
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmgen_jax import data
from mmgen_jax.data import feeds, images, pixels, read

N = 40


def picture_of(index: int) -> np.ndarray:
  rng = np.random.default_rng(index)
  return rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)


class Numbered(tfds.core.GeneratorBasedBuilder):
  """Pictures with numbers; prepared without TensorFlow, as anyone may."""

  VERSION = tfds.core.Version("1.2.0")
  made = 0

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(20, 24, 3)),
      "label": tfds.features.ClassLabel(names=["even", "odd"]),
      "number": tfds.features.Scalar(np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    type(self).made += 1
    for i in range(N):
      encoded = io.BytesIO()
      Image.fromarray(picture_of(i)).save(encoded, "PNG")
      yield i, {"image": encoded.getvalue(), "label": i % 2, "number": i}


def decode(records):
  return {
    "image": np.stack([read.image_array(record["image"], 3) for record in records]),
    "number": np.array([record["number"] for record in records], np.int32),
  }


def never():
  raise AssertionError("the cache was there")


def read_numbered(folder, decode=decode, open_builder=None, version=1):
  return read.read(
    open_builder or (lambda: read.prepare(Numbered, folder)),
    "train",
    decode,
    what={"name": "numbered", "version": version},
    data_dir=folder,
  )


def test_columns_are_decoded_once_and_mapped(tmp_path):
  made = Numbered.made
  first = read_numbered(tmp_path)
  np.testing.assert_array_equal(first["number"], np.arange(N))
  np.testing.assert_array_equal(first["image"][7], picture_of(7))
  again = read_numbered(tmp_path, open_builder=never)
  assert all(isinstance(values, np.memmap) for values in again.values())
  np.testing.assert_array_equal(again["image"], first["image"])
  assert read_numbered(tmp_path, version=2)["number"].shape == (N,)
  assert Numbered.made == made + 1  # another cache, the same prepared set
  there = tfds.data_source("numbered", split="train", data_dir=tmp_path, download=False)
  assert [record["number"] for record in there] == list(range(N))


@pytest.mark.parametrize("damage", ["cut", "header", "about", "gone", "swapped"])
def test_damaged_cache_is_made_again(tmp_path, damage):
  read_numbered(tmp_path)
  (folder,) = (tmp_path / "decoded").glob("numbered-*")
  file = folder / "image.npy"
  if damage == "cut":
    os.truncate(file, file.stat().st_size - 1)
  elif damage == "header":
    file.write_bytes(b"nonsense" + file.read_bytes()[8:])
  elif damage == "about":
    (folder / "about.json").write_text("{")
  elif damage == "swapped":
    file.write_bytes((folder / "number.npy").read_bytes())
  else:
    file.unlink()
  columns = read_numbered(tmp_path)
  np.testing.assert_array_equal(columns["image"][3], picture_of(3))
  read_numbered(tmp_path, open_builder=never)


def test_failed_decoding_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(read, "BLOCK", 16)

  def fail_late(records):
    if records[0]["number"] == 32:
      raise OSError("a broken picture")
    return decode(records)

  with pytest.raises(ValueError, match="records 32 to 39 of numbered/train.*broken"):
    read_numbered(tmp_path, fail_late)
  with pytest.raises(ValueError, match="gave columns of"):
    read_numbered(tmp_path, lambda records: {"x": np.zeros(len(records) - 1)})
  assert not [p for p in (tmp_path / "decoded").iterdir() if p.is_dir()]
  assert len(read_numbered(tmp_path)["number"]) == N  # in blocks of 16, 16, 8


def test_two_at_once_do_the_work_once(tmp_path):
  made, calls, got = Numbered.made, [], []

  def count(records):
    calls.append(len(records))
    return decode(records)

  def work():
    got.append(read_numbered(tmp_path, count)["number"].sum())

  threads = [threading.Thread(target=work) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert calls == [N] and Numbered.made == made + 1
  assert got == [N * (N - 1) // 2] * 3


def test_where_nobody_may_write(tmp_path, monkeypatch):
  kept, own = tmp_path / "kept", tmp_path / "own"
  monkeypatch.setenv("MMGEN_CACHE_DIR", str(own))
  read.prepare(Numbered, kept)
  kept.chmod(0o555)
  made = Numbered.made
  read_numbered(kept)  # prepared there, decoded here
  assert Numbered.made == made
  assert not (kept / "decoded").exists() and (own / "decoded").exists()
  assert read.writable_dir("gs://bucket/data") == own
  assert read.writable_dir(kept / "new" / "folder") == own
  assert read.writable_dir(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
  kept.chmod(0o755)


def test_fingerprints_tell_values_apart():
  assert read.fingerprint(a=1, b=(2, 3)) == read.fingerprint(b=[2, 3], a=1)
  assert read.fingerprint(a=1) != read.fingerprint(a=2)


def test_images_of_a_prepared_set(tmp_path):
  read.prepare(Numbered, tmp_path)
  whole = {}
  for split, rows in [("train", (0, 32)), ("validation", (36, 40)), ("test", (32, 36))]:
    examples = data.load("images", split, tmp_path, tfds="numbered", size=16)
    whole[split] = examples
    expected = [
      pixels.fit(Image.fromarray(picture_of(i)), 16, "resize") for i in range(*rows)
    ]
    np.testing.assert_array_equal(examples.columns["image"].values, expected)
    np.testing.assert_array_equal(examples.labels["label"], np.arange(*rows) % 2)
  about = data.spec("images", tfds="numbered", size=16, data_dir=str(tmp_path))
  assert about.modalities == whole["train"].modalities
  own = dict(tfds="numbered", size=16, data_dir=str(tmp_path))
  again = data.load("images", "test", tmp_path / "elsewhere", **own)
  assert again.fingerprint == whole["test"].fingerprint
  assert about.label_names == {"label": ("even", "odd")}
  assert len({e.fingerprint for e in whole.values()}) == 3


@pytest.mark.parametrize("there", ["test validation", "test", "validation", ""])
def test_validation_and_test_are_carved_from_train_where_missing(tmp_path, there):
  sizes = {"train": 40, **dict.fromkeys(there.split(), 10)}
  rows = {}
  for name, part in images._parts(sizes).items():
    of, _, percent = part.partition("[")
    first, _, last = percent.rstrip("]").replace("%", "").partition(":")
    n = sizes[of]
    span = range(int(first or 0) * n // 100, int(last or 100) * n // 100)
    rows[name] = {(of, i) for i in span}
  assert all(rows.values())
  assert not rows["train"] & (rows["validation"] | rows["test"])
  assert rows["train"] <= {("train", i) for i in range(40)}
  carved = "validation" not in there or "test" not in there
  assert not carved or not rows["validation"] & rows["test"]
  with pytest.raises(ValueError, match="no split 'train'"):
    images._parts({"test": 10})


class Halves(Numbered):
  """The same with a split "test"."""

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples() for name in ("train", "test")}


def test_validation_may_be_test_and_train_whole(tmp_path):
  read.prepare(Halves, tmp_path)
  load = lambda split, **how: data.load("images", split, tmp_path, tfds="halves", **how)
  plain = {split: load(split) for split in data.SPLITS}
  whole = {split: load(split, validation="test") for split in data.SPLITS}
  assert {k: len(v) for k, v in plain.items()} == {
    "train": 36,
    "validation": 4,
    "test": 40,
  }
  assert {len(v) for v in whole.values()} == {40}
  images_of = lambda examples: np.asarray(examples.columns["image"].values)
  assert len(images_of(whole["train"])) == 40
  np.testing.assert_array_equal(
    images_of(whole["train"])[:36], images_of(plain["train"])
  )
  np.testing.assert_array_equal(
    images_of(whole["validation"]), images_of(plain["test"])
  )
  # Of other content, another fingerprint; a test is comparable with the same test.
  assert whole["test"].fingerprint == plain["test"].fingerprint
  prints = {e.fingerprint for part in (plain, whole) for e in part.values()}
  assert len(prints) == 5
  how = dict(tfds="halves", data_dir=str(tmp_path), validation="test")
  assert data.spec("images", **how).modalities == whole["train"].modalities
  for call in (load, lambda split, **how: data.spec("images", tfds="halves", **how)):
    with pytest.raises(ValueError, match="validation='tests': one of"):
      call("train", validation="tests")


@pytest.mark.parametrize("there", ["test validation", "test", "validation"])
def test_validation_as_test_is_whatever_test_is(there):
  splits = ["train", *there.split()]
  plain, made = images._parts(splits), images._parts(splits, "test")
  assert made == {"train": "train", "validation": plain["test"], "test": plain["test"]}
  with pytest.raises(ValueError, match="validation='test' wants a split 'test'"):
    images._parts(["train"], "test")


def test_images_pad_what_is_a_little_smaller(tmp_path):
  read.prepare(Numbered, tmp_path)
  padded = data.load("images", "train", tmp_path, tfds="numbered", size=32)
  image = padded.columns["image"].values[0]
  np.testing.assert_array_equal(image[6:26, 4:28], picture_of(0))
  assert image.sum() == picture_of(0).sum()
  with pytest.raises(ValueError, match="cannot be padded to 16"):
    data.load("images", "train", tmp_path, tfds="numbered", size=16, fit="pad")


def test_images_decoded_on_access_are_the_same(tmp_path):
  read.prepare(Numbered, tmp_path)
  options = dict(tfds="numbered", size=16)
  cached = data.load("images", "train", tmp_path, **options)
  lazy = data.load("images", "train", tmp_path, cached=False, **options)
  index = np.array([5, 0, 31])
  for examples in (lazy, pickle.loads(pickle.dumps(lazy))):
    got, expected = examples.rows(index), cached.rows(index)
    np.testing.assert_array_equal(got["image"], expected["image"])
    np.testing.assert_array_equal(got["labels"]["label"], expected["labels"]["label"])
  feed = feeds.streamed_feed(lazy, seed=0, batch_size=4)
  assert feed.inputs(0, 2)["image"].shape == (2, 4, 16, 16, 3)
  feed.close()


def test_unprepared_sets_say_what_they_take(tmp_path, monkeypatch):
  monkeypatch.setattr(read, "offline_reason", lambda url: "no route")
  monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(FileNotFoundError) as error:
    data.load("images", "train", tmp_path, tfds="mnist")
  for part in ("mnist/3", "needs the tf extra", "no network here (no route)", "pip"):
    assert part in str(error.value)
  monkeypatch.setattr(read, "offline_reason", lambda url: "")
  with pytest.raises(FileNotFoundError) as error:
    data.load("images", "train", tmp_path, tfds="tf_flowers")
  for part in ("without TensorFlow", "needs a download", "file_format='array_record'"):
    assert part in str(error.value)
  assert "pip" not in str(error.value) and "\n" not in str(error.value)
  for call in (data.load, lambda name, *_, **o: data.spec(name, **o)):
    with pytest.raises(ValueError, match="'no_such_set'"):
      call("images", "train", tmp_path, tfds="no_such_set")


def test_a_set_stored_another_way_is_refused(tmp_path):
  builder = read.prepare(Numbered, tmp_path)
  info = builder.data_path / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="stored as tfrecord"):
    data.load("images", "train", tmp_path, tfds="numbered")


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: data.load("nonsense", "train", "x"),
      "'digits', 'factors', 'folder', 'images'",
    ),
    (lambda: data.spec("nonsense"), "no data set is called 'nonsense'"),
    (lambda: data.spec("digits", sise=3), r"no option \['sise'\]; it has \['frames'"),
    (lambda: data.load("digits", "tset", "x"), "no split 'tset'; it has"),
    (lambda: data.spec("images", tfds="mnist", size=0), "size=0"),
    (lambda: data.spec("images", tfds="mnist", fit="crop"), "fit='crop'"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_mnist_is_pixel_exact(data_root, tmp_path, monkeypatch):
  monkeypatch.setenv("MMGEN_CACHE_DIR", str(tmp_path))
  stored = images.stored(
    "mnist", "test[:100]", os.path.join(data_root, "tfds"), size=28
  )
  source = tfds.data_source(
    "mnist",
    split="test[:100]",
    data_dir=os.path.join(data_root, "tfds"),
    download=False,
  )
  for image, label, record in zip(
    stored["image"], stored["label"], source, strict=True
  ):
    np.testing.assert_array_equal(image, record["image"])
    assert label == record["label"]


def test_reading_needs_no_tensorflow(tmp_path):
  code = (
    "import sys, test_read; from mmgen_jax import data;"
    "test_read.read.prepare(test_read.Numbered, sys.argv[1]);"
    "data.load('images', 'train', sys.argv[1], tfds='numbered');"
    "sys.exit('tensorflow' in sys.modules)"
  )
  path = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
  done = subprocess.run([sys.executable, "-c", code, tmp_path], env=path)
  assert done.returncode == 0
