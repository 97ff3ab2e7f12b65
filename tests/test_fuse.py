"""Merging checkpoints and files: what goes in, what comes out, and the record of it."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from mmgen_jax import checkpoint, fuse, manifest, safetensors
from mmgen_jax.fusion import pages, task_vectors, weight
from mmgen_jax.state import new_state

CONFIG = '{"family": "vae", "seed": 1}'


def state(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  net = lambda: {"net": {"encoder": {"w": draw(5, 3)}, "out": {"b": draw(3)}}}
  return new_state(net(), {"net": ({"mu": draw(18)}, {"count": np.int32(seed)})}, net())


def workdir(folder, seed, steps=(10,)):
  for i, step in enumerate(steps):
    checkpoint.save(folder / "checkpoints", state(seed + 100 * i), step)
  (folder / "config.json").write_text(CONFIG)
  return str(folder)


@pytest.fixture
def runs(tmp_path):
  return [workdir(tmp_path / f"run{i}", i) for i in range(3)]


def merged_part(s):
  named = manifest.leaves(s)
  return {k: x for k, x in named.items() if k.startswith(("params/", "ema/"))}


def restored(folder):
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))
  return checkpoint.load(folder / "checkpoints", like)


def assert_equal(got, want):
  assert sorted(got) == sorted(want)
  for name, x in got.items():
    np.testing.assert_array_equal(x, np.asarray(want[name]))
    assert x.dtype == want[name].dtype


# Workdirs.


def test_a_soup_of_workdirs_is_a_workdir(runs, tmp_path):
  out = tmp_path / "soup"
  record = fuse.fuse(runs, out)
  got, step = restored(out)
  states = [state(i) for i in range(3)]
  for part in ("params", "ema"):
    trees = [getattr(s, part) for s in states]
    for x, *ys in zip(*map(jax.tree.leaves, (getattr(got, part), *trees)), strict=True):
      np.testing.assert_allclose(x, np.mean(ys, 0), rtol=1e-5, atol=1e-6)
  rest = ("step", "opt_state", "extra")
  for x, y in zip(
    *(jax.tree.leaves([getattr(s, k) for k in rest]) for s in (got, states[0])),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)
  assert step == 10 and (out / "config.json").read_text() == CONFIG
  assert record["sha256"] == manifest.digest(merged_part(got))
  assert [x["sha256"] for x in record["ingredients"]] == [
    manifest.digest(merged_part(s)) for s in states
  ]
  assert [(x["source"], x["step"]) for x in record["ingredients"]] == [
    (run, 10) for run in runs
  ]
  kept = manifest.read(out / "checkpoints" / "10")["metadata"]["fusion"]
  assert json.loads((out / "fusion.json").read_text()) == record == kept


def test_steps_of_one_run_can_be_averaged(tmp_path):
  run = workdir(tmp_path / "run", 0, steps=(10, 20))
  record = fuse.fuse([f"{run}:10", run], tmp_path / "swa")
  assert [x["step"] for x in record["ingredients"]] == [10, 20]
  got, step = restored(tmp_path / "swa")
  trees = [s.params for s in (state(0), state(100), got)]
  for x, y, z in zip(*map(jax.tree.leaves, trees), strict=True):
    np.testing.assert_allclose(z, (x + y) / 2, rtol=1e-5, atol=1e-6)
  assert step == 10


def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path):
  run = workdir(tmp_path / "run", 0, steps=(10, 20))
  folder = tmp_path / "run" / "checkpoints" / "20"
  file = max(
    (f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
  )
  file.write_bytes(file.read_bytes()[:-1])
  assert fuse.load(run).step == 10
  with pytest.raises(ValueError, match="step 20 is damaged"):
    fuse.load(f"{run}:20")
  assert folder.exists()  # a reader touches nothing


@pytest.mark.parametrize(
  "method, options, want",
  [
    ("average", {"weights": [1, 3]}, lambda a, b, c: weight.average([a, b], [1, 3])),
    ("linear", {"t": 0.2}, lambda a, b, c: weight.interpolate(a, b, 0.2)),
    ("slerp", {}, lambda a, b, c: weight.slerp(a, b, 0.5)),
    (
      "linear",
      {"t": {"encoder": 1.0, "": 0.0}},
      lambda a, b, c: {k: (b if "encoder" in k else a)[k] for k in a},
    ),
    (
      "task_arithmetic",
      {"scales": [0.5, -1.0]},
      lambda a, b, c: task_vectors.task_arithmetic(c, [a, b], [0.5, -1.0]),
    ),
    ("ties", {"keep": 0.4}, lambda a, b, c: task_vectors.ties(c, [a, b], keep=0.4)),
    ("dare", {"drop": 0.0}, lambda a, b, c: task_vectors.task_arithmetic(c, [a, b])),
  ],
)
def test_methods_are_those_of_the_library(runs, tmp_path, method, options, want):
  based = method in ("task_arithmetic", "ties", "dare")
  out = tmp_path / "out.safetensors"
  base = runs[2] if based else None
  record = fuse.fuse(runs[:2], out, method=method, base=base, **options)
  arrays, metadata = safetensors.load(out)
  assert_equal(arrays, want(*(merged_part(state(i)) for i in range(3))))
  assert json.loads(metadata["fusion"]) == record
  assert record["options"] == options and bool(record["base"]) == based


def test_a_greedy_soup_notes_every_candidate(runs, tmp_path):
  score = lambda params: -float(np.abs(params["ema/net/out/b"]).sum())
  out = tmp_path / "out"
  record = fuse.fuse(runs, out, method="greedy_soup", score=score)
  candidates = record["candidates"]
  assert sorted(c["index"] for c in candidates) == [0, 1, 2]
  assert candidates[0]["before"] is None and candidates[0]["added"]
  text = (out / "fusion.json").read_text()
  json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# Files.


def test_files_and_workdirs_go_together(runs, tmp_path):
  a = tmp_path / "a.safetensors"
  fuse.fuse(runs[:1], a)
  assert_equal(safetensors.load(a)[0], merged_part(state(0)))
  fuse.fuse([runs[1], str(a)], tmp_path / "b")  # the first gives the optimizer's state
  got = merged_part(restored(tmp_path / "b")[0])
  want = weight.average([merged_part(state(i)) for i in (1, 0)])
  assert_equal(got, want)


# Refusals.


def test_what_does_not_fit_is_refused_before_anything_is_written(runs, tmp_path):
  other = tmp_path / "other.safetensors"
  safetensors.save(other, {"params/net/out/b": np.zeros(4, np.float32)})
  out = tmp_path / "out"
  for sources, options, message in [
    ([], {}, "empty"),
    ([str(tmp_path / "nowhere")], {}, "no workdir or .safetensors file"),
    ([f"{runs[0]}:7"], {}, r"no checkpoint of step 7; it has \[10\]"),
    ([runs[0], str(other)], {}, "ingredient 0 has '.*', ingredient 1 has not"),
    ([str(other)], {}, "is no workdir"),
    (runs, {"method": "linear"}, "two ingredients, got 3"),
    (runs, {"method": "last"}, "last is of one ingredient, got 3"),
    (runs, {"method": "mean"}, "method must be one of"),
    (runs, {"t": 0.5}, "average has no option 't'; options: "),
    (runs, {"method": "greedy_soup"}, "needs the option 'score'"),
    (runs, {"method": "greedy_soup", "score": "elbo"}, "got 'elbo'.*make_score"),
    (runs, {"method": "ties"}, "ties needs base"),
    (runs, {"base": runs[0]}, "average has no base"),
    (runs[:2], {"method": "linear", "t": {"nowhere": 1, "": 0}}, "nowhere"),
  ]:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      fuse.fuse(sources, out, **options)
    assert not out.exists()
  with pytest.raises(ValueError, match="exists; merge into a new"):
    fuse.fuse(runs, runs[0])


def test_a_merge_that_failed_can_be_done_again(runs, tmp_path, monkeypatch):
  out = tmp_path / "out"

  def killed(*args):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", killed)
    with pytest.raises(checkpoint.SaveError):
      fuse.fuse(runs, out)
  assert not (out / "config.json").exists()
  (out / "checkpoints" / "10").mkdir(parents=True)  # as a kill leaves it
  record = fuse.fuse(runs, out)
  assert json.loads((out / "fusion.json").read_text()) == record
  assert restored(out)[1] == 10
  (out / "config.json").unlink()  # its weights are worth keeping
  with pytest.raises(ValueError, match="exists; merge into a new"):
    fuse.fuse(runs, out)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").touch()
  with pytest.raises(ValueError, match="exists; merge into a new"):
    fuse.fuse(runs, tmp_path / "mine")


def test_weights_that_are_not_finite_are_refused(runs, tmp_path):
  bad = tmp_path / "bad.safetensors"
  arrays = merged_part(state(0)) | {"ema/net/out/b": np.float32([1, np.nan, 2])}
  safetensors.save(bad, arrays)
  with pytest.raises(ValueError, match="'ema/net/out/b' of ingredient 1 .*not finite"):
    fuse.fuse([runs[0], str(bad)], tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_options_are_json():
  words = ["t=0.5", "weights=[1, 2]", 'scales={"enc": 1}']
  assert fuse.parse_options(words) == {
    "t": 0.5,
    "weights": [1, 2],
    "scales": {"enc": 1},
  }
  for word in ("t", "t=half"):
    with pytest.raises(ValueError, match="write name=value"):
      fuse.parse_options([word])


def mapped_bytes() -> int:
  status = Path("/proc/self/status").read_text()
  return 1024 * int(re.search(r"RssFile:\s+(\d+)", status)[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_pages_of_a_mapped_array_are_given_back(tmp_path):
  x = np.arange(4_000_003, dtype=np.float32)
  safetensors.save(tmp_path / "x.safetensors", {"b": x[:5], "x": x})
  loaded, _ = safetensors.load(tmp_path / "x.safetensors")
  others = [loaded["b"][:0], np.zeros(3), jax.numpy.zeros(3), 1.0]
  assert loaded["x"].sum() > 0
  before = mapped_bytes()
  pages.release([loaded["x"], *others])
  assert before - mapped_bytes() > 12e6
  np.testing.assert_array_equal(loaded["x"], x)  # read anew
  np.testing.assert_array_equal(loaded["b"], x[:5])


def test_the_last_parameters_take_the_place_of_their_averages(runs, tmp_path):
  fuse.fuse(runs[:1], tmp_path / "last", method="last")
  got, _ = restored(tmp_path / "last")
  for part in (got.params, got.ema):
    assert_equal(manifest.leaves(part), manifest.leaves(state(0).params))
