"""Who decided, on the page: latents, coherence, pixels, gates."""

from collections.abc import Sequence

import numpy as np

from mmgen_jax import attribute
from mmgen_jax.records import Record, find
from mmgen_jax.report import page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, interval, value

_FOR, _AGAINST = np.array([33, 102, 172.0]), np.array([178, 24, 43.0])


def attribution(run: Run) -> str:
  """The section of what each modality and each pixel decided; "" without records."""
  of = (_latents, _coherence, _likelihood)
  parts = [*(part(run.records) for part in of), _saliency(run)]
  lead = "Exact shares, not estimates: every subset of the modalities was evaluated."
  return page.section("attribution", "Who decided", *parts, lead=lead)


def _latents(found: Sequence[Record]) -> str:
  """A tint per latent and modality: its share of the experts' precision."""
  of = [r for r in found if r["metric"] == "precision_share"]
  if not of:
    return ""
  split = of[0]["data"]["split"]
  rows = []
  for r in (r for r in of if r["data"]["split"] == split):
    conflict = find(found, "conflict", r["given"], None, split)
    said = "–"
    if conflict:
      said = f"{value(conflict)}<small>{esc(interval(conflict))}</small>"
    cells = [(f"{100 * x:.0f}", 0.8 * x) for x in r["by_latent"]]
    mean = f"{100 * r['value']:.1f}"
    rows.append([esc(r["given"][0]), mean, said, *cells])
  count = len(of[0]["by_latent"])
  title = "Precision <small>each expert's share of the product's, % by latent: what it"
  title += (
    " says moves that latent by this share; conflict: KL(product || expert), nats;"
  )
  title += f" n = {of[0]['samples']:,} of {esc(split)}</small>"
  return page.table(["", "mean", "conflict", *map(str, range(count))], rows, title)


def _shapley(found: Sequence[Record], prefix: str, scale: float, said: str) -> str:
  """A cell per given modality and target, `scale` times the value."""
  of = [r for r in found if r["metric"].startswith(prefix)]
  if not of:
    return ""
  targets = list(dict.fromkeys(r["target"] for r in of))
  names = list(dict.fromkeys(r["given"][0] for r in of))
  largest = max(abs(r["value"]) for r in of) or 1.0

  def cell(name, target):
    r = find(of, of[0]["metric"], [name], target)
    if r is None:
      return '<span class="faint">–</span>'
    low, high = r["interval"]
    small = f"<small>{scale * low:.1f} to {scale * high:.1f}</small>"
    tint = 0.28 * max(r["value"] / largest, 0.0)
    return f"{scale * r['value']:.1f}{small}", tint

  rows = [[esc(name), *(cell(name, target) for target in targets)] for name in names]
  return page.table(["given", *(f"→ {esc(t)}" for t in targets)], rows, said)


def _coherence(found: Sequence[Record]) -> str:
  title = "Coherence <small>Shapley values, points of strict coherence: they add up to"
  title += " that given all others less that of the prior</small>"
  return _shapley(found, "shapley/coherence", 100.0, title)


def _likelihood(found: Sequence[Record]) -> str:
  title = (
    "Log-likelihood <small>Shapley values, nats: they add up to log p of the target"
  )
  title += " given all others less that given nothing</small>"
  return _shapley(found, "shapley/log_likelihood", 1.0, title)


def tint(values: np.ndarray) -> np.ndarray:
  """Blue for what is above zero, red below, white at zero: uint8 [h w 3]."""
  top = float(np.abs(values).max()) or 1.0
  strength = np.sqrt(np.abs(values) / top)[..., None]
  colour = np.where(values[..., None] > 0, _FOR, _AGAINST)
  return np.rint(255.0 + strength * (colour - 255.0)).astype(np.uint8)


def _saliency(run: Run) -> str:
  """Inputs beside their integrated gradients, with what each modality said in all."""
  s = run.saliency
  if s is None:
    return ""
  rows = []
  for i in range(len(s.said)):
    tiles = []
    for name, kind in s.kinds.items():
      total = float(s.maps[name][i].sum())
      marks = s.maps[name][i]
      marks = marks.T[::-1] if kind == "audio" else marks
      tiles.append(page.tile(kind, s.seen[name][i], f"{name}, as the network saw it"))
      tiles.append(page.tile("image", tint(marks), f"{name}: {total:+.1f} nats"))
    said = int(s.said[i])
    wrong = int(s.said[i] != s.truth[i])
    parts = [f"{n} {float(s.maps[n][i].sum()):+.1f}" for n in s.kinds]
    words = f"says {said}" + (f", is {int(s.truth[i])}" if wrong else "")
    note = f'<span class="said">{esc("; ".join([words, *parts]))}</span>'
    mark = " wrong" if wrong else ""
    rows.append(f'<div class="pair{mark}">{"".join(tiles)}{note}</div>')
  lead = (
    f"Integrated gradients of the log odds of the {esc(s.label)} that was said, from a"
    " black or silent input: blue speaks for it, red against; totals in nats."
  )
  top = f'<div class="top"><h3>Inputs</h3><span>{lead}</span></div>'
  pairs = f'<div class="pairs why">{"".join(rows)}</div>'
  return f'<div class="direction">{top}{pairs}</div>{_looks(s)}'


def _looks(s: attribute.Saliency) -> str:
  """What the fusion layer looks at: the mean over the examples shown."""
  rows = [
    [esc(where), *(f"{100 * float(x.mean()):.0f}" for x in looks)]
    for where, looks in s.looks.items()
  ]
  if not rows:
    return ""
  title = (
    "Gates and attention <small>% of the weight, mean over the examples above; what"
  )
  title += " a layer looks at is not yet what it uses</small>"
  return page.table(["", *map(esc, s.names)], rows, title)
