"""A sweep runs to its end: skips, resumes, outlives failures; real processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen_jax import checkpoint, comparison, sweep, trial, workers
from mmgen_jax.loop import Stopped
from mmgen_jax.metrics import judges
from mmgen_jax.sweep import Trial

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys, time, pathlib
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as f: f.write("x")
if what == "bad": sys.exit("two lines\\nand a reason")
if what == "slow": time.sleep(60)
(folder / "result.json").write_text("{}")
"""


def config_file(folder, text):
  path = folder / "configs" / "mine.py"
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  return str(path)


def run_all(trials, workdir, kinds, said, n=2):
  def command(i):
    if i < 0:
      return [sys.executable, "-c", "pass"]
    folder = sweep.folder_of(workdir, trials[i])
    return [sys.executable, "-c", CHILD, str(folder), kinds.get(trials[i].name, "good")]

  return workers.run_all(trials, workdir, command, workers=n, say=said.append)


def test_one_failure_stops_nobody_and_finished_runs_are_skipped(tmp_path):
  trials = [Trial("a", "c"), Trial("bad", "c"), Trial("b", "c")]
  trials.append(Trial("soup", fuse={"of": ["a-seed0", "b-seed0"]}))
  trials.append(Trial("spoiled", fuse={"of": ["bad-seed0"]}))
  said = []
  got = run_all(trials, tmp_path, {"bad": "bad"}, said)
  want = dict.fromkeys(["a-seed0", "b-seed0", "soup-seed0"], "finished")
  assert got == want | dict.fromkeys(["bad-seed0", "spoiled-seed0"], "failed")
  bad = sweep.outcome(tmp_path, trials[1])
  assert bad == {"error": "and a reason", "exit_code": 1}
  assert any("cannot be made" in line for line in said)
  got = run_all(trials, tmp_path, {}, said)  # mended
  assert set(got.values()) == {"finished"}
  starts = {t.id: (sweep.folder_of(tmp_path, t) / "starts").read_text() for t in trials}
  assert starts["a-seed0"] == "x" and starts["bad-seed0"] == "xx"
  order = [line.split()[0] for line in said if line.endswith(" starts")]
  assert order.index("soup-seed0") > order.index("b-seed0")


def test_a_signal_stops_every_process(tmp_path):
  trials = [Trial("slow", "c", seed=i) for i in range(3)]
  said = []

  def say(line):
    said.append(line)
    if len([x for x in said if x.endswith(" starts")]) == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  command = lambda i: [
    *(sys.executable, "-c"),
    "" if i < 0 else CHILD,
    *(str(sweep.folder_of(tmp_path, trials[i])), "slow"),
  ]
  started = time.time()
  with pytest.raises(Stopped):
    workers.run_all(trials, tmp_path, command, workers=2, say=say)
  assert time.time() - started < 20
  assert not any(sweep.status(tmp_path, t) == "finished" for t in trials)


def test_workers_share_cores_and_devices():
  cores = [workers.cores_of(i, 2) for i in range(2)]
  if len(os.sched_getaffinity(0)) > 1:
    assert not cores[0] & cores[1]
  assert cores[0] | cores[1] == os.sched_getaffinity(0)
  env = {"CUDA_VISIBLE_DEVICES": "0,1,2", "X": "y"}
  shares = [workers.environment(i, 2, env)["CUDA_VISIBLE_DEVICES"] for i in range(2)]
  assert shares == ["0,2", "1"]
  assert workers.environment(0, 2, {"X": "y"}) == {"X": "y"}


@pytest.mark.parametrize(
  ("entries", "words"),
  [
    ("[dict(name='a')]", "neither a config"),
    ("[dict(name='a', config='c', sed=1)]", "a trial has"),
    ("[dict(name='a', config='c'), dict(name='a', config='c')]", "two trials"),
    ("[dict(name='b', fuse={'of': ['a-seed0']}), dict(name='a', config='c')]", "made"),
    (
      "[dict(name='a', config='c'),"
      " dict(name='b', fuse={'of': ['a-seed0'], 'method': 'ties', 'base': 'c-seed0'})]",
      "b-seed0 is made from .'c-seed0'",
    ),
    ("[]", "no trials"),
  ],
)
def test_a_sweep_that_is_none_is_refused(tmp_path, entries, words):
  path = config_file(tmp_path, f"def get_sweep(arg):\n  return {entries}\n")
  with pytest.raises(ValueError, match=words):
    sweep.load(path)


def test_a_fused_trial_waits_for_its_base(tmp_path):
  task = {"of": ["a-seed0", "b-seed0", "a-seed0"], "method": "ties"}
  assert Trial("t", fuse=task).needs == ("a-seed0", "b-seed0")
  based = Trial("t", fuse={**task, "base": "c-seed0"})
  assert based.needs == ("a-seed0", "b-seed0", "c-seed0")
  assert Trial("m", "c", start="a-seed0").needs == ("a-seed0",)
  trials = [Trial("a", "c"), Trial("b", "c"), Trial("c", "c", shown=False), based]
  said = []
  got = run_all(trials, tmp_path, {"c": "bad"}, said)
  assert got["t-seed0"] == "failed" and any("cannot be made" in s for s in said)


def test_trials_become_configs():
  name = str(ROOT / "configs/quickstart.py:smoke")
  first = Trial("a", name, seed=2, budget=6, overrides={"optim.learning_rate": 1.0})
  more = Trial("b", name, start="a-6-seed2", budget=2)
  soup = Trial("c", fuse={"of": [more.id]})
  trials = [first, more, soup]
  c = sweep.resolve(first, trials)
  assert (c.seed, c.train_steps, c.save_steps, c.optim.decay_steps) == (2, 6, 6, 6)
  assert c.optim.learning_rate == 1.0
  c = sweep.resolve(more, trials)  # its cosine ends where it ends, not at update 2
  assert (c.train_steps, c.optim.decay_steps) == (8, 8)
  assert sweep.resolve(soup, trials) == sweep.resolve(more, trials)
  with pytest.raises(ValueError, match="no field 'optim.rate'"):
    sweep.resolve(first._replace(overrides={"optim.rate": 1}), trials)


def test_another_config_in_the_same_folder_is_refused(tmp_path):
  trial = Trial("a", str(ROOT / "configs/quickstart.py:smoke"))
  from mmgen_jax import config

  folder = sweep.folder_of(tmp_path, trial)
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(config.to_json(sweep.resolve(trial, [trial])))
  sweep.check([trial], tmp_path)
  with pytest.raises(ValueError, match="another config"):
    sweep.check([trial._replace(overrides={"batch_size": 4})], tmp_path)


SWEEP = """
def get_config(arg=None):
  from configs import vae_sprites
  config = vae_sprites.get_config("smoke")
  config.model.widths.update({"image": 4})
  config.model.update(features=4, latent=2)
  config.data.options.update(
    train_examples=60, validation_examples=20, test_examples=40, hold_out=5)
  config.eval.update(num_examples=16, batch_size=16)
  with config.unlocked():
    config.eval.also = ("train",)
  return config


def get_sweep(arg=None):
  out = [dict(name="vae", config=__file__, budget=2)]
  out += [dict(name="more", config=__file__, seed=i, start="vae-2-seed0", budget=2,
               shown=False) for i in range(2)]
  soup = dict(of=["more-2-seed0", "more-2-seed1"], method="greedy_soup", score="elbo")
  out.append(dict(name="soup", fuse=soup))
  out.append(dict(name="raw", fuse=dict(of=["vae-2-seed0"], method="last")))
  return out
"""


def test_a_sweep_from_the_command_line(tmp_path, monkeypatch):
  quick = dataclasses.replace(judges.RECIPES["sprites", "image"], steps=2, width=8)
  monkeypatch.setattr(
    judges, "RECIPES", {("sprites", kind): quick for kind in ("image", "audio")}
  )
  path = config_file(tmp_path, SWEEP)
  (tmp_path / "configs" / "common.py").symlink_to(ROOT / "configs/common.py")
  (tmp_path / "configs" / "vae_sprites.py").symlink_to(ROOT / "configs/vae_sprites.py")
  trials = sweep.load(path)
  done = []
  trial.prepare(trials, tmp_path / "data", done.append)
  for each in trials:
    trial.run(each, trials, tmp_path, tmp_path / "data", say=lambda message: None)
  assert {sweep.status(tmp_path, t) for t in trials} == {"finished"}
  runs = sweep.read(trials, tmp_path)
  costs = comparison.costs(runs)
  assert costs["soup"]["train_flops"].mean == pytest.approx(
    3 * costs["vae"]["train_flops"].mean
  )
  splits = {r["data"]["split"] for r in runs[0].records}
  assert splits == {"test", "train", "test_combinations"}
  record = json.loads((tmp_path / "runs/soup-seed0/fusion.json").read_text())
  assert len(record["candidates"]) == 2 and record["options"] == {}
  words = ["--mode=compare", f"--config={path}", f"--workdir={tmp_path}", "--workers=0"]
  done = subprocess.run(
    [sys.executable, "launch.py", *words, "--budget_minutes=1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "compare.html").exists() and "compare.html" in done.stdout


def test_budgets_of_a_method_are_rows_of_their_own(tmp_path):
  trials = [
    Trial("a", "c", budget=2),
    Trial("a", "c", budget=4, seed=1),
    Trial("b", "c"),
  ]
  methods = [run.method for run in sweep.read(trials, tmp_path)]
  assert methods == ["a (2 updates)", "a (4 updates)", "b"]


def test_training_takes_what_all_updates_take_at_the_pace_of_the_logged_ones():
  times = {10: 5.0, 20: 6.0, 30: 7.0, 40: 508.0}  # the last after a pause of 500 s
  lines = [{"step": s, "time": t} for s, t in times.items()]
  assert trial._train_secs(lines[:3], 100) == pytest.approx(10.0)  # 2 s for 20
  assert trial._train_secs(lines, 90) == pytest.approx(6.0)  # 2 s for 30, as it is said
  assert trial._train_secs([], 90) == 0.0


def test_only_what_failed_is_forgotten(tmp_path):
  trials = [Trial("a", "c"), Trial("b", "c"), Trial("new", "c")]
  for t in trials[:2]:
    sweep.fail(tmp_path, t, "yesterday's", 1)
  (sweep.folder_of(tmp_path, trials[1]) / sweep.RESULT).write_text("{}")
  sweep.forget_failures(trials, tmp_path)
  now = [sweep.status(tmp_path, t) for t in trials]
  assert now == ["started", "finished", "new"]


def test_a_merge_killed_before_its_config_is_done_again(tmp_path, monkeypatch):
  soup, merged = Trial("soup", fuse={"of": ["a-seed0"]}), []
  folder = sweep.folder_of(tmp_path, soup)
  monkeypatch.setattr(trial.checkpoint, "steps", lambda directory: [1])
  monkeypatch.setattr(trial.fuse, "fuse", lambda *args, **kwargs: merged.append(args))
  trial._merge(soup, None, tmp_path, None)
  assert len(merged) == 1
  folder.mkdir(parents=True)
  (folder / "config.json").touch()
  trial._merge(soup, None, tmp_path, None)
  assert len(merged) == 1


def test_nothing_goes_on_from_what_is_damaged(tmp_path):
  source = tmp_path / "a" / "checkpoints"
  checkpoint.save(source, {"x": np.arange(5.0)}, 3)
  trial._copy_last(tmp_path / "a", tmp_path / "b")
  assert checkpoint.steps(tmp_path / "b" / "checkpoints") == [3]
  largest = max(
    (f for f in source.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
  )
  largest.write_bytes(largest.read_bytes()[:-1])
  with pytest.raises(ValueError, match="what it goes on from is damaged"):
    trial._copy_last(tmp_path / "a", tmp_path / "c")
  assert not (tmp_path / "c").exists()


def test_the_study_of_sprites(tmp_path):
  study = str(ROOT / "configs/study_fusion.py")
  for more in ("", ",long"):
    trials = sweep.load(f"{study}:sprites{more}")
    sweep.check(trials, tmp_path)
    soup = next(t for t in trials if t.name == "VAE soup")
    assert sweep.resolve(soup, trials).train_steps == (2280 if more else 760)
  with pytest.raises(ValueError, match="multiple of updates_per_dispatch"):
    sweep.check([trials[0]._replace(budget=650)], tmp_path)
  trials = sweep.load(f"{study}:sprites,smoke")
  families = {t.name: sweep.resolve(t, trials).family for t in trials if not t.fuse}
  assert families["GAN + EMA"] == "gan" and families["all three"] == "fusion"
  models = next(t for t in trials if t.name.startswith("model fusion"))
  assert sweep.resolve(models, trials).data.options.modalities == ("image",)


def test_the_study_of_a_users_folder(tmp_path):
  lines = ["image,caption"]
  for i in range(4):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    lines.append(f"{i}.png,a dark thing")
  (tmp_path / "list.csv").write_text("\n".join(lines))
  trials = sweep.load(f"{ROOT}/configs/study_fusion.py:folder={tmp_path},smoke")
  assert {t.name for t in trials} >= {"GAN", "VAE soup", "model fusion", "all three"}
  for t in trials:
    c = sweep.resolve(t, trials)
    assert c.data.name == "folder" and c.data.options.folder == str(tmp_path)
