"""What holds of every family's step, beside test_parallel.py."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import BATCH, tiny

from configs import common
from mmgen_jax.data import modality
from mmgen_jax.fusion import model as fuse
from mmgen_jax.steps import STEPS
from mmgen_jax.steps.inputs import make_augment

FAMILIES = sorted(STEPS)


def first(inputs):
  return jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))


def one_update(family, batch_change=lambda b: b, **changes):
  config, modalities, inputs = tiny(family, **changes)
  state = STEPS[family].init(jax.random.key(0), config, modalities)
  step = jax.jit(STEPS[family].make_train_step(config, modalities))
  return state, *step(state, batch_change(first(inputs)), jax.random.key(1))


def test_families_have_the_same_functions_with_the_same_parameters():
  for name in ("init", "make_train_step", "make_eval_step", "make_generate", "subsets"):
    parameters = {str(inspect.signature(getattr(m, name))) for m in STEPS.values()}
    assert len(parameters) == 1, name


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_is_absent_even_where_it_is_nan(family):
  def poison(batch):
    for name in batch["mask"]:
      x = batch[name]
      has = batch["mask"][name].reshape(-1, *[1] * (x.ndim - 1))
      worst = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 3
      batch[name] = jnp.where(has, x, worst)
    return batch

  _, clean, metrics = one_update(family)
  _, dirty, metrics2 = one_update(family, poison)
  jax.tree.map(np.testing.assert_array_equal, clean.params, dirty.params)
  jax.tree.map(np.testing.assert_array_equal, metrics, metrics2)
  assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_gives_the_types_it_takes(family):
  # Else it is compiled twice: weak types count.
  config, modalities, inputs = tiny(family)
  state = STEPS[family].init(jax.random.key(0), config, modalities)
  step = STEPS[family].make_train_step(config, modalities)
  after, _ = jax.eval_shape(step, state, first(inputs), jax.random.key(1))
  kind = lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type)
  weak = lambda x: (x.shape, x.dtype, x.weak_type)
  assert jax.tree.map(kind, state) == jax.tree.map(weak, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_moves_within_three_updates(family):
  config, modalities, inputs = tiny(family)
  config.optim = config.disc_optim = common.optim(1e-2)  # Adam: any gradient moves
  state = STEPS[family].init(jax.random.key(0), config, modalities)
  step = jax.jit(STEPS[family].make_train_step(config, modalities))
  before = jax.device_get(state.params)
  for i in range(3):
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(i, 1))
    batch["mask"] = jax.tree.map(jnp.ones_like, batch["mask"])
    state, _ = step(state, batch, jax.random.key(1))
  still = [
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(before),
      jax.tree.leaves(state.params),
      strict=True,
    )
    if np.array_equal(a, b)
  ]
  if family == "extension":  # which is there to leave these as they are
    still = [name for name in still if not name.startswith(("['vae']", "['prior']"))]
  # A key's bias adds the same to every logit, which a softmax does not see.
  assert not [name for name in still if "'key']['bias']" not in name]


@pytest.mark.parametrize(
  ("family", "there"),
  [
    ("recognition", ("image", "word")),
    ("alignment", ("image", "word")),
    ("extension", ("image", "word")),
    ("extension", ("sound",)),
  ],
)
def test_blanks_teach_nothing(family, there):
  def only(batch):
    batch["mask"] = {n: jnp.full(BATCH, n in there) for n in batch["mask"]}
    return batch

  before, after, _ = one_update(family, only)
  moved = {
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(before.params),
      jax.tree.leaves(after.params),
      strict=True,
    )
    if not np.array_equal(a, b)
  }
  assert not [name for name in moved if "sound" in name], moved
  assert bool(moved) == (family != "extension")  # which learns from pairs only


def test_the_terms_of_a_fusion_run_have_the_weights_of_the_config():
  config, _, _ = tiny("fusion")
  weights = {"beta": 2.0, "alignment": 3.0, "cross": 5.0, "adversarial_weight": 7.0}
  config.loss.update(weights)
  _, _, metrics = one_update("fusion", loss=config.loss.to_dict())
  of = lambda name: float(metrics[f"fusion/{name}"])
  want = 2 * of("kl") + 3 * of("alignment") - 5 * of("cross") + 7 * of("fool")
  want -= sum(of(f"logp_{name}") for name in ("image", "sound", "word"))
  assert of("loss") == pytest.approx(want, rel=1e-5)
  assert min(abs(of(name)) for name in ("kl", "alignment", "cross", "fool")) > 1e-3


@pytest.mark.parametrize("posterior", ["poe", "mopoe"])
def test_of_a_modality_that_is_never_there_fusion_moves_nothing_else(posterior):
  def without_sound(batch):
    batch["mask"]["sound"] = jnp.zeros(BATCH, bool)
    batch["mask"]["image"] = jnp.ones(BATCH, bool)
    return batch

  config, _, _ = tiny("fusion")
  loss = {**config.loss.to_dict(), "posterior": posterior}
  before, after, metrics = one_update("fusion", without_sound, loss=loss)
  assert all(np.isfinite(v) for v in metrics.values())
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), before.params["vae"], after.params["vae"]
  )
  for part in ("encoders", "decoders"):
    assert max(jax.tree.leaves(moved[f"{part}_sound"])) == 0.0
    assert max(jax.tree.leaves(moved[f"{part}_image"])) > 0.0


def test_what_a_part_tells_is_weighed_by_stand_ins_among_what_is_decoded(monkeypatch):
  *_, metrics = one_update("fusion")
  weigh, seen = fuse.stand_ins, []

  def twice(part, present, kinds):
    seen.append(kinds)
    return 2.0 * weigh(part, present, kinds)

  monkeypatch.setattr(fuse, "stand_ins", twice)
  *_, more = one_update("fusion")
  assert metrics["fusion/cross"] != 0
  np.testing.assert_allclose(more["fusion/cross"], 2 * metrics["fusion/cross"], 1e-5)
  # Images are judged instead.
  assert all([m.kind for m in kinds] == ["audio", "text"] for kinds in seen)


def test_the_alignment_counts_for_what_is_missing(monkeypatch):
  *_, metrics = one_update("fusion")
  weigh, seen = fuse.beside, []

  def twice(part, present):
    seen.append(present)
    return 2.0 * weigh(part, present)

  monkeypatch.setattr(fuse, "beside", twice)
  *_, more = one_update("fusion")
  assert metrics["fusion/alignment"] > 0 and seen
  np.testing.assert_allclose(
    more["fusion/alignment"], 2 * metrics["fusion/alignment"], 1e-5
  )


def test_several_parts_are_drawn_and_their_terms_averaged(monkeypatch):
  draw, drawn = fuse.random_subset, []

  def terms(parts):
    config, _, _ = tiny("fusion")
    loss = {**config.loss.to_dict(), "parts": parts, "subset_power": 0.0}
    *_, metrics = one_update("fusion", loss=loss)
    return metrics

  def keep(keys, present, power):
    part = draw(keys, present, power=power)
    jax.debug.callback(lambda x: drawn.append(np.asarray(x)), part)
    return part

  monkeypatch.setattr(fuse, "random_subset", keep)
  assert terms(3)["fusion/alignment"] != terms(1)["fusion/alignment"]
  assert len({x.tobytes() for x in drawn}) == 3  # the first of three is the only one
  # The alignment is at z given everything: of one part three times, as of it once.
  first = lambda keys, present, power: present & (jnp.arange(3) == 2)[:, None]
  monkeypatch.setattr(fuse, "random_subset", first)
  of_three, of_one = terms(3), terms(1)
  same = of_three["fusion/alignment"], of_one["fusion/alignment"]
  np.testing.assert_allclose(*same, rtol=1e-5)
  # The cross term is at a z of each: other draws, the same scale.
  ratio = of_three["fusion/cross"] / of_one["fusion/cross"]
  assert ratio != 1.0 and 0.8 < ratio < 1.25


@pytest.mark.parametrize("posterior", ["poe", "mopoe"])
def test_both_posteriors_learn_to_reconstruct(posterior):
  config, modalities, inputs = tiny("fusion")
  config.optim = common.optim(3e-3)
  config.disc_optim = common.optim(1e-3)
  config.loss.posterior = posterior
  fusion = STEPS["fusion"]
  state = fusion.init(jax.random.key(0), config, modalities)
  step = jax.jit(fusion.make_train_step(config, modalities))
  batch = first(inputs)
  evaluate = jax.jit(fusion.make_eval_step(config, modalities))

  def word_nats(state):  # given everything; below zero
    losses = evaluate(state.params, batch, jax.random.key(2))
    return float(losses["logp_word"].mean())

  before = word_nats(state)
  for _ in range(150):
    state, _ = step(state, batch, jax.random.key(1))
  assert word_nats(state) > 0.3 * before


def test_generation_depends_only_on_what_is_given():
  config, modalities, inputs = tiny("fusion")
  fusion = STEPS["fusion"]
  state = fusion.init(jax.random.key(0), config, modalities)
  generate = jax.jit(fusion.make_generate(config, modalities))
  batch = first(inputs)
  batch["mask"] = jax.tree.map(jnp.ones_like, batch["mask"])
  given = jnp.array([False, True, False])  # the sound
  key = jax.random.key(2)
  out = generate(state.ema, batch, given, key)
  other = generate(state.ema, batch | {"image": -batch["image"]}, given, key)
  jax.tree.map(np.testing.assert_array_equal, out, other)
  changed = generate(state.ema, batch | {"sound": -batch["sound"]}, given, key)
  assert not np.array_equal(out["image"], changed["image"])
  assert {n: x.shape for n, x in out.items()} == {
    n: (BATCH, *m.shape) for n, m in modalities.items()
  }
  assert len(fusion.subsets(config, modalities)) == 8


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
  _, half, metrics = one_update("fusion", bfloat16=True)
  _, _, exact = one_update("fusion")
  assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(half.params))
  np.testing.assert_allclose(metrics["fusion/elbo"], exact["fusion/elbo"], rtol=0.05)


def test_two_modalities_share_no_augmentation():
  config, _, _ = tiny("fusion")
  kinds = {name: modality.image(8, 8, 1) for name in "ab"}
  config.augment = dict.fromkeys("ab", {"noise": 0.5})
  x = jnp.zeros((2, 8, 8, 1))
  keys = jax.random.split(jax.random.key(0), 2)
  made = make_augment(config, kinds)(keys, {"a": x, "b": x})
  assert not np.isclose(made["a"], made["b"]).all(axis=(1, 2, 3)).any()
  del config.augment["a"]
  alone = make_augment(config, {"b": kinds["b"]})(keys, {"b": x})
  np.testing.assert_array_equal(alone["b"], made["b"])


def test_what_does_not_fit_is_refused_by_name():
  config, modalities, _ = tiny("fusion")
  config.loss.adversarial = ("word",)
  with pytest.raises(ValueError, match="'word'"):
    STEPS["fusion"].build(config, modalities)
  config, modalities, _ = tiny("gan")
  config.model.modality = "video"
  with pytest.raises(ValueError, match="'video'"):
    STEPS["gan"].build(config, modalities)
  config, modalities, _ = tiny("fusion")
  config.augment = {"image": {"blur": 1}}
  with pytest.raises(ValueError, match="blur"):
    STEPS["fusion"].make_train_step(config, modalities)
  config, modalities, _ = tiny("fusion")
  config.loss.parts = 0
  with pytest.raises(ValueError, match="loss.parts must be at least 1, got 0"):
    STEPS["fusion"].build(config, modalities)
