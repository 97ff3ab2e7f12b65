"""Numbers on the page: every score with its count, interval and judge; provenance."""

import json
import shlex
from collections.abc import Sequence

from mmgen_jax.provenance import flatten
from mmgen_jax.records import Record, find
from mmgen_jax.report import page
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import Run, arrow, interval, value


def scores(run: Run) -> str:
  """The section of all records."""
  if not run.records:
    return ""
  main = run.records[0]["data"]["split"]
  others = sorted({r["data"]["split"] for r in run.records} - {main})
  here = [r for r in run.records if r["data"]["split"] == main]
  parts = [_coherence(here, f"split {main}")]
  for split in others:
    part = [r for r in run.records if r["data"]["split"] == split]
    parts.append(_coherence(part, f"split {split}"))
  parts += [_by_count(here), _attributes(here), _distances(here)]
  parts += [_reconstruction(here), _likelihoods(here), _losses(here)]
  parts.append(_judges(run.records))
  r = run.records[0]
  lead = (
    f"{r['data']['count']:,} held-out examples of {r['data']['name']}, split {main};"
    f" averaged weights of step {r['step']:,}; seed {r['run']['seed']}; one sample"
    " each. Small print: 95 % percentile bootstrap intervals over examples; they do not"
    " hold the spread over training seeds. A sample that a judge cannot read is wrong."
  )
  return page.section("scores", "Scores", *parts, lead=esc(lead))


NOTHING = '<span class="faint">–</span>'


def _cell(r: Record | None):
  if r is None:
    return NOTHING
  text = f"{value(r)}<small>{esc(interval(r))}</small>"
  if r["metric"].startswith(("coherence/", "joint_coherence/", "readable")):
    return text, 0.28 * (r["value"] or 0.0) ** 2
  return text


def _givens(found: Sequence[Record]) -> list[list[str]]:
  givens = {tuple(r["given"]) for r in found if r["given"] is not None}
  return [list(g) for g in sorted(givens, key=lambda g: (len(g), g))]


def _coherence(found: Sequence[Record], where: str) -> str:
  strict = [r for r in found if r["metric"] == "coherence/strict"]
  readable = [r for r in found if r["metric"] == "readable"]
  read = strict + readable
  targets = sorted({r["target"] for r in read})
  rows = [
    [esc(" + ".join(given))]
    + [_cell(find(strict, "coherence/strict", given, t)) for t in targets]
    for given in _givens(strict)
  ]
  if readable:
    cells = [_cell(find(readable, "readable", [], t)) for t in targets]
    rows.append(["nothing: how many can be read", *cells])
  if not rows:
    return ""
  rows.append(["real examples: the judge itself", *(_own(read, t) for t in targets)])
  head = ["given", *(f"→ {esc(t)}" for t in targets)]
  title = "Coherence <small>% of examples with every attribute right; from"
  title += f" everything: after reconstruction; {esc(where)}</small>"
  joint = [r for r in found if r["metric"].startswith("joint_coherence/")]
  if not joint:
    return page.table(head, rows, title)
  names = [r["metric"].split("/")[1] for r in joint]
  also = page.table(
    ["", *map(esc, names)],
    [["all modalities agree", *map(_cell, joint)]],
    "Joint coherence <small>% of draws from the prior; strict: all attributes agree"
    " and all modalities are readable</small>",
  )
  return page.table(head, rows, title) + also


def _by_count(found: Sequence[Record]) -> str:
  means = [r for r in found if r["metric"].startswith("mean_coherence/")]
  head = ["given", *(r["metric"].rsplit("_", 1)[1] for r in means)]
  row = ["coherence of the others", *map(_cell, means)]
  title = "Coherence by how much was given <small>means over all directions</small>"
  return page.table(head, [row], title) if means else ""


def _likelihoods(found: Sequence[Record]) -> str:
  nats = [r for r in found if r["metric"].startswith("log_likelihood/")]
  rows = []
  for r in nats:
    given = f" | {', '.join(r['given'])}" if r["given"] else ""
    what = f"log p({', '.join(r['target'])}{given})"
    effective = f"{r['effective_samples']:.3g}"
    rows.append([esc(what), _cell(r), f"{r['samples']:,}", effective])
  if not rows:
    return ""
  k = nats[0]["metric"].rsplit("k", 1)[1]
  title = f"Log-likelihoods <small>nats; means over examples, from {k} samples each;"
  title += " conditionals are differences of two lower bounds</small>"
  return page.table(["", "nats", "n", "effective samples"], rows, title)


def _own(found: Sequence[Record], target: str) -> str:
  judge = next(r["judge"] for r in found if r["target"] == target)
  if "accuracy" not in judge:  # no held-out example has all its labels
    return NOTHING
  accuracy, count = judge["accuracy"], judge["accuracy_count"]
  return f"{100 * accuracy:.2f}<small>n = {count:,}</small>"


def _attributes(found: Sequence[Record]) -> str:
  across = [
    r
    for r in found
    if r["metric"].startswith("coherence/") and r["target"] not in r["given"]
  ]
  names = list(dict.fromkeys(r["metric"].split("/")[1] for r in across))
  names = [n for n in names if n not in ("strict", "strict_macro")]
  names = ["strict", "strict_macro", *names]
  pairs = dict.fromkeys((tuple(r["given"]), r["target"]) for r in across)
  rows = [
    [esc(arrow(g, t)), *(_cell(find(across, f"coherence/{n}", g, t)) for n in names)]
    for g, t in sorted(pairs, key=lambda d: (len(d[0]), d[1], d[0]))
  ]
  if not rows:
    return ""
  head = ["", *(esc(n.replace("_", ", ")) for n in names)]
  return page.details(
    "Coherence by attribute, over examples and as a macro average over classes",
    page.table(head, rows),
  )


def _distances(found: Sequence[Record]) -> str:
  rows = []
  for r in found:
    prefix = "floor/" if r["metric"] == "floor/frechet" else ""
    if r["metric"] in ("frechet", "floor/frechet"):
      kid = find(found, f"{prefix}kid", r["given"], r["target"])
      name = arrow(r["given"], r["target"])
      if prefix:
        name = f"real {r['target']}s of training"
      against = f"{r['samples']:,} against {r['reference']['samples']:,}"
      extractor = (
        f"{r['extractor']['name']}<small>{r['extractor']['sha256'][:12]}</small>"
      )
      rows.append([esc(name), _cell(r), _cell(kid), against, extractor])
  title = "Distances <small>to held-out real examples, in the features named:"
  title += " lower is better, down to the floor, what real training examples get;"
  title += " comparable in the same features only</small>"
  head = ["", "Frechet distance", "KID", "n", "features"]
  return page.table(head, rows, title) if rows else ""


def _reconstruction(found: Sequence[Record]) -> str:
  errors = [r for r in found if r["metric"].startswith("reconstruction/")]
  columns = list(dict.fromkeys((r["target"], r["metric"]) for r in errors))
  rows = [
    [esc(" + ".join(given)), *(_cell(find(errors, m, given, t)) for t, m in columns)]
    for given in _givens(errors)
  ]
  names = {
    "mse": "squared error",
    "mae": "absolute error",
    "token_accuracy": "tokens right",
  }
  short = lambda metric: metric.split("/")[1]
  head = ["given", *(f"{esc(t)}: {names.get(short(m), short(m))}" for t, m in columns)]
  title = "Reconstruction <small>means per value, in model space (-1 to 1)</small>"
  return page.table(head, rows, title) if rows else ""


def _losses(found: Sequence[Record]) -> str:
  rows = [
    [esc(r["metric"].removeprefix("loss/")), _cell(r), f"{r['samples']:,}"]
    for r in found
    if r["metric"].startswith("loss/")
  ]
  title = "Held-out losses <small>means per example</small>"
  return page.table(["", "value", "n"], rows, title) if rows else ""


def _judges(found: Sequence[Record]) -> str:
  rows: dict[tuple, list] = {}
  for r in found:
    for key in ("judge", "extractor"):
      by = r.get(key) or []
      for j in by if isinstance(by, list) else [by]:
        split = r["data"]["split"]
        if "accuracy" not in j:  # it was trained for other classes
          continue
        accuracy = f"{100 * j['accuracy']:.2f} %"
        count = f"{j['accuracy_count']:,} of {esc(split)}"
        row = [esc(j["name"]), accuracy, count, f"<code>{j['sha256'][:16]}</code>"]
        rows[j["name"], split] = row
  title = "Judges <small>what read the samples, and how often it reads real held-out"
  title += " examples right in every attribute</small>"
  head = ["name", "right on real", "n", "sha256"]
  return page.table(head, list(rows.values()), title) if rows else ""


def provenance(run: Run) -> str:
  """The section of where the numbers come from."""
  p, parts = run.provenance, []
  rows = []
  if p:
    host, versions = p.get("host", {}), p.get("versions", {})
    devices = p.get("devices", {})
    command = shlex.join(map(str, p.get("command", [])))
    rows = [
      ["command", f"<code>{esc(command)}</code>"],
      ["revision", f"<code>{esc(p.get('git_revision') or 'unknown')}</code>"],
      ["config fingerprint", f"<code>{esc(p.get('config_fingerprint', ''))}</code>"],
      ["host", esc(f"{host.get('name', '')} {host.get('platform', '')}")],
      [
        "devices",
        esc(
          f"{devices.get('count')} × {devices.get('kind')}"
          f" ({devices.get('platform')}), {devices.get('processes')} process(es)"
        ),
      ],
      ["versions", esc(", ".join(f"{k} {v}" for k, v in versions.items()))],
    ]
    starts = p.get("starts", [])
    if starts:
      told = [
        f"{s['started'][:19].replace('T', ' ')} at step {s['step']:,}" for s in starts
      ]
      rows.append(["started", "<br>".join(map(esc, told))])
    if run.records:
      data = run.records[0]["data"]
      rows.append(["evaluated", esc(run.records[0]["time"][:19].replace("T", " "))])
      rows.append(["data fingerprint", f"<code>{esc(data['fingerprint'])}</code>"])
    parts.append(page.table([], rows))
  options = flatten(run.config)
  text = "\n".join(f"{k} = {json.dumps(v)}" for k, v in sorted(options.items()))
  parts.append(
    page.details(f"Resolved config, {len(options)} fields", f"<pre>{esc(text)}</pre>")
  )
  return page.section("provenance", "Provenance", *parts)
