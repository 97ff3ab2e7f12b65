"""Metrics against second derivations: scipy, closed forms, loops, hand-made sets."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from mmgen_jax.metrics import bootstrap, coherence, frechet


def _spd(rng, d):
  a = rng.normal(size=(d, d))
  return a @ a.T / d + 0.1 * np.eye(d)


@pytest.mark.parametrize("d", [1, 3, 32])
def test_frechet_is_scipys(d):
  rng = np.random.default_rng(d)
  (m, n), (a, b) = rng.normal(size=(2, d)), (_spd(rng, d), _spd(rng, d))
  root = np.atleast_2d(np.asarray(scipy.linalg.sqrtm(a @ b)))
  expected = np.sum((m - n) ** 2) + np.trace(a + b - 2 * root.real)
  np.testing.assert_allclose(frechet.gaussian_frechet(m, a, n, b), expected, rtol=1e-9)


def test_frechet_of_commuting_covariances_is_the_closed_form():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
  u, v = rng.uniform(0, 2, 8), np.append(rng.uniform(0, 2, 6), [0.0, 0.0])  # singular
  a, b = (basis * u) @ basis.T, (basis * v) @ basis.T
  got = frechet.gaussian_frechet(np.zeros(8), a, np.ones(8), b)
  expected = 8 + np.sum((np.sqrt(u) - np.sqrt(v)) ** 2)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_frechet_of_shift_and_scale():
  x = np.random.default_rng(0).normal(size=(500, 5))
  same = frechet.moments(x)
  shift, scale = np.arange(5.0), 3.0
  moved = frechet.frechet_distance(same, frechet.moments(x + shift))
  np.testing.assert_allclose(moved, np.sum(shift**2), rtol=1e-9)
  grown = frechet.frechet_distance(same, frechet.moments(scale * x))
  expected = (scale - 1) ** 2 * (
    np.sum(same.mean**2) + np.trace(frechet.covariance(same))
  )
  np.testing.assert_allclose(grown, expected, rtol=1e-9)
  assert frechet.frechet_distance(same, same) < 1e-9
  a, b = frechet.moments(x), frechet.moments(x**3)
  np.testing.assert_allclose(
    frechet.frechet_distance(a, b), frechet.frechet_distance(b, a), rtol=1e-9
  )


def test_frechet_of_fewer_examples_than_features_is_finite():
  x, y = np.random.default_rng(0).normal(size=(2, 10, 40))
  a, b = frechet.moments(x), frechet.moments(y)
  assert 0 < frechet.frechet_distance(a, b) < np.inf
  assert frechet.frechet_distance(a, a) < 1e-5


def test_moments_stream():
  x = np.random.default_rng(0).normal(1e4, 1.0, size=(1000, 6)).astype(np.float32)
  streamed = frechet.moments(x[:0])
  for part in np.split(x, [1, 7, 512]):
    streamed = frechet.merge(streamed, frechet.moments(part))
  assert streamed.count == 1000
  np.testing.assert_allclose(streamed.mean, x.astype(np.float64).mean(0), rtol=1e-12)
  expected = np.cov(x.astype(np.float64), rowvar=False)
  np.testing.assert_allclose(
    frechet.covariance(streamed), expected, rtol=1e-8, atol=1e-8
  )


def test_moments_of_blocks_and_of_processes():
  x = np.random.default_rng(0).normal(1e4, 1.0, size=(200, 5))
  whole = frechet.moments(x)
  got = frechet.running(iter(np.split(x, [3, 90])))
  assert got.count == 200
  np.testing.assert_allclose(got.scatter, whole.scatter, rtol=1e-9)
  with pytest.raises(ValueError, match="no features"):
    frechet.running(iter([]))
  # What another process gets went through a JAX array and lost no bit.
  words = np.asarray(jnp.asarray(frechet._words(whole)))
  back = frechet._from_words(words)
  assert back.count == 200
  for name in ("mean", "scatter"):
    np.testing.assert_array_equal(getattr(back, name), getattr(whole, name))
  assert frechet.over_processes(whole) is whole  # there is one


def test_features_are_checked():
  with pytest.raises(ValueError, match="not finite"):
    frechet.moments(np.array([[np.nan, 1.0]]))
  with pytest.raises(ValueError, match=r"shape \[n, d\]"):
    frechet.unbiased_mmd2(np.zeros((4, 2, 2)), np.zeros((4, 2)))
  with pytest.raises(ValueError, match="at least 2 examples, got 1"):
    frechet.covariance(frechet.moments(np.zeros((1, 3))))


def test_mmd_is_the_double_loop():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 3)), rng.normal(0.5, 2.0, size=(5, 3))
  k = lambda a, b: (float(a @ b) / 3 + 1) ** 3
  within = lambda z: np.mean([k(a, b) for a in z for b in z if a is not b])
  x, y = list(x), list(y)
  across = np.mean([k(a, b) for a in x for b in y])
  expected = within(x) + within(y) - 2 * across
  got = frechet.unbiased_mmd2(np.stack(x), np.stack(y))
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_kid_of_reconstructions_is_no_lower_than_of_other_examples():
  x, y = np.random.default_rng(0).normal(size=(2, 1000, 4))
  apart, alike = frechet.kid(x, y, block_size=25), frechet.kid(x, x, block_size=25)
  assert abs(alike.value - apart.value) < 4 * apart.standard_error


def test_kid_is_unbiased_and_its_error_honest():
  rng = np.random.default_rng(0)
  runs = [frechet.kid(*rng.normal(size=(2, 200, 4)), block_size=25) for _ in range(200)]
  values = np.array([r.value for r in runs])
  assert runs[0].blocks == 8
  assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)  # true value 0
  errors = np.mean([r.standard_error for r in runs])
  np.testing.assert_allclose(errors, values.std(), rtol=0.25)
  far = frechet.kid(rng.normal(size=(200, 4)), rng.normal(1.0, size=(200, 4)))
  assert far.value > 5 * errors and np.isnan(far.standard_error)


def test_bootstrap_covers():
  rng = np.random.default_rng(0)
  draws = {
    "binary": (0.8, lambda: rng.random(200) < 0.8),
    "real": (1.0, lambda: rng.exponential(1.0, 200)),
  }
  for name, (truth, draw) in draws.items():
    hits = []
    for seed in range(200):
      mean, low, high = bootstrap.mean_interval(draw(), resamples=400, seed=seed)
      assert low <= mean <= high
      hits.append(low <= truth <= high)
    assert 0.88 <= np.mean(hits) <= 0.99, name


def test_bootstrap_binary_shortcut_is_the_plain_bootstrap():
  x = np.random.default_rng(0).random(300) < 0.9
  short = bootstrap.mean_interval(x, resamples=4000)
  plain = bootstrap.mean_interval(x.astype(float), resamples=4000)
  np.testing.assert_allclose(short, plain, atol=0.005)


def test_bootstrap_macro_weighs_classes_alike():
  values = np.array([True] * 90 + [False] * 10)
  groups = np.array([0] * 90 + [1] * 10)
  assert bootstrap.mean_interval(values, groups)[0] == 0.5
  assert bootstrap.mean_interval(values)[0] == 0.9
  with pytest.raises(ValueError, match="n > 0"):
    bootstrap.mean_interval(values[:0])


def test_correct_by_hand():
  truth = {"shape": np.array([0, 1, 2, -1]), "size": np.array([0, 0, 1, 1])}
  read = {"shape": np.array([0, 1, -1, -1]), "size": np.array([0, 1, 1, 1])}
  got = coherence.correct(read, truth)
  assert got["shape"].tolist() == [True, True, False, False]  # -1 is never right
  assert got["size"].tolist() == [True, False, True, True]
  assert got["strict"].tolist() == [True, False, False, False]
  assert coherence.readable(read).tolist() == [True, True, False, False]
  with pytest.raises(ValueError, match="no attribute 'colour'"):
    coherence.correct({"colour": np.array([0])}, truth)


def test_agree_by_hand():
  read = {
    "image": {"digit": np.array([3, 3, -1, 4]), "hue": np.array([0, 0, 0, -1])},
    "sound": {"digit": np.array([3, 3, -1, 4])},
    "text": {"digit": np.array([3, 2, -1, 4])},
  }
  got = coherence.agree(read)
  assert set(got) == {"digit", "strict"}  # only one modality carries the hue
  assert got["digit"].tolist() == [True, False, False, True]  # -1 agrees with nothing
  assert got["strict"].tolist() == [True, False, False, False]  # the last is unreadable
  with pytest.raises(ValueError, match="carried by two"):
    coherence.agree({"image": read["image"]})


def test_classes_name_combinations():
  truth = {"a": np.array([0, 0, 1, 1, 0]), "b": np.array([5, 6, 5, 5, 5])}
  got = coherence.classes(truth, ["a", "b"])
  assert got[0] == got[4] and got[2] == got[3] and len(set(got.tolist())) == 3
