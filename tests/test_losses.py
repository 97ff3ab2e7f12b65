import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax import losses

RNG = np.random.default_rng(0)


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
  for name in losses.RELATIVE:  # whose generator asks for the logits of real examples
    with pytest.raises(ValueError, match=f"'non_saturating'.*got '{name}'"):
      losses.make_adversarial(name, paired=False)
  assert jax.tree.leaves(losses.ADVERSARIAL)
