"""What a run's folder holds, and how its numbers are written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmgen_jax import attribute, interpret, pictures, records
from mmgen_jax.interpret import Interpretation
from mmgen_jax.log import read_metrics
from mmgen_jax.pictures import Panel

MANY = 12  # numbers at the head of a page


class Run(NamedTuple):
  """What a workdir holds.

  Attributes:
    name: of the folder.
    config: resolved, as plain dicts.
    provenance: of the last start, and a list of all starts.
    metrics: the lines of metrics.jsonl.
    records: of the newest evaluation.
    growth: (panel, what was saved with it) of each step that wrote samples.
    shown: the panel of the newest evaluation, else of the newest samples.
    interpretation: of single latents, where the newest evaluation has it.
    saliency: of the newest evaluation, if it has any.
    evaluated: whether there was an evaluation; it may have given no records.
  """

  name: str
  config: dict[str, Any]
  provenance: dict[str, Any]
  metrics: list[dict[str, Any]]
  records: list[records.Record]
  growth: list[tuple[Panel, dict[str, Any]]]
  shown: Panel | None
  interpretation: Interpretation | None = None
  saliency: attribute.Saliency | None = None
  evaluated: bool = False


def read(workdir) -> Run:
  """What there is to report of a workdir.

  Raises:
    FileNotFoundError: if no run was started there.
  """
  workdir = Path(workdir).absolute()
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"no config.json in {workdir}: no run was started there")
  source = workdir / "provenance.json"
  known = records.steps(workdir)
  files = sorted(workdir.glob("samples/step_*/panel.npz"))
  growth = [pictures.load_panel(file) for file in files]
  shown = growth[-1][0] if growth else None
  evaluated = records.path(workdir, known[-1]).with_suffix(".npz") if known else None
  if evaluated is not None and evaluated.exists():
    shown = pictures.load_panel(evaluated)[0]
  latents = workdir / "records" / f"latents_step_{known[-1] if known else 0:07d}.npz"
  return Run(
    workdir.name,
    json.loads((workdir / "config.json").read_text()),
    json.loads(source.read_text()) if source.exists() else {},
    read_metrics(workdir),
    records.read(workdir),
    growth,
    shown,
    interpret.load(latents) if latents.exists() else None,
    _saliency(workdir, known),
    bool(known),
  )


def _saliency(workdir: Path, known: list[int]) -> attribute.Saliency | None:
  path = (
    records.path(workdir, known[-1]).with_suffix(".saliency.npz") if known else None
  )
  return attribute.load(path) if path is not None and path.exists() else None


def is_share(r: records.Record) -> bool:
  """Whether a value is a share of examples, to be written in percent."""
  shares = ("coherence/", "joint_coherence/", "mean_coherence/", "readable")
  return r["metric"].startswith((*shares, "accuracy/", "accuracy_of_all/", "recall_at"))


def value(r: records.Record | None) -> str:
  """A record's value; shares in percent, without the sign."""
  if r is None:
    return "–"
  if r["value"] is None:
    return "not finite"
  return f"{100 * r['value']:.1f}" if is_share(r) else f"{r['value']:.3g}"


def interval(r: records.Record, dash: str = "–") -> str:
  """A record's interval; "" if it has none."""
  if not r.get("interval") or None in r["interval"]:
    return ""
  low, high = r["interval"]
  if is_share(r):
    return f"{100 * low:.1f}{dash}{100 * high:.1f}"
  return f"{low:.3g} to {high:.3g}" if low < 0 else f"{low:.3g}{dash}{high:.3g}"


def judged(r: records.Record) -> str:
  """How often what a record was measured with is right on real examples.

  The least of them, where there are several; "" if nothing judged, or it is a network
  that reads no labels.
  """
  by = r.get("judge") or r.get("extractor") or []
  several = isinstance(by, list)
  shares = [j["accuracy"] for j in (by if several else [by]) if "accuracy" in j]
  return f"{'≥ ' * several}{100 * min(shares):.2f} %" if shares else ""


def arrow(given: Sequence[str] | None, target) -> str:
  """A direction in words: "caption + sound → image"."""
  target = target if isinstance(target, str) else " + ".join(target or ())
  return f"{' + '.join(given) if given else 'prior'} → {target}"


def headline(run: Run) -> list[tuple[str, records.Record]]:
  """The few numbers that say most: each direction from one modality, all together.

  Where those directions are many: their mean, and that of directions from more. Where
  nothing was read from samples: distances and losses, else the first records.
  """
  out, means = [], []
  main = run.records[0]["data"]["split"] if run.records else ""
  shown = lambda split: split == main or split.startswith("test_")
  found = [r for r in run.records if shown(r["data"]["split"])]
  for r in found:
    split = "" if r["data"]["split"] == main else r["data"]["split"]
    never = "seen" if split == "test_combinations" else "heard"
    suffix = f" ({split.removeprefix('test_').rstrip('s')}s never {never})"
    suffix = suffix if split else ""
    given = r["given"] or ()
    if r["metric"] == "joint_coherence/strict":
      out.insert(0, ("everything from the prior", r))
    elif r["metric"] == "recall_at_1_label":
      out.append((f"{arrow(given, r['target'])}, first found", r))
    elif r["metric"].startswith("accuracy/"):
      out.append((f"{r['target']} from {' + '.join(given)}{suffix}", r))
    elif r["metric"] == "coherence/strict" and len(given) == 1:
      if r["target"] not in given:
        out.append((arrow(given, r["target"]) + suffix, r))
    elif r["metric"].startswith(start := "mean_coherence/given_"):
      count = r["metric"].removeprefix(start)
      means.append((f"from any {count} of the others{suffix}", r))
  if means and len(out) > MANY:
    out = [(what, r) for what, r in out if r["metric"] != "coherence/strict"] + means
  if not out:
    for metric in ("frechet", "kid", "reconstruction/mse", "loss/elbo"):
      of = [r for r in found if (r["metric"], r["data"]["split"]) == (metric, main)]
      out += [(name_of(r), r) for r in of[:2]]
  return out or [(name_of(r), r) for r in found[:4]]


def nothing(run: Run) -> str:
  """Why a run has no records."""
  if not run.evaluated:
    return "This run has not been evaluated yet: there are no records."
  return f"The evaluation gave no records: {records.NO_JUDGE}."


def name_of(r: records.Record) -> str:
  """A metric and its direction, in words."""
  where = "" if r["given"] is None else f", {arrow(r['given'], r['target'])}"
  names = {"frechet": "Frechet distance", "kid": "KID"}
  return f"{names.get(r['metric'], r['metric'].replace('/', ' '))}{where}"


def headline_text(run: Run) -> str:
  """The headline numbers as a table for a terminal."""
  rows = [("", "value", "95 % interval", "n", "judge on real")]
  for what, r in headline(run):
    unit = " %" if is_share(r) else ""
    accuracy = judged(r)
    rows.append(
      (
        what.replace("→", "->"),
        value(r) + unit,
        interval(r, "-"),
        f"{r['samples']:,}",
        accuracy.replace("≥", ">="),
      )
    )
  if len(rows) == 1:
    return nothing(run) if run.evaluated else "no evaluation records in this workdir"
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
  return "\n".join(line.rstrip() for line in lines)
