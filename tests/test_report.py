"""The page: complete, whole in itself, and safe from what the data say."""

import itertools
import json
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest

from configs import common
from mmgen_jax import config as config_lib
from mmgen_jax import pictures, records, report
from mmgen_jax.data import modality
from mmgen_jax.report import curves
from mmgen_jax.steps import STEPS

EVIL = "<script>alert('&')</script>"
MODALITIES = {
  "image": modality.image(8, 8, 3),
  "sound": modality.audio(8, 8, 8000),
  "word": modality.text((EVIL, "cat"), 2),
}
ALL = [c for n in range(4) for c in combinations(sorted(MODALITIES), n)]
VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline"}


class Checker(HTMLParser):
  """Every tag is closed in order; what would fetch or run something is kept."""

  def __init__(self):
    super().__init__()
    self.open: list[str] = []
    self.outside: list[str] = []
    self.text = ""

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)
    if tag in ("script", "link", "iframe", "object"):
      self.outside.append(tag)
    for name, value in attrs:
      address = name in ("src", "href") and not value.startswith(("data:", "#"))
      if address or name.startswith("on"):
        self.outside.append(f"{name}={value}")

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open)
    self.open.pop()

  def handle_data(self, data):
    self.text += data


def parse(page: str) -> Checker:
  checker = Checker()
  checker.feed(page)
  assert not checker.open and not checker.outside
  assert "url(" not in page and "@import" not in page
  return checker


def panel(subsets, names=tuple(MODALITIES), count=4) -> pictures.Panel:
  rng = np.random.default_rng(0)
  kinds = {name: MODALITIES[name] for name in names}

  def values(name, *lead):
    m = MODALITIES[name]
    high = 4 if m.kind == "text" else 256
    dtype = np.int32 if m.kind == "text" else np.uint8
    return rng.integers(0, high, (*lead, count, *m.shape)).astype(dtype)

  return pictures.panel(
    kinds,
    {name: values(name) for name in names},
    {name: np.ones(count, bool) for name in names},
    subsets,
    {name: values(name, len(subsets)) for name in names},
    {name: rng.integers(0, 2, (len(subsets), count)) for name in names},
  )


def record(metric, value, given=None, target=None, **more) -> dict:
  judge = {"name": "judge-j", "sha256": "ab" * 32, "accuracy": 0.999}
  return {
    "metric": metric,
    "value": value,
    "interval": None if value is None else [value - 0.01, value + 0.01],
    "given": given,
    "target": target,
    "samples": 321,
    "judge": {**judge, "accuracy_count": 400},
    "data": {"name": "cats", "split": "test", "count": 321, "fingerprint": "f00"},
    "run": {"family": "fusion", "seed": 7},
    "step": 20,
    "time": "2026-01-01T00:00:00",
    **more,
  }


def start(workdir, family="fusion", steps=20):
  """A workdir that was trained, not yet evaluated."""
  config = common.defaults(family)
  config.train_steps = 20
  config.data.name = f"cats {EVIL}"
  (workdir / "config.json").write_text(config_lib.to_json(config))
  lines = [
    {"step": s, "time": float(s), "x/loss": 1 / s, "norm/grad": None, f"x/{EVIL}": 1.0}
    for s in range(1, steps + 1)
  ]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  return workdir


def evaluated(workdir):
  """A fusion workdir with everything in it."""
  start(workdir)
  for step in (10, 20):
    extra = {"step": step, "count": 9, "coherence": {"word -> image": step / 40}}
    path = workdir / "samples" / f"step_{step:07d}" / "panel.npz"
    pictures.save_panel(path, panel(ALL), extra)
  out = [record("joint_coherence/strict", 0.71, [], sorted(MODALITIES))]
  for given in ALL:
    for target in MODALITIES:
      if given and target not in given:
        out.append(record("coherence/strict", 0.875, list(given), target))
        out.append(record("coherence/shape", 0.9, list(given), target))
  reference = {"data": "cats", "split": "test", "samples": 300}
  by = {"extractor": out[0]["judge"], "reference": reference}
  out.append(record("frechet", 12.5, [], "image", **by))
  out.append(record("floor/frechet", 0.25, None, "image", **by))
  out.append(record("reconstruction/mse", 0.03125, ["image"], "image"))
  out.append(record("loss/elbo", None))
  records.write(workdir, 20, out)
  return workdir


def test_report_shows_every_direction(tmp_path, capsys):
  path = report.write(evaluated(tmp_path))
  text = parse(path.read_text()).text
  for given in ALL:
    for target in MODALITIES:
      if given and target not in given and len(given) in (1, 2):
        assert f"{' + '.join(given)} → {target}" in text
  assert "everything from the prior" in text and "Reconstruction" in text
  assert "log-mel" in text and "dashed frame" in text
  assert "87.5" in text and "71.0" in text and "n\u00a0=\u00a0321" in text
  assert (
    "99.90 %" in text and "12.5" in text and "0.25" in text and "not finite" in text
  )
  told = capsys.readouterr().out
  assert "word -> image" in told and "87.5 %" in told and "321" in told


@pytest.mark.parametrize("count", [3, 4])
def test_of_many_directions_the_head_has_their_means(tmp_path, capsys, count):
  names = [f"m{i}" for i in range(count)]
  out = [record("joint_coherence/strict", 0.71, [], names)]
  for a, b in itertools.permutations(names, 2):
    out.append(record("coherence/strict", 0.875, [a], b))
  out += [record(f"mean_coherence/given_{n}", 0.9 + n / 100) for n in range(1, count)]
  records.write(start(tmp_path), 20, out)
  report.write(tmp_path)
  told = capsys.readouterr().out
  assert "everything from the prior" in told
  assert ("m0 -> m1" in told) == (count == 3)
  assert bool(re.search(r"any 1 of the others +91.0 %", told)) == (count == 4)


def test_report_stands_alone_and_escapes(tmp_path):
  page = report.write(evaluated(tmp_path)).read_text()
  assert EVIL not in page and EVIL in parse(page).text
  assert page.count("data:image/png;base64,") > 50


@pytest.mark.parametrize(
  "family, subsets", [("gan", [()]), ("vae", [(), ("image",)]), ("vq", [("image",)])]
)
def test_report_of_one_modality(tmp_path, family, subsets, capsys):
  start(tmp_path, family)
  path = tmp_path / "samples" / "step_0000020" / "panel.npz"
  pictures.save_panel(path, panel(subsets, ("image",)), {"step": 20})
  imagenet = {"name": "efficientnet", "sha256": "cd" * 32}  # reads no labels of ours
  by = {"judge": None, "extractor": imagenet}
  records.write(tmp_path, 20, [record("kid", 0.5, [], "image", **by)])
  text = parse(report.write(tmp_path).read_text()).text
  assert ("images from the prior" in text) == (() in subsets) and "KID" in text
  assert ("what comes back" in text) == (("image",) in subsets)
  assert "by training step" in text
  assert "log-mel" not in text
  assert "KID, prior -> image" in capsys.readouterr().out


def test_report_of_an_unfinished_run(tmp_path, capsys):
  text = parse(report.write(start(tmp_path, steps=8)).read_text()).text
  assert "stopped at step 8 of 20" in text and "not been evaluated" in text
  assert "no evaluation records" in capsys.readouterr().out
  with pytest.raises(FileNotFoundError, match="no run was started"):
    report.write(tmp_path / "nowhere")


HEADINGS = {
  "gan": "Image from noise",
  "vae": "Image through a latent",
  "hvae": "Image through a hierarchy of latents",
  "vq": "Image through a code book",
  "autoregressive": "Image pixel by pixel",
  "fusion": "Image from one latent",
  "multimodal": "Image from a shared latent",
  "extension": "Image from one latent, sound added",
  "recognition": "Image",
  "alignment": "Image",
}


def heading(workdir, family, **model) -> str:
  config = json.loads((start(workdir, family) / "config.json").read_text())
  config |= {"model": model, "extend": {"modality": "sound"}}
  (workdir / "config.json").write_text(json.dumps(config))
  path = workdir / "samples" / "step_0000020" / "panel.npz"
  pictures.save_panel(path, panel([()], ("image",)), {"step": 20})
  page = report.render(report.read(workdir))
  return re.findall("<h1>(.*?)</h1>", page)[0]


@pytest.mark.parametrize("family", STEPS)
def test_the_heading_says_where_what_is_shown_comes_from(tmp_path, family):
  assert heading(tmp_path, family) == HEADINGS[family]


def test_the_heading_names_what_was_given(tmp_path):
  of = lambda family, **model: heading(tmp_path, family, **model)
  assert of("gan", condition=["caption", "sound"]) == "Image from caption and sound"
  assert of("gan", classes=10, label="digit", condition=[]) == "Image from digit"
  assert of("autoregressive", source="codes") == "Image code by code"


def test_records_that_are_no_headline_are_told_all_the_same(tmp_path, capsys):
  start(tmp_path, "gan")
  records.write(tmp_path, 20, [record("modes/count", 7.0, [], "image")])
  assert "7" in parse(report.write(tmp_path).read_text()).text
  assert re.search(r"modes count, prior -> image +7 ", capsys.readouterr().out)


def test_how_many_samples_can_be_read_is_told_beside_the_judge_itself(tmp_path):
  records.write(start(tmp_path, "gan"), 20, [record("readable", 0.75, [], "image")])
  text = parse(report.write(tmp_path).read_text()).text
  told = r"→ image.*how many can be read\W*75.0.*judge itself\W*99.90"
  assert re.search(told, text, re.DOTALL)
  unasked = {"judge": {"name": "j", "sha256": "ab"}}  # no example has all labels
  records.write(tmp_path, 20, [record("readable", 0.75, [], "image", **unasked)])
  text = parse(report.write(tmp_path).read_text()).text
  assert re.search(r"how many can be read\W*75.0.*judge itself\W*–", text, re.DOTALL)


def test_what_is_of_training_data_is_no_headline(tmp_path, capsys):
  of = {"data": {"name": "cats", "split": "train", "count": 9, "fingerprint": "f"}}
  rows = [record("loss/elbo", 9.0), record("loss/elbo", 1.0, **of)]
  records.write(start(tmp_path, "gan"), 20, rows)
  report.write(tmp_path)
  said = capsys.readouterr().out
  assert "9.0" in said and " 1.0" not in said


def test_an_evaluation_without_records_says_what_would_give_some(tmp_path, capsys):
  records.write(start(tmp_path, "gan"), 20, [])
  text = parse(report.write(tmp_path).read_text()).text
  said = capsys.readouterr().out
  for told in (text, said):
    assert "without labels" in told and "eval.extractor=efficientnet_lite0" in told
  assert "not been evaluated" not in text


def test_grids_are_as_wide_as_their_tiles(tmp_path):
  paths = pictures.write_grids(tmp_path, panel(ALL), 20)
  names = {path.stem for path in paths}
  assert names == {path.stem for path in tmp_path.glob("*.png")}
  assert len(names) == 2 + 6 + 3  # prior, reconstruction, from one, from all others


def test_panel_survives_saving(tmp_path):
  before = panel(ALL)
  pictures.save_panel(tmp_path / "panel.npz", before, {"step": 3})
  after, extra = pictures.load_panel(tmp_path / "panel.npz")
  assert extra == {"step": 3} and after.subsets == before.subsets
  for field in ("real", "has", "made", "right"):
    for name, x in getattr(before, field).items():
      np.testing.assert_array_equal(getattr(after, field)[name], x)


def test_log_mel_picture_has_time_to_the_right_and_pitch_upwards():
  stored = np.zeros((6, 4), np.uint8)  # frames, mels
  stored[5, 0] = 255  # the last moment, the lowest pitch
  rgb = pictures.pixels("audio", stored)
  assert rgb.shape == (4, 6, 3)
  assert rgb[-1, -1].sum() > 600 and rgb[0].sum() == rgb[0, 0].sum() * 6


@pytest.mark.parametrize("low, high", [(0, 1), (-3e4, 2e5), (0.9101, 0.9119), (5, 5)])
def test_ticks_are_few_and_inside(low, high):
  found = curves.ticks(low, high)
  assert 1 <= len(found) <= 6
  assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_chart_leaves_out_what_is_not_finite():
  svg = curves.chart({"a": ([1, 2, 3], [1.0, None, float("nan")])}, "x")
  points = re.findall(r'class="line" points="([^"]*)"', svg)
  assert len(points) == 1 and len(points[0].split()) == 1
  assert curves.chart({"a": ([1], [None])}, "x") == ""
