"""Recognition on the page: accuracy of every subset, trust, what damage does."""

from collections.abc import Sequence

from mmgen_jax.records import Record, find
from mmgen_jax.report import curves, page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, interval, value


def recognition(run: Run) -> str:
  """The section of a run that says which class a label has; "" for other runs."""
  found = [r for r in run.records if r["metric"].startswith("accuracy/")]
  if not found:
    return ""
  parts = []
  for label in dict.fromkeys(r["target"] for r in found):
    here = [r for r in run.records if r["target"] == label]
    parts += [_accuracy(here, label), _trust(here, label)]
    parts += [_damage(here, label), _shares(here, label)]
  lead = (
    "One network, given any subset of its inputs. Small print: 95 % percentile bootstrap"
    " intervals over held-out examples; they do not hold the spread over training seeds."
  )
  return page.section("recognition", "Recognition", *parts, lead=lead)


def _splits(found: Sequence[Record]) -> list[str]:
  return list(dict.fromkeys(r["data"]["split"] for r in found))


def _given(r: Record) -> str:
  return " + ".join(r["given"])


def _cell(r: Record | None):
  if r is None:
    return '<span class="faint">–</span>'
  small = f"<small>{esc(interval(r))}</small>" if interval(r) else ""
  text = f"{value(r)}{small}"
  is_accuracy = r["metric"].startswith("accuracy/")
  return (text, 0.28 * (r["value"] or 0.0) ** 2) if is_accuracy else text


def _accuracy(found: Sequence[Record], label: str) -> str:
  metric = f"accuracy/{label}"
  of = [r for r in found if r["metric"] == metric]
  splits = _splits(of)
  givens = list(dict.fromkeys(tuple(r["given"]) for r in of))
  rows = [
    [
      esc(" + ".join(g)),
      *(_cell(find(of, metric, g, label, split)) for split in splits),
    ]
    for g in givens
  ]
  count = ", ".join(
    f"{split}: n = {max(r['samples'] for r in of if r['data']['split'] == split):,}"
    for split in splits
  )
  title = f"Accuracy of {esc(label)} <small>% of examples; {esc(count)}</small>"
  return page.table(["given", *map(esc, splits)], rows, title)


def _trust(found: Sequence[Record], label: str) -> str:
  """Calibration, as it is and with a temperature; and confidence against accuracy."""
  names = ("nll", "nll_scaled", "brier", "ece", "ece_scaled", "temperature")
  split = _splits(found)[0]
  here = [r for r in found if r["data"]["split"] == split]
  givens = dict.fromkeys(tuple(r["given"]) for r in here if r["metric"][:4] == "ece/")
  rows = [
    [esc(" + ".join(g)), *(_cell(find(here, f"{n}/{label}", g, label)) for n in names)]
    for g in givens
  ]
  title = "Trust <small>NLL in nats; ECE with bins of equal mass; scaled: logits over"
  title += f" the temperature fitted on validation; split {esc(split)}</small>"
  head = ["given", "NLL", "scaled", "Brier", "ECE", "scaled", "temperature"]
  lines = {}
  for g in givens:
    r = find(here, f"ece/{label}", g, label)
    if r is not None:
      confidence, accuracy, _ = zip(*r["reliability"], strict=True)
      lines[" + ".join(g)] = (
        [100 * c for c in confidence],
        [100 * a for a in accuracy],
      )
  lines["calibrated"] = ([0.0, 100.0], [0.0, 100.0])
  drawing = curves.chart(lines, "accuracy over confidence", bounds=(0, 100))
  figure = _figure("accuracy over confidence, %", drawing, list(lines))
  return page.table(head, rows, title) + f'<div class="charts">{figure}</div>'


def _figure(title: str, drawing: str, names: Sequence[str]) -> str:
  keys = "".join(
    f'<span><span class="key" style="background:var(--c{i % curves.COLOURS})"></span>'
    f"{esc(name)}</span>"
    for i, name in enumerate(names)
  )
  return (
    f"<figure><figcaption>{esc(title)}</figcaption>{drawing}"
    f'<div class="legend">{keys}</div></figure>'
  )


def _damage(found: Sequence[Record], label: str) -> str:
  """Accuracy over strength, of every kind of damage and subset."""
  split = _splits(found)[0]
  areas = [
    r
    for r in found
    if r["metric"].startswith(f"robustness/{label}/") and r["data"]["split"] == split
  ]
  if not areas:
    return ""
  figures, rows = [], []
  for metric in dict.fromkeys(r["metric"] for r in areas):
    of = [r for r in areas if r["metric"] == metric]
    _, _, name, kind = metric.split("/")
    lines = {
      _given(r): (list(range(len(r["curve"]))), [100 * y for y in r["curve"]])
      for r in of
    }
    drawing = curves.chart(lines, f"{name}, {kind}: accuracy", bounds=(0, 100))
    figures.append(_figure(f"{name}: {kind}", drawing, list(lines)))
    strengths = ", ".join(f"{s:g}" for s in of[0]["reference"]["strengths"][1:])
    cells = [f"{_given(r)}: {100 * r['value']:.1f}" for r in of]
    rows.append([esc(f"{name}: {kind}"), esc(strengths), esc("; ".join(cells))])
  title = "Relative robustness <small>area under each curve, %</small>"
  table = page.table(["damage", "strengths", "area by what was given"], rows, title)
  count = areas[0]["samples"]
  top = '<div class="top"><h3>Accuracy under damage</h3>'
  top += f"<span>% over severity 0 to 5; at most n = {count:,}</span></div>"
  charts = f'<div class="charts">{"".join(figures)}</div>'
  return f'<div class="direction">{top}{charts}</div>{table}'


def _shares(found: Sequence[Record], label: str) -> str:
  """Who the accuracy comes from."""
  metrics = (f"shapley/{label}", f"utilisation/{label}")
  of = [r for r in found if r["metric"] in metrics]
  names = list(dict.fromkeys(r["given"][0] for r in of))
  rows = [
    [
      esc(f"{name}, {split}"),
      *(_cell(find(of, metric, [name], label, split)) for metric in metrics),
    ]
    for split in _splits(of)
    for name in names
  ]
  if not rows:
    return ""
  title = (
    "Who the accuracy comes from <small>Shapley values add up to the accuracy from"
  )
  title += (
    " all less that from nothing; utilisation: the share of accuracy lost without"
  )
  return page.table(["", "Shapley", "utilisation"], rows, f"{title} it</small>")
