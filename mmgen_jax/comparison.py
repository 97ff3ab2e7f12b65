"""Runs of several methods -> what can be said of the methods: pure, from records.

A column holds values of one protocol only (`records.protocol`): two that were measured
unlike, as by other judges or on another number of examples, stand in two columns.
Intervals are Student's t over seeds; they hold the spread of training, which intervals
over examples do not.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mmgen_jax import records
from mmgen_jax.metrics.robustness import excess_robustness, relative_robustness

LEVEL = 0.95
# Names of metrics, as patterns. What is in neither has no better side: how a network
# works (shapley/*, conflict, loss/kl), what is best at a value of its own (density is 1
# of real examples), floors.
_HIGHER = (
  *("coherence/*", "joint_coherence/*", "mean_coherence/*", "readable", "modes/count"),
  *("precision", "recall", "coverage", "inception_score", "reconstruction/*_accuracy"),
  *("accuracy/*", "accuracy_of_all/*", "damaged/*", "robustness/*", "recall_at_*"),
  *("loss/elbo", "loss/logp", "loss/logp_*", "loss/iwae*", "loss/accuracy*"),
  *("loss/correct_*", "log_likelihood/*", "disentanglement/*"),
  *("latents/linear_probe", "latents/neighbours", "latents/anomaly_auroc"),
)
_LOWER = (
  *("frechet", "kid", "reconstruction/mse", "reconstruction/mae", "mean_rank*"),
  *("median_rank*", "modes/reverse_kl", "modes/kl_to_uniform", "loss/bits_per_*"),
  *("loss/nll", "latents/imputed_mse/mean", "latents/imputed_mse/sample"),
  *("nll/*", "nll_scaled/*", "brier/*", "ece/*", "ece_scaled/*"),
)


class Run(NamedTuple):
  """What a comparison knows of one run.

  Attributes:
    id: its name.
    method: which row it belongs to: name, and budget if there are several.
    seed: of it.
    shown: whether it is evaluated; else it only counts as what others cost.
    status: "finished", "failed", "started", "new".
    outcome: its result, or its error.
    records: of its evaluation.
    needs: ids of the runs that it is made from.
    baseline: whether it is what the others are measured against.
  """

  id: str
  method: str
  seed: int
  shown: bool
  status: str
  outcome: Mapping[str, Any]
  records: Sequence[records.Record]
  needs: Sequence[str] = ()
  baseline: bool = False


class Summary(NamedTuple):
  """A mean over seeds.

  Attributes:
    values: one per seed.
    mean: of them.
    low: of the interval; NaN with one seed.
    high: of the interval.
    deviation: over seeds, n - 1 in the denominator; NaN with one seed.
  """

  values: tuple[float, ...]
  mean: float
  low: float
  high: float
  deviation: float


class Column(NamedTuple):
  """One metric under one protocol.

  Attributes:
    protocol: what its values have in common.
    record: one of its records.
    better: 1: higher is better, -1: lower is, 0: neither.
    cells: {method: Summary}.
  """

  protocol: tuple
  record: records.Record
  better: int
  cells: dict[str, Summary]


def summary(values: Iterable[float], level: float = LEVEL) -> Summary:
  """Mean and Student's t interval: mean +- t s / sqrt(n), n - 1 degrees of freedom."""
  x = np.array(list(values), np.float64)
  n, mean = len(x), float(x.mean())
  if n < 2:
    return Summary(tuple(x), mean, math.nan, math.nan, math.nan)
  s = float(x.std(ddof=1))
  half = float(special.stdtrit(n - 1, (1 + level) / 2)) * s / math.sqrt(n)
  return Summary(tuple(x), mean, mean - half, mean + half, s)


def difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL):
  """(mean of a - mean of b, low, high): Welch's interval, unequal variances.

  Welch, "The generalization of 'Student's' problem", 1947; degrees of freedom after
  Satterthwaite. NaN bounds where one has a single value.
  """
  x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
  gap = float(x.mean() - y.mean())
  if min(len(x), len(y)) < 2:
    return gap, math.nan, math.nan
  vx, vy = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
  if vx + vy == 0:
    return gap, gap, gap
  freedom = (vx + vy) ** 2 / (vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1))
  half = float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(vx + vy)
  return gap, gap - half, gap + half


def better(metric: str) -> int:
  """1 where higher values of a metric are better, -1 where lower ones are, else 0."""
  fits = lambda patterns: any(fnmatch.fnmatchcase(metric, p) for p in patterns)
  return 1 if fits(_HIGHER) else -1 if fits(_LOWER) else 0


def methods(runs: Sequence[Run]) -> list[str]:
  """The methods that have a row, in the order of the sweep."""
  return list(dict.fromkeys(r.method for r in runs if r.shown))


def columns(runs: Sequence[Run]) -> list[Column]:
  """Every metric under every protocol, with a summary per method that has it."""
  found: dict[tuple, dict[str, dict[str, records.Record]]] = {}
  for run in runs:
    for r in run.records if run.shown and run.status == "finished" else ():
      if r["value"] is not None:
        place = found.setdefault(records.protocol(r), {}).setdefault(run.method, {})
        place[run.id] = r
  out = []
  for protocol, by_method in found.items():
    first = next(iter(next(iter(by_method.values())).values()))
    cells = {m: summary(r["value"] for r in by.values()) for m, by in by_method.items()}
    out.append(Column(protocol, first, better(first["metric"]), cells))
  return out


def ancestors(run: Run, by_id: Mapping[str, Run]) -> list[Run]:
  """A run and all that it is made from, each once."""
  out: dict[str, Run] = {}

  def visit(r: Run):
    for need in r.needs:
      visit(by_id[need])
    out[r.id] = r

  visit(run)
  return list(out.values())


COSTS = ("train_secs", "train_flops", "evaluate_secs", "parameters", "memory_bytes")


def costs(runs: Sequence[Run]) -> dict[str, dict[str, Summary]]:
  """{method: {cost: Summary over seeds}}; training counts all that a run is made from.

  Means are over finished runs.
  """
  by_id, out = {r.id: r for r in runs}, {}
  for method in methods(runs):
    own = [r for r in runs if r.method == method and r.shown]
    done = [r for r in own if r.status == "finished"]
    if not done:
      continue
    rows = [_cost(r, by_id) for r in done]
    out[method] = {name: summary(row[name] for row in rows) for name in COSTS}
  return out


def _cost(run: Run, by_id: Mapping[str, Run]) -> dict[str, float]:
  made_of = [r.outcome for r in ancestors(run, by_id)]
  memory = [
    m.get("device", m.get("host", 0)) for m in (o["memory_bytes"] for o in made_of)
  ]
  return {
    "train_secs": sum(o["train_secs"] for o in made_of),
    "train_flops": sum(o["train_flops"] for o in made_of),
    "evaluate_secs": run.outcome["evaluate_secs"],
    "parameters": sum(run.outcome["parameters"].values()),
    "memory_bytes": max(memory),
  }


def troubles(runs: Sequence[Run], method: str) -> dict[str, int]:
  """How many runs of a method finished, diverged, failed otherwise; of how many."""
  own = [r for r in runs if r.method == method and r.shown]
  codes = [r.outcome.get("exit_code") for r in own if r.status == "failed"]
  return {
    "runs": len(own),
    "finished": sum(r.status == "finished" for r in own),
    "diverged": codes.count(70),
    "failed": len(codes) - codes.count(70),
    "skipped": int(sum(r.outcome.get("skipped_updates", 0) for r in own)),
  }


def _size(r: records.Record) -> tuple:
  return r["samples"], (r.get("reference") or {}).get("samples")


class Gap(NamedTuple):
  """How much better a method does on what it was trained on.

  Attributes:
    metric: of both.
    given: of both.
    target: of both.
    split: what training is compared with.
    cells: {method: Summary of the differences, seed by seed}; above 0: worse there.
  """

  metric: str
  given: tuple[str, ...] | None
  target: Any
  split: str
  cells: dict[str, Summary]


def gaps(runs: Sequence[Run], among: Sequence[str] = ("train",)) -> list[Gap]:
  """Held-out metrics against the same on other splits, run by run.

  For every metric with a better side that a run has on the main split and on one in
  `among`, with the same likelihood or judge.
  """
  found: dict[tuple, dict[str, list[float]]] = {}
  for run in runs:
    if not run.shown or run.status != "finished" or not run.records:
      continue
    main = run.records[0]["data"]["split"]
    for r in run.records:
      split, sign = r["data"]["split"], better(r["metric"])
      if split not in among or not sign or r["value"] is None:
        continue
      twin = records.find(run.records, r["metric"], r["given"], r["target"], main)
      if twin is None or twin["value"] is None or r.get("of") != twin.get("of"):
        continue
      if r["metric"].startswith(("readable", "modes/count", "joint_coherence/")):
        continue  # says nothing of the examples
      of_sets = not r["given"] or (r.get("reference") or {}).get("samples")
      if r["target"] and of_sets and _size(r) != _size(twin):
        continue  # distances fall with the number of examples
      given = None if r["given"] is None else tuple(r["given"])
      target = tuple(r["target"]) if isinstance(r["target"], list) else r["target"]
      key = (r["metric"], given, target, split, r.get("of", ""))
      # How much worse the split that is not trained on is.
      worse = sign * (r["value"] - twin["value"]) * (1 if split == "train" else -1)
      found.setdefault(key, {}).setdefault(run.method, []).append(worse)
  return [
    Gap(metric, given, target, split, {m: summary(v) for m, v in cells.items()})
    for (metric, given, target, split, _), cells in found.items()
  ]


class Robustness(NamedTuple):
  """How methods bear one kind of damage, each given all inputs that it has.

  Attributes:
    metric: "robustness/<label>/<modality>/<kind>".
    baseline: the one that is most accurate without damage; None if none has the curve.
    relative: {method: Summary of the areas under accuracy over severity}.
    effective: {method: Summary of the accuracy beyond what the baseline's fall leaves}.
  """

  metric: str
  baseline: str | None
  relative: dict[str, Summary]
  effective: dict[str, Summary]


def robustness(runs: Sequence[Run], split: str) -> list[Robustness]:
  """Every kind of damage that was tested on a split, from the curves in records.

  Relative and effective robustness of Liang et al., 2021 (`metrics.robustness`), the
  latter against the mean curve of a baseline. Curves are of one kind where severities,
  examples and their number are.
  """
  found: dict[tuple, dict[str, list[np.ndarray]]] = {}
  for run in runs:
    of = [r for r in run.records if r["metric"].startswith("robustness/")]
    of = [r for r in of if r["data"]["split"] == split]
    if not of or not run.shown or run.status != "finished":
      continue
    most = max(len(r["given"]) for r in of)
    for r in of:
      if len(r["given"]) == most:
        data, strengths = r["data"]["fingerprint"], tuple(r["reference"]["strengths"])
        place = found.setdefault((r["metric"], data, r["samples"], strengths), {})
        place.setdefault(run.method, []).append(np.array(r["curve"]))
  marked, out = {r.method for r in runs if r.baseline}, []
  for (metric, *_), curves in found.items():
    means = {m: np.mean(c, axis=0) for m, c in curves.items()}
    baseline = max(marked & curves.keys(), key=lambda m: means[m][0], default=None)
    relative = {m: summary(map(relative_robustness, c)) for m, c in curves.items()}
    effective = {
      m: summary(excess_robustness(x, means[baseline]) for x in c)
      for m, c in curves.items()
      if baseline not in (None, m)
    }
    out.append(Robustness(metric, baseline, relative, effective))
  return out
