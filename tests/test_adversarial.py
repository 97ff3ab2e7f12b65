"""GAN objectives and penalties against NumPy, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import losses

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(size=(2, 9))
NAMES = sorted(losses.ADVERSARIAL)


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


BY_HAND = {  # (what D descends, what G descends)
  "non_saturating": lambda r, f: (-log_sigmoid(r) - log_sigmoid(-f), -log_sigmoid(f)),
  "hinge": lambda r, f: (np.maximum(0, 1 - r) + np.maximum(0, 1 + f), -f),
  "least_squares": lambda r, f: (((r - 1) ** 2 + f**2) / 2, (f - 1) ** 2 / 2),
  "wasserstein": lambda r, f: (f - r, -f),
  "relativistic": lambda r, f: (-log_sigmoid(r - f), -log_sigmoid(f - r)),
  "relativistic_average": lambda r, f: (
    -log_sigmoid(r - f.mean()) - log_sigmoid(r.mean() - f),
    -log_sigmoid(f - r.mean()) - log_sigmoid(f.mean() - r),
  ),
}


@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_their_papers_formulas(name):
  loss, (d, g) = losses.make_adversarial(name), BY_HAND[name](REAL, FAKE)
  real, fake = jnp.float32(REAL), jnp.float32(FAKE)
  np.testing.assert_allclose(loss.discriminator(real, fake), d, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(loss.generator(fake, real), g, rtol=1e-5, atol=1e-6)


def test_relative_means_are_of_the_pairs_that_count_on_all_devices():
  counts = np.array([1, 1, 0, 1, 0, 0, 1, 1], np.float32)
  real, fake = np.where(counts, RNG.normal(size=(2, 8)), 1e3).astype(np.float32)
  has = counts > 0
  d, g = BY_HAND["relativistic_average"](real[has], fake[has])

  def both(real, fake, counts, axis=None):
    of = losses.make_adversarial("relativistic_average", axis=axis, counts=counts)
    return jnp.stack([of.discriminator(real, fake), of.generator(fake, real)], -1)

  args = [jnp.asarray(x) for x in (real, fake, counts)]
  parts = [x.reshape(4, 2) for x in args]  # of 2, 1, 0 and 2 pairs
  part = jax.pmap(lambda *x: both(*x, axis="data"), axis_name="data")
  for got in (both(*args), part(*parts).reshape(8, 2)):
    np.testing.assert_allclose(got[has], np.stack([d, g], -1), rtol=1e-5)
  assert jnp.isfinite(both(*args[:2], jnp.zeros(8))).all()


@pytest.mark.parametrize("name", NAMES)
def test_discriminators_push_apart_and_generators_push_up(name):
  loss = losses.make_adversarial(name)
  real, fake = 0.5 + 0.1 * jnp.float32(REAL), 0.5 + 0.1 * jnp.float32(FAKE)
  d = jax.grad(lambda r, f: loss.discriminator(r, f).sum(), (0, 1))(real, fake)
  g = jax.grad(lambda f: loss.generator(f, real).sum())(fake)
  assert (d[0] < 0).all() and (d[1] > 0).all() and (g < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_relativistic_losses_ignore_a_constant(name):
  loss = losses.make_adversarial(name)
  real, fake = jnp.float32(REAL), jnp.float32(FAKE)
  same = np.allclose(
    loss.discriminator(real + 3, fake + 3), loss.discriminator(real, fake), atol=1e-5
  ) and np.allclose(
    loss.generator(fake + 3, real + 3), loss.generator(fake, real), atol=1e-5
  )
  assert same == name.startswith("relativistic")


def net(w, x):
  return jnp.tanh(x.reshape(len(x), -1) @ w).sum(-1)


W = RNG.normal(size=(6, 4))


def slopes(x):  # of `net`, by hand: sum_j (1 - tanh^2) w_j
  h = np.tanh(x.reshape(len(x), -1) @ W)
  return (1 - h**2) @ W.T


def test_the_penalty_is_the_squared_slope_and_comes_with_the_logits():
  x = RNG.normal(size=(5, 2, 3))
  f = lambda x: net(jnp.float32(W), x)
  logits, penalty = losses.logits_and_penalty(f, jnp.float32(x))
  np.testing.assert_allclose(penalty, (slopes(x) ** 2).sum(-1), rtol=1e-4)
  np.testing.assert_allclose(logits, np.tanh(x.reshape(5, -1) @ W).sum(-1), rtol=1e-4)
  np.testing.assert_allclose(losses.gradient_penalty(f, jnp.float32(x)), penalty)


def test_one_pass_over_real_and_fake_is_r1_and_r2():
  real, fake = jnp.float32(RNG.normal(size=(2, 5, 6)))
  f = lambda x: net(jnp.float32(W), x)
  both = losses.gradient_penalty(f, jnp.concatenate([real, fake]))
  parts = [losses.gradient_penalty(f, x) for x in (real, fake)]
  np.testing.assert_allclose(both, np.concatenate(parts), rtol=1e-5)


def test_the_penalty_moves_the_discriminator_by_finite_differences():
  # Were the slope detached, the penalty would be a constant.
  x = RNG.normal(size=(3, 6))
  value = lambda w: losses.gradient_penalty(lambda x: net(w, x), jnp.float32(x)).sum()
  got = jax.grad(value)(jnp.float32(W))

  def by_hand(w):
    h = np.tanh(x @ w)
    return (((1 - h**2) @ w.T) ** 2).sum()

  want, h = np.zeros_like(W), 1e-6
  for i in np.ndindex(*W.shape):
    step = np.zeros_like(W)
    step[i] = h
    want[i] = (by_hand(W + step) - by_hand(W - step)) / (2 * h)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_the_wasserstein_penalty_is_between_the_two_and_zero_at_slope_one():
  real, fake = RNG.normal(size=(2, 4, 2, 3))
  share = np.array([0.0, 1.0, 0.3, 0.6])
  between = fake + share[:, None, None] * (real - fake)
  want = (np.sqrt((slopes(between) ** 2).sum(-1)) - 1) ** 2
  f = lambda x: net(jnp.float32(W), x)
  args = [jnp.float32(a) for a in (real, fake, share)]
  np.testing.assert_allclose(losses.wasserstein_penalty(f, *args), want, rtol=1e-3)
  unit = W[:, :1] / np.linalg.norm(W[:, 0])
  line = lambda x: x.reshape(len(x), -1) @ jnp.float32(unit)[:, 0]
  np.testing.assert_allclose(losses.wasserstein_penalty(line, *args), 0, atol=1e-10)


def test_a_flat_discriminator_has_finite_gradients():
  x = jnp.ones((2, 3))
  value = lambda w: losses.wasserstein_penalty(
    lambda x: x @ w, x, x, jnp.ones(2) / 2
  ).sum()
  assert jnp.isfinite(jax.grad(value)(jnp.zeros(3))).all()


def test_lecam_holds_each_side_to_the_others_average():
  got = losses.lecam_penalty(jnp.float32(REAL), jnp.float32(FAKE), 0.7, -0.2)
  np.testing.assert_allclose(got, (REAL + 0.2) ** 2 + (FAKE - 0.7) ** 2, rtol=1e-5)
