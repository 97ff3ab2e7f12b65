"""Training on the page: the same latents at several steps, and curves."""

from collections.abc import Iterable

from mmgen_jax import pictures
from mmgen_jax.log import main_losses
from mmgen_jax.report import curves, page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, arrow

STRIPS = 6  # steps shown of how samples grew
_QUIET = ("guard/", "norm/", "speed/")


def training(run: Run) -> str:
  """The section of how it got there."""
  shown = {k for m in run.metrics for k in m} - {"step", "time"}
  first = {k: 0.0 for k in sorted(shown)}
  main = [k for k in main_losses(first, len(first))]
  quiet = sorted(k for k in shown if k.startswith(_QUIET))
  charts = [_coherence_chart(run)]
  charts += [_loss_chart(run, name) for name in main]
  rest = "".join(_loss_chart(run, name) for name in quiet)
  rest = page.details("Norms, speed and skipped updates", _charts([rest]))
  return page.section(
    "training",
    "Training",
    _strips(run),
    _charts(charts),
    rest if quiet else "",
  )


def _charts(charts: Iterable[str]) -> str:
  inside = "".join(charts)
  return f'<div class="charts">{inside}</div>' if inside else ""


def _loss_chart(run: Run, name: str) -> str:
  xy = [(m["step"], m[name]) for m in run.metrics if m.get(name) is not None]
  steps, values = [x for x, _ in xy], [y for _, y in xy]
  drawing = curves.chart({name: (steps, values)}, f"{name} over steps")
  if not drawing:
    return ""
  return (
    f"<figure><figcaption>{esc(name)} <span>{curves.short(values[-1])}</span>"
    f"</figcaption>{drawing}</figure>"
  )


def _coherence_chart(run: Run) -> str:
  """Strict coherence on a batch of validation examples, whenever samples were made."""
  series = {}
  for _, extra in run.growth:
    for name, value in extra.get("coherence", {}).items():
      if "+" not in name:
        xs, ys = series.setdefault(name, ([0], [None]))
        xs.append(extra["step"])
        ys.append(100 * value)
  drawing = curves.chart(series, "coherence over steps", bounds=(0, 100))
  if not drawing:
    return ""
  legend = "".join(
    f'<span><i class="key" style="background:var(--c{i % curves.COLOURS})"></i>'
    f"{esc(name.replace('->', '→'))}</span>"
    for i, name in enumerate(series)
  )
  count = run.growth[-1][1].get("count", 0)
  return (
    f"<figure><figcaption>coherence, % <span>{count:,} validation examples</span>"
    f'</figcaption>{drawing}<div class="legend">{legend}</div></figure>'
  )


def _strips(run: Run) -> str:
  """The same latents (or, without a prior, images) and captions, at several steps."""
  growth = run.growth
  if not growth:
    return ""
  n = len(growth)
  chosen = sorted({round(i * (n - 1) / max(1, STRIPS - 1)) for i in range(STRIPS)})
  last, parts = growth[-1][0], []
  pictured = [k for k in sorted(last.made) if last.kinds[k] != "text"]
  first = () if () in last.subsets else max(last.subsets, key=len)
  wanted = [(first, name) for name in pictured[:1]]
  across = pictures.directions(last)
  wanted += [(g, t) for g, t in across if last.kinds[g[0]] == "text" and t in pictured][
    :1
  ]
  for given, target in wanted:
    rows = []
    if given:
      heads = [
        page.tile(last.kinds[n], v, "given") for n in given for v in last.real[n]
      ]
      rows.append(
        f'<div class="strip"><span class="when"></span>{"".join(heads)}</div>'
      )
    for i in chosen:
      panel, extra = growth[i]
      kind = panel.kinds[target]
      tiles = [page.tile(kind, v, f"{target}") for v in panel.of(given, target)]
      when = f'<span class="when">{extra["step"]:,}</span>'
      rows.append(f'<div class="strip">{when}{"".join(tiles)}</div>')
    title = f"{target} from the same noise" if not given else arrow(given, target)
    parts.append(
      f'<div class="direction"><div class="top"><h3>{esc(title)}</h3>'
      f'<span>by training step</span></div><div class="strips">'
      f"{''.join(rows)}</div></div>"
    )
  return "".join(parts)
