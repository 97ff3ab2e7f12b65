"""Quantisers: nearest codes, moving averages, revival, finite scalars."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import quantise as vq

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
Z = RNG.normal(size=(6, 4, 5, 3)).astype(np.float32)


def book(count, codes):
  count = jnp.asarray(count, jnp.float32)
  return {"count": count, "total": jnp.asarray(codes, jnp.float32) * count[:, None]}


def test_the_nearest_code_is_the_nearest():
  codes = RNG.normal(size=(7, 3))
  want = np.square(Z[..., None, :] - codes).sum(-1).argmin(-1)
  np.testing.assert_array_equal(vq.nearest(jnp.asarray(codes), jnp.asarray(Z)), want)


def test_without_memory_the_average_is_a_step_of_k_means():
  codes = RNG.normal(size=(4, 3)).astype(np.float32)
  ids = vq.nearest(jnp.asarray(codes), jnp.asarray(Z))
  got = vq.move(book(np.ones(4), codes), vq.assignments(ids, jnp.asarray(Z), 4), 0.0)
  want = [Z[np.asarray(ids) == k].mean(0) for k in range(4)]
  np.testing.assert_allclose(vq.codes_of(got), want, rtol=1e-5)
  assert got["count"].sum() == pytest.approx(20)  # positions of one example


def test_a_code_that_nothing_is_assigned_to_stays():
  ids = jnp.zeros((6, 4, 5), jnp.int32)
  before = book([1, 2], RNG.normal(size=(2, 3)))
  after = vq.move(before, vq.assignments(ids, jnp.asarray(Z), 2), 0.9)
  np.testing.assert_allclose(vq.codes_of(after)[1], vq.codes_of(before)[1], rtol=1e-6)
  assert after["count"][1] == pytest.approx(1.8)
  for _ in range(400):  # 0.5^400 is no float32
    after = vq.move(after, vq.assignments(ids, jnp.asarray(Z), 2), 0.5)
  np.testing.assert_allclose(vq.codes_of(after)[1], vq.codes_of(before)[1], rtol=1e-4)
  # What has no id (past the end) counts for nothing.
  none = vq.assignments(ids + 2, jnp.asarray(Z), 2)
  assert not none["count"].any() and not none["total"].any()


def test_dead_codes_share_the_place_and_the_count_of_live_ones():
  codes = RNG.normal(size=(5, 3))
  before = book(
    [10, 1e-4, 6, 0.0, 1e-5], np.where(np.arange(5)[:, None] == 3, 0, codes)
  )
  before["count"] = before["count"].at[3].set(1e-6)
  after = vq.revive(before, KEY, threshold=0.1, noise=1e-3)
  again = vq.revive(before, KEY, threshold=0.1, noise=1e-3)
  jax.tree.map(np.testing.assert_array_equal, after, again)
  np.testing.assert_allclose(after["count"].sum(), 16, rtol=1e-5)
  moved = np.asarray(vq.codes_of(after))
  np.testing.assert_allclose(moved[[0, 2]], codes[[0, 2]], rtol=1e-5)
  distance = np.abs(moved[[1, 3, 4], None] - codes[[0, 2]]).max(-1).min(1)
  assert (distance < 0.01).all() and (distance > 0).all()
  assert (after["count"] > 1).all()
  untouched = vq.revive(after, KEY, threshold=0.1)
  np.testing.assert_allclose(vq.codes_of(untouched), moved, rtol=1e-5)


def test_revival_spreads_the_codes_where_one_took_all():
  centres = 4.0 * np.stack(np.meshgrid([0, 1, 2], [0, 1, 2]), -1).reshape(-1, 2)
  z = jnp.asarray(centres[RNG.integers(0, 9, 400)] + 0.1 * RNG.normal(size=(400, 2)))
  z = z[:, None]

  def errors(threshold):
    start = book(np.ones(12), np.r_[[[4, 4]], RNG.normal(size=(11, 2)) + 90])

    def step(b, i):
      ids = vq.nearest(vq.codes_of(b), z)
      b = vq.move(b, vq.assignments(ids, z, 12), 0.8)
      b = vq.revive(b, jax.random.fold_in(KEY, i), threshold=threshold)
      return b, jnp.square(z - vq.codes_of(b)[ids]).sum(-1).mean()

    return jax.lax.scan(step, start, jnp.arange(200))[1]

  assert errors(0.0)[-1] > 20 and errors(0.2)[-1] < 3


def test_perplexity_counts_codes_that_are_used_alike():
  assert vq.perplexity(jnp.array([2.0, 2, 2, 0])) == pytest.approx(3.0, rel=1e-5)
  assert vq.perplexity(jnp.array([5.0, 0])) == pytest.approx(1.0, rel=1e-5)


def test_finite_scalars_have_all_their_codes_and_come_back_from_them():
  fsq = vq.Fsq((5, 4, 3))
  z = jnp.asarray(list(itertools.product(np.linspace(-4, 4, 30), repeat=3)))
  ids, values = fsq.quantise(z)
  assert sorted(np.unique(ids)) == list(range(60)) and fsq.codes == 60
  np.testing.assert_allclose(fsq.lookup(ids), values, atol=1e-6)
  assert np.abs(values).max() <= 1.0
  np.testing.assert_allclose(fsq.bound(jnp.zeros(3)), 0.0, atol=1e-6)


def test_gradients_pass_as_if_nothing_were_rounded():
  fsq = vq.Fsq((5, 4))
  z = jnp.array([0.3, -0.7])
  middle = np.array([2, 2])
  got = jax.grad(lambda z: (fsq.quantise(z)[1] * jnp.array([1.0, 3.0])).sum())(z)
  want = jax.grad(lambda z: (fsq.bound(z) / middle * jnp.array([1.0, 3.0])).sum())(z)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  to = jnp.array([9.0, 9.0])
  value, back = jax.vjp(lambda z: vq.straight_through(z, to), z)
  np.testing.assert_allclose(value, to)
  np.testing.assert_array_equal(back(jnp.array([2.0, 5.0]))[0], [2.0, 5.0])
