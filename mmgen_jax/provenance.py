"""What was run: the resolved config, versions, revision, devices, every start."""

import datetime
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
  *("mmgen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
  *("numpy", "ml_collections", "tensorflow-datasets"),
)


def write_atomically(path, text: str) -> None:
  """Writes a text file so that a kill, or a lost machine, leaves the old or the new one.

  The temporary name is random: in containers every process may have the same id.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.tmp{secrets.token_hex(8)}")
  with open(temporary, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())  # else the name may reach the disk before the text
  os.replace(temporary, path)


def versions() -> dict[str, str]:
  """{package: version} of what results depend on."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def git_revision() -> str:
  """The commit of this source tree, with "-dirty" if it was changed; "" if unknown."""
  here = Path(__file__).parent

  def ask(*args):
    return subprocess.run(
      ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10
    ).stdout.strip()

  try:
    tracked = ask(
      "ls-files", Path(__file__).name
    )  # else: installed inside another tree
    revision = ask("rev-parse", "HEAD") if tracked else ""
    changed = revision and ask("status", "--porcelain", "--untracked-files=no")
  except (OSError, subprocess.SubprocessError):
    return ""
  return revision + ("-dirty" if changed else "")


def provenance(fingerprint: str = "") -> dict[str, Any]:
  """All that says where a run came from: versions, revision, devices, command."""
  devices = jax.devices()
  return {
    "command": [sys.executable, *sys.argv],
    "config_fingerprint": fingerprint,
    "devices": {
      "kind": devices[0].device_kind,
      "platform": devices[0].platform,
      "count": len(devices),
      "processes": jax.process_count(),
    },
    "git_revision": git_revision(),
    "host": {"name": socket.gethostname(), "platform": platform.platform()},
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": versions(),
  }


def record_start(workdir, config_json: str, fingerprint: str, step: int) -> list[str]:
  """Writes config.json and provenance.json; returns what differs from the last start.

  provenance.json describes this start; "starts" in it lists all of them, oldest first,
  each with the step that it went on from.
  """
  config_path, path = Path(workdir) / "config.json", Path(workdir) / "provenance.json"
  changes, starts = [], []
  if jax.process_index() != 0:
    return []
  if config_path.exists():
    before, now = json.loads(config_path.read_text()), json.loads(config_json)
    old, new = flatten(before), flatten(now)
    changes = [
      f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}"
      for k in sorted(old.keys() | new.keys())
      if old.get(k, "absent") != new.get(k, "absent")
    ]
  if path.exists():
    starts = json.loads(path.read_text()).get("starts", [])
  this = provenance(fingerprint)
  starts.append({"step": step, **this})
  write_atomically(config_path, config_json)
  text = json.dumps({**this, "starts": starts}, indent=2, sort_keys=True)
  write_atomically(path, text)
  return changes


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a.b": value} of nested dicts."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      out |= flatten(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out
