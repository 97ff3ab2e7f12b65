"""Schedules against the formula, and the GAN step that follows them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_models import BATCH, tiny

from configs import common
from mmgen_jax import parallel, schedules
from mmgen_jax.steps import gan

BURN_IN = {
  "images": 40,
  "learning_rate": (1e-2, 1e-3),
  "b2": (0.9, 0.99),
  "gamma": (1.0, 0.1),
  "half_life_images": (0.0, 16.0),
}


def by_hand(start, end, n):
  return end + (start - end) * (1 + np.cos(np.pi * min(n / 40, 1))) / 2


def test_half_a_cosine_then_constant():
  value = schedules.burn_in(2.0, 0.5, 40)
  for n in (0, 7, 20, 39, 40, 1000):
    assert float(value(n)) == pytest.approx(by_hand(2.0, 0.5, n), rel=1e-5)
  assert float(value(0)) == 2.0 and float(value(10**9)) == 0.5
  assert float(schedules.burn_in(0.9, 0.99, 40)(20)) == pytest.approx(0.945)


def test_half_lives():
  assert float(schedules.half_life_decay(32, 0.0)) == 0.0
  kept = float(schedules.half_life_decay(32, 320.0))
  assert kept**10 == pytest.approx(0.5, rel=1e-5)  # 320 images later
  assert schedules.half_life_decay(512, 5e6) == pytest.approx(0.99993, abs=1e-5)


def test_scheduled_adam_is_adam_with_the_present_values():
  s = schedules.make_burn_in(ConfigDict(BURN_IN))
  config = common.optim(1e-2, b1=0.5)
  tx = schedules.scheduled_adam(config, s.learning_rate, s.b2, batch_size=8)
  rng = np.random.default_rng(0)
  w, m, v = jnp.zeros(3), np.zeros(3), np.zeros(3)
  state = tx.init(w)
  for t in range(1, 9):
    grad = rng.normal(size=3)
    n = 8 * (t - 1)
    rate, b2 = by_hand(1e-2, 1e-3, n), by_hand(0.9, 0.99, n)
    m, v = 0.5 * m + 0.5 * grad, b2 * v + (1 - b2) * grad**2
    want = -rate * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    got, state = tx.update(jnp.float32(grad), state)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@functools.cache
def compiled(devices, mode):
  """(first state, one update, mesh, inputs) of a tiny conditional R3GAN."""
  config, modalities, inputs = tiny("gan", batch_size=BATCH)
  with config.unlocked(), config.model.ignore_type():
    config.model.net, config.model.group_size, config.model.patch = "r3gan", 8, 2
    for widths in (config.model.widths, config.model.disc_widths):
      with widths.ignore_type():
        widths.image = (16, 8)
    config.loss.update(gan="relativistic", r2=True)
  config.optim = config.disc_optim = common.optim(1.0)
  common.burn_in(config, **BURN_IN)
  mesh = parallel.make_mesh(jax.devices()[:devices])
  step = gan.make_train_step(config, modalities)
  go = parallel.compile_step(step, mesh, mode, updates=1, scan=False)
  state = jax.device_get(gan.init(jax.random.key(0), config, modalities))
  return state, go, mesh, inputs


def run(updates, devices=1, mode="jit", first=0, state=None):
  """(state, [metrics]) after some updates."""
  start, go, mesh, inputs = compiled(devices, mode)
  state = parallel.put_replicated(start if state is None else state, mesh)
  history = []
  for i in range(first, first + updates):
    batch = parallel.put_inputs(inputs(i, 1), mesh, mode)
    state, metrics = go(state, (), batch, jax.random.key(1))
    history.append(jax.device_get(metrics))
  return jax.device_get(state), history


def test_the_step_follows_the_images_and_resumes_bit_for_bit():
  straight, history = run(3)
  for i, metrics in enumerate(history):
    for name in ("learning_rate", "b2", "gamma", "half_life_images"):
      want = by_hand(*BURN_IN[name], BATCH * i)
      assert metrics[f"schedule/{name}"][0] == pytest.approx(want, rel=1e-4, abs=1e-6)
    ratio = metrics["gan/r2"] / metrics["gan/r1"]
    np.testing.assert_allclose(metrics["gan/r2_over_r1"], ratio, rtol=1e-5)
  half, _ = run(1)
  np.testing.assert_array_equal(  # a half-life of 0 is a copy
    *[jax.flatten_util.ravel_pytree(p["generator"])[0] for p in (half.ema, half.params)]
  )
  resumed, _ = run(2, first=1, state=half)
  jax.tree.map(np.testing.assert_array_equal, straight, resumed)
  kind = lambda x: (x.shape, x.dtype)
  assert jax.tree.map(kind, half) == jax.tree.map(kind, straight)


def test_four_devices_are_one():
  (one, a), (four, b) = run(1), run(1, devices=4, mode="pmap")
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-5)
  assert one.step == four.step == 1


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="positive, got 0"):
    schedules.burn_in(1.0, 2.0, 0)
  with pytest.raises(ValueError, match="burn_in must have"):
    schedules.make_burn_in(ConfigDict({"images": 10, "gamma": (1.0, 0.1)}))
  s = schedules.make_burn_in(ConfigDict(BURN_IN))
  with pytest.raises(ValueError, match="'sgd'"):
    schedules.scheduled_adam(common.optim(1.0, name="sgd"), s.learning_rate, s.b2, 8)
  config, modalities, _ = tiny("gan")
  config.model["net"] = "biggan"
  with pytest.raises(ValueError, match="'biggan'"):
    gan.build(config, modalities)


@pytest.mark.parametrize(
  "field, value, by",
  [
    ("optim.learning_rate", 1e-3, "learning_rate"),
    ("disc_optim.learning_rate", 2e-2, "learning_rate"),
    ("optim.b2", 0.999, "b2"),
    ("disc_optim.b2", 0.99, "b2"),
    ("loss.r1_gamma", 0.1, "gamma"),
    ("ema_decay", 0.99, "half_life_images"),
  ],
)
def test_what_burn_in_replaces_is_not_ignored(field, value, by):
  config, modalities, _ = tiny("gan")
  config.optim, config.disc_optim = (common.optim(1.0) for _ in range(2))
  common.burn_in(config, **BURN_IN)
  assert gan.make_train_step(config, modalities)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=rf"^{field} = {value:g} .* set burn_in\.{by} "):
    gan.make_train_step(config, modalities)
  assert gan.init(jax.random.key(0), config, modalities)  # checkpoints stay readable
  with config.unlocked():
    del config.burn_in
  assert gan.make_train_step(config, modalities)


def test_burn_in_takes_other_starts_what_they_replace_at_the_start_and_no_penalty():
  config, _, _ = tiny("gan")
  config.optim, config.disc_optim = (common.optim(1.0) for _ in range(2))
  common.burn_in(config, **BURN_IN | {"half_life_images": (32.0, 64.0)})
  config.burn_in.learning_rate = (0.5, 0.1)
  schedules.check_replaced(config)
  config.optim.learning_rate, config.loss.r1_gamma = 0.5, 0.0
  config.ema_decay = 2.0 ** (-config.batch_size / 32)
  schedules.check_replaced(config)
