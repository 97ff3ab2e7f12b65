"""A run's folder -> report.html: one page of pictures and numbers that stands alone.

Everything is read from the folder, so a report can be written again at any time, and
anywhere: config.json, provenance.json, metrics.jsonl, records/, samples/.
"""

from pathlib import Path

from mmgen_jax import records
from mmgen_jax.log import duration, training_secs
from mmgen_jax.provenance import write_atomically
from mmgen_jax.report import (
  attribution,
  compare,
  latents,
  page,
  recognition,
  retrieval,
  samples,
  tables,
  training,
)
from mmgen_jax.report.page import esc
from mmgen_jax.report.run import (
  Run,
  headline,
  headline_text,
  interval,
  is_share,
  judged,
  nothing,
  read,
  value,
)

__all__ = ["Run", "compare", "headline", "headline_text", "read", "render", "write"]


def write(workdir) -> Path:
  """Writes <workdir>/report.html, prints the headline numbers; the page's path.

  Raises:
    FileNotFoundError: if no run was started there.
  """
  run = read(workdir)
  path = Path(workdir).absolute() / "report.html"
  write_atomically(path, render(run))
  print(headline_text(run))
  return path


def render(run: Run) -> str:
  """The whole page as HTML."""
  sections = [
    ("directions", "Directions", samples.directions(run)),
    ("reconstruction", "Reconstruction", samples.reconstruction(run)),
    ("latents", "Latents", latents.latents(run)),
    ("recognition", "Recognition", recognition.recognition(run)),
    ("retrieval", "Retrieval", retrieval.retrieval(run)),
    ("attribution", "Who decided", attribution.attribution(run)),
    ("training", "Training", training.training(run)),
    ("scores", "Scores", tables.scores(run)),
    ("provenance", "Provenance", tables.provenance(run)),
  ]
  return page.document(f"{run.name} · mmgen_jax", _header(run), sections)


def _listed(names) -> str:
  """Names in words: "a, b and c"."""
  names = list(names)
  return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _title(run: Run) -> str:
  listed = _listed(sorted(run.shown.made) if run.shown else [])
  listed = listed[:1].upper() + listed[1:]
  family = run.config.get("family", "run")
  return f"{listed} {_end(run.config)}".strip() if listed else f"A {family} run"


def _end(config) -> str:
  """Where what a family makes comes from, in words; "" if it makes nothing."""
  m = config.get("model", {})
  seen = [*m.get("condition", ()), *[m.get("label", "label")] * bool(m.get("classes"))]
  ends = {
    "fusion": "from one latent",
    "multimodal": "from a shared latent",
    "vae": "through a latent",
    "hvae": "through a hierarchy of latents",
    "vq": "through a code book",
    "autoregressive": "code by code"
    if m.get("source") == "codes"
    else "pixel by pixel",
    "gan": f"from {_listed(seen) or 'noise'}",
    "extension": f"from one latent, {config.get('extend', {}).get('modality')} added",
  }
  return ends.get(config.get("family"), "")


def _header(run: Run) -> str:
  c, last = run.config, run.metrics[-1] if run.metrics else {}
  data = c.get("data", {})
  facts = [("data", data.get("name", "?")), ("family", c.get("family", "?"))]
  if last:
    facts.append(("step", f"{last['step']:,} of {c.get('train_steps', 0):,}"))
    facts.append(("examples seen", f"{last['step'] * c.get('batch_size', 0):,}"))
    facts.append(("training time", duration(training_secs(run.metrics))))
  facts.append(("seed", c.get("seed", "?")))
  if data.get("missing_rate"):
    facts.append(("modalities hidden in training", f"{data['missing_rate']:.0%}"))
  devices = run.provenance.get("devices", {})
  if devices:
    facts.append(("on", f"{devices['count']} × {devices['kind']}"))
  if run.provenance.get("started"):
    facts.append(("started", run.provenance["started"][:16].replace("T", " ")))
  listed = "".join(f"<li>{esc(k)} <b>{esc(v)}</b></li>" for k, v in facts)
  cards = "".join(_card(what, r) for what, r in headline(run))
  cards = f'<div class="figures">{cards}</div>' if cards else ""
  return (
    f'<p class="over">{esc(run.name)}</p><h1>{esc(_title(run))}</h1>'
    f'<ul class="facts">{listed}</ul>{_notes(run)}{cards}'
  )


def _notes(run: Run) -> str:
  notes, done = [], run.metrics[-1]["step"] if run.metrics else 0
  planned = run.config.get("train_steps", 0)
  if done < planned:
    notes.append(f"Training stopped at step {done:,} of {planned:,}.")
  if not run.records:
    notes.append(nothing(run))
  elif run.records[0]["step"] < done:
    notes.append(f"Scores are of step {run.records[0]['step']:,}.")
  return f'<p class="note">{esc(" ".join(notes))}</p>' if notes else ""


def _card(what: str, r: records.Record) -> str:
  share = is_share(r)
  unit = "<small>%</small>" if share else ""
  wide = " wide" if r["metric"] == "joint_coherence/strict" else ""
  how = [f"n\u00a0=\u00a0{r['samples']:,}"]
  if interval(r):
    how.insert(0, f"95 % interval {interval(r)}")
  accuracy = judged(r)
  if accuracy and share:
    how.append(f"judge {accuracy} on real")
  return (
    f'<div class="figure{wide}"><div class="what">{esc(what)}</div>'
    f'<div class="number">{value(r)}{unit}</div>'
    f'{_gauge(r) if share else ""}<div class="how">{esc(" · ".join(how))}</div></div>'
  )


def _gauge(r: records.Record) -> str:
  """A bar from 0 to 100 % with the interval on it."""
  low, high = r["interval"] or (r["value"], r["value"])
  value = r["value"] or 0.0
  return (
    '<svg class="gauge" viewBox="0 0 200 8" preserveAspectRatio="none"'
    ' aria-hidden="true"><rect class="track" y="2" width="200" height="4" rx="2"/>'
    f'<rect class="level" y="2" width="{200 * value:.1f}" height="4" rx="2"/>'
    f'<rect class="span" x="{200 * low:.1f}" y="0"'
    f' width="{max(1.2, 200 * (high - low)):.1f}" height="8"/></svg>'
  )
