"""Files of arrays: as the format says, every bit kept, damage refused."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mmgen_jax import checkpoint, safetensors

ARRAYS = {
  "a/kernel": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32),
  "a/half": np.arange(5).astype(ml_dtypes.bfloat16),
  "odd": np.array([-0.0, np.nan, np.inf, 1e-45], np.float32),
  "scalar": np.array(3, np.int32),
  "none": np.zeros((0, 3), np.float32),
  "flags": np.array([True, False, True]),
  "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
}


def test_a_file_keeps_every_bit(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.save(path, ARRAYS, {"made": "here"})
  got, metadata = safetensors.load(path)
  assert metadata == {"made": "here"}
  assert checkpoint.digest(got) == checkpoint.digest(ARRAYS)
  assert all(x.ctypes.data % x.dtype.itemsize == 0 for x in got.values())
  assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_file_is_as_the_format_says(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.save(path, {"w": ARRAYS["a/kernel"]})
  text = path.read_bytes()
  (length,) = struct.unpack("<Q", text[:8])
  header = json.loads(text[8 : 8 + length])
  assert length % 8 == 0
  assert header["w"] == {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
  assert text[8 + length :] == ARRAYS["a/kernel"].tobytes()


def write(path, header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


def test_a_file_written_by_hand_is_read(tmp_path):
  header = {
    "late": {"dtype": "F16", "shape": [2], "data_offsets": [3, 7]},
    "early": {"dtype": "U8", "shape": [3, 1], "data_offsets": [0, 3]},
  }
  path = write(tmp_path / "x", header, bytes([1, 2, 3]) + np.float16([4, 5]).tobytes())
  got, metadata = safetensors.load(path)
  np.testing.assert_array_equal(got["early"], [[1], [2], [3]])
  np.testing.assert_array_equal(got["late"], np.float16([4, 5]))
  assert metadata == {}


ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
  "header, data, message",
  [
    ({"w": ENTRY}, b"1", "damaged"),
    ({"w": ENTRY}, b"123", "1 bytes that belong to no array"),
    ({"w": ENTRY, "v": ENTRY}, b"12", "not where it should be"),
    ({"w": ENTRY | {"shape": [3]}}, b"12", "has 2 bytes"),
    ({"w": ENTRY | {"shape": [-1, -2]}}, b"12", "has 2 bytes"),
    ({"w": ENTRY | {"dtype": "Q9"}}, b"12", "Q9"),
    ({"w": {"dtype": "U8"}}, b"12", "the header says"),
    ({"w": ENTRY | {"data_offsets": [2]}}, b"12", "the header says"),
    (b"[1]", b"", "no JSON object"),
    (b"\xff{", b"", "no JSON"),
  ],
)
def test_a_damaged_file_is_refused(tmp_path, header, data, message):
  with pytest.raises(ValueError, match=message):
    safetensors.load(write(tmp_path / "x", header, data))


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.save(path, ARRAYS)
  whole = path.read_bytes()
  for size in {0, 1, 7, 8, 9, 100, len(whole) - 9, len(whole) - 1}:
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors"):
      safetensors.load(path)
