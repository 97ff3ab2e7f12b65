"""Evaluation of a stand-in whose answers are known, then of a real tiny model."""

import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mmgen_jax import (
  checkpoint,
  evaluate,
  generate,
  latent_scores,
  pictures,
  preview,
  records,
  scores,
)
from mmgen_jax import data as datasets
from mmgen_jax import steps as steps_lib
from mmgen_jax.data import modality
from mmgen_jax.data.augment import Augmentation
from mmgen_jax.data.examples import Column, Examples, Spec
from mmgen_jax.metrics import extractor, judges
from mmgen_jax.state import new_state

DIGITS = ("zero", "one", "two", "three")
MODALITIES = {
  "image": modality.image(8, 8, 1),
  "sound": modality.audio(8, 8, 8000),
  "word": modality.text(DIGITS, 2),
}
RECIPE = extractor.Recipe(
  steps=80,
  batch_size=32,
  learning_rate=5e-3,
  width=8,
  features=8,
  dropout=0.0,
  augment=Augmentation(),
)


def examples(split: str, n: int) -> Examples:
  """Digits as the place of a bright quadrant, a band of pitch and a word."""
  rng = np.random.default_rng(sorted(SPLITS).index(split))
  digit = rng.integers(0, 4, n).astype(np.int32)
  image = rng.integers(0, 40, (n, 8, 8, 1)).astype(np.uint8)
  sound = rng.integers(0, 40, (n, 8, 8)).astype(np.uint8)
  for i, d in enumerate(digit):
    image[i, d // 2 * 4 : d // 2 * 4 + 4, d % 2 * 4 : d % 2 * 4 + 4] += 180
    sound[i, :, 2 * d : 2 * d + 2] += 180
  words = modality.tokenise(MODALITIES["word"], DIGITS)
  present = np.ones(n, bool)
  present[::5] = False
  columns = {
    "image": Column(image),
    "sound": Column(sound, present=present if split != "train" else None),
    "word": Column(words, rows=digit),
  }
  labels = {"digit": digit, "speaker": rng.integers(0, 2, n).astype(np.int32)}
  names = {"digit": DIGITS, "speaker": ("a", "b")}
  return Examples("quadrants", split, MODALITIES, labels, names, columns, f"{split}!")


SPLITS = ("train", "validation", "test", "test_speaker")
SIZES = {"train": 200, "validation": 30, "test": 30, "test_speaker": 20}


def test_what_is_evaluated_of_train_is_what_was_trained_on(monkeypatch):
  monkeypatch.setitem(datasets.DATASETS, "quadrants", __name__)
  monkeypatch.setattr(datasets, "_module", lambda name: Module)
  config = common.defaults("vae")
  config.data.name, config.data.first = "quadrants", 7
  sizes = {s: len(evaluate.load_split(config, s, "nowhere")) for s in SPLITS}
  assert sizes == SIZES | {"train": 7}
  assert evaluate.data_dir_of("runs/a", "gs://bucket/data") == "gs://bucket/data"
  assert evaluate.data_dir_of("runs/a", None) == "runs/a/data"


class Echo:
  """A family that gives back the example, or another one's, or from the prior pairs.

  What is made of an image is blank for odd indices: so judges cannot agree there.
  """

  @staticmethod
  def init(key, config, modalities):
    params = {"net": {"bias": jnp.zeros(3)}}
    return new_state(params, {}, params)

  @staticmethod
  def subsets(config, modalities):
    names = sorted(modalities)
    return [c for n in range(4) for c in itertools.combinations(names, n)]

  @staticmethod
  def make_eval_step(config, modalities):
    return lambda params, batch, key: {"elbo": -jnp.ones(len(batch["index"]))}

  @staticmethod
  def make_generate(config, modalities):
    names = sorted(modalities)

    def make(params, batch, given, key):
      out = {}
      odd = batch["index"] % 2 == 1
      for name in names:
        x = batch[name]
        if name == "image":
          spoilt = jnp.where(odd[:, None, None, None], jnp.roll(x, 4, 1), x)
          x = jnp.where(given.any(), spoilt, x)
        out[name] = x + params["net"]["bias"][0].astype(x.dtype)
      return out

    return make


class Module:
  """A data set module."""

  @staticmethod
  def load(split, data_dir):
    return examples(split, SIZES[split])

  @staticmethod
  def spec():
    return Spec("quadrants", MODALITIES, {"digit": DIGITS}, SPLITS)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """One folder, so that judges are trained once."""
  return tmp_path_factory.mktemp("data")


@pytest.fixture
def echo(monkeypatch, tmp_path):
  """(config, workdir) of a finished run of `Echo`."""
  monkeypatch.setitem(steps_lib.STEPS, "echo", Echo)
  monkeypatch.setattr(datasets, "_module", lambda name: Module)
  monkeypatch.setitem(judges.RECIPES, ("quadrants", "image"), RECIPE)
  monkeypatch.setitem(judges.RECIPES, ("quadrants", "audio"), RECIPE)
  config = common.defaults("echo")
  config.data.name = "quadrants"
  config.eval.update(num_examples=25, batch_size=10, bootstrap=50)
  state = Echo.init(None, config, MODALITIES)
  spoilt = {"net": {"bias": jnp.ones(3)}}  # what evaluation takes is the average
  checkpoint.save(tmp_path / "checkpoints", state.replace(params=spoilt), 40)
  return config, tmp_path


def test_evaluate_measures_what_is_known(echo, data_dir):
  config, workdir = echo
  out = evaluate.evaluate(config, workdir, data_dir)
  assert out == records.read(workdir) and records.steps(workdir) == [40]

  def one(metric, given, target, split="test"):
    found = records.find(out, metric, given, target, split)
    assert found is not None, (metric, given, target)
    return found

  # Images from an example with an odd index are of another digit; a judge sees that.
  test = examples("test", 30)
  even = np.arange(25) % 2 == 0
  r = one("coherence/strict", ["word"], "image")
  assert r["value"] == pytest.approx(even.mean()) and r["samples"] == 25
  assert r["interval"][0] < r["value"] < r["interval"][1]
  has = test.present["sound"][:25]
  r = one("coherence/strict", ["sound"], "image")  # of those that have a sound
  assert r["value"] == pytest.approx(even[has].mean()) and r["samples"] == has.sum()
  groups = test.labels["digit"][:25]
  macro = np.mean([even[groups == d].mean() for d in range(4)])
  r = one("coherence/strict_macro", ["word"], "image")
  assert r["value"] == pytest.approx(macro)
  assert one("coherence/digit", ["image"], "word")["value"] == 1.0
  assert one("joint_coherence/strict", [], ["image", "sound", "word"])["value"] == 1.0
  assert one("readable", [], "word")["value"] == 1.0
  assert one("reconstruction/mse", ["sound"], "sound")["value"] == 0.0
  assert one("reconstruction/token_accuracy", ["word"], "word")["value"] == 1.0
  assert one("loss/elbo", None, None)["value"] == -1.0
  same, floor = one("frechet", [], "image"), one("floor/frechet", None, "image")
  assert same["value"] < 1e-9 < floor["value"]
  assert one("coherence/strict", ["sound"], "word", "test_speaker")["samples"] < 20
  assert (
    records.find(out, "coherence/strict", ["image"], "word", "test_speaker") is None
  )
  assert not any("speaker" in r["metric"] for r in out)  # the word does not say it


def test_records_describe_themselves(echo, data_dir):
  config, workdir = echo
  out = evaluate.evaluate(config, workdir, data_dir)
  for r in out:
    assert r["step"] == 40 and r["weights"] == "ema" and r["samples"] > 0
    assert r["data"]["name"] == "quadrants" and r["data"]["count"] in (25, 20)
    assert r["run"]["seed"] == 0 and r["versions"]["jax"] and r["time"] and r["command"]
    assert "cpu" in r["device"] and len(r["run"]["config"]) == 12
  judged = [r for r in out if r["metric"].startswith("coherence/")]
  for r in judged:
    assert r["judge"]["accuracy"] == 1.0 and len(r["judge"]["sha256"]) == 64
  assert {r["judge"]["name"] for r in judged} == {
    "mmgen-quadrants-image-v1",
    "mmgen-quadrants-sound-v1",
    "exact-match-quadrants-word",
  }
  a, b = (records.find(out, "frechet", [], t) for t in ("image", "sound"))
  assert a is not None and b is not None
  assert records.protocol(a) == records.protocol({**a, "run": {"seed": 9}, "value": 0})
  assert records.protocol(a) != records.protocol(b)
  assert records.protocol(a) != records.protocol({**a, "samples": 24})


def test_samples_drawn_otherwise_are_another_protocol(echo):
  config, _ = echo
  origin = {"devices": {"count": 1, "kind": "cpu", "platform": "cpu"}, "command": []}
  origin |= {"config_fingerprint": "", "versions": {}, "git_revision": ""}

  def protocol(given, **changes):
    config.eval.update(truncation=0.0, sampler="prior")
    config.eval.update(changes)
    entry = {"metric": "frechet", "given": given, "target": "image", "samples": 9}
    how = records.context(config, examples("test", 30), 9, 1, origin)
    assert {k: how["run"][k] for k in changes} == changes
    return records.protocol({**entry, **how})

  assert protocol([]) == protocol([], truncation=0.0)
  for given in ([], ["word"], None):
    assert protocol(given, truncation=0.5) != protocol(given)
  assert protocol([], sampler="flow") != protocol([])
  # What is given, or a bound, does not come from the sampler.
  assert protocol(["image"], sampler="flow") == protocol(["image"])
  old = {"metric": "m", "given": [], "target": None, "samples": 9, "weights": "ema"}
  old |= {"data": {"fingerprint": ""}, "run": {"seed": 0}}  # before there was either
  new = {**old, "run": {"truncation": 0.0, "sampler": "prior"}}
  assert records.protocol(old) == records.protocol(new)


def test_batch_size_and_padding_change_nothing(echo):
  config, workdir = echo
  state, _ = evaluate.load_state(config, workdir, MODALITIES)
  test = examples("test", 30)
  make = lambda size: generate.make_sampler(config, MODALITIES, batch_size=size)(
    state.ema, test, np.arange(25), 0
  )
  a, b = make(4), make(25)
  assert a.values["image"].shape == (8, 25, 8, 8, 1)
  for name in MODALITIES:
    np.testing.assert_array_equal(a.values[name], b.values[name])


def test_pictures_are_written_while_training(echo, data_dir):
  config, workdir = echo
  on_samples = preview.make_on_samples(config, workdir, data_dir)
  on_samples(Echo.init(None, config, MODALITIES), 20)
  folder = workdir / "samples" / "step_0000020"
  names = {path.stem for path in folder.glob("*.png")}
  assert {"prior", "reconstruction", "word_to_image", "image_to_word"} <= names
  assert {"image+sound_to_word", "sound_to_image", "image_to_sound"} <= names
  panel, extra = pictures.load_panel(folder / "panel.npz")
  assert extra["count"] == 10 and extra["coherence"]["word -> image"] == 0.5
  held_out = examples("validation", 30).labels["digit"][:10]
  assert set(panel.real["word"]) == {DIGITS[d] for d in held_out}
  paths = preview.sample(config, workdir, data_dir, count=3)
  assert all(path.exists() for path in paths) and paths[0].parent.name.endswith("_3")


@pytest.mark.parametrize("family", ["gan", "echo"])
def test_held_out_logits_are_of_the_generator_that_training_logs(
  family, echo, data_dir, monkeypatch
):
  class Biased(Echo):
    @staticmethod
    def make_eval_step(config, modalities):
      bias = lambda params, batch: params["net"]["bias"][0] + 0.0 * batch["index"]
      return lambda params, batch, key: {"bias": bias(params, batch)}

  config, workdir = echo
  config.family = family
  monkeypatch.setitem(steps_lib.STEPS, family, Biased)
  params, ema = ({"net": {"bias": jnp.full(3, x)}} for x in (0.25, 0.5))
  state = new_state(params, {}, ema)
  told = preview.make_on_samples(config, workdir, data_dir)(state, 20)
  assert told == {"held_out/bias": 0.25 if family == "gan" else 0.5}


def test_sampling_samples_what_evaluation_does(echo, data_dir, monkeypatch):
  config, workdir = echo
  prior = lambda: preview.sample(config, workdir, data_dir, count=3)[0].read_bytes()
  plain = prior()
  brighter = {"net": {"bias": jnp.full(3, 0.5)}}
  asked = []

  def fit(config, params, train):
    asked.append((config.eval.sampler, train.split))
    return brighter

  monkeypatch.setattr(latent_scores, "fit_sampler", fit)
  assert prior() == plain
  config.eval.sampler = "mixture"
  assert prior() != plain and asked == [("mixture", "train")]


def test_evaluate_without_checkpoint_or_judges(echo, data_dir, monkeypatch, tmp_path):
  config, workdir = echo
  with pytest.raises(FileNotFoundError, match="no sound checkpoint"):
    evaluate.evaluate(config, tmp_path / "elsewhere", data_dir)
  monkeypatch.setattr(judges, "attributes", lambda train: [])
  out = evaluate.evaluate(config, workdir, data_dir)
  assert {r["metric"].split("/")[0] for r in out} == {"reconstruction", "loss"}


def test_judges_are_kept_and_proved(tmp_path):
  train = examples("train", 200)
  said: list[str] = []
  make = lambda: extractor.load_or_train(
    "judge", train, "image", ["digit"], RECIPE, tmp_path, say=said.append
  )
  first, trained = make(), len(said)
  assert trained and make().sha256 == first.sha256 and len(said) == trained
  for file in tmp_path.glob("*/params.npz"):
    assert (
      json.loads((file.parent / "judge.json").read_text())["sha256"] == first.sha256
    )
    with np.load(file) as kept:
      arrays = {k: kept[k].copy() for k in kept.files}
    next(iter(arrays.values())).flat[0] += 1
    np.savez(file, **arrays)
  with pytest.raises(ValueError, match="damaged"):
    make()


def test_judge_reads_what_it_was_trained_on():
  train, test = examples("train", 200), examples("test", 30)
  heads, params = extractor.train(train, "sound", ["digit"], RECIPE)
  e = extractor.Extractor("x", extractor.digest(params), heads, RECIPE, params)
  features, read = e(test.columns["sound"].values)
  assert features.shape == (30, 8) and heads == (("digit", 4),)
  np.testing.assert_array_equal(read["digit"], test.labels["digit"])
  again = extractor.train(train, "sound", ["digit"], RECIPE)[1]
  assert extractor.digest(again) == e.sha256  # the seed fixes it


def test_text_judge_knows_only_real_texts():
  train = examples("train", 200)
  judge = judges.text_judge(train, "word", ["digit", "speaker"])
  tokens = modality.tokenise(MODALITIES["word"], ["two", "two three", "", "zero"])
  assert judge.read(tokens)["digit"].tolist() == [2, -1, -1, 0]
  assert set(judge.read(tokens)) == {"digit"} == set(judges.attributes(train))


def test_directions_leave_out_what_is_trivial():
  subsets = Echo.subsets(None, MODALITIES)
  assert scores.directions(subsets, "image") == [
    *[(), ("sound",), ("word",), ("sound", "word")],
    ("image", "sound", "word"),
  ]
  assert scores.directions([()], "image") == [()]


def test_token_accuracy_counts_what_either_has():
  real, made = jnp.array([[2, 3, 0, 0]]), jnp.array([[2, 4, 5, 0]])
  errors = generate.errors_of(MODALITIES["word"], real, made)
  assert float(errors["token_accuracy"][0]) == pytest.approx(1 / 3)


def test_not_finite_becomes_null(tmp_path):
  records.write(tmp_path, 3, [{"value": np.float64("nan"), "n": np.int32(2)}])
  assert records.read(tmp_path) == [{"value": None, "n": 2}]


def test_modes_are_counted_among_readable_samples():
  labels = {"a": np.array([0, 1, 1, 0]), "b": np.array([0, 2, 2, 1])}
  examples = SimpleNamespace(
    labels=labels, label_names={"a": ("x", "y"), "b": ("p", "q", "r")}
  )
  setting = scores.Setting(examples, np.arange(4), None)
  read = {"a": np.array([0, 1, 1, -1]), "b": np.array([0, 2, 2, 0])}
  given = {(("image",), "image"): read}  # says nothing of the prior
  reads = {((), "image"): read, **given}
  count, kl = scores.mode_entries(setting, reads, {"image": {"name": "j"}})
  assert (count["value"], count["total"], count["samples"]) == (2, 6, 4)
  q = np.array([1.5, 1.5, 0.5, 0.5, 0.5, 2.5]) / 7
  want = 1 / 3 * np.log((1 / 3) / q[0]) + 2 / 3 * np.log((2 / 3) / q[5])
  assert kl["value"] == pytest.approx(want)
  huge = SimpleNamespace(labels=labels, label_names=dict.fromkeys("ab", range(2**40)))
  count, kl = scores.mode_entries(
    setting._replace(examples=huge), reads, {"image": {"name": "j"}}
  )
  assert count["total"] == 2**80 and np.isfinite(kl["value"])
  read["a"][:] = -1  # nothing can be read: no mode, not no record
  count, kl = scores.mode_entries(setting, reads, {"image": {"name": "j"}})
  assert count["value"] == 0 and np.isnan(kl["value"])
