"""Sound files to samples, and back: the stdlib's wave module and NumPy, nothing else."""

import io
import wave

import numpy as np


def read_wav(content: bytes) -> tuple[np.ndarray, int]:
  """Samples of a wav file, float64 [t] in [-1, 1), channels averaged; and the rate.

  Args:
    content: of a file with 8 or 16 bits a sample.

  Raises:
    ValueError: if it is not such a file, or has no samples.
  """
  try:
    with wave.open(io.BytesIO(content)) as file:
      channels, width, rate, _, _, _ = file.getparams()
      data = file.readframes(file.getnframes())
  except (wave.Error, EOFError) as error:
    raise ValueError(f"not a wav file of 8 or 16 bits: {error}") from None
  if width == 1:
    samples = np.frombuffer(data, np.uint8).astype(np.float64) / 128.0 - 1.0
  elif width == 2:
    samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768.0
  else:
    raise ValueError(f"{8 * width} bits a sample; 8 or 16 can be read")
  whole = len(samples) // channels * channels
  if not whole:
    raise ValueError("a wav file without samples")
  return samples[:whole].reshape(-1, channels).mean(axis=1), rate


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
