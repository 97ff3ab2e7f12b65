"""The checker reads what is there, and says so where nothing can be read."""

import functools

import numpy as np
import pytest

from mmgen_jax.data import audio, sprites_render
from mmgen_jax.data import sprites_checker as checker

HELD_OUT = 2**41  # where the test split starts
LEVELS = sprites_render.LEVELS


@functools.cache
def examples(level, n=500, size=32):
  made = sprites_render.generate(0, HELD_OUT + np.arange(n), level, size)
  return {**made, "sound": heard(made["wave"])}


def heard(waves):
  return audio.log_mel(waves, sample_rate_hz=8000, frames=32, mels=32)


def right(read, labels):
  """Share of examples with every attribute right."""
  assert list(read) == list(labels)
  return np.mean([read[name] == labels[name] for name in labels], axis=1).min()


def strict(read, labels):
  return np.all([read[name] == labels[name] for name in labels], axis=0).mean()


def readable(read):
  """Share of examples with every attribute read, rightly or not."""
  return np.all([v != checker.UNREADABLE for v in read.values()], axis=0).mean()


def unreadable(read):
  return all((values == checker.UNREADABLE).all() for values in read.values())


def smooth(values, sigma):
  """Gaussian blur over the two axes after the first."""
  reach = int(3 * sigma + 1)
  kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
  kernel /= kernel.sum()
  values = values.astype(float)
  for axis in (1, 2):
    pad = [(reach, reach) if i == axis else (0, 0) for i in range(values.ndim)]
    wide = np.pad(values, pad, mode="edge")
    length = values.shape[axis]
    values = sum(
      weight * np.take(wide, np.arange(i, i + length), axis)
      for i, weight in enumerate(kernel)
    )
  return values


def stored(values):
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", checker.KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_held_out_examples_are_read_rightly(kind, level):
  real = examples(level, n=1000)
  read = checker.check(kind, real[kind], level)
  assert strict(read, real["labels"]) >= 0.999
  assert all(v.dtype == np.int32 and v.shape == (1000,) for v in read.values())


@pytest.mark.parametrize("level", (2, 5))
def test_larger_pictures_are_read_too(level):
  real = examples(level, n=300, size=64)
  read = checker.check("image", real["image"], level)
  assert strict(read, real["labels"]) == 1


@pytest.mark.parametrize("kind", ("image", "sound"))
@pytest.mark.parametrize("level", (1, 3, 5))
def test_slightly_blurred_and_noisy_ones_are_read(kind, level):
  real = examples(level)
  noise = np.random.default_rng(0).normal(0, 8, real[kind].shape)
  read = checker.check(kind, stored(smooth(real[kind], 0.5) + noise), level)
  assert strict(read, real["labels"]) >= 0.98


@pytest.mark.parametrize("kind", ("image", "sound"))
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_read_where_nothing_is(kind, level):
  real = examples(level)[kind]
  rng = np.random.default_rng(0)
  shape = (20, *real.shape[1:])
  for nothing in (
    np.zeros(shape),
    np.full(shape, 255),
    np.full(shape, 60),
    rng.integers(0, 256, shape),
    60 + rng.normal(0, 8, shape),
    real.mean(0, keepdims=True),
  ):
    assert unreadable(checker.check(kind, stored(nothing), level))


@pytest.mark.parametrize("level", (4, 5))
def test_background_alone_is_unreadable(level):
  labels, indices = examples(level)["labels"], HELD_OUT + np.arange(500)
  top, bottom = (
    sprites_render.render(
      {**labels, "quadrant": np.full(500, quadrant)}, 0, indices, level=level, size=32
    )
    for quadrant in (0, 3)
  )
  # (seed, index) sets the background, so the halves without a sprite fit together.
  empty = np.concatenate([bottom[:, :16], top[:, 16:]], axis=1)
  assert readable(checker.check("image", empty, level)) == 0


@pytest.mark.parametrize("kind", ("image", "sound"))
@pytest.mark.parametrize("level", (3, 5))
def test_one_changed_attribute_is_seen_and_a_blend_mostly_refused(kind, level):
  real = examples(level)
  indices = HELD_OUT + np.arange(500)
  refused = {"shape": 0.45, "size": 0.7, "colour": 0.9}
  for name in real["labels"]:
    count = len(sprites_render.NAMES[name])
    labels = {**real["labels"], name: (real["labels"][name] + 1) % count}
    if kind == "image":
      changed = sprites_render.render(labels, 0, indices, level=level, size=32)
    else:
      changed = heard(sprites_render.synthesise(labels, 0, indices, level=level))
    assert strict(checker.check(kind, changed, level), labels) >= 0.998
    blend = stored((real[kind].astype(float) + changed) / 2)
    read = checker.check(kind, blend, level)[name]
    assert np.mean(read == checker.UNREADABLE) >= refused.get(name, 0.99)


def test_two_sprites_at_once_are_unreadable():
  real = examples(4)
  labels = {
    **real["labels"],
    "quadrant": 3 - real["labels"]["quadrant"],
  }
  indices = HELD_OUT + np.arange(500)
  other = sprites_render.render(labels, 0, indices, level=4, size=32)
  both = np.where(np.ptp(other, axis=-1, keepdims=True) > 40, other, real["image"])
  assert readable(checker.check("image", both, 4)) == 0


def test_a_strong_blur_is_unreadable():
  for level, sigma in ((3, 6.0), (5, 4.0)):
    blurred = stored(smooth(examples(level)["image"], sigma))
    assert readable(checker.check("image", blurred, level)) <= 0.02


@pytest.mark.parametrize("level", LEVELS)
def test_a_caption_is_read_as_what_it_says(level):
  real = examples(level)
  swapped = real["caption"][::-1]
  expected = {name: values[::-1] for name, values in real["labels"].items()}
  assert strict(checker.check("caption", swapped, level), expected) == 1


def test_only_well_formed_captions_are_read():
  good = "small red heart at top left on dark"
  bad = [
    "",
    "heart",
    "red small heart at top left on dark",
    "small red heart at top left on dark dark",
    "small red heart at left top on dark",
    "small red at top left on dark",
    "small  red heart at top left on dark",
    "<unk> red heart at top left on dark",
  ]
  assert unreadable(checker.check("caption", bad, 5))
  assert readable(checker.check("caption", [good], 5)) == 1
  assert unreadable(checker.check("caption", [good], 4))


@pytest.mark.parametrize("kind", checker.KINDS)
def test_what_is_read_does_not_depend_on_the_others(kind):
  real = examples(5)
  whole = checker.check(kind, real[kind], 5)
  part = checker.check(kind, real[kind][300:310], 5)
  none = checker.check(kind, real[kind][:0], 5)
  for name in whole:
    np.testing.assert_array_equal(part[name], whole[name][300:310])
    assert none[name].shape == (0,)


def test_what_cannot_be_checked_is_named():
  images = examples(3)["image"]
  with pytest.raises(ValueError, match="video"):
    checker.check("video", images, 3)
  with pytest.raises(ValueError, match="float32"):
    checker.check("image", images.astype(np.float32), 3)
  with pytest.raises(ValueError, match="33"):
    checker.check("image", np.zeros((1, 33, 33, 3), np.uint8), 3)
  with pytest.raises(ValueError, match="32, 32"):
    checker.check("sound", images, 3)
  with pytest.raises(ValueError, match="levels 1 to 5"):
    checker.check("image", images, 9)
