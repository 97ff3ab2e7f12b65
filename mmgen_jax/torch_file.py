"""Reads tensors from a file that `torch.save` wrote, without PyTorch, running no code.

Such a file holds a pickle, a program that may call anything. Here its opcodes are
followed by a machine of our own that knows dictionaries, lists, tuples, strings, numbers
and tensors, and refuses every other name. Both forms are read: the zip archive, and the
one before PyTorch 1.6, a row of pickles and then the raw storages.
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_PROTOCOL = 1001
_DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}


class _Name(NamedTuple):
  """A global that a file asks for, one of those allowed."""

  name: str


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


_ALLOWED = {
  ("collections", "OrderedDict"),
  ("torch._utils", "_rebuild_tensor_v2"),
  ("torch._utils", "_rebuild_parameter"),
  *(("torch", name) for name in _DTYPES),
}
_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "MARK": lambda: _MARK,
}
_VALUES = {  # opcodes whose argument is what they push
  *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


def load(path: str | os.PathLike) -> Any:
  """What was saved: dictionaries, lists, tuples, plain values, tensors as np.ndarray.

  Raises:
    ValueError: if the file is damaged, or holds anything else; names it.
  """
  path = Path(path)
  try:
    with open(path, "rb") as file:
      if zipfile.is_zipfile(file):
        return _load_zip(file)
      file.seek(0)
      return _load_rows(file)
  except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
    raise ValueError(f"{path}: {error}") from error


def _load_zip(file: BinaryIO) -> Any:
  with zipfile.ZipFile(file) as archive:
    programs = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(programs) != 1:
      raise ValueError("no archive of torch.save: it has not one data.pkl")
    root = programs[0].removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist():
      order = archive.read(root + "byteorder").decode()
      if order != "little":
        raise ValueError(f"the byte order is {order!r}; only little-endian is read")
    saved = _run(io.BytesIO(archive.read(programs[0])))

    def read(storage: _Storage) -> bytes:
      name = f"{root}data/{storage.key}"
      size = archive.getinfo(name).file_size
      _check_size(storage, size // storage.dtype.itemsize)
      return archive.read(name)

    return _with_tensors(saved, read)


def _load_rows(file: BinaryIO) -> Any:
  if _run(file) != MAGIC or _run(file) != _PROTOCOL:
    raise ValueError("not a file of torch.save")
  about = _run(file)
  if not isinstance(about, dict) or about.get("little_endian") is not True:
    raise ValueError("only little-endian files are read")
  saved, keys = _run(file), _run(file)
  storages = {s.key: s for s in _storages(saved)}
  content: dict[str, bytes] = {}
  for key in keys:
    if key not in storages:
      raise ValueError(f"storage {key!r} belongs to no tensor")
    size = int.from_bytes(file.read(8), "little")
    _check_size(storages[key], size)
    content[key] = file.read(size * storages[key].dtype.itemsize)
  return _with_tensors(saved, lambda storage: content[storage.key])


def _check_size(storage: _Storage, size: int) -> None:
  if size != storage.size:
    raise ValueError(
      f"storage {storage.key!r} has {size} values, declared were {storage.size}"
    )


def _run(file: BinaryIO) -> Any:
  """What the pickle at the file's position makes; `_Tensor` for tensors."""
  stack: list[Any] = []
  memo: dict[int, Any] = {}

  def since_mark() -> list[Any]:
    at = max((i for i, x in enumerate(stack) if x is _MARK), default=-1)
    if at < 0:
      raise ValueError("the pickle is damaged: a mark is missing")
    items = stack[at + 1 :]
    del stack[at:]
    return items

  for opcode, arg, _ in pickletools.genops(file):
    code = opcode.name
    try:
      if code in _CONSTANTS:
        stack.append(_CONSTANTS[code]())
      elif code in _VALUES:
        stack.append(arg)
      elif code in ("PROTO", "FRAME"):
        pass
      elif code == "STOP":
        return stack.pop()
      elif code in ("BINPUT", "LONG_BINPUT"):
        memo[int(arg)] = stack[-1]  # pyright: ignore[reportArgumentType]
      elif code == "MEMOIZE":
        memo[len(memo)] = stack[-1]
      elif code in ("BINGET", "LONG_BINGET"):
        stack.append(memo[int(arg)])  # pyright: ignore[reportArgumentType]
      elif code == "TUPLE":
        stack.append(tuple(since_mark()))
      elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(code[-1])
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)
      elif code == "GLOBAL":
        stack.append(_named(*str(arg).split(" ", 1)))
      elif code == "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_named(module, name))
      elif code == "BINPERSID":
        stack.append(_storage(stack.pop()))
      elif code == "REDUCE":
        args, function = stack.pop(), stack.pop()
        stack.append(_call(function, args))
      elif code == "BUILD":  # the attributes of an OrderedDict: its _metadata
        stack.pop()
        _as_type(stack[-1], dict, "the pickle sets attributes of")
      elif code in ("APPEND", "APPENDS"):
        items = [stack.pop()] if code == "APPEND" else since_mark()
        _as_type(stack[-1], list, "the pickle appends to").extend(items)
      elif code in ("SETITEM", "SETITEMS"):
        if code == "SETITEM":
          items = [stack.pop() for _ in range(2)][::-1]
        else:
          items = since_mark()
        pairs = dict(zip(items[::2], items[1::2], strict=True))
        _as_type(stack[-1], dict, "the pickle sets items of").update(pairs)
      else:
        raise ValueError(f"the pickle has the opcode {code}; only tensors are read")
    except (IndexError, KeyError, TypeError) as error:
      raise ValueError(f"the pickle is damaged at {code}: {error!r}") from error
  raise ValueError("the pickle has no end")


def _as_type(value: Any, kind: type, what: str) -> Any:
  if type(value) is not kind:
    raise ValueError(f"{what} a {type(value).__name__}; only tensors are read")
  return value


def _named(module: str, name: str) -> _Name:
  if (module, name) not in _ALLOWED:
    raise ValueError(f"the file asks for {module}.{name}; only tensors are read")
  return _Name(name)


def _storage(about: Any) -> _Storage:
  kind, of, key, _, size, *view = _as_type(about, tuple, "a storage is")
  if kind != "storage" or not isinstance(of, _Name) or of.name not in _DTYPES:
    raise ValueError(f"no storage of a tensor: {about!r}")
  if any(v is not None for v in view):
    raise ValueError("views of storages, of PyTorch before 0.4, are not read")
  if not _counts([size]):
    raise ValueError(f"a storage has {size!r} values")
  return _Storage(str(key), _DTYPES[of.name], size)


def _counts(values: Any) -> bool:
  return all(type(v) is int and v >= 0 for v in values)


def _call(function: Any, args: Any) -> Any:
  name = function.name if isinstance(function, _Name) else repr(function)
  args = _as_type(args, tuple, "arguments are")
  if name == "OrderedDict" and not args:
    return {}
  if name == "_rebuild_parameter" and args and isinstance(args[0], _Tensor):
    return args[0]
  if name != "_rebuild_tensor_v2" or len(args) < 4:
    raise ValueError(f"the file calls {name}{args!r:.80}; only tensors are read")
  storage, offset, shape, strides = args[:4]
  if not isinstance(storage, _Storage) or not _counts([offset, *shape, *strides]):
    raise ValueError(f"no tensor: {args!r:.80}")
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  # No more elements than are stored: a stride of 0 would make gigabytes of one number.
  if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
    raise ValueError(f"a tensor of shape {shape} does not fit its storage")
  return _Tensor(storage, offset, shape, strides)


def _storages(saved: Any) -> list[_Storage]:
  if isinstance(saved, _Tensor):
    return [saved.storage]
  if isinstance(saved, _Storage):
    return [saved]
  parts = saved.values() if isinstance(saved, dict) else saved
  if not isinstance(saved, dict | list | tuple):
    return []
  return [storage for part in parts for storage in _storages(part)]


def _with_tensors(saved: Any, read: Callable[[_Storage], bytes]) -> Any:
  """`saved` with arrays in place of the tensors."""
  if isinstance(saved, _Tensor):
    flat = np.frombuffer(read(saved.storage), saved.storage.dtype)
    _check_size(saved.storage, len(flat))
    steps = [s * flat.itemsize for s in saved.strides]
    view = np.lib.stride_tricks.as_strided(flat[saved.offset :], saved.shape, steps)
    return np.array(view)
  if isinstance(saved, dict):
    return {k: _with_tensors(v, read) for k, v in saved.items()}
  if type(saved) in (list, tuple):
    return type(saved)(_with_tensors(v, read) for v in saved)
  if isinstance(saved, _Name | _Storage):
    raise ValueError(f"{saved} stands outside a tensor")
  return saved
