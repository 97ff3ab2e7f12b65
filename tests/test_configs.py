"""Every config that ships builds; its `:smoke` resumes bit for bit on its own data."""

import re
import shutil
from pathlib import Path

import pytest

from mmgen_jax import checkpoint, config, loop
from mmgen_jax.steps import STEPS

FOLDER = Path(__file__).parents[1] / "configs"
ALL = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "common")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Where this file's sprites and factors are generated, once."""
  return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", ALL)
def test_smoke_trains_and_resumes_bit_for_bit(
  name, data_dir, tmp_path, monkeypatch, request, capsys
):
  c = config.load(f"{FOLDER / name}.py:smoke")
  if c.data.name == "sprites":
    c.data.options.update(train_examples=300)
  elif c.data.name != "factors":
    root = Path(request.getfixturevalue("data_root"))
    data_dir = root / "tfds"
    monkeypatch.setenv("MMGEN_RAW_AUDIO", str(root / "raw/free_spoken_digit.zip"))
  c.save_steps = c.sample_steps = 2
  straight = loop.train(c, tmp_path, data_dir=data_dir)
  shutil.rmtree(tmp_path / "checkpoints" / "4")  # as if killed after update 2
  resumed = loop.train(c, tmp_path, data_dir=data_dir)
  assert "starting at step 2 of 4" in capsys.readouterr().err
  assert int(resumed.step) == 4
  assert checkpoint.digest(resumed) == checkpoint.digest(straight)


def variants(name):
  """What a config offers after the colon, as its own refusal lists it."""
  with pytest.raises(ValueError, match="no variant") as caught:
    config.load(f"{FOLDER / name}.py:?")
  return re.findall(r"'(\w+)'", str(caught.value))


@pytest.mark.parametrize("name", ALL)
def test_every_variant_fits_together_and_comes_back_from_json(name):
  for variant in ["", *variants(name)]:
    c = config.load(f"{FOLDER / name}.py:{variant}")
    config.validate(c, STEPS)
    assert config.from_json(config.to_json(c)) == c
