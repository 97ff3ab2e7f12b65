"""Checkpoints that are proved sound before a weight is used.

orbax writes each step (`AtomicityMode.COMMIT_FILE`), but it checks neither the bits it
reads nor their dtypes. So a step also gets a manifest, written last, off the training
thread. Only a step with a manifest counts: a kill between orbax's commit and the
manifest costs that step, never the run. `<directory>/<step>/` stays readable by plain
orbax (a tree of nested dicts).

Nothing here reads or writes pickle: arrays are tensorstore's zarr, the rest is JSON.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmgen_jax import manifest
from mmgen_jax.manifest import digest
from mmgen_jax.state import State

__all__ = ["SaveError", "Saver", "digest", "load", "open_saver", "restore_latest"]
__all__ += ["save", "steps", "local_directory"]

_COMMIT = "commit_success.txt"  # orbax's, in COMMIT_FILE mode
_CHUNK = 1 << 26

log = logging.getLogger(__name__)


class SaveError(RuntimeError):
  """A checkpoint could not be written (disk full, no permission ...)."""


class Saver(NamedTuple):
  """Saves in the background; `poll` and `wait` raise SaveError where a save failed.

  Attributes:
    save: (state, step) -> None; copies the state, then returns. Waits for the save
      before it, if that is still under way.
    poll: raises at once if the save under way has failed; costs nothing otherwise.
    wait: until what was handed to `save` is restorable.
    close: `wait`, then ends the thread.
  """

  save: Callable[[Any, int], None]
  poll: Callable[[], None]
  wait: Callable[[], None]
  close: Callable[[], None]


# Writing


def _checkpointer():
  import orbax.checkpoint as ocp  # heavy: not needed to evaluate a function

  # State is replicated, so process 0 has all of it: no other process takes part, and
  # no barrier of orbax's can wait for a process that died.
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  mode = ocp.options.AtomicityMode.COMMIT_FILE
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
    atomicity_options=ocp.options.AtomicityOptions(mode=mode),
  )


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, x in arrays.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = x
  return tree


def _snapshot(state) -> dict[str, np.ndarray]:
  named = manifest.leaves(state)
  for x in named.values():
    if isinstance(x, jax.Array):
      x.copy_to_host_async()
  # A copy, because the next dispatch donates the state's buffers.
  return {path: np.array(x) for path, x in named.items()}


def _write(directory: Path, arrays: Mapping[str, np.ndarray], step: int, metadata):
  import orbax.checkpoint as ocp

  target = directory / str(step)
  if target.exists():
    _discard(target)
  directory.mkdir(parents=True, exist_ok=True)
  # orbax refuses arrays without elements; the manifest says all there is to say.
  stored = {path: x for path, x in arrays.items() if x.size}
  _checkpointer().save(target, args=ocp.args.PyTreeSave(_nested(stored)))
  manifest.write(target, arrays, step, metadata)


def _discard(path: Path) -> None:
  """Removes a step in such a way that a kill half-way leaves nothing to doubt."""
  doomed = path.with_name(f"{path.name}.deleting")
  shutil.rmtree(doomed, ignore_errors=True)
  path.rename(doomed)
  shutil.rmtree(doomed)


def steps(directory) -> list[int]:
  """The steps that have a manifest, oldest first (not yet verified)."""
  folders = [Path(directory) / str(step) for step in _step_folders(directory)]
  return [int(f.name) for f in folders if (f / manifest.NAME).exists()]


def _step_folders(directory) -> list[int]:
  directory = Path(directory)
  if not directory.is_dir():
    return []
  names = [p.name for p in directory.iterdir() if p.name.isdecimal() and p.is_dir()]
  return sorted(int(name) for name in names if name == str(int(name)))


def save(directory, state, step: int, *, keep: int = 0, metadata=None) -> None:
  """Writes one step and waits for it; then all but the newest `keep` go (0: none goes).

  Args:
    directory: where the steps are.
    state: a pytree of arrays, the same on every process; process 0 writes.
    step: its number.
    keep: how many steps with a manifest are kept.
    metadata: JSON values to store with it.

  Raises:
    SaveError: if it could not be written; it names the newest step that was.
  """
  saver = open_saver(directory, keep=keep, metadata=metadata)
  saver.save(state, step)
  saver.close()


def open_saver(directory, *, keep: int = 0, metadata=None) -> Saver:
  """A Saver into `directory`; arguments as for `save`.

  Old steps are removed only after the new one has its manifest, so there is never a
  moment without a sound step. On processes other than 0 it does nothing.
  """
  directory = local_directory(directory)
  if keep < 0:
    raise ValueError(f"keep must be at least 0 (all), got {keep}")
  if jax.process_index() != 0:

    def idle(*_):
      return None

    return Saver(idle, idle, idle, idle)
  pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
  pending: list[tuple[int, Future]] = []

  def write(arrays, step):
    _write(directory, arrays, step, metadata)
    for old in steps(directory)[:-keep] if keep else ():
      _discard(directory / str(old))

  def wait():
    while pending:
      step, future = pending.pop()
      try:
        future.result()
      except Exception as e:
        raise SaveError(_save_failure(directory, step, e)) from e

  def save(state, step):
    wait()
    pending.append((step, pool.submit(write, _snapshot(state), step)))

  def poll():
    if pending and pending[0][1].done():
      wait()

  def close():
    try:
      wait()
    finally:
      pool.shutdown()

  return Saver(save, poll, wait, close)


def _save_failure(directory: Path, step: int, error: Exception) -> str:
  if not (directory / str(step) / manifest.NAME).exists():
    shutil.rmtree(directory / str(step), ignore_errors=True)  # gives its space back
  sound = steps(directory)
  text = " ".join(str(error).split()) or type(error).__name__
  known = [os.strerror(e) for e in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)]
  reason = next((words for words in known if words in text), text[:300])
  newest = f"the newest step there is {sound[-1]}" if sound else "no step is there yet"
  return f"could not save step {step} in {directory}: {reason}; {newest}"


# Reading


def local_directory(directory) -> Path:
  """An absolute path.

  Raises:
    ValueError: for a URL: renames and fsync, which soundness rests on, need a file
      system (mount a bucket instead; see deploy/README.md).
  """
  if "://" in str(directory):
    raise ValueError(
      f"{str(directory)!r} is a URL; a workdir is a path, shared by all processes"
      " (mount the bucket, see deploy/README.md)"
    )
  return Path(directory).absolute()


def restore_latest(directory, like, *, tidy: bool = True) -> tuple[Any, int] | None:
  """(state with NumPy leaves, step) of the newest sound step; None if there is none.

  Every file is verified before a weight is used, and every leaf after it is read. With
  several processes, process 0 reads and the others get its bytes: all agree on the
  step, whatever their file systems show. Device and process counts may differ from
  those that saved.

  Args:
    directory: where the steps are; need not exist.
    like: the state that is wanted, as arrays or ShapeDtypeStructs.
    tidy: set damaged steps aside (renamed `<step>.damaged-<kind>`, never deleted) and
      remove what a killed save left. Only for the run that writes here: with False,
      nothing is touched, and damaged steps are only passed over.

  Raises:
    ValueError: if the newest sound step holds other leaves, shapes or dtypes than
      `like`; it lists them. Nothing is ever cast.
    OSError, MemoryError: if a step could not be read, which proves no damage.
  """
  directory = local_directory(directory)
  if jax.process_count() == 1:
    return _restore_here(directory, like, tidy)
  return _restore_everywhere(directory, like, tidy)


def _restore_here(directory: Path, like, tidy: bool):
  if tidy:
    _tidy(directory)
  for step in reversed(steps(directory)):
    folder = directory / str(step)
    damage = manifest.verify(folder)
    if damage is None:
      described = manifest.read(folder)
      manifest.check_same(described, like, folder)
      arrays, damage = read_arrays(folder, described["leaves"])
      if damage is None:
        return _in_shape_of(like, arrays), step
    if tidy:
      _set_aside(folder, damage)
    else:
      log.warning("checkpoint of step %d passed over: %s", step, damage.message)
  return None


def read_arrays(
  folder: Path, described
) -> tuple[dict[str, np.ndarray], manifest.Damage | None]:
  """{path: array} of one step's folder, whose leaves are `described`; or what is wrong.

  For folders whose files `manifest.verify` found sound: here the contents are checked.
  """
  import orbax.checkpoint as ocp

  stored = {p: d for p, d in described.items() if 0 not in d["shape"]}

  def as_numpy(value):
    return _nested({path: value for path in stored})

  args = ocp.args.PyTreeRestore(
    item=as_numpy(0), restore_args=as_numpy(ocp.RestoreArgs(restore_type=np.ndarray))
  )
  try:
    tree = _checkpointer().restore(folder, args=args)
  except Exception as e:  # whatever orbax and tensorstore raise on odd content
    manifest.refuse_to_judge(folder, e)
    return {}, manifest.Damage("content", f"{folder} cannot be read: {e}")
  arrays = {path: np.asarray(x) for path, x in manifest.leaves(tree).items()}
  for path, d in described.items():
    arrays.setdefault(path, np.zeros(d["shape"], np.dtype(d["dtype"])))
  for path, d in manifest.describe_leaves(arrays).items():
    if d != described[path]:
      return {}, manifest.Damage(
        "content", f"{folder}: {path} differs from what was saved"
      )
  return arrays, None


def _in_shape_of(like, arrays: Mapping[str, np.ndarray]):
  paths, treedef = jax.tree_util.tree_flatten_with_path(like)
  return treedef.unflatten([arrays[manifest.path_name(path)] for path, _ in paths])


def _set_aside(folder: Path, damage: manifest.Damage) -> None:
  target, n = folder.with_name(f"{folder.name}.damaged-{damage.kind}"), 1
  while target.exists():
    n += 1
    target = folder.with_name(f"{folder.name}.damaged-{damage.kind}-{n}")
  folder.rename(target)
  log.warning(
    "checkpoint is damaged: %s; set aside as %s, using the step before it",
    damage.message,
    target.name,
  )


def _tidy(directory: Path) -> None:
  """Removes what killed saves and removals left; keeps whatever was once committed."""
  for left_over in directory.glob("*.deleting"):
    shutil.rmtree(left_over)
  for step in _step_folders(directory):
    folder = directory / str(step)
    if (folder / manifest.NAME).exists():
      continue
    if (folder / _COMMIT).exists():
      _set_aside(
        folder, manifest.Damage("no-manifest", f"{folder} has no {manifest.NAME}")
      )
    else:
      _discard(folder)


def _restore_everywhere(directory: Path, like, tidy: bool):
  """`_restore_here` on process 0, its outcome on all."""
  found, error, header = None, None, {}
  if jax.process_index() == 0:
    try:
      found = _restore_here(directory, like, tidy)
      header = {"step": found[1] if found else None}
    except Exception as e:  # the others wait for a word, whatever happened here
      error, header = e, {"error": str(e), "config": isinstance(e, ValueError)}
  header = json.loads(_broadcast(json.dumps(header).encode()))
  if "error" in header:
    raise error or (ValueError if header["config"] else RuntimeError)(header["error"])
  if header["step"] is None:
    return None
  # Bytes, not numbers: the broadcast is a sum, which does not keep -0.0 and NaN.
  mine = manifest.leaves(found[0]).values() if found else ()
  data = _broadcast(b"".join(manifest.as_bytes(x).tobytes() for x in mine))
  received, offset = {}, 0
  for path, x in manifest.leaves(like).items():
    dtype, count = np.dtype(x.dtype), int(np.prod(x.shape))
    values = np.frombuffer(data, dtype, count, offset) if count else np.zeros(0, dtype)
    received[path] = values.reshape(x.shape)
    offset += values.nbytes
  return _in_shape_of(like, received), header["step"]


def _broadcast(data: bytes) -> bytes:
  """Process 0's bytes, on every process."""

  def share(x):
    return np.asarray(multihost_utils.broadcast_one_to_all(x))

  size = share(np.frombuffer(len(data).to_bytes(8, "little"), np.uint8))
  size = int.from_bytes(size.tobytes(), "little")
  parts = []
  for start in range(0, size, _CHUNK):
    part = np.frombuffer(data, np.uint8)[start : start + _CHUNK]
    # Padded to a power of two, so that few shapes are compiled.
    length = min(_CHUNK, 1 << (size - start - 1).bit_length())
    parts.append(share(np.pad(part, (0, length - len(part)))).tobytes())
  return b"".join(parts)[:size]


def load(directory, like: State) -> tuple[State, int]:
  """`restore_latest` for readers: touches nothing, and there must be a checkpoint.

  Raises:
    FileNotFoundError: if there is no sound checkpoint.
  """
  found = restore_latest(directory, like, tidy=False)
  if found is None:
    raise FileNotFoundError(f"no sound checkpoint in {directory}; train first")
  return found
