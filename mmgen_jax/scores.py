"""What the judges say of samples: from arrays to entries of records, one dict each.

An entry has "metric", "value", "interval" (None where there is none) and its kind,
"given" and "target" (None where it has no direction), "samples" (how many examples the
value is a mean over), and what it was measured with. Only examples that have every
given modality count, and where a target's own value is needed, only those that have it.
Examples whose own label is not known (-1) do not count where it is needed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from mmgen_jax.data.examples import Examples
from mmgen_jax.generate import Samples, Subset
from mmgen_jax.metrics import bootstrap, coherence, modes
from mmgen_jax.metrics.judges import Judge, Judges, describe

Entry = dict[str, Any]
Reads = dict[tuple[Subset, str], dict[str, np.ndarray]]


class Setting(NamedTuple):
  """What samples are measured against.

  Attributes:
    examples: the held-out split.
    indices: which of them the samples were made from.
    judges: what reads them.
    resamples: of the bootstrap.
    seed: of the bootstrap.
  """

  examples: Examples
  indices: np.ndarray
  judges: Judges
  resamples: int = 1000
  seed: int = 0

  def real(self, modality: str) -> np.ndarray:
    """The examples' own stored values."""
    return self.examples.columns[modality].take(self.indices)

  def truth(self, names) -> dict[str, np.ndarray]:
    """The examples' own labels."""
    return {name: self.examples.labels[name][self.indices] for name in names}

  def has(self, modalities: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Which examples have all of these modalities."""
    present = self.examples.present
    all_of = np.ones(len(self.indices), bool)
    for name in modalities:
      all_of &= present[name][self.indices]
    return all_of

  def labelled(self, names) -> Bool[np.ndarray, "n"]:
    """Which examples have all of these labels; -1 is none."""
    return coherence.known(self.truth(names))


def mean_entry(
  metric: str, values, groups=None, *, resamples: int, seed: int = 0, **more
) -> Entry:
  """A mean over examples, with its bootstrap interval."""
  mean, low, high = bootstrap.mean_interval(
    values, groups, resamples=resamples, seed=seed
  )
  return {
    "metric": metric,
    "value": mean,
    "interval": [low, high],
    "interval_kind": f"95 % percentile bootstrap over examples, {resamples} draws",
    "samples": len(values),
    **more,
  }


def _mean(s: Setting, metric: str, values, groups=None, **more) -> Entry:
  return mean_entry(metric, values, groups, resamples=s.resamples, seed=s.seed, **more)


def directions(subsets: Sequence[Subset], modality: str) -> list[Subset]:
  """The subsets that it is worth making a modality from.

  Those without it, and everything, which is reconstruction.
  """
  everything = max(subsets, key=len)
  return [s for s in subsets if modality not in s or s == everything]


def read_all(s: Setting, samples: Samples) -> Reads:
  """{(given, target): the attributes that were read} for every direction."""
  reads = {}
  for target, judge in s.judges.readers.items():
    if target in samples.values:
      for given in directions(samples.subsets, target):
        at = samples.subsets.index(given)
        reads[given, target] = dict(judge.read(samples.values[target][at]))
  return reads


def right_of_real(s: Setting, by: Mapping[str, Judge]) -> dict[str, dict]:
  """{modality: what its judge in `by` reads correctly of labelled real examples}."""
  out = {}
  for name, judge in by.items():
    has = s.has([name])
    read = judge.read(s.real(name)[has])
    truth = {label: x[has] for label, x in s.truth(read).items()}
    right, rows = coherence.correct(read, truth), s.labelled(read)[has]
    out[name] = {label: x[rows] for label, x in right.items()}
  return out


def right_of_made(s: Setting, reads: Reads) -> dict[tuple[Subset, str], dict]:
  """{(given, target): {attribute or "strict": bool [n]}} where something was given.

  False also for examples that are not `s.labelled`; where none is, there is no item.
  """
  return {
    (given, target): coherence.correct(read, s.truth(read))
    for (given, target), read in reads.items()
    if given and s.labelled(read).any()
  }


def described(s: Setting, by: Mapping[str, Judge]) -> dict[str, dict]:
  """{modality: what a record says of its judge in `by`}, its accuracy included.

  Without those whose accuracy no example tells.
  """
  right = right_of_real(s, by)
  told = {name: judge for name, judge in by.items() if len(right[name]["strict"])}
  return {name: describe(judge, right[name]) for name, judge in told.items()}


def _about(s: Setting, judged: Mapping[str, dict], target: str) -> dict:
  """What a record says of the judge of a modality; its accuracy where it is known."""
  if target in judged:
    return judged[target]
  judge = s.judges.readers[target]
  return {"name": judge.name, "sha256": judge.sha256}


def coherence_entries(s: Setting, reads: Reads, judged) -> list[Entry]:
  """Conditional coherence of every direction, joint coherence of the prior.

  Args:
    s: the setting.
    reads: from `read_all`.
    judged: {modality: what a record says of its judge}, from `described`.
  """
  entries, from_prior = [], {}
  for (given, target), read in reads.items():
    if not given:
      continue
    truth, about = s.truth(read), _about(s, judged, target)
    direction = {"given": list(given), "target": target, "judge": about}
    right, groups = coherence.correct(read, truth), coherence.classes(truth, read)
    for name in ("strict", *read):
      rows = s.has(given) & s.labelled(read if name == "strict" else [name])
      if rows.any():
        values, of = right[name][rows], truth.get(name, groups)[rows]
        entries.append(_mean(s, f"coherence/{name}", values, **direction))
        entries.append(_mean(s, f"coherence/{name}_macro", values, of, **direction))
  for (given, target), read in reads.items():
    if not given:
      from_prior[target] = read
      readable = coherence.readable(read)
      direction = {"given": [], "target": target, "judge": _about(s, judged, target)}
      entries.append(_mean(s, "readable", readable, **direction))
  if len(from_prior) > 1:
    for name, values in coherence.agree(from_prior).items():
      judges = [_about(s, judged, target) for target in sorted(from_prior)]
      more = {"given": [], "target": sorted(from_prior), "judge": judges}
      entries.append(_mean(s, f"joint_coherence/{name}", values, **more))
  return entries


def mode_entries(s: Setting, reads: Reads, judged) -> list[Entry]:
  """How many combinations of attributes samples of the prior have, and how evenly.

  `modes/count` of those that there can be ("total"), read of readable samples, and
  `modes/reverse_kl` against the labelled real examples' own shares, in nats.
  """
  entries = []
  for (given, target), read in reads.items():
    sizes = [len(s.examples.label_names.get(name, ())) for name in sorted(read)]
    readable = coherence.readable(read)
    if given or not all(sizes):
      continue
    total, rows = math.prod(sizes), s.labelled(read)
    found = _modes(_rows(read, readable), _rows(s.truth(read), rows), total)
    shared = {"given": [], "target": target, "judge": _about(s, judged, target)}
    shared |= {"interval": None, "samples": len(readable), "total": total}
    entries.append({"metric": "modes/count", "value": found.count, **shared})
    if rows.any():
      kl = found.reverse_kl
      entries.append({"metric": "modes/reverse_kl", "value": kl, **shared})
  return entries


def _rows(labels: coherence.Attributes, which: np.ndarray) -> np.ndarray:
  """Combinations of labels [n, labels], of some examples."""
  return np.stack([np.asarray(labels[name])[which] for name in sorted(labels)], axis=1)


def _modes(made: np.ndarray, real: np.ndarray, total: int) -> modes.Modes:
  """The modes of combinations [n, labels] that were made, against real ones.

  Every one of the `total` modes counts half an example more in the reference, so that
  none is 0. Only those that occur are counted one by one: all may be too many for that.
  """
  if not len(made):
    return modes.Modes(0, total, math.nan)
  both = np.concatenate([made, real])
  _, number = np.unique(both, axis=0, return_inverse=True)
  number, occur = number.reshape(-1), int(number.max()) + 1
  reference = np.bincount(number[len(made) :], minlength=occur) + 0.5
  found = modes.modes(number[: len(made)], occur, reference)
  never = math.log(len(real) + 0.5 * total) - math.log(reference.sum())
  return found._replace(total=total, reverse_kl=found.reverse_kl + never)


def reconstruction_entries(s: Setting, samples: Samples) -> list[Entry]:
  """Errors of every target that was among what was given."""
  entries = []
  for target, errors in samples.errors.items():
    for at, given in enumerate(samples.subsets):
      rows = s.has(given)
      if target in given and rows.any():
        entries += [
          _mean(
            s, f"reconstruction/{name}", x[at][rows], given=list(given), target=target
          )
          for name, x in errors.items()
        ]
  return entries


def loss_entries(s: Setting, samples: Samples, of: str = "") -> list[Entry]:
  """The held-out means of what the evaluation step gives.

  Args:
    s: the setting.
    samples: what was made.
    of: what the likelihoods are of; losses of unlike likelihoods do not compare.
  """
  shared = {"given": None, "target": None, "of": of}
  return [
    _mean(s, f"loss/{name}", np.asarray(x, np.float64), **shared)
    for name, x in sorted(samples.losses.items())
  ]
