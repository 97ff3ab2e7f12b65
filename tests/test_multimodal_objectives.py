"""Objectives on a linear-Gaussian model, where every term has a closed form.

x_m = W_m z + c_m + s_m e with orthogonal columns in W_m, so that the exact posterior is
diagonal: the product of N(0, I) and one Gaussian expert per modality.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_linear import LINEAR, Z, exact_log_p, experts, linear_pass, moments

from mmgen_jax import multimodal_objectives as objectives
from mmgen_jax.fusion import model as fuse
from mmgen_jax.fusion import posteriors

SUBSETS = np.array(list(itertools.product([False, True], repeat=3))[1:])
PRESENT = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0]], bool)  # [m b]
MEANS, LOGVARS, X = experts(4, seed=0)
RNG = np.random.default_rng(1)


def kl(q, p):
  (m, v), (m2, v2) = q, p
  return 0.5 * (v / v2 - 1 - np.log(v / v2) + (m - m2) ** 2 / v2).sum(-1)


def poe(b, subset, prior=0.0):
  t = np.exp(-LOGVARS[list(subset), b]).sum(0) + prior
  m = (np.exp(-LOGVARS[list(subset), b]) * MEANS[list(subset), b]).sum(0) / t
  return m, 1 / t


def expected_log_px(m, b, q):
  """E_q log p(x_m | z), exactly."""
  mean, v = q
  w, c, s = LINEAR[m]
  rest = X[m][b] - w @ mean - c
  return stats.norm(0, s).logpdf(rest).sum() - 0.5 * ((w**2).sum(0) * v).sum() / s**2


def parts(present_b):
  """The non-empty subsets of what an example has."""
  have = np.flatnonzero(present_b)
  sizes = range(1, len(have) + 1)
  return [s for n in sizes for s in itertools.combinations(have, n)]


def test_mvae_with_the_exact_posterior_is_the_sum_of_log_p():
  given = np.stack(
    [PRESENT] + [PRESENT & (np.arange(3) == i)[:, None] for i in range(3)]
  )
  q = fuse.products(MEANS, LOGVARS, jnp.asarray(given), prior_precision=1.0)
  log_px, kls = np.full(given.shape, np.nan), np.zeros((4, 4))
  want = np.zeros(4)
  for s, b in itertools.product(range(4), range(4)):
    subset = np.flatnonzero(given[s, :, b])
    mean, var = np.asarray(q[0][s, b]), np.exp(q[1][s, b])
    kls[s, b] = kl((mean, var), (0, np.ones(Z)))
    for m in subset:
      log_px[s, m, b] = expected_log_px(m, b, (mean, var))
    want[b] += exact_log_p(X, b, subset) if len(subset) else 0.0
  got = objectives.mvae(jnp.asarray(log_px), jnp.asarray(kls), jnp.asarray(given))
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_mopoe_is_log_p_less_the_mean_divergence_from_the_exact_posterior():
  p = linear_pass("mopoe", MEANS, LOGVARS, X, PRESENT)
  got = moments(p)
  for b in range(4):
    have = np.flatnonzero(PRESENT[:, b])
    true = poe(b, have, prior=1.0)
    gaps = [kl(poe(b, s), true) for s in parts(PRESENT[:, b])]
    got.check(b, exact_log_p(X, b, have) - np.mean(gaps))


def test_mmvae_is_log_p_less_the_divergence_of_the_mixture():
  got = moments(linear_pass("mmvae", MEANS, LOGVARS, X, PRESENT))
  grid = np.stack(np.meshgrid(*[np.linspace(-9, 9, 500)] * 2), -1).reshape(-1, 2)
  log_n = lambda m, v: stats.norm(m, np.sqrt(v)).logpdf(grid).sum(-1)
  for b in range(4):
    have = np.flatnonzero(PRESENT[:, b])
    q = np.mean([np.exp(log_n(*poe(b, [m]))) for m in have], 0)
    gap = q * (np.log(q + 1e-300) - log_n(*poe(b, have, prior=1.0)))
    got.check(b, exact_log_p(X, b, have) - gap.sum() * (18 / 499) ** 2, slack=0.02)


@pytest.mark.parametrize("looser", [True, False])
def test_iwae_of_a_mixture_rises_to_log_p(looser):
  changes = {"estimator": "iwae", "samples": 300, "looser": looser}
  p = linear_pass("mmvae", MEANS, LOGVARS, X, PRESENT, copies=40, **changes)
  got = moments(p)
  for b in range(4):
    exact = exact_log_p(X, b, np.flatnonzero(PRESENT[:, b]))
    assert exact - 0.25 < got.mean[b] < exact + 4 * got.error[b]


def test_jensen_shannon_by_integration():
  x = np.linspace(-25, 25, 20_001)
  got = objectives.jensen_shannon(MEANS, LOGVARS, jnp.asarray(PRESENT))
  for b in range(4):
    want, have = 0.0, np.flatnonzero(PRESENT[:, b])
    for j in range(Z):
      logs = [stats.norm(0, 1).logpdf(x)]
      logs += [
        stats.norm(MEANS[m, b, j], np.exp(LOGVARS[m, b, j] / 2)).logpdf(x) for m in have
      ]
      f = np.mean(logs, 0)
      f -= np.log(np.trapezoid(np.exp(f), x))
      want += np.mean([np.trapezoid(np.exp(q) * (q - f), x) for q in logs])
    np.testing.assert_allclose(got[b], want, rtol=1e-4)


def test_mmjsd_reconstructs_from_a_random_expert():
  got = moments(linear_pass("mmjsd", MEANS, LOGVARS, X, PRESENT))
  js = objectives.jensen_shannon(MEANS, LOGVARS, jnp.asarray(PRESENT))
  for b in range(4):
    have = np.flatnonzero(PRESENT[:, b])
    each = [sum(expected_log_px(m, b, poe(b, [i])) for m in have) for i in have]
    got.check(b, np.mean(each) - js[b])


@pytest.mark.parametrize("alpha", [5 / 6, 0.3])
def test_mvtcae_term_by_term(alpha):
  got = moments(linear_pass("mvtcae", MEANS, LOGVARS, X, PRESENT, alpha=alpha))
  for b in range(4):
    have = np.flatnonzero(PRESENT[:, b])
    q, m = poe(b, have), len(have)
    rec = sum(expected_log_px(i, b, q) for i in have)
    to_experts = sum(kl(q, poe(b, [i])) for i in have)
    want = (m - alpha) / m * rec - alpha / m * to_experts
    got.check(b, want - (1 - alpha) * kl(q, (0, np.ones(Z))))


def test_jmvae_counts_whole_examples_only():
  got = moments(linear_pass("jmvae", MEANS, LOGVARS, X, PRESENT, alpha=0.1))
  q = np.zeros(Z), np.ones(Z)  # what the stand-in's joint encoder says
  want = sum(expected_log_px(m, 0, q) - 0.1 * kl(q, poe(0, [m])) for m in range(3))
  got.check(0, want)
  assert not got.mean[1:].any()


def test_jmvaes_terms_have_one_weight_together():
  log_px, kl, kls, present = RNG.random((3, 4)), RNG.random(4), RNG.random((3, 4)), True
  of = functools.partial(objectives.jmvae, present=np.full((3, 4), present), alpha=0.3)
  got = of(log_px, kl, kls, beta=2.0)  # errors in half the unit, twice the weight
  np.testing.assert_allclose(got, 2 * of(log_px / 2, kl, kls, beta=1.0), rtol=1e-5)


def test_an_example_that_has_nothing_counts_zero_however_the_mixture_is_weighed():
  log_w, present = jnp.zeros((3, 2, 2)), jnp.array([[True, False]] * 3)
  for looser in (True, False):
    got = objectives.stratified_iwae(log_w, present, looser=looser)
    np.testing.assert_allclose(got, 0.0, atol=1e-6)


def test_masks_may_be_numbers():
  ints = PRESENT.astype(np.int32)
  np.testing.assert_array_equal(
    fuse.possible_subsets(jnp.array(ints)), fuse.possible_subsets(jnp.array(PRESENT))
  )
  keys = jax.random.split(jax.random.key(0), 4)
  part = jnp.array([[1, 0, 0, 0]] * 3)
  for of in (
    lambda m, p: fuse.random_subset(keys, m),
    lambda m, p: fuse.random_expert(keys, m),
    lambda m, p: fuse.stand_ins(p, m, "abc"),
    lambda m, p: fuse.beside(p, m),
  ):
    np.testing.assert_array_equal(
      of(jnp.array(ints), part), of(jnp.array(PRESENT), part.astype(bool))
    )


@pytest.mark.parametrize("precision", [0.0, 1.0, 2.0])
def test_given_nothing_a_mixture_of_products_is_what_it_draws_from(precision):
  q = posteriors.mixture_of_products(precision)
  means, logvars, mask = (
    jnp.ones((2, 1, 1)),
    jnp.zeros((2, 1, 1)),
    jnp.zeros((2, 1), bool),
  )
  many = jax.vmap(lambda k: q.sample(k[None], means, logvars, mask)[0, 0])
  scale = float(many(jax.random.split(jax.random.key(0), 4000)).std())
  assert scale == pytest.approx((precision or 1.0) ** -0.5, rel=0.05)
  got = q.log_prob(jnp.full((1, 1), 0.5), means, logvars, mask)[0]
  want = stats.norm.logpdf(0.5, scale=(precision or 1.0) ** -0.5)
  assert float(got) == pytest.approx(want, rel=1e-5)


def test_mmvae_plus_of_many_samples_is_log_p_where_the_private_priors_are_the_prior():
  how = {"private": 0.7, "estimator": "iwae", "looser": False, "samples": 20_000}
  got = moments(linear_pass("mmvae_plus", MEANS, LOGVARS, X, PRESENT, copies=8, **how))
  for b in range(4):
    have = np.flatnonzero(PRESENT[:, b])
    got.check(b, exact_log_p(X, b, have, private=0.7), slack=5e-3)


@pytest.mark.parametrize(
  "name", ["mvae", "mmvae", "mopoe", "mmjsd", "mvtcae", "mmvae_plus"]
)
def test_a_mask_is_the_model_of_the_subset_alone(name):
  mask = np.array([[True], [False], [True]])
  of = lambda x: x[:, :1]
  poisoned = [np.where(mask[..., None], of(x), np.nan) for x in (MEANS, LOGVARS)]
  masked = moments(linear_pass(name, *poisoned, [x[:1] for x in X], mask))
  few = [of(x)[[0, 2]] for x in (MEANS, LOGVARS)]
  alone = linear_pass(name, *few, [X[0][:1], X[2][:1]], mask[[0, 2]], which=(0, 2))
  alone = moments(alone)
  error = np.hypot(masked.error, alone.error)
  assert abs(masked.mean - alone.mean) < 4 * error + 1e-3, (masked, alone)


@pytest.mark.parametrize("name", ["mmvae", "mopoe"])
def test_experts_have_no_order(name):
  order = [2, 0, 1]
  arrays = MEANS[:, :1], LOGVARS[:, :1], [x[:1] for x in X], PRESENT[:, :1]
  a = moments(linear_pass(name, *arrays))
  means, logvars, x, present = ([a[i] for i in order] for a in arrays)
  arrays = np.stack(means), np.stack(logvars), x, np.stack(present)
  b = moments(linear_pass(name, *arrays, which=order))
  assert abs(a.mean - b.mean) < 4 * np.hypot(a.error, b.error) + 1e-3


ALL_OF_THEM = ["mvae", "mmvae", "mopoe", "mmjsd", "mvtcae", "mmvae_plus", "jmvae"]


@pytest.mark.parametrize("name", ALL_OF_THEM)
def test_weights_and_beta_multiply_their_terms(name):
  of = lambda **how: linear_pass(
    name, MEANS, LOGVARS, X, np.ones((3, 4), bool), copies=2, private=0.7, **how
  )()
  once, beta = of(), of(beta=2.0)
  twice = of(beta=2.0, weights=dict.fromkeys(("00", "11", "22"), 2.0))
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-4, atol=1e-3)
  assert (abs(beta - once) > 0.05).all()
  one = of(weights={"11": 2.0}) - once  # that modality's terms once more
  assert (abs(one) > 0.05).all() and not np.allclose(one, once, rtol=0.05)


LAPLACE = [("mmvae", "laplace"), ("mmvae_plus", "laplace")]


@pytest.mark.parametrize(
  ("name", "density"), [*((name, "normal") for name in ALL_OF_THEM), *LAPLACE]
)
def test_gradients_are_those_of_the_value(name, density):
  how = {"copies": 8, "private": 0.7, "density": density}
  present = PRESENT if name != "jmvae" else np.ones((3, 4), bool)

  @jax.jit
  def value(theta):
    means, logvars, learned = theta
    return linear_pass(name, means, logvars, X, present, learned=learned, **how)().sum()

  theta = jnp.asarray(MEANS), jnp.asarray(LOGVARS), jnp.full(3, -0.4)
  slopes = jax.grad(value)(theta)
  for i, slope in enumerate(slopes):
    if i == 2 and name != "mmvae_plus":
      assert not slope.any()
      continue
    at = lambda s, i=i, slope=slope: value(
      tuple(v + s * jnp.sign(slope) if j == i else v for j, v in enumerate(theta))
    )
    want = float((at(1e-2) - at(-1e-2)) / 2e-2)
    assert want > 1.0  # says something
    assert float(abs(slope).sum()) == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("name", posteriors.DENSITIES)
def test_draws_have_their_density(name):
  density = posteriors.DENSITIES[name]
  keys = jax.random.split(jax.random.key(0), 4000)
  mean, logvar = jnp.full((4000, 1), 0.5), jnp.full((4000, 1), -1.2)
  z = np.asarray(density.draw(keys, mean, logvar))[:, 0]
  grid = np.linspace(-8, 8, 4001)
  pdf = np.exp(np.asarray(density.log_prob(grid, 0.5, -1.2)))
  cdf = lambda x: np.interp(x, grid, np.cumsum(pdf) * (grid[1] - grid[0]))
  assert stats.kstest(z, cdf).pvalue > 1e-3


def dreg_or_iwae(theta, noise, dreg, looser, beta=1.0, naive=False):
  """A bound on log p(x) of two experts in one dimension, by their parameters [2 2]."""
  stop = jax.lax.stop_gradient
  present = jnp.ones((2, 1), bool)

  def pieces(z, theta):
    each = posteriors.NORMAL.log_prob(
      z, theta[0, :, None, None, None], theta[1, :, None, None, None]
    )
    return objectives.mixture_log_prob(each, present), each

  def log_w(z, log_q):
    log_p = posteriors.NORMAL.log_prob(1.5, z, -1.0)
    return log_p + beta * (posteriors.NORMAL.log_prob(z, 0.0, 0.0) - log_q)

  z = theta[0, :, None, None] + jnp.exp(theta[1, :, None, None] / 2) * noise
  log_q, each = pieces(z, stop(theta))
  if not dreg:
    return objectives.stratified_iwae(
      log_w(z, pieces(z, theta)[0]), present, looser=looser
    )
  _, through_q = pieces(stop(z), theta)
  itself = jnp.eye(2, dtype=bool)[:, :, None, None]
  others = objectives.mixture_log_prob(
    jnp.where(itself, stop(through_q), through_q), present
  )
  r = jnp.exp(jnp.einsum("mmkb->mkb", each) - log_q) / 2
  if naive:
    r, others = jnp.ones_like(r), stop(others)
  fixed = log_w(stop(z), stop(log_q))
  return objectives.stratified_dreg(
    fixed, log_w(z, log_q), r, others, present, beta=beta, looser=looser
  )


@functools.cache
def gradients(dreg, looser, beta=1.0, naive=False):
  theta = jnp.array([[0.9, -0.2], [-0.5, 0.4]])
  noise = jax.random.normal(jax.random.key(0), (40_000, 2, 3, 1))
  f = lambda theta, noise: dreg_or_iwae(theta, noise, dreg, looser, beta, naive)[0]
  g = jax.jit(jax.vmap(jax.value_and_grad(f), (None, 0)))(theta, noise)[1]
  g = np.asarray(g, np.float64)
  return g.mean(0), g.std(0) / np.sqrt(len(g))


@pytest.mark.parametrize(("looser", "beta"), [(True, 1.0), (False, 1.0), (True, 0.5)])
def test_dreg_of_a_mixture_has_the_gradient_of_iwae_and_less_noise(looser, beta):
  (a, sa), (b, sb) = gradients(False, looser, beta), gradients(True, looser, beta)
  assert (abs(a - b) < 4.5 * np.hypot(sa, sb)).all(), (a, b)
  assert np.linalg.norm(sb) < np.linalg.norm(sa)


def test_v_squared_alone_is_biased_for_a_mixture():
  (a, sa), (b, sb) = gradients(False, True), gradients(True, True, naive=True)
  assert (abs(a - b) > 6 * np.hypot(sa, sb)).any()


def test_posteriors_are_normalised_and_are_the_prior_of_nothing():
  x = np.linspace(-12, 12, 2001)
  means, logvars = MEANS[:, :1, :1], LOGVARS[:, :1, :1]
  tile = lambda a: jnp.broadcast_to(a, (3, len(x), 1))
  kinds = [posteriors.product(), posteriors.mixture(posteriors.DENSITIES["laplace"])]
  kinds += [posteriors.mixture_of_products()]
  for q, has in itertools.product(kinds, ([1, 0, 1], [0, 0, 0])):
    mask = jnp.asarray(np.broadcast_to(np.array(has, bool)[:, None], (3, len(x))))
    logq = q.log_prob(x[:, None], tile(means), tile(logvars), mask)
    np.testing.assert_allclose(np.trapezoid(np.exp(logq), x), 1.0, atol=2e-3)
    keys = jax.random.split(jax.random.key(0), len(x))
    z = q.sample(keys, tile(means), tile(logvars), mask)
    density = np.exp(np.asarray(logq))
    first = np.trapezoid(density * x, x)
    spread = np.sqrt(np.trapezoid(density * (x - first) ** 2, x))
    assert abs(z.mean() - first) < 5 * spread / np.sqrt(len(x))
