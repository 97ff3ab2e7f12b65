"""Checkpoints: bit-exact, verified before use, never lost to a kill or a full disk."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mmgen_jax import checkpoint, manifest
from mmgen_jax.state import new_state

_forbid_pickle = threading.Event()


def _audit(event, args):
  if event == "pickle.find_class" and _forbid_pickle.is_set():
    raise AssertionError(f"a pickle is being loaded: {args}")


sys.addaudithook(_audit)


def state(seed=0, size=300):
  """A state with every kind of leaf: odd dtypes, scalars, nothing at all, odd bits."""
  rng = np.random.default_rng(seed)
  odd = np.array([-0.0, np.nan, np.inf, 1e-45], np.float32)
  odd.view(np.uint32)[1] = 0x7FC01234  # a NaN with a payload
  params = {
    "net": {
      "kernel": rng.standard_normal((size, 50)).astype(np.float32),
      "half": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
      "odd": odd,
      "none": np.zeros((0, 3), np.float32),
      "flags": np.array([True, False]),
      "bytes": rng.integers(0, 256, 5, np.uint8),
    }
  }
  moments = ({"mu": params["net"]["kernel"] * 0.1}, (), {"count": np.int32(seed)})
  return new_state(params, {"net": moments}, {"net": params["net"]})


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def saved(directory, steps=(1, 2), **kwargs):
  for step in steps:
    checkpoint.save(directory, state(step), step, **kwargs)
  return directory


def payload(folder):
  return sorted(f for f in folder.rglob("*") if f.is_file())


def flip(path, rng):
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def truncate(path, rng):
  os.truncate(path, rng.randrange(path.stat().st_size))


def delete(path, rng):
  path.unlink()


def test_every_bit_comes_back(tmp_path):
  written = jax.tree.map(jnp.asarray, state())
  checkpoint.save(tmp_path, written, 7)
  _forbid_pickle.set()
  try:
    restored, step = checkpoint.restore_latest(tmp_path, abstract(written))
  finally:
    _forbid_pickle.clear()
  assert step == 7
  assert jax.tree.structure(restored) == jax.tree.structure(written)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(written), strict=True):
    assert type(a) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == np.asarray(b).tobytes()
  assert checkpoint.digest(restored) == checkpoint.digest(written)
  assert manifest.read(tmp_path / "7")["state_sha256"] == checkpoint.digest(written)


def test_digest_sees_bits_names_dtypes_and_shapes():
  base = {"a": np.array([0.0, 1.0], np.float32), "b": np.zeros(2, np.int32)}
  others = [
    {**base, "a": np.array([-0.0, 1.0], np.float32)},
    {"a": base["a"], "c": base["b"]},
    {**base, "b": np.zeros(2, np.uint32)},
    {**base, "b": np.zeros((1, 2), np.int32)},
    {"a": base["b"], "b": base["a"]},
  ]
  digests = {checkpoint.digest(x) for x in (base, *others)}
  assert len(digests) == 1 + len(others)
  assert checkpoint.digest(dict(reversed(base.items()))) == checkpoint.digest(base)
  assert checkpoint.digest(jax.tree.map(jnp.asarray, base)) == checkpoint.digest(base)


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_in_any_file_is_caught_and_the_older_step_used(tmp_path, damage, caplog):
  pristine = saved(tmp_path / "pristine")
  rng, like = random.Random(0), abstract(state())
  for i, file in enumerate(payload(pristine / "2")):
    directory = tmp_path / str(i)
    shutil.copytree(pristine, directory)
    victim = directory / "2" / file.relative_to(pristine / "2")
    damage(victim, rng)
    restored, step = checkpoint.restore_latest(directory, like)
    assert step == 1 and checkpoint.digest(restored) == checkpoint.digest(state(1))
    aside = [p for p in directory.iterdir() if p.name.startswith("2.damaged-")]
    assert len(aside) == 1 and not (directory / "2").exists()
    assert victim.name in caplog.records[-1].getMessage()
    assert len(payload(aside[0])) == len(payload(pristine / "2")) - (damage is delete)


@pytest.mark.parametrize(
  ("error", "where"),
  [
    (OSError(errno.ESTALE, "Stale file handle"), "manifest"),
    (OSError(errno.EIO, "Input/output error"), "file"),
    (MemoryError(), "file"),
    (OSError(errno.EIO, "Input/output error"), "orbax"),
    (MemoryError(), "orbax"),
    (ValueError("UNKNOWN: x [os_error_code='5']"), "orbax"),  # as tensorstore tells it
  ],
)
def test_what_may_pass_is_no_damage(tmp_path, monkeypatch, error, where):
  saved(tmp_path)

  def fail(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch:
    if where == "manifest":
      patch.setattr(type(tmp_path), "read_bytes", fail)
    elif where == "file":
      patch.setattr(manifest, "_sha256_of_file", fail)
    else:
      orbax = types.SimpleNamespace(restore=fail)
      patch.setattr(checkpoint, "_checkpointer", lambda: orbax)
    kind = MemoryError if isinstance(error, MemoryError) else OSError
    with pytest.raises(kind, match=f"{tmp_path}/2.* start again"):
      checkpoint.restore_latest(tmp_path, abstract(state()))
  assert checkpoint.steps(tmp_path) == [1, 2]
  assert checkpoint.restore_latest(tmp_path, abstract(state()))[1] == 2


def test_content_that_orbax_cannot_parse_is_damage(tmp_path, monkeypatch):
  saved(tmp_path)
  for error in (ValueError("odd"), ValueError("x [os_error_code='2']"), KeyError("a")):

    def fail(*args, error=error, **kwargs):
      raise error

    orbax = types.SimpleNamespace(restore=fail)
    monkeypatch.setattr(checkpoint, "_checkpointer", lambda orbax=orbax: orbax)
    like = abstract(state())
    assert checkpoint.restore_latest(tmp_path, like, tidy=False) is None


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x")])
def test_the_others_are_told_what_kept_process_0_from_reading(monkeypatch, error):
  def fail(*args):
    raise error

  sent = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(checkpoint, "_restore_here", fail)
  monkeypatch.setattr(checkpoint, "_broadcast", lambda data: sent.append(data) or data)
  with pytest.raises(type(error)):
    checkpoint.restore_latest("/x", {})
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(checkpoint, "_broadcast", lambda data: sent[0])
  bad_input = isinstance(error, ValueError)
  with pytest.raises(ValueError if bad_input else RuntimeError, match="x"):
    checkpoint.restore_latest("/x", {})


def test_nothing_sound_is_none(tmp_path):
  assert checkpoint.restore_latest(tmp_path / "absent", abstract(state())) is None
  saved(tmp_path, steps=(1,))
  flip(tmp_path / "1" / manifest.NAME, random.Random(1))
  assert checkpoint.restore_latest(tmp_path, abstract(state())) is None
  with pytest.raises(FileNotFoundError, match="train first"):
    checkpoint.load(tmp_path, abstract(state()))


def test_a_reader_touches_nothing(tmp_path):
  saved(tmp_path)
  flip(payload(tmp_path / "2")[0], random.Random(2))
  (tmp_path / "3").mkdir()
  before = sorted(tmp_path.rglob("*"))
  assert checkpoint.load(tmp_path, abstract(state()))[1] == 1
  assert sorted(tmp_path.rglob("*")) == before


def test_what_a_kill_leaves_does_not_count(tmp_path):
  saved(tmp_path)
  unfinished, committed, doomed = (tmp_path / name for name in ("3", "4", "1.deleting"))
  shutil.copytree(tmp_path / "2", unfinished)  # killed before orbax's commit
  (unfinished / manifest.NAME).unlink()
  (unfinished / "commit_success.txt").unlink()
  shutil.copytree(tmp_path / "2", committed)  # killed between commit and manifest
  (committed / manifest.NAME).unlink()
  doomed.mkdir()  # killed while an old step was being removed
  (doomed / "file").touch()
  assert checkpoint.restore_latest(tmp_path, abstract(state()))[1] == 2
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ["1", "2", "4.damaged-no-manifest"]


def test_a_step_under_another_name_is_not_believed(tmp_path):
  saved(tmp_path, steps=(1,))
  shutil.copytree(tmp_path / "1", tmp_path / "9")
  assert checkpoint.restore_latest(tmp_path, abstract(state()))[1] == 1
  assert (tmp_path / "9.damaged-name").exists()


def test_old_steps_go_only_after_the_new_one_is_sound(tmp_path, monkeypatch):
  saved(tmp_path, steps=(1, 2, 3), keep=2)
  assert checkpoint.steps(tmp_path) == [2, 3]

  def killed(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(manifest, "write", killed)
  with pytest.raises(
    checkpoint.SaveError, match="step 4 .*No space left.* step .* is 3"
  ):
    checkpoint.save(tmp_path, state(4), 4, keep=1)
  assert checkpoint.steps(tmp_path) == [2, 3]
  assert checkpoint.restore_latest(tmp_path, abstract(state()))[1] == 3


def change(tree, path, leaf):
  net = dict(tree.params["net"])
  net.pop(path) if leaf is None else net.update({path: leaf})
  return tree.replace(params={"net": net})


@pytest.mark.parametrize(
  ("path", "leaf", "words"),
  [
    (
      "kernel",
      np.zeros((300, 51), np.float32),
      r"kernel: float32\[300,50\] .*\[300,51",
    ),
    ("half", np.zeros(7, np.float32), r"half: bfloat16\[7\] saved.*float32\[7\]"),
    ("kernel", None, r"params/net/kernel: float32\[300,50\] saved, this run has none"),
    ("new", np.zeros(2, np.int8), r"params/net/new: not saved, this run has int8\[2\]"),
  ],
)
def test_another_shape_or_dtype_is_told_not_cast(tmp_path, path, leaf, words):
  saved(tmp_path, steps=(1,))
  like = abstract(change(state(), path, leaf))
  with pytest.raises(ValueError, match=words):
    checkpoint.restore_latest(tmp_path, like)
  assert checkpoint.steps(tmp_path) == [1]  # a config's error is no damage


def test_a_later_format_is_told_not_set_aside(tmp_path, monkeypatch):
  monkeypatch.setattr(manifest, "_FORMAT", 2)
  saved(tmp_path, steps=(1,))
  monkeypatch.undo()
  with pytest.raises(ValueError, match="has format 2; this version reads 1"):
    checkpoint.restore_latest(tmp_path, abstract(state()))
  assert checkpoint.steps(tmp_path) == [1]


def test_a_save_holds_the_state_as_it_was(tmp_path):
  live = jax.tree.map(jnp.asarray, state())
  expected = checkpoint.digest(live)
  saver = checkpoint.open_saver(tmp_path)
  saver.save(live, 5)
  donate = jax.jit(lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0)
  jax.block_until_ready(donate(live))
  saver.close()
  restored, _ = checkpoint.restore_latest(tmp_path, abstract(state()))
  assert checkpoint.digest(restored) == expected


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 3 MB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting a small disk needs root")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_at_once(small_disk):
  saver = checkpoint.open_saver(small_disk, keep=2)
  saver.save(state(1), 1)
  saver.wait()
  saver.save(state(2, size=20_000), 2)  # 4 MB of noise
  with pytest.raises(checkpoint.SaveError) as error:
    for _ in range(1000):
      saver.poll()
      threading.Event().wait(0.02)
  message = str(error.value)
  assert "step 2" in message and "No space left" in message and "\n" not in message
  assert message.endswith("the newest step there is 1")
  saver.close()
  assert checkpoint.restore_latest(small_disk, abstract(state()))[1] == 1
  checkpoint.save(small_disk, state(3), 3)  # its space was given back
  assert checkpoint.steps(small_disk) == [1, 3]


def test_a_bucket_must_be_mounted():
  with pytest.raises(ValueError, match="mount the bucket"):
    checkpoint.open_saver("gs://bucket/run")


def test_metadata_comes_back(tmp_path):
  saved(tmp_path, steps=(1,), metadata={"config_fingerprint": "abc"})
  kept = manifest.read(tmp_path / "1")
  assert kept["metadata"] == {"config_fingerprint": "abc"} and kept["step"] == 1
