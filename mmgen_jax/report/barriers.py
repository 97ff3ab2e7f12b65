"""Barrier curves on a page: measures over the line between two networks."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmgen_jax.fusion.weight import loss_barrier
from mmgen_jax.report import curves, page
from mmgen_jax.report.page import esc

Curves = Mapping[str, Mapping[str, Sequence[float]]]  # kind of merge -> measure -> line


def charts(pairs: Mapping[str, Curves]) -> str:
  """A chart per pair of networks and measure, and a table of barriers."""
  figures, rows = [], []
  for pair, kinds in pairs.items():
    for measure in next(iter(kinds.values())):
      lines = {k: v[measure] for k, v in kinds.items() if measure in v}
      series = {
        k: (np.linspace(0, 1, len(line)).tolist(), line) for k, line in lines.items()
      }
      values = np.concatenate([np.asarray(v, float) for v in lines.values()])
      values = values[np.isfinite(values)]
      low, high = float(values.min()), float(values.max())
      pad = 0.05 * (high - low) or 1.0
      title = f"{pair}: {measure}"
      drawing = curves.chart(series, title, bounds=(low - pad, high + pad))
      keys = "".join(
        f'<span><i class="key" style="background:var(--c{i % curves.COLOURS})"></i>'
        f"{esc(k)}</span>"
        for i, k in enumerate(lines)
      )
      figures.append(
        f"<figure><figcaption>{esc(title)}</figcaption>{drawing}"
        f'<div class="legend">{keys}</div></figure>'
      )
      for kind, line in lines.items():
        rows.append([esc(pair), esc(measure), esc(kind), f"{loss_barrier(line):.4g}"])
  if not figures:
    return ""
  table = page.table(["pair", "measure", "merge", "barrier"], rows)
  return f'<div class="charts">{"".join(figures)}</div>{table}'


def section(pairs: Mapping[str, Curves]) -> str:
  """The section of a page; "" where there are none."""
  lead = "Values on the line between two networks, lower is better; a barrier is the"
  lead += " worst one less the mean of the ends."
  return page.section("barriers", "Barriers", charts(pairs), lead=esc(lead))


def document(name: str, pairs: Mapping[str, Curves]) -> str:
  """A page of its own."""
  header = f'<p class="over">{esc(name)}</p><h1>Barriers between networks</h1>'
  return page.document(
    f"{name} · mmgen_jax", header, [("barriers", "Barriers", section(pairs))]
  )
