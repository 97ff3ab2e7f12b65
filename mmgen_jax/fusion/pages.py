"""Memory of arrays that are mapped from files: given back as soon as it has been read."""

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np


def release(arrays: Iterable[Any]) -> None:
  """Drops the pages of mapped arrays from memory; when wanted again they are read anew.

  So that a merge of networks in files holds about one tensor of each at a time. What is
  not mapped from a file, or could have been written to, is left as it is.
  """
  for x in arrays:
    mapped = _mapping(x)
    if mapped is None or not hasattr(mapped, "madvise") or not x.nbytes:
      continue
    origin = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    start = x.__array_interface__["data"][0] - origin
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start + x.nbytes - first)


def _mapping(x) -> mmap.mmap | None:
  """The read-only mapping that a contiguous array is a part of."""
  if not isinstance(x, np.ndarray) or x.flags.writeable or not x.flags.c_contiguous:
    return None
  while isinstance(x, np.ndarray | memoryview):
    x = x.base if isinstance(x, np.ndarray) else x.obj
  return x if isinstance(x, mmap.mmap) else None
