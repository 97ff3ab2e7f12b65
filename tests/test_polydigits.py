"""Poly digits: what is paired, what is drawn, what is missing."""

import numpy as np
import pytest
from PIL import Image

from mmgen_jax import data as datasets
from mmgen_jax.data import images, order, polydigits, read, textures


@pytest.fixture(scope="module")
def backgrounds():
  return {name: textures.texture(name, 0, size=96) for name in textures.NAMES}


def test_a_digit_can_be_told_from_its_negative_everywhere(backgrounds):
  # An inverted grey of one half would be invisible.
  for name, pixels in backgrounds.items():
    contrast = np.abs(255 - 2 * pixels.astype(int)).max(-1)
    assert np.quantile(contrast, 0.1) > 60, name
    same = textures.texture(name, 0, size=96)
    np.testing.assert_array_equal(pixels, same)
    assert (pixels != textures.texture(name, 1, size=96)).any()


def test_backgrounds_differ_from_each_other_more_than_crops_of_one(backgrounds):
  names = list(backgrounds)
  colour = np.stack([backgrounds[name].reshape(-1, 3).mean(0) for name in names])
  gaps = np.linalg.norm(colour[:, None] - colour, axis=-1)
  assert gaps[~np.eye(len(names), dtype=bool)].min() > 20


def test_modalities_share_the_digit_and_not_the_hand():
  digit = np.random.default_rng(0).integers(0, 10, 2000)
  rows = polydigits.pairs(digit, 4, (3, 0))
  assert rows.shape == (4, 2000)
  assert (digit[rows] == digit[rows[0]]).all()
  for m in range(4):
    assert len(set(rows[m])) == 2000  # every image once in each
  assert (rows[0] == rows[1]).mean() < 0.05
  first = digit[rows[0, :500]]
  assert np.bincount(first, minlength=10).min() > 25  # in random order
  np.testing.assert_array_equal(rows[:2], polydigits.pairs(digit, 2, (3, 0)))


def test_a_picture_is_a_crop_inverted_where_the_digit_is(backgrounds):
  digits = np.zeros((5, 28, 28), np.uint8)
  digits[:, 5:9] = 200
  digits[:, 20:22] = 128  # not above
  made = polydigits.compose(digits, backgrounds["clouds"], (1, 2))
  plain = polydigits.compose(0 * digits, backgrounds["clouds"], (1, 2))
  np.testing.assert_array_equal(made[:, 5:9], 255 - plain[:, 5:9])
  np.testing.assert_array_equal(made[:, 9:], plain[:, 9:])
  assert (plain[0] != plain[1]).any()
  later = polydigits.compose(digits[3:], backgrounds["clouds"], (1, 2), first=3)
  np.testing.assert_array_equal(later, made[3:])
  windows = np.lib.stride_tricks.sliding_window_view(backgrounds["clouds"], (28, 28, 3))
  assert (windows[:, :, 0] == plain[0]).all((2, 3, 4)).any()


def test_your_own_photos_by_sorted_name(tmp_path):
  for name, tone in (("b.png", 10), ("a.png", 90), ("c.jpg", 200)):
    Image.new("RGB", (40, 30), (tone, 0, 0)).save(tmp_path / name)
  (tmp_path / "notes.txt").write_text("not a picture")
  pictures = polydigits._backgrounds(2, 0, str(tmp_path))
  assert [p[0, 0, 0] for p in pictures] == [90, 10]
  with pytest.raises(FileNotFoundError, match="3 pictures"):
    polydigits._backgrounds(4, 0, str(tmp_path))
  Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
  with pytest.raises(ValueError, match="at least 28"):
    polydigits._backgrounds(1, 0, str(tmp_path))


@pytest.mark.parametrize(
  "options", [{"backgrounds": 1}, {"backgrounds": 11}, {"train_examples": 0}, {"x": 1}]
)
def test_options_that_are_no_good_are_refused(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    datasets.spec("polydigits", **options)


def test_prepared_from_mnist_and_read_back(data_root, tmp_path):
  (tmp_path / "mnist").symlink_to(f"{data_root}/tfds/mnist")
  options = {
    "backgrounds": 3,
    "train_examples": 60,
    "validation_examples": 30,
    "test_examples": 30,
  }
  got = {
    s: datasets.load("polydigits", s, tmp_path, **options) for s in ("train", "test")
  }
  train = got["train"]
  assert len(train) == 60 and list(train.modalities) == ["m0", "m1", "m2"]
  background = textures.texture("rings", 0)
  stored = images.stored("mnist", "train[:55000]", tmp_path, size=28)
  rows = polydigits.pairs(np.asarray(stored["label"]), 3, (0, 0))[:, :60]
  np.testing.assert_array_equal(stored["label"][rows[1]], train.labels["digit"])
  want = polydigits.compose(stored["image"][rows[1]][..., 0], background, (0, 0, 1))
  np.testing.assert_array_equal(train.columns["m1"].take(np.arange(60)), want)
  assert got["test"].fingerprint != train.fingerprint
  assert read.fingerprint() != train.fingerprint


def test_missing_by_modality_and_by_label():
  n, names = 20_000, ("a", "b", "c")
  mask = order.missing_mask(0, n, names, {"a": 0.2, "b": 0.6})
  shares = [mask[name].mean() for name in names]
  np.testing.assert_allclose(shares, [0.8, 0.4, 1.0], atol=0.015)
  labels = np.arange(n) % 2
  rates = order.rates_by_label({"b": (0.1, 0.9)}, labels)
  kept = order.missing_mask(0, n, names, rates)["b"]
  np.testing.assert_allclose(
    [kept[labels == k].mean() for k in (0, 1)], [0.9, 0.1], atol=0.015
  )
  few = {"b": rates["b"][:10]}
  np.testing.assert_array_equal(order.missing_mask(0, 10, names, few)["b"], kept[:10])
  bare = order.missing_mask(0, n, names, dict.fromkeys(names, 1.0))
  assert (np.stack(list(bare.values())).sum(0) == 1).all()
  with pytest.raises(ValueError, match="2 classes"):
    order.rates_by_label({"b": (0.1, 0.9)}, labels + 1)
  with pytest.raises(ValueError, match="missing_label"):
    order.rates_by_label({"b": (0.1, 0.9)}, None)
  with pytest.raises(ValueError, match="no modality"):
    order.missing_mask(0, 5, names, {"z": 0.5})
