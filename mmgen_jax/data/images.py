"""Any TFDS image set by name, if it is prepared as array_record.

Stock sets need TensorFlow once, to be prepared; reading needs none. Where a set is not
prepared, the error says what it takes: a download, the tf extra, a conversion.
"""

import functools
import importlib.util
import inspect
import io
import json
import re
import sys
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mmgen_jax.data import modality, pixels, read
from mmgen_jax.data.examples import Column, Examples, Spec

VERSION = 1  # of what `stored` makes of a record
FITS = ("", "pad", "resize")
VALIDATIONS = ("", "test")


def spec(
  *,
  tfds: str,
  size: int = 32,
  fit: str = "",
  cached: bool = True,
  validation: str = "",
  data_dir: str = "",
) -> Spec:
  """One image modality, size x size, grey or RGB; a label if the set has one.

  Args:
    tfds: name of the set, e.g. "mnist", "cifar10:3.0.2", "imagenet_resized/64x64".
    size: height and width.
    fit: "pad" centres a smaller image on black; "resize" scales the shorter side and
      crops the centre; "" pads where images of a fixed size miss less than half of
      `size`, and else resizes.
    cached: decode once into memory-mapped arrays; False decodes on every access, which
      suits sets too large for the disk.
    validation: "test" trains on the whole of "train" and gives "test" as the split
      "validation" too, as published protocols of MNIST and CIFAR-10 have it: nothing is
      then held out of what is chosen by it. "" holds out, see `load`.
    data_dir: needed for sets that TFDS itself does not know.
  """
  del cached
  _check_validation(validation)
  import tensorflow_datasets as tfds_lib

  folder = find(tfds, data_dir) if data_dir else None
  try:
    builder = (
      tfds_lib.builder_from_directory(str(folder)) if folder else tfds_lib.builder(tfds)
    )
  except tfds_lib.core.DatasetNotFoundError:
    raise ValueError(
      f"TFDS has no data set {tfds!r} (option tfds); of one of your own the option"
      " data_dir says where it is prepared"
    ) from None
  return _spec(builder.info.features, size, fit)


def _spec(features, size: int, fit: str) -> Spec:
  check_size(size, fit)
  fields = _fields(features)
  names = features[fields.label].names if fields.label else ()
  return Spec(
    "images",
    {"image": modality.image(size, size, fields.channels)},
    {"label": tuple(names)} if fields.label else {},
  )


def check_size(size: int, fit: str) -> None:
  """Raises ValueError unless `size` and `fit` are such as `pixels.fit` takes."""
  if size < 1 or fit not in FITS:
    raise ValueError(f"size={size}, fit={fit!r}: a size >= 1 and one of {FITS}")


def _check_validation(validation: str) -> None:
  if validation not in VALIDATIONS:
    raise ValueError(f"validation={validation!r}: one of {VALIDATIONS}")


def load(
  split: str,
  data_dir,
  *,
  tfds: str,
  size: int = 32,
  fit: str = "",
  cached: bool = True,
  validation: str = "",
) -> Examples:
  """The examples of one split; see `spec` for the options.

  A set without a split "validation" gives the last tenth of "train"; one without
  "test" gives its "validation", or the tenth before. With validation="test", "train" is
  whole and "validation" is what "test" is.

  Raises:
    FileNotFoundError: if the set is not prepared; says how to.
    ValueError: if there is no such set, no image in it, or nothing beside its "train"
      for validation="test".
  """
  _check_validation(validation)
  builder = open_prepared(tfds, data_dir)
  about = _spec(builder.info.features, size, fit)
  about.check_split(split)
  part, usual = (_parts(builder.info.splits, v)[split] for v in (validation, ""))
  columns = stored(tfds, part, data_dir, size=size, fit=fit, cached=cached)
  labels = {"label": np.asarray(columns["label"])} if "label" in columns else {}
  what = [tfds, split, size, fit, columns["source"], VERSION]
  what += [part] if part != usual else []
  return Examples(
    "images",
    split,
    about.modalities,
    labels,
    about.label_names,
    {"image": Column(columns["image"])},
    read.fingerprint(name="images", what=what),
  )


def _parts(splits, validation: str = "") -> dict[str, str]:
  """TFDS's notation of our three splits."""
  if "train" not in splits:
    raise ValueError(f"the set has no split 'train'; it has {sorted(splits)}")
  has_test, has_validation = "test" in splits, "validation" in splits
  if validation:
    if not (has_test or has_validation):
      raise ValueError(
        f"validation={validation!r} wants a split 'test'; the set has {sorted(splits)}"
      )
    test = "test" if has_test else "validation"
    return {"train": "train", "validation": test, "test": test}
  if has_test and has_validation:
    return {name: name for name in ("train", "validation", "test")}
  if has_test or has_validation:
    test = "test" if has_test else "validation"
    return {"train": "train[:90%]", "validation": "train[90%:]", "test": test}
  return {
    "train": "train[:80%]",
    "validation": "train[90%:]",
    "test": "train[80%:90%]",
  }


def stored(
  name: str,
  split: str,
  data_dir,
  *,
  size: int,
  fit: str = "",
  cached: bool = True,
) -> dict[str, Any]:
  """Columns "image" uint8 [n, size, size, c] and, if there is one, "label" int32 [n].

  "source" tells what they were read from, the same on any machine.
  """
  check_size(size, fit)
  folder = find(name, data_dir) or open_prepared(name, data_dir).data_path
  source = _identity(folder)

  def decode_with(**options):
    fields = _fields(open_prepared(name, data_dir).info.features)
    return functools.partial(_decode, fields=fields, size=size, fit=fit, **options)

  columns: dict[str, Any] = {"source": source}
  what = {"name": re.sub(r"\W", "-", name), "source": source, "version": VERSION}
  fit_to = {"size": size, "fit": fit} if cached else {"images": False}
  if cached or _fields(open_prepared(name, data_dir).info.features).label:
    columns |= read.read(
      lambda: open_prepared(name, data_dir),
      split,
      lambda records: decode_with(images=cached)(records),
      what={**what, **fit_to},
      data_dir=data_dir,
    )
  if not cached:
    decode = decode_with(labels=False)
    columns["image"] = read.DecodedOnAccess(
      read.source(open_prepared(name, data_dir), split),
      decode,
      "image",
      (size, size, decode.keywords["fields"].channels),
    )
  return columns


class _Fields(NamedTuple):
  image: str
  channels: int
  label: str  # "" if there is none
  fixed: tuple[int | None, ...]  # height and width, where all images have the same


def _fields(features) -> _Fields:
  """Which of a set's features are the image and its label."""
  import tensorflow_datasets as tfds

  kinds = {name: type(feature) for name, feature in features.items()}
  pictures = [name for name, kind in kinds.items() if kind is tfds.features.Image]
  labels = [name for name, kind in kinds.items() if kind is tfds.features.ClassLabel]
  if not pictures:
    raise ValueError(f"the set has no image; its features are {sorted(kinds)}")
  image = "image" if "image" in pictures else pictures[0]
  label = "label" if "label" in labels else (labels or [""])[0]
  *fixed, channels = features[image].shape
  return _Fields(image, 1 if channels == 1 else 3, label, tuple(fixed))


def _decode(
  records, *, fields: _Fields, size: int, fit: str, images=True, labels=True
) -> dict[str, np.ndarray]:
  from PIL import Image

  columns = {}
  if images:
    fit = fit or pixels.default_fit(fields.fixed, size)
    mode = "L" if fields.channels == 1 else "RGB"
    pictures = np.empty((len(records), size, size, fields.channels), np.uint8)
    for row, record in zip(pictures, records, strict=True):
      with Image.open(io.BytesIO(record[fields.image])) as picture:
        row[:] = pixels.fit(picture.convert(mode), size, fit)
    columns["image"] = pictures
  if labels and fields.label:
    columns["label"] = np.array([r[fields.label] for r in records], np.int32)
  return columns


def find(name: str, data_dir) -> epath.Path | None:
  """The folder of a prepared set, its newest version, found without TFDS."""
  base, _, version = name.partition(":")
  folder = epath.Path(data_dir) / base
  if version:
    return (
      folder / version if (folder / version / "dataset_info.json").exists() else None
    )
  if not folder.exists():
    return None
  found = [
    path
    for path in folder.iterdir()
    if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    and (path / "dataset_info.json").exists()
  ]
  return max(
    found, key=lambda path: tuple(map(int, path.name.split("."))), default=None
  )


def _identity(folder) -> str:
  """Names a prepared set by its own account: version, sizes and shards of splits."""
  info = json.loads((epath.Path(folder) / "dataset_info.json").read_text())
  parts = {
    split["name"]: [split.get("numBytes"), split.get("shardLengths")]
    for split in info.get("splits", [])
  }
  sizes = read.fingerprint(splits=parts)[:16]
  config = [info["configName"]] if info.get("configName") else []
  return "/".join([info["name"], *config, f"{info['version']}@{sizes}"])


@functools.lru_cache(maxsize=4)
def open_prepared(name: str, data_dir):
  """The builder of a prepared set.

  Raises:
    FileNotFoundError: if it is not prepared; says what to do.
    ValueError: if there is no such set.
  """
  import tensorflow_datasets as tfds

  folder = find(name, data_dir)
  if folder is None:
    try:
      builder = tfds.builder(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
      raise ValueError(
        f"{data_dir} has no data set {name!r}, and TFDS knows none of that name"
      ) from None
    if not builder.is_prepared():
      raise FileNotFoundError(_what_it_takes(name, builder, data_dir))
  else:
    builder = tfds.builder_from_directory(str(folder))
  stored_as = builder.info.file_format
  if stored_as is None or stored_as.value not in ("array_record", "parquet"):
    kind = stored_as.value if stored_as else "an unknown format"
    raise ValueError(
      f"{builder.info.full_name} in {data_dir} is stored as {kind}, which cannot be"
      " read at random; prepare it as array_record in another folder: "
      + _command(name, "DATA_DIR", True)
    )
  return builder


def _what_it_takes(name: str, builder, data_dir) -> str:
  # TFDS encodes arrays by TensorFlow and passes encoded files on as they are; a set's
  # module that touches neither NumPy nor TensorFlow does the latter.
  code = inspect.getsource(sys.modules[type(builder).__module__])
  needs_tf = re.search(r"\b(np|tf|lazy_imports)\.", code) is not None
  has_tf = importlib.util.find_spec("tensorflow") is not None
  offline = read.offline_reason("https://storage.googleapis.com")
  takes = [
    "needs the tf extra, only for this"
    if needs_tf and not has_tf
    else "can be prepared with what is installed"
    if needs_tf
    else "can be prepared without TensorFlow",
    f"needs a download, and there is no network here ({offline}): prepare it elsewhere"
    " and copy the folder"
    if offline
    else "needs a download",
  ]
  return (
    f"{builder.info.full_name} is not prepared in {data_dir};"
    f" it {' and '.join(takes)}: " + _command(name, data_dir, needs_tf and not has_tf)
  )


def _command(name: str, data_dir, install: bool) -> str:
  first = "pip install -e '.[tf]' && " if install else ""
  call = f"tfds.builder('{name}', data_dir='{data_dir}')"
  prepare = ".download_and_prepare(file_format='array_record')"
  return f'{first}python -c "import tensorflow_datasets as tfds; {call}{prepare}"'
