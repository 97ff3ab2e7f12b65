"""The fusion step of one image is a VAE, and with its discriminator a VAE-GAN."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mmgen_jax import config as config_lib
from mmgen_jax.data import modality
from mmgen_jax.models.layers import apply
from mmgen_jax.steps import fusion

PATH = Path(__file__).parents[1] / "configs/vaegan_mnist.py"
MODALITIES = {"image": modality.image(8, 8, 1)}


def small(variant):
  config: Any = config_lib.load(f"{PATH}:{variant}")
  config.model.update(latent=4, features=8, prior_components=3)
  config.loss.update(adversarial_fraction=1, r1_fraction=1)
  for widths in (config.model.widths, config.model.disc_widths):
    widths.image = 8
  config.optim = config.disc_optim = common.optim(1e-2, name="sgd")
  x = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1), minval=-1.0)
  mask = {"image": jnp.ones(8, bool)}
  return config, {"image": x, "mask": mask, "labels": {}, "index": jnp.arange(8)}


def update(variant):
  config, batch = small(variant)
  state = fusion.init(jax.random.key(0), config, MODALITIES)
  step = jax.jit(fusion.make_train_step(config, MODALITIES))
  return state, *step(state, batch, jax.random.key(2))


def test_without_a_discriminator_it_descends_the_negative_elbo():
  state, after, metrics = update("vae")
  assert not state.params["discriminator"] and not after.params["discriminator"]
  np.testing.assert_allclose(metrics["fusion/loss"], -metrics["fusion/elbo"], rtol=1e-5)
  assert metrics["fusion/alignment"] == pytest.approx(0.0, abs=1e-4)


def test_with_a_discriminator_both_move_and_the_decoder_feels_it():
  (_, vae, _), (state, gan, metrics) = update("vae"), update("")
  assert metrics["fusion/d_image"] > 0 and metrics["fusion/fool"] > 0
  same = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6)
  for name in ("vae", "discriminator"):
    pairs = jax.tree.map(same, state.params[name], gan.params[name])
    assert not all(jax.tree.leaves(pairs)), name
  decoder = [s.params["vae"]["decoders_image"] for s in (vae, gan)]
  assert not all(jax.tree.leaves(jax.tree.map(same, *decoder)))
  # The same weights: one run can go on as the other.
  shapes = lambda s: jax.tree.map(jnp.shape, s.params["vae"])
  assert shapes(vae) == shapes(gan)
  assert fusion.subsets(small("")[0], MODALITIES) == [(), ("image",)]


@pytest.mark.parametrize("real", ["data", "reconstructions"])
def test_what_the_discriminator_takes_for_real(real):
  config, batch = small("")
  config.loss.real = real
  state = fusion.init(jax.random.key(0), config, MODALITIES)
  vae_loss, discriminator_loss = fusion.make_losses(config, MODALITIES)
  p, mask = state.params, batch["mask"]["image"][None]
  values, keys = {"image": batch["image"]}, jax.random.split(jax.random.key(3), 8)
  networks = (p["vae"], p["discriminator"], p["prior"])
  _, (_, z, (fakes, reals)) = vae_loss(*networks, values, mask, keys)
  net, _ = fusion.build(config, MODALITIES)
  decoded = net.apply({"params": p["vae"]}, z, method="decode")["image"]
  wanted = {
    "data": batch["image"],
    "reconstructions": net.likelihood("image").mode(decoded),
  }
  np.testing.assert_allclose(reals["image"], wanted[real], atol=1e-5)
  _, metrics = discriminator_loss(p["discriminator"], reals, fakes, mask)
  _, same = discriminator_loss(p["discriminator"], reals, reals, mask)
  assert metrics["fusion/d_image_real"] == same["fusion/d_image_real"]
  assert same["fusion/d_image_real"] == pytest.approx(same["fusion/d_image_fake"])


def test_an_unknown_real_and_a_share_that_is_none_are_refused():
  config, _ = small("")
  config.loss.real = "fakes"
  with pytest.raises(ValueError, match="loss.real must be one of .*'fakes'"):
    fusion.build(config, MODALITIES)
  config.loss.update(real="data", prior_share=1.5)
  with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
    fusion.build(config, MODALITIES)
  config.loss.update(prior_share=1.0, adversarial_fraction=0)
  with pytest.raises(
    ValueError, match="adversarial_fraction must be at least 1, got 0"
  ):
    fusion.build(config, MODALITIES)


@pytest.mark.parametrize("share, of_a_part", [(0.0, 8), (0.5, 4), (1.0, 0)])
def test_the_share_of_generated_images_that_the_prior_gives(share, of_a_part):
  config, batch = small("")
  config.loss.prior_share = share
  p = fusion.init(jax.random.key(0), config, MODALITIES).params
  vae_loss, _ = fusion.make_losses(config, MODALITIES)
  mask, keys = batch["mask"]["image"][None], jax.random.split(jax.random.key(3), 8)

  def generated(x):
    networks = (p["vae"], p["discriminator"], p["prior"])
    _, (_, _, (fakes, _)) = vae_loss(*networks, {"image": x}, mask, keys)
    return fakes["image"].reshape(8, -1)

  other = np.abs(generated(batch["image"]) - generated(-batch["image"])).max(1)
  assert abs((other > 1e-4).sum() - of_a_part) <= (2 if share == 0.5 else 0)


def test_of_a_fraction_the_same_are_judged_and_all_are_reconstructed():
  config, batch = small("")
  p = fusion.init(jax.random.key(0), config, MODALITIES).params
  mask, keys = batch["mask"]["image"][None], jax.random.split(jax.random.key(3), 8)
  networks = (p["vae"], p["discriminator"], p["prior"])

  def of(k, real="data"):
    config.loss.update(adversarial_fraction=k, real=real)
    vae_loss, disc_loss = fusion.make_losses(config, MODALITIES)
    values = {"image": batch["image"]}
    _, (metrics, _, (fakes, reals)) = vae_loss(*networks, values, mask, keys)
    _, of_disc = disc_loss(p["discriminator"], reals, fakes, mask)
    return metrics | of_disc, np.asarray(fakes["image"]), np.asarray(reals["image"])

  for real in ("data", "reconstructions"):
    (every, *all_judged), (fourth, *judged) = of(1, real), of(4, real)
    for some, whole in zip(judged, all_judged, strict=True):
      np.testing.assert_allclose(some, whole[::4], atol=1e-5)
    assert fourth["fusion/elbo"] == pytest.approx(float(every["fusion/elbo"]), rel=1e-5)
    logits = apply(
      fusion.build(config, MODALITIES)[1],
      p["discriminator"],
      {"image": all_judged[0][::4]},
    )
    want = float(jax.nn.softplus(-logits["image"]).mean())
    assert fourth["fusion/fool"] == pytest.approx(want, rel=1e-4)
  with pytest.raises(ValueError, match="adversarial_fraction = 3 does not divide a ba"):
    of(3)
