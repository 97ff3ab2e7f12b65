"""A user's own folder: what it may hold, and what is said of what it may not."""

import csv
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_media import wav

from mmgen_jax import config, data, loop
from mmgen_jax.data import feeds, folder, listing, modality
from mmgen_jax.steps import STEPS

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = 12


def cells_of(i: int) -> dict[str, str]:
  """Every third row lacks its caption, every fourth its sound."""
  return {
    "image": f"pictures/{i}.{('png', 'jpg', 'bmp')[i % 3]}",
    "caption": f"A red, round thing no {i % 5}!" if i % 3 else "",
    "audio": f"{i}.wav" if i % 4 else "",
    "colour": ("red", "blue", "")[i % 3],
  }


def write_listing(path: Path, rows: list[dict]) -> None:
  with open(path, "w", newline="", encoding="utf-8") as file:
    if path.suffix == ".jsonl":
      file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(rows)


@pytest.fixture
def own(tmp_path):
  """A sound folder without a split column."""
  root = tmp_path / "own"
  (root / "pictures").mkdir(parents=True)
  rng = np.random.default_rng(0)
  rows = [cells_of(i) for i in range(ROWS)]
  for i, row in enumerate(rows):
    values = np.full((20 + i, 30, 3), i * 20, np.uint8)
    Image.fromarray(values).save(root / row["image"])
    if row["audio"]:
      samples = rng.integers(-2000, 2000, 4000)
      (root / row["audio"]).write_bytes(wav(samples))
  write_listing(root / "list.csv", rows)
  return root


def load_all(own, tmp_path, **options):
  return {
    split: data.load("folder", split, tmp_path / "data", folder=str(own), **options)
    for split in data.SPLITS
  }


def test_a_folder_becomes_examples(own, tmp_path):
  made = load_all(own, tmp_path, size=16, tokens=8)
  assert {split: len(e) for split, e in made.items()} == {
    "train": 10,
    "validation": 1,
    "test": 1,
  }
  about = data.spec("folder", folder=str(own), size=16, tokens=8)
  seen = set()
  for examples in made.values():
    assert examples.modalities == about.modalities
    rows = examples.rows(np.arange(len(examples)))
    captions = modality.detokenise(examples.modalities["caption"], rows["caption"])
    for j in range(len(examples)):
      i = int(np.rint(rows["image"][j].mean() / 20))
      seen.add(i)
      assert np.abs(rows["image"][j].astype(int) - 20 * i).max() <= 2
      assert rows["mask"]["image"][j]
      assert rows["mask"]["caption"][j] == bool(i % 3)
      assert rows["mask"]["audio"][j] == bool(i % 4)
      assert rows["audio"][j].any() == bool(i % 4)
      names = (*examples.label_names["colour"], "")  # -1 is none
      assert names[rows["labels"]["colour"][j]] == cells_of(i)["colour"]
      if i % 3 and examples.split == "train":
        assert captions[j] == f"a red , round thing no {i % 5} !"
  assert seen == set(range(ROWS))
  assert about.modalities["caption"].vocabulary[:2] == modality.SPECIAL
  assert len({e.fingerprint for e in made.values()}) == 3


def test_a_sorted_listing_is_not_read_in_its_order(tmp_path):
  """Else the first n of a split, which evaluation takes, are of one class."""
  rows = [{"caption": f"word {i}", "kind": f"k{i // 20}"} for i in range(60)]
  write_listing(tmp_path / "list.csv", rows)
  kinds = [row.labels["kind"] for row in listing.read_listing(str(tmp_path)).rows]
  assert min(kinds[:30].count(kind) for kind in ("k0", "k1", "k2")) >= 5
  write_listing(tmp_path / "list.csv", rows[::-1])
  again = [row.caption for row in listing.read_listing(str(tmp_path)).rows]
  write_listing(tmp_path / "list.csv", rows)
  assert again == [row.caption for row in listing.read_listing(str(tmp_path)).rows]


def test_jsonl_is_csv_and_the_content_is_the_fingerprint(own, tmp_path):
  of_csv = load_all(own, tmp_path)
  (own / "list.csv").unlink()
  write_listing(own / "list.jsonl", [cells_of(i) for i in range(ROWS)])
  os.utime(own / "1.wav", (0, 0))
  of_jsonl = load_all(own, tmp_path)
  for split in data.SPLITS:
    assert of_csv[split].fingerprint == of_jsonl[split].fingerprint
    rows = [e[split].rows([0]) for e in (of_csv, of_jsonl)]
    np.testing.assert_array_equal(rows[0]["audio"], rows[1]["audio"])


def test_a_changed_file_is_noticed(own, tmp_path):
  before = load_all(own, tmp_path)
  for i in range(ROWS):
    name = own / cells_of(i)["image"]
    Image.fromarray(np.full((20, 20, 3), 255, np.uint8)).save(name)
  after = load_all(own, tmp_path)
  for split in data.SPLITS:
    assert (np.asarray(after[split].columns["image"].values) > 250).all()
    assert before[split].fingerprint != after[split].fingerprint


def test_a_split_column_and_missing_masks(own, tmp_path):
  rows = [
    {**cells_of(i), "split": ("train", "test", "validation")[i % 3]}
    for i in range(ROWS)
  ]
  write_listing(own / "list.csv", rows)
  made = load_all(own, tmp_path)
  assert {split: len(e) for split, e in made.items()} == dict.fromkeys(made, 4)
  examples = made["train"]  # rows 0, 3, 6, 9: none has a caption
  assert not examples.present["caption"].any()
  feed = feeds.resident_feed(examples, seed=0, batch_size=4, missing_rate=0.9)
  mask = feed.data["mask"]
  assert not mask["caption"].any() and (mask["image"] | mask["audio"]).all()
  write_listing(own / "list.csv", [r for r in rows if r["split"] != "test"])
  for lost in data.SPLITS:  # before anything is trained
    write_listing(own / "list.csv", [r for r in rows if r["split"] != lost])
    with pytest.raises(ValueError, match=f"list.csv: no row of the split '{lost}'"):
      data.spec("folder", folder=str(own))


def test_rows_of_one_picture_stay_together():
  rows = [
    listing.Row(i, f"{i // 5}.png", f"caption {i}", "", {}, "") for i in range(100)
  ]
  split = listing._split(Path("list.csv"), rows)
  assert {s: [r.split for r in split].count(s) for s in data.SPLITS} == {
    "train": 80,
    "validation": 10,
    "test": 10,
  }
  assert len({(row.image, row.split) for row in split}) == 20
  backward = listing._split(Path("list.csv"), rows[::-1])
  assert {r.line: r.split for r in split} == {r.line: r.split for r in backward}


def test_rows_that_share_any_file_stay_together(tmp_path):
  """In a ring of a picture each and a sound of two, all are linked; in pairs, two."""
  for i in range(60):
    (tmp_path / f"{i}.png").touch()
    (tmp_path / f"{i}.wav").touch()
  pairs = [{"image": f"{i}.png", "audio": f"{i // 2}.wav"} for i in range(60)]
  write_listing(tmp_path / "list.csv", pairs)
  rows = listing.read_listing(str(tmp_path)).rows  # else refused: a sound in two splits
  assert [sum(r.split == s for r in rows) for s in data.SPLITS] == [48, 6, 6]
  split_of = {row.image: row.split for row in rows}
  write_listing(tmp_path / "list.csv", pairs[::-1])
  again = listing.read_listing(str(tmp_path)).rows
  assert split_of == {row.image: row.split for row in again}
  ring = [{"image": f"{i}.png", "audio": f"{j % 60}.wav"} for i in range(60)
          for j in (i, i + 1)]  # fmt: skip
  write_listing(tmp_path / "list.csv", ring)
  with pytest.raises(ValueError, match="1 different examples"):
    listing.read_listing(str(tmp_path))


def test_without_shared_files_the_splits_are_those_of_the_keys_hashes():
  rows = [listing.Row(i, f"{i}.png", "", f"{99 - i}.wav", {}, "") for i in range(40)]
  rows += [listing.Row(i, "", f"text {i}", "", {}, "") for i in range(40, 50)]
  split = listing._split(Path("list.csv"), rows)
  order = sorted(split, key=lambda row: hashlib.sha256(row.key.encode()).digest())
  assert [r.split for r in order] == ["test"] * 5 + ["validation"] * 5 + ["train"] * 40


def test_vocabulary_is_frequent_first_and_bounded():
  captions = [folder.tokens_of(c) for c in ("A cat, a dog.", "a cat", "It's ONE")]
  assert captions[0] == ["a", "cat", ",", "a", "dog", "."]
  assert folder.vocabulary(captions, 3) == ["a", "cat", "'"]


CASES = {
  "unknown column": ({"captoin": "x"}, "unknown column 'captoin'; did you mean"),
  "no such image": ({"image": "pictures/none.png"}, "there is no image file"),
  "no such sound": ({"audio": "none.wav"}, "there is no audio file"),
  "nothing": ({"image": "", "caption": "", "audio": ""}, "none of .* is given"),
  "split": ({"split": "trian"}, "split 'trian' is none of"),
  "duplicate": (cells_of(4), "a duplicate of line 6"),
  "corrupt image": ({"image": "corrupt.png"}, "image corrupt.png cannot be read"),
  "cut image": ({"image": "cut.jpg"}, "image cut.jpg cannot be read.*truncated"),
  "corrupt sound": ({"audio": "corrupt.png"}, "audio corrupt.png cannot be read"),
  "no sound": ({"audio": "none_in.wav"}, "a sound file without samples"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_row_is_named_with_file_and_line(own, tmp_path, case):
  (own / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
  (own / "none_in.wav").write_bytes(wav([]))
  Image.fromarray(np.zeros((99, 99, 3), np.uint8)).save(own / "whole.jpg")
  (own / "cut.jpg").write_bytes((own / "whole.jpg").read_bytes()[:-200])
  change, message = CASES[case]
  rows = [cells_of(i) for i in range(ROWS)]
  if "split" in change:
    rows = [{**row, "split": "train"} for row in rows]
  if "captoin" in change:
    rows = [{**row, **change} for row in rows]
  rows[7] = {**rows[7], **change}
  write_listing(own / "list.csv", rows)
  with pytest.raises(ValueError, match=message) as error:
    load_all(own, tmp_path)
  assert str(own / "list.csv") in str(error.value)
  assert "line 9" in str(error.value) or case == "unknown column"
  assert "\n" not in str(error.value)


def test_the_listing_that_the_docs_show_is_sound(tmp_path):
  page = (CONFIGS.parent / "docs" / "own_data.md").read_text(encoding="utf-8")
  text = page.split("```csv\n")[1].split("```")[0]
  for row in csv.DictReader(text.splitlines()):
    for name in filter(None, (row["image"], row["audio"])):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).touch()
  (tmp_path / "listing.csv").write_text(text)
  about = data.spec("folder", folder=str(tmp_path))
  assert set(about.modalities) == {"image", "caption", "audio"}
  assert about.label_names == {"kind": ("bell", "bicycle")}


TEXTS = {
  "empty": ("list.csv", "", "lists nothing"),
  "only a header": ("list.csv", "image,caption\n", "lists nothing"),
  "no modality": ("list.csv", "a,b\n1,2\n", "no column of"),
  "semicolons": ("list.csv", "image;caption\na;b\n", "comma-separated"),
  "too many cells": ("list.csv", "caption\na\nb,c\n", "line 3: not 1 cells"),
  "too few cells": ("list.csv", "caption,x\na,1\nb\n", "line 3: not 2 cells"),
  "slash": ("list.csv", "caption,M/F\na,b\n", "column 'M/F': a name has letters"),
  "no name": ("list.csv", "caption,\na,b\n", "column '': a name has letters"),
  "twice": ("list.csv", "caption,caption\na,b\n", "line 1: a column occurs twice"),
  "not text": ("list.csv", "caption\n\udcff\n", "is not UTF-8"),
  "not JSON": ("list.jsonl", '{"caption": "a"}\n{"caption"\n', "line 2: not JSON"),
  "not an object": ("list.jsonl", '["a"]\n', "line 1: not a JSON object"),
  "nested": ("list.jsonl", '{"caption": ["a"]}\n', "line 1: column 'caption' holds"),
  "another key": ("list.jsonl", '{"caption":"a"}\n{"b":1}\n', "line 2: unknown column"),
  "two rows": ("list.csv", "caption\na\nb\n", "2 different examples"),
  "leak": (
    "list.csv",
    "image,caption,split\nx.png,a,train\nx.png,b,test\n",
    "line 3: x.png is in 'test', and in 'train' in line 2",
  ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_bad_listing_is_named(tmp_path, case):
  name, text, message = TEXTS[case]
  (tmp_path / "x.png").touch()
  (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
  with pytest.raises(ValueError, match=message) as error:
    data.spec("folder", folder=str(tmp_path))
  assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
  ("name", "variant", "modalities", "family"),
  [
    ("quickstart", "{},mopoe", 3, "multimodal"),
    ("quickstart", "mmvae_plus,{}", 3, "multimodal"),
    ("extension_sprites", "{},pair", 2, "fusion"),
    ("extension_sprites", "pair,{}", 2, "fusion"),
    ("extension_sprites", "{}", 3, "extension"),
    ("gan_cifar10", "{},cpu", 3, "gan"),
    ("gan_cifar10", "unconditional,{}", 3, "gan"),
  ],
)
def test_configs_take_a_folder_in_any_order(own, name, variant, modalities, family):
  word = f"folder={own}"
  for form in (f"{variant},smoke", f"smoke,{variant}"):
    c = config.load(f"{CONFIGS / name}.py:{form.format(word)}")
    config.validate(c, STEPS)
    about = data.spec(c.data.name, **c.data.options)
    assert c.data.options.folder == str(own) and c.family == family
    assert len(about.modalities) == modalities
    if family == "extension":
      assert c.extend.modality == "audio"
    of = lambda: STEPS[c.family].init(jax.random.key(0), c, about.modalities)  # noqa: B023
    assert jax.tree.leaves(jax.eval_shape(of).params)


def test_a_variants_value_is_neither_missing_nor_too_much():
  for word in ("folder", "folder=", "smoke=1", "mopoe=a"):
    with pytest.raises(ValueError, match=f"no variant '{word}'; .*'folder=DIR'"):
      config.load(f"{CONFIGS / 'quickstart'}.py:{word}")


def test_a_gan_of_a_folder_may_be_of_its_classes(own, tmp_path):
  rows = [{**cells_of(i), "colour": ("red", "blue")[i % 2]} for i in range(ROWS)]
  write_listing(own / "list.csv", rows)
  c = config.load(f"{CONFIGS / 'gan_cifar10'}.py:folder={own},cpu,smoke")
  c.model.update(label="colour", classes=2)
  train = data.load(c.data.name, "train", tmp_path / "data", **c.data.options)
  loop.check_labels(c, train)
  c.model.label = "label"
  with pytest.raises(ValueError, match="model.label names 'label'; .*'colour'"):
    loop.check_labels(c, train)


def test_the_quickstart_takes_a_folder(own, tmp_path):
  quickstart = CONFIGS / "quickstart.py"
  c = config.load(f"{quickstart}:folder={own},smoke")
  assert c.loss.adversarial == ("image",) and c.train_steps == 4
  train = data.load(c.data.name, "train", tmp_path / "data", **c.data.options)
  assert set(train.modalities) == {"image", "caption", "audio"}
  rows = [{"caption": f"word {i}"} for i in range(40)]
  (tmp_path / "told").mkdir()
  write_listing(tmp_path / "told" / "list.csv", rows)
  assert config.load(f"{quickstart}:folder={tmp_path / 'told'}").loss.adversarial == ()


def test_sounds_whose_form_would_leave_parts_out_are_refused(own):
  of = lambda **form: data.spec("folder", folder=str(own), **form)
  assert of(seconds=2.0).modalities["audio"].shape == (32, 32)
  with pytest.raises(ValueError, match="32000 samples in 32 frames.* takes 63 frames"):
    of(seconds=4.0)
  of(seconds=4.0, frames=63)
  with pytest.raises(ValueError, match="128 mels at 44100 Hz: 9 of them"):
    of(seconds=1.0, sample_rate_hz=44100, frames=128, mels=128)


def test_no_folder_no_listing_too_many(tmp_path):
  with pytest.raises(ValueError, match="there is no folder"):
    data.spec("folder", folder=str(tmp_path / "none"))
  with pytest.raises(ValueError, match=r"has 0 .csv or .jsonl files"):
    data.spec("folder", folder=str(tmp_path))
  for name in ("a.csv", "b.csv"):
    (tmp_path / name).write_text("caption\none\ntwo\nthree\n")
  with pytest.raises(ValueError, match="name one by the option listing"):
    data.spec("folder", folder=str(tmp_path))
  about = data.spec("folder", folder=str(tmp_path), listing="b.csv")
  assert about.modalities["caption"].vocabulary[2:] != ()
  with pytest.raises(ValueError, match="there is no listing"):
    data.spec("folder", folder=str(tmp_path), listing="c.csv")
  with pytest.raises(ValueError, match="sizes must be positive"):
    data.spec("folder", folder=str(tmp_path), listing="b.csv", size=0)
