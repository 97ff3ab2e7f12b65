"""What a checkpoint must be, bit for bit: the manifest of a step and its verification.

`manifest.json` lists size and sha256 of every file of the step's folder; path, shape,
dtype and sha256 of every leaf of the state; and its own digest.
"""

import datetime
import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NAME = "manifest.json"
_FORMAT = 1


class Damage(NamedTuple):
  """What is wrong with a step: one word for its new name, one sentence for people."""

  kind: str
  message: str


def leaves(tree) -> dict[str, Any]:
  """{"params/net/kernel": leaf}: every leaf by path, sorted.

  Raises:
    ValueError: if two leaves would have one path, or a leaf is a typed PRNG key.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {path_name(path): x for path, x in flat}
  if len(named) != len(flat):
    raise ValueError("two leaves have one path: a name in the tree holds a '/'")
  for path, x in named.items():
    if jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.extended):
      raise ValueError(f"{path} is {x.dtype}; a checkpoint holds plain arrays only")
  return dict(sorted(named.items()))


def path_name(path) -> str:
  """A leaf's path as text: "params/net/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def digest(state) -> str:
  """The sha256 over path, dtype, shape and bytes of every leaf, in order of path."""
  return _digest(describe_leaves({k: np.asarray(x) for k, x in leaves(state).items()}))


def describe_leaves(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """{path: {"shape", "dtype", "sha256"}} of {path: array}."""

  def describe(x):
    return {
      "shape": list(x.shape),
      "dtype": x.dtype.name,
      "sha256": hashlib.sha256(as_bytes(x).data).hexdigest(),
    }

  return {path: describe(x) for path, x in arrays.items()}


def _digest(described: Mapping[str, Mapping[str, Any]]) -> str:
  return _sha256_of_json([(path, described[path]) for path in sorted(described)])


def _sha256_of_json(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_bytes(x: np.ndarray) -> np.ndarray:
  """The bytes of an array, uint8 [n]; -0.0 and the payload of a NaN are kept."""
  return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _sha256_of_file(path: Path, sync: bool = False) -> str:
  with open(path, "rb") as f:
    if sync:
      os.fsync(f.fileno())
    return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def write(target: Path, arrays, step: int, metadata) -> None:
  """Writes the manifest of a complete folder, all of which is on the disk by then."""
  described = describe_leaves(arrays)
  files = {
    str(f.relative_to(target)): {
      "bytes": f.stat().st_size,
      "sha256": _sha256_of_file(f, sync=True),
    }
    for f in sorted(target.rglob("*"))
    if f.is_file()
  }
  manifest = {
    "format": _FORMAT,
    "step": step,
    "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "metadata": dict(metadata or {}),
    "state_sha256": _digest(described),
    "leaves": described,
    "files": files,
  }
  manifest["sha256"] = _sha256_of_json(manifest)
  temporary = target / (NAME + ".tmp")
  with open(temporary, "w") as f:
    json.dump(manifest, f, indent=1, sort_keys=True)
    f.flush()
    os.fsync(f.fileno())
  for folder in {(target / name).parent for name in files}:
    _sync_directory(folder)
  os.replace(temporary, target / NAME)
  _sync_directory(target)
  _sync_directory(target.parent)


def read(folder: Path) -> dict[str, Any]:
  """The manifest of a step's folder, checked against its own digest.

  Raises:
    ValueError: if it is not what was written.
    OSError, MemoryError: if it could not be read.
  """
  try:
    text = (folder / NAME).read_bytes()
  except Exception as e:
    refuse_to_judge(folder / NAME, e)
    raise
  try:
    manifest = json.loads(text)
    sound = manifest.pop("sha256") == _sha256_of_json(manifest)
  except (ValueError, KeyError, TypeError, AttributeError):
    sound = False
  if not sound:
    raise ValueError(f"{folder / NAME} is not what was written")
  return manifest


def verify(folder: Path) -> Damage | None:
  """What is wrong with a step's folder; None if every bit is as it was written.

  Raises:
    OSError, MemoryError: if it could not be read, which proves no damage.
  """
  try:
    manifest = read(folder)
  except (FileNotFoundError, ValueError) as e:
    return Damage("manifest", str(e))
  if str(manifest["step"]) != folder.name:
    return Damage("name", f"{folder} holds step {manifest['step']}")
  files = manifest["files"]
  for name, expected in files.items():
    path = folder / name
    try:
      if path.stat().st_size != expected["bytes"]:
        size = f"{path.stat().st_size} bytes, {expected['bytes']} were written"
        return Damage("size", f"{path} has {size}")
      if _sha256_of_file(path) != expected["sha256"]:
        return Damage("bits", f"{path} differs from what was written (sha256)")
    except FileNotFoundError:
      return Damage("missing", f"{path} is missing")
    except (OSError, MemoryError) as e:
      refuse_to_judge(path, e)
  return None


def refuse_to_judge(path: Path, error: Exception) -> None:
  """Raises an error that proves no damage, with words; returns for any other.

  A network file system or the memory may fail now and not the next time.
  """
  of_memory = isinstance(error, MemoryError)
  of_system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
  # tensorstore tells what the system said in the text of a ValueError.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if of_memory or of_system or (code and int(code[1]) != errno.ENOENT):
    why = " ".join(str(error).split()) or type(error).__name__
    raise (MemoryError if of_memory else OSError)(
      f"{path} could not be read ({why}); that is no proof of damage, so it stays:"
      " start again"
    ) from error


def check_same(manifest: Mapping[str, Any], like, folder: Path) -> None:
  """Raises ValueError, listing what differs, unless the leaves are those of `like`."""
  if manifest["format"] != _FORMAT:
    raise ValueError(
      f"{folder / NAME} has format {manifest['format']}; this version reads {_FORMAT}"
    )

  def say(shape, dtype):
    return f"{dtype}[{','.join(map(str, shape))}]"

  have = {p: say(d["shape"], d["dtype"]) for p, d in manifest["leaves"].items()}
  want = {p: say(x.shape, np.dtype(x.dtype).name) for p, x in leaves(like).items()}
  lines = [f"{p}: {have[p]} saved, this run has none" for p in have if p not in want]
  lines += [f"{p}: not saved, this run has {want[p]}" for p in want if p not in have]
  lines += [
    f"{p}: {have[p]} saved, this run has {want[p]}"
    for p in want
    if p in have and have[p] != want[p]
  ]
  if lines:
    shown = "; ".join(lines[:6]) + ("; ..." if len(lines) > 6 else "")
    raise ValueError(
      f"checkpoint {folder} does not fit this config ({len(lines)} leaves differ):"
      f" {shown}. Use the config it was made with, or another workdir"
    )
