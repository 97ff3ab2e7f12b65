"""Evaluation records: one JSON object per result, with all that it takes to compare it.

`<workdir>/records/eval_step_<step>.jsonl` holds one evaluation. Two values may stand in
one column only where everything but the run is the same: `protocol` is that, in short.
"""

import datetime
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.provenance import write_atomically

SCHEMA = 1
NO_JUDGE = (
  "data without labels have no judge of their own:"
  " --config.eval.extractor=efficientnet_lite0 gives distances of images"
)
Record = dict[str, Any]


def complete(entries: Iterable[Mapping], context: Mapping[str, Any]) -> list[Record]:
  """Whole records: each entry of `mmgen_jax.scores` with where and how it was made."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return [{"schema": SCHEMA, **entry, **context, "time": now} for entry in entries]


def context(config, examples, count: int, step: int, provenance: Mapping) -> Record:
  """What all records of one evaluation of one split share.

  Args:
    config: of the run.
    examples: the split that was evaluated.
    count: how many of its examples.
    step: of the checkpoint.
    provenance: from `mmgen_jax.provenance.provenance`.
  """
  devices, missing = provenance["devices"], config.data.get("missing")
  return {
    "data": {
      "name": examples.name,
      "split": examples.split,
      "count": count,
      "fingerprint": examples.fingerprint,
      "options": json.loads(json.dumps(config.data.options.to_dict(), default=str)),
    },
    "run": {
      "family": config.family,
      "seed": config.seed,
      "config": provenance["config_fingerprint"],
      "missing_rate": missing.to_dict() if missing else config.data.missing_rate,
      "sampler": config.eval.get("sampler", "prior"),
      "truncation": config.eval.get("truncation", 0.0),
    },
    "weights": "ema",
    "step": step,
    "batch_size": config.eval.batch_size,
    "device": f"{devices['count']} x {devices['kind']} ({devices['platform']})",
    "versions": provenance["versions"],
    "git_revision": provenance["git_revision"],
    "command": shlex.join(str(word) for word in provenance["command"]),
  }


def path(workdir, step: int) -> Path:
  """The file of one evaluation."""
  return Path(workdir) / "records" / f"eval_step_{step:07d}.jsonl"


def write(workdir, step: int, records: Iterable[Record]) -> Path:
  """The file that now holds one evaluation; what is not finite is null in it."""
  lines = [json.dumps(_plain(r), allow_nan=False) for r in records]
  write_atomically(path(workdir, step), "".join(line + "\n" for line in lines))
  return path(workdir, step)


def _plain(x):
  """`x` as JSON has it: no NumPy scalars, no NaN."""
  if isinstance(x, Mapping):
    return {k: _plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(v) for v in x]
  if isinstance(x, np.generic):
    x = x.item()
  return None if isinstance(x, float) and not math.isfinite(x) else x


def steps(workdir) -> list[int]:
  """The steps that were evaluated."""
  names = (Path(workdir) / "records").glob("eval_step_*.jsonl")
  return sorted(int(file.stem.rsplit("_", 1)[1]) for file in names)


def read(workdir, step: int | None = None) -> list[Record]:
  """The records of one evaluation, of the newest by default; [] if there is none."""
  if step is None:
    known = steps(workdir)
    if not known:
      return []
    step = known[-1]
  lines = path(workdir, step).read_text().splitlines()
  return [json.loads(line) for line in lines if line]


def find(
  records: Iterable[Record],
  metric: str,
  given: Iterable[str] | None = None,
  target=None,
  split: str | None = None,
) -> Record | None:
  """The first record of a metric in a direction; None if there is none."""
  given = None if given is None else sorted(given)
  for r in records:
    here = None if r["given"] is None else sorted(r["given"])
    if r["metric"] == metric and here == given and r["target"] == target:
      if split in (None, r["data"]["split"]):
        return r
  return None


def protocol(record: Record) -> tuple:
  """What two records must have in common to be compared."""

  def measured_with(key):
    by = record.get(key)
    by = by if isinstance(by, list) else [by] if by else []
    return tuple(sorted((b["name"], b["sha256"]) for b in by))

  target, run = record["target"], record.get("run", {})
  return (
    record["metric"],
    None if record["given"] is None else tuple(sorted(record["given"])),
    tuple(sorted(target)) if isinstance(target, list) else target,
    record["data"]["fingerprint"],
    record["samples"],
    json.dumps(record.get("reference"), sort_keys=True),
    record["weights"],
    record.get("of", ""),
    run.get("truncation", 0.0),
    run.get("sampler", "prior") if record["given"] == [] else "",  # of what it samples
    measured_with("judge"),
    measured_with("extractor"),
  )
