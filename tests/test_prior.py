import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax.models import prior


def test_one_component_is_the_unit_gaussian_and_stays():
  p = prior.init_mixture(jax.random.key(0), 1, 3)
  z = jax.random.normal(jax.random.key(1), (5, 3))
  want = stats.norm(0, 1).logpdf(np.asarray(z)).sum(-1)
  np.testing.assert_allclose(prior.log_prob(p, z), want, rtol=1e-5)
  moved = prior.maximisation(p, prior.expectation(p, 5 + z), 0.5, jax.random.key(2))
  np.testing.assert_array_equal(moved.first, p.first)


def test_log_prob_is_scipys_mixture():
  p = prior.Mixture(
    jnp.array([0.25, 0.75]),
    jnp.array([[0.25], [-1.5]]),  # means 1, -2
    jnp.array([[0.25 * 1.5], [0.75 * 6.0]]),  # variances 0.5, 2
  )
  z = np.linspace(-5, 5, 11)[:, None]
  want = 0.25 * stats.norm(1, 0.5**0.5).pdf(z) + 0.75 * stats.norm(-2, 2**0.5).pdf(z)
  np.testing.assert_allclose(jnp.exp(prior.log_prob(p, z)), want[:, 0], rtol=1e-5)


def test_a_full_em_step_never_lowers_the_likelihood(monkeypatch):
  monkeypatch.setattr(prior, "DEAD", 0.0)  # moving a dead component may
  z = jax.random.normal(jax.random.key(0), (500, 2)) * jnp.array([1.0, 0.3])
  z = z.at[:250].add(4.0)
  p = prior.init_mixture(jax.random.key(1), 4, 2)
  before = -np.inf
  for _ in range(15):
    now = float(prior.log_prob(p, z).mean())
    assert now >= before - 1e-4
    before = now
    p = prior.maximisation(p, prior.expectation(p, z), 1.0, jax.random.key(2))


def test_it_finds_the_clusters_and_samples_them():
  centres = jnp.stack(jnp.meshgrid(*[jnp.array([-3.0, 0.0, 3.0])] * 2), -1).reshape(
    -1, 2
  )

  def data(key, n):
    pick, noise = jax.random.split(key)
    k = jax.random.randint(pick, (n,), 0, 9)
    return centres[k] + 0.2 * jax.random.normal(noise, (n, 2))

  @jax.jit
  def step(p, key):
    e, m = jax.random.split(key)
    return prior.maximisation(p, prior.expectation(p, data(e, 32)), 0.05, m)

  p = prior.init_mixture(jax.random.key(0), 16, 2)
  for key in jax.random.split(jax.random.key(1), 600):
    p = step(p, key)
  z = prior.sample(p, jax.random.split(jax.random.key(2), 2000))
  distance = np.linalg.norm(np.asarray(z)[:, None] - centres, axis=-1)
  assert (distance.min(1) < 0.8).mean() > 0.95
  share = np.bincount(distance.argmin(1), minlength=9) / 2000
  np.testing.assert_allclose(share, 1 / 9, atol=0.06)
  assert float(p.weight.sum()) == pytest.approx(1.0, abs=1e-4)
