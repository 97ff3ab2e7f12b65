"""Sprites are functions of (seed, index); what TFDS stores is what was drawn."""

import numpy as np
import pytest

from mmgen_jax import data
from mmgen_jax.data import modality, sprites, sprites_render, sprites_sound

LEVELS = sprites_render.LEVELS


def same(a, b):
  assert a["caption"] == b["caption"]
  for name in ("image", "wave"):
    np.testing.assert_array_equal(a[name], b[name])
  for name in a["labels"]:
    np.testing.assert_array_equal(a["labels"][name], b["labels"][name])


def take(made, rows):
  return {
    "image": made["image"][rows],
    "wave": made["wave"][rows],
    "caption": [made["caption"][row] for row in rows],
    "labels": {name: values[rows] for name, values in made["labels"].items()},
  }


@pytest.mark.parametrize("level", LEVELS)
def test_an_example_is_a_function_of_seed_and_index_alone(level):
  whole = sprites_render.generate(7, np.arange(150), level)
  rows = np.random.default_rng(level).permutation(150)[:40]
  same(sprites_render.generate(7, rows, level), take(whole, rows))
  other = sprites_render.generate(8, np.arange(150), level)
  assert (other["image"] != whole["image"]).any((1, 2, 3)).all()


def test_pictures_of_one_caption_differ():
  labels = {name: np.zeros(64, np.int32) for name in sprites_render.NAMES}
  for level in LEVELS:
    images = sprites_render.render(labels, 0, np.arange(64), level=level, size=32)
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
    assert images.astype(float).std(0).max() > 20


def test_attributes_are_uniform_independent_and_the_same_at_every_level():
  n = 12_000
  labels = sprites_render.attributes(0, np.arange(n), 5)
  for level in LEVELS:
    for name, values in sprites_render.attributes(0, np.arange(n), level).items():
      np.testing.assert_array_equal(values, labels[name])
  sizes = [len(names) for names in sprites_render.NAMES.values()]
  code = np.ravel_multi_index(list(labels.values()), sizes)
  counts = np.bincount(code, minlength=np.prod(sizes))
  expected = n / np.prod(sizes)
  chi_square = ((counts - expected) ** 2 / expected).sum()
  degrees = np.prod(sizes) - 1
  assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_captions_say_the_attributes():
  labels = {
    "shape": np.array([0, 2]),
    "size": np.array([0, 1]),
    "colour": np.array([0, 4]),
    "quadrant": np.array([0, 3]),
    "background": np.array([0, 1]),
  }
  assert sprites_render.caption(labels, 1) == ["heart", "ellipse"]
  assert sprites_render.caption(labels, 3) == ["small red heart", "big pink ellipse"]
  assert sprites_render.caption(labels, 5) == [
    "small red heart at top left on dark",
    "big pink ellipse at bottom right on light",
  ]


@pytest.mark.parametrize("level", LEVELS)
def test_captions_fit_their_modality(level):
  text = sprites.spec(level=level).modalities["caption"]
  captions = sprites_render.caption(
    sprites_render.attributes(0, np.arange(500), level), level
  )
  tokens = modality.tokenise(text, captions)
  assert (tokens != modality.UNKNOWN).all()
  assert (tokens != modality.PAD).all()  # no longer than need be
  assert set(np.unique(tokens)) == set(range(2, len(text.vocabulary)))
  assert modality.detokenise(text, tokens) == captions


def test_a_sprite_covers_its_area_about_its_centre():
  rng = np.random.default_rng(0)
  n, size = 60, 64
  shape = np.arange(n) % 3
  side = rng.uniform(0.2, 0.45, n).astype(np.float32)
  x, y = rng.uniform(0.4, 0.6, (2, n)).astype(np.float32)
  angle = rng.uniform(-0.35, 0.35, n).astype(np.float32)
  ones = np.ones(n, np.float32)
  cover = sprites_render.coverage(shape, (x, y), side, angle, ones, size)
  assert cover.min() == 0 and cover.max() == 1
  area = cover.sum((1, 2)) / size**2
  np.testing.assert_allclose(area, side**2, rtol=0.02)
  place = (np.arange(size) + 0.5) / size
  np.testing.assert_allclose(cover.sum(1) @ place / size**2 / area, x, atol=0.002)
  np.testing.assert_allclose(cover.sum(2) @ place / size**2 / area, y, atol=0.002)
  twice = sprites_render.coverage(shape, (x, y), side, angle, ones, 2 * size)
  halved = twice.reshape(n, size, 2, size, 2).mean((2, 4))
  # Anti-aliased: much like the mean of what is drawn twice as finely.
  assert np.abs(halved - cover).max() < 0.25


@pytest.mark.parametrize("level", LEVELS)
def test_sprites_lie_wholly_in_the_picture(level):
  n = 400
  labels = sprites_render.attributes(0, np.arange(n), level)
  images = sprites_render.render(labels, 0, np.arange(n), level=level, size=64)
  light, chroma = images.min(-1).astype(int), np.ptp(images, axis=-1)
  marks = light > 150 if level < 3 else chroma > 80
  assert marks.any((1, 2)).all()
  marks[:, 1:-1, 1:-1] = False
  assert not marks.any()


def test_the_note_is_heard():
  n = 200
  indices = np.arange(n)
  labels = sprites_render.attributes(0, indices, 3)
  labels["shape"] = np.zeros(n, np.int32)  # nearly pure: the note is its loudest
  labels["size"] = np.ones(n, np.int32)
  waves = sprites_render.synthesise(labels, 0, indices, level=3)
  assert waves.dtype == np.int16 and waves.shape == (n, sprites_sound.SAMPLES)
  spectrum = np.abs(np.fft.rfft(waves.astype(float), axis=1))
  hz = spectrum.argmax(1) * sprites_sound.SAMPLE_RATE_HZ / sprites_sound.SAMPLES
  wanted = sprites_sound.NOTES_HZ[labels["colour"]]
  np.testing.assert_allclose(hz, wanted, rtol=0.02)


def test_size_place_and_background_are_heard():
  n = 100
  zeros = {name: np.zeros(n, np.int32) for name in sprites_render.NAMES}

  def energy(**changes):
    labels = {**zeros, **{k: np.full(n, v, np.int32) for k, v in changes.items()}}
    waves = sprites_render.synthesise(labels, 0, np.arange(n), level=5)
    return (waves.astype(float) ** 2).reshape(n, 20, 200).mean(2)

  held, pluck = energy(size=1), energy(size=0)
  assert ((held > 1e5).sum(1) > (pluck > 1e5).sum(1) + 1).all()
  late = energy(size=1, quadrant=1)
  assert (held.argmax(1) < 10).all() and (late.argmax(1) >= 10).all()
  assert (energy(background=0)[:, -1] == 0).all()  # silence
  assert (energy(background=1).min(1) > 1e4).all()


OPTIONS = {
  "level": 4,
  "seed": 3,
  "train_examples": 600,
  "validation_examples": 40,
  "test_examples": 30,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("sprites")


def test_what_is_stored_is_what_was_drawn(data_dir):
  examples = data.load("sprites", "train", data_dir, **OPTIONS)
  made = sprites_render.generate(3, np.arange(600), 4)
  assert len(examples) == 600
  np.testing.assert_array_equal(examples.columns["image"].values, made["image"])
  captions = examples.columns["caption"].values
  assert (
    modality.detokenise(examples.modalities["caption"], captions) == made["caption"]
  )
  assert list(examples.labels) == ["shape", "size", "colour", "quadrant"]
  for name, values in made["labels"].items():
    np.testing.assert_array_equal(examples.labels[name], values)
  sound = data.audio.log_mel(made["wave"], sample_rate_hz=8000, frames=32, mels=32)
  np.testing.assert_array_equal(examples.columns["sound"].values, sound)


def test_splits_are_disjoint_and_of_the_sizes_asked_for(data_dir):
  seen = set()
  for split, n in {"train": 600, "validation": 40, "test": 30}.items():
    examples = data.load("sprites", split, data_dir, **OPTIONS)
    assert len(examples) == n
    images = examples.rows(np.arange(n))["image"]
    keys = {image.tobytes() for image in images}
    assert len(keys) == n and not keys & seen
    seen |= keys


def test_examples_do_not_depend_on_how_many_there_are(data_dir, tmp_path):
  fewer = {**OPTIONS, "train_examples": 20, "validation_examples": 10}
  for split, n in {"train": 20, "validation": 10, "test": 30}.items():
    few = data.load("sprites", split, tmp_path, **fewer)
    many = data.load("sprites", split, data_dir, **OPTIONS)
    for name in few.columns:
      np.testing.assert_array_equal(
        few.columns[name].values, many.columns[name].values[:n]
      )
    assert (few.fingerprint == many.fingerprint) == (split == "test")


def test_the_spec_is_that_of_the_examples(data_dir):
  about = sprites.spec(**OPTIONS)
  examples = data.load("sprites", "test", data_dir, **OPTIONS)
  assert about.modalities == examples.modalities
  assert about.label_names == examples.label_names
  assert about.modalities["image"].shape == (32, 32, 3)
  assert about.modalities["sound"].shape == (32, 32)


@pytest.mark.parametrize(
  "wrong",
  [{"level": 6}, {"level": 0}, {"size": 33}, {"seed": -1}, {"test_examples": 0}],
)
def test_wrong_options_are_named(wrong):
  value = str(next(iter(wrong.values())))
  with pytest.raises(ValueError, match=value):
    sprites.spec(**wrong)


def test_unknown_splits_are_named(tmp_path):
  with pytest.raises(ValueError, match="tests"):
    sprites.load("tests", tmp_path)


def test_combinations_that_are_held_out_are_in_a_split_of_their_own(tmp_path):
  options = {"level": 3, "train_examples": 80, "validation_examples": 20}
  options |= {"test_examples": 70}
  load = lambda split, **more: data.load("sprites", split, tmp_path, **options, **more)
  whole = {split: load(split) for split in ("train", "test")}
  kept = {split: load(split, hold_out=5) for split in ("train", "test")}
  out = load("test_combinations", hold_out=5)
  total = lambda e: sum(e.labels.values())
  assert (total(kept["train"]) % 5 > 0).all() and (total(out) % 5 == 0).all()
  assert len(kept["test"]) + len(out) == len(whole["test"])
  held = total(whole["test"]) % 5 == 0
  np.testing.assert_array_equal(
    out.rows(np.arange(len(out)))["image"],
    whole["test"].rows(np.flatnonzero(held))["image"],
  )
  prints = {e.fingerprint for e in (*whole.values(), *kept.values(), out)}
  assert len(prints) == 5
  for name, values in kept["train"].labels.items():  # every value is still seen
    assert set(values) == set(range(len(kept["train"].label_names[name])))
  assert "test_combinations" not in data.spec("sprites").splits
  with pytest.raises(ValueError, match="hold_out is 0"):
    data.spec("sprites", level=1, hold_out=2)


def test_any_set_can_be_had_with_some_of_its_modalities(tmp_path):
  options = {"train_examples": 5, "validation_examples": 5, "test_examples": 5}
  only = {"modalities": ("image",)}
  found = data.load("sprites", "test", tmp_path, **options, **only)
  assert set(found.modalities) == set(found.columns) == {"image"}
  assert set(data.spec("sprites", **options, **only).modalities) == {"image"}
  with pytest.raises(ValueError, match="has no modality"):
    data.spec("sprites", modalities=("smell",))
