"""Log-mel spectrograms: sound as networks see it. NumPy only, exact and repeatable."""

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


def log_mel(
  wave: np.ndarray, *, sample_rate_hz: int, frames: int, mels: int, window: int = 512
) -> np.ndarray:
  """Log-mel spectrograms, uint8 [n, frames, mels], of int16 waves [n, samples].

  Frames are spread evenly over the clip (hop = samples / frames), Hann-windowed. A value
  is the filter's power in decibels relative to a full-scale sine, with `FLOOR_DB` at 0
  and 0 dB at 255.

  Raises:
    ValueError: if `wave` is not int16 [n, samples].
  """
  if wave.dtype != np.int16 or wave.ndim != 2:
    raise ValueError(f"wave must be int16 [n, samples], got {wave.dtype} {wave.shape}")
  n, samples = wave.shape
  hop = samples / frames
  starts = np.floor((np.arange(frames) + 0.5) * hop).astype(int)  # centres, after pad
  padded = np.pad(wave, ((0, 0), (window // 2, window // 2)))
  hann = np.hanning(window + 1)[:-1].astype(np.float32)
  filters = mel_filters(mels, window // 2 + 1, sample_rate_hz)
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
