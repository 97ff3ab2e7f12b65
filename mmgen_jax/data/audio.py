"""Log-mel spectrograms: sound as networks see it. NumPy only, exact and repeatable.

And back, as far as that goes: a spectrogram has no phases.
"""

import numpy as np

FLOOR_DB = -60.0  # a stored 0; a stored 255 is 0 dB, a full-scale sine


def mel_filters(mels: int, bins: int, sample_rate_hz: int, low_hz: float = 40.0):
  """Triangular filters, float32 [bins, mels], peak 1, on the HTK mel scale.

  Stevens, Volkmann and Newman (1937); m = 2595 log10(1 + f / 700).
  """
  mel = lambda hz: 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)
  top = sample_rate_hz / 2
  edges = 700.0 * (10.0 ** (np.linspace(mel(low_hz), mel(top), mels + 2) / 2595.0) - 1)
  hz = np.linspace(0.0, top, bins)[:, None]
  rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
  falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
  return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _windows(samples: int, frames: int, window: int):
  """Where each frame starts in a clip padded by half a window, and the window."""
  starts = np.floor((np.arange(frames) + 0.5) * (samples / frames)).astype(int)
  return starts, np.hanning(window + 1)[:-1].astype(np.float32)


WINDOW = 512  # samples


def checked_filters(
  *, sample_rate_hz: int, samples: int, frames: int, mels: int, window: int = WINDOW
) -> np.ndarray:
  """`mel_filters`, float32 [window / 2 + 1, mels], of spectrograms that see everything.

  Raises:
    ValueError: if parts of a sound, or of its spectrum, would be in no value.
  """
  if samples > frames * window:
    raise ValueError(
      f"{samples} samples in {frames} frames: a frame sees {window} samples, so it takes"
      f" {-(-samples // window)} frames, shorter sounds, or a lower sample rate"
    )
  filters = mel_filters(mels, window // 2 + 1, sample_rate_hz)
  empty = ~filters.any(0)
  if empty.any():
    raise ValueError(
      f"{mels} mels at {sample_rate_hz} Hz: {int(empty.sum())} of them lie between the"
      f" frequencies of {window} samples and are always silent; take fewer"
    )
  return filters


def log_mel(
  wave: np.ndarray, *, sample_rate_hz: int, frames: int, mels: int, window: int = WINDOW
) -> np.ndarray:
  """Log-mel spectrograms, uint8 [n, frames, mels], of int16 waves [n, samples].

  Frames are spread evenly over the clip (hop = samples / frames), Hann-windowed. A value
  is the filter's power in decibels relative to a full-scale sine, with `FLOOR_DB` at 0
  and 0 dB at 255.

  Raises:
    ValueError: if `wave` is not int16 [n, samples], or see `checked_filters`.
  """
  if wave.dtype != np.int16 or wave.ndim != 2:
    raise ValueError(f"wave must be int16 [n, samples], got {wave.dtype} {wave.shape}")
  n, samples = wave.shape
  form = {"sample_rate_hz": sample_rate_hz, "frames": frames, "mels": mels}
  filters = checked_filters(**form, samples=samples, window=window)
  starts, hann = _windows(samples, frames, window)
  padded = np.pad(wave, ((0, 0), (window // 2, window // 2)))
  out = np.empty((n, frames, mels), np.uint8)
  for first in range(0, n, 256):  # bounded memory
    block = padded[first : first + 256].astype(np.float32) / 32768.0
    cut = block[:, starts[:, None] + np.arange(window)] * hann
    power = np.abs(np.fft.rfft(cut, axis=-1)).astype(np.float32) ** 2
    power = power @ filters / (hann.sum() / 2) ** 2
    db = 10.0 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10)))
    out[first : first + 256] = np.clip(
      np.rint((db - FLOOR_DB) / -FLOOR_DB * 255), 0, 255
    ).astype(np.uint8)
  return out


def wave_of(
  spectrogram: np.ndarray,
  *,
  sample_rate_hz: int,
  samples: int,
  window: int = WINDOW,
  rounds: int = 60,
  seed: int = 0,
) -> np.ndarray:
  """A sound, float32 [samples], whose log-mel spectrogram is close to a stored one.

  Powers of frequencies from those of filters by multiplicative updates, which keep them
  positive (Richardson, 1972, https://doi.org/10.1364/JOSA.62.000055; Lucy, 1974,
  https://doi.org/10.1086/111605); phases by the iteration of Griffin and Lim, "Signal
  estimation from modified short-time Fourier transform", 1984,
  https://doi.org/10.1109/TASSP.1984.1164317.

  Args:
    spectrogram: uint8 [frames, mels], as `log_mel` gives it.
    sample_rate_hz: of the sound.
    samples: of the sound.
    window: as in `log_mel`.
    rounds: of either iteration.
    seed: of the first phases.
  """
  frames, mels = spectrogram.shape
  starts, hann = _windows(samples, frames, window)
  filters = mel_filters(mels, window // 2 + 1, sample_rate_hz)
  db = FLOOR_DB - FLOOR_DB * spectrogram.astype(np.float32) / 255
  wanted = np.where(spectrogram > 0, 10.0 ** (db / 10), 0.0) * (hann.sum() / 2) ** 2
  power = np.ones((frames, len(filters)), np.float32)
  for _ in range(rounds):
    ratio = wanted / np.maximum(power @ filters, 1e-12)
    power *= (ratio @ filters.T) / np.maximum(filters.sum(1), 1e-12)
  size = np.sqrt(power)
  turns = np.random.default_rng(seed).uniform(0, 2 * np.pi, size.shape)
  spectra = size * np.exp(1j * turns)
  at = starts[:, None] + np.arange(window)
  weight = np.full(samples + window, 1e-8, np.float32)
  np.add.at(weight, at, np.broadcast_to(hann**2, at.shape))
  for _ in range(rounds):
    wave = np.zeros(samples + window, np.float32)
    np.add.at(wave, at, np.fft.irfft(spectra, window) * hann)
    wave /= weight
    spectra = np.fft.rfft(wave[at] * hann)
    spectra *= size / np.maximum(np.abs(spectra), 1e-12)
  return wave[window // 2 : window // 2 + samples]
