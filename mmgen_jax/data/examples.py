"""What every data set gives: modalities, labels, and stored values by column."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmgen_jax.data.modality import Modality


@runtime_checkable
class Values(Protocol):
  """Stored values that can be indexed by an int array; np.ndarray is one of them.

  A set too large to be decoded as a whole gives its own, which decodes on access.
  """

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  def __len__(self) -> int: ...

  def __getitem__(self, indices, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Column:
  """The stored values of one modality.

  Attributes:
    values: stored form, [k, *modality.shape], uint8 or int32; often memory-mapped.
    rows: int32 [n], example i holds `values[rows[i]]`; None: it holds `values[i]`. Or
      int32 [n, c]: it holds c grey images `values[rows[i]]` as its channels.
    present: bool [n], which examples have this modality; None: all.
  """

  values: Any  # Values; Any, because NumPy's own stubs do not fit the protocol
  rows: np.ndarray | None = None
  present: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.values if self.rows is None else self.rows)

  @property
  def stacked(self) -> bool:
    """Whether the channels of an example are images of their own."""
    return self.rows is not None and self.rows.ndim == 2

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one example."""
    shape = tuple(self.values.shape[1:])
    if self.rows is None or not self.stacked:
      return shape
    if len(shape) != 3 or shape[-1] != 1:
      raise ValueError(f"only images of one channel make channels, got {shape}")
    return (*shape[:-1], self.rows.shape[1])

  def take(self, indices: np.ndarray) -> np.ndarray:
    """Stored values [b, *shape] of the examples at `indices`."""
    if self.rows is None:
      return np.asarray(self.values[indices])
    rows = self.rows[indices]
    return as_channels(np.asarray(self.values[rows]), rows)

  def __getstate__(self):
    # A memory map goes to a loader's worker as a path: pickling it would copy the file.
    state = dict(self.__dict__)
    v = self.values
    whole = isinstance(v, np.memmap) and not isinstance(v.base, np.ndarray)
    if whole and v.flags.c_contiguous:  # which is how it will be opened
      state["values"] = _MappedFile(str(v.filename), v.dtype.str, v.offset, v.shape)
    return state

  def __setstate__(self, state):
    values = state["values"]
    if isinstance(values, _MappedFile):
      state = {**state, "values": values.open()}
    self.__dict__.update(state)


def as_channels(values, rows):
  """`values[rows]` as examples: those of several rows are joined along channels.

  Args:
    values: [b, *shape], or grey images [b, c, h, w, 1] if `rows` is [b, c].
    rows: as in `Column`, of the same batch; NumPy or traced, as `values` are.
  """
  return values if rows.ndim == 1 else values[..., 0].transpose(0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class _MappedFile:
  path: str
  dtype: str
  offset: int
  shape: tuple[int, ...]

  def open(self) -> np.memmap:
    return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is known of a data set before any of it is read; enough to build models.

  Attributes:
    name: the data set's name.
    modalities: {name: Modality}.
    label_names: {label: what its integers mean}.
    splits: the names `load` takes.
  """

  name: str
  modalities: Mapping[str, Modality]
  label_names: Mapping[str, tuple[str, ...]]
  splits: tuple[str, ...] = ("train", "validation", "test")

  def check_split(self, split: str) -> None:
    """Raises ValueError if there is no such split."""
    if split not in self.splits:
      raise ValueError(f"{self.name} has no split {split!r}; it has {self.splits}")


@dataclasses.dataclass(frozen=True)
class Examples:
  """One split of a data set, in stored form.

  Attributes:
    name: the data set's name.
    split: the split's name.
    modalities: {name: Modality}.
    labels: {label: int32 [n]}.
    label_names: {label: what its integers mean}; may be empty for free integers.
    columns: {modality: Column}.
    fingerprint: sha256 of all that the content follows from: builder version, options,
      split.
  """

  name: str
  split: str
  modalities: Mapping[str, Modality]
  labels: Mapping[str, np.ndarray]
  label_names: Mapping[str, tuple[str, ...]]
  columns: Mapping[str, Column]
  fingerprint: str

  def __post_init__(self):
    if not self.columns or set(self.columns) != set(self.modalities):
      raise ValueError(
        f"{self.name}: columns {sorted(self.columns)} are not the modalities"
        f" {sorted(self.modalities)}"
      )
    sizes = {name: len(column) for name, column in self.columns.items()}
    sizes |= {f"label {name}": len(value) for name, value in self.labels.items()}
    for name, column in self.columns.items():
      if column.present is not None:
        sizes[f"{name}.present"] = len(column.present)
        if (dtype := np.asarray(column.present).dtype).kind != "b":
          raise ValueError(f"{self.name}: {name}.present must be bool, got {dtype}")
      if column.rows is not None:
        _check_rows(f"{self.name}: {name}", column.rows, len(column.values))
      if column.shape != self.modalities[name].shape:
        raise ValueError(
          f"{self.name}: {name} is stored as {column.shape} per"
          f" example, declared was {self.modalities[name].shape}"
        )
    if len(set(sizes.values())) != 1:
      raise ValueError(f"{self.name}/{self.split}: lengths differ: {sizes}")
    if not len(self):
      raise ValueError(f"{self.name}/{self.split} holds no examples")

  def __len__(self) -> int:
    return len(next(iter(self.columns.values())))

  @property
  def present(self) -> dict[str, np.ndarray]:
    """{modality: bool [n]}: which examples have it."""
    return {
      name: np.ones(len(self), bool) if column.present is None else column.present
      for name, column in self.columns.items()
    }

  def rows(self, indices) -> dict[str, Any]:
    """The stored rows of some examples, as a batch.

    Args:
      indices: int [b].

    Returns:
      `{modality: [b, ...], "mask": {modality: bool [b]}, "labels": {name: int32 [b]},
      "index": int32 [b]}`.
    """
    indices = np.asarray(indices, np.int32)
    batch: dict[str, Any] = {
      name: column.take(indices) for name, column in self.columns.items()
    }
    batch["mask"] = {
      name: np.ones(len(indices), bool) if c.present is None else c.present[indices]
      for name, c in self.columns.items()
    }
    batch["labels"] = {
      name: value[indices].astype(np.int32) for name, value in self.labels.items()
    }
    batch["index"] = indices
    return batch

  def first(self, count: int) -> "Examples":
    """The first `count` examples, for training with little data."""
    if not 1 <= count <= len(self):
      raise ValueError(
        f"{self.name}/{self.split} has {len(self)} examples, not {count}"
      )
    at = np.arange(count, dtype=np.int32)

    def cut(c: Column) -> Column:
      rows = at if c.rows is None else c.rows[:count]
      return Column(c.values, rows, None if c.present is None else c.present[:count])

    return dataclasses.replace(
      self,
      labels={name: value[:count] for name, value in self.labels.items()},
      columns={name: cut(column) for name, column in self.columns.items()},
      fingerprint=f"{self.fingerprint} first {count}",
    )

  def select(self, names: Sequence[str]) -> "Examples":
    """The same examples with only the modalities named."""
    return dataclasses.replace(
      self,
      modalities=select(self.modalities, names, self.name),
      columns=select(self.columns, names, self.name),
    )


def _check_rows(what: str, rows: np.ndarray, count: int) -> None:
  """Raises ValueError unless these are numbers of `count` values."""
  if not np.issubdtype(rows.dtype, np.integer):
    raise ValueError(f"{what}.rows must be integers, got {rows.dtype}")
  if rows.size and not 0 <= rows.min() <= rows.max() < count:
    raise ValueError(
      f"{what}.rows must be from 0 to {count - 1}, got {rows.min()} to {rows.max()}"
    )


def select(named: Mapping[str, Any], names: Sequence[str], data: str) -> dict[str, Any]:
  """Those of a data set's modalities, or columns, that are in `names`."""
  unknown = sorted(set(names) - set(named))
  if unknown:
    raise ValueError(f"{data} has no modality {unknown}; it has {sorted(named)}")
  return {n: x for n, x in named.items() if n in names}
