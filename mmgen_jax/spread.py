"""Entries of records on how samples spread over known modes; see `mmgen_jax.scores`."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from mmgen_jax.metrics import modes
from mmgen_jax.scores import Entry, Reads, Setting


def reading(read: Mapping[str, np.ndarray], labels: Sequence[str]) -> np.ndarray:
  """The mode [n] that a reader saw: the digits of all channels, as a number."""
  return modes.stacked_mode(np.stack([read[name] for name in labels], 1))


def frequencies(
  digits: Int[np.ndarray, " n"], channels: int = 3, classes: int = 10
) -> Float[np.ndarray, " k"]:
  """The distribution over modes of channels that are drawn independently."""
  one = np.bincount(digits, minlength=classes) / len(digits)
  out = np.ones(1)
  for _ in range(channels):
    out = np.outer(out, one).ravel()
  return out


def floors(samples: int, data: Float[np.ndarray, " k"]) -> dict[str, dict[str, float]]:
  """{sampler: {"reverse_kl", "sd"}} of perfect samplers, of the modes and of the data.

  Args:
    samples: how many are drawn.
    data: the distribution of the data over the modes.
  """
  total = len(data)
  found = {
    "uniform sampler": modes.kl_floor(samples, total),
    "sampler of the data's frequencies": modes.kl_floor(samples, total, sampler=data),
  }
  return {
    name: {"reverse_kl": mean, "sd": deviation}
    for name, (mean, deviation) in found.items()
  }


def uniform_entries(
  s: Setting, reads: Reads, judged: Mapping[str, dict]
) -> list[Entry]:
  """KL to uniform of what the prior gives, where a channel makes a digit of the mode.

  `floor/...` are the real held-out examples, as the judge reads them.

  Args:
    s: the setting.
    reads: from `scores.read_all`.
    judged: {modality: what a record says of its judge}, from `scores.described`.
  """
  entries = []
  for (given, target), read in reads.items():
    column, labels = s.examples.columns[target], tuple(s.examples.label_names)
    if given or not column.stacked:
      continue
    total = 10 ** len(labels)
    digits = np.concatenate([s.examples.labels[name] for name in labels])
    floor = floors(len(s.indices), frequencies(digits, len(labels)))
    real = s.judges.readers[target].read(s.real(target))
    for prefix, direction, seen in (("", [], read), ("floor/", None, real)):
      m = modes.modes(reading(seen, labels), total)
      shared = {
        "interval": None,
        "given": direction,
        "target": target,
        "samples": len(s.indices),
        "total": total,
        "judge": judged[target],
      }
      if prefix:
        entries.append({"metric": "floor/modes/count", "value": m.count, **shared})
      metric = f"{prefix}modes/kl_to_uniform"
      entries.append(
        {"metric": metric, "value": m.reverse_kl, "floors": floor, **shared}
      )
  return entries
