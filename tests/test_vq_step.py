"""The VQ step; what holds of every family is in test_steps.py and test_parallel.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import needs_weights
from tiny_models import tiny

from mmgen_jax.data.modality import image
from mmgen_jax.metrics import pretrained
from mmgen_jax.models.layers import apply
from mmgen_jax.steps import vq

KEY = jax.random.key(0)
GAN = {"gan_weight": 0.5, "start_share": 0.002, "gan": "hinge"}


def case(levels=(), **loss):
  config, modalities, inputs = tiny("vq")
  config.model.levels = levels
  config.loss.update(gan_weight=0.0)
  config.loss.update(loss)
  return config, modalities, jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))


@functools.cache
def updated(name):
  """(state before, after and metrics, of three updates of the same batch)."""
  loss = {"vq": {}, "gan": GAN, "fsq": {}}[name]
  config, modalities, batch = case((5, 3) if name == "fsq" else (), **loss)
  first = state = vq.init(KEY, config, modalities)
  step, history = jax.jit(vq.make_train_step(config, modalities)), []
  for _ in range(3):
    state, metrics = step(state, batch, KEY)
    history.append((jax.device_get(state), jax.device_get(metrics)))
  return jax.device_get(first), history


def test_fsq_learns_without_a_code_book():
  first, history = updated("fsq")
  state, metrics = history[-1]
  assert set(state.params) == {"vae"} == set(first.params)
  assert "vq/used_codes" not in metrics and "vq/commitment" not in metrics
  assert 1.0 <= metrics["vq/perplexity"] <= 15.0
  assert metrics["vq/loss"] < history[0][1]["vq/loss"]


def test_the_code_book_follows_its_assignments_and_no_gradient():
  config, modalities, batch = case()
  first, history = updated("vq")
  coder = vq.build(config, modalities)
  x = jnp.where(batch["mask"]["image"][:, None, None, None], batch["image"], 0)
  z, ids, to = coder.encode(first.params, x)
  here = np.asarray(ids)[np.asarray(batch["mask"]["image"])].reshape(-1)
  count = np.bincount(here, minlength=5) / 8
  p = count / count.sum()
  want = np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())
  state, metrics = history[0]
  np.testing.assert_allclose(metrics["vq/perplexity"], want, rtol=1e-4)
  total = 0.9 * np.ones(5) + 0.1 * count
  np.testing.assert_allclose(state.params["codebook"]["count"], total, rtol=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal, state.params["codebook"], state.ema["codebook"]
  )
  np.testing.assert_allclose(to, coder.lookup(first.params, ids), rtol=1e-5)


def test_until_its_start_the_adversary_learns_and_does_not_pull():
  (_, plain), (first, gan) = updated("vq"), updated("gan")
  for i in (0, 1):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
      plain[i][0].params["vae"],
      gan[i][0].params["vae"],
    )
    assert gan[i][1]["vq/gan_weight"] == 0.0
  moved = lambda a, b: not np.array_equal(a, b)
  before, after = first.params["discriminator"], gan[0][0].params["discriminator"]
  assert any(jax.tree.leaves(jax.tree.map(moved, before, after)))
  last = [h[2][0].params["vae"]["last"]["kernel"] for h in (plain, gan)]
  assert gan[2][1]["vq/gan_weight"] > 0.0 and moved(*last)


def test_the_adversary_pulls_at_the_last_layer_as_the_likelihood_does():
  config, modalities, batch = case(**GAN)
  batch["mask"]["image"] = jnp.ones(8, bool)
  state = vq.init(KEY, config, modalities)
  coder, params = vq.build(config, modalities), dict(state.params)
  disc = vq._discriminator(config, coder)
  _, _, to = coder.encode(params, batch["image"])

  def outputs(last):
    vae = params["vae"] | {"last": last}
    return apply(coder.net, vae, to, method="decode")

  likelihood = coder.net.likelihood

  def rec(last):
    return -likelihood.log_prob(outputs(last), batch["image"]).mean()

  def gan(last):
    return -apply(disc, params["discriminator"], likelihood.mode(outputs(last))).mean()

  norms = [
    np.sqrt(
      sum(
        np.square(x).sum() for x in jax.tree.leaves(jax.grad(f)(params["vae"]["last"]))
      )
    )
    for f in (rec, gan)
  ]
  coder_loss, _ = vq.make_losses(config, modalities)
  _, (metrics, _, _) = jax.jit(coder_loss, static_argnums=4)(
    params["vae"], params, batch, 2, None
  )
  weight = 0.5 * min(norms[0] / (norms[1] + 1e-4), 1e4)
  np.testing.assert_allclose(metrics["vq/gan_weight"], weight, rtol=1e-4)


def test_a_perceptual_distance_is_any_function_of_two_images():
  config, modalities, batch = case(perceptual_weight=3.0)
  state = vq.init(KEY, config, modalities)
  absolute = lambda x, y: jnp.abs(x - y).sum((1, 2, 3))
  losses = [vq.make_losses(config, modalities, p)[0] for p in (None, absolute)]
  params = dict(state.params)
  (without, _), (with_it, (metrics, _, _)) = (
    f(params["vae"], params, batch, 0, None) for f in losses
  )
  added = 3.0 * metrics["vq/perceptual"]
  np.testing.assert_allclose(with_it - without, added, rtol=1e-3)
  assert added > 0


@needs_weights
def test_a_config_names_the_network_of_the_perceptual_distance():
  config, modalities, batch = case(
    perceptual="efficientnet_lite0", perceptual_weight=2.0
  )
  modalities = {**modalities, "image": image(32, 32, 1)}
  x = jax.random.uniform(KEY, (len(batch["image"]), 32, 32, 1), minval=-1.0)
  batch = {**batch, "image": x}
  state = vq.init(KEY, config, modalities)
  step = jax.jit(vq.make_train_step(config, modalities))
  _, metrics = step(state, batch, KEY)
  given = jnp.array([name == "image" for name in sorted(modalities)])
  made = vq.make_generate(config, modalities)(state.params, batch, given, KEY)["image"]
  distance = pretrained.make_feature_distance(pretrained.efficientnet_lite0())
  want = jnp.where(batch["mask"]["image"], distance(x, made), 0.0).mean()
  np.testing.assert_allclose(metrics["vq/perceptual"], want, rtol=1e-3)
  rest = metrics["vq/commitment"] * config.loss.commitment - metrics["vq/logp"]
  np.testing.assert_allclose(metrics["vq/loss"] - rest, 2.0 * want, rtol=1e-2)
  config.loss.perceptual = "nonsense"
  with pytest.raises(ValueError, match="no extractor 'nonsense'"):
    vq.make_train_step(config, modalities)


def test_what_does_not_fit_is_refused():
  config, modalities, _ = case((5, 2))
  with pytest.raises(ValueError, match=r"at least 3 each, got \(5, 2\)"):
    vq.build(config, modalities)
  config, modalities, _ = case(**GAN)
  config.accumulate = 2
  with pytest.raises(ValueError, match="accumulate must be 1, got 2"):
    vq.make_train_step(config, modalities)
  config, modalities, _ = case(**GAN)
  del config.disc_optim
  with pytest.raises(ValueError, match="gan_weight = 0.5 needs disc_optim, which this"):
    vq.init(KEY, config, modalities)
  config, modalities, _ = case(perceptual_weight=3.0)
  with pytest.raises(ValueError, match=r"32 x 32 or more; image is image \(8, 8, 3\)"):
    vq.make_train_step(config, modalities)
  config.model.modality = "word"
  with pytest.raises(ValueError, match="'word' is text"):
    vq.build(config, modalities)
