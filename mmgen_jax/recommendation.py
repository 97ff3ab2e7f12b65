"""Which method to choose, in plain words, from what was measured and what it costs."""

import collections
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmgen_jax import comparison, records
from mmgen_jax.comparison import Column, Summary

# The metrics that say most, by question; all others stay in the tables. Where a question
# has several patterns, a later one is for methods that the earlier ones say nothing of.
MAIN = {
  "joint coherence": ("joint_coherence/strict",),
  "coherence": ("mean_coherence/*", "coherence/strict"),
  "Frechet distance": ("frechet",),
  "readable": ("readable",),
  "modes": ("modes/count",),
  "held-out ELBO": ("loss/elbo",),
  "held-out accuracy": ("loss/accuracy*",),
  "accuracy": ("accuracy_of_all/*",),
}
FEW = 3  # measures of a question that are told one by one


class Verdict(NamedTuple):
  """The best method by one column.

  Attributes:
    column: the column.
    best: the method with the best mean.
    second: the next one.
    gap: (how much better, low, high), Welch's interval; above 0 is better.
    apart: whether that interval is above 0: the seeds tell the two apart.
  """

  column: Column
  best: str
  second: str
  gap: tuple[float, float, float]
  apart: bool


class Recommendation(NamedTuple):
  """What to choose.

  Attributes:
    method: by mean rank over the questions of `shared`; None if no method is affordable.
    affordable: methods whose training costs at most the budget.
    dear: the others.
    ranks: {affordable method: mean rank, as of `ranks`, over `shared`}.
    shared: the main columns that every affordable method has.
    verdicts: one per main column that two affordable methods have.
    cheaper: methods that cost less than the chosen one and that the seeds tell apart
      from it in no shared column.
  """

  method: str | None
  affordable: list[str]
  dear: list[str]
  ranks: dict[str, float]
  shared: list[Column]
  verdicts: list[Verdict]
  cheaper: list[str]


def main_columns(columns: Sequence[Column], split: str) -> list[Column]:
  """The columns of `MAIN` on one split, but reconstructions of what was given."""
  mine = []
  for c in columns:
    r = c.record
    given = r["given"] or ()
    if r["data"]["split"] == split and c.better and r["target"] not in given:
      mine.append(c)
  return answers(mine, lambda c: c.record["metric"])


def answers(found: Sequence[Any], metric: Callable[[Any], str]) -> list[Any]:
  """Those of some columns or gaps that answer a question of `MAIN`, in its order."""
  out = []
  for patterns in MAIN.values():
    known: set[str] = set()  # methods that have an answer
    for pattern in patterns:
      fits = [x for x in found if fnmatch.fnmatchcase(metric(x), pattern)]
      mine = [x for x in fits if not known.issuperset(x.cells)]
      known |= {m for x in mine for m in x.cells}
      out += mine
  return out


def question(r: Mapping) -> str | None:
  """The question of `MAIN` that a record is about, in words; None if it is about none.

  Samples of the prior and samples given something answer different ones.
  """
  for name, patterns in MAIN.items():
    if any(fnmatch.fnmatchcase(r["metric"], p) for p in patterns):
      if r["given"] or r["metric"].startswith("mean_coherence/"):
        return f"{name}, given others"
      return name if r["given"] is None else f"{name}, prior"
  return None


def questions(columns: Sequence[Column]) -> dict[str, list[Column]]:
  """{question: its columns}, of main columns."""
  out: dict[str, list[Column]] = {}
  for c in columns:
    out.setdefault(str(question(c.record)), []).append(c)
  return out


def title(columns: Sequence[Column]) -> str:
  """What the columns of one question are called: the only one by its own name."""
  if len(columns) == 1:
    return name_of(columns[0].record)
  return f"{question(columns[0].record)} ({len(columns)} measures)"


def verdict(column: Column, methods: Sequence[str]) -> Verdict | None:
  """The best of the methods that a column has; None if it has fewer than two."""
  cells = {m: column.cells[m] for m in methods if m in column.cells}
  order = sorted(cells, key=lambda m: -column.better * cells[m].mean)
  if len(order) < 2:
    return None
  best, second = order[:2]
  a, b = ([column.better * value for value in cells[m].values] for m in (best, second))
  gap = comparison.difference(a, b)
  return Verdict(column, best, second, gap, gap[1] > 0)


def ranks(columns: Sequence[Column], methods: Sequence[str]) -> dict[str, float]:
  """Mean rank of each method over columns that have all of them; ties share theirs.

  The mean over questions of the mean over a question's columns: each question counts
  once, however many directions it is asked in.
  """
  total, asked = dict.fromkeys(methods, 0.0), questions(columns)
  for mine in asked.values():
    for c in mine:
      scores = {m: -c.better * c.cells[m].mean for m in methods}
      for m in methods:
        below = sum(s < scores[m] for s in scores.values())
        equal = sum(s == scores[m] for s in scores.values())
        total[m] += (below + (equal + 1) / 2) / len(mine)
  # Thirds do not add up to the last bit, and a tie is to stay one.
  return {m: round(t / max(1, len(asked)), 9) for m, t in total.items()}


def recommend(
  columns: Sequence[Column],
  costs: Mapping[str, Mapping[str, Summary]],
  split: str,
  budget_secs: float | None = None,
) -> Recommendation:
  """The method of the best mean rank among those that a budget affords.

  Args:
    columns: from `comparison.columns`.
    costs: from `comparison.costs`.
    split: whose columns count.
    budget_secs: of training, all that a run is made from included; None: any.
  """
  limit = math.inf if budget_secs is None else budget_secs
  affordable = [m for m in costs if costs[m]["train_secs"].mean <= limit]
  dear = [m for m in costs if m not in affordable]
  mine = main_columns(columns, split)
  shared = [c for c in mine if affordable and all(m in c.cells for m in affordable)]
  verdicts = [v for c in mine if (v := verdict(c, affordable)) is not None]
  rank = ranks(shared, affordable)
  secs = lambda m: costs[m]["train_secs"].mean
  method = min(affordable, key=lambda m: (rank[m], secs(m)), default=None)
  cheaper = []
  for m in affordable:
    if method and m != method and secs(m) < secs(method):
      pairs = [verdict(c, [m, method]) for c in shared]
      if shared and not any(v and v.apart and v.best == method for v in pairs):
        cheaper.append(m)
  return Recommendation(method, affordable, dear, rank, shared, verdicts, cheaper)


def against_baselines(
  columns: Sequence[Column], baselines: Sequence[str]
) -> list[tuple[Column, str, dict[str, tuple[float, float, float]]]]:
  """Each other method against the best baseline of each column that has one.

  (column, the baseline of the best mean, {method: (how much better, low, high)}), by
  Welch's interval; above 0 the method is better.
  """
  out = []
  for c in columns:
    found = [m for m in baselines if m in c.cells]
    if not found or not c.better:
      continue
    best = max(found, key=lambda m: c.better * c.cells[m].mean)
    values = lambda m, c=c: [c.better * value for value in c.cells[m].values]
    others = [m for m in c.cells if m not in baselines]
    gaps = {m: comparison.difference(values(m), values(best)) for m in others}
    out.append((c, best, gaps))
  return out


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
  """The names of points (cost, quality) that no other beats in one and equals in other.

  Cheapest first.
  """
  front = []
  for name, (cost, quality) in points.items():
    beaten = any(
      c <= cost and q >= quality and (c, q) != (cost, quality)
      for c, q in points.values()
    )
    if not beaten:
      front.append(name)
  return sorted(front, key=lambda name: points[name][0])


def name_of(r: records.Record) -> str:
  """A metric and its direction in words."""
  target = r["target"]
  target = target if isinstance(target, str) else " + ".join(target or ())
  names = {
    "frechet": "Frechet distance",
    "coherence/strict": "coherence",
    "joint_coherence/strict": "joint coherence",
    "modes/count": "modes",
    "loss/elbo": "held-out ELBO",
  }
  name = names.get(metric := str(r["metric"]), metric.replace("/", " "))
  if metric.startswith("mean_coherence/given_"):
    name = f"coherence, any {metric.rpartition('_')[2]} given"
  if r["given"] is None:
    return name
  return f"{name}, {' + '.join(r['given']) if r['given'] else 'prior'} → {target}"


def _secs(value: float) -> str:
  return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"


def number(r: records.Record, value: float) -> str:
  """A value of a record's metric, or a difference of two; shares in percent."""
  shares = ("coherence/", "joint_coherence/", "mean_coherence/", "readable")
  if r["metric"].startswith((*shares, "loss/accuracy")):
    return f"{100 * value:.1f} %"
  return f"{value:.3g}"


def words(
  r: Recommendation,
  costs: Mapping[str, Mapping[str, Summary]],
  budget_secs: float | None = None,
) -> list[str]:
  """The recommendation as sentences, weakest claim that the figures allow."""
  budget = "" if budget_secs is None else f" for {_secs(budget_secs)} of training"
  if r.method is None:
    least = min((c["train_secs"].mean for c in costs.values()), default=math.nan)
    return [f"No method is affordable{budget}; the cheapest takes {_secs(least)}."]
  out = []
  spent = _secs(costs[r.method]["train_secs"].mean)
  if len(r.affordable) == 1:
    out.append(f"Only {r.method} is affordable{budget} ({spent}).")
  elif not r.shared:
    out.append(f"No measure is common to all {len(r.affordable)} methods{budget}.")
  else:
    order = sorted(r.ranks, key=lambda m: r.ranks[m])
    others = ", ".join(f"{m} {r.ranks[m]:.1f}" for m in order if m != r.method)
    asked = questions(r.shared).values()
    listed = "; ".join(map(title, asked))
    once = " Each of these counts once." * any(len(mine) > 1 for mine in asked)
    out.append(
      f"Choose {r.method}{budget}: it takes {spent} and has the best mean rank,"
      f" {r.ranks[r.method]:.1f}, over what all methods share ({listed}).{once} The"
      f" others: {others}."
    )
    apart = [v for v in r.verdicts if v.column in r.shared and v.apart]
    mine = [v for v in apart if v.best == r.method]
    if mine:
      text = "; ".join(_told_all(mine, r.shared))
      out.append(f"The seeds tell it apart from the next best in: {text}.")
    else:
      out.append(
        "In none of these do the seeds tell it apart from the next best: with as few"
        " seeds as these, take that as a tie."
      )
  if r.cheaper:
    listed = ", ".join(f"{m} ({_secs(costs[m]['train_secs'].mean)})" for m in r.cheaper)
    out.append(f"Cheaper, and in no shared measure shown to be worse: {listed}.")
  rest = [v for v in r.verdicts if v.column not in r.shared]
  apart = [v for v in rest if v.apart]
  if apart:
    told = _told_all(apart, [v.column for v in rest])
    out.append(f"Of measures that only some have: {'; '.join(told)}.")
  if ties := len(rest) - len(apart):
    out.append(f"In {ties} measures that only some have, the two best are not apart.")
  if r.dear:
    listed = ", ".join(f"{m} ({_secs(costs[m]['train_secs'].mean)})" for m in r.dear)
    out.append(f"Beyond the budget: {listed}.")
  return out


def _told_all(verdicts: Sequence[Verdict], among: Sequence[Column]) -> list[str]:
  """Verdicts of a question one by one if they are few, else how many of each method."""
  asked, out = questions(among), []
  for name, columns in questions([v.column for v in verdicts]).items():
    mine = [v for v in verdicts if question(v.column.record) == name]
    if len(columns) <= FEW:
      out += map(_told, mine)
      continue
    counts = collections.Counter(v.best for v in mine).most_common()
    best = ", ".join(f"{m} best in {count}" for m, count in counts)
    out.append(f"{title(asked[name])}: {best}")
  return out


def _told(v: Verdict) -> str:
  r, cells = v.column.record, v.column.cells
  best, second = (number(r, cells[m].mean) for m in (v.best, v.second))
  text = f"{name_of(r)}: {v.best} {best} against {v.second} {second}"
  if math.isnan(v.gap[1]):
    return f"{text} (one seed: no interval)"
  low, high = (number(r, x) for x in v.gap[1:])
  apart = "" if v.apart else ", not told apart"
  return f"{text} (difference {number(r, v.gap[0])}, 95 % {low} to {high}{apart})"
