"""Augmentation: nothing by default, what each field does, the same for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.data.augment import Augmentation, augment

X = jax.random.uniform(jax.random.key(1), (12, 9, 2), minval=-0.9, maxval=0.9)


def draws(n=200, x=X, **how):
  keys = jax.random.split(jax.random.key(0), n)
  return np.asarray(jax.vmap(lambda k: augment(k, x, Augmentation(**how)))(keys))


def test_zeros_change_nothing():
  assert (draws(3) == np.asarray(X)).all()


def test_a_shift_moves_a_line_up_to_so_far_and_no_stretch():
  line = jnp.full((21, 21, 1), -1.0).at[10].set(1.0)  # one row
  energy = draws(x=line, shift=(4.0, 0.0))[..., 0] + 1
  assert np.ptp(energy, axis=2).max() < 1e-5  # columns stay as they were
  at = (energy[..., 0] * np.arange(21)).sum(1) / energy[..., 0].sum(1)
  np.testing.assert_allclose(energy[..., 0].sum(1), 2.0, rtol=1e-4)
  assert 3.5 < np.abs(at - 10).max() <= 4.0 + 1e-4
  assert at.min() < 7 and at.max() > 13


def test_a_stretch_keeps_the_middle_and_moves_the_edge():
  ramp = jnp.broadcast_to(jnp.linspace(-0.5, 0.5, 21)[:, None, None], (21, 5, 1))
  out = draws(x=ramp, scale=(0.2, 0.0))
  np.testing.assert_allclose(out[:, 10], 0.0, atol=1e-6)
  slope = (out[:, 12, 0, 0] - out[:, 8, 0, 0]) / 0.2
  assert np.abs(np.log(slope)).max() <= 0.2 + 1e-4
  assert slope.min() < 0.87 and slope.max() > 1.15


def test_gain_and_tilt_leave_silence_alone():
  x = X.at[:4].set(-1.0)
  louder = draws(2000, x=jnp.where(x > -1, 0.0, x), gain=0.1)
  assert (louder[:, :4] == -1).all()
  np.testing.assert_allclose(louder[:, 5:].std(), 0.1, rtol=0.1)
  tilted = draws(2000, x=jnp.zeros((4, 9, 1)), tilt=0.1)
  np.testing.assert_allclose(tilted[:, 0, 0], -tilted[:, 0, -1], atol=1e-6)
  np.testing.assert_allclose(tilted[:, :, 4], 0.0, atol=1e-6)
  np.testing.assert_allclose(tilted[:, 0, 0].std(), 0.1, rtol=0.1)


def test_noise_is_white_and_values_stay_in_range():
  out = draws(x=jnp.zeros((8, 8, 1)), noise=0.1)
  np.testing.assert_allclose(out.std(), 0.1, rtol=0.05)
  assert np.abs(draws(x=X, noise=2.0)).max() == 1.0


@pytest.mark.parametrize("axis", [1, 2])
def test_blanked_bands_are_no_wider_than_asked(axis):
  blank = draws(2000, x=jnp.zeros((16, 16, 1)), erase=3)[..., 0] == -1
  lines = blank.all(3 - axis).sum(1)  # rows, or columns, that are blank all along
  assert lines.max() == 3 and (lines == 0).any()


def test_the_same_key_gives_the_same_and_another_another():
  how = {"shift": (2.0, 2.0), "noise": 0.1, "erase": 3}
  assert (draws(5, **how) == draws(5, **how)).all()
  a, b = draws(2, **how)
  assert (a != b).any()
