"""How a sprite sounds: half a second at 8 kHz that carries its attributes.

Shape is timbre (heart: nearly pure; square: odd partials; ellipse: all partials), size
the envelope (small: a pluck; big: held), colour the note, left and right an early and a
late note, top and bottom a whistle or a hum beside it, light a bed of noise.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

SAMPLE_RATE_HZ, SAMPLES = 8000, 4000
NOTES_HZ = np.array([220.0, 294.0, 392.0, 523.0, 698.0], np.float32)  # fourths
NOTE_HZ = 392.0  # where no colour is told
RECIPES = ((1.0, 0.12), (1.0, 0.0, 0.6, 0.0, 0.4), (1.0, 0.75, 0.6, 0.45, 0.35))
HIGHEST_PARTIAL_HZ = 3000.0  # above it only the cue of a top quadrant sounds
CUE_HZ = (3760.0, 95.0)  # top, bottom
BED = 0.035  # the peak of a light background's noise


def _column(value) -> np.ndarray:
  return np.asarray(value, np.float32)[:, None]


def score(labels: Mapping[str, np.ndarray], level: int):
  """(held_secs, onset_secs, note_hz, cue), [n] each, before jitter; see `voice`."""
  n = len(labels["shape"])
  held_secs = np.full(n, 0.30 if level < 4 else 0.19)
  if level >= 2:
    held_secs = held_secs * labels["size"]
  note_hz = NOTES_HZ[labels["colour"]] if level >= 3 else np.full(n, NOTE_HZ)
  onset_secs, cue = np.full(n, 0.08), np.full(n, -1)
  if level >= 4:
    onset_secs = np.where(labels["quadrant"] % 2, 0.265, 0.045)
    cue = labels["quadrant"] // 2
  return held_secs, onset_secs, note_hz, cue


def voice(
  shape, *, note_hz, held_secs, onset_secs, cue, phases
) -> Float[np.ndarray, "n samples"]:
  """Notes, float32, peak at most 1.

  Args:
    shape: int [n], which of `RECIPES`.
    note_hz: [n], the fundamental.
    held_secs: [n], length of a held note; 0 for a pluck.
    onset_secs: [n], when it starts.
    cue: int [n], which of `CUE_HZ` sounds beside it; -1 for none.
    phases: [7, n], of the partials and the cue, in turns.
  """
  secs = np.arange(SAMPLES, dtype=np.float32)[None] / SAMPLE_RATE_HZ
  turn = np.float32(2 * np.pi)
  out = np.zeros((len(shape), SAMPLES), np.float32)
  for kind, recipe in enumerate(RECIPES):
    rows = np.flatnonzero(shape == kind)
    for partial, loudness in enumerate(recipe, start=1):
      if loudness:
        hz = _column(partial * note_hz[rows])
        heard = loudness / sum(recipe) * (hz < HIGHEST_PARTIAL_HZ)
        phase = _column(turn * phases[partial - 1, rows])
        out[rows] += heard * np.sin(turn * hz * secs + phase)
  for which, hz in enumerate(CUE_HZ):
    rows = np.flatnonzero(cue == which)
    phase = _column(turn * phases[6, rows])
    out[rows] = 0.75 * out[rows] + 0.25 * np.sin(turn * np.float32(hz) * secs + phase)
  since = secs - _column(onset_secs)
  length = _column(held_secs)
  pluck = np.minimum(since / 0.004, np.exp(-np.maximum(since, 0) / 0.028))
  held = np.minimum(np.minimum(since / 0.012, (length - since) / 0.030), 1)
  return out * np.maximum(np.where(length > 0, held, pluck), 0)
