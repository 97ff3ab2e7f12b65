"""Flows and mixtures of latents: densities that integrate to one, and their samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax.models import latents

RNG = np.random.default_rng(0)
log_prob, sample = jax.jit(latents.log_prob), jax.jit(latents.sample)


def wild_flow(size, layers=3):
  """A flow that is far from the identity."""
  p = latents.init_flow(jax.random.key(0), size, layers, 8)
  leaves, tree = jax.tree.flatten(p)
  return jax.tree.unflatten(
    tree, [x + 0.5 * RNG.normal(size=x.shape).astype(np.float32) for x in leaves]
  )


def mixture(full):
  a = np.array([[0.5, 0.0], [0.8, 0.3]]), np.array([[1.2, 0.0], [-0.4, 0.6]])
  factors = np.stack(a) if full else np.array([[0.5, 0.3], [1.2, 0.6]])
  p = {"logits": np.log([0.3, 0.7]), "means": np.array([[-2.0, 1.0], [1.5, 0.0]])}
  return {k: jnp.asarray(v, jnp.float32) for k, v in (p | {"factors": factors}).items()}


@pytest.mark.parametrize("size", [2, 5])
def test_the_flow_is_inverted_and_its_log_det_is_the_jacobians(size):
  p = wild_flow(size)
  flow, z = latents._flow_of(p), RNG.normal(size=(7, size)).astype(np.float32)
  run = jax.jit(lambda z: flow.apply({"params": p["flow"]}, z))
  u, log_det = run(z)
  inverse = jax.jit(lambda u: flow.apply({"params": p["flow"]}, u, method="inverse"))
  back = inverse(u)
  np.testing.assert_allclose(back, z, atol=1e-4)
  jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda z: run(z)[0])))(z)
  want = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
  np.testing.assert_allclose(log_det, want, atol=1e-4)
  assert np.abs(u - z).max() > 0.1 and (np.ptp(log_det) > 0.1)


@pytest.mark.parametrize("kind", ["flow", "fitted flow", "full", "diagonal"])
def test_densities_integrate_to_one(kind):
  p = wild_flow(2) if "flow" in kind else mixture(kind == "full")
  if kind == "fitted flow":
    p |= {"shift": jnp.array([0.5, -1.0]), "scale": jnp.array([0.5, 2.0])}
  side = np.linspace(-24, 24, 801, dtype=np.float32)
  grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  density = np.exp(log_prob(p, grid)).reshape(801, 801).astype(np.float64)
  mass = np.trapezoid(np.trapezoid(density, side), side)
  np.testing.assert_allclose(mass, 1.0, atol=5e-3)
  # Samples have the density's moments.
  z = sample(p, jax.random.split(jax.random.key(1), 20_000))
  mean = (density.reshape(-1, 1) * grid).sum(0) / density.sum()
  spread = np.sqrt((density.reshape(-1, 1) * (grid - mean) ** 2).sum(0) / density.sum())
  np.testing.assert_allclose(z.mean(0), mean, atol=0.06 * spread.max())
  np.testing.assert_allclose(z.std(0), spread, rtol=0.06)


def test_a_mixtures_density_is_scipys():
  p, z = mixture(True), RNG.normal(size=(3, 4, 2)).astype(np.float32)
  covs = [f @ f.T for f in np.asarray(p["factors"], np.float64)]
  parts = zip([0.3, 0.7], np.asarray(p["means"]), covs, strict=True)
  want = sum(w * stats.multivariate_normal(m, c).pdf(z) for w, m, c in parts)
  np.testing.assert_allclose(log_prob(p, z), np.log(want), rtol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_em_finds_the_mixture_that_data_are_from(full):
  true = mixture(full)
  z = np.asarray(sample(true, jax.random.split(jax.random.key(3), 4000)))
  got = latents.fit_mixture(z, components=2, full=full, iterations=60)
  order = np.argsort(np.asarray(got["means"])[:, 0])
  assert got["factors"].shape == true["factors"].shape
  for name, atol in (("means", 0.15), ("factors", 0.1)):
    np.testing.assert_allclose(got[name][order], true[name], atol=atol)
  np.testing.assert_allclose(np.exp(got["logits"][order]), [0.3, 0.7], atol=0.05)
  gain = log_prob(got, z).mean() - log_prob(true, z).mean()
  assert 0 <= gain < 0.01  # EM on the data beats the truth, by little


def test_a_fitted_flow_comes_near_the_density_of_its_data():
  true = mixture(True)
  keys = jax.random.split(jax.random.key(4), 6000)
  z, held_out = np.split(np.asarray(sample(true, keys)), 2)
  got = latents.fit_flow(z, layers=4, hidden=16, steps=600, learning_rate=1e-2)
  gaussian = latents.fit_mixture(z, components=1, iterations=1)
  nats = [float(log_prob(p, held_out).mean()) for p in (gaussian, got, true)]
  assert nats[2] - nats[1] < 0.3 * (nats[2] - nats[0]), nats


def test_vamp_is_the_mean_of_posteriors():
  means, logvars = RNG.normal(size=(2, 6, 3)).astype(np.float32)
  p = latents.fit("vamp", means, logvars, components=6)
  z = RNG.normal(size=(4, 3)).astype(np.float32)
  each = stats.norm(means, np.exp(logvars / 2)).pdf(z[:, None]).prod(-1)
  np.testing.assert_allclose(log_prob(p, z), np.log(each.mean(1)), rtol=1e-4)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="eval.sampler must be one of"):
    latents.fit("gmm", np.zeros((3, 2)), np.zeros((3, 2)))
  with pytest.raises(ValueError, match="components must be 1 to 3"):
    latents.fit("mixture", np.zeros((3, 2)), np.zeros((3, 2)))
  with pytest.raises(ValueError, match="2 latents or more, got 1"):
    latents.init_flow(jax.random.key(0), 1, 2, 4)
