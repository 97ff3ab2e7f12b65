"""The safetensors file format, read and written with NumPy: named arrays, no code.

https://github.com/huggingface/safetensors#format: eight bytes with the length of the
header, little-endian; the header, JSON {name: {"dtype", "shape", "data_offsets"}}, with
text under "__metadata__"; then the arrays, row-major, little-endian, end to end.
"""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "I16": np.dtype(np.int16),
  "U16": np.dtype(np.uint16),
  "I32": np.dtype(np.int32),
  "U32": np.dtype(np.uint32),
  "I64": np.dtype(np.int64),
  "U64": np.dtype(np.uint64),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"


def save(
  path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes a file so that a kill leaves the old one, or none, or the new one.

  Args:
    path: of the file.
    arrays: by name.
    metadata: text to go with them.

  Raises:
    ValueError: for an array of a dtype that the format has no name for.
  """
  path, end = Path(path), 0
  header: dict[str, Any] = {_METADATA: dict(metadata or {})}
  # Wide ones first, so that every array is aligned.
  order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  for name in order:
    x = arrays[name]
    if x.dtype not in _NAMES or name == _METADATA:
      raise ValueError(f"{name!r} ({x.dtype}) cannot be stored; dtypes: {[*DTYPES]}")
    start, end = end, end + x.nbytes
    header[name] = {
      "dtype": _NAMES[x.dtype],
      "shape": list(x.shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.tmp{secrets.token_hex(8)}")
  with open(temporary, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for name in order:
      f.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def load(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Arrays by name, mapped from the file (nothing is read yet), and the metadata.

  Raises:
    ValueError: if it is not such a file, whole.
  """
  path = Path(path)
  size = path.stat().st_size
  with open(path, "rb") as f:
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
      raise ValueError(f"{path} is not a whole safetensors file ({size} bytes)")
    header = _parse(path, f.read(length))
  metadata = header.pop(_METADATA, {})
  data = np.memmap(path, np.uint8, "r")[8 + length :] if size > 8 + length else b""
  arrays, end = {}, 0
  for name, entry in sorted(header.items(), key=lambda item: _start(path, *item)):
    dtype, shape, (start, stop) = _entry(path, name, entry)
    if start != end or stop > len(data):
      raise ValueError(
        f"{path}: {name!r} is not where it should be; the file is damaged"
      )
    arrays[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
    end = stop
  if end != len(data):
    raise ValueError(f"{path} has {len(data) - end} bytes that belong to no array")
  return arrays, metadata


def _parse(path: Path, text: bytes) -> dict[str, Any]:
  try:
    header = json.loads(text)
  except ValueError as e:
    raise ValueError(f"{path} is not a safetensors file: its header is no JSON") from e
  if not isinstance(header, dict):
    raise ValueError(f"{path} is not a safetensors file: its header is no JSON object")
  return header


def _start(path: Path, name: str, entry) -> tuple[int, int]:
  return _entry(path, name, entry)[2]


def _entry(path: Path, name: str, entry) -> tuple[np.dtype, list[int], tuple[int, int]]:
  try:
    dtype, shape = DTYPES.get(entry["dtype"]), [int(n) for n in entry["shape"]]
    start, stop = (int(n) for n in entry["data_offsets"])
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(f"{path}: the header says {entry} of {name!r}") from e
  if dtype is None:
    raise ValueError(f"{path}: {name!r} is {entry['dtype']}; known: {[*DTYPES]}")
  if min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
    raise ValueError(f"{path}: {name!r} has {stop - start} bytes for {entry}")
  return dtype, shape, (start, stop)
