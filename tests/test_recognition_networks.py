"""A recogniser's networks: own heads, late fusion, alone and beside others, frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from configs import common
from mmgen_jax import checkpoint, initial
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.recognition import product
from mmgen_jax.steps import recognition

RNG = np.random.default_rng(0)


def test_one_modality_needs_no_other_to_be_fused_with():
  c, modalities, _ = tiny("recognition")
  c.model.update(inputs=("image",), fusion="mean")
  net = recognition.build(c, modalities)
  params = recognition.merged(recognition.init(jax.random.key(0), c, modalities).params)
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
  own = jax.nn.log_softmax(own)
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
  got = jax.nn.softmax(product(logits, jnp.asarray(mask)))
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
  own = jax.nn.log_softmax(apply(net, params, h, method="alone")["digit"])
  want = jnp.stack([jnp.zeros(3), own[0, 1], own[1, 2], own[:, 3].sum(0)])
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
  c.model.update(inputs=(name,), fusion="late")
  c.loss.own = {name: c.loss.own[name]}
  c.loss.fused, c.loss.balance = 0.0, 0.0
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
