"""A sweep's folder -> compare.html and compare.md: which method, and how sure that is."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmgen_jax import comparison, recommendation, sweep
from mmgen_jax.comparison import Column, Summary
from mmgen_jax.provenance import write_atomically
from mmgen_jax.recommendation import FEW, name_of, number, title
from mmgen_jax.report import barriers, page, scatter
from mmgen_jax.report.compared import (
  ARROWS,
  UNITS,
  Compared,
  advice,
  compare,
  markdown,
)
from mmgen_jax.report.page import esc

DASH = '<span class="faint">–</span>'
MANY = 12  # measures of a question, above which their rows are folded away


def write(trials: Sequence[sweep.Trial], workdir, budget_minutes=None) -> Path:
  """Writes <workdir>/compare.html and compare.md, prints the advice; the page's path.

  Curves of <workdir>/barriers.json (benchmarks/barrier_generative.py) are shown too.
  """
  workdir = Path(workdir).absolute()
  c = compare(sweep.read(trials, workdir), workdir.name, budget_minutes)
  write_atomically(workdir / "compare.md", markdown(c))
  path = workdir / "compare.html"
  kept = workdir / "barriers.json"
  pairs = json.loads(kept.read_text())["curves"] if kept.exists() else {}
  write_atomically(path, render(c, pairs))
  print("\n".join(advice(c)))
  return path


def render(c: Compared, pairs: Mapping[str, barriers.Curves] | None = None) -> str:
  """The whole page as HTML; `pairs` has barrier curves, where there are any."""
  sections = [
    ("advice", "Advice", _advice_section(c)),
    ("quality", "Quality", _quality(c)),
    ("baselines", "Against baselines", _baselines(c)),
    ("pareto", "Cost against quality", _pareto(c)),
    ("stability", "Stability", _stability(c)),
    ("generalisation", "Generalisation", _generalisation(c)),
    ("robustness", "Robustness", _robustness(c)),
    ("cost", "Cost", _cost(c)),
    ("barriers", "Barriers", barriers.section(pairs or {})),
    ("all", "All measures", _all(c)),
    ("runs", "Runs", _runs(c)),
  ]
  done = sum(r.status == "finished" for r in c.runs)
  seeds = {r.seed for r in c.runs if r.shown}
  devices = sorted({r.outcome["device"] for r in c.runs if "device" in r.outcome})
  data = sorted({r.records[0]["data"]["name"] for r in c.runs if r.records})
  facts = [("methods", len(c.methods)), ("seeds", len(seeds))]
  facts += [("runs finished", f"{done} of {len(c.runs)}"), ("data", ", ".join(data))]
  facts += [("on", ", ".join(devices))] * bool(devices)
  if c.budget_secs is not None:
    facts.append(("budget", f"{c.budget_secs / 60:g} min of training"))
  listed = "".join(f"<li>{esc(k)} <b>{esc(v)}</b></li>" for k, v in facts)
  header = (
    f'<p class="over">{esc(c.name)}</p><h1>Which method?</h1>'
    f'<ul class="facts">{listed}</ul><p class="note">{esc(advice(c)[0])}</p>'
  )
  return page.document(f"{c.name} · mmgen_jax", header, sections)


def _advice_section(c: Compared) -> str:
  sentences = "".join(f"<p>{esc(text)}</p>" for text in advice(c))
  lead = "From the figures below alone. Two methods are told apart where Welch's 95 %"
  lead += " interval of their difference over seeds does not hold zero; several such"
  lead += " intervals are looked at, and none is widened for that."
  return page.section("advice", "Advice", sentences, lead=esc(lead))


def _cell(r, s: Summary | None, best: bool = False):
  if s is None:
    return DASH
  text, n = esc(number(r, s.mean)), len(s.values)
  small = "1 seed"
  if n > 1:
    small = f"{number(r, s.low)} to {number(r, s.high)}"
  text = f"{text}<small>{esc(small)}</small>"
  return (text, 0.22) if best else text


def _row(c: Column, methods: Sequence[str]) -> list:
  """Cells of one column of `comparison`, one per method, the best one tinted."""
  verdict = recommendation.verdict(c, methods) if c.better else None
  best = verdict.best if verdict else None
  return [_cell(c.record, c.cells.get(m), m == best) for m in methods]


def _grid(columns: Sequence[Column], methods: Sequence[str], caption: str) -> str:
  """A table of methods by measures; of a question with more than FEW, the mean rank."""
  cells, head = [], [""]
  for mine in recommendation.questions(columns).values():
    if len(mine) <= FEW:
      cells += [_row(c, methods) for c in mine]
      head += [esc(name_of(c.record) + ARROWS[c.better]) for c in mine]
      continue
    ranks = recommendation.ranks(mine, methods)
    cells.append([_rank(ranks[m], ranks[m] == min(ranks.values())) for m in methods])
    head.append(esc(title(mine) + ARROWS[-1]))
  rows = [[esc(m), *(column[i] for column in cells)] for i, m in enumerate(methods)]
  return page.table(head, rows, caption) if columns else ""


def _rank(value: float, best: bool):
  text = f"{value:.1f}<small>mean rank</small>"
  return (text, 0.22) if best else text


def _rows(
  rows: Sequence[tuple[str | None, list]], head: Sequence[str], caption: str = ""
) -> list[str]:
  """A table of (question, cells); below it, folded, questions of more than MANY rows."""
  by: dict[str | None, list] = {}
  for name, cells in rows:
    by.setdefault(name, []).append(cells)
  plain = [cells for name, cells in rows if len(by[name]) <= MANY]
  parts = [page.table(head, plain, caption)] if plain else []
  for name, mine in by.items():
    if len(mine) > MANY:
      table = page.table(head, mine, caption)
      parts.append(page.details(f"{name}: {len(mine)} measures", table))
  return parts


def _quality(c: Compared) -> str:
  main = recommendation.main_columns(c.columns, c.split)
  done = [m for m in c.methods if m in c.costs]
  shared = [k for k in main if all(m in k.cells for m in done)]
  rest = [k for k in main if k not in shared]
  has = {m: sum(m in k.cells for k in rest) for m in done}
  some = sorted((m for m in done if has[m]), key=lambda m: -has[m])
  small = f"<small>split {esc(c.split)}; mean and 95 % interval over seeds</small>"
  caption = f"What every method can be asked {small}"
  parts = [_grid(shared, done, caption)]

  # Directions go down, methods across: there are many of them.
  def row(k: Column, methods):
    name = esc(name_of(k.record) + ARROWS[k.better])
    return recommendation.question(k.record), [name, *_row(k, methods)]

  for name, mine in recommendation.questions(shared).items():
    if len(mine) > FEW:  # whose mean rank is in the grid
      cells = [row(k, done)[1] for k in mine]
      table = page.table(["", *map(esc, done)], cells, caption)
      parts.append(page.details(f"{name}: {len(mine)} measures", table))
  rows = [row(k, some) for k in rest]
  parts += _rows(rows, ["", *map(esc, some)], f"Where it applies {small}")
  lead = (
    "Arrows point to better; the best mean of each measure is tinted. Intervals are"
  )
  lead += " Student's t over training seeds. Ranks are among the methods, 1 is best."
  return page.section("quality", "Quality", *parts, lead=esc(lead))


def _baselines(c: Compared) -> str:
  baselines = [m for m in c.methods if any(r.baseline for r in c.runs if r.method == m)]
  others = [m for m in c.methods if m in c.costs and m not in baselines]
  main = recommendation.main_columns(c.columns, c.split)
  rows = []
  for k, best, gaps in recommendation.against_baselines(main, baselines):
    if not gaps:
      continue
    name = f"{esc(name_of(k.record))}<small>against {esc(best)}</small>"
    cells = []
    for m in others:
      if m not in gaps:
        cells.append(DASH)
        continue
      gap, low, high = (number(k.record, x) for x in gaps[m])
      bounds = "1 seed" if math.isnan(gaps[m][1]) else f"{low} to {high}"
      text = f"{esc(gap)}<small>{esc(bounds)}</small>"
      cells.append((text, 0.22) if gaps[m][1] > 0 else text)
    rows.append((recommendation.question(k.record), [name, *cells]))
  lead = "How much better each method is than the best baseline of that measure, with"
  lead += (
    " Welch's 95 % interval over seeds; above 0 is better, tinted where the interval"
  )
  lead += " is."
  parts = _rows(rows, ["", *map(esc, others)])
  return page.section("baselines", "Against baselines", *parts, lead=esc(lead))


def _pareto(c: Compared) -> str:
  figures = []
  main = recommendation.main_columns(c.columns, c.split)
  asked = recommendation.questions(main).values()
  # Of equally wide ones, one per question before the second of any.
  places = [(i, k) for mine in asked for i, k in enumerate(mine)]
  for _, k in sorted(places, key=lambda p: (-len(p[1].cells), p[0]))[:4]:
    points = {
      m: scatter.Point(c.costs[m]["train_secs"].mean, s.mean, s.low, s.high)
      for m, s in k.cells.items()
    }
    quality = {m: (p.x, k.better * p.y) for m, p in points.items()}
    front = recommendation.pareto(quality)
    name = name_of(k.record) + ARROWS[k.better]
    drawing = scatter.scatter(points, front, name, "seconds of training")
    figures.append(f"<figure><figcaption>{esc(name)}</figcaption>{drawing}</figure>")
  body = f'<div class="charts wide">{"".join(figures)}</div>' if figures else ""
  lead = "Large dots, joined: no other method is both cheaper and better. Training of"
  lead += " all that a method is made from counts."
  return page.section("pareto", "Cost against quality", body, lead=esc(lead))


def _stability(c: Compared) -> str:
  main = recommendation.main_columns(c.columns, c.split)
  done = [m for m in c.methods if m in c.costs]
  shared = [k for k in main if all(m in k.cells for m in done)]
  asked = recommendation.questions(shared).values()
  groups: list[list[Column]] = []
  for mine in asked:
    groups += [mine] if len(mine) > FEW else [[k] for k in mine]
  rows = []
  for m in c.methods:
    t = comparison.troubles(c.runs, m)
    cells = [
      f"{t['finished']} of {t['runs']}",
      t["diverged"],
      t["failed"],
      t["skipped"],
    ]
    spread = [_spread(mine, m) for mine in groups]
    rows.append([esc(m), *(esc(x) for x in cells + spread)])
  head = ["", "finished", "diverged", "failed", "updates skipped"]
  head += [esc(f"{'mean ' * (len(mine) > 1)}sd of {title(mine)}") for mine in groups]
  lead = "Standard deviations over seeds of what every method has; with n seeds each is"
  lead += " itself uncertain by about 1 / sqrt(2 (n - 1)) of its size."
  table = page.table(head, rows) if rows else ""
  return page.section("stability", "Stability", table, lead=esc(lead))


def _spread(columns: Sequence[Column], method: str) -> str:
  """The mean over columns of a method's standard deviations, as text."""
  found = [k.cells[method].deviation for k in columns if method in k.cells]
  mean = sum(found) / len(found) if found else math.nan
  return "–" if math.isnan(mean) else number(columns[0].record, mean)


def _generalisation(c: Compared) -> str:
  done = [m for m in c.methods if m in c.costs]
  splits = {k.record["data"]["split"] for k in c.columns} - {c.split}
  parts = []
  for split in sorted(splits):
    found = comparison.gaps(c.runs, [split])
    has = {m: sum(m in gap.cells for gap in found) for m in done}
    order = sorted((m for m in done if has[m]), key=lambda m: -has[m])
    rows = []
    main = recommendation.answers(found, lambda gap: gap.metric)
    more = [gap for gap in found if gap.metric in ("kid", "reconstruction/mse")]
    for gap in main + more:
      r = {"metric": gap.metric, "given": gap.given, "target": gap.target}
      name = recommendation.question(r)
      cells = [_cell(r, gap.cells.get(m)) for m in order]
      rows.append((name or gap.metric, [esc(name_of(r)), *cells]))
    what = "held out less trained on" if split == "train" else f"{c.split} less {split}"
    caption = f"{esc(what)} <small>how much worse the former is than the latter"
    if split != "train":
      caption = f"{esc(split)} against {esc(c.split)} <small>how much worse the former"
      caption += " is"
    caption += "; above 0: it generalises that much less</small>"
    parts += _rows(rows, ["", *map(esc, order)], caption)
  return page.section("generalisation", "Generalisation", *parts)


def _robustness(c: Compared) -> str:
  found = comparison.robustness(c.runs, c.split)
  methods = [m for m in c.methods if any(m in k.relative for k in found)]
  rows = []
  for k in found:
    name = esc(k.metric.removeprefix("robustness/").replace("/", ", "))
    against = (
      f"<small>effective against {esc(k.baseline)}</small>" if k.baseline else ""
    )
    cells = [_robust_cell(k, m) if m in k.relative else DASH for m in methods]
    rows.append([name + against, *cells])
  lead = (
    "Relative: the mean accuracy over severities of damage, of one input at a time,"
  )
  lead += " all inputs given. Effective, below it: how much higher accuracy stands than"
  lead += " if it fell as the baseline's does, with the interval over seeds."
  table = page.table(["", *map(esc, methods)], rows) if rows else ""
  return page.section("robustness", "Robustness", table, lead=esc(lead))


def _robust_cell(k: comparison.Robustness, method: str):
  """Relative robustness; effective, signed, below it; tinted where that is above 0."""
  text = f"{100 * k.relative[method].mean:.1f} %"
  if method not in k.effective:
    return text
  s = k.effective[method]
  bounds = f" ({100 * s.low:+.1f} to {100 * s.high:+.1f})" if len(s.values) > 1 else ""
  text += f"<small>{100 * s.mean:+.1f}{bounds}</small>"
  return (text, 0.22) if s.low > 0 else text


def _cost(c: Compared) -> str:
  names = {
    "parameters": "parameters",
    "train_secs": "training, after compilation",
    "train_flops": "training, FLOPs",
    "memory_bytes": "peak memory",
    "evaluate_secs": "evaluation",
  }
  rows = []
  for m, cost in c.costs.items():
    cells = []
    for name in names:
      s = cost[name]
      text = UNITS[name](s.mean)
      if name.endswith("_secs") and not math.isnan(s.low):
        text += f"<small>{s.low:,.1f} to {s.high:,.1f}</small>"
      cells.append(text)
    rows.append([esc(m), *cells])
  lead = "Per finished run, all that it is made from included. FLOPs are XLA's count of"
  lead += " the step before optimisation. Memory is the process's own (or one"
  lead += " accelerator's), at its highest in training."
  table = page.table(["", *map(esc, names.values())], rows) if rows else ""
  return page.section("cost", "Cost", table, lead=esc(lead))


def _all(c: Compared) -> str:
  done = [m for m in c.methods if m in c.costs]
  rows, seen = [], {}
  for k in c.columns:
    r = k.record
    about = f"split {r['data']['split']}, n = {r['samples']:,}"
    name = f"{esc(name_of(r) + ARROWS[k.better])}<small>{esc(about)}</small>"
    rows.append([name, *_row(k, done)])
    where = (r["metric"], str(r["given"]), str(r["target"]), r["data"]["split"])
    seen.setdefault(where, []).append(k)
  unlike = [ks for ks in seen.values() if len(ks) > 1]
  notes = "".join(
    f"<li>{esc(name_of(ks[0].record))}: "
    + esc("; ".join(", ".join(k.cells) for k in ks))
    + "</li>"
    for ks in unlike
  )
  if notes:
    notes = (
      '<p class="lead">Measured under unlike protocols (likelihoods, judges, numbers of'
      f" examples), so not to be compared across the semicolons:</p><ul>{notes}</ul>"
    )
  head = ["", *map(esc, done)]
  title = f"{len(rows)} measures, each under one protocol"
  body = page.details(title, page.table(head, rows)) if rows else ""
  return page.section("all", "All measures", notes, body)


def _runs(c: Compared) -> str:
  rows = []
  for r in c.runs:
    said = esc(r.outcome.get("error", ""))
    linked = r.status == "finished" and r.shown
    link = f'<a href="runs/{esc(r.id)}/report.html">{esc(r.id)}</a>'
    secs = r.outcome.get("train_secs")
    spent = f"{secs:,.1f} s" if secs is not None else ""
    rows.append([link if linked else esc(r.id), esc(r.status), spent, said])
  table = page.table(["", "status", "own training", "error"], rows)
  return page.section("runs", "Runs", table)
