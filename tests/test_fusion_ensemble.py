"""Ensembles against closed forms, NumPy and brute-force densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax.fusion import ensemble
from mmgen_jax.fusion.model import product_of_experts

RNG = np.random.default_rng(0)


def test_a_mixture_of_generators_samples_each_by_its_weight():
  stacked = ensemble.stack([{"shift": jnp.array(float(i))} for i in range(3)])
  z = jnp.linspace(0.0, 0.5, 4000)[:, None]
  keys = jax.random.split(jax.random.key(0), 4000)
  weights = jnp.array([0.2, 0.0, 0.8])
  generate = lambda params, z: z + params["shift"]
  x, choice = ensemble.mixture_sample(generate, stacked, keys, z, weights)
  np.testing.assert_allclose(x[:, 0], z[:, 0] + choice)
  np.testing.assert_allclose(np.bincount(choice) / 4000, weights, atol=0.02)
  _, even = ensemble.mixture_sample(generate, stacked, keys, z)
  np.testing.assert_allclose(np.bincount(even) / 4000, 1 / 3, atol=0.03)


def test_unlike_members_are_refused():
  with pytest.raises(ValueError, match="'w' is float32"):
    ensemble.stack([{"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}])


def test_classifiers_average_as_geometric_and_arithmetic_means():
  logits = RNG.normal(size=(4, 5, 3)) * 3
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  geometric = np.exp(np.log(p).mean(0))
  geometric /= geometric.sum(-1, keepdims=True)
  got = jax.nn.softmax(ensemble.average_logits(jnp.asarray(logits)), -1)
  np.testing.assert_allclose(got, geometric, rtol=1e-4)
  got = np.exp(ensemble.average_probabilities(jnp.asarray(logits)))
  np.testing.assert_allclose(got, p.mean(0), rtol=1e-4)


def test_discriminators_average():
  logits = RNG.normal(size=(3, 6)) * 4
  of = lambda kind, x=logits: ensemble.average_discriminators(jnp.asarray(x), kind=kind)
  p = (1 / (1 + np.exp(-logits))).mean(0)
  np.testing.assert_allclose(of("logit"), logits.mean(0), rtol=1e-5)
  np.testing.assert_allclose(of("probability"), np.log(p / (1 - p)), rtol=1e-4)
  hardest = np.log(np.exp(logits).mean(0))
  np.testing.assert_allclose(of("hardest"), hardest, rtol=1e-4, atol=1e-5)
  # One member is itself, also where its probability is 1 to all digits.
  one = np.array([[200.0, -200.0, 0.5]])
  for kind in ("logit", "probability", "hardest"):
    np.testing.assert_allclose(of(kind, one), one[0], rtol=1e-6)
  with pytest.raises(ValueError, match="kind must be"):
    of("mean")


def gaussians(k, b=4, z=2):
  means = RNG.normal(size=(k, b, z)).astype(np.float32)
  return means, RNG.uniform(-2.0, -0.3, (k, b, z)).astype(np.float32)


def test_the_product_of_posteriors_is_the_product_of_densities_less_the_prior():
  means, logvars = gaussians(3)
  mean, logvar = ensemble.product_of_posteriors(means, logvars)
  grid = np.linspace(-8, 8, 4001)
  each = stats.norm.logpdf(grid, means[:, 0, :1], np.exp(0.5 * logvars[:, 0, :1]))
  log_q = each.sum(0) - 2 * stats.norm.logpdf(grid)
  q = np.exp(log_q - log_q.max())
  q /= q.sum()
  want = (q * grid).sum()
  np.testing.assert_allclose(mean[0, 0], want, atol=1e-4)
  variance = (q * (grid - want) ** 2).sum()
  np.testing.assert_allclose(np.exp(logvar[0, 0]), variance, rtol=1e-3)


def test_the_product_of_posteriors_is_bayes_rule():
  # z ~ N(0, 1), x_k = z + noise_k: each model's posterior is exact, and so is theirs.
  x, noise = RNG.normal(size=(3, 5, 1)), np.array([0.5, 1.0, 2.0])[:, None, None]
  t = 1 / noise**2
  means, logvars = x * t / (1 + t), -np.log(1 + t) * np.ones_like(x)
  mean, logvar = ensemble.product_of_posteriors(
    jnp.asarray(means), jnp.asarray(logvars)
  )
  np.testing.assert_allclose(mean, (x * t).sum(0) / (1 + t.sum(0)), rtol=1e-4)
  np.testing.assert_allclose(np.exp(-logvar[:, 0]), 1 + t.sum(), rtol=1e-4)


def test_one_posterior_is_itself_none_is_the_prior_and_masked_is_absent():
  means, logvars = gaussians(2)
  one = ensemble.product_of_posteriors(means[:1], logvars[:1])
  np.testing.assert_allclose(one[0], means[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(one[1], logvars[0], rtol=1e-4, atol=1e-5)
  mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
  means[1], logvars[1] = np.nan, np.nan
  mean, logvar = ensemble.product_of_posteriors(means, logvars, mask)
  np.testing.assert_allclose(mean[:2], means[0, :2], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(mean[2:], 0.0)
  np.testing.assert_allclose(logvar[2:], 0.0)
  # With experts that do not hold the prior it is the product of experts.
  means, logvars = gaussians(2)
  precision = np.exp(-logvars)
  held = precision + 1.0
  want = product_of_experts(means, logvars, np.ones((2, 4), bool))
  got = ensemble.product_of_posteriors(means * precision / held, -np.log(held))
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_mixture_of_posteriors_picks_whole_components():
  means, logvars = gaussians(3, b=3000, z=2)
  mask = np.ones((3, 3000), bool)
  mask[1] = False
  mask[:, :10] = False
  keys = jax.random.split(jax.random.key(1), 3000)
  (mean, logvar), choice = ensemble.mixture_of_posteriors(keys, means, logvars, mask)
  rows = np.arange(10, 3000)
  np.testing.assert_array_equal(mean[10:], means[choice[10:], rows])
  np.testing.assert_array_equal(logvar[10:], logvars[choice[10:], rows])
  np.testing.assert_array_equal(mean[:10], 0.0)
  shares = np.bincount(choice[10:], minlength=3) / len(rows)
  np.testing.assert_allclose(shares, [0.5, 0.0, 0.5], atol=0.03)


def test_distillation_is_zero_for_what_the_ensemble_says_and_grows_from_there():
  teachers = jnp.asarray(RNG.normal(size=(3, 4, 5)))
  student = ensemble.average_probabilities(teachers)
  np.testing.assert_allclose(
    ensemble.distillation_loss(student, teachers), 0, atol=1e-6
  )
  other = student + jnp.asarray(RNG.normal(size=(4, 5)))
  p, q = np.exp(student), jax.nn.softmax(other, -1)
  want = (p * np.log(p / q)).sum(-1)
  got = ensemble.distillation_loss(other, teachers)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
  soft = ensemble.distillation_loss(other, teachers, temperature=2.0)
  p = np.exp(ensemble.average_probabilities(teachers / 2))
  q = jax.nn.softmax(other / 2, -1)
  np.testing.assert_allclose(
    soft, 4 * (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-6
  )


def test_gradient_descent_distils_an_ensemble_into_one_network():
  x = jnp.asarray(RNG.normal(size=(64, 4)), jnp.float32)
  nets = [{"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)} for _ in range(3)]
  apply = lambda params, x: x @ params["w"]
  teachers = ensemble.members(apply, ensemble.stack(nets), x)
  loss = lambda p: ensemble.distillation_loss(apply(p, x), teachers).mean()
  step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p)))
  student = {"w": jnp.zeros((4, 3))}
  for _ in range(200):
    student = step(student)
  alone = [float(loss(net)) for net in nets]  # a member's distance from the ensemble
  assert float(loss(student)) < 0.5 * min(*alone, float(loss({"w": jnp.zeros((4, 3))})))


def test_a_distilled_posterior_has_the_moments_of_the_mixture():
  means, logvars = gaussians(3, b=1, z=1)
  loss = lambda s: ensemble.posterior_distillation_loss(s, means, logvars).sum()
  draws = (
    RNG.normal(size=(200_000,)) * np.exp(0.5 * logvars[:, 0, :1]) + means[:, 0, :1]
  )
  best = (jnp.full((1, 1), draws.mean()), jnp.full((1, 1), np.log(draws.var())))
  assert abs(float(loss(best))) < 1e-3
  for x in jax.tree.leaves(jax.grad(loss)(best)):
    np.testing.assert_allclose(x, 0.0, atol=2e-2)
