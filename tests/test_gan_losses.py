"""Penalties of the GAN step against closed forms, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_models import tiny

from configs import common
from mmgen_jax.data import modality
from mmgen_jax.models.condition import Verdict
from mmgen_jax.steps import gan_losses
from mmgen_jax.steps.inputs import pair

RNG = np.random.default_rng(0)
REAL, FAKE = jnp.float32(RNG.normal(size=(2, 4, 6, 6, 1)))
HAS = jnp.array([1.0, 1.0, 0.0, 1.0])
FACTOR = jnp.array([1.0, 2.0, 3.0, -1.0])
SHARE = jnp.array([0.0, 1.0, 0.3, 0.6])
MODALITIES = {"image": modality.image(6, 6, 1)}


def judge(x, factor):
  """|x|^2 / 2 times a factor: its slope is the factor times x."""
  return Verdict(0.5 * factor * jnp.square(x).sum((1, 2, 3)))


def slopes(step=0, **loss):
  config = ConfigDict({"loss": {"r1_gamma": 1.0, "r1_fraction": 1, **loss}})
  found = gan_losses.make_slopes(config)(
    judge, REAL, FAKE, FACTOR, HAS, SHARE, jnp.int32(step)
  )
  return {name: float(x) for name, x in found.items()}


def squares(x):
  return np.square(np.asarray(FACTOR)[:, None] * np.reshape(x, (4, -1))).sum(1)


def mean(x):
  return pytest.approx(float((x * HAS).mean()), rel=1e-4)


def test_slopes_are_the_closed_forms_of_the_examples_that_are_there():
  between = FAKE + SHARE[:, None, None, None] * (REAL - FAKE)
  want = {
    "r1": mean(squares(REAL)),
    "r2": mean(squares(FAKE)),
    "wasserstein": mean((np.sqrt(squares(between)) - 1) ** 2),
  }
  assert slopes(r2=True, wasserstein=10.0) == want
  assert slopes() == {"r1": want["r1"]}
  assert slopes(r1_gamma=0.0) == {}
  half = {"r1": pytest.approx(float(squares(REAL)[0] / 2), rel=1e-4)}  # of 0 and 2
  assert slopes(r1_fraction=2) == half


def test_lazy_penalties_come_at_every_kth_update_k_times_as_strong():
  now = slopes(r2=True)
  for step in range(4):
    times = 3.0 if step % 3 == 0 else 0.0
    lazy = slopes(step, r2=True, every=3)
    assert lazy == {k: pytest.approx(times * v) for k, v in now.items()}
  with pytest.raises(ValueError, match="got 0"):
    slopes(every=0)


def test_a_slope_is_that_before_the_augmentation():
  how = {"kind": "ada", "ops": {"geometry": 1.0, "colour": 1.0}, "supersampling": 1}
  config = ConfigDict({"model": {"modality": "image"}, "disc_augment": how})
  augment = gan_losses.make_augment(config, MODALITIES)
  keys = jax.random.split(jax.random.key(0), 4)
  weight = jnp.float32(RNG.normal(size=(6, 6, 1)))

  def through(x, keys):
    return Verdict((augment(keys, x, 0.8) * weight).sum((1, 2, 3)))

  config = ConfigDict({"loss": {"r1_gamma": 1.0, "r1_fraction": 1}})
  lazy = gan_losses.make_slopes(config)
  got = jax.jit(lambda: lazy(through, REAL, FAKE, keys, HAS, SHARE, 0))()["r1"]
  # By the transpose: what each pixel before adds to the weighted sum after.
  basis = jnp.eye(36).reshape(36, 6, 6, 1)
  each = jax.jit(jax.vmap(lambda k, x: augment(k[None], x[None], 0.8)[0], (None, 0)))
  want = []
  for key in keys:
    columns = each(key, basis) - each(key, jnp.zeros_like(basis))
    want.append(float(jnp.square((columns * weight).sum((1, 2, 3))).sum()))
  assert float(got) == mean(np.array(want))
  plain = float((jnp.square(weight).sum() * HAS).mean())
  assert abs(float(got) / plain - 1) > 0.05


def test_consistency_is_the_squared_difference_of_logits():
  config = ConfigDict({"model": {"modality": "image"}, "loss": {}})
  config.loss.consistency = {"real": 10.0, "fake": 0.0, "ops": ("mirror",)}
  tilt = jnp.arange(6.0)[None, None, :, None]

  def sided(x, condition):
    return Verdict((x * tilt).sum((1, 2, 3)))

  x, call = pair(REAL, FAKE), gan_losses.make_consistency(config, MODALITIES)
  logits = lambda x: (x * tilt).sum((1, 2, 3))
  change = jnp.square(logits(REAL[:, :, ::-1]) - logits(REAL))
  # Each real example is mirrored or not: one of the sums over subsets.
  subsets = [np.array(list(f"{i:04b}"), float) for i in range(16)]
  sums = [float(10 * (change * HAS * s).mean()) for s in subsets]
  found = []
  for seed in range(4):
    keys = jax.random.split(jax.random.key(seed), 8)
    got = call(sided, keys, x, None, sided(x, None).logits, HAS)
    assert set(got) == {"consistency_real"}
    found.append(float(got["consistency_real"]))
    assert any(found[-1] == pytest.approx(s, rel=1e-4) for s in sums)
  assert len(set(found)) > 1


def test_fields_that_no_term_has_are_refused():
  config, modalities, _ = tiny("gan")
  assert gan_losses.make_losses(config, modalities)  # a fusion run's, with a posterior
  config.loss = common.gan_loss()
  assert set(config.loss) == set(gan_losses.FIELDS)
  assert gan_losses.make_losses(config, modalities)
  config.loss.update(lecm=0.1, r1=1.0)
  with pytest.raises(ValueError, match=r"no \['lecm', 'r1'\]; it has .*'lecam'"):
    gan_losses.make_losses(config, modalities)


@pytest.mark.parametrize(
  "loss", [{"gan": "relativistic_average"}, {"contrastive": 1.0}]
)
def test_what_is_over_the_batch_takes_no_microbatches(loss):
  config, modalities, _ = tiny("gan", accumulate=2)
  config.loss = common.gan_loss()
  assert gan_losses.make_losses(config, modalities)
  config.loss.update(loss)
  with pytest.raises(ValueError, match="accumulate must be 1, got 2"):
    gan_losses.make_losses(config, modalities)


def test_off_is_off():
  config = ConfigDict({"model": {"modality": "image"}, "loss": common.gan_loss()})
  assert gan_losses.make_consistency(config, MODALITIES)() == {}
  assert slopes(**{k: v for k, v in common.gan_loss().items()}) == {}
