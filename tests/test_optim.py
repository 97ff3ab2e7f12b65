"""Optimisers beside what they are in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from mmgen_jax import optim


def some_tree(seed: int) -> dict:
  keys = iter(jax.random.split(jax.random.key(seed), 5))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  return {
    "dense": {"kernel": draw(12, 5), "bias": draw(5)},
    "conv": {"kernel": draw(3, 3, 4, 7)},
    "table": draw(6, 4),
  }


@pytest.mark.parametrize("changes", [{}, {"clip_norm": 0.5}, {"name": "adamw"}])
def test_as_one_vector_is_the_same(changes):
  config = common.optim(1e-2, weight_decay=0.1, **changes)
  ours = optim.make_optimizer(config)
  of = {"adam": optax.adam, "adamw": optax.adamw}[config.name]
  decay = {"weight_decay": 0.1} if config.name == "adamw" else {}
  theirs = of(1e-2, **decay)
  if config.clip_norm:
    theirs = optax.chain(optax.clip_by_global_norm(config.clip_norm), theirs)
  params = some_tree(0)
  a, b = ours.init(params), theirs.init(params)
  for seed in (1, 2, 3):
    x, a = ours.update(some_tree(seed), a, params)
    y, b = theirs.update(some_tree(seed), b, params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), x, y)
    params = optax.apply_updates(params, x)


def test_muon_turns_all_directions_of_a_kernel_by_as_much():
  """The first update beside U V^T of the SVD: its singular values are near .2 sqrt(m).

  Newton-Schulz's quintic leaves them between about .7 and 1.2 of that (Jordan et al.).
  """
  tx = optim.make_optimizer(common.optim(0.1, name="muon"))
  params, grads = some_tree(0), some_tree(1)
  update, _ = tx.update(grads, tx.init(params), params)
  for name in ("dense", "conv"):
    g, step = (np.asarray(t[name]["kernel"]) for t in (grads, update))
    g, step = (x.reshape(-1, x.shape[-1]) for x in (g, step))
    u, s, v = np.linalg.svd(g, full_matrices=False)
    assert s.max() / s.min() > 1.5
    turned = -(u.T @ step @ v.T) / (0.1 * 0.2 * np.sqrt(max(g.shape)))
    np.testing.assert_allclose(turned, np.eye(len(s)), atol=0.35)


def test_muon_is_adam_where_there_is_no_kernel():
  config = common.optim(0.1, name="muon", b1=0.8, b2=0.9)
  tx = optim.make_optimizer(config)
  adam = optax.adam(0.1, b1=0.8, b2=0.9, nesterov=True)
  params = some_tree(0)
  rest = lambda tree: {"bias": tree["dense"]["bias"], "table": tree["table"]}
  a, b = tx.init(params), adam.init(rest(params))
  for seed in (1, 2):
    x, a = tx.update(some_tree(seed), a, params)
    y, b = adam.update(rest(some_tree(seed)), b, rest(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), rest(x), y)


def test_muon_halves_the_steps_of_an_ill_conditioned_fit():
  """Least squares, columns of scales 1 to 30: Adam at its best rate of four, and Muon."""
  x = jax.random.normal(jax.random.key(0), (64, 16)) * jnp.logspace(0, 1.5, 16)
  x = x @ jnp.linalg.qr(jax.random.normal(jax.random.key(1), (16, 16)))[0]
  y = x @ jax.random.normal(jax.random.key(2), (16, 16))

  def loss_after(name: str, rate: float) -> float:
    config = common.optim(rate, name=name, decay="cosine", decay_steps=100)
    tx = optim.make_optimizer(config)
    params = {"kernel": jnp.zeros((16, 16))}
    loss = lambda p: jnp.square(x @ p["kernel"] - y).mean()

    def step(carry, _):
      params, state = carry
      change, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, change), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
    return float(loss(params))

  rates = (0.03, 0.1, 0.3, 1.0)
  best = {n: min(loss_after(n, r) for r in rates) for n in ("adam", "muon")}
  assert best["muon"] < 0.5 * best["adam"], best


def test_an_unknown_name_is_refused():
  with pytest.raises(ValueError, match=r"one of \['adam', 'adamw', 'muon', 'sgd'\]"):
    optim.make_optimizer(common.optim(0.1, name="lion"))


@pytest.mark.parametrize("n", [0, 1, 511, 512, 5000])
def test_lengths_are_euclidean(n):
  x = np.random.default_rng(0).normal(size=n).astype(np.float32)
  got = jax.jit(optim._length)(x)
  assert float(got) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-6)
