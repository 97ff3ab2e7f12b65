"""Recognition: the step beside tests/test_steps.py, evaluation in one pass, configs."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import same_on_four_devices, tiny

from configs import recognition_digits, study_fusion
from mmgen_jax import data as datasets
from mmgen_jax import recognise, records
from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.metrics import calibration
from mmgen_jax.steps import recognition

RNG = np.random.default_rng(0)


MODALITIES = {k: tiny("recognition")[1][k] for k in ("image", "sound")}


def config(**loss):
  c, _, _ = tiny("recognition")
  c.model.inputs = ("image", "sound")
  c.loss.own = {}
  c.loss.update(dropout=0.0, balance=0.0, **loss)
  c.eval.update(num_examples=20, batch_size=8, bootstrap=20, corrupted_examples=10)
  c.corrupt = {"image": {"noise": 0.1}}
  return c


def examples(n=20, split="test") -> Examples:
  digit = RNG.integers(0, 3, n).astype(np.int32)
  columns = {
    "image": Column(RNG.integers(0, 256, (n, 8, 8, 3), np.uint8)),
    "sound": Column(RNG.integers(0, 256, (n, 8, 8), np.uint8), present=digit > 0),
  }
  names = {"digit": ("a", "b", "c")}
  return Examples("x", split, MODALITIES, {"digit": digit}, names, columns, split)


@functools.cache
def trained():
  c = config()
  return c, recognition.init(jax.random.key(0), c, MODALITIES).params


def test_the_step_scales_only_what_the_fused_loss_tells_the_encoder_that_is_ahead():
  _, _, inputs = tiny("recognition")
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  moved = {}
  for strength in (0.0, 0.7):
    c = config()
    c.loss.balance = strength
    state = recognition.init(jax.random.key(0), c, MODALITIES)
    step = jax.jit(recognition.make_train_step(c, MODALITIES))
    after, metrics = step(state, batch, jax.random.key(1))
    moved[strength] = jax.tree.map(jnp.subtract, after.params, state.params)
  factors = {n: float(metrics[f"recognition/balance_{n}"]) for n in ("image", "sound")}
  assert sorted(factors.values())[1] == 1.0 and sorted(factors.values())[0] < 0.5
  for name, part in moved[0.7].items():
    factor = factors.get(name, 1.0)
    want = jax.tree.map(lambda x, f=factor: f * x, moved[0.0][name])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-7), part, want
    )


def test_balance_is_of_the_whole_batch_on_any_number_of_devices():
  c, modalities, inputs = tiny("recognition")
  c.loss.balance = 0.7
  _, metrics = same_on_four_devices(recognition, c, modalities, inputs)
  factors = [x for n, x in metrics.items() if "balance_" in n]
  assert factors and any((np.asarray(x) < 0.99).any() for x in factors)


def test_prediction_in_one_pass_is_that_of_each_subset():
  c, params = trained()
  data = examples()
  predict = recognise.make_predict(c, MODALITIES, batch_size=8)
  damage = ("image", "contrast", 0.9)
  clean, worse = predict(params, data, np.arange(20), [damage])
  generate = recognition.make_generate(c, MODALITIES)
  rows = data.rows(np.arange(20))
  batch = rows | {k: modality.to_model(m, rows[k]) for k, m in MODALITIES.items()}
  for i, given in enumerate(clean.subsets):
    keep = jnp.array([name in given for name in sorted(MODALITIES)])
    logits = generate(params, batch, keep, jax.random.key(5))["digit"]
    np.testing.assert_allclose(clean.logits["digit"][i], logits, atol=1e-4)
    same = np.allclose(worse.logits["digit"][i], logits, atol=1e-3)
    assert same == ("image" not in given)
  assert clean.subsets == [(), ("image",), ("sound",), ("image", "sound")]
  np.testing.assert_array_equal(clean.has["image", "sound"], data.labels["digit"] > 0)


def test_measured_entries_are_those_of_the_predictions():
  c, params = trained()
  data, held_out = examples(), examples(split="validation")
  measure = recognise.make_measure(c, MODALITIES)
  entries = measure(params, data, np.arange(20), held_out, say=lambda message: None)
  entries = [{**entry, "data": {"split": "test"}} for entry in entries]
  predict = recognise.make_predict(c, MODALITIES, batch_size=20)
  (p,) = predict(params, data, np.arange(20))
  find = lambda metric, *given: records.find(entries, metric, given, "digit")
  rows = data.labels["digit"] > 0
  right = p.right("digit")[3][rows]
  both = find("accuracy/digit", "image", "sound")
  assert both["value"] == pytest.approx(right.mean()) and both["samples"] == rows.sum()
  of_all = records.find(entries, "accuracy_of_all/digit", target="digit")
  assert of_all["value"] == both["value"]
  logits = p.logits["digit"][1]
  image = calibration.nll(logits, p.truth["digit"]).mean()
  assert find("nll/digit", "image")["value"] == pytest.approx(image, rel=1e-5)
  t = find("temperature/digit", "sound")["value"]
  scaled = calibration.nll(p.logits["digit"][2][rows] / t, p.truth["digit"][rows])
  assert find("nll_scaled/digit", "sound")["value"] == pytest.approx(scaled.mean())
  shares = [find("shapley/digit", name)["value"] for name in ("image", "sound")]
  nothing = p.right("digit")[0][rows].mean()
  assert sum(shares) == pytest.approx(right.mean() - nothing)
  area = find("robustness/digit/image/noise", "image")
  points = [
    find(f"damaged/digit/image/noise/{s:g}", "image")["value"]
    for s in (0.1, 0.2, 0.3, 0.4, 0.5)
  ]
  curve = np.array([p.right("digit")[1][:10].mean(), *points])
  assert area["value"] == pytest.approx(((curve[1:] + curve[:-1]) / 2).mean())
  assert not find("damaged/digit/image/noise/0.1", "sound")


def test_examples_without_their_label_are_not_asked():
  c, params = trained()
  data, rows = examples(), np.arange(20) % 3 > 0
  digit = np.where(rows, data.labels["digit"], -1)
  gaps = dataclasses.replace(data, labels={"digit": digit})
  predict = recognise.make_predict(c, MODALITIES, batch_size=20)
  (some,) = predict(params, gaps, np.arange(20))
  (want,) = predict(params, data, np.flatnonzero(rows))
  np.testing.assert_array_equal(some.truth["digit"], want.truth["digit"])
  np.testing.assert_array_equal(some.right("digit"), want.right("digit"))


def test_a_split_without_any_label_gives_no_entries():
  c, params = trained()
  data, said = examples(), []
  bare = dataclasses.replace(data, labels={"digit": np.full(20, -1, np.int32)})
  measure = recognise.make_measure(c, MODALITIES)
  assert measure(params, bare, np.arange(20), bare, say=said.append) == []
  found = measure(params, data, np.arange(20), bare, say=said.append)
  names = {e["metric"] for e in found}
  assert "accuracy/digit" in names and "temperature/digit" not in names


def test_every_entry_names_what_its_inputs_suffered():
  c, params = trained()
  data, protocols = examples(), []
  for how in ({"image": {"noise": 0.1}}, {"image": {"noise": 0.3}}, {}):
    c = c.copy_and_resolve_references()
    c.corrupt = how
    measure = recognise.make_measure(c, MODALITIES)
    found = measure(params, data, np.arange(20), data, say=lambda message: None)
    more = {"data": {"fingerprint": "f"}, "weights": "ema"}
    named = [e for e in found if not e["metric"].startswith("accuracy_of_all")]
    assert {e["damage"] for e in found if e not in named} == {
      json.dumps(how) * bool(how)
    }
    protocols.append(
      {
        image: {
          records.protocol(e | more) for e in named if ("image" in e["given"]) == image
        }
        for image in (True, False)
      }
    )
  for a, b in itertools.combinations(protocols, 2):
    assert not a[True] & b[True]
    alone = {p for p in a[False] if "shapley" not in p[0] and "utilis" not in p[0]}
    assert alone and alone <= b[False]  # a sound suffers nothing in all of them


def test_what_does_not_fit_is_refused_by_name():
  c = config()
  c.model.inputs = ("video",)
  with pytest.raises(ValueError, match="'video'"):
    recognition.build(c, MODALITIES)
  c = config()
  c.corrupt = {"word": {"swap": 0.1}}
  with pytest.raises(ValueError, match="'word'"):
    recognition.make_train_step(c, MODALITIES)
  c = config(own={"word": 1.0})
  with pytest.raises(ValueError, match="'word'"):
    recognition.make_train_step(c, MODALITIES)
  c = config()
  c.model.labels = {}
  with pytest.raises(ValueError, match="no label"):
    recognition.build(c, MODALITIES)
  for fused in ({"fused_to_encoders": 0.0}, {"fused": 0.0}):
    c = config(**fused)
    with pytest.raises(ValueError, match=r"fused_to_encoders.*nothing.*loss\.own"):
      recognition.build(c, MODALITIES)
    c.loss.own = {"image": 1.0, "sound": 1.0}
    recognition.build(c, MODALITIES)
    c.loss.balance = 0.5
    with pytest.raises(ValueError, match=r"fused_to_encoders.*loss\.balance = 0\.5"):
      recognition.build(c, MODALITIES)


def test_a_label_that_the_data_lack_is_named():
  c, modalities, inputs = tiny("recognition")
  c.model.labels = {"digits": 3}
  state = recognition.init(jax.random.key(0), c, modalities)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  key, words = jax.random.key(1), r"model\.labels names 'digits'.*\['digit'\]"
  for step, of in (
    (recognition.make_train_step(c, modalities), state),
    (recognition.make_eval_step(c, modalities), state.ema),
  ):
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(step, of, batch, key)


VARIANTS = [*recognition_digits.LAYERS, "image", "sound", "late", "experts", "balance"]
VARIANTS += ["fused"]
VARIANTS = [recognition_digits.get_config(name) for name in ("", *VARIANTS)]
STUDIES = [
  study_fusion.get_config(f"{data},{method}")
  for data in ("sprites", "digits")
  for method in ("recognise", "agree", "see", "hear")
]


@pytest.mark.parametrize("c", [*VARIANTS, *STUDIES])
def test_the_configs_train_their_encoders(c):
  spec = datasets.spec(c.data.name, **c.data.options)
  recognition.make_train_step(c, spec.modalities)
