"""Sound and picture files of all kinds, as samples and pixels."""

import io
import wave

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmgen_jax.data import pixels, waves


def wav(samples, rate_hz=8000, channels=1, width=2) -> bytes:
  file = io.BytesIO()
  with wave.open(file, "wb") as out:
    out.setnchannels(channels)
    out.setsampwidth(width)
    out.setframerate(rate_hz)
    out.writeframes(np.asarray(samples, "<i2" if width == 2 else "u1").tobytes())
  return file.getvalue()


def encoded(samples, *form) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, samples, 8000, format=form[0], subtype=form[1])
  return file.getvalue()


def test_waves_of_all_kinds_are_one_sound():
  time = np.arange(8000) / 8000
  sound = 0.5 * np.sin(2 * np.pi * 440 * time)
  whole = np.rint(sound * 32768)
  stereo = np.stack([whole + 100, whole - 100], 1)
  for content, tolerance in [
    (wav(whole), 1e-4),
    (wav(stereo, channels=2), 1e-4),
    (wav(np.rint(sound * 128) + 128, width=1), 5e-3),
    (encoded(sound, "WAV", "PCM_24"), 1e-6),
    (encoded(sound, "WAV", "FLOAT"), 1e-7),
    (encoded(sound, "FLAC", "PCM_16"), 1e-4),
  ]:
    samples, rate_hz = waves.read_sound(content)
    assert rate_hz == 8000
    np.testing.assert_allclose(samples, sound, atol=tolerance)
  for form in (("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):  # these lose something
    samples, rate_hz = waves.read_sound(encoded(sound, *form))
    assert rate_hz == 8000 and abs(len(samples) - 8000) <= 1200
    likeness = np.correlate(samples, sound, "full").max() / (sound @ sound)
    assert abs(likeness - 1) < 0.02
  broken = encoded(np.array([0.0, np.nan]), "WAV", "FLOAT")
  for content in (b"", b"RIFF", wav([]), broken):
    with pytest.raises(ValueError):
      waves.read_sound(content)


@pytest.mark.parametrize("rate_hz", [4000, 11025, 16000, 44100, 48000])
def test_resampling_is_the_sound_at_another_rate(rate_hz):
  seconds = 0.5
  time = np.arange(int(rate_hz * seconds)) / rate_hz
  fade = np.hanning(len(time))
  sound = fade * np.sin(2 * np.pi * 700 * time)
  made = waves.resample(sound, rate_hz, 8000)
  assert len(made) == int(len(time) * 8000 / rate_hz)
  new_time = np.arange(len(made)) / 8000
  expected = np.interp(new_time, time, fade) * np.sin(2 * np.pi * 700 * new_time)
  np.testing.assert_allclose(made, expected, atol=2e-3)
  if rate_hz > 16000:  # what 8 kHz cannot carry is gone, not folded
    high = waves.resample(fade * np.sin(2 * np.pi * 6000 * time), rate_hz, 8000)
    assert np.abs(high).max() < 1e-3


def test_pictures_of_all_kinds_are_rgb():
  def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return pixels.open_rgb(file.getvalue())

  values = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
  rgb = Image.fromarray(values)
  np.testing.assert_array_equal(encoded(rgb), values)
  assert encoded(rgb.convert("P")).mode == "RGB"
  assert encoded(rgb.convert("CMYK"), "JPEG").mode == "RGB"
  grey = np.asarray(encoded(rgb.convert("L")))
  assert (grey == grey[..., :1]).all()
  clear = Image.fromarray(np.dstack([values, np.zeros((6, 4), np.uint8)]))
  assert (np.asarray(encoded(clear)) == 255).all()  # white shows through
  deep = Image.fromarray(np.full((2, 2), 0x8040, np.uint16))
  assert (np.asarray(encoded(deep)) == 0x80).all()
  turned = Image.Exif()
  turned[0x0112] = 6  # taken with the camera on its side
  assert encoded(rgb, "JPEG", exif=turned).size == (6, 4)


def test_pixels_fit_by_the_shorter_side_or_on_black():
  values = np.zeros((10, 30, 3), np.uint8)
  values[:, 10:20] = 200  # the middle
  made = pixels.fit(Image.fromarray(values), 10, "resize")
  np.testing.assert_array_equal(made, np.full((10, 10, 3), 200))
  grey = pixels.fit(Image.fromarray(values[:, 10:20, 0]), 14, "pad")
  assert grey.shape == (14, 14, 1) and grey[2:12, 2:12].min() == 200
  assert grey.sum() == 200 * 100
