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


def test_the_posterior_is_the_prior_times_the_experts():
  p = prior.Mixture(
    jnp.array([0.25, 0.75]),
    jnp.array([[0.25], [-1.5]]),  # means 1, -2
    jnp.array([[0.25 * 1.5], [0.75 * 6.0]]),  # variances 0.5, 2
  )
  means = jnp.array([[[0.3]], [[-1.0]], [[jnp.nan]]])  # [m b z]
  logvars = jnp.array([[[0.2]], [[-0.7]], [[0.0]]])
  mask = jnp.array([[True], [True], [False]])
  z = np.linspace(-9, 9, 20001)
  want = 0.25 * stats.norm(1, 0.5**0.5).pdf(z) + 0.75 * stats.norm(-2, 2**0.5).pdf(z)
  for mean, logvar in ((0.3, 0.2), (-1.0, -0.7)):
    want *= stats.norm(mean, np.exp(logvar / 2)).pdf(z)
  want /= np.trapezoid(want, z)
  q = prior.posterior(p, means, logvars, mask)
  grid = jnp.asarray(z[::1000, None])
  got = prior.log_prob_mixture(jax.tree.map(lambda x: x.repeat(len(grid), 0), q), grid)
  np.testing.assert_allclose(jnp.exp(got), want[::1000], rtol=1e-4, atol=1e-9)
  many = jax.tree.map(lambda x: x.repeat(4000, 0), q)
  drawn = prior.sample_mixture(jax.random.split(jax.random.key(0), 4000), many)
  cdf = np.cumsum(want) * (z[1] - z[0])
  uniform = np.interp(np.asarray(drawn)[:, 0], z, cdf)
  assert stats.kstest(uniform, "uniform").pvalue > 1e-3
  # What says nothing changes nothing: no expert, or one of infinite variance.
  means = means.at[2].set(0.0)
  for none in ((logvars, mask & False), (jnp.full_like(logvars, jnp.inf), mask)):
    q = prior.posterior(p, means, *none)
    same = jax.tree.map(lambda x: x.repeat(len(grid), 0), q)
    got = prior.log_prob_mixture(same, grid)
    np.testing.assert_allclose(got, prior.log_prob(p, grid), rtol=1e-5)


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
  nothing = jnp.zeros((1, 2000, 2)), jnp.zeros((1, 2000, 2)), jnp.zeros((1, 2000), bool)
  keys = jax.random.split(jax.random.key(2), 2000)
  z = prior.sample_mixture(keys, prior.posterior(p, *nothing))
  distance = np.linalg.norm(np.asarray(z)[:, None] - centres, axis=-1)
  assert (distance.min(1) < 0.8).mean() > 0.95
  share = np.bincount(distance.argmin(1), minlength=9) / 2000
  np.testing.assert_allclose(share, 1 / 9, atol=0.06)
  assert float(p.weight.sum()) == pytest.approx(1.0, abs=1e-4)


def test_the_rate_falls_so_that_a_tenth_of_the_updates_is_remembered():
  assert float(prior.rate(jnp.int32(1999), 0.005)) == pytest.approx(0.005)
  assert float(prior.rate(jnp.int32(19_999), 0.005)) == pytest.approx(0.0005)
  # The mean age of what a running mean of such a rate remembers.
  age = 0.0
  for rate in np.asarray(prior.rate(jnp.arange(10_000), 0.005), np.float64):
    age = (1 - rate) * (age + 1)
  assert age == pytest.approx(10_000 / 11, rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.26])
@pytest.mark.parametrize("least", [0.2, -0.1])
def test_weights_of_merged_networks_are_a_distribution(factor, least):
  weight = np.array([0.3, least, 0.5])
  weight[weight > 0] *= factor / weight[weight > 0].sum()
  means, variances = np.array([1.0, 0.0, -2.0]), np.array([0.5, 1.0, 2.0])
  moments = weight * means, weight * (variances + means**2)
  p = prior.Mixture(jnp.asarray(weight), *(jnp.asarray(x[:, None]) for x in moments))
  z = np.linspace(-9, 9, 2001)
  density = np.exp(prior.log_prob(p, jnp.asarray(z[:, None])))
  assert np.trapezoid(density, z) == pytest.approx(1.0, abs=1e-4)
  share = np.maximum(weight, 0) / np.maximum(weight, 0).sum()
  want = sum(
    s * stats.norm(m, v**0.5).pdf(z)
    for s, m, v in zip(share, means, variances, strict=True)
  )
  np.testing.assert_allclose(density, want, rtol=1e-3, atol=1e-7)
  # With nothing given the posterior is the prior: no nats between them.
  nothing = jnp.zeros((1, 2001, 1)), jnp.zeros((1, 2001, 1)), jnp.zeros((1, 2001), bool)
  same = prior.log_prob_mixture(prior.posterior(p, *nothing), jnp.asarray(z[:, None]))
  np.testing.assert_allclose(np.exp(same), density, rtol=1e-4, atol=1e-7)
