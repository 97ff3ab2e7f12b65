"""What the loop asks of the data before it trains: labels, counts, what is missing."""

import dataclasses

import numpy as np
import pytest
import tiny

from mmgen_jax import loop
from mmgen_jax.data import order


@pytest.mark.parametrize(
  "family, model, message",
  [
    ("gan", {"label": "y", "classes": 1}, "model.classes is 1; 'y' of .* must be 2"),
    ("autoregressive", {"label": "z", "classes": 2}, r"names 'z'; .* labels \['y'\]"),
    ("gan", {"label": "gap", "classes": 2}, "'gap', which 5 of 50 .* lack"),
    ("recognition", {"labels": {"z": 2}}, "model.labels names 'z'; tiny/train"),
    ("recognition", {"labels": {"y": 1}}, "model.labels.y is 1; 'y' .* must be 2"),
    ("recognition", {"labels": {"gap": 2}}, "'gap', which 5 of 50"),
  ],
)
def test_labels_that_do_not_fit_the_data_are_refused(tmp_path, family, model, message):
  examples = tiny.examples()
  if "gap" in str(model):
    gap = np.where(np.arange(50) % 10 == 3, -1, examples.labels["y"])
    examples = dataclasses.replace(examples, labels={"gap": gap})
  config = tiny.config(family=family, model=model)
  with pytest.raises(ValueError, match=message):
    loop.train(config, tmp_path, examples=examples, family=tiny.Family)
  assert not list(tmp_path.rglob("*"))  # before anything is written


def test_labels_that_fit_the_data_are_not():
  fit = {"label": "y", "classes": 2}, {"label": "none", "classes": 0}
  for model in fit:
    loop.check_labels(tiny.config(family="gan", model=model), tiny.examples())
  more = tiny.config(family="recognition", model={"labels": {"y": 3}})
  loop.check_labels(more, tiny.examples())
  loop.check_labels(tiny.config(), tiny.examples())


def test_how_many_examples_a_loss_takes_for_all_is_checked():
  data = tiny.examples()
  loop.check_count(tiny.config(), data)
  loop.check_count(tiny.config(loss={"examples": len(data)}), data)
  with pytest.raises(ValueError, match=rf"loss.examples is 7; .* has {len(data)}"):
    loop.check_count(tiny.config(loss={"examples": 7}), data)
  image = dataclasses.replace(data.columns["image"], present=np.arange(len(data)) > 1)
  gaps = dataclasses.replace(data, columns={**data.columns, "image": image})
  of = {"loss": {"objective": "factor"}, "model": {"modality": "image"}}
  loop.check_count(tiny.config(**of), data)
  with pytest.raises(
    ValueError, match="'factor' takes .* 2 of 50 examples .* no image"
  ):
    loop.check_count(tiny.config(**of), gaps)


def test_what_a_config_says_of_missing_data_is_what_training_misses():
  examples = tiny.examples()
  by_class = {"image": (0.0, 1.0), "other": 0.4}
  cases = [
    ({"missing_rate": 0.6}, 0.6),
    ({"missing": {"image": 0.5}}, {"image": 0.5}),
    (
      {"missing": by_class, "missing_label": "y"},
      order.rates_by_label(by_class, examples.labels["y"]),
    ),
  ]
  for changes, rate in cases:
    c = tiny.config()
    with c.data.unlocked():
      c.data.update({"missing_rate": 0.0, **changes})
    feed = loop.make_feed(c, examples)
    want = order.missing_mask(
      (c.seed, 0), len(examples), sorted(examples.columns), rate
    )
    for name, mask in want.items():
      np.testing.assert_array_equal(feed.data["mask"][name], mask)
      assert 0 < mask.sum() < len(mask) or name == "other"
    feed.close()
  c.data.missing_label = "shape"
  with pytest.raises(ValueError, match="data.missing_label is 'shape'; there are .'y'"):
    loop.make_feed(c, examples)
