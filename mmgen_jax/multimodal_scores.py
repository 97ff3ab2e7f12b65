"""Entries of records that are of many modalities: by what was given; in nats."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmgen_jax.attribution import shapley
from mmgen_jax.generate import Subset
from mmgen_jax.metrics import multimodal_likelihood
from mmgen_jax.scores import Entry, Reads, Setting, _mean, right_of_made


def count_entries(s: Setting, reads: Reads, judged) -> list[Entry]:
  """Conditional coherence by how many modalities were given, where there are many.

  The mean over all directions to what was not given; an example that lacks some of the
  given modalities counts for the other directions. An interval is over examples.
  """
  marks: dict[int, list[np.ndarray]] = {}
  for (given, target), right in right_of_made(s, reads).items():
    if target not in given:
      has = s.has(given) & s.labelled(reads[given, target])
      marks.setdefault(len(given), []).append(np.where(has, right["strict"], np.nan))
  entries = []
  for count, values in sorted(marks.items()) if len(judged) > 2 else ():
    known = np.stack(values)
    known = known[:, ~np.isnan(known).all(0)]
    if known.size:
      more = {"given": None, "target": None, "directions": len(values)}
      more["judge"] = [judged[target] for target in sorted(judged)]
      mean = np.nanmean(known, 0)
      entries.append(_mean(s, f"mean_coherence/given_{count}", mean, **more))
  return entries


def likelihood_entries(
  s: Setting, bounds: Mapping[Subset, Any], rows, samples: int, of: str = ""
) -> list[Entry]:
  """Log p of every subset, and of one modality given any subset, in nats.

  Args:
    s: the setting.
    bounds: {subset: `metrics.likelihood.Bounds` of the examples in `rows`}.
    rows: positions in the setting's indices.
    samples: K; part of the metric's name, since numbers of another K do not compare.
    of: as of `loss_entries`.
  """
  entries = []

  def add(given, target, values, effective):
    has = s.has([*given, *target])[rows]
    if has.any():
      more: Entry = {"given": list(given), "target": list(target), "of": of}
      more["effective_samples"] = float(np.mean(effective[has]))
      values = np.asarray(values, np.float64)[has]
      entries.append(_mean(s, f"log_likelihood/k{samples}", values, **more))

  for subset, joint in bounds.items():
    if subset:
      add((), subset, joint.log_px, joint.effective)
    for target in subset if len(subset) > 1 else ():
      given = tuple(name for name in subset if name != target)
      if given in bounds:
        values = joint.log_px - bounds[given].log_px
        add(given, (target,), values, joint.effective)
  return entries


def shapley_entries(
  s: Setting, bounds: Mapping[Subset, Any], rows, samples: int, of: str = ""
) -> list[Entry]:
  """What each given modality adds to log p of one that is not, in nats, per target.

  Shapley values of S -> log p(x_t | x_S), which add up to log p(x_t | all others) less
  log p(x_t); `shapley/log_likelihood`, of examples that have everything, where all
  subsets were evaluated. Arguments as of `likelihood_entries`.
  """
  log_px = {frozenset(subset): x.log_px for subset, x in bounds.items()}
  log_px[frozenset()] = np.zeros(len(rows))
  names = sorted(frozenset().union(*log_px))
  has = s.has(names)[rows]
  if len(names) < 3 or len(log_px) < 2 ** len(names) or not has.any():
    return []
  entries = []
  for target in names:
    others = {t: x for t, x in log_px.items() if target not in t}
    values = {tuple(sorted(t)): log_px[t | {target}] - x for t, x in others.items()}
    for name, share in shapley(values).items():
      more: Entry = {"given": [name], "target": target, "of": of}
      metric = f"shapley/log_likelihood/k{samples}"
      entries.append(_mean(s, metric, share[has], **more))
  return entries


def log_likelihoods(
  config, params, setting: Setting, subsets: Sequence[Subset], of: str, say
) -> list[Entry]:
  """Of the subsets that are evaluated, by `config.eval.likelihood`, if it is there.

  Its fields: samples (K; 0 for none), chunk (of them in memory at once), examples. `of`
  is as of `scores.loss_entries`.
  """
  how = config.eval.get("likelihood")
  if not how or not how.samples:
    return []
  rows = np.arange(min(how.examples, len(setting.indices)))
  indices, seed = setting.indices[rows], config.seed
  bounds = multimodal_likelihood.table(
    config,
    params,
    setting.examples,
    indices,
    [subset for subset in subsets if subset],
    samples=how.samples,
    chunk=how.chunk,
    seed=seed,
  )
  say(f"log-likelihoods of {len(rows)} examples from {how.samples} samples each")
  given = setting, bounds, rows, how.samples, of
  return likelihood_entries(*given) + shapley_entries(*given)
