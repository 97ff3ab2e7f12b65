"""From a prepared TFDS set to arrays: read once, decoded once, then memory-mapped.

Decoding a record costs about 0.3 ms in Python, so the decoded columns are kept as .npy
files beside the data, in a folder named by the hash of all that they follow from. A
second start opens them without importing tensorflow_datasets. Nothing here needs
TensorFlow: own sets are prepared as array_record, images go in as encoded bytes.
"""

import collections
import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

BLOCK = 512  # records decoded at a time: bounds the memory that reading takes
Record = dict[str, Any]


def fingerprint(**what) -> str:
  """Sha256, as hex, of plain values by name; equal values give equal fingerprints."""
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path names a bucket (gs://...), which cannot be memory-mapped."""
  return "://" in os.fspath(path)


def writable_dir(data_dir: str | os.PathLike) -> Path:
  """Where what belongs to `data_dir` is written: there, if it can be.

  Else (a bucket, or a folder that nobody may write) under $MMGEN_CACHE_DIR, or under
  ~/.cache/mmgen_jax.
  """
  if not is_remote(data_dir):
    there = Path(data_dir).expanduser().absolute()
    nearest = next(p for p in (there, *there.parents) if p.exists())
    # Root may write anywhere; a folder without one write bit is still meant to be kept.
    if os.access(nearest, os.W_OK) and nearest.stat().st_mode & 0o222:
      return there
  base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
  own = os.environ.get("MMGEN_CACHE_DIR", os.path.join(base, "mmgen_jax"))
  return Path(own).expanduser().absolute()


@contextlib.contextmanager
def lock(path: Path, patience: float = math.inf) -> Iterator[TextIO]:
  """Holds a file lock, so that of several processes one does the work; yields the file.

  The system opens the lock when its process ends, however that ends. A file system
  without locks keeps nobody out.

  Raises:
    TimeoutError: after `patience` seconds that others held it; its text is the file's.
  """
  import fcntl

  path.parent.mkdir(parents=True, exist_ok=True)
  until = time.monotonic() + patience
  with open(path, "a+") as file:
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if time.monotonic() >= until:
          file.seek(0)
          raise TimeoutError(file.read()) from None
        time.sleep(0.1)
        continue
      except OSError:
        pass
      break
    yield file


def prepare(builder_class, data_dir: str | os.PathLike, **kwargs):
  """A builder of one of our own sets, prepared as array_record if it was not yet.

  Args:
    builder_class: a `tfds.core.GeneratorBasedBuilder` that needs no TensorFlow.
    data_dir: where it may be prepared already; else see `writable_dir`.
    **kwargs: for the class.
  """
  import tensorflow_datasets as tfds

  def is_prepared(builder) -> bool:  # TFDS's own test warns where there is nothing yet
    return (builder.data_path / "dataset_info.json").exists()

  where = writable_dir(data_dir)
  with _quiet():
    for folder in (os.fspath(data_dir), str(where)):
      builder = builder_class(data_dir=folder, **kwargs)
      if is_prepared(builder):
        return builder
  with lock(where / f".{builder.name}.lock"), _quiet():
    if is_prepared(builder):
      return builder_class(data_dir=str(where), **kwargs)  # another process was faster
    say(f"preparing {builder.info.full_name} in {where} (once)")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    builder.download_and_prepare(file_format="array_record", download_config=config)
  return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """No banner on stdout, and no warnings of TFDS about our own sets."""
  from absl import logging

  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(before)


def offline_reason(url: str) -> str:
  """Why a site cannot be reached, at once; "" if it can.

  TFDS tries a download for more than three minutes before it gives up.
  """
  try:
    request = urllib.request.Request(url, method="HEAD")
    urllib.request.urlopen(request, timeout=5).close()
  except urllib.error.HTTPError:  # it answered
    return ""
  except OSError as error:
    return str(getattr(error, "reason", error))
  return ""


def say(line: str) -> None:
  """One line for the person who waits."""
  print(f"mmgen_jax: {line}", file=sys.stderr, flush=True)


def image_array(encoded: bytes, channels: int) -> np.ndarray:
  """Pixels, uint8 [h, w, channels], of an encoded image; 1 is grey, 3 is RGB."""
  from PIL import Image

  picture = Image.open(io.BytesIO(encoded))
  mode = {1: "L", 3: "RGB"}[channels]
  picture = picture if picture.mode == mode else picture.convert(mode)
  return np.asarray(picture).reshape(picture.height, picture.width, channels)


def source(builder, split: str):
  """The `tfds.data_source` of a prepared builder; images stay encoded bytes."""
  import tensorflow_datasets as tfds

  skip = {
    name: tfds.decode.SkipDecoding()
    for name, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }
  return builder.as_data_source(split, decoders=skip)


def read(
  open_builder: Callable[[], Any],
  split: str,
  decode: Callable[[list[Record]], dict[str, np.ndarray]],
  *,
  what: dict[str, Any],
  data_dir: str | os.PathLike,
) -> dict[str, np.ndarray]:
  """Decoded columns of a split, {name: memory-mapped [n, ...]}, in stored order.

  Args:
    open_builder: gives the prepared builder; called only if there is no cache yet.
    split: in TFDS notation, e.g. "train[:55000]".
    decode: a list of records -> columns, a row per record, of fixed shapes and dtypes.
    what: plain values that name all the content follows from: the set and its version,
      options, a version of `decode`. The cache is found by their hash.
    data_dir: the cache lies under it, or see `writable_dir`.
  """
  what = {**what, "split": split}
  name = str(what.get("name", "set"))
  folder = writable_dir(data_dir) / "decoded" / f"{name}-{fingerprint(**what)[:20]}"
  if columns := _open_cache(folder, what):
    return columns
  with lock(folder.parent / f".{folder.name}.lock"):
    if columns := _open_cache(folder, what):
      return columns
    records = source(open_builder(), split)
    say(f"decoding {len(records)} examples of {name}/{split} (once)")
    _write_cache(
      folder, what, _blocks(records, decode, f"{name}/{split}"), len(records)
    )
  columns = _open_cache(folder, what)
  assert columns, folder
  return columns


def _blocks(records, decode, name: str):
  for first in range(0, len(records), BLOCK):
    block = range(first, min(first + BLOCK, len(records)))
    try:
      yield decode(records.__getitems__(list(block)))
    except Exception as error:
      where = f"records {block[0]} to {block[-1]} of {name}"
      raise ValueError(f"{where} cannot be decoded: {error}") from error


class DecodedOnAccess:
  """Stored values that are read and decoded when they are asked for."""

  def __init__(self, records, decode, column: str, shape: tuple[int, ...], dtype="u1"):
    """Values of one column.

    Args:
      records: a `tfds.data_source`.
      decode: a list of records -> columns; must pickle.
      column: the one of them.
      shape: of one value.
      dtype: of a value.
    """
    self._records, self._decode, self._column = records, decode, column
    self.shape = (len(records), *shape)
    self.dtype = np.dtype(dtype)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, indices) -> np.ndarray:
    records = self._records.__getitems__([int(i) for i in indices])
    return self._decode(records)[self._column]


def _open_cache(folder: Path, what: dict[str, Any]) -> dict[str, np.ndarray] | None:
  """The cached columns, or None where there are none that can be used."""
  try:
    about = json.loads((folder / "about.json").read_text())
    if about["what"] != json.loads(json.dumps(what)):
      return None
    columns = {}
    for name, (dtype, shape) in about["columns"].items():
      values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
      if values.dtype.str != dtype or list(values.shape) != shape:
        return None
      columns[name] = values
    return columns
  except (OSError, ValueError, KeyError):  # never written, cut short, or damaged
    return None


def _write_cache(folder: Path, what, blocks, n: int) -> None:
  """Writes columns block by block into a new folder and renames it into place."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
    if time.time() - left.stat().st_mtime > 86400:
      shutil.rmtree(left, ignore_errors=True)
  temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
  columns: dict[str, tuple[str, list[int]]] = {}
  try:
    with contextlib.ExitStack() as stack:
      files: dict[str, Any] = {}
      rows = collections.Counter[str]()
      for block in blocks:
        for name, values in block.items():
          values = np.ascontiguousarray(values)
          about = (values.dtype.str, [n, *values.shape[1:]])
          if name not in files:
            # Plain writes, not a writable map: on a full disk a map kills the process.
            files[name] = stack.enter_context(open(temporary / f"{name}.npy", "wb"))
            header = {"descr": about[0], "fortran_order": False, "shape": (*about[1],)}
            np.lib.format.write_array_header_1_0(files[name], header)
            columns[name] = about
          if columns[name] != about:
            raise ValueError(f"column {name}: {about} after {columns[name]}")
          files[name].write(values.tobytes())
          rows[name] += len(values)
      if set(rows.values()) != {n}:
        raise ValueError(f"{n} records gave columns of {dict(rows)} rows")
      for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    (temporary / "about.json").write_text(
      json.dumps({"what": what, "columns": columns}, indent=1)
    )
    os.chmod(temporary, 0o755)
    if folder.exists():  # one that could not be opened
      shutil.rmtree(folder)
    os.rename(temporary, folder)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
