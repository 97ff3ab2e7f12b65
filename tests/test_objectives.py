import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax import objectives as ob
from mmgen_jax import total_correlation as tc
from mmgen_jax.losses import gaussian_kl

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def test_kl_by_dimension_is_the_integral():
  m, s = 0.3, 0.6
  x = np.linspace(-12, 12, 200_001)
  q, p = stats.norm(m, s), stats.norm(0, 1)
  want = np.trapezoid(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x)
  got = ob.kl_by_dimension(jnp.full((1, 2), m), jnp.full((1, 2), 2 * np.log(s)))
  np.testing.assert_allclose(got, np.full((1, 2), want), rtol=1e-5)
  mean, logvar = normal(3, 4), normal(3, 4)
  kl = ob.kl_by_dimension(jnp.asarray(mean), jnp.asarray(logvar))
  np.testing.assert_allclose(kl.sum(-1), gaussian_kl(mean, logvar), rtol=1e-5)


def test_the_sampled_kl_has_the_analytic_one_as_its_mean():
  mean, logvar = normal(3, 2), normal(3, 2)
  z = mean + np.exp(logvar / 2) * normal(200_000, 3, 2)
  sampled = -ob.log_weights(
    jnp.zeros(z.shape[:2]), *map(jnp.asarray, (z, mean, logvar))
  )
  error = np.std(sampled, axis=0) / np.sqrt(len(z))
  assert (np.abs(sampled.mean(0) - gaussian_kl(mean, logvar)) < 4 * error).all()


def test_with_the_exact_posterior_one_sample_gives_log_p_of_x():
  # z ~ N(0, 1), x | z ~ N(z, s2): p(x) = N(0, 1 + s2), z | x ~ N(x / (1 + s2), ...)
  s2, x, z = 0.3, normal(4), normal(6, 4)
  logp = stats.norm(z, np.sqrt(s2)).logpdf(x).astype(np.float32)
  mean, logvar = x / (1 + s2), np.full(4, np.log(s2 / (1 + s2)), np.float32)
  got = ob.log_weights(
    *map(jnp.asarray, (logp, z[..., None], mean[:, None], logvar[:, None]))
  )
  want = np.broadcast_to(stats.norm(0, np.sqrt(1 + s2)).logpdf(x), (6, 4))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_weights_on_the_kl():
  logp, kl = jnp.array([-5.0, -7.0]), jnp.array([2.0, 3.0])
  np.testing.assert_allclose(ob.elbo(logp, kl), [-7, -10])
  np.testing.assert_allclose(ob.elbo(logp, kl, beta=4.0), [-13, -19])
  got = ob.capacity(logp, kl, gamma=10.0, target_nats=2.5)
  np.testing.assert_allclose(got, [-10, -12])
  at = lambda step: ob.capacity_at(jnp.array(step), final_nats=25.0, ramp_steps=100)
  np.testing.assert_allclose([at(0), at(40), at(100), at(900)], [0, 10, 25, 25])
  weight = lambda step, steps: float(ob.warm_up(jnp.array(step), steps=steps))
  assert [weight(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
  assert weight(0, 0) == 1.0


def test_free_bits_stop_the_pull_on_latents_below():
  logvar = jnp.zeros((4, 3))

  def bound(mean):
    kl = ob.kl_by_dimension(mean, logvar).mean(0)
    return ob.free_bits(jnp.zeros(4), kl, nats=0.5).mean()

  mean = jnp.array([[0.1, 2.0, 0.0]] * 3 + [[1.5, 2.0, 0.0]])  # mean KL .285, 2, 0
  np.testing.assert_allclose(bound(mean), -(0.5 + 2.0 + 0.5), rtol=1e-6)
  grad = jax.grad(bound)(mean)
  np.testing.assert_allclose(grad[:, 1], -2.0 / 4, rtol=1e-6)
  np.testing.assert_array_equal(grad[:, ::2], 0.0)


def test_iwae_is_the_log_of_the_mean_over_samples():
  log_w = normal(5, 3)
  want = np.log(np.exp(log_w.astype(np.float64)).mean(0))
  np.testing.assert_allclose(ob.iwae(jnp.asarray(log_w)), want, rtol=1e-5)
  np.testing.assert_allclose(ob.iwae(log_w[:1]), log_w[0], rtol=1e-6)
  np.testing.assert_allclose(ob.iwae(log_w - 500.0), want - 500.0, rtol=1e-5)


# A tiny model: z ~ N(0, I), x | z ~ N(z + t, 1), q(z | x) = N(a x + c, exp v).
X = jnp.array([[0.7, -1.2]])
PARAMS = {"t": jnp.array([0.3, -0.2]), "a": jnp.array(0.2), "v": jnp.array(-0.4)}
PARAMS["c"] = jnp.array([0.5, 0.1])


def tiny_bound(objective, k):
  """`bound(params, noise [k 1 2])`, by either objective."""
  stop = jax.lax.stop_gradient

  def log_w(params, z, q):
    log_px = -0.5 * ((X - z - params["t"]) ** 2 + jnp.log(2 * jnp.pi)).sum(-1)
    return ob.log_weights(log_px, z, *q)

  def bound(params, noise):
    q = params["a"] * X + params["c"], jnp.broadcast_to(params["v"], X.shape)
    z = q[0] + jnp.exp(0.5 * q[1]) * noise
    if objective == "iwae":
      return ob.iwae(log_w(params, z, q)).sum()
    on_model, on_latent = (
      log_w(params, stop(z), stop(q)),
      log_w(stop(params), z, stop(q)),
    )
    return ob.dreg(on_model, on_latent).sum()

  return bound


@pytest.mark.parametrize("k", [1, 8])
def test_dreg_is_the_iwae_gradient_with_less_noise(k):
  noise = jax.random.normal(jax.random.key(0), (40_000, k, 1, 2))
  each = {
    name: jax.jit(jax.vmap(jax.value_and_grad(tiny_bound(name, k)), (None, 0)))(
      PARAMS, noise
    )
    for name in ("iwae", "dreg")
  }
  np.testing.assert_allclose(each["iwae"][0], each["dreg"][0], rtol=1e-4, atol=1e-5)
  for name in PARAMS:
    plain, doubly = (np.asarray(each[o][1][name]) for o in ("iwae", "dreg"))
    n = len(plain)
    error = np.sqrt((plain.var(0) + doubly.var(0)) / n)
    assert (np.abs(plain.mean(0) - doubly.mean(0)) < 4 * error + 1e-6).all(), name
    if name == "t":  # the model's own gradient is the same sample by sample
      np.testing.assert_allclose(plain, doubly, rtol=1e-4, atol=1e-5)
    else:
      assert (doubly.var(0) < 0.7 * plain.var(0)).all(), name


@pytest.mark.parametrize("samples", [1, 3])
def test_resampled_gradients_are_those_of_the_iwae_on_average(samples):
  k, n = 8, 40_000
  noise = jax.random.normal(jax.random.key(0), (n, k, 1, 2))
  keys = jax.random.split(jax.random.key(1), n)

  def bound(params, noise, key):
    q = params["a"] * X + params["c"], jnp.broadcast_to(params["v"], X.shape)
    z = q[0] + jnp.exp(0.5 * q[1]) * noise
    log_px = lambda z: -0.5 * ((X - z - params["t"]) ** 2).sum(-1)
    log_w = lambda z: ob.log_weights(log_px(z), z, *q)
    picked = ob.resample(key[None], log_w(z), z, samples)
    resampled = ob.resampled_iwae(log_w(z), log_w(picked)).sum()
    return resampled, ob.iwae(log_w(z)).sum()

  def both(params, noise, key):
    of = lambda i: jax.value_and_grad(lambda p: bound(p, noise, key)[i])(params)
    return of(0), of(1)

  some, every = jax.jit(jax.vmap(both, (None, 0, 0)))(PARAMS, noise, keys)
  np.testing.assert_allclose(some[0], every[0], rtol=1e-4, atol=1e-5)
  for name in PARAMS:
    extra = np.asarray(some[1][name] - every[1][name])  # of the draw, given the noise
    error = extra.std(0) / np.sqrt(n)
    assert (np.abs(extra.mean(0)) < 4 * error + 1e-6).all(), name
    assert (error > 0).all(), name


def test_dreg_vanishes_for_the_encoder_at_the_exact_posterior():
  s = jnp.log(0.5)
  params = PARAMS | {"a": jnp.array(0.5), "c": -PARAMS["t"] / 2, "v": s}
  noise = jax.random.normal(jax.random.key(1), (8, 1, 2))
  grads = jax.grad(tiny_bound("dreg", 8))(params, noise)
  for name in ("a", "c", "v"):
    np.testing.assert_allclose(grads[name], 0.0, atol=1e-6)
  assert np.abs(jax.grad(tiny_bound("iwae", 8))(params, noise)["c"]).max() > 1e-2


def posteriors(n, z=2):
  return normal(n, z), 0.5 * normal(n, z)


def log_q(z, means, logvars):
  """Log q(z_j | x_n) [n z], by SciPy."""
  return stats.norm(means, np.exp(logvars / 2)).logpdf(z)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_stratified_sampling_is_unbiased_over_all_minibatches(batch):
  n = 5
  means, logvars = posteriors(n)
  z = normal(2)
  each = np.exp(log_q(z, means, logvars).sum(-1))
  estimates = []
  # z's own example is uniform over the set, the others are drawn without replacement.
  for rows in itertools.permutations(range(n), batch):
    for place in range(batch):
      weights = np.exp(tc.stratified_log_weights(jnp.array([place]), batch, n)[0])
      np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
      estimates.append((weights * each[list(rows)]).sum())
  np.testing.assert_allclose(np.mean(estimates), each.mean(), rtol=1e-5)


@pytest.mark.parametrize("stratified", [True, False])
def test_the_decomposition_adds_up_and_its_parts_are_their_definitions(stratified):
  n, examples = 4, 10
  means, logvars = posteriors(n)
  z, own = normal(2, 2), np.array([1, 3])
  parts = tc.decompose_kl(
    *map(jnp.asarray, (z, means, logvars, own)),
    examples=examples,
    stratified=stratified,
  )
  log_pz = stats.norm(0, 1).logpdf(z).sum(-1)
  for i, row in enumerate(z):
    q = np.exp(log_q(row, means, logvars))
    w = np.full((n, 1), 1 / (n * examples))
    if stratified:
      w[:] = 1 / (n - 1)
      w[own[i]] = 1 / examples
      w[(own[i] + 1) % n] = (examples - n + 1) / (examples * (n - 1))
    joint, product = np.log((w[:, 0] * q.prod(1)).sum()), np.log((w * q).sum(0)).sum()
    conditional = np.log(q[own[i]].prod())
    want = conditional - joint, joint - product, product - log_pz[i]
    np.testing.assert_allclose([p[i] for p in parts], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      sum(p[i] for p in parts), conditional - log_pz[i], rtol=1e-4, atol=1e-5
    )
  log_px = jnp.array([-3.0, -4.0])
  got = tc.beta_tc(log_px, parts, weights=(1.0, 1.0, 1.0))
  np.testing.assert_allclose(got, ob.elbo(log_px, sum(parts, jnp.zeros(2))), rtol=1e-5)
  more = tc.beta_tc(log_px, parts, weights=(1.0, 6.0, 1.0))
  np.testing.assert_allclose(got - more, 5 * parts.total_correlation, rtol=1e-3)


def test_the_parts_of_two_devices_are_those_of_one():
  means, logvars = map(jnp.asarray, posteriors(6))
  z = means + 0.1
  whole = tc.decompose_kl(z, means, logvars, jnp.arange(6), examples=60)
  half = tc.decompose_kl(z[3:], means, logvars, jnp.arange(3, 6), examples=60)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[3:], b, rtol=1e-6), whole, half
  )


def test_a_batch_that_cannot_be_stratified_is_refused():
  with pytest.raises(ValueError, match="got 1"):
    tc.stratified_log_weights(jnp.array([0]), 1, 10)
  with pytest.raises(ValueError, match="got 11"):
    tc.stratified_log_weights(jnp.array([0]), 11, 10)


def test_the_vamp_prior_is_the_mixture_of_its_posteriors():
  means, logvars = posteriors(5)
  z = normal(3, 4, 2)
  got = ob.vamp_log_prob(*map(jnp.asarray, (z, means, logvars)))
  each = [np.exp(log_q(row, means, logvars).sum(-1)).mean() for row in z.reshape(-1, 2)]
  np.testing.assert_allclose(got, np.log(each).reshape(3, 4), rtol=1e-4)
  log_px = jnp.asarray(normal(3, 4))
  q = jnp.asarray(normal(4, 2)), jnp.asarray(normal(4, 2))
  plain = ob.log_weights(log_px, jnp.asarray(z), *q)
  under = ob.log_weights(log_px, jnp.asarray(z), *q, log_pz=got)
  log_pz = stats.norm(0, 1).logpdf(z).sum(-1)
  np.testing.assert_allclose(under - plain, got - log_pz, rtol=1e-3, atol=1e-4)


def test_permuted_latents_keep_marginals_and_lose_the_correlation():
  z = np.repeat(normal(4000, 1), 3, axis=1)  # three times the same latent
  got = np.asarray(tc.permute_latents(jax.random.key(0), jnp.asarray(z)))
  np.testing.assert_array_equal(np.sort(got, 0), np.sort(z, 0))
  assert np.abs(np.corrcoef(got.T) - np.eye(3)).max() < 0.06


def test_the_discriminators_optimum_is_the_total_correlation():
  # Two correlated Gaussians: TC = -log(1 - r^2) / 2; the best logit is log q / prod q_j.
  r = 0.6
  joint = stats.multivariate_normal([0, 0], [[1, r], [r, 1]])
  ratio = lambda z: joint.logpdf(z) - stats.norm(0, 1).logpdf(z).sum(-1)
  z = joint.rvs(200_000, random_state=0)
  permuted = np.asarray(tc.permute_latents(jax.random.key(1), jnp.asarray(z)))

  def loss(change):
    logits = (jnp.asarray(ratio(v) * change) for v in (z, permuted))
    return float(tc.density_ratio_loss(*logits).mean())

  assert loss(1.0) < min(loss(0.9), loss(1.1))
  np.testing.assert_allclose(loss(0.0), np.log(2), rtol=1e-5)
  got = -tc.factor(
    jnp.zeros(len(z)), jnp.zeros(len(z)), jnp.asarray(ratio(z)), gamma=1.0
  )
  np.testing.assert_allclose(got.mean(), -0.5 * np.log(1 - r**2), atol=0.01)


def test_the_optimal_variance_is_the_most_likely_and_carries_no_gradient_of_its_own():
  x, mean = jnp.asarray(normal(5, 2, 3)), jnp.asarray(normal(5, 2, 3))
  best = ob.optimal_variance(x, mean)
  at = lambda v: float(ob.calibrated_log_prob(x, mean, v).sum())
  assert at(best) > max(at(0.98 * best), at(1.02 * best))
  want = -0.5 * x.size * (np.log(2 * np.pi * best) + 1)
  np.testing.assert_allclose(at(best), want, rtol=1e-5)

  def total(mean, stop):
    v = ob.optimal_variance(x, mean)
    return ob.calibrated_log_prob(x, mean, stop(v)).sum()

  through, fixed = (
    jax.grad(total)(mean, s) for s in (lambda v: v, jax.lax.stop_gradient)
  )
  np.testing.assert_allclose(through, fixed, rtol=1e-4, atol=1e-5)
