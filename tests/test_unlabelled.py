"""Examples whose label is -1, as where a cell of a folder's listing is empty.

Nothing is learned from them, and they are neither right nor wrong.
"""

import dataclasses

import numpy as np
import pytest
from test_evaluate import DIGITS, MODALITIES, RECIPE, examples

from mmgen_jax import interpret, multimodal_scores, panels, scores
from mmgen_jax.data import modality
from mmgen_jax.data.examples import Examples
from mmgen_jax.generate import Samples
from mmgen_jax.metrics import channels, disentanglement, extractor, judges

LABELS = ("digit", "speaker")


def with_gaps(x: Examples) -> Examples:
  """Every third row has no digit, every fifth no speaker."""
  at = np.arange(len(x))
  gap = {"digit": at % 3 == 0, "speaker": at % 5 == 0}
  labels = {k: np.where(gap[k], -1, v).astype(np.int32) for k, v in x.labels.items()}
  return dataclasses.replace(x, labels=labels)


def without(x: Examples, labels=LABELS) -> Examples:
  """Only the rows that have the labels."""
  rows = np.flatnonzero(np.all([x.labels[k] >= 0 for k in labels], axis=0))

  def cut(c):
    of = rows if c.rows is None else c.rows[rows]
    present = None if c.present is None else c.present[rows]
    return dataclasses.replace(c, rows=of.astype(np.int32), present=present)

  columns = {k: cut(c) for k, c in x.columns.items()}
  return dataclasses.replace(
    x, labels={k: v[rows] for k, v in x.labels.items()}, columns=columns
  )


def no_digit(x: Examples) -> Examples:
  return dataclasses.replace(x, labels={"digit": np.full(len(x), -1, np.int32)})


def test_a_judge_learns_from_examples_of_all_labels(tmp_path):
  gaps, recipe = with_gaps(examples("train", 60)), dataclasses.replace(RECIPE, steps=5)
  learned = [extractor.train(x, "image", LABELS, recipe) for x in (gaps, without(gaps))]
  assert extractor.digest(learned[0][1]) == extractor.digest(learned[1][1])
  assert learned[0][0] == (("digit", 4), ("speaker", 2))
  # One that was kept when it learned from all is not taken for this one.
  for x in (gaps, examples("train", 60)):
    extractor.load_or_train("j", x, "image", LABELS, recipe, tmp_path)
  assert len(list(tmp_path.iterdir())) == 2
  with pytest.raises(ValueError, match=r"no example has 'image' and all of \['digit'"):
    extractor.train(no_digit(gaps), "image", ["digit"], recipe)


def test_labels_that_nothing_has_make_no_judge(tmp_path):
  train, said = no_digit(examples("train", 20)), []
  assert judges.attributes(train) == []
  assert judges.make(train, sorted(MODALITIES), tmp_path) == judges.Judges({}, {})
  by = judges.make(
    train, sorted(MODALITIES), tmp_path, labels=["digit"], say=said.append
  )
  assert by == judges.Judges({}, {}) and len(said) == 2 and "learns image" in said[0]


def test_a_text_says_what_its_labelled_examples_say():
  gaps = with_gaps(examples("train", 60))
  gaps.labels["digit"][gaps.columns["word"].rows == 1] = -1
  assert judges.attributes(gaps) == ["digit"]
  judge = judges.text_judge(gaps, "word", LABELS)
  read = judge.read(modality.tokenise(MODALITIES["word"], DIGITS))
  assert {k: v.tolist() for k, v in read.items()} == {"digit": [0, -1, 2, 3]}


def test_classes_of_channels_are_learned_where_they_are_known():
  rng = np.random.default_rng(0)
  digit, rows = np.arange(6) % 3, rng.integers(0, 6, (20, 2)).astype(np.int32)
  rows[:6] = np.arange(6)[:, None]
  values = rng.integers(0, 255, (6, 8, 8, 1)).astype(np.uint8)
  labels = {"red": digit[rows[:, 0]], "green": digit[rows[:, 1]]}
  labels["red"][:7] = -1
  x = Examples(
    "stacked",
    "train",
    {"image": modality.image(8, 8, 2)},
    labels,
    dict.fromkeys(labels, tuple("abc")),
    {
      "image": dataclasses.replace(
        examples("train", 1).columns["image"], values=values, rows=rows
      )
    },
    "x",
  )
  single = channels.singles(x, "image")
  np.testing.assert_array_equal(single.labels[channels.LABEL], digit)


@pytest.fixture
def measured():
  """{"gaps", "whole"}: (setting, samples, reads) of all rows, of the labelled ones."""
  test = with_gaps(examples("test", 60))
  rng = np.random.default_rng(0)
  wrong = rng.random(60) < 0.3
  truth = examples("test", 60).labels
  read = {k: np.where(wrong, (v + 1) % 2, v).astype(np.int32) for k, v in truth.items()}
  digits = rng.permutation(60)
  subsets = [(), ("sound",)]

  def of(x: Examples, rows):
    cut = lambda seen: {k: v[rows] for k, v in seen.items()}
    judge = judges.Judge("j", "0" * 64, lambda values: cut(read))
    image = x.columns["image"].take(np.arange(len(x)))
    samples = Samples(subsets, {"image": np.stack([image] * 2)}, {}, {})
    prior = cut({k: v[digits] for k, v in read.items()})
    reads = {((), "image"): prior, (("sound",), "image"): cut(read)}
    by = judges.Judges({"image": judge}, {})
    return scores.Setting(x, np.arange(len(x)), by, 50), samples, reads

  rows = np.flatnonzero((np.arange(60) % 3 > 0) & (np.arange(60) % 5 > 0))
  return {"gaps": of(test, np.arange(60)), "whole": of(without(test), rows)}


def entries_of(setting, reads):
  judged = scores.described(setting, setting.judges.readers)
  found = scores.coherence_entries(setting, reads, judged)
  found += scores.mode_entries(setting, reads, judged)
  return judged, {e["metric"]: e for e in found}


def test_scores_are_those_of_the_labelled_examples(measured):
  (judged, found), (same, want) = (
    entries_of(s, reads) for s, _, reads in (measured["gaps"], measured["whole"])
  )
  assert judged == same and judged["image"]["accuracy_count"] == 32
  for metric in ("coherence/strict", "coherence/strict_macro"):
    assert found[metric] == want[metric]
  assert 0.4 < found["coherence/strict"]["value"] < 1.0
  setting, _, reads = measured["gaps"]
  truth, has = setting.examples.labels, setting.has(["sound"])
  for name in LABELS:  # each of its own labelled rows
    rows = has & (truth[name] >= 0)
    right = reads[("sound",), "image"][name] == truth[name]
    entry = found[f"coherence/{name}"]
    assert (entry["value"], entry["samples"]) == (right[rows].mean(), rows.sum())
    groups = truth[name][rows]
    macro = np.mean([right[rows][groups == c].mean() for c in np.unique(groups)])
    assert found[f"coherence/{name}_macro"]["value"] == pytest.approx(macro)
  # Shares of the real ones are of the labelled; samples of the prior have no truth.
  assert found["modes/count"]["samples"] == found["readable"]["samples"] == 60
  prior = measured["gaps"][2][(), "image"]
  _, again = entries_of(measured["whole"][0], {((), "image"): prior})
  assert found["modes/reverse_kl"]["value"] == again["modes/reverse_kl"]["value"]


def test_means_over_directions_are_of_the_labelled_examples(measured):
  judged = dict.fromkeys(("image", "sound", "word"), {"name": "j"})
  of = lambda s, reads: multimodal_scores.count_entries(s, reads, judged)
  (found,), (want,) = (of(s, reads) for s, _, reads in measured.values())
  assert found == want and found["metric"] == "mean_coherence/given_1"


def test_where_no_truth_is_known_nothing_is_said_of_it(measured):
  setting, samples, reads = measured["gaps"]
  nothing = {k: np.full(60, -1, np.int32) for k in LABELS}
  bare = dataclasses.replace(setting.examples, labels=nothing)
  setting = setting._replace(examples=bare)
  judged, found = entries_of(setting, reads)
  assert judged == {} and set(found) == {"readable", "modes/count"}
  assert found["readable"]["judge"] == {"name": "j", "sha256": "0" * 64}
  assert scores.right_of_made(setting, reads) == {}
  panel = panels.make_panel(setting, samples, np.arange(5), reads)
  assert (panel.right["image"] == -1).all()
  # One of two labels is enough for that one.
  half = {**nothing, "speaker": examples("test", 60).labels["speaker"]}
  bare = dataclasses.replace(bare, labels=half)
  _, found = entries_of(setting._replace(examples=bare), reads)
  assert {n for n in found if n.startswith("coherence/")} == {
    "coherence/speaker",
    "coherence/speaker_macro",
  }


def test_a_panel_marks_only_what_is_known(measured):
  setting, samples, reads = measured["gaps"]
  panel = panels.make_panel(setting, samples, np.arange(60), reads)
  marks, labelled = panel.right["image"][1], setting.labelled(LABELS)
  assert (marks[~labelled] == -1).all()
  right = scores.right_of_made(setting, reads)[("sound",), "image"]["strict"]
  np.testing.assert_array_equal(marks[labelled], right[labelled])


def test_information_is_of_the_known_factors():
  rng = np.random.default_rng(0)
  means = rng.normal(size=(200, 3))
  labels = {"a": (means[:, 0] > 0).astype(int), "b": rng.integers(0, 3, 200)}
  known = {"a": np.arange(200) % 3 > 0, "b": np.arange(200) % 4 > 0}
  gaps = {k: np.where(known[k], v, -1) for k, v in labels.items()}
  gaps["none"] = np.full(200, -1)
  gaps["same"] = np.where(known["a"], 2, -1)  # it does not vary
  decode = lambda z: np.zeros((len(z), 8, 8, 1), np.uint8)
  shown = interpret.interpret(decode, means, np.zeros((200, 3)), gaps)
  assert shown.factors == ("a", "b")
  for i, name in enumerate("ab"):
    rows = known[name]
    both = np.stack([labels[k][rows] for k in "ab"], 1)
    want = disentanglement.mutual_information(means[rows], both)[:, i]
    want = want / disentanglement.entropy(labels[name][rows])
    np.testing.assert_allclose(shown.information[:, i], want, rtol=1e-12)
