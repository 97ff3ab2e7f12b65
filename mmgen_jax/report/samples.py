"""Samples on the page: every direction, the prior, reconstruction."""

from mmgen_jax import pictures, records
from mmgen_jax.pictures import Panel
from mmgen_jax.report import page
from mmgen_jax.report.page import ARROW, esc
from mmgen_jax.report.run import Run, arrow, interval, value


def directions(run: Run) -> str:
  """The section of everything that is made across modalities, or of nothing."""
  p = run.shown
  if p is None:
    return ""
  parts = [_prior(run, p)] if () in p.subsets else []
  for given, target in pictures.directions(p):
    made, marks = p.of(given, target), p.right[target][p.subsets.index(given)]
    pairs = []
    for i in range(len(made)):
      if all(p.has[name][i] for name in given):
        tiles = [
          page.tile(p.kinds[name], p.real[name][i], f"given {name}") for name in given
        ]
        tiles += [
          ARROW,
          page.tile(p.kinds[target], made[i], f"generated {target}", marks[i]),
        ]
        pairs.append(f'<div class="pair">{"".join(tiles)}</div>')
    score = records.find(run.records, "coherence/strict", given, target)
    parts.append(_direction(arrow(given, target), score, pairs, len(given) + 1))
  lead = "Held-out examples in, the model's answer out."
  if "audio" in p.kinds.values():
    lead += (
      " Sounds are shown as log-mel spectrograms: time to the right, pitch upwards."
    )
  if any((marks >= 0).any() for marks in p.right.values()):
    lead += (
      ' <span class="key wrong"></span>A dashed frame: the judge did not read in it, in'
      " every attribute, what was given."
    )
  return page.section("directions", "Every direction", *parts, lead=lead)


def _direction(
  name: str, score: records.Record | None, pairs: list[str], tiles: int
) -> str:
  said = ""
  if score is not None:
    said = f"<span><b>{value(score)} %</b> coherent ({interval(score)})</span>"
  return (
    f'<div class="direction"><div class="top"><h3>{esc(name)}</h3>{said}</div>'
    f'<div class="pairs" style="--tiles:{tiles}">{"".join(pairs)}</div></div>'
  )


def _prior(run: Run, p: Panel) -> str:
  at = p.subsets.index(())
  order = {"text": 0, "image": 1, "audio": 2}
  names = sorted(p.made, key=lambda name: order[p.kinds[name]])
  rows = []
  for i in range(p.made[names[0]].shape[1]):
    tiles = [page.tile(p.kinds[n], p.made[n][at, i], f"generated {n}") for n in names]
    wrong = " wrong" if any(p.right[n][at, i] == 0 for n in names) else ""
    rows.append(f'<div class="pair{wrong}">{"".join(tiles)}</div>')
  joint = [r for r in run.records if r["metric"] == "joint_coherence/strict"]
  title = (
    "everything from the prior" if len(names) > 1 else f"{names[0]}s from the prior"
  )
  return _direction(title, joint[0] if joint else None, rows, len(names))


def reconstruction(run: Run) -> str:
  """The section of what comes back from everything."""
  p, parts = run.shown, []
  if p is None:
    return ""
  everything = max(p.subsets, key=len)
  for name in sorted(set(everything) & set(p.made)):
    made, kind = p.of(everything, name), p.kinds[name]
    pairs = [
      f'<div class="pair">{page.tile(kind, p.real[name][i], "real")}{ARROW}'
      f"{page.tile(kind, made[i], 'reconstructed')}</div>"
      for i in range(len(made))
      if p.has[name][i]
    ]
    parts.append(_direction(name, None, pairs, 2))
  lead = (
    f"Real to the left; to the right what comes back from {' + '.join(everything)}."
  )
  return page.section("reconstruction", "Reconstruction", *parts, lead=esc(lead))
