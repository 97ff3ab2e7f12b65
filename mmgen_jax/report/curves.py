"""Line charts as inline SVG that take their colours from the page they stand in."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 320, 168
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 20
_POINTS = 240  # at most, per line
COLOURS = 6  # --c0 to --c5, which the page defines

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
  """Round numbers in [low, high], about `count` of them."""
  if not high > low:
    return [low]
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
  """A number for an axis: 1.5k, 0.02, -3."""
  for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{suffix}"
  return f"{value:.4g}"


def _thin(x, y) -> tuple[np.ndarray, np.ndarray]:
  """Means over equal windows, `_POINTS` at most; what is not finite is left out."""
  pairs = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
  x, y = np.array(pairs, float).reshape(-1, 2).T
  x, y = x[np.isfinite(y)], y[np.isfinite(y)]
  if len(x) <= _POINTS:
    return x, y
  windows = np.array_split(np.arange(len(x)), _POINTS)
  return np.array([x[w[-1]] for w in windows]), np.array([y[w].mean() for w in windows])


def _smooth(y: np.ndarray) -> np.ndarray:
  """A running mean, where there are enough points to want one; else `y` itself."""
  width = len(y) // 24
  if width < 2:
    return y
  total = np.concatenate([[0.0], np.cumsum(y)])
  at = np.arange(len(y))
  first, last = np.maximum(at - width, 0), np.minimum(at + width + 1, len(y))
  return (total[last] - total[first]) / (last - first)


def _limits(lines, bounds) -> tuple[float, float]:
  """Of the vertical axis: without the first tenth, which is often far outside."""
  if bounds is not None:
    return bounds
  late = [y[len(y) // 10 :] for _, y in lines]
  values = np.concatenate([y for y in late if len(y)])
  low, high = float(values.min()), float(values.max())
  pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
  return low - pad, high + pad


def chart(
  series: Series, label: str, *, bounds: tuple[float, float] | None = None
) -> str:
  """An SVG of lines over steps; "" if there is nothing to draw.

  Args:
    series: {name: (steps, values)}; None and NaN are left out.
    label: what it shows, for those who do not see it.
    bounds: of the vertical axis; by default those of the later values.
  """
  lines = {name: _thin(*xy) for name, xy in series.items()}
  lines = {name: xy for name, xy in lines.items() if len(xy[0])}
  if not lines:
    return ""
  low, high = _limits(list(lines.values()), bounds)
  end = max(float(x[-1]) for x, _ in lines.values())
  start = min(0.0, min(float(x[0]) for x, _ in lines.values()))
  wide, high_px = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

  def across(x):
    return _LEFT + wide * (x - start) / max(end - start, 1e-9)

  def up(y):
    return _TOP + high_px * (1 - (y - low) / (high - low))

  parts = []
  for y in ticks(low, high):
    at = float(up(y))
    parts.append(
      f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}"'
      f' y2="{at:.1f}"/><text x="{_LEFT - 6}" y="{at + 3.5:.1f}"'
      f' text-anchor="end">{short(y)}</text>'
    )
  for x in ticks(start, end, 3):
    anchor = "end" if x > start + 0.95 * (end - start) else "middle"
    parts.append(
      f'<text x="{across(x):.1f}" y="{HEIGHT - 5}"'
      f' text-anchor="{anchor}">{short(x)}</text>'
    )
  drawn = []
  for i, (name, (x, y)) in enumerate(lines.items()):
    colour, smooth = f"var(--c{i % COLOURS})", _smooth(y)

    def line(y, kind, x=x, colour=colour):
      points = " ".join(
        f"{a:.1f},{b:.1f}" for a, b in zip(across(x), up(y), strict=True)
      )
      return f'<polyline class="{kind}" points="{points}" style="stroke:{colour}"/>'

    drawn.append(f"<g><title>{html.escape(name)}</title>")
    drawn += [line(y, "raw")] if smooth is not y else []
    drawn.append(line(smooth, "line"))
    drawn.append(
      f'<circle cx="{across(x[-1]):.1f}" cy="{float(up(smooth[-1])):.1f}" r="2.6"'
      f' style="fill:{colour}"/></g>'
    )
  # Values outside the limits leave the frame, they do not lie on its edge.
  parts.append(
    f'<svg x="{_LEFT - 4}" y="{_TOP - 4}" width="{wide + 8}" height="{high_px + 8}"'
    f' viewBox="{_LEFT - 4} {_TOP - 4} {wide + 8} {high_px + 8}">{"".join(drawn)}</svg>'
  )
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    f' aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )
