"""A user's listing: a CSV or JSONL file that says what belongs together.

Columns `image`, `caption` and `audio` are modalities (paths relative to the listing's
folder, and text), `split` is where a row belongs, every other column is a label. An
empty cell is a missing modality. Each error names the file and the line.
"""

import csv
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

SPLITS = ("train", "validation", "test")
CELLS = ("image", "caption", "audio")
MOST_NAMES = 1000  # different values of a label


@dataclasses.dataclass(frozen=True)
class Row:
  """One line: its number, its cells ("" where empty), labels, and its split."""

  line: int
  image: str
  caption: str
  audio: str
  labels: dict[str, str]
  split: str

  @property
  def key(self) -> str:
    """A picture, or else a sound or text: rows that share it stay in one split."""
    return self.image or self.audio or self.caption


@dataclasses.dataclass(frozen=True)
class Listing:
  """A checked listing.

  Attributes:
    path: of the file.
    rows: in an order of their own, the same as long as the contents are: listings are
      often sorted by class, and evaluation takes the first n of a split.
    modalities: those of `CELLS` that it has.
    labels: the other columns' names.
  """

  path: Path
  rows: tuple[Row, ...]
  modalities: tuple[str, ...]
  labels: tuple[str, ...]

  @property
  def folder(self) -> Path:
    return self.path.parent

  def where(self, row: Row) -> str:
    """The start of a message about a row."""
    return f"{self.path}, line {row.line}"

  def names(self, label: str) -> tuple[str, ...]:
    """The values of a label, sorted."""
    return tuple(sorted({row.labels[label] for row in self.rows} - {""}))


def read_listing(folder: str, listing: str = "") -> Listing:
  """The listing of a folder, checked, every row with a split.

  Args:
    folder: the user's.
    listing: the file's name in it; "": the one .csv or .jsonl file there is.

  Raises:
    ValueError: naming file and line, for anything that is wrong with it.
  """
  path = _find(Path(folder).expanduser().absolute(), listing)
  rows: list[Row] = []
  columns: list[str] = []
  for line, cells in _lines(path):
    where = f"{path}, line {line}"
    if not columns:
      columns = _check_columns(path, list(cells))
    unknown = sorted(set(cells) - set(columns))
    if unknown:
      raise ValueError(f"{where}: unknown column {unknown}; there are {columns}")
    cells = {name: _text(where, name, cells.get(name)) for name in columns}
    row = Row(
      line,
      *(cells.get(name, "") for name in CELLS),
      labels={name: cells[name] for name in columns if name not in (*CELLS, "split")},
      split=cells.get("split", ""),
    )
    if not row.key:
      raise ValueError(
        f"{where}: none of {[c for c in columns if c in CELLS]} is given"
      )
    for name in ("image", "audio"):
      file = cells.get(name, "")
      if file and not (path.parent / file).is_file():
        raise ValueError(f"{where}: there is no {name} file {path.parent / file}")
    rows.append(row)
  if not rows:
    raise ValueError(f"{path} lists nothing")
  rows = _split(path, rows) if "split" not in columns else rows
  _check_rows(path, rows)
  modalities = tuple(name for name in CELLS if name in columns)
  labels = tuple(name for name in columns if name not in (*CELLS, "split"))
  made = Listing(path, tuple(sorted(rows, key=_place)), modalities, labels)
  for name in labels:
    if len(made.names(name)) > MOST_NAMES:
      raise ValueError(
        f"{path}: column {name!r} has {len(made.names(name))} different values; a label"
        f" has at most {MOST_NAMES}. Leave the column out"
      )
  return made


def _place(row: Row) -> tuple[bytes, int]:
  cells = repr([getattr(row, name) for name in CELLS])
  return hashlib.sha256(cells.encode()).digest(), row.line


def _find(folder: Path, listing: str) -> Path:
  if not folder.is_dir():
    raise ValueError(f"there is no folder {folder}")
  if listing:
    if not (folder / listing).is_file():
      raise ValueError(f"there is no listing {folder / listing}")
    return folder / listing
  found = sorted(p for p in folder.iterdir() if p.suffix in (".csv", ".jsonl"))
  if len(found) != 1:
    raise ValueError(
      f"{folder} has {len(found)} .csv or .jsonl files"
      f" {[p.name for p in found]}; name one by the option listing"
    )
  return found[0]


def _lines(path: Path) -> Iterator[tuple[int, dict]]:
  """(line number, cells by column) of each row."""
  with open(path, encoding="utf-8-sig", newline="") as file:
    try:
      if path.suffix == ".jsonl":
        for line, text in enumerate(file, 1):
          if text.strip():
            yield line, _json_object(f"{path}, line {line}", text)
        return
      reader = csv.DictReader(file, strict=True)
      if reader.fieldnames and len(reader.fieldnames) > len(set(reader.fieldnames)):
        raise ValueError(f"{path}, line 1: a column occurs twice: {reader.fieldnames}")
      for cells in reader:
        if None in cells or None in cells.values():
          raise ValueError(
            f"{path}, line {reader.line_num}: not {len(reader.fieldnames or ())} cells,"
            " as the first line has"
          )
        yield reader.line_num, cells
    except UnicodeDecodeError as error:
      raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    except csv.Error as error:
      raise ValueError(f"{path}: {error}") from None


def _json_object(where: str, text: str) -> dict:
  try:
    cells = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: not JSON: {error}") from None
  if not isinstance(cells, dict):
    raise ValueError(f"{where}: not a JSON object: {text.strip()[:60]}")
  return cells


def _text(where: str, name: str, cell) -> str:
  if cell is None:
    return ""
  if isinstance(cell, (dict, list)):
    raise ValueError(f"{where}: column {name!r} holds {cell}, not one value")
  return str(cell).strip()


def _check_columns(path: Path, columns: list[str]) -> list[str]:
  if not set(columns) & set(CELLS):
    raise ValueError(f"{path}: no column of {CELLS}; it has {columns}, comma-separated")
  for name in set(columns) - {*CELLS, "split"}:
    if not name or "/" in name:  # metrics are called coherence/<label>
      raise ValueError(f"{path}: column {name!r}: a name has letters and no '/'")
    meant = difflib.get_close_matches(name.lower(), [*CELLS, "split"], 1, 0.8)
    if meant:
      raise ValueError(f"{path}: unknown column {name!r}; did you mean {meant[0]!r}?")
  return columns


def _split(path: Path, rows: list[Row]) -> list[Row]:
  """Eight, one and one tenth of the groups, by the order of their keys' hashes."""
  group_of = _groups(rows)
  keys = sorted(
    set(group_of.values()), key=lambda k: hashlib.sha256(k.encode()).digest()
  )
  if len(keys) < 3:
    raise ValueError(
      f"{path} has {len(keys)} different examples; train, validation and test need 3"
    )
  tenth = max(1, round(len(keys) / 10))
  split_of = dict.fromkeys(keys, "train")
  split_of |= dict.fromkeys(keys[:tenth], "test")
  split_of |= dict.fromkeys(keys[tenth : 2 * tenth], "validation")
  return [dataclasses.replace(row, split=split_of[group_of[row.key]]) for row in rows]


def _groups(rows: list[Row]) -> dict[str, str]:
  """{key: the least key of its group}; rows of one picture or sound are in one group.

  So are rows that only others link: a with b by a picture, b with c by a sound.
  """
  above: dict[str, str] = {}

  def top(cell):
    above.setdefault(cell, cell)
    while above[cell] != cell:
      above[cell] = cell = above[above[cell]]
    return cell

  for row in rows:
    for cell in filter(None, (row.key, row.image, row.audio)):
      above[top(cell)] = top(row.key)
  least: dict[str, str] = {}
  for key in sorted({row.key for row in rows}):
    least.setdefault(top(key), key)
  return {row.key: least[top(row.key)] for row in rows}


def _check_rows(path: Path, rows: list[Row]) -> None:
  seen: dict[tuple[str, str, str], Row] = {}
  homes: dict[str, Row] = {}
  for row in rows:
    where = f"{path}, line {row.line}"
    if row.split not in SPLITS:
      raise ValueError(f"{where}: split {row.split!r} is none of {SPLITS}")
    same = seen.setdefault((row.image, row.caption, row.audio), row)
    if same is not row:
      raise ValueError(f"{where}: a duplicate of line {same.line}")
    for file in filter(None, (row.image, row.audio)):
      home = homes.setdefault(file, row)
      if home.split != row.split:
        raise ValueError(
          f"{where}: {file} is in {row.split!r}, and in {home.split!r} in line"
          f" {home.line}"
        )
  for split in SPLITS:
    if split not in {row.split for row in rows}:
      raise ValueError(
        f"{path}: no row of the split {split!r}; each of {SPLITS} has one"
      )
