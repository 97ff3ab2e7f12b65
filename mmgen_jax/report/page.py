"""The parts that a report is made of: escaped text, tiles, tables, one style sheet.

A page stands alone: pictures are data URIs, nothing is fetched, nothing is executed.
"""

import html
from collections.abc import Iterable, Sequence

from mmgen_jax import pictures
from mmgen_jax.report.style import STYLE

ARROW = '<span class="arrow" aria-hidden="true">→</span>'


def esc(x) -> str:
  """`x` as text that HTML cannot mistake for markup."""
  return html.escape(str(x))


def tile(kind: str, value, label: str, mark: int = -1) -> str:
  """One value of a modality; `mark`: 1 or 0 if a judge found it right or wrong."""
  verdict = {1: ", read right", 0: ", read wrong"}.get(int(mark), "")
  wrong = " wrong" if mark == 0 else ""
  if kind == "text":
    words = esc(value) if str(value).strip() else '<span class="faint">empty</span>'
    hint = esc(f"{label}{verdict}")
    return f'<span class="tile words{wrong}" title="{hint}">{words}</span>'
  alt, source = (
    esc(f"{label}{verdict}"),
    pictures.data_uri(pictures.pixels(kind, value)),
  )
  return (
    f'<span class="tile{wrong}"><img src="{source}" alt="{alt}" title="{alt}"></span>'
  )


Cell = str | tuple[str, float]


def table(
  head: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = ""
) -> str:
  """A table that scrolls by itself.

  Args:
    head: HTML of the columns' heads; none if empty.
    rows: HTML of the cells, each by itself or with how strongly (0 to 1) to tint
      it. The first of a row is its head.
    caption: HTML above it.
  """

  def cell(x: Cell) -> str:
    if isinstance(x, str):
      return f"<td>{x}</td>"
    return f'<td class="heat" style="--h:{x[1]:.3f}">{x[0]}</td>'

  body = "".join(
    f'<tr><th scope="row">{row[0]}</th>{"".join(map(cell, row[1:]))}</tr>'
    for row in rows
  )
  top = "".join(f"<th>{name}</th>" for name in head)
  top = f"<thead><tr>{top}</tr></thead>" if head else ""
  title = f"<caption>{caption}</caption>" if caption else ""
  return f'<div class="scroll"><table>{title}{top}<tbody>{body}</tbody></table></div>'


def section(name: str, title: str, *parts: str, lead: str = "") -> str:
  """A titled section; "" if it has no content."""
  content = "".join(parts)
  if not content:
    return ""
  lead = f'<p class="lead">{lead}</p>' if lead else ""
  return f'<section id="{esc(name)}"><h2>{esc(title)}</h2>{lead}{content}</section>'


def details(title: str, content: str) -> str:
  """Content that is folded away."""
  return f"<details><summary>{esc(title)}</summary>{content}</details>"


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
  """The whole page; sections are (name, short title, HTML), empty ones left out."""
  shown = [(name, short, body) for name, short, body in sections if body]
  links = "".join(f'<a href="#{esc(n)}">{esc(short)}</a>' for n, short, _ in shown)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f"<title>{esc(title)}</title><style>{STYLE}</style></head><body>"
    f"<header>{header}<nav>{links}</nav></header>"
    f"<main>{''.join(body for _, _, body in shown)}</main>"
    "<footer>Written by mmgen_jax from this run's folder alone.</footer>"
    "</body></html>\n"
  )
