import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax import likelihoods as L

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (5, 3, 2)).astype(np.float32)
M = RNG.normal(size=(5, 3, 2, 1)).astype(np.float32)


def test_gaussian_is_scipys():
  got = L.gaussian(scale=0.3).log_prob(M, X)
  want = stats.norm(M[..., 0], 0.3).logpdf(X).sum((1, 2))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_laplace_is_scipys():
  got = L.laplace(scale=0.75).log_prob(M, X)
  want = stats.laplace(M[..., 0], 0.75).logpdf(X).sum((1, 2))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_bernoulli_is_scipys_on_black_and_white():
  x = np.where(X > 0, 1.0, -1.0)
  p = 1 / (1 + np.exp(-M[..., 0].astype(np.float64)))
  want = stats.bernoulli(p).logpmf((x + 1) // 2).sum((1, 2))
  np.testing.assert_allclose(L.bernoulli().log_prob(M, x), want, rtol=1e-5)


def test_sum_softplus_is_of_logaddexp_and_its_slope_the_sigmoid():
  x = np.array([-200.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 2.0, 30.0, 200.0], np.float32)
  each = np.logaddexp(0.0, x.astype(np.float64))
  np.testing.assert_allclose(L.sum_softplus(x[:, None]), each, 2e-7, 2.0**-23)
  wide = RNG.choice(x, (3, 48)).astype(np.float32) + RNG.normal(size=48).astype("f")
  want = np.logaddexp(0.0, wide.astype(np.float64)).sum(1)
  np.testing.assert_allclose(L.sum_softplus(wide), want, 1e-6)
  slope = jax.grad(lambda x: (L.sum_softplus(x) * jnp.arange(1.0, 4.0)).sum())(wide)
  sigmoid = 1 / (1 + np.exp(-wide.astype(np.float64)))
  np.testing.assert_allclose(slope, sigmoid * [[1], [2], [3]], 1e-5, 1e-30)


def test_categorical_is_a_log_of_softmax():
  logits = RNG.normal(size=(4, 6, 7)).astype(np.float32)
  x = RNG.integers(0, 7, (4, 6))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = np.log(np.take_along_axis(p, x[..., None], -1)[..., 0]).sum(1)
  np.testing.assert_allclose(
    L.categorical(classes=7).log_prob(logits, x), want, rtol=1e-5
  )


@pytest.mark.parametrize("mean, log_scale", [(0.1, -2.0), (-1.3, -4.0), (0.99, -7.0)])
def test_discretised_logistic_sums_to_one_and_is_a_difference_of_cdfs(mean, log_scale):
  levels = np.linspace(-1, 1, 256)
  params = np.tile(np.array([mean, log_scale], np.float32), (256, 1))
  logp = np.asarray(L.discretised_logistic().log_prob(params[:, None], levels[:, None]))
  assert np.exp(logp.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-4)
  upper, lower = levels + 1 / 255, levels - 1 / 255
  upper[-1], lower[0] = np.inf, -np.inf
  cdf = stats.logistic(mean, np.exp(log_scale)).cdf
  want = cdf(upper) - cdf(lower)
  big = want > 1e-6
  np.testing.assert_allclose(np.exp(logp)[big], want[big], rtol=2e-3)


def test_logistic_mixture_sums_to_one_over_256_values():
  params = np.tile(RNG.normal(size=40).astype(np.float32) * 2, (256, 1, 1))
  x = np.linspace(-1, 1, 256, dtype=np.float32)[:, None]
  logp = np.asarray(L.logistic_mixture().log_prob(params, x), np.float64)
  assert np.exp(logp).sum() == pytest.approx(1.0, abs=1e-4)


def test_one_component_of_one_channel_is_the_discretised_logistic():
  params = RNG.normal(size=(5, 3, 2, 4)).astype(np.float32)
  got = L.logistic_mixture(components=1).log_prob(params, X)
  want = L.discretised_logistic().log_prob(params[..., 1:3], X)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_channels_of_a_logistic_mixture_sum_to_one_together_but_are_not_independent():
  params = np.tile(RNG.normal(size=(3, 8)).astype(np.float32), (6**3, 1, 1, 1, 1))
  values = np.stack(np.meshgrid(*[np.linspace(-1, 1, 6)] * 3, indexing="ij"), -1)
  x = values.reshape(-1, 1, 1, 3).astype(np.float32)
  mixture = L.logistic_mixture(components=2, levels=6)
  p = np.exp(np.asarray(mixture.log_prob(params, x), np.float64)).reshape(6, 6, 6)
  assert p.sum() == pytest.approx(1.0, abs=1e-4)
  given_red = p.sum(2) / p.sum((1, 2))[:, None]
  assert np.abs(given_red - given_red[0]).max() > 0.01
  assert mixture.mode(params).shape == x.shape


@pytest.mark.parametrize("name", sorted(set(L.LIKELIHOODS) - {"categorical"}))
def test_gradients_are_finite_far_from_the_data(name):
  lik = L.make_likelihood(name)
  params = jnp.full((1, 4, lik.outputs), 40.0)
  x = jnp.array([[-1.0, 1.0, 0.0, 0.5]])
  grad = jax.grad(lambda p: lik.log_prob(p, x).sum())(params)
  assert np.isfinite(grad).all()


def test_an_unknown_name_is_refused():
  with pytest.raises(ValueError, match="'poisson'"):
    L.make_likelihood("poisson")
