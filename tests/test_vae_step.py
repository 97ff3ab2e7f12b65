"""The objectives of the VAE step; what holds of every family is in test_steps.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import BATCH, tiny

from configs import common
from mmgen_jax import parallel
from mmgen_jax.data import modality
from mmgen_jax.models.vae import binarise
from mmgen_jax.steps import bounds, vae

TC = {"objective": "tc", "tc_weights": (1.0, 6.0, 1.0), "examples": 50}
CASES = {  # name: (loss, model)
  "elbo": ({}, {}),
  "capacity": (
    {
      "objective": "capacity",
      "gamma": 9.0,
      "capacity_nats": 2.0,
      "capacity_share": 0.002,
    },
    {},
  ),
  "free_bits": ({"objective": "free_bits", "free_nats": 0.01}, {}),
  "iwae": ({"objective": "iwae", "samples": 3, "binarise": True}, {}),
  "resampled": (
    {"objective": "iwae", "samples": 3, "backward_samples": 2, "binarise": True},
    {},
  ),
  "dreg": ({"objective": "dreg", "samples": 3, "binarise": True}, {}),
  "stratified": (TC | {"stratified": True}, {}),
  "weighted": (TC | {"stratified": False}, {}),
  "factor": ({"objective": "factor", "gamma": 5.0}, {"disc_hidden": (16, 16)}),
  "vamp": ({"objective": "dreg", "samples": 3}, {"pseudo_inputs": 3}),
  "flow": ({"objective": "iwae", "samples": 3}, {"flow_layers": 2, "flow_hidden": 4}),
  "sigma": ({}, {"learned_scale": True, "likelihood": "gaussian"}),
}


def case(name, present=(1,) * BATCH, **loss):
  """(config, modalities, inputs) of a perceptron with SGD."""
  config, modalities, inputs = tiny("vae")
  config.model.update(net="mlp", hidden=(8,), mean=0.5, likelihood="bernoulli")
  config.model.update(CASES[name][1])
  config.loss.update(CASES[name][0] | loss)
  config.optim = config.disc_optim = common.optim(0.03, name="sgd")

  def seen(first, updates):
    made = inputs(first, updates)
    made["mask"]["image"] = np.tile(np.array(present, bool), (updates, 1))
    return made

  return config, modalities, seen


def compiled(config, modalities, inputs, devices=1, mode="jit", updates=1):
  """(state, metrics) after updates as the loop makes them."""
  mesh = parallel.make_mesh(jax.devices()[:devices])
  step = vae.make_train_step(config, modalities)
  run = parallel.compile_step(step, mesh, mode, updates=updates)
  state = vae.init(jax.random.key(0), config, modalities)
  state = parallel.put_replicated(state, mesh)
  batch = parallel.put_inputs(inputs(0, updates), mesh, mode)
  return jax.device_get(run(state, (), batch, jax.random.key(1)))


def update(config, modalities, inputs):
  """(state, metrics) after one."""
  step = jax.jit(vae.make_train_step(config, modalities))
  state = vae.init(jax.random.key(0), config, modalities)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  return jax.device_get(step(state, batch, jax.random.key(1)))


def close(a, b, rtol=2e-5):
  check = lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)
  jax.tree.map(check, a, b)


@pytest.mark.parametrize("name", ["free_bits", "stratified", "factor"])
def test_one_device_is_pmap_over_four(name):
  one, metrics = compiled(*case(name))
  four, metrics4 = compiled(*case(name), devices=4, mode="pmap")
  close(one.params, four.params)
  close(metrics, metrics4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_moves_and_the_bound_is_finite(name):
  config, modalities, inputs = case(name)
  state, metrics = update(config, modalities, inputs)
  start = vae.init(jax.random.key(0), config, modalities)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), start.params, dict(state.params)
  )
  if name == "flow":  # its last layers start at zero: the first ones move later
    moved["flow"] = jax.tree.map(lambda _: True, moved["flow"]) | {
      "last": any(jax.tree.leaves(moved["flow"]))
    }
  assert all(jax.tree.leaves(moved)), moved
  assert all(np.isfinite(v) for v in metrics.values()), metrics


def test_dreg_moves_the_decoder_as_the_iwae_does_and_the_encoder_otherwise():
  (iwae, of_iwae), (dreg, of_dreg) = (update(*case(n)) for n in ("iwae", "dreg"))
  np.testing.assert_allclose(of_iwae["vae/bound"], of_dreg["vae/bound"], rtol=1e-5)
  assert of_iwae["vae/bound"] > of_iwae["vae/elbo"]  # of 192 values: by some nats
  close(iwae.params["vae"]["decoder"], dreg.params["vae"]["decoder"], rtol=1e-5)
  a, b = (s.params["vae"]["encoder"]["Dense_0"]["kernel"] for s in (iwae, dreg))
  assert np.abs(a - b).max() > 1e-4


def test_a_resampled_iwae_reports_the_same_bound_and_moves_otherwise():
  (iwae, of_iwae), (some, of_some) = (update(*case(n)) for n in ("iwae", "resampled"))
  for name in ("bound", "elbo", "kl"):
    np.testing.assert_allclose(
      of_iwae[f"vae/{name}"], of_some[f"vae/{name}"], rtol=1e-5
    )
  a, b = (jax.tree.leaves(s.params["vae"]) for s in (iwae, some))
  assert all(np.abs(x - y).max() > 0 for x, y in zip(a, b, strict=True))


def test_the_two_players_of_the_factor_vae_pass_each_other_no_gradient():
  base, _ = update(*case("elbo"))
  off, _ = update(*case("factor", gamma=0.0))
  on, _ = update(*case("factor", gamma=50.0))
  close(base.params["vae"], off.params["vae"], rtol=1e-6)
  close(off.params["discriminator"], on.params["discriminator"], rtol=1e-6)
  leaves = zip(*(jax.tree.leaves(s.params["vae"]) for s in (off, on)), strict=True)
  assert any(np.abs(a - b).max() > 1e-5 for a, b in leaves)


def test_at_weights_of_one_beta_tc_is_the_elbo_with_a_sampled_kl():
  ones = (1.0, 1.0, 1.0)
  grads = [update(*case(n, tc_weights=ones))[0] for n in ("stratified", "weighted")]
  # The estimates of q(z) cancel: however it is sampled, the update is the same.
  close(grads[0].params, grads[1].params, rtol=1e-5)


def test_the_weight_of_the_kl_warms_up():
  _, metrics = compiled(*case("elbo", beta=2.0, warmup_steps=4))
  want = metrics["vae/logp"] - 0.25 * 2.0 * metrics["vae/kl"]
  np.testing.assert_allclose(metrics["vae/bound"], want, rtol=1e-5)


def test_free_bits_count_the_examples_that_are_there():
  half = (1,) * 4 + (0,) * 4
  _, all_of_half = update(*case("free_bits", half, free_nats=0.0))
  terms = {k: v * 2 for k, v in all_of_half.items() if k[:4] == "vae/"}
  # Without a floor it is the ELBO, of the examples that are there alone.
  np.testing.assert_allclose(terms["vae/bound"], terms["vae/elbo"], rtol=1e-5)


def test_the_learned_scale_rests_at_the_mean_squared_error():
  config, modalities, inputs = case("sigma")
  net = vae.build(config, modalities)
  model = bounds.make_model(net, config)
  params = vae.init(jax.random.key(0), config, modalities).params
  x = jnp.asarray(inputs(0, 1)["image"][0])
  z = jax.random.normal(jax.random.key(2), (1, BATCH, 4))
  mean = net.apply({"params": params["vae"]}, z[0], method="decode")["image"][..., 0]
  mse = ((np.asarray(x) - np.asarray(mean)) ** 2).mean()

  def log_px(logvar):
    return model.log_px(params | {"noise": {"logvar": logvar}}, x, z).mean()

  at = jnp.log(mse)
  np.testing.assert_allclose(jax.grad(log_px)(at), 0.0, atol=1e-3)
  d = x[0].size
  want = -0.5 * d * (np.log(2 * np.pi * mse) + 1)
  np.testing.assert_allclose(log_px(at), want, rtol=1e-5)


def test_samples_of_the_vamp_prior_have_its_moments():
  config, modalities, _ = case("vamp")
  net = vae.build(config, modalities)
  model = bounds.make_model(net, config)
  params = vae.init(jax.random.key(0), config, modalities).params
  inputs = jnp.linspace(-3, 3, 3)[:, None, None, None] * jnp.ones((3, 8, 8, 3))
  params["pseudo"] = {"inputs": inputs}
  mean, logvar = net.apply(
    {"params": params["vae"]}, {"image": jnp.clip(inputs, -1, 1)}, method="encode"
  )
  z = model.sample_prior(params, jax.random.split(jax.random.key(1), 40_000))
  variance = np.exp(logvar[0]).mean(0) + np.var(mean[0], 0)
  np.testing.assert_allclose(z.mean(0), mean[0].mean(0), atol=0.05)
  np.testing.assert_allclose(z.var(0), variance, rtol=0.05)
  # E log p(z) of its own samples is above that of any other density, as N(0, I) is.
  own = model.log_pz(params, z[None]).mean()
  standard = model.log_pz({"vae": params["vae"]}, z[None]).mean()
  assert own > standard


def test_binarisation_draws_grey_as_its_probability():
  grey = np.array([0, 1, 64, 128, 254, 255])
  x = modality.to_model(modality.image(8, 8, 1), jnp.asarray(grey, jnp.uint8))
  x = jnp.broadcast_to(x, (1000, 400, 6))
  white = np.asarray(binarise(jax.random.split(jax.random.key(0), 1000), x)) == 1.0
  assert not white[..., 0].any() and white[..., 5].all()
  share, p = white.mean((0, 1)), grey / 255
  assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 400_000) + 2.0**-16).all()
  # Two values of one random word have nothing to do with each other.
  half = white[:, :, 3].reshape(1000, -1).astype(float) - 128 / 255
  for lag in (1, 200):
    assert abs((half[:, :-lag] * half[:, lag:]).mean()) < 4 * 0.25 / np.sqrt(200_000)


def test_what_does_not_fit_is_refused():
  def refused(match, name, of_model=None, **changes):
    config, modalities, _ = case(name)
    config.model.update(of_model or {})
    config.update(changes)
    with pytest.raises(ValueError, match=match):
      vae.make_train_step(config, modalities)
      vae.init(jax.random.key(0), config, modalities)

  refused("got 'elbow'", "elbo", loss={"objective": "elbow", "beta": 1.0})
  refused("accumulate must be 1, got 2", "free_bits", accumulate=2)
  refused("loss.samples = 1", "stratified", loss={"samples": 2})
  refused("pseudo_inputs must be 0", "stratified", {"pseudo_inputs": 3})
  refused("flow_layers must be 0", "free_bits", {"flow_layers": 2, "flow_hidden": 4})
  refused("'gaussian' likelihood, got 'bernoulli'", "elbo", {"learned_scale": True})
  for prior in ({"pseudo_inputs": 3}, {"flow_layers": 2, "flow_hidden": 4}):
    refused("must be 0", "capacity", prior)
  refused("'tc' needs loss.examples", "elbo", loss={"objective": "tc"})
  refused("needs model.disc_hidden", "elbo", loss={"objective": "factor", "gamma": 1.0})
  refused("nothing missing", "factor", data={"missing": {"image": 0.5}})
  for loss in ({"beta": 4.0}, {"warmup_steps": 9}):
    refused("they must be 1 and 0", "iwae", loss=loss)
  refused("with 'dreg' it must be 0, got 1", "dreg", loss={"backward_samples": 1})
  refused("start at step 0, got 100", "elbo", optim={"stages": ((100, 0.1),)})
  binary = {"binarise": True}
  refused("'image' has 'gaussian'", "elbo", {"likelihood": "gaussian"}, loss=binary)
  refused("prior_components = 3 is of", "elbo", {"prior_components": 3})
  refused("model.net must be 'conv'", "elbo", {"net": "unet"})
