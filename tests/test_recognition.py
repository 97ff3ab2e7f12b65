"""Recognition: balance, the step beside tests/test_steps.py, evaluation in one pass."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from configs import common, recognition_digits, study_fusion
from mmgen_jax import balance, checkpoint, initial, recognise, records
from mmgen_jax import data as datasets
from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.metrics import calibration
from mmgen_jax.models import recognition as recognition_model
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.steps import recognition

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(3), 20_000)


def test_modality_dropout_has_its_probabilities_and_never_leaves_nothing():
  mask = np.ones((2, len(KEYS)), bool)
  mask[0, ::2] = False  # of these, the second one always stays
  out = np.asarray(balance.modality_dropout(KEYS, mask, 0.3))
  assert out[1, ::2].all() and not out[0, ::2].any()
  both, first, second = (
    (out[:, 1::2] == np.array(s)[:, None]).all(0).mean()
    for s in ([1, 1], [1, 0], [0, 1])
  )
  # All is kept where nothing is dropped, or everything would be.
  np.testing.assert_allclose([both, first, second], [0.58, 0.21, 0.21], atol=0.015)
  np.testing.assert_array_equal(balance.modality_dropout(KEYS, mask, 0.0), mask)
  nothing = np.zeros_like(mask)
  assert not balance.modality_dropout(KEYS, nothing, 0.5).any()


def test_scaled_gradients_leave_the_value():
  x = jnp.array([0.1, 3.7])
  value, grad = jax.value_and_grad(
    lambda x: jnp.sin(balance.scale_gradient(x, 0.25)).sum()
  )(x)
  assert value == jnp.sin(x).sum()
  np.testing.assert_allclose(grad, 0.25 * jnp.cos(x))


def test_modulation_slows_who_is_ahead_by_the_papers_formula():
  right = RNG.uniform(0.1, 0.9, (2, 6)).astype(np.float32)
  right[0] = np.minimum(right[0] + 0.5, 1.0)
  mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1]], bool)
  ratio = right[0][mask[0]].mean() / right[1][mask[1]].mean()
  out = balance.modulation(right, mask, 0.4)
  np.testing.assert_allclose(out, [1 - np.tanh(0.4 * ratio), 1.0], rtol=1e-5)
  dirty = np.where(mask, right, np.nan)
  np.testing.assert_array_equal(balance.modulation(dirty, mask, 0.4), out)
  np.testing.assert_array_equal(balance.modulation(right, mask, 0.0), [1.0, 1.0])
  never = mask & np.array([[True], [False]])
  np.testing.assert_array_equal(balance.modulation(right, never, 0.4), [1.0, 1.0])


def test_modulation_is_that_of_the_global_batch():
  right, mask = RNG.uniform(size=(3, 8)).astype(np.float32), RNG.random((3, 8)) > 0.4
  whole = balance.modulation(right, mask, 0.5)
  cut = lambda x: np.moveaxis(x.reshape(3, 4, 2), 1, 0)
  of = jax.pmap(
    lambda r, m: balance.modulation(r, m, 0.5, "data"), axis_name="data", out_axes=None
  )
  np.testing.assert_allclose(of(cut(right), cut(mask)), whole, rtol=1e-6)


def test_blending_weights_maximise_gain_over_expected_overfitting():
  train = np.array([[2.0, 2.1, 2.2], [0.5, 1.0, 0.3]])
  held_out = np.array([[2.1, 2.2, 2.2], [1.1, 1.4, 1.5]])
  w = balance.blending_weights(train, held_out)
  assert w.sum() == pytest.approx(1.0)
  gain = held_out[0] - held_out[1]
  gap = (held_out - train)[1] - (held_out - train)[0]
  # Uncorrelated gradients: overfitting's expected square is sum (w_k O_k)^2, for a gain
  # that is held fixed.
  ratio = lambda w: ((w * gap) ** 2).sum() / (w @ gain) ** 2
  others = RNG.dirichlet(np.ones(3), 5000)
  assert ratio(w) <= min(map(ratio, others)) + 1e-12
  worse = held_out.copy()
  worse[1, 0] = 3.0
  assert balance.blending_weights(train, worse)[0] == 0.0
  with pytest.raises(ValueError, match="no held-out loss fell"):
    balance.blending_weights(train, worse[::-1] * np.array([0, 1, 1]))


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
  for method in ("recognise", "see", "hear")
]


@pytest.mark.parametrize("c", [*VARIANTS, *STUDIES])
def test_the_configs_train_their_encoders(c):
  spec = datasets.spec(c.data.name, **c.data.options)
  recognition.make_train_step(c, spec.modalities)


def test_one_modality_needs_no_other_to_be_fused_with():
  c = config()
  c.model.update(inputs=("image",), fusion="mean")
  net = recognition.build(c, MODALITIES)
  params = recognition.merged(recognition.init(jax.random.key(0), c, MODALITIES).params)
  x = jnp.asarray(RNG.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
  features = apply(net, params, {"image": x}, method="encode")
  logits = apply(net, params, features, jnp.ones((1, 4), bool), method="fuse")
  head = params["heads_digit"]
  want = features[0] @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(logits["digit"], want, atol=1e-5)


def test_the_own_head_decides_where_one_modality_is_alone():
  c, modalities, _ = tiny("recognition")
  net = recognition.build(c, modalities)
  params = recognition.merged(recognition.init(jax.random.key(0), c, modalities).params)
  h = jnp.asarray(RNG.normal(size=(3, 4, c.model.features)), jnp.float32)
  mask = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
  decided = apply(net, params, h, mask, method="decide")["digit"]
  own = apply(net, params, h, method="alone")["digit"]
  fused = apply(net, params, h, mask, method="fuse")["digit"]
  want = jnp.stack([fused[0], own[0, 1], own[1, 2], fused[3]])
  np.testing.assert_allclose(decided, want, rtol=1e-6)


def test_late_fusion_is_bayes_rule_for_independent_inputs():
  """Of three inputs drawn from known p(x | class), classes equally likely."""
  rng = np.random.default_rng(1)
  given_class = rng.dirichlet(np.ones(5), (3, 4))  # p(x_m = v | c), [m c v]
  values = rng.integers(0, 5, (3, 20))
  likelihood = np.stack([given_class[m][:, values[m]].T for m in range(3)])  # [m b c]
  mask = rng.random((3, 20)) > 0.4
  mask[:, 0] = False
  each = likelihood / likelihood.sum(-1, keepdims=True)
  shift = rng.normal(size=(3, 20, 1))  # logits are known up to a constant
  logits = jnp.asarray(np.log(each) + shift)
  together = np.where(mask[..., None], likelihood, 1.0).prod(0)
  want = together / together.sum(-1, keepdims=True)
  got = jax.nn.softmax(recognition_model.product(logits, jnp.asarray(mask)))
  np.testing.assert_allclose(got, want, rtol=1e-4)
  np.testing.assert_allclose(got[0], 0.25, rtol=1e-6)


def test_late_fusion_has_no_network_and_needs_heads():
  c, modalities, inputs = tiny("recognition")
  c.model.fusion = "late"
  c.loss.update(fused=0.0, balance=0.0)
  state = recognition.init(jax.random.key(0), c, modalities)
  assert sorted(state.params) == ["image", "sound", "word"]
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  after, _ = jax.jit(recognition.make_train_step(c, modalities))(
    state, batch, jax.random.key(1)
  )
  assert sorted(after.opt_state) == ["image", "sound", "word"]
  net, params = recognition.build(c, modalities), recognition.merged(after.params)
  h = jnp.asarray(RNG.normal(size=(3, 4, c.model.features)), jnp.float32)
  mask = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
  decided = apply(net, params, h, mask, method="decide")["digit"]
  own = apply(net, params, h, method="alone")["digit"]
  want = jnp.stack(
    [jnp.zeros(3), own[0, 1], own[1, 2], jax.nn.log_softmax(own[:, 3]).sum(0)]
  )
  np.testing.assert_allclose(decided, want, atol=1e-5)
  c.loss.update(fused=1.0)
  c.loss.own = {}
  with pytest.raises(ValueError, match="is of own heads, and loss.own = {} has none"):
    recognition.build(c, modalities)


def test_the_fused_loss_may_be_kept_from_the_encoders():
  c, modalities, inputs = tiny("recognition")
  c.model.update(inputs=("word",), fusion="mean")
  c.loss.fused_to_encoders, c.loss.own = 0.0, {"word": 0.0}
  state = recognition.init(jax.random.key(0), c, modalities)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  step = jax.jit(recognition.make_train_step(c, modalities))
  after, _ = step(state, batch, jax.random.key(1))
  old, new = state.params, after.params
  jax.tree.map(np.testing.assert_array_equal, new["word"], old["word"])
  bias = lambda params: params["fusion"]["heads_digit"]["bias"]
  assert not np.array_equal(bias(new), bias(old))


def test_a_network_of_its_own_for_each_modality_and_for_what_fuses_them():
  c, modalities, _ = tiny("recognition")
  net = recognition.build(c, modalities)
  shapes = {n: jnp.zeros((1, *m.shape), jnp.int32) for n, m in modalities.items()}
  tree = init_params(net, jax.random.key(0), shapes, jnp.ones((3, 1), bool))
  networks = recognition.split(tree)
  assert sorted(networks) == ["fusion", "image", "sound", "word"]
  assert sorted(networks["word"]) == ["encoder", "heads_digit"]
  assert "heads_digit" in networks["fusion"]
  assert jax.tree.structure(recognition.merged(networks)) == jax.tree.structure(tree)
  c.model.inputs = ("image", "fusion")
  with pytest.raises(ValueError, match="can be called 'fusion'"):
    recognition.build(c, modalities | {"fusion": modalities["image"]})


HURT = {"image": {"noise": 0.5}, "sound": {"snr": 0.0}}


def lone(name):
  """A config of one modality, else that of `tiny`."""
  c, _, _ = tiny("recognition")
  c.model.update(inputs=(name,), fusion="mean")
  c.loss.own = {name: c.loss.own[name]}
  c.loss.fused_to_encoders, c.loss.balance = 0.0, 0.0
  c.corrupt = {name: HURT[name]}
  return c


@pytest.mark.parametrize("name", ["image", "sound"])
def test_beside_others_a_modality_learns_what_it_learns_alone(name):
  """From equal initial weights: the same data, damage and updates, if by its own head."""
  both, modalities, inputs = tiny("recognition")
  both.model.inputs = ("image", "sound")
  both.loss.own = {n: both.loss.own[n] for n in both.model.inputs}
  both.loss.fused_to_encoders, both.loss.balance = 0.0, 0.0
  both.corrupt = HURT
  after = {}
  for c in (both, lone(name)):
    state = recognition.init(jax.random.key(0), c, modalities)
    step = jax.jit(recognition.make_train_step(c, modalities))
    for i in range(3):
      batch = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), inputs(0, 3))
      state, _ = step(state, batch, jax.random.key(1))
    after[len(c.model.inputs)] = state.params[name]
  of_start = recognition.init(jax.random.key(0), both, modalities).params[name]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after[1], after[2]
  )
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after[1], of_start)
  assert max(jax.tree.leaves(moved)) > 3e-4


def test_frozen_networks_are_those_of_single_runs_and_say_the_same_alone(tmp_path):
  """Bit for bit, through training: what one modality says is never less than before."""
  _, modalities, inputs = tiny("recognition")
  names = ("image", "sound")
  single = {}
  for i, name in enumerate(names):
    c = lone(name)
    single[name] = c, recognition.init(jax.random.key(i), c, modalities)
    checkpoint.save(tmp_path / name / "checkpoints", single[name][1], 1)
  c, _, _ = tiny("recognition")
  c.model.inputs, c.loss.balance = names, 0.0
  c.loss.own = {n: c.loss.own[n] for n in names}
  c.corrupt = HURT
  c.initial, c.frozen = {n: str(tmp_path / n) for n in names}, names
  c.optim = common.optim(1e-2, name="adamw", weight_decay=0.1)
  start = initial.fill(recognition.init(jax.random.key(5), c, modalities), c, tmp_path)
  step = jax.jit(recognition.make_train_step(c, modalities))
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  state, metrics = step(start, batch, jax.random.key(1))
  assert list(state.opt_state) == ["fusion"]
  assert "norm/fusion_grad" in metrics and "norm/image_grad" not in metrics
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  for name in names:
    old, params = single[name]
    same(state.ema[name], params.params[name])
    same(state.params[name], params.params[name])
    keep = jnp.array([n == name for n in sorted(modalities)])
    say = lambda c, s, keep=keep: recognition.make_generate(c, modalities)(
      s.ema, batch, keep, jax.random.key(0)
    )
    has = np.asarray(batch["mask"][name])
    after, before = say(c, state)["digit"][has], say(old, params)["digit"][has]
    np.testing.assert_array_equal(after, before)
    assert len(after)
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b),
    state.params["fusion"],
    start.params["fusion"],
  )
  assert any(jax.tree.leaves(moved))


def test_what_cannot_be_frozen_is_named():
  c, modalities, _ = tiny("recognition")
  for frozen, match in [
    (("imgae",), "frozen names network 'imgae'; there are .*'fusion'"),
    (("image", "sound", "word", "fusion"), "every network: nothing would learn"),
  ]:
    c.frozen = frozen
    with pytest.raises(ValueError, match=match):
      recognition.make_train_step(c, modalities)
  c.frozen, c.loss.balance = ("image", "sound", "word"), 0.5
  with pytest.raises(
    ValueError, match=r"no loss tells .*loss.balance = 0.5 could scale"
  ):
    recognition.make_train_step(c, modalities)
  c.loss.balance, c.loss.own = 0.0, {}
  recognition.make_train_step(c, modalities)  # own heads are not needed then
