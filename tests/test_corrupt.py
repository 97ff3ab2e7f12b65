"""Damage has the strength that it says, and every kind fits its modality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.data import corrupt as c
from mmgen_jax.data import modality

KEY = jax.random.key(0)
IMAGE = modality.image(32, 24, 3)
SOUND = modality.audio(64, 48, 8000)
WORD = modality.text(["a", "b", "c"], 200)
PIXELS = jax.random.uniform(KEY, (32, 24, 3), minval=-0.4, maxval=0.4)


def test_noise_has_its_deviation_and_leaves_the_mean():
  out = c.corrupt(KEY, PIXELS, IMAGE, {"noise": 0.1}) - PIXELS
  assert float(out.std()) == pytest.approx(0.2, rel=0.05)
  assert abs(float(out.mean())) < 0.02


def test_contrast_keeps_the_mean_and_scales_the_rest():
  out = c.corrupt(KEY, PIXELS, IMAGE, {"contrast": 0.75})
  np.testing.assert_allclose(out.mean(), PIXELS.mean(), atol=1e-6)
  np.testing.assert_allclose(out.std(), PIXELS.std() / 4, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.25, 1.0])
def test_occlusion_hides_its_share_and_nothing_else(strength):
  keys = jax.random.split(KEY, 100)
  out = jax.vmap(lambda k: c.occlusion(k, PIXELS, strength))(keys)
  hidden = np.asarray((out == -1.0).all(-1))
  assert hidden.mean() == pytest.approx(strength, abs=0.02)
  np.testing.assert_array_equal(out[~hidden], np.tile(PIXELS, (100, 1, 1, 1))[~hidden])


def test_blur_is_a_convolution_with_a_gaussian():
  x = np.zeros((33, 33, 1), np.float32)
  x[16, 16] = 1.0
  out = np.asarray(c.blur(KEY, x, 2.0))[..., 0]
  at = np.arange(33) - 16.0
  g = np.exp(-(at**2) / 8)
  np.testing.assert_allclose(out, np.outer(g, g) / g.sum() ** 2, atol=1e-5)
  constant = np.full((8, 5, 2), 0.3, np.float32)
  np.testing.assert_allclose(c.blur(KEY, constant, 3.0), constant, atol=1e-6)
  np.testing.assert_allclose(c.blur(KEY, PIXELS, 0.0), PIXELS, atol=1e-6)


def power(x):
  return 10.0 ** (-6.0 * (1.0 - np.asarray(x, np.float64)) / 2.0)


@pytest.mark.parametrize("decibels", [20.0, 0.0, -10.0])
def test_noise_in_a_sound_has_its_power(decibels):
  sound = jnp.full((64, 48), -0.2).at[:, :20].set(0.1)
  out = c.corrupt(KEY, sound, SOUND, {"snr": decibels})
  added = (power(out) - power(sound)).mean()
  ratio = 10 * np.log10(power(sound).mean() / added)
  assert ratio == pytest.approx(decibels, abs=0.3)


def test_silence_stays_silent():
  silence = jnp.full((64, 48), -1.0)
  np.testing.assert_array_equal(c.corrupt(KEY, silence, SOUND, {"snr": -5.0}), silence)


def test_whole_rows_columns_and_tokens_are_lost_at_their_rate():
  sound = jnp.full((64, 48), 0.5)
  rows = c.corrupt(KEY, sound, SOUND, {"dropout": 0.3}) == -1.0
  columns = c.corrupt(KEY, sound, SOUND, {"bands": 0.3}) == -1.0
  assert np.array_equal(rows.any(1), rows.all(1)) and 0.1 < rows.mean() < 0.5
  assert np.array_equal(columns.any(0), columns.all(0)) and 0.1 < columns.mean() < 0.5
  tokens = jnp.array([2] * 150 + [0] * 50, jnp.int32)
  out = c.corrupt(KEY, tokens, WORD, {"swap": 0.6})
  assert not out[150:].any() and set(out[:150].tolist()) == {2, 3, 4}
  # A third of those drawn anew are what they were.
  assert float((out[:150] != 2).mean()) == pytest.approx(0.4, abs=0.12)


@pytest.mark.parametrize("m", [IMAGE, SOUND, WORD])
def test_every_kind_keeps_shape_range_and_is_of_its_key_alone(m):
  x = jnp.full(m.shape, 2, jnp.int32) if m.kind == "text" else jnp.full(m.shape, 0.2)
  for kind in c.KINDS[m.kind]:
    run = jax.jit(lambda key, s, x=x, kind=kind: c.corrupt(key, x, m, {kind: s}))
    for strength in c.SEVERITIES[kind]:
      out = run(KEY, strength)
      assert out.shape == x.shape and out.dtype == x.dtype
      assert float(jnp.abs(out).max()) <= max(1, m.kind == "text" and 4)
    np.testing.assert_array_equal(out, run(KEY, strength))
  both = {kind: c.SEVERITIES[kind][0] for kind in c.KINDS[m.kind]}
  backwards = dict(reversed(both.items()))
  a, b = c.corrupt(KEY, x, m, both), c.corrupt(KEY, x, m, backwards)
  np.testing.assert_array_equal(a, b)  # in one order, whatever the config's
  with pytest.raises(ValueError, match="no damage 'fire'"):
    c.corrupt(KEY, x, m, {"fire": 1.0})
