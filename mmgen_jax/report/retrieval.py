"""Retrieval on the page: every direction between modalities."""

from mmgen_jax.records import find
from mmgen_jax.report import page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, arrow, interval, value

_NAMES = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")


def retrieval(run: Run) -> str:
  """The section of an alignment run; "" for other runs."""
  parts = [
    _table(run, "", "the example's own is right"),
    _table(run, "_label", "any of the same labels is right"),
  ]
  lead = (
    "Held-out examples of one modality as queries, of another as candidates. A tie is"
    " broken in nobody's favour: values are expectations over its orders."
  )
  return page.section("retrieval", "Retrieval", *parts, lead=lead)


def _table(run: Run, suffix: str, what: str) -> str:
  names = [name + suffix for name in _NAMES]
  of = [r for r in run.records if r["metric"] == names[0]]
  if not of:
    return ""

  def cell(r, name):
    found = find(run.records, name, r["given"], r["target"], r["data"]["split"])
    if found is None:
      return '<span class="faint">–</span>'
    small = f"<small>{esc(interval(found))}</small>" if interval(found) else ""
    text = f"{value(found)}{small}"
    share = name.startswith("recall")
    return (text, 0.28 * found["value"] ** 2) if share else text

  rows = [
    [
      esc(arrow(r["given"], r["target"])),
      *(cell(r, name) for name in names),
      f"{r['reference']['candidates']:,}",
    ]
    for r in of
  ]
  head = ["", "R@1", "R@5", "R@10", "median rank", "mean rank", "candidates"]
  return page.table(head, rows, f"Retrieval <small>recall in %; {esc(what)}</small>")
