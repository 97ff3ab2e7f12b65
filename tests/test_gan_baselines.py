"""DCGAN and SNGAN's networks against singular values and the papers' sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models import baselines
from mmgen_jax.models.layers import init_params

key = jax.random.key


def test_spectral_norm_is_the_largest_singular_value_and_its_gradient():
  u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(18, 6)))
  v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
  w = jnp.float32((u * [3.0, 2.0, 1.5, 1.0, 0.5, 0.1]) @ v.T)
  norm = lambda w: baselines.spectral_norm(w.reshape(3, 3, 2, 6))
  assert float(norm(w)) == pytest.approx(3.0, rel=1e-3)
  assert float(norm(w)) <= 3.0 + 1e-5
  np.testing.assert_allclose(jax.grad(norm)(w), np.outer(u[:, 0], v[:, 0]), atol=1e-2)


def test_normalised_layers_do_not_change_with_the_scale_of_their_kernels():
  for layer, x in [
    (baselines.SNDense(5), jax.random.normal(key(0), (2, 7))),
    (baselines.SNConv(5, (3, 3)), jax.random.normal(key(0), (2, 4, 4, 7))),
  ]:
    params = layer.init(key(1), x)["params"]
    y = layer.apply({"params": params}, x)
    ten = {**params, "kernel": 10 * params["kernel"]}
    np.testing.assert_allclose(layer.apply({"params": ten}, x), y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(baselines.PAIRS))
def test_a_switch_takes_the_normalisation_away_and_keeps_the_parameters(name):
  _, make = baselines.PAIRS[name]
  x, label = jax.random.normal(key(0), (2, 16, 16, 3)), jnp.array([0, 2])
  nets = {on: make(8, 3, spectral_norm=on) for on in (True, False)}
  params = nets[True].init(key(1), x, label)["params"]
  tree = jax.tree.structure(nets[False].init(key(1), x, label)["params"])
  assert jax.tree.structure(params) == tree
  last = {**params["logit"], "kernel": 10 * params["logit"]["kernel"]}
  ten = {**params, "logit": last}
  run = lambda net, p: net.apply({"params": p}, x, label)
  moved = {on: np.abs(run(net, ten) - run(net, params)) for on, net in nets.items()}
  assert moved[True].max() < 1e-4 < 1e-2 < moved[False].max()


def count(module, *shapes):
  made = jax.eval_shape(lambda: init_params(module, key(0), *shapes))
  return sum(x.size for x in jax.tree.leaves(made))


def test_sngan_has_the_sizes_of_its_table():
  z = jax.ShapeDtypeStruct((1, 128), jnp.float32)
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  conv = lambda size, i, o: (size**2 * i + 1) * o
  w = 256  # a block: two norms of a scale and a shift, two convolutions, a 1x1 one
  block = 2 * 2 * w + 2 * conv(3, w, w) + conv(1, w, w)
  want = (128 + 1) * 16 * w + 3 * block + 2 * w + conv(3, w, 3)
  assert count(baselines.ResGenerator((32, 32), 3), z) == want
  d = 128
  first = conv(3, 3, d) + conv(3, d, d) + conv(1, 3, d)
  want = first + 6 * conv(3, d, d) + conv(1, d, d) + d + 1
  assert count(baselines.ResDiscriminator(), x) == want


@pytest.mark.parametrize(
  "condition", [jnp.array([0, 1, 2]), jnp.eye(3, 5)], ids=["class", "vector"]
)
@pytest.mark.parametrize("name", sorted(baselines.PAIRS))
def test_examples_are_independent_and_conditions_matter(name, condition):
  make_g, make_d = baselines.PAIRS[name]
  gen, disc = make_g((16, 16), 2, 8, 3), make_d(8, 3)
  z = jax.random.normal(key(0), (3, 4))
  g = gen.init(key(1), z, condition)
  x = gen.apply(g, z, condition)
  d = disc.init(key(2), x, condition)
  y = disc.apply(d, x, condition)
  assert x.shape == (3, 16, 16, 2) and y.shape == (3,) and jnp.abs(x).max() <= 1
  np.testing.assert_allclose(gen.apply(g, z[1:2], condition[1:2])[0], x[1], atol=1e-5)
  np.testing.assert_allclose(disc.apply(d, x[1:2], condition[1:2])[0], y[1], atol=1e-5)
  other = condition[::-1]
  assert not np.allclose(gen.apply(g, z, other)[0], x[0])
  assert not np.allclose(disc.apply(d, x, other)[0], y[0])


def test_sizes_that_do_not_halve_to_four_are_refused():
  with pytest.raises(ValueError, match="multiples of 8"):
    baselines.DCGenerator((36, 36), 1).init(key(0), jnp.ones((1, 4)))
