"""Every config that ships builds; its `:smoke` resumes bit for bit on its own data."""

import importlib
import re
import shutil
from itertools import permutations
from pathlib import Path

import jax
import pytest

from mmgen_jax import checkpoint, config, loop
from mmgen_jax import data as datasets
from mmgen_jax.steps import STEPS
from mmgen_jax.steps.gan_losses import FIELDS

FOLDER = Path(__file__).parents[1] / "configs"
ALL = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "common")
GANS = [name for name in ALL if name.startswith("gan_")]


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


def built(name, variant):
  """The config; None where its variants refuse each other in words."""
  try:
    return importlib.import_module(f"configs.{name}").get_config(variant)
  except ValueError as error:
    assert "does not go with" in str(error)
    return None


@pytest.mark.parametrize("name", ALL)
def test_variants_go_together_in_any_order_or_say_that_they_do_not(name):
  pairs = [",".join(two) for two in permutations(variants(name), 2)]
  made = {pair: c for pair in pairs if (c := built(name, pair)) is not None}
  assert len(made) >= 0.9 * len(pairs)
  for c in made.values():
    config.validate(c, STEPS)


@pytest.mark.parametrize("name", ALL)
def test_a_smoke_test_of_any_variant_has_a_step(name):
  first = [v for v in variants(name) if v != "smoke"]
  if name in GANS:  # whose variants are of size, data, loss and condition at once
    first += map(",".join, permutations(first, 2))
  for variant in first:
    if (c := built(name, f"{variant},smoke")) is not None:
      spec = datasets.spec(c.data.name, **c.data.options)
      assert STEPS[c.family].make_train_step(c, spec.modalities)


@pytest.mark.parametrize("variant", ["", "cpu", "unconditional"])
def test_cifars_smoke_has_networks_for_it(variant):
  c = built("gan_cifar10", f"{variant},smoke")
  spec = datasets.spec(c.data.name, **c.data.options)
  of = lambda: STEPS["gan"].init(jax.random.key(0), c, spec.modalities)
  assert set(jax.eval_shape(of).params) == {"generator", "discriminator"}
  assert c.model.classes == (0 if variant == "unconditional" else 5)


@pytest.mark.parametrize("name", GANS)
def test_whatever_a_gan_may_have_can_be_set_by_name(name):
  for variant in ["", *variants(name)]:
    c = built(name, variant)
    assert set(c.loss) == set(FIELDS), variant
    assert "projection" in c.model and {"truncation", "split"} <= set(c.eval)
    assert "target" in c.get("disc_augment", {"target": 0.0})


def test_published_cifar_is_of_all_training_images():
  c = built("gan_cifar10", "published")
  assert c.data.options.validation == "test" and c.eval.split == "train"
  assert c.eval.num_examples == 50_000
