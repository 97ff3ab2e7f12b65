"""What to look at of samples: which examples, what was made of them, what was right."""

import numpy as np

from mmgen_jax import pictures, scores
from mmgen_jax.generate import Samples, showcase
from mmgen_jax.metrics import coherence, judges

SHOWN = 12  # examples in pictures


def make_panel(
  setting: scores.Setting, samples: Samples, at, reads: scores.Reads
) -> pictures.Panel:
  """What was made of the examples at positions `at` of the samples."""
  right = {}
  made = {name: x[:, at] for name, x in samples.values.items()}
  for (given, target), marks in scores.right_of_made(setting, reads).items():
    row = right.setdefault(target, np.full(made[target].shape[:2], -1, np.int8))
    marked = np.where(setting.labelled(reads[given, target]), marks["strict"], -1)
    row[samples.subsets.index(given)] = marked[at]
  prior = {target: read for (given, target), read in reads.items() if not given}
  if len(prior) > 1:
    agreed = coherence.agree(prior)["strict"][at]
    for target in prior:
      row = right.setdefault(target, np.full(made[target].shape[:2], -1, np.int8))
      row[samples.subsets.index(())] = agreed
  modalities = setting.examples.modalities
  return pictures.panel(
    modalities,
    {name: setting.real(name)[at] for name in modalities},
    {name: setting.has([name])[at] for name in modalities},
    samples.subsets,
    made,
    right,
  )


def shown(setting: scores.Setting, count: int = SHOWN) -> np.ndarray:
  """Positions of the examples to look at: the first ones, each class in its turn."""
  label = next(iter(judges.attributes(setting.examples)), None)
  if label is None:
    return np.arange(min(count, len(setting.indices)))
  return showcase(setting.truth([label])[label], count)
