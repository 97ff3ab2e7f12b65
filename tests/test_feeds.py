"""Feeds: one stream of batches, whatever reads it."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.data import feeds, modality, order
from mmgen_jax.data.examples import Column, Examples

N = 90


def make_examples(folder) -> Examples:
  """Memory-mapped images, captions shared by several examples, sound that some lack."""
  rng = np.random.default_rng(0)
  modalities = {
    "image": modality.image(4, 4, 3),
    "caption": modality.text(["red", "blue", "heart"], 3),
    "sound": modality.audio(2, 2, 8000),
  }
  np.save(folder / "image.npy", rng.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8))
  columns = {
    "image": Column(np.load(folder / "image.npy", mmap_mode="r")),
    "caption": Column(
      rng.integers(0, 5, (10, 3)).astype(np.int32),
      rows=rng.integers(0, 10, N).astype(np.int32),
    ),
    "sound": Column(
      rng.integers(0, 256, (N, 2, 2), dtype=np.uint8), present=rng.random(N) < 0.7
    ),
  }
  labels = {
    "shape": rng.integers(0, 3, N).astype(np.int32),
    "free": rng.integers(-5, 70000, N).astype(np.int32),
  }
  return Examples("made", "train", modalities, labels, {}, columns, "f")


@pytest.fixture
def examples(tmp_path):
  return make_examples(tmp_path)


def batches(feed, first_step, updates):
  inputs = feed.inputs(first_step, updates)
  per_update = [
    jax.tree.unflatten(jax.tree.structure(inputs), leaves)
    for leaves in zip(*jax.tree.leaves(inputs), strict=True)
  ]
  assert len(per_update) == updates
  fetch = jax.jit(feed.fetch)
  return [jax.tree.map(np.asarray, fetch(feed.data, one)) for one in per_update]


def assert_same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 90, 91, 250])
def test_every_epoch_visits_every_example_once(batch_size):
  epochs = 4
  steps = -(-epochs * N // batch_size)
  stream = np.concatenate(
    [order.batch_indices(3, s, N, batch_size) for s in range(steps)]
  )[: epochs * N].reshape(epochs, N)
  assert stream.dtype == np.int32
  np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(N), (epochs, 1)))
  assert len({tuple(epoch) for epoch in stream}) == epochs  # each in its own order


def test_batches_follow_from_seed_and_step_alone():
  forward = [order.batch_indices((5, 1), s, N, 32) for s in range(9)]
  backward = [order.batch_indices((5, 1), s, N, 32) for s in reversed(range(9))]
  np.testing.assert_array_equal(forward, backward[::-1])
  same = order.batch_indices((5, 0), 2, N, 32)
  np.testing.assert_array_equal(same, order.batch_indices(5, 2, N, 32))
  assert (same != order.batch_indices((5, 1), 2, N, 32)).any()
  assert (same != order.batch_indices(6, 2, N, 32)).any()


def test_order_is_the_same_for_ever():
  # Not a snapshot of taste: a run resumed under another NumPy must see these.
  assert order.batch_indices(0, 0, 10, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
  assert order.permutation((1, 2), 5).tolist() == [3, 1, 4, 2, 0]


@pytest.mark.parametrize("bad", [(0, -1, 10, 2), (0, 0, 0, 2), (0, 0, 10, 0)])
def test_impossible_batches_are_refused(bad):
  with pytest.raises(ValueError, match="no batch of"):
    order.batch_indices(*bad)


def test_missing_row_follows_from_seed_and_index_alone():
  names = ("image", "sound", "caption")
  mask = order.missing_mask(1, 1000, names, 0.5)
  fewer = order.missing_mask(1, 10, names[::-1], 0.5)
  for name in names:
    np.testing.assert_array_equal(mask[name][:10], fewer[name])
  other = order.missing_mask(2, 1000, names, 0.5)
  assert any((mask[n] != other[n]).any() for n in names)


def test_missing_rate_and_what_is_left():
  n = 20000
  names = ("a", "b", "c")
  mask = np.stack(list(order.missing_mask(0, n, names, 0.5).values()))
  assert mask.any(0).all()
  # P(kept) = 1/2 + P(all three would go) / 3
  np.testing.assert_allclose(mask.mean(1), 0.5 + 0.125 / 3, atol=0.015)
  alone = np.stack(list(order.missing_mask(0, n, names, 1.0).values()))
  assert (alone.sum(0) == 1).all()
  np.testing.assert_allclose(alone.mean(1), 1 / 3, atol=0.015)
  assert np.stack(list(order.missing_mask(0, n, names, 0.0).values())).all()


def test_missing_keeps_always_and_never_invents():
  present = {"a": np.arange(500) % 2 == 0, "b": np.ones(500, bool)}
  mask = order.missing_mask(0, 500, ("a", "b"), 0.9, present=present)
  assert not (mask["a"] & ~present["a"]).any()
  assert (mask["a"] | mask["b"]).all()
  ints = {name: has.astype(np.int8) for name, has in present.items()}
  again = order.missing_mask(0, 500, ("a", "b"), 0.9, present=ints)
  assert all((again[name] == mask[name]).all() for name in mask)
  mask = order.missing_mask(0, 500, ("a", "b"), 1.0, ("b",), present)
  assert mask["b"].all() and not mask["a"].any()
  with pytest.raises(ValueError, match="has none of the modalities"):
    order.missing_mask(0, 500, ("a",), 0.5, present=present)
  with pytest.raises(ValueError, match="probability"):
    order.missing_mask(0, 5, ("a",), 1.5)
  with pytest.raises(ValueError, match="no modality"):
    order.missing_mask(0, 5, ("a",), 0.5, always=("z",))


def test_resident_batch_is_the_stored_rows(examples):
  feed = feeds.resident_feed(examples, seed=3, batch_size=16)
  (batch,) = batches(feed, 4, 1)
  index = order.batch_indices(3, 4, N, 16)
  rows = examples.rows(index)
  np.testing.assert_array_equal(batch["index"], index)
  np.testing.assert_allclose(batch["image"], rows["image"] / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(batch["caption"], rows["caption"])
  for part in ("mask", "labels"):
    assert_same(batch[part], rows[part])
  assert batch["image"].dtype == np.float32 and batch["caption"].dtype == np.int32
  sizes = jax.tree.map(lambda x: x.dtype.name, feed.data)
  assert sizes["columns"]["caption"] == {"values": "uint8", "rows": "uint8"}
  assert sizes["labels"] == {"shape": "uint8", "free": "int32"}


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_streamed_is_resident_bit_for_bit(examples, workers):
  options = dict(seed=(3, 1), batch_size=24, missing_rate=0.5)
  resident = feeds.resident_feed(examples, **options)
  streamed = feeds.streamed_feed(examples, workers=workers, **options)

  def check(first_step, updates):
    expected = batches(resident, first_step, updates)
    assert_same(batches(streamed, first_step, updates), expected)

  try:
    check(5, 3)
    running = multiprocessing.active_children()
    assert len(running) == workers
    for worker in running:  # what Ctrl-C or a cluster sends to the whole group
      os.kill(worker.pid, signal.SIGINT)
      os.kill(worker.pid, signal.SIGTERM)
    check(8, 20)
    if workers < 3:  # not again: every jump starts the workers anew
      check(2, 2)
  finally:
    streamed.close()
    streamed.close()
  assert not multiprocessing.active_children()


@pytest.mark.parametrize("make", [feeds.resident_feed, feeds.streamed_feed])
def test_one_process_sees_what_two_see_together(examples, make):
  options = dict(seed=0, batch_size=20, missing_rate=0.3)
  whole = make(examples, **options)
  parts = [
    make(examples, process_index=p, process_count=2, **options) for p in range(2)
  ]
  got = [batches(feed, 3, 2) for feed in parts]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *got)
  assert_same(joined, batches(whole, 3, 2))
  for feed in (whole, *parts):
    feed.close()
  with pytest.raises(ValueError, match="not divisible by 3 processes"):
    make(examples, process_count=3, **options)


def test_second_attempt_reorders_but_misses_the_same(examples):
  masks = [
    feeds.resident_feed(examples, seed=s, batch_size=8, missing_rate=0.5).data["mask"]
    for s in (4, (4, 0), (4, 1))
  ]
  assert_same(masks[0], masks[1])
  assert_same(masks[0], masks[2])


def test_gathers_from_replicated_data_need_no_communication(examples):
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = jax.make_mesh(
    (len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  feed = feeds.resident_feed(examples, seed=0, batch_size=16, missing_rate=0.5)
  whole = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec("data"))
  data = jax.device_put(feed.data, whole)
  index = jax.device_put({"index": feed.inputs(0, 1)["index"][0]}, split)
  compiled = jax.jit(feed.fetch, out_shardings=split).lower(data, index).compile()
  text = compiled.as_text()
  for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert word not in text
  assert_same(jax.tree.map(np.asarray, compiled(data, index)), batches(feed, 0, 1)[0])


class Undecoded:
  """Values that are decoded on access; `broken` raises, like a file that went bad."""

  dtype = np.dtype(np.uint8)
  shape = (N, 4, 4, 1)

  def __init__(self, broken=-1):
    self.broken = broken

  def __len__(self):
    return N

  def __getitem__(self, indices):
    if self.broken in indices:
      raise OSError(f"record {self.broken} cannot be decoded")
    return np.broadcast_to(
      indices[:, None, None, None], (len(indices), 4, 4, 1)
    ).astype(np.uint8)


def undecoded(broken=-1):
  modalities = {"image": modality.image(4, 4, 1)}
  columns = {"image": Column(Undecoded(broken))}
  return Examples("lazy", "train", modalities, {}, {}, columns, "f")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_readers_surface(workers):
  feed = feeds.streamed_feed(undecoded(7), seed=0, batch_size=N, workers=workers)
  for _ in range(1 if workers else 2):  # and it may be tried again
    with pytest.raises(OSError, match="record 7 cannot be decoded"):
      feed.inputs(0, 1)
  feed.close()


def test_values_decoded_on_access_are_streamed_only():
  feed = feeds.streamed_feed(undecoded(), seed=0, batch_size=8)
  (batch,) = batches(feed, 0, 1)
  stored = jnp.round((batch["image"][:, 0, 0, 0] + 1) * 127.5)
  np.testing.assert_array_equal(stored, batch["index"])
  feed.close()
  with pytest.raises(ValueError, match='feed="streamed"'):
    feeds.resident_feed(undecoded(), seed=0, batch_size=8)


KILLED = """
import multiprocessing, os, pathlib, signal, sys
from mmgen_jax.data import feeds
from test_feeds import make_examples
if __name__ == "__main__":
  feed = feeds.streamed_feed(
    make_examples(pathlib.Path(sys.argv[1])), seed=0, batch_size=8, workers=1
  )
  feed.inputs(0, 1)
  worker = multiprocessing.active_children()[0].pid
  pathlib.Path(sys.argv[1], "worker").write_text(str(worker))
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_run_end(tmp_path):
  (tmp_path / "killed.py").write_text(KILLED)
  path = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
  done = subprocess.run(
    [sys.executable, tmp_path / "killed.py", tmp_path],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
  )
  assert done.returncode == -signal.SIGKILL
  worker = int((tmp_path / "worker").read_text())
  for _ in range(100):
    try:
      os.kill(worker, 0)
    except ProcessLookupError:
      return
    time.sleep(0.1)
  os.kill(worker, signal.SIGKILL)
  pytest.fail("a worker outlived its run")


def test_memory_maps_are_pickled_by_path(examples, tmp_path):
  column = examples.columns["image"]
  pickled = pickle.dumps(column)
  assert len(pickled) < 500
  again = pickle.loads(pickled)
  assert isinstance(again.values, np.memmap)
  np.testing.assert_array_equal(again.values, column.values)
  path = tmp_path / "columns_first.npy"
  np.save(path, np.asfortranarray(np.arange(12).reshape(3, 4)))
  other = Column(np.load(path, mmap_mode="r"))
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)).values, other.values)
  part = Column(column.values[10:20])  # a part of a map is not the map
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).values, part.values)


def test_examples_are_checked_and_selected(examples):
  assert len(examples) == N
  assert set(examples.select(["image", "caption"]).rows([0])) == {
    "image",
    "caption",
    "mask",
    "labels",
    "index",
  }
  with pytest.raises(ValueError, match="no modality"):
    examples.select(["picture"])
  with pytest.raises(ValueError, match="lengths differ"):
    Examples(
      "bad",
      "train",
      examples.modalities,
      {"x": np.zeros(3, np.int32)},
      {},
      examples.columns,
      "f",
    )
  wrong = {**examples.columns, "image": Column(np.zeros((N, 5, 5, 3), np.uint8))}
  with pytest.raises(ValueError, match="declared was"):
    Examples("bad", "train", examples.modalities, {}, {}, wrong, "f")
  image = examples.columns["image"]
  for change, message in [
    ({"present": np.ones(N, int)}, "image.present must be bool, got int64"),
    ({"rows": np.arange(N) + 1}, f"rows must be from 0 to {N - 1}, got 1 to {N}"),
    ({"rows": np.arange(N) * 1.0}, "rows must be integers, got float64"),
  ]:
    bad = {**examples.columns, "image": dataclasses.replace(image, **change)}
    with pytest.raises(ValueError, match=message):
      Examples("bad", "train", examples.modalities, {}, {}, bad, "f")


def test_the_first_examples_are_the_same_ones_alone(examples):
  few = examples.first(5)
  assert len(few) == 5 and few.fingerprint != examples.fingerprint
  assert_same(few.rows([0, 4]), examples.rows([0, 4]))
  assert all(len(x) == 5 for x in (*few.present.values(), *few.labels.values()))
  with pytest.raises(ValueError, match=f"{N} examples, not {N + 1}"):
    examples.first(N + 1)
