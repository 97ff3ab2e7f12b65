"""Pictures of examples: images, log-mels and captions as tiles, tiles as grids.

Pillow and NumPy only. A `Panel` is what a report needs of a few examples, as numbers,
so that pages can be drawn again without the model; grids are PNG files for people.
"""

import base64
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from mmgen_jax.data.modality import detokenise

Subset = tuple[str, ...]
TILE = 96  # pixels a side that a tile is drawn at, or nearly
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 30), (118, 118, 124)
_GAP, _MARGIN, _LABEL = 6, 14, 132

# Nine points of matplotlib's "magma" (van der Walt and Smith 2015, CC0).
_MAGMA = np.array(
  [
    *([0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122]),
    *([229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]),
  ],
  np.float32,
)


class Panel(NamedTuple):
  """A few examples and what was made of them.

  Attributes:
    kinds: {modality: "image", "text" or "audio"}.
    real: {modality: stored [k, ...]; text as strings [k]}.
    has: {modality: bool [k]}, whether the example has it.
    subsets: what was given.
    made: {modality: stored [s, k, ...]; text as strings [s, k]}.
    right: {modality: int8 [s, k]}: 1 if a judge found what was made right, 0 if wrong,
      -1 if it was not asked.
  """

  kinds: dict[str, str]
  real: dict[str, np.ndarray]
  has: dict[str, np.ndarray]
  subsets: list[Subset]
  made: dict[str, np.ndarray]
  right: dict[str, np.ndarray]

  def of(self, given: Subset, target: str) -> np.ndarray:
    """What was made of one modality from one subset, [k, ...]."""
    return self.made[target][self.subsets.index(given)]


def panel(modalities, real, has, subsets, made, right=None) -> Panel:
  """A Panel from stored values; texts become strings."""
  right = {} if right is None else right

  def strings(name, tokens):
    flat = tokens.reshape(-1, tokens.shape[-1])
    texts = np.array(detokenise(modalities[name], flat), dtype=np.str_)
    return texts.reshape(tokens.shape[:-1])

  def plain(name, x):
    return strings(name, x) if modalities[name].kind == "text" else np.asarray(x)

  return Panel(
    kinds={name: m.kind for name, m in modalities.items()},
    real={name: plain(name, x) for name, x in real.items()},
    has={name: np.asarray(x, bool) for name, x in has.items()},
    subsets=list(subsets),
    made={name: plain(name, x) for name, x in made.items()},
    right={
      name: np.asarray(right.get(name, np.full(x.shape[:2], -1)), np.int8)
      for name, x in made.items()
    },
  )


def save_panel(path: Path, p: Panel, extra: Mapping[str, Any] | None = None) -> None:
  """Writes a panel as npz, without pickle."""
  arrays = {
    f"{field}/{name}": x
    for field in ("real", "has", "made", "right")
    for name, x in getattr(p, field).items()
  }
  meta = json.dumps({"kinds": p.kinds, "subsets": p.subsets, **(extra or {})})
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.with_suffix(".tmp"), "wb") as file:
    np.savez_compressed(file, meta=np.array(meta), **arrays)
  path.with_suffix(".tmp").replace(path)


def load_panel(path: Path) -> tuple[Panel, dict[str, Any]]:
  """The panel of a file, and what else was saved with it."""
  fields: dict[str, dict] = {"real": {}, "has": {}, "made": {}, "right": {}}
  with np.load(path, allow_pickle=False) as kept:
    extra = json.loads(str(kept["meta"]))
    for key in kept.files:
      if "/" in key:
        field, name = key.split("/", 1)
        fields[field][name] = kept[key]
  kinds = extra.pop("kinds")
  subsets = [tuple(s) for s in extra.pop("subsets")]
  return Panel(kinds=kinds, subsets=subsets, **fields), extra


def magma(x: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "... 3"]:
  """Colours of values in [0, 1], dark to light, readable without colour vision."""
  at = np.clip(np.asarray(x, np.float32), 0, 1) * (len(_MAGMA) - 1)
  low = np.minimum(at.astype(int), len(_MAGMA) - 2)
  part = (at - low)[..., None]
  return (_MAGMA[low] * (1 - part) + _MAGMA[low + 1] * part + 0.5).astype(np.uint8)


def pixels(kind: str, stored: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """One image, or one log-mel with time to the right and pitch upwards, as RGB."""
  if kind == "audio":
    return magma(stored.T[::-1] / 255.0)
  rgb = stored[..., :3] if stored.shape[-1] >= 3 else stored[..., :1].repeat(3, -1)
  return np.ascontiguousarray(rgb)


def png(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """A PNG file of an RGB array."""
  out = io.BytesIO()
  Image.fromarray(rgb).save(out, "png", optimize=True)
  return out.getvalue()


def data_uri(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
  """An RGB array as the source of an <img>, whole in itself."""
  return "data:image/png;base64," + base64.b64encode(png(rgb)).decode()


def _font(size: int):
  return ImageFont.load_default(size)  # built into Pillow: needs no file


def tile(kind: str, value) -> Image.Image:
  """One value of a modality as a picture about `TILE` pixels high."""
  if kind == "text":
    picture = Image.new("RGB", (TILE, TILE), (244, 244, 246))
    lines = textwrap.wrap(str(value), 14)[:6] or ["(empty)"]
    text, draw = "\n".join(lines), ImageDraw.Draw(picture)
    middle = (TILE / 2, TILE / 2)
    how: dict[str, Any] = {"anchor": "mm", "align": "center", "font": _font(12)}
    draw.multiline_text(middle, text, fill=_INK, **how)
    return picture
  rgb = pixels(kind, value)
  factor = max(1, round(TILE / rgb.shape[0]))
  return Image.fromarray(rgb.repeat(factor, 0).repeat(factor, 1))


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str) -> Image.Image:
  """Rows of tiles, centred in their columns, each row with its label, under a title."""
  high = [max(t.height for t in tiles) for _, tiles in rows]
  columns = max(len(tiles) for _, tiles in rows)
  wide = max(t.width for _, tiles in rows for t in tiles)
  width = 2 * _MARGIN + _LABEL + columns * (wide + _GAP) - _GAP
  height = 2 * _MARGIN + 26 + sum(high) + _GAP * (len(rows) - 1)
  out = Image.new("RGB", (width, height), _PAPER)
  draw = ImageDraw.Draw(out)
  draw.text((_MARGIN, _MARGIN - 2), title, fill=_INK, font=_font(16))
  y = _MARGIN + 26
  for (label, tiles), h in zip(rows, high, strict=True):
    words = "\n".join(textwrap.wrap(label, 18))
    draw.multiline_text(
      (_MARGIN, y + h / 2), words, fill=_FAINT, font=_font(13), anchor="lm"
    )
    for i, t in enumerate(tiles):
      x = _MARGIN + _LABEL + i * (wide + _GAP) + (wide - t.width) // 2
      out.paste(t, (x, y))
    y += h + _GAP
  return out


def directions(p: Panel) -> list[tuple[Subset, str]]:
  """(given, target) worth a picture: from each other modality, and from all others."""
  names = sorted(p.kinds)
  out = []
  for target in sorted(p.made):
    others = tuple(n for n in names if n != target)
    sets = [(n,) for n in others] + ([others] if len(others) > 1 else [])
    out += [(given, target) for given in sets if given in p.subsets]
  return out


def write_grids(folder: Path, p: Panel, step: int, columns: int = 10) -> list[Path]:
  """Writes prior.png, reconstruction.png and <given>_to_<target>.png; their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  tiles = lambda name, values: [tile(p.kinds[name], v) for v in values[:columns]]
  grids = {}
  if () in p.subsets:
    rows = [(name, tiles(name, p.of((), name))) for name in sorted(p.made)]
    grids["prior"] = grid(rows, f"from the prior, step {step}")
  everything = max(p.subsets, key=len)
  if everything:
    rows = []
    for name in sorted(set(p.made) & set(everything)):
      rows.append((f"{name}, real", tiles(name, p.real[name])))
      rows.append(("reconstructed", tiles(name, p.of(everything, name))))
    if rows:  # a condition alone is not made again
      grids["reconstruction"] = grid(rows, f"reconstruction, step {step}")
  for given, target in directions(p):
    rows = [(f"given {name}", tiles(name, p.real[name])) for name in given]
    rows.append((f"generated {target}", tiles(target, p.of(given, target))))
    rows.append((f"real {target}", tiles(target, p.real[target])))
    name = f"{'+'.join(given)}_to_{target}"
    grids[name] = grid(rows, f"{' + '.join(given)} to {target}, step {step}")
  paths = []
  for name, picture in grids.items():
    paths.append(folder / f"{name}.png")
    picture.save(paths[-1])
  return paths
