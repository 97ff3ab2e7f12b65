"""Latents on the page: traversals, what each latent knows, what they are worth."""

import numpy as np

from mmgen_jax.report import page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, value


def latents(run: Run) -> str:
  """The section of single latents; "" for runs that were not looked at that way."""
  scores = [
    r for r in run.records if r["metric"].startswith(("latents/", "disentanglement/"))
  ]
  return page.section(
    "latents",
    "Latents",
    _traversals(run),
    _paths(run),
    _imputed(run),
    _scores(scores),
    lead="One latent at a time, from -2 to 2, the others as the encoder has them for one"
    " held-out example. Those of most information (KL, mean over examples) first.",
  )


def _traversals(run: Run) -> str:
  x = run.interpretation
  if x is None:
    return ""
  strips = []
  for latent, tiles in zip(x.latents, x.tiles, strict=True):
    shown = zip(tiles, x.values, strict=True)
    row = "".join(page.tile("image", t, f"latent {latent} at {v:g}") for t, v in shown)
    when = f'<span class="when">{latent}</span>'
    strips.append(f'<div class="strip">{when}{row}</div>')
  head = ["latent", "KL, nats", *(f"{esc(name)}" for name in x.factors)]
  rows = [
    [str(j), f"{x.kl[j]:.3f}", *((f"{i:.2f}", 0.5 * i) for i in x.information[j])]
    for j in x.latents
  ]
  caption = f"Attribution <small>{int(np.sum(x.kl > 0.01))} of {len(x.kl)} latents have"
  caption += " a KL above .01"
  if x.factors:
    caption += "; mutual information with each factor as a share of its entropy"
  return (
    f'<div class="direction"><div class="strips">{"".join(strips)}</div></div>'
    + page.table(head, rows, f"{caption}</small>")
  )


def _paths(run: Run) -> str:
  x = run.interpretation
  if x is None or x.paths is None:
    return ""
  strips = [
    [page.tile("image", t, f"{k} of {len(tiles) - 1}") for k, t in enumerate(tiles)]
    for tiles in x.paths
  ]
  lead = "from one held-out example's mean to the next one's, on a great circle"
  return _block("From example to example", lead, strips)


def _imputed(run: Run) -> str:
  x = run.interpretation
  if x is None or x.imputed is None:
    return ""
  what = ("whole", "what was seen", "mean imputed", "one sample imputed")
  strips = [
    [page.tile("image", t, w) for t, w in zip(tiles, what, strict=True)]
    for tiles in x.imputed
  ]
  lead = (
    "held-out pictures: whole, what was seen, the mean of what may have been hidden,"
  )
  return _block("A hidden half", f"{lead} one sample of it", strips)


def _block(title: str, lead: str, strips: list[list[str]]) -> str:
  rows = "".join(f'<div class="strip">{"".join(tiles)}</div>' for tiles in strips)
  top = f'<div class="top"><h3>{title}</h3><span>{lead}</span></div>'
  return f'<div class="direction">{top}<div class="strips">{rows}</div></div>'


def _scores(found) -> str:
  words = [r["metric"].replace("_", " ").split("/")[1:] for r in found]
  rows = [
    [
      esc(name),
      esc(r["target"] or r.get("anomaly") or " ".join(of)),
      value(r),
      f"{r['samples']:,}",
    ]
    for r, (name, *of) in zip(found, words, strict=True)
  ]
  title = "What latents are worth <small>from posterior means; probes learned from the"
  title += " training split, disentanglement on all combinations of factors</small>"
  return page.table(["", "of", "value", "n"], rows, title) if rows else ""
