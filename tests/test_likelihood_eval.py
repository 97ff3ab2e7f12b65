import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from tiny_models import tiny

from mmgen_jax.metrics import likelihood
from mmgen_jax.objectives import log_weights

RNG = np.random.default_rng(0)


def draw(keys, count, mean, logvar):
  """`count` samples of each example's posterior, [count b z]."""
  one = lambda key: jax.random.normal(key, (count, mean.shape[-1]))
  noise = jax.vmap(one, out_axes=1)(keys)
  return mean + jnp.exp(0.5 * logvar) * noise


def linear_gaussian(chunk, examples=4):
  """(log weights, exact log p(x)): x = W z + c + s e, q the posterior, too wide."""
  w, c, s = RNG.normal(size=(5, 2)), RNG.normal(size=5), 0.7
  x = RNG.normal(size=(examples, 2)) @ w.T + c + s * RNG.normal(size=(examples, 5))
  cov = np.linalg.inv(np.eye(2) + w.T @ w / s**2)
  mean = (x - c) @ w @ cov.T / s**2 + 0.2
  logvar = np.broadcast_to(np.log(1.5 * np.diag(cov)), mean.shape)
  exact = stats.multivariate_normal(c, w @ w.T + s**2 * np.eye(5)).logpdf(x)
  mean, logvar, x, w, c = (jnp.asarray(v, jnp.float32) for v in (mean, logvar, x, w, c))

  def log_w(keys):
    z = draw(keys, chunk, mean, logvar)
    logp = -0.5 * ((x - z @ w.T - c) ** 2 / s**2 + jnp.log(2 * jnp.pi * s**2)).sum(-1)
    return log_weights(logp, z, mean, logvar)

  return log_w, exact


def test_the_bound_of_a_linear_gaussian_rises_to_log_p_and_not_past_it():
  chunk = 5
  log_w, exact = linear_gaussian(chunk)
  keys = jax.random.split(jax.random.key(0), 500 * 4).reshape(500, 4)
  means = []
  for k in (5, 20, 500):
    bound = lambda keys, k=k: likelihood.importance_bounds(
      log_w, keys, samples=k, chunk=chunk
    )
    got = jax.jit(jax.vmap(bound))(keys)
    error = np.std(got.log_px, 0) / np.sqrt(len(keys))
    assert (got.log_px.mean(0) < exact + 4 * error).all()
    means.append(np.asarray(got.log_px.mean(0)))
    assert (got.elbo.mean(0) < means[-1]).all()
    assert (got.effective <= k + 1e-2).all() and (got.effective >= 1 - 1e-3).all()
  assert means[0].mean() < means[1].mean() < means[2].mean()
  np.testing.assert_allclose(means[2], exact, atol=0.01)


def test_5000_samples_are_within_a_hundredth_of_a_nat():
  log_w, exact = linear_gaussian(100, examples=6)
  keys = jax.random.split(jax.random.key(1), 6)
  # One draw of K = 5,000 has a standard error of about 0.01 here; the bound is its mean.
  runs = [jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(8)]
  bound = jax.jit(
    lambda keys: likelihood.importance_bounds(log_w, keys, samples=5000, chunk=100)
  )
  got = np.mean([bound(k).log_px for k in runs], 0)
  np.testing.assert_allclose(got, exact, atol=0.01)


def test_a_nonlinear_model_against_quadrature():
  # z ~ N(0, 1), six bits by a tanh network; q is a guess.
  a, b = RNG.normal(size=(1, 8)), RNG.normal(size=(8, 6))
  x = RNG.integers(0, 2, (3, 6))
  z = np.linspace(-9, 9, 20_001)[:, None]
  p = expit(np.tanh(z @ a) @ b)[:, None]
  joint = np.where(x, p, 1 - p).prod(-1) * stats.norm(0, 1).pdf(z)
  exact = np.log(np.trapezoid(joint, z[:, 0], axis=0))
  mean, logvar = jnp.full((3, 1), 0.3), jnp.full((3, 1), 0.5)

  def log_w(keys):
    z = draw(keys, 500, mean, logvar)
    logits = jnp.tanh(z @ jnp.float32(a)) @ jnp.float32(b)
    logp = jnp.where(x, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
    return log_weights(logp.sum(-1), z, mean, logvar)

  keys = jax.random.split(jax.random.key(0), 3)
  got = likelihood.importance_bounds(log_w, keys, samples=200_000, chunk=500)
  np.testing.assert_allclose(got.log_px, exact, atol=0.01)


def test_the_bound_of_a_shipped_model_against_quadrature():
  from mmgen_jax.data import modality
  from mmgen_jax.steps import bounds, vae

  config, _, _ = tiny("vae")
  config.model.update(net="mlp", hidden=(4,), mean=0.5, latent=1)
  of = {"image": modality.image(2, 3, 1, likelihood="bernoulli")}
  net = vae.build(config, of)
  params = vae.init(jax.random.key(1), config, of).params
  scale = {"decoder": 2.0, "encoder": 0.2}  # a q that is broad enough
  params["vae"] = {
    name: jax.tree.map(lambda x, name=name: scale[name] * x, part)
    for name, part in params["vae"].items()
  }
  model = bounds.make_model(net, config)
  x = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, (3, 2, 3, 1)), 1.0, -1.0)
  batch = {"image": x, "mask": {"image": jnp.ones(3, bool)}}
  keys = jax.random.split(jax.random.key(0), 3)
  q = model.posterior(params, batch, keys)
  log_w = lambda k: bounds.log_weights(model, params, q, bounds.draw(k, q, 250))
  got = likelihood.importance_bounds(log_w, keys, samples=100_000, chunk=250)
  z = np.linspace(-8, 8, 2001, dtype=np.float32)
  logits = net.apply({"params": params["vae"]}, z[:, None], method="decode")["image"]
  p = expit(np.asarray(logits[:, None, ..., 0], np.float64))
  joint = np.where(x > 0, p, 1 - p).prod((2, 3, 4)) * stats.norm(0, 1).pdf(z)[:, None]
  exact = np.log(np.trapezoid(joint, z, axis=0))
  np.testing.assert_allclose(got.log_px, exact, atol=0.01)
  assert (got.elbo < exact).all()


def test_chunks_change_nothing_but_memory():
  # The same 60 weights however they are cut, far below what exp can hold.
  table = jnp.asarray(RNG.normal(size=60) * 3 - 900.0, jnp.float32)

  def bounds(chunk):
    # Keys count the chunks: fold_in(key, i) is replaced by its own index.
    keys = jax.random.split(jax.random.key(0), 1)
    order = {
      int(jax.random.key_data(jax.random.fold_in(keys[0], i))[0]): i
      for i in range(60 // chunk)
    }
    starts = jnp.asarray(list(order.values()))
    data = jnp.asarray(list(order), jnp.uint32)

    def log_w(keys):
      i = starts[jnp.argmax(data == jax.random.key_data(keys[0])[0])]
      return jax.lax.dynamic_slice(table, (i * chunk,), (chunk,))[:, None]

    return likelihood.importance_bounds(log_w, keys, samples=60, chunk=chunk)

  t = np.asarray(table, np.float64)
  w = np.exp(t - t.max())
  want = t.mean(), np.log(w.mean()) + t.max(), w.sum() ** 2 / (w**2).sum()
  for chunk in (1, 4, 60):
    np.testing.assert_allclose([x[0] for x in bounds(chunk)], want, rtol=1e-4)


def test_what_does_not_divide_is_refused():
  keys = jax.random.split(jax.random.key(0), 2)
  with pytest.raises(ValueError, match="samples = 50 must be a multiple of chunk = 20"):
    likelihood.importance_bounds(
      lambda k: jnp.zeros((20, 2)), keys, samples=50, chunk=20
    )
  with pytest.raises(ValueError, match="gave 10 samples, chunk is 20"):
    likelihood.importance_bounds(
      lambda k: jnp.zeros((10, 2)), keys, samples=40, chunk=20
    )
  with pytest.raises(ValueError, match="got 0"):
    likelihood.bits_per_dimension(np.zeros(3), 0)


def test_bits_per_dimension_of_a_fair_coin_is_one():
  got = likelihood.bits_per_dimension(np.array([784 * np.log(0.5)]), 784)
  np.testing.assert_allclose(got, [1.0])


def test_active_units_are_those_whose_mean_follows_the_data():
  n = 4000
  means = RNG.normal(size=(n, 3)) * [1.0, 0.05, 0.2] + [0.0, 5.0, 0.0]
  np.testing.assert_array_equal(likelihood.active_units(means), [True, False, True])


def test_mean_kl_by_dimension_is_scipys_integral():
  means, logvars = RNG.normal(size=(2, 3, 2))
  x = np.linspace(-15, 15, 100_001)
  want = np.zeros(2)
  for i, j in np.ndindex(3, 2):
    q = stats.norm(means[i, j], np.exp(logvars[i, j] / 2))
    density = q.logpdf(x) - stats.norm(0, 1).logpdf(x)
    want[j] += np.trapezoid(q.pdf(x) * density, x) / 3
  np.testing.assert_allclose(
    likelihood.mean_kl_by_dimension(means, logvars), want, rtol=1e-6
  )
