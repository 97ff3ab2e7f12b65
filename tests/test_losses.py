import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax import losses

RNG = np.random.default_rng(0)


def test_non_saturating_is_binary_cross_entropy():
  real, fake = RNG.normal(size=(2, 9)).astype(np.float32)
  p = lambda x: 1 / (1 + np.exp(-x))
  loss = losses.make_adversarial("non_saturating")
  np.testing.assert_allclose(
    loss.discriminator(real, fake), -np.log(p(real)) - np.log(1 - p(fake)), rtol=1e-5
  )
  np.testing.assert_allclose(loss.generator(fake), -np.log(p(fake)), rtol=1e-5)


def test_hinge_stops_at_the_margin():
  loss = losses.make_adversarial("hinge")
  real, fake = jnp.array([2.0, 0.0, -1.0]), jnp.array([-3.0, 0.0, 2.0])
  np.testing.assert_allclose(loss.discriminator(real, fake), [0.0, 2.0, 5.0])
  np.testing.assert_allclose(loss.generator(fake), [3.0, 0.0, -2.0])


def test_gradient_penalty_is_the_squared_norm_by_finite_differences():
  w = RNG.normal(size=(6,))
  f = lambda x: jnp.tanh(x.reshape(len(x), -1) @ w.astype(np.float32))
  x = RNG.normal(size=(3, 2, 3)).astype(np.float32)
  got = losses.gradient_penalty(f, jnp.asarray(x))
  want, h = np.zeros(3), 1e-5
  g = lambda x: np.tanh(x.reshape(3, -1) @ w)
  for i in np.ndindex(2, 3):
    step = np.zeros((3, 2, 3))
    step[(slice(None), *i)] = h
    want += ((g(x + step) - g(x - step)) / (2 * h)) ** 2
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_gaussian_kl_is_the_integral():
  m, s, m2, s2 = 0.3, 0.7, -0.5, 1.4
  x = np.linspace(-12, 12, 200_001)
  p, q = stats.norm(m, s), stats.norm(m2, s2)
  want = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
  at = lambda v: jnp.full((1, 1), v)
  got = losses.gaussian_kl(at(m), at(2 * np.log(s)), at(m2), at(2 * np.log(s2)))
  np.testing.assert_allclose(got, [want], rtol=1e-5)
  np.testing.assert_allclose(
    losses.gaussian_kl(at(m), at(0.2), at(m), at(0.2)), 0.0, atol=1e-7
  )


def test_gaussian_log_prob_is_scipys():
  z, m, v = RNG.normal(size=(3, 4, 5))
  want = stats.norm(m, np.exp(v / 2)).logpdf(z).sum(-1)
  got = losses.gaussian_log_prob(*(jnp.float32(a) for a in (z, m, v)))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_unknown_objective_is_refused():
  with pytest.raises(ValueError, match="'wgan'"):
    losses.make_adversarial("wgan")
  assert jax.tree.leaves(losses.ADVERSARIAL)
