"""Files of `torch.save`, written by hand: tensors are read, everything else refused."""

import struct
import zipfile

import numpy as np
import pytest

from mmgen_jax import torch_file

text = lambda s: b"X" + struct.pack("<I", len(s.encode())) + s.encode()
number = lambda n: b"J" + struct.pack("<i", n)
numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"
ORDERED = b"ccollections\nOrderedDict\n)R"
VALUES = np.arange(12, dtype=np.float32)


def storage(kind="Float", key="0", size=12, view=b""):
  of = b"ctorch\n" + kind.encode() + b"Storage\n"
  about = text("storage") + of + text(key) + text("cpu") + number(size)
  return b"(" + about + view + b"tQ"


def tensor(shape, strides, offset=0, **of):
  args = storage(**of) + number(offset) + numbers(shape) + numbers(strides)
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + args + b"\x89" + ORDERED + b"tR"


def program(**items):
  body = b"".join(text(k) + v for k, v in items.items())
  return b"\x80\x02" + ORDERED + b"(" + body + b"u."


def write_zip(path, code, order=b"little", **content):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", code)
    archive.writestr("model/byteorder", order)
    for key, value in (content or {"0": VALUES.tobytes()}).items():
      archive.writestr(f"model/data/{key}", value)
  return path


def write_rows(path, code, little=b"\x88", values=VALUES):
  magic = b"\x80\x02\x8a\x0a" + torch_file.MAGIC.to_bytes(10, "little") + b"."
  about = b"\x80\x02}(" + text("little_endian") + little + b"u."
  parts = [magic, b"\x80\x02M\xe9\x03.", about, code, b"\x80\x02](" + text("0") + b"e."]
  path.write_bytes(b"".join(parts) + struct.pack("<q", len(values)) + values.tobytes())
  return path


@pytest.mark.parametrize("write", [write_zip, write_rows])
def test_tensors_come_back_with_shape_and_strides(tmp_path, write):
  view = b"N" if write is write_rows else b""  # the older form has one entry more
  of = {"view": view}
  part = tensor((2, 3), (1, 4), offset=1, **of)
  code = program(
    whole=tensor((3, 4), (4, 1), **of),
    part=part,
    inner=b"}(" + text("n") + number(-7) + text("t") + tensor((), (), 5, **of) + b"u",
    empty=tensor((0, 3), (3, 1), **of),
    mixed=b"](" + b"N\x88" + text("é") + b"e",
  )
  got = torch_file.load(write(tmp_path / "x.pth", code))
  grid = VALUES.reshape(3, 4)
  np.testing.assert_array_equal(got["whole"], grid)
  np.testing.assert_array_equal(got["part"], grid[:, 1:3].T)
  assert got["inner"]["n"] == -7 and got["inner"]["t"] == 5.0
  assert got["empty"].shape == (0, 3) and got["mixed"] == [None, True, "é"]


@pytest.mark.parametrize("kind, dtype", [("Half", "f2"), ("Long", "i8"), ("Bool", "?")])
def test_every_type_is_read_as_it_is(tmp_path, kind, dtype):
  values = np.array([1, 0, 1, 1]).astype(dtype)
  code = program(x=tensor((4,), (1,), kind=kind, size=4))
  path = write_zip(tmp_path / "x", code, **{"0": values.tobytes()})
  got = torch_file.load(path)["x"]
  assert got.dtype == np.dtype(dtype)
  np.testing.assert_array_equal(got, values)


MALICIOUS = {
  "a shell": (b"cposix\nsystem\n(" + text("touch PWNED") + b"tR", "posix.system"),
  "eval": (b"cbuiltins\neval\n(" + text("1") + b"tR", "builtins.eval"),
  "a name at run time": (text("os") + text("system") + b"\x93", "os.system"),
  "torch's own loader": (
    b"ctorch.storage\n_load_from_bytes\n(C\x01.tR",
    "torch.storage._load_from_bytes",
  ),
  "a new object": (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
  "an old instance": (b"(iposix\nsystem\n", "INST"),
  "a storage called": (b"ctorch\nFloatStorage\n)R", "calls FloatStorage"),
  "state of a string": (text("x") + b"}b", "sets attributes of a str"),
  "another reference": (text("os") + b"Q", "a storage is a str"),
  "too large": (tensor((13,), (1,)), "does not fit"),
  "beyond the end": (tensor((2, 2), (11, 1), offset=1), "does not fit"),
  "a bomb": (tensor((1 << 30,), (0,)), "does not fit"),
  "backwards": (tensor((2,), (-1,), offset=3), "no tensor"),
  "a loose name": (b"ctorch\nFloatStorage\n", "stands outside|belongs to no tensor"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_anything_but_tensors_is_refused(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, message = MALICIOUS[name]
  for write in (write_zip, write_rows):
    path = write(tmp_path / "evil.pth", program(x=code))
    with pytest.raises(ValueError, match=f"evil.pth.*{message}"):
      torch_file.load(path)
  assert not (tmp_path / "PWNED").exists()


def test_damaged_files_are_refused(tmp_path):
  good = program(x=tensor((12,), (1,), view=b"N"))
  path = write_rows(tmp_path / "x.pth", good)
  whole = path.read_bytes()
  for cut in range(0, len(whole), 7):
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="x.pth"):
      torch_file.load(path)
  with pytest.raises(ValueError, match="little-endian"):
    torch_file.load(write_rows(tmp_path / "big", good, little=b"\x89"))
  with pytest.raises(ValueError, match="byte order"):
    torch_file.load(write_zip(tmp_path / "y", good, order=b"big"))
  with pytest.raises(ValueError, match="has 11 values, declared were 12"):
    torch_file.load(write_rows(tmp_path / "z", good, values=VALUES[:11]))
  short = write_zip(tmp_path / "w", program(x=tensor((12,), (1,))), **{"0": b"1234"})
  with pytest.raises(ValueError, match="has 1 values, declared were 12"):
    torch_file.load(short)


def test_what_torch_writes_is_read(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  x = torch.randn(3, 4, 5)
  saved = {"x": x, "t": x.transpose(0, 2)[1:], "b": x.bfloat16(), "n": [1, 2.5, None]}
  for new in (True, False):
    torch.save(saved, tmp_path / "x", _use_new_zipfile_serialization=new)
    got = torch_file.load(tmp_path / "x")
    for name in ("x", "t"):
      np.testing.assert_array_equal(got[name], saved[name].numpy())
    np.testing.assert_array_equal(
      got["b"].astype(np.float32), saved["b"].float().numpy()
    )
    assert got["n"] == saved["n"]
  linear = torch.nn.Linear(2, 3)
  torch.save(linear.state_dict(), tmp_path / "y")
  got = torch_file.load(tmp_path / "y")
  np.testing.assert_array_equal(got["weight"], linear.weight.detach().numpy())
  torch.save(linear, tmp_path / "z")
  with pytest.raises(ValueError, match="only tensors are read"):
    torch_file.load(tmp_path / "z")
