"""Two costs of choosing: a scatter with intervals and its Pareto front, as inline SVG."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmgen_jax.report.curves import COLOURS, short, ticks

WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 34
_LETTER, _LINE = 5.8, 11.0  # about how wide a letter and how high a line of a name is


class Point(NamedTuple):
  """A method on the picture.

  Attributes:
    x: cost.
    y: quality.
    low: of the interval of y; NaN for none.
    high: of it.
  """

  x: float
  y: float
  low: float = math.nan
  high: float = math.nan


class _Label(NamedTuple):
  """Where a name is written: the end beside its point, and what it covers."""

  x: float
  anchor: str
  left: float
  right: float
  line: float

  def over(self, other: "_Label") -> bool:
    """Whether the two cover one another."""
    across = self.left < other.right and other.left < self.right
    return across and abs(self.line - other.line) < _LINE


def _labels(points: Mapping[str, tuple[float, float]]) -> dict[str, _Label]:
  """Names beside their points, as near as leaves none over another or a point."""
  labels: dict[str, _Label] = {}
  dots = [_Label(x, "", x - 5, x + 5, y + 3) for x, y in points.values()]
  for name, (x, y) in points.items():
    wide = _LETTER * len(name)
    # A name has at least half of the picture to be written in.
    if x > WIDTH / 2:
      beside = _Label(x - 7, "end", x - 7 - wide, x - 7, y - 5)
    else:
      beside = _Label(x + 7, "start", x + 7, x + 7 + wide, y - 5)
    steps = [_LINE * k for n in range(HEIGHT // int(_LINE)) for k in (-n, n)]
    tried = [beside._replace(line=beside.line + step) for step in steps]
    inside = [t for t in tried if _TOP < t.line < HEIGHT - _BOTTOM]
    free = [t for t in inside if not any(map(t.over, [*dots, *labels.values()]))]
    labels[name] = (free or tried)[0]
  return labels


def scatter(
  points: Mapping[str, Point],
  front: Sequence[str],
  label: str,
  across: str,
) -> str:
  """An SVG of named points with error bars; a line joins those of the front.

  Args:
    points: at least one.
    front: names of those that no other beats, in the order of x.
    label: what it shows, for those who do not see it.
    across: the name of the horizontal axis.
  """
  ys = [v for p in points.values() for v in (p.y, p.low, p.high) if math.isfinite(v)]
  low, high = min(ys), max(ys)
  pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
  low, high = low - pad, high + pad
  end = 1.08 * max(p.x for p in points.values()) or 1.0
  wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
  at_x = lambda x: _LEFT + wide * x / end
  at_y = lambda y: _TOP + tall * (1 - (y - low) / (high - low))
  parts = []
  for y in ticks(low, high):
    parts.append(
      f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at_y(y):.1f}"'
      f' y2="{at_y(y):.1f}"/><text x="{_LEFT - 6}" y="{at_y(y) + 3.5:.1f}"'
      f' text-anchor="end">{short(y)}</text>'
    )
  for x in ticks(0.0, end):
    parts.append(
      f'<text x="{at_x(x):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{short(x)}</text>'
    )
  parts.append(
    f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}" text-anchor="end">'
    f"{html.escape(across)}</text>"
  )
  if len(front) > 1:
    line = " ".join(f"{at_x(points[n].x):.1f},{at_y(points[n].y):.1f}" for n in front)
    parts.append(f'<polyline points="{line}" style="stroke:var(--faint)"/>')
  labels = _labels({name: (at_x(p.x), at_y(p.y)) for name, p in points.items()})
  for i, (name, p) in enumerate(points.items()):
    colour, x = f"var(--c{i % COLOURS})", at_x(p.x)
    parts.append(f"<g><title>{html.escape(name)}: {short(p.y)}</title>")
    if math.isfinite(p.low):
      parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at_y(p.low):.1f}"'
        f' y2="{at_y(p.high):.1f}" style="stroke:{colour};stroke-width:1.4"/>'
      )
    shape = "4.6" if name in front else "3.2"
    at = labels[name]
    parts.append(
      f'<circle cx="{x:.1f}" cy="{at_y(p.y):.1f}" r="{shape}" style="fill:{colour}"/>'
      f'<text x="{at.x:.1f}" y="{at.line:.1f}" text-anchor="{at.anchor}"'
      f' style="fill:{colour}">'
      f"{html.escape(name)}</text></g>"
    )
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    f' aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )
