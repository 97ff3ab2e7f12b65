"""Precision, recall, density, coverage, modes: against loops and closed forms."""

import numpy as np
import pytest

from mmgen_jax.metrics import manifold as manifold_lib
from mmgen_jax.metrics.manifold import manifold
from mmgen_jax.metrics.modes import inception_score, kl_floor, modes, stacked_mode

RNG = np.random.default_rng(0)


def by_loops(real, fake, k, k_density):
  """The definitions, one pair at a time."""
  distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())

  def radius(i, x, k):
    return sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

  def balls(point, x, k):
    return sum(distance(point, x[i]) <= radius(i, x, k) for i in range(len(x)))

  return (
    np.mean([balls(f, real, k) > 0 for f in fake]),
    np.mean([balls(r, fake, k) > 0 for r in real]),
    sum(balls(f, real, k_density) for f in fake) / (k_density * len(fake)),
    np.mean(
      [
        any(distance(f, real[i]) <= radius(i, real, k_density) for f in fake)
        for i in range(len(real))
      ]
    ),
  )


@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_it_is_the_definition_whatever_the_blocks(block, monkeypatch):
  monkeypatch.setattr(manifold_lib, "BLOCK", block)
  real = RNG.normal(size=(23, 3)) + 100
  fake = RNG.normal(size=(17, 3)) * 1.5 + 100.5
  got = manifold(real, fake, k=2, k_density=4)
  np.testing.assert_allclose(got, by_loops(real, fake, 2, 4), rtol=1e-12)


def test_a_set_covers_itself_and_nothing_far_away():
  x = RNG.normal(size=(60, 4)).astype(np.float32)
  same = manifold(x, x)
  assert same.precision == same.recall == same.coverage == 1.0
  assert manifold(x, x + 1000) == (0.0, 0.0, 0.0, 0.0)


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
  real = RNG.normal(size=(400, 2))
  fake = real[:1] + 1e-3 * RNG.normal(size=(400, 2))
  got = manifold(real, fake)
  assert got.precision > 0.95 and got.recall < 0.05 and got.coverage < 0.1


def test_repeated_examples_have_balls_of_no_size():
  real = np.repeat(RNG.normal(size=(5, 8)) + 50, 6, axis=0)
  got = manifold(real, real[::6].repeat(4, 0), k=3, k_density=3)
  assert got.precision == got.coverage == got.recall == 1.0
  assert manifold(real, real + 1e-3, k=3, k_density=3).precision == 0.0


def test_two_sets_of_one_distribution_reach_the_expected_density_and_coverage():
  real, fake = RNG.normal(size=(2, 3000, 2))
  got = manifold(real, fake, k_density=5)
  assert got.density == pytest.approx(1.0, abs=0.05)
  assert got.coverage == pytest.approx(1 - 2.0**-5, abs=0.01)


def test_bad_sets_are_refused():
  x = np.ones((4, 2))
  for real, fake, match in [
    (x, x, "k = "),
    (np.ones((9, 2)), np.full((9, 2), np.nan), "fake"),
    (np.ones((9, 2)), np.ones((9, 3)), "3"),
    (np.ones(9), x, "real"),
  ]:
    with pytest.raises(ValueError, match=match):
      manifold(real, fake)


def test_modes_and_reverse_kl_by_hand():
  got = modes(np.array([0, 0, 2, 2, 2, 3]), 4)
  p = np.array([2, 3, 1]) / 6
  assert got[:2] == (3, 4)
  assert got.reverse_kl == pytest.approx(float((p * np.log(p * 4)).sum()))
  assert modes(np.arange(8), 8) == (8, 8, 0.0)
  skewed = modes(np.array([0, 1, 1, 1]), 2, np.array([1, 3]))
  assert skewed.reverse_kl == pytest.approx(0.0, abs=1e-12)
  assert modes(np.array([0]), 2, np.array([0, 1])).reverse_kl == np.inf


def test_stacked_modes_are_decimal_numbers():
  assert stacked_mode([[0, 0, 7], [1, 2, 3], [9, 9, 9]]).tolist() == [7, 123, 999]
  with pytest.raises(ValueError, match="digits"):
    stacked_mode([[0, 10, 0]])


def test_the_floor_of_stacked_mnist():
  mean, sd = kl_floor(26_000, 1000)
  assert mean == pytest.approx(999 / 52_000, rel=0.02)  # chi-squared: 0.0192
  assert sd == pytest.approx(np.sqrt(2 * 999) / 52_000, rel=0.15)
  frequencies = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
  p = frequencies / frequencies.sum()
  joint = (p[:, None, None] * p[:, None] * p).ravel()
  mean, _ = kl_floor(26_000, 1000, sampler=joint)  # MNIST's digits are not uniform
  assert mean == pytest.approx(0.0236, abs=0.0005)


def test_the_inception_score_is_between_one_and_the_number_of_classes():
  flat = np.full((20, 5), 0.2)
  assert inception_score(flat, splits=2) == pytest.approx((1.0, 0.0))
  sharp = np.tile(np.eye(5), (4, 1))
  assert inception_score(sharp, splits=2) == pytest.approx((5.0, 0.0))
  p = RNG.dirichlet(np.ones(5), 30)
  entropy = lambda q: -(q * np.log(q)).sum(-1)
  want = np.exp(entropy(p.mean(0)) - entropy(p).mean())  # mutual information
  assert inception_score(p, splits=1)[0] == pytest.approx(want)
  with pytest.raises(ValueError, match="splits"):
    inception_score(p, splits=31)
  with pytest.raises(ValueError, match="sum to 1"):
    inception_score(2 * p)
  with pytest.raises(ValueError, match="labels"):
    modes(np.array([3]), 3)
