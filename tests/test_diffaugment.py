"""Differentiable augmentation against SciPy, closed forms, and at strength 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from mmgen_jax import diffaugment

RNG = np.random.default_rng(0)
GRID = np.float32(RNG.uniform(-1, 1, (8, 12, 3)))
key = jax.random.key


@functools.cache
def whole(kind):
  """Every operation of a kind, compiled, at any strength."""
  ops = dict.fromkeys(diffaugment.PIPES[kind], 1.0)
  return jax.jit(diffaugment.make_pipe(kind, ops))


@pytest.mark.parametrize("kind", sorted(diffaugment.PIPES))
def test_at_strength_0_nothing_changes(kind):
  for seed in range(3):
    got = whole(kind)(key(seed), GRID, 0.0)
    np.testing.assert_allclose(got, GRID, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(diffaugment.PIPES))
def test_the_gradient_is_that_of_an_affine_map_and_reaches_the_picture(kind):
  other = np.float32(RNG.normal(size=GRID.shape))
  pipe = functools.partial(whole(kind), key(5))
  weight = np.float32(RNG.normal(size=GRID.shape))
  f = lambda x: (weight * pipe(x, 0.6)).sum()
  slope = jax.grad(f)(GRID)
  assert jnp.isfinite(slope).all() and jnp.abs(slope).max() > 0.1
  got = float(f(GRID + other) - f(GRID))
  assert got == pytest.approx(float((slope * other).sum()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", sorted(diffaugment.PIPES))
def test_every_operation_changes_examples_as_often_as_asked(kind):
  for name in sorted(set(diffaugment.PIPES[kind]) - {"geometry"}):
    pipe = diffaugment.make_pipe(kind, {name: 0.5}, supersampling=1)
    keys = jax.random.split(key(1), 200)
    some = jax.jit(jax.vmap(pipe, (0, None, None)))(keys, GRID, 0.4)
    changed = (jnp.abs(some - GRID).max((1, 2, 3)) > 1e-4).mean()
    # One draw at 0.2, or several; a mirror image is its second half only.
    assert 0.05 < changed < 0.8 and (name != "cutout" or changed < 0.3), name


def test_the_filter_is_orthonormal_with_six_vanishing_moments():
  h, k = diffaugment.SYM6, np.arange(12.0)
  shifts = [h[2 * n :] @ h[: 12 - 2 * n] for n in range(6)]
  np.testing.assert_allclose(shifts, [1, 0, 0, 0, 0, 0], atol=1e-9)
  moments = [((-1) ** k * k**p) @ h for p in range(6)]
  np.testing.assert_allclose(moments, 0, atol=1e-7)


TURN = [0.8, 0.5, 1.25, -1.1, [1.5, -2.25]]  # scale, before, stretch, after, moved


def forwards(scale, before, stretch, after, moved):
  """The affine map of points of the picture, as a chain of its parts."""

  def turn(a):
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])

  a = turn(after) @ np.diag([1 / stretch, stretch]) @ turn(before) * scale
  return lambda p: a @ p + np.array(moved)


def test_the_source_of_a_point_is_the_inverse_of_the_parts_in_order():
  back, there = np.array(diffaugment.source(*map(jnp.asarray, TURN))), forwards(*TURN)
  for point in RNG.normal(size=(5, 2)):
    moved = there(point)
    np.testing.assert_allclose(back[:, :2] @ moved + back[:, 2], point, atol=1e-5)


def sampled(dense, back, rows, columns, place):
  """Bilinear values of `dense`; `place` maps pixels to positions in it."""
  points = np.stack(np.meshgrid(rows, columns, indexing="ij"))
  at = np.einsum("ab,bij->aij", back[:, :2], points) + back[:, 2, None, None]
  at = [place(p, axis) for axis, p in enumerate(at)]
  take = lambda c: scipy.ndimage.map_coordinates(c, at, order=1, mode="nearest")
  return np.stack([take(dense[..., c]) for c in range(dense.shape[-1])], -1)


MIDDLE = (np.array(GRID.shape[:2]) - 1) / 2
BACK = np.array(diffaugment.source(*map(jnp.asarray, TURN)))
PADDED = np.pad(GRID, [(7, 7), (11, 11), (0, 0)], mode="reflect")


def test_a_plain_warp_is_scipys_with_reflection():
  rows, columns = (
    np.arange(n) - m for n, m in zip(GRID.shape[:2], MIDDLE, strict=True)
  )
  place = lambda p, axis: p + MIDDLE[axis] + (7, 11)[axis]
  want = sampled(PADDED, BACK, rows, columns, place)
  np.testing.assert_allclose(diffaugment.warp(GRID, BACK, 1), want, atol=1e-4)
  # And where one reflection is enough, SciPy's own.
  small = BACK * [1, 1, 0.2] / 1.5
  got = diffaugment.warp(GRID, small, 1)
  offset = MIDDLE - small[:, :2] @ MIDDLE + small[:, 2]
  for c in range(3):
    want = scipy.ndimage.affine_transform(
      GRID[..., c], small[:, :2], offset, order=1, mode="mirror"
    )
    np.testing.assert_allclose(got[..., c], want, atol=1e-4)


def test_a_filtered_warp_is_upsampling_warping_and_downsampling():
  h = diffaugment.SYM6
  off = h @ np.arange(12) / h.sum() - 5
  dense = PADDED.astype(np.float64)
  for axis in (0, 1):
    dense = scipy.signal.upfirdn(h * 2**0.5, dense, up=2, axis=axis)
    n = 2 * PADDED.shape[axis]
    dense = dense.take(range(5, 5 + n), axis)  # tap 5 is on the pixel
  # Six pixels more around, so that all taps of `down` are there.
  rows, columns = (
    (np.arange(2 * (n + 12)) - off) / 2 - 6 - m
    for n, m in zip(GRID.shape[:2], MIDDLE, strict=True)
  )
  place = lambda p, axis: 2 * (p + MIDDLE[axis] + (7, 11)[axis]) + off
  want = sampled(dense, BACK, rows, columns, place)
  for axis in (0, 1):
    want = scipy.signal.upfirdn(h[::-1] / 2**0.5, want, down=1, axis=axis)
    n = GRID.shape[axis]
    want = want.take(6 + 2 * (np.arange(n) + 6), axis)
  got = diffaugment.warp(GRID, BACK)
  np.testing.assert_allclose(got, want, atol=2e-3)
  same = diffaugment.warp(GRID, np.eye(2, 3))
  np.testing.assert_allclose(same, GRID, atol=1e-4)


def test_colours_are_the_closed_forms():
  third = 2 * np.pi / 3
  matrix = lambda *a: diffaugment.colour_matrix(*map(jnp.asarray, a))
  through = lambda *a: diffaugment.recolour(GRID, matrix(*a))
  grey = GRID.mean(-1, keepdims=True)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  close(through(0.0, 1.0, 0.0, 0.0, 1.0), GRID)
  close(through(0.3, 0.5, 0.0, 0.0, 1.0), (GRID + 0.3) * 0.5)
  close(through(0.0, 1.0, 1.0, 0.0, 1.0), GRID - 2 * grey)
  close(through(0.0, 1.0, 0.0, third, 1.0), GRID[..., [2, 0, 1]])  # red turns green
  close(through(0.0, 1.0, 0.0, 0.0, 0.2), grey + 0.2 * (GRID - grey))
  one = diffaugment.recolour(GRID[..., :1], matrix(0.3, 0.5, 1.0, 1.2, 4.0))
  close(one, -(GRID[..., :1] + 0.3) * 0.5)


def test_shifts_and_boxes_are_numpys():
  moved = diffaugment.shift(GRID, jnp.array([1, -2]), (2, 3), "constant")
  want = np.zeros_like(GRID)
  want[1:, :-2] = GRID[:-1, 2:]
  np.testing.assert_array_equal(moved, want)
  moved = diffaugment.shift(GRID, jnp.array([1, -2]), (2, 3), "reflect")
  want[0, :-2], want[1:, -2:] = GRID[1, 2:], GRID[:-1, [-2, -3]]
  want[0, -2:] = GRID[1, [-2, -3]]
  np.testing.assert_array_equal(moved, want)
  boxed = np.array(diffaugment.cutout(GRID, jnp.array([0.5, 0.0])))
  want = GRID.copy()
  want[2:6, :3] = 0
  np.testing.assert_array_equal(boxed, want)


def test_noise_is_independent_and_of_the_strength_that_is_said():
  pipe = jax.jit(
    jax.vmap(diffaugment.make_pipe("ada", {"noise": 1.0}), (0, None, None))
  )
  noise = np.asarray(pipe(jax.random.split(key(0), 4000), GRID, 1.0)) - GRID
  sigma = noise.std((1, 2, 3))
  assert sigma.mean() == pytest.approx(0.1 * (2 / np.pi) ** 0.5, rel=0.05)
  assert (sigma**2).mean() == pytest.approx(0.01, rel=0.1)
  between = (noise[:, 0, 0, 0] * noise[:, 0, 1, 0]).mean()
  assert abs(between) < 6e-4  # four standard errors; if it were the same: 0.01


def test_mild_colours_keep_what_they_should():
  pipe = jax.jit(diffaugment.make_pipe("diffaugment", {"colour": 1.0}))
  out = np.stack([pipe(key(i), GRID, 1.0) for i in range(100)])
  assert np.abs(out.mean((1, 2, 3)) - GRID.mean()).max() <= 0.5
  parts = lambda x: (x - x.mean(-1, keepdims=True)).reshape(len(x), -1)
  ratio = np.linalg.norm(parts(out), axis=1) / np.linalg.norm(parts(GRID[None]))
  assert ratio.max() <= 3.0 and ratio.max() > 2.0 and ratio.min() < 0.3


def test_the_adaptive_strength_follows_its_target_every_fourth_update():
  now = {"strength": jnp.float32(0.1), "signs": jnp.float32(0.0)}
  how = {"target": 0.6, "batch_size": 50, "images": 2000}
  seen = []
  for step in range(8):
    sign = jnp.float32(0.9 if step < 4 else 0.1)
    now = diffaugment.adapt(now, sign, jnp.int32(step), **how)
    seen.append(round(float(now["strength"]), 4))
  assert seen == [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.1]
  assert float(now["signs"]) == 0.0


def test_what_is_not_there_is_refused():
  with pytest.raises(ValueError, match="'ada', 'diffaugment'"):
    diffaugment.make_pipe("crop", {})
  with pytest.raises(ValueError, match="blur"):
    diffaugment.make_pipe("ada", {"blur": 1.0})
  with pytest.raises(ValueError, match="got 3"):
    diffaugment.make_pipe("ada", {"geometry": 1.0}, supersampling=3)
