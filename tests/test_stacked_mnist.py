"""StackedMNIST: what is stacked, how it is read, and what a perfect model gets."""

import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from mmgen_jax import data as datasets
from mmgen_jax import scores, spread
from mmgen_jax.data import feeds, images, modality, stacked_mnist
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.metrics import channels, judges

SMALL = {"train_examples": 30, "validation_examples": 5, "test_examples": 40}
MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)


def stacked(n=40, singles=12, side=8) -> Examples:
  """Grey images whose level is ten times their digit, in three channels."""
  rng = np.random.default_rng(0)
  digit = (np.arange(singles) % 10).astype(np.int32)
  values = np.broadcast_to(
    10 * digit.astype(np.uint8)[:, None, None, None], (singles, side, side, 1)
  )
  rows = rng.integers(0, singles, (n, 3)).astype(np.int32)
  names = dict.fromkeys(stacked_mnist.CHANNELS, tuple("0123456789"))
  return Examples(
    "stacked_mnist",
    "test",
    {"image": modality.image(side, side, 3)},
    dict(zip(names, digit[rows].T, strict=True)),
    names,
    {"image": Column(values.copy(), rows)},
    "f",
  )


class BrightnessReader:
  """Reads the digit of `stacked` off the level; the mean level is the feature."""

  name, sha256 = "brightness", "0" * 64

  def __call__(self, values):
    level = values.mean((1, 2, 3))
    return level[:, None], {channels.LABEL: np.rint(level / 10).astype(np.int32)}

  def probabilities(self, features):
    return np.eye(10)[np.rint(features[:, 0] / 10).astype(int)]


READER: channels.ByChannel = channels.ByChannel(
  BrightnessReader(),  # pyright: ignore[reportArgumentType]
  stacked_mnist.CHANNELS,
)


def test_every_deal_has_every_digit_once_in_every_channel():
  rows = stacked_mnist.triples(3, "train", 35, 10)
  assert rows.shape == (35, 3) and rows.dtype == np.int32
  for deal in (rows[:10], rows[10:20], rows[20:30]):
    np.testing.assert_array_equal(np.sort(deal, 0), np.arange(10)[:, None] + [0, 0, 0])
  np.testing.assert_array_equal(rows[:7], stacked_mnist.triples(3, "train", 7, 10))
  assert not (rows[:, 0] == rows[:, 1]).all() and not (rows[:10] == rows[10:20]).all()
  for other in ((4, "train"), (3, "test")):
    assert (rows != stacked_mnist.triples(*other, 35, 10)).any()


def test_stacked_rows_become_channels_on_both_feeds():
  examples = stacked()
  column = examples.columns["image"]
  assert column.stacked and column.shape == (8, 8, 3) and len(column) == 40
  digits = np.stack([examples.labels[name] for name in stacked_mnist.CHANNELS], -1)
  taken = column.take(np.array([7, 0]))
  np.testing.assert_array_equal(taken[:, 2, 3], 10 * digits[[7, 0]])
  batches = []
  for make in (feeds.resident_feed, feeds.streamed_feed):
    feed = make(examples, seed=1, batch_size=8)
    inputs = jax.tree.map(lambda x: x[0], feed.inputs(2, 1))
    batches.append(jax.tree.map(np.asarray, jax.jit(feed.fetch)(feed.data, inputs)))
    feed.close()
  a, b = batches
  np.testing.assert_array_equal(a["image"], b["image"])
  np.testing.assert_array_equal(
    modality.to_stored(examples.modalities["image"], a["image"])[:, 0, 0],
    10 * digits[a["index"]],
  )


def test_only_grey_images_are_stacked():
  column = Column(np.zeros((4, 2, 2, 3), np.uint8), np.zeros((5, 3), np.int32))
  with pytest.raises(ValueError, match="one channel"):
    column.shape  # noqa: B018


def test_load_stacks_mnist_itself(data_root, tmp_path):
  (tmp_path / "mnist").symlink_to(Path(data_root).resolve() / "tfds/mnist")
  test = datasets.load("stacked_mnist", "test", tmp_path, **SMALL)
  alone = images.load("test", tmp_path, tfds="mnist", size=32)
  rows = stacked_mnist.triples(0, "test", 40, 10_000)
  batch = test.rows(np.arange(40))
  for c, name in enumerate(stacked_mnist.CHANNELS):
    one = alone.rows(rows[:, c])
    np.testing.assert_array_equal(batch["image"][..., c], one["image"][..., 0])
    np.testing.assert_array_equal(batch["labels"][name], one["labels"]["label"])
  other = datasets.load("stacked_mnist", "test", tmp_path, seed=1, **SMALL)
  assert other.fingerprint != test.fingerprint
  with pytest.raises(ValueError, match="size=64"):
    datasets.spec("stacked_mnist", size=64)


def test_singles_are_what_is_used_each_once():
  examples = stacked(n=3)
  one = channels.singles(examples, "image")
  used = np.unique(examples.columns["image"].rows)
  level = one.columns["image"].values[:, 0, 0, 0]
  np.testing.assert_array_equal(one.labels[channels.LABEL], used % 10)
  np.testing.assert_array_equal(level, 10 * (used % 10))
  assert one.fingerprint == channels.singles(examples, "image").fingerprint
  assert one.fingerprint != channels.singles(stacked(n=40), "image").fingerprint


def test_channels_are_read_one_by_one():
  examples = stacked()
  image = examples.columns["image"].take(np.arange(9))
  features, read = READER(image)
  np.testing.assert_allclose(features, image.mean((1, 2)))
  for name in stacked_mnist.CHANNELS:
    np.testing.assert_array_equal(read[name], examples.labels[name][:9])


def test_the_judge_of_stacked_images_is_one_classifier_of_grey_ones(
  tmp_path, monkeypatch
):
  recipe = dataclasses.replace(
    judges.RECIPES["stacked_mnist", "image"], steps=2, width=8, features=8
  )
  monkeypatch.setitem(judges.RECIPES, ("stacked_mnist", "image"), recipe)
  examples = stacked()
  reader = judges.make(examples, ["image"], tmp_path).extractors["image"]
  assert reader.name == "mmgen-stacked_mnist-image-v1-by-channel"
  features, read = reader(examples.columns["image"].take(np.arange(20)))
  p = reader.probabilities(features)
  assert p.shape == (20, 1000) and np.allclose(p.sum(1), 1.0)
  seen = spread.reading(read, stacked_mnist.CHANNELS)
  np.testing.assert_array_equal(p.argmax(1), seen)


def test_entries_measure_the_spread_beside_its_floors():
  examples = stacked()
  judge = judges.as_judge(READER)
  by = judges.Judges({"image": judge}, {})
  setting = scores.Setting(examples, np.arange(40), by)
  ones = np.ones(40, np.int32)
  read = {"red": ones, "green": 2 * ones, "blue": np.arange(40) % 4}
  entries = spread.uniform_entries(
    setting, {((), "image"): read}, {"image": {"name": "b"}}
  )
  found = {e["metric"]: e for e in entries}
  assert found["modes/kl_to_uniform"]["value"] == pytest.approx(np.log(250))
  assert found["modes/kl_to_uniform"]["total"] == 1000
  distinct = len(np.unique(np.stack(list(examples.labels.values())), axis=1).T)
  assert found["floor/modes/count"]["value"] == distinct  # the reader is perfect
  plain = types.SimpleNamespace(stacked=False)
  other = types.SimpleNamespace(columns={"image": plain}, label_names={})
  assert not spread.uniform_entries(
    setting._replace(examples=other),  # pyright: ignore[reportArgumentType]
    {((), "image"): read},
    {},
  )


def test_floors_are_those_of_the_literature():
  digits = np.repeat(np.arange(10), MNIST_TRAIN)
  data = spread.frequencies(digits)
  assert data.shape == (1000,) and data.sum() == pytest.approx(1.0)
  p = np.array(MNIST_TRAIN) / 60_000
  assert data[307] == pytest.approx(p[3] * p[0] * p[7])
  assert (data * np.log(1000 * data)).sum() == pytest.approx(3 * 0.00143, abs=3e-5)
  uniform, of_data = spread.floors(26_000, data).values()
  assert uniform["reverse_kl"] == pytest.approx(0.0194, abs=2e-4)  # 999 / 52,000
  assert uniform["sd"] == pytest.approx(0.0009, abs=2e-4)
  assert of_data["reverse_kl"] == pytest.approx(0.0236, abs=3e-4)
