"""Pictures of any kind to pixels of one shape."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def fit(picture, size: int, how: str) -> np.ndarray:
  """A PIL image as uint8 [size, size, c]: centred on black, or scaled and cropped."""
  if how == "pad":
    if max(picture.size) > size:
      raise ValueError(f"an image of {picture.size} pixels cannot be padded to {size}")
    canvas = Image.new(picture.mode, (size, size))
    corner = (size - picture.width) // 2, (size - picture.height) // 2
    canvas.paste(picture, corner)
    picture = canvas
  elif picture.size != (size, size):
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
  return np.asarray(picture, np.uint8).reshape(size, size, -1)


def default_fit(sides: Sequence[int | None], size: int) -> str:
  """What fits a picture: "pad" where each side is known and over half of `size`."""
  smaller = all(side is not None and size < 2 * side <= 2 * size for side in sides)
  return "pad" if smaller else "resize"


def open_rgb(encoded: bytes):
  """A picture of any format and mode as PIL RGB: upright, opaque on white."""
  try:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
  except UnidentifiedImageError:
    raise ValueError("no picture, or of an unknown format") from None
  if picture.mode.startswith("I"):  # 16 bits a pixel, which PIL would only clip
    picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture.convert("RGB")
