"""Probes and scores of known answer; imputation against a Gaussian's conditional."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import representation as R
from mmgen_jax.likelihoods import gaussian
from mmgen_jax.losses import gaussian_log_prob

RNG = np.random.default_rng(0)


def test_probes_read_what_is_there_and_guess_what_is_not():
  labels = RNG.integers(0, 3, 600)
  codes = (
    np.eye(3)[labels] @ RNG.normal(size=(3, 4)) * 5 + RNG.normal(size=(600, 4)) / 9
  )
  noise = RNG.normal(size=(600, 4))
  knn = lambda *data: R.nearest_neighbours(*data, neighbours=7)
  for probe in (R.linear_probe, knn):
    right = lambda x, probe=probe: np.mean(
      probe(x[:300], labels[:300] + 5, x[300:]) == labels[300:] + 5
    )
    assert right(codes) == 1.0
    assert 0.2 < right(noise) < 0.47


def test_a_tie_goes_to_the_nearest():
  codes, labels = np.array([[0.0], [1.0], [2.5], [9.0]]), np.array([4, 7, 4, 7])
  at = np.array([[0.9], [-0.5]])
  got = [R.nearest_neighbours(codes, labels, at, neighbours=k) for k in (1, 2, 3)]
  np.testing.assert_array_equal(got, [[7, 4], [7, 4], [4, 4]])
  with pytest.raises(ValueError, match="neighbours must be 1 to 4"):
    R.nearest_neighbours(codes, labels, at, neighbours=5)


def test_auroc_counts_pairs():
  normal, odd = RNG.integers(0, 6, 40), RNG.integers(2, 9, 30)
  pairs = odd[:, None] - normal
  want = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
  np.testing.assert_allclose(R.auroc(normal, odd), want)
  np.testing.assert_allclose(R.auroc(odd, normal), 1 - want)


def test_interpolation_ends_where_it_should_and_keeps_its_norm():
  a, b = RNG.normal(size=(2, 5, 3)).astype(np.float32)
  for spherical in (False, True):
    path = R.interpolate(a, b, 5, spherical=spherical)
    np.testing.assert_allclose(path[0], a, atol=1e-5)
    np.testing.assert_allclose(path[-1], b, atol=1e-5)
  size = np.linalg.norm(path, axis=-1)
  np.testing.assert_allclose(size[2], (size[0] + size[-1]) / 2, rtol=1e-4)
  steps = (path[1:] * path[:-1]).sum(-1) / (size[1:] * size[:-1])
  np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-4)
  same = R.interpolate(a, a, 4, spherical=True)  # no circle to go along
  np.testing.assert_allclose(same, np.broadcast_to(a, same.shape), atol=1e-4)


@pytest.mark.parametrize("prior", [0.0, 0.8])
def test_imputation_is_the_gaussian_conditional_whatever_q_is(prior):
  rng = np.random.default_rng(0)
  w, scale = rng.normal(size=(2, 6)).astype(np.float32), 0.5
  x = rng.normal(size=(3, 2)).astype(np.float32) @ w
  x += (scale * rng.normal(size=x.shape)).astype(np.float32)
  seen = np.array([[1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1]], bool)
  encode = lambda x: (0.1 * x[:, :2], jnp.full((3, 2), 0.3))  # wrong, but broad
  got = jax.jit(
    lambda key, x: R.impute(
      key,
      x,
      seen,
      encode=encode,
      decode=lambda z: (z @ w)[..., None],
      likelihood=gaussian(scale=scale),
      log_prior=lambda z: gaussian_log_prob(z, prior, 0.0),
      samples=100_000,
      sweeps=2,
    )
  )(jax.random.key(0), np.where(seen, x, 1e9))
  for i, s in enumerate(seen):
    precision = np.eye(2) + w[:, s] @ w[:, s].T / scale**2
    z = np.linalg.solve(precision, w[:, s] @ x[i, s] / scale**2 + prior)
    np.testing.assert_allclose(got.mean[i], np.where(s, x[i], z @ w), atol=0.03)
    np.testing.assert_array_equal(got.sample[i, s], x[i, s])
  assert (got.effective > 100).all() and (got.effective < 100_000).all()
