"""GANs under a condition: what is missing does not leak, what is wrong counts as fake."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from tiny_models import BATCH, tiny

from configs import common
from mmgen_jax import parallel
from mmgen_jax.losses import contrast
from mmgen_jax.models.condition import ConditionEncoder, Given
from mmgen_jax.steps import gan, gan_losses, gan_networks

key = jax.random.key


def conditional():
  """A tiny GAN of images from words and sounds, with all terms that cross examples.

  And without slopes, which test_gan_losses.py has, and which double the compilation.
  """
  config, modalities, inputs = tiny("gan", batch_size=BATCH)
  config.model.update(
    net="r3gan",
    condition=("sound", "word"),
    encoder={
      "widths": {"text": 8, "audio": 4},
      "features": 8,
      "blocks": 0,
      "fusion": "gated",
      "dropout": 0.3,
    },
    group_size=8,
    patch=2,
  )
  for widths in (config.model.widths, config.model.disc_widths):
    with widths.ignore_type():
      widths.image = (8,)
  config.loss = ConfigDict(
    {"gan": "relativistic_average", "r1_gamma": 0.0, "r1_fraction": 1}
  )
  config.loss.update(auxiliary=0.5, contrastive=0.5, mismatch=0.5, lecam=0.1)
  config.loss.consistency = {"real": 0.1, "fake": 0.1, "ops": ("mirror",)}
  config.disc_augment = {
    "kind": "diffaugment",
    "ops": {"translation": 1.0},
    "strength": (0.3, 0.3),
    "target": 0.6,  # adaptive
    "images": 1000.0,
  }
  return config, modalities, inputs


@functools.cache
def updates(mode="jit"):
  config, modalities, inputs = conditional()
  mesh = parallel.make_mesh()
  step = gan.make_train_step(config, modalities)
  run = parallel.compile_step(step, mesh, mode, updates=4)
  state = jax.jit(lambda: gan.init(key(0), config, modalities))()
  state = parallel.put_replicated(state, mesh)
  put = parallel.put_inputs(inputs(0, 4), mesh, mode)
  return jax.device_get(run(state, (), put, key(1)))


def test_all_examples_at_once_are_four_devices_with_a_part_each():
  (one, metrics), (four, others) = updates(), updates("pmap")
  assert {"gan/mismatch", "gan/contrastive", "gan/g_auxiliary"} < set(metrics)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, one.params, four.params)
  jax.tree.map(close, metrics, others)
  jax.tree.map(close, one.extra, four.extra)


def test_the_state_follows_the_logits():
  state, metrics = updates()
  strength = metrics["schedule/strength"]
  np.testing.assert_allclose(strength, 0.3)  # changes after every fourth update
  assert abs(state.extra["augment"]["strength"] - 0.3) == pytest.approx(
    BATCH * 4 / 1000
  )
  average = 0.0
  for step, logit in enumerate(metrics["gan/logits_real"]):
    keep = min(0.99, (1 + step) / (10 + step))
    average = keep * average + (1 - keep) * logit
  assert state.extra["lecam"]["real"] == pytest.approx(average, rel=1e-4)


@functools.cache
def encoder():
  """(apply(values, mask), parameters) of one for words and sounds."""
  _, modalities, _ = conditional()
  given = {name: modalities[name] for name in ("sound", "word")}
  net = ConditionEncoder(given, {"text": 8, "audio": 4}, 8, 0, "gated")
  values, mask = told()
  return jax.jit(net.apply), net.init(key(0), values, mask)


def told(seed=0):
  rng = np.random.default_rng(seed)
  sound = jnp.float32(rng.normal(size=(4, 8, 8)))
  word = jnp.array([[2, 3, 4], [3, 2, 2], [4, 4, 0], [2, 2, 2]])
  mask = {"sound": jnp.array([1, 0, 1, 0]) > 0, "word": jnp.array([1, 1, 0, 0]) > 0}
  return {"sound": sound, "word": word}, mask


def test_the_embedding_does_not_see_what_is_missing():
  apply, params = encoder()
  values, mask = told()
  e = apply(params, values, mask)
  changed = apply(params, {"sound": -values["sound"], "word": values["word"]}, mask)
  np.testing.assert_array_equal(e[1::2], changed[1::2])
  assert not np.allclose(e[0], changed[0]) and not np.allclose(e[2], changed[2])
  other = values["word"].at[2:].set(3)
  np.testing.assert_array_equal(e, apply(params, {**values, "word": other}, mask))
  np.testing.assert_allclose(e[:3, :-1].var(1), 1, rtol=1e-2)
  np.testing.assert_array_equal(e[:, -1], [0, 0, 0, 1])
  assert not e[3, :-1].any()


def test_generation_follows_what_is_given_and_only_that():
  config, modalities, inputs = conditional()
  assert gan.subsets(config, modalities) == [
    (),
    ("sound",),
    ("word",),
    ("sound", "word"),
  ]
  state = updates()[0]
  generate = jax.jit(gan.make_generate(config, modalities))
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  batch["mask"] = jax.tree.map(jnp.ones_like, batch["mask"])
  make = lambda batch, *given: generate(
    state.params, batch, jnp.array([False, *given]), key(2)
  )["image"]
  quiet = {**batch, "sound": -batch["sound"], "image": -batch["image"]}
  assert make(batch, False, False).shape == (BATCH, 8, 8, 3)
  np.testing.assert_array_equal(make(batch, False, True), make(quiet, False, True))
  assert not np.allclose(make(batch, True, True), make(quiet, True, True), atol=1e-6)
  assert not np.allclose(make(batch, False, True), make(batch, False, False), atol=1e-6)


def test_a_model_that_never_lacked_anything_is_always_given_all():
  config, modalities, _ = conditional()
  config.model.encoder.dropout = 0.0
  assert gan.subsets(config, modalities) == [("sound", "word")]


@pytest.mark.parametrize(
  "missing, want",
  [
    ({"sound": 0.5}, [("word",), ("sound", "word")]),
    ({"word": (0.0, 0.3, 0.0)}, [("sound",), ("sound", "word")]),
    ({"image": 0.5, "word": 0.0}, [("sound", "word")]),
    ({"word": 0.1, "sound": 0.1}, [(), ("sound",), ("word",), ("sound", "word")]),
  ],
)
def test_only_what_was_missing_in_training_may_be(missing, want):
  config, modalities, _ = conditional()
  config.model.encoder.dropout = 0.0
  config.data.missing = missing
  assert gan.subsets(config, modalities) == want
  config.data.missing_rate = 0.9  # `missing` comes before it
  assert gan.subsets(config, modalities) == want


def test_an_example_that_is_missing_moves_no_other():
  config, modalities, inputs = conditional()
  config.loss = common.gan_loss(gan="relativistic_average", mismatch=0.5)
  config.model.encoder.dropout = 0.0  # else the changed word may be hidden
  del config.disc_augment
  d_loss, g_loss = gan_losses.make_losses(config, modalities)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  batch["mask"] = {name: jnp.ones(BATCH, bool) for name in modalities}
  batch["mask"]["image"] = batch["mask"]["image"].at[-1].set(False)  # rolled to the 1st
  batch["mask"] |= {n: batch["mask"][n].at[0].set(False) for n in ("sound", "word")}
  batch["labels"]["digit"] = batch["labels"]["digit"].at[-1].set(0).at[0].set(0)
  other = {**batch, "word": batch["word"].at[-1].set(1)}
  params, keys = updates()[0].params, jax.random.split(key(0), BATCH)
  now = gan_losses.Now(jnp.int32(0), 0.0)

  @jax.jit
  def both(batch):
    of = params["discriminator"], params["generator"]
    d, g = d_loss(*of, batch, keys, now)[1], g_loss(*of[::-1], batch, keys, now)[1]
    return {k: v for k, v in (d | g).items() if k[:4] == "gan/"}

  a, b = both(batch), both(other)
  assert {"gan/d_loss", "gan/mismatch", "gan/g_loss"} == set(a)
  assert float(a["gan/mismatch"]) > 0
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_hiding_is_by_example_and_as_often_as_asked():
  config, modalities, inputs = conditional()
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  batch["mask"] = jax.tree.map(jnp.ones_like, batch["mask"])
  keep = lambda k: (
    gan_networks.given_of(config, modalities, batch, jax.random.split(k, BATCH)).mask
  )
  mask = jax.vmap(keep)(jax.random.split(key(0), 500))
  for kept in mask.values():
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
  both = (mask["sound"] & mask["word"]).mean()
  assert both == pytest.approx(0.49, abs=0.03)


def test_only_what_both_are_told_can_differ():
  values, mask = told()
  before = lambda x: jnp.roll(x, 1, 0)
  given = Given(None, values, mask)
  other = jax.tree.map(before, given)
  # 0 and 3 share nothing that both have; 2 and 1 neither; 1 and 0 have other words.
  np.testing.assert_array_equal(gan_networks.differ(given, other), [0, 1, 0, 0])
  label = jnp.array([1, 1, 2, 2])
  given = Given(label, {}, {})
  other = jax.tree.map(before, given)
  np.testing.assert_array_equal(gan_networks.differ(given, other), [1, 0, 1, 0])


def test_rolling_is_over_the_global_batch():
  x = jnp.arange(8.0)
  want = [7, 0, 1, 2, 3, 4, 5, 6]
  np.testing.assert_array_equal(parallel.roll(x, None), want)
  part = jax.pmap(lambda x: parallel.roll(x, "data"), axis_name="data")
  np.testing.assert_array_equal(part(x.reshape(4, 2)).reshape(-1), want)
  split = NamedSharding(parallel.make_mesh(), P(parallel.AXIS))
  one = jax.jit(lambda x: parallel.roll(2 * x, None), out_shardings=split)
  text = one.lower(jax.device_put(x, split)).compile().as_text()
  assert "collective-permute" in text and "all-gather" not in text


def test_the_contrast_is_the_log_share_of_the_own_key():
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 5)), rng.normal(size=(4, 5))
  there = np.array([True, False, True, True])
  own = np.array([2, 3])
  cosine = q @ k.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(k, axis=1)
  weight = np.exp(cosine / 0.5) * there
  want = -np.log(weight[[0, 1], own] / weight.sum(1))
  args = jnp.float32(q), jnp.float32(k), jnp.array(own), jnp.array(there)
  np.testing.assert_allclose(contrast(*args, temperature=0.5), want, rtol=1e-5)


@pytest.mark.parametrize(
  "change, what",
  [
    ({"condition": ("image",)}, "'sound', 'word'"),
    ({"condition": ("smell",)}, "'sound', 'word'"),
    ({"condition": ()}, "loss.contrastive"),
    ({"classes": 0}, "loss.auxiliary"),
  ],
)
def test_conditions_that_are_not_there_are_refused(change, what):
  config, modalities, _ = conditional()
  config.model.update(change)
  with pytest.raises(ValueError, match=what):
    gan.build(config, modalities)


def test_held_out_logits_are_of_the_examples_that_are_there():
  config, modalities, inputs = conditional()
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  evaluate, params = gan.make_eval_step(config, modalities), updates()[0].params
  out = jax.jit(evaluate)(params, batch, key(3))
  has = np.asarray(batch["mask"]["image"])
  assert set(out) == {"logits_real", "logits_fake"} and not has.all()
  for logits in out.values():
    assert logits.shape == (BATCH,) and not logits[~has].any()
    assert (logits[has] != 0).all()
  assert evaluate({"generator": params["generator"]}, batch, key(3)) == {}
  config.eval.truncation = 1e-3  # as in training: not cut off
  whole = jax.jit(gan.make_eval_step(config, modalities))(params, batch, key(3))
  jax.tree.map(np.testing.assert_array_equal, out, whole)
