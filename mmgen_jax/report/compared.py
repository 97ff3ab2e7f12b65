"""What a comparison shows, and its main part as Markdown for a results page."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmgen_jax import comparison, recommendation
from mmgen_jax.comparison import Column, Run, Summary
from mmgen_jax.recommendation import name_of, number

ARROWS = {1: " ↑", -1: " ↓", 0: ""}  # to better

UNITS = {
  "parameters": lambda x: f"{x:,.0f}",
  "train_secs": lambda x: f"{x:,.1f} s",
  "train_flops": lambda x: f"{x / 1e12:,.3g} TFLOP",
  "memory_bytes": lambda x: f"{x / 2**30:,.2f} GiB",
  "evaluate_secs": lambda x: f"{x:,.1f} s",
}


class Compared(NamedTuple):
  """All that the page shows.

  Attributes:
    name: of the folder.
    runs: every run.
    split: that most is said of.
    columns: every metric under every protocol.
    costs: {method: {cost: Summary}}.
    budget_secs: what training may cost; None: anything.
  """

  name: str
  runs: list[Run]
  split: str
  columns: list[Column]
  costs: dict[str, dict[str, Summary]]
  budget_secs: float | None

  @property
  def methods(self) -> list[str]:
    """The rows, in the order of the sweep."""
    return comparison.methods(self.runs)


def compare(runs: list[Run], name: str, budget_minutes=None) -> Compared:
  """What there is to compare of some runs."""
  splits = [r.records[0]["data"]["split"] for r in runs if r.records]
  secs = None if budget_minutes is None else 60.0 * budget_minutes
  columns = comparison.columns(runs)
  costs = comparison.costs(runs)
  return Compared(name, runs, splits[0] if splits else "", columns, costs, secs)


def advice(c: Compared) -> list[str]:
  if not c.costs:
    return ["No run is finished yet."]
  found = recommendation.recommend(c.columns, c.costs, c.split, c.budget_secs)
  return recommendation.words(found, c.costs, c.budget_secs)


def markdown(c: Compared) -> str:
  """The advice, main measures and costs as Markdown, for a results page."""
  done = [m for m in c.methods if m in c.costs]
  main = recommendation.main_columns(c.columns, c.split)
  lines = [*advice(c), ""]
  head = ["measure", *done]
  lines += [_line(head), _line(["---"] * len(head))]
  for k in main:
    cells = [_text(k.record, k.cells.get(m)) for m in done]
    lines.append(_line([name_of(k.record) + ARROWS[k.better], *cells]))
  for name, unit in UNITS.items():
    if done:
      text = [unit(c.costs[m][name].mean) for m in done]
      lines.append(_line([name.replace("_", " "), *text]))
  troubles: Mapping = {m: comparison.troubles(c.runs, m) for m in done}
  counts = [f"{t['finished']} of {t['runs']}" for t in troubles.values()]
  lines.append(_line(["runs finished", *counts]))
  return "\n".join(lines) + "\n"


def _text(r, s: Summary | None) -> str:
  if s is None:
    return ""
  if math.isnan(s.low):
    return number(r, s.mean)
  return f"{number(r, s.mean)} ({number(r, s.low)} to {number(r, s.high)})"


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"
