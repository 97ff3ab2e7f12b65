"""Sound files to samples, and back."""

import io
import wave

import numpy as np
import soundfile


def read_sound(content: bytes) -> tuple[np.ndarray, int]:
  """Samples of a sound file, float64 [t] in [-1, 1], channels averaged; and the rate.

  Args:
    content: of a wav, FLAC, Ogg or MP3 file; whatever libsndfile reads.

  Raises:
    ValueError: if it is not such a file, has no samples, or one that is no number.
  """
  try:
    samples, rate_hz = soundfile.read(io.BytesIO(content), always_2d=True)
  except soundfile.SoundFileError as error:
    raise ValueError(f"not a wav, FLAC, Ogg or MP3 file: {error}") from None
  if not len(samples):
    raise ValueError("a sound file without samples")
  if not np.isfinite(samples).all():
    raise ValueError("a sound file with samples that are not finite")
  return samples.mean(axis=1), rate_hz


def resample(samples: np.ndarray, rate_hz: int, new_rate_hz: int) -> np.ndarray:
  """The same sound at another rate, float64 [t * new / old], by its spectrum.

  Frequencies that the new rate cannot carry are removed, none is added. A margin of
  silence keeps the sound's end from ringing into its start.
  """
  if rate_hz == new_rate_hz:
    return samples
  margin = rate_hz // 20  # 50 ms
  # A whole number of common periods, so that the new grid has no drift.
  period = rate_hz // np.gcd(rate_hz, new_rate_hz)
  periods = -(-(len(samples) + margin) // period)
  length = periods * period
  new_length = length * new_rate_hz // rate_hz
  spectrum = np.fft.rfft(samples, length)
  if new_length < length:
    spectrum = spectrum[: new_length // 2 + 1]
    if new_length % 2 == 0:
      spectrum[-1] = 0.0  # what folds onto itself
  new = np.fft.irfft(spectrum, new_length) * (new_length / length)
  return new[: max(1, len(samples) * new_rate_hz // rate_hz)]


def loudest(samples: np.ndarray, length: int) -> tuple[int, float]:
  """Start and mean power of the loudest stretch of `length` samples."""
  total = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
  power = total[length:] - total[:-length]
  return int(np.argmax(power)), float(power.max() / length)


def stretch(
  samples: np.ndarray, rate_hz: int, new_rate_hz: int, length: int
) -> np.ndarray:
  """The loudest stretch, int16 [length] at another rate; silence after a short sound.

  Args:
    samples: [t] in [-1, 1).
    rate_hz: of them.
    new_rate_hz: of what comes out.
    length: of what comes out, samples.
  """
  whole = -(-length * rate_hz // new_rate_hz)
  if len(samples) > whole:
    first, _ = loudest(samples, whole)
    samples = samples[first : first + whole]
  samples = resample(samples, rate_hz, new_rate_hz)[:length]
  return to_int16(np.pad(samples, (0, length - len(samples))))


def to_int16(samples: np.ndarray) -> np.ndarray:
  """Samples in [-1, 1) as int16, rounded and clipped."""
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def wav(samples: np.ndarray, rate_hz: int) -> bytes:
  """A wav file of 16 bits, one channel, of samples [t] in [-1, 1)."""
  out = io.BytesIO()
  with wave.open(out, "wb") as file:
    file.setparams((1, 2, rate_hz, 0, "NONE", ""))
    file.writeframes(to_int16(samples).astype("<i2").tobytes())
  return out.getvalue()
