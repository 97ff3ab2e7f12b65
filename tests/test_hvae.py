"""The hierarchical VAE: its bound is one, and its densities are those of its samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import BATCH, tiny

from mmgen_jax import objectives, parallel
from mmgen_jax.data import modality
from mmgen_jax.losses import gaussian_kl
from mmgen_jax.metrics import likelihood
from mmgen_jax.models.hvae import HierarchicalVAE, Stage, grow, shrink
from mmgen_jax.models.layers import apply
from mmgen_jax.steps import hvae

KEY = jax.random.key(0)


@functools.cache
def small():
  """A net of three groups on 1 x 1 and 3 x 3 maps, away from its initialisation."""
  kinds = {"image": modality.image(3, 3, 1, "bernoulli")}
  net = HierarchicalVAE(kinds, (Stage(1, 1, 2, 8, 4), Stage(3, 2, 2, 8, 4)), patch=1)
  values = {"image": jnp.where(jax.random.bernoulli(KEY, 0.5, (4, 3, 3, 1)), 1.0, -1.0)}
  noise = jax.random.normal(KEY, (4, net.size))
  params = net.init(KEY, values, noise)["params"]
  flat, tree = jax.tree.flatten(params)
  keys = jax.random.split(KEY, len(flat))
  moved = [
    x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(flat, keys, strict=True)
  ]
  return net, tree.unflatten(moved), values, noise


@functools.cache
def log_weights(samples):
  """[samples, 4] of the small net."""
  net, params, values, _ = small()
  seen = apply(net, params, values, method="bottom_up")
  many = lambda x: jnp.repeat(x, samples, axis=0)
  noise = jax.random.normal(jax.random.key(1), (samples * 4, net.size))
  made = apply(net, params, noise, jax.tree.map(many, seen), method="top_down")
  logp = net.likelihood("image").log_prob(made.outputs, many(values["image"]))
  shape = lambda x: np.asarray(x, np.float64).reshape(4, samples).T
  return shape(logp + made.log_ratio), shape(logp - made.kl.sum(0))


def log_mean(weights):
  """(log of the mean over axis 0, its standard error)."""
  mean = weights.mean(0)
  return np.log(mean), weights.std(0) / mean / np.sqrt(len(weights))


def test_importance_sampling_agrees_with_sampling_from_the_prior():
  net, params, values, _ = small()
  got, error = log_mean(np.exp(log_weights(4000)[0]))
  # The same densities with no posterior at all: p(x) is the mean of p(x | z), z ~ p.
  noise = jax.random.normal(jax.random.key(2), (10_000, net.size))
  outputs = apply(net, params, noise, method="top_down").outputs
  prob = net.likelihood("image").log_prob
  each = [
    prob(outputs, jnp.broadcast_to(x, outputs.shape[:-1])) for x in values["image"]
  ]
  want, error2 = log_mean(np.exp(np.stack(each, 1).astype(np.float64)))
  bound = 4 * np.hypot(error, error2)
  assert (np.abs(got - want) < bound).all() and bound.max() < 0.5


def test_the_elbo_is_the_mean_log_weight_and_below_log_p():
  log_w, elbo = log_weights(4000)
  error = (log_w - elbo).std(0) / np.sqrt(len(elbo))
  assert (np.abs((log_w - elbo).mean(0)) < 4 * error + 1e-4).all()
  assert (elbo.mean(0) < np.log(np.exp(log_w).mean(0))).all()


def test_a_group_whose_posterior_is_its_prior_costs_nothing():
  net, params, values, noise = small()
  seen = apply(net, params, values, method="bottom_up")
  none = jnp.zeros(4, bool)
  made = apply(net, params, noise, seen, none, method="top_down")
  prior = apply(net, params, noise, method="top_down")
  np.testing.assert_array_equal(made.outputs, prior.outputs)
  np.testing.assert_allclose(made.kl, 0.0, atol=1e-6)
  np.testing.assert_allclose(made.log_ratio, 0.0, atol=1e-5)
  half = jnp.arange(4) < 2
  mixed = apply(net, params, noise, seen, half, method="top_down")
  whole = apply(net, params, noise, seen, method="top_down")
  np.testing.assert_allclose(mixed.outputs[2:], prior.outputs[2:], rtol=1e-5)
  np.testing.assert_allclose(mixed.kl[:, :2], whole.kl[:, :2], rtol=1e-5)


def test_the_kl_of_a_moved_gaussian_is_the_general_formula():
  mean, logvar, by, by_log = jax.random.normal(KEY, (4, 5, 3))
  q = mean + jnp.exp(0.5 * logvar) * by, logvar + by_log
  want = gaussian_kl(*q, mean, logvar)
  np.testing.assert_allclose(gaussian_kl(by, by_log), want, rtol=1e-5)


def test_maps_shrink_to_means_and_grow_by_repeats():
  x = np.arange(49.0).reshape(1, 7, 7, 1)
  small = shrink(jnp.asarray(x), 4)
  np.testing.assert_allclose(small[0, 0, 0], x[0, :2, :2].mean())
  np.testing.assert_allclose(small[0, 3, 3], x[0, 6, 6] / 4)  # beside zeros
  np.testing.assert_array_equal(grow(small, 7)[0, 6, 6], small[0, 3, 3])
  assert shrink(jnp.asarray(x), 1).shape == (1, 1, 1, 49)
  with pytest.raises(ValueError, match="side 7 .* side 6"):
    shrink(jnp.asarray(x), 6)


def case(**loss):
  config, modalities, inputs = tiny("hvae")
  config.model.update(likelihood="bernoulli", stages=((1, 1, 2, 8, 4),), patch=8)
  config.loss.update(binarise=True, **loss)
  return config, modalities, inputs


@functools.cache
def updates(devices=1, mode: parallel.Mode = "jit", **loss):
  """(state before, state and metrics after two updates of one group)."""
  config, modalities, inputs = case(**loss)
  mesh = parallel.make_mesh(jax.devices()[:devices])
  step = hvae.make_train_step(config, modalities)
  run = parallel.compile_step(step, mesh, mode, updates=2)
  start = parallel.put_replicated(hvae.init(KEY, config, modalities), mesh)
  batch = parallel.put_inputs(inputs(0, 2), mesh, mode)
  before = jax.device_get(start)
  return before, *jax.device_get(run(start, (), batch, jax.random.key(1)))


def test_free_nats_are_over_the_global_batch():
  _, one, metrics = updates(free_nats=0.1)
  _, four, metrics4 = updates(4, "pmap", free_nats=0.1)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, one.params, four.params)
  jax.tree.map(close, metrics["hvae/bound"], metrics4["hvae/bound"])
  assert (metrics["hvae/bound"] < metrics["hvae/elbo"]).all()  # the floor holds


def test_an_update_with_a_large_gradient_is_left_out():
  _, moved, metrics = updates(free_nats=0.1)  # skip_norm 0: none is
  assert metrics["hvae/skipped"].tolist() == [0.0, 0.0]
  norm = float(metrics["norm/vae_grad"][0])
  before, after, metrics = updates(free_nats=0.1, skip_norm=1e-3 * norm)
  assert metrics["hvae/skipped"].tolist() == [1.0, 1.0] and after.step == 2
  jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
  same = lambda a, b: np.array_equal(a, b)
  assert not all(jax.tree.leaves(jax.tree.map(same, before.params, moved.params)))


def test_streamed_bounds_are_those_of_the_weights():
  config, modalities, inputs = case()
  prepare = hvae.make_log_weights(config, modalities)
  params = hvae.init(KEY, config, modalities).params
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  keys = jax.random.split(KEY, BATCH)

  @jax.jit
  def both(params):
    weigh = prepare(params, batch, keys)
    got = likelihood.importance_bounds(
      lambda keys: weigh(keys, 3), keys, samples=6, chunk=3
    )
    each = [jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(2)]
    return got.log_px, objectives.iwae(jnp.concatenate([weigh(k, 3) for k in each]))

  got, want = both(params)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_does_not_fit_is_refused():
  config, modalities, _ = case(free_nats=0.1)
  config.accumulate = 2
  with pytest.raises(ValueError, match="accumulate must be 1, got 2"):
    hvae.make_train_step(config, modalities)
  config.model.modality = "word"
  with pytest.raises(ValueError, match="'word' is text"):
    hvae.build(config, modalities)
  for stages in (((4, 1, 2, 8, 4), (4, 1, 2, 8, 4)), ((2, 1, 0, 8, 4),)):
    config, modalities, _ = case()
    config.model.stages = stages
    with pytest.raises(ValueError, match="sides that grow, one with latents at least"):
      hvae.build(config, modalities)
  config, modalities, _ = case()
  config.model.likelihood = "gaussian"
  with pytest.raises(ValueError, match="binarise is for a 'bernoulli' likelihood"):
    hvae.build(config, modalities)
  config, modalities, _ = case()
  config.model.patch = 2
  with pytest.raises(ValueError, match="the finest stage has side 1"):
    hvae.init(KEY, config, modalities)
