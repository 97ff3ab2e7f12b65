"""Samples from what somebody brings: it is stored as the data are, and alone counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny

from mmgen_jax import checkpoint, evaluate, prompt
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.data import audio, digits, modality, own, sprites_render, waves
from mmgen_jax.data.examples import Spec
from mmgen_jax.steps import STEPS

KNOWN = {"level": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(what was drawn, {"image" and "sound": files of the first of it})."""
  folder = tmp_path_factory.mktemp("brought")
  drawn = sprites_render.generate(3, np.arange(2), 3)
  Image.fromarray(drawn["image"][0]).save(folder / "a.png")
  (folder / "a.wav").write_bytes(waves.wav(drawn["wave"][0] / 32768.0, 8000))
  return drawn, {"image": str(folder / "a.png"), "sound": str(folder / "a.wav")}


def test_a_file_is_stored_as_the_data_set_stores_it(made):
  drawn, files = made
  about = datasets.spec("sprites", **KNOWN)
  stored = lambda name, value: own.stored(about, KNOWN, name, value)
  np.testing.assert_array_equal(stored("image", files["image"]), drawn["image"][0])
  want = audio.log_mel(drawn["wave"][:1], sample_rate_hz=8000, frames=32, mels=32)
  np.testing.assert_array_equal(stored("sound", files["sound"]), want[0])
  caption = stored("caption", drawn["caption"][0].title())
  (again,) = modality.detokenise(about.modalities["caption"], caption[None])
  assert again == drawn["caption"][0]


def test_sounds_and_pictures_follow_their_set(made, tmp_path):
  _, files = made
  sound, rate_hz = waves.read_sound(open(files["sound"], "rb").read())
  clip = digits.clip(waves.to_int16(sound))[None]
  got = own.stored(datasets.spec("digits"), {}, "sound", files["sound"])
  want = audio.log_mel(clip, sample_rate_hz=rate_hz, frames=32, mels=32)[0]
  np.testing.assert_array_equal(got, want)
  path = tmp_path / "small.png"
  Image.new("RGB", (20, 20), "white").save(path)
  corner = {}
  for name, channels in (("folder", 3), ("images", 1)):
    about = Spec(name, {"image": modality.image(32, 32, channels)}, {})
    stored = own.stored(about, {}, "image", str(path))
    assert stored.shape == (32, 32, channels) and stored[16, 16, 0] == 255
    corner[name] = int(stored[0, 0, 0])
  assert corner == {"folder": 255, "images": 0}  # scaled up; centred on black


@pytest.mark.parametrize(
  "word, message",
  [
    (
      "caption=big purple heart",
      "caption: 'purple' was not in training; what was: big",
    ),
    ("caption=big red heart red", "has 4 tokens; this modality holds 3"),
    ("image=none.png", "image: there is no file 'none.png'"),
    ("image={sound}", "a.wav: no picture"),
    ("sound={image}", "a.png: not a wav, FLAC, Ogg or MP3 file"),
    ("captain=red", "no 'captain'; this model takes .'caption', 'image', 'sound'."),
    ("red heart", "no 'red heart'"),
  ],
)
def test_a_mistake_is_named(made, word, message):
  config, _, _ = tiny("fusion")
  config.data.options = KNOWN
  about = datasets.spec("sprites", **KNOWN)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    prompt.parse([word.format(**made[1])], config, about)


def test_a_label_is_a_name_or_a_number():
  config, modalities, _ = tiny("gan")
  about = Spec("tiny", modalities, {"digit": ("zero", "one", "two")})
  for word, label in (("digit=two", 2), ("digit=1", 1)):
    assert prompt.parse([word], config, about).labels == {"digit": label}
  with pytest.raises(ValueError, match="digit=3: digit is one of zero, one, two"):
    prompt.parse(["digit=3"], config, about)
  with pytest.raises(ValueError, match="no 'word'; this model takes .'digit'."):
    prompt.parse(["word=a"], config, about)


def test_families_take_what_they_are_made_from():
  for family, can, must in (
    ("vae", ["image"], []),
    ("vq", ["image"], ["image"]),
    ("autoregressive", ["digit"], []),
    ("fusion", ["image", "sound", "word"], []),
  ):
    config, modalities, _ = tiny(family)
    assert prompt.accepted(config, Spec("tiny", modalities, {})) == (can, must)
  with pytest.raises(ValueError, match="'alignment' makes no samples"):
    prompt.accepted(*tiny("alignment")[:2])


def test_what_a_model_never_went_without_must_be_given():
  config, modalities, _ = tiny("gan")
  about = Spec("tiny", modalities, {})
  config.model.update(condition=("word", "sound"), encoder={"dropout": 0.0})
  config.data.missing = {"sound": 0.5}
  assert prompt.accepted(config, about) == (["sound", "word", "digit"], ["word"])
  with pytest.raises(
    ValueError, match="always given .'word'.: there is no --given=word"
  ):
    prompt.parse([], config, about)
  assert set(prompt.parse(["word=a"], config, about).values) == {"word"}


def started(family):
  """(config, modalities, averaged parameters that are not all alike)."""
  config, modalities, _ = tiny(family)
  state = STEPS[family].init(jax.random.key(0), config, modalities)
  return config, modalities, state.ema


def test_what_is_not_given_has_no_part_in_it():
  config, modalities, params = started("fusion")
  word = modality.tokenise(modalities["word"], ["b a"])[0]
  given = prompt.Given({"word": word}, {})
  made = prompt.generate(config, params, modalities, given, 5, seed=3)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.normal(size=(5, 8, 8, 3)),
    "sound": rng.normal(size=(5, 8, 8)),
    "word": np.tile(word, (5, 1)),
    "mask": dict.fromkeys(modalities, np.ones(5, bool)),
    "labels": {},
    "index": np.arange(5, dtype=np.int32),
  }
  make = STEPS["fusion"].make_generate(config, modalities)
  only = jnp.array([name == "word" for name in sorted(modalities)])
  for name, want in make(params, batch, only, jax.random.key(3)).items():
    want = modality.to_stored(modalities[name], want).astype(int)
    assert np.abs(made[name].astype(int) - want).max() <= 1  # of 255: rounding
  assert len(np.unique(made["image"], axis=0)) == 5


def test_classes_that_are_not_given_take_turns():
  config, modalities, params = started("gan")
  make = lambda **labels: prompt.generate(
    config, params, modalities, prompt.Given({}, labels), 6
  )["image"]
  turns, second = make(), make(digit=1)
  same = (turns == second).all((1, 2, 3))
  np.testing.assert_array_equal(same, np.arange(6) % 3 == 1)


def test_everything_that_was_made_is_written(tmp_path, monkeypatch):
  config, modalities, params = started("fusion")
  state = STEPS["fusion"].init(jax.random.key(0), config, modalities)
  about = Spec("tiny", modalities, {})
  monkeypatch.setattr(datasets, "spec", lambda *_, **__: about)
  monkeypatch.setattr(evaluate, "load_state", lambda *_: (state, 7))
  said = []
  paths = prompt.write(config, tmp_path, ["word=b a"], count=3, say=said.append)
  names = {path.name for path in paths}
  numbered = {f"image_0{i}.png" for i in range(3)} | {
    f"sound_0{i}.wav" for i in range(3)
  }
  assert names == {"grid.png", "made.npz"} | numbered
  assert all(
    path.parent.name.startswith("given_step_0000007_word=b-a") for path in paths
  )
  given = prompt.parse(["word=b a"], config, about)
  made = prompt.generate(config, params, modalities, given, 3, config.seed)
  arrays = np.load(paths[1])
  assert arrays["word"].shape == (3,) and arrays["word"].dtype.kind == "U"
  for i in range(3):
    image = np.asarray(Image.open(paths[0].parent / f"image_0{i}.png"))
    np.testing.assert_array_equal(image, made["image"][i])
    sound, rate_hz = waves.read_sound(
      (paths[0].parent / f"sound_0{i}.wav").read_bytes()
    )
    assert (len(sound), rate_hz) == (8000, 8000)
  assert "wrote" in said[-1] and str(paths[0]) in said[-1]
  other = prompt.write(config, tmp_path, ["word=b  a"], count=1, say=said.append)
  assert other[0].parent != paths[0].parent
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    prompt.write(config, tmp_path, [], count=0)


def test_a_workdir_is_a_model_to_call(tmp_path, monkeypatch):
  config, modalities, params = started("fusion")
  with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
    prompt.load_trained(tmp_path)
  state = STEPS["fusion"].init(jax.random.key(0), config, modalities)
  blank = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  checkpoint.save(tmp_path / "checkpoints", blank, 7)  # the averages are what counts
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  about = Spec("tiny", modalities, {})
  monkeypatch.setattr(datasets, "spec", lambda *_, **__: about)
  model = prompt.load_trained(tmp_path)
  assert model.step == 7 and model.config == config
  made = prompt.sample(model, ["word=b a"], count=3, seed=5)
  given = prompt.parse(["word=b a"], config, about)
  want = prompt.generate(config, params, modalities, given, 3, 5)
  for name in ("image", "sound"):
    np.testing.assert_array_equal(made[name], want[name])
  assert made["word"].tolist() == modality.detokenise(modalities["word"], want["word"])
  assert not np.array_equal(made["image"], prompt.sample(model, count=3)["image"])


def test_a_spectrogram_becomes_a_sound_that_has_it(made):
  form = {"sample_rate_hz": 8000, "samples": 4000}
  analyse = lambda clip: audio.log_mel(clip, sample_rate_hz=8000, frames=32, mels=32)
  for clip in made[0]["wave"]:
    want = analyse(clip[None])[0]
    errors = []
    for rounds in (1, 60):
      sound = audio.wave_of(want, rounds=rounds, **form)
      got = analyse(waves.to_int16(sound)[None])[0]
      heard = want > 64  # above -45 dB
      errors.append(np.abs(got.astype(float) - want)[heard].mean() * 60 / 255)
    assert errors[1] < 1.0 < errors[0], errors  # decibels
    power = np.array([np.mean(sound**2), np.mean((clip / 32768.0) ** 2)])
    assert abs(10 * np.log10(power[0] / power[1])) < 1.0
  assert not audio.wave_of(np.zeros((32, 32), np.uint8), **form).any()


def test_wav_files_are_read_as_they_were_written():
  samples = np.random.default_rng(0).uniform(-1, 1, 500)
  read, rate_hz = waves.read_sound(waves.wav(samples, 11_025))
  assert rate_hz == 11_025
  np.testing.assert_array_equal(waves.to_int16(read), waves.to_int16(samples))
