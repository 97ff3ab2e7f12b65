"""The multimodal step: a VAE with one of the posteriors of the literature.

For comparisons at equal networks with `mmgen_jax.steps.fusion`, which is our own. No
adversary: what is ascended is one of `mmgen_jax.multimodal_objectives`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmgen_jax.fusion import posteriors
from mmgen_jax.fusion.posteriors import DENSITIES, NORMAL
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps import latents as latents_lib
from mmgen_jax.steps.inputs import blank_missing, example_shapes, make_augment
from mmgen_jax.steps.latents import Latents, Modalities, subsets
from mmgen_jax.steps.multimodal_bounds import Pass, make_objective

__all__ = ["build", "init", "make_eval_step", "make_generate", "make_latents"]
__all__ += ["make_train_step", "subsets"]


def build(config, modalities: Modalities) -> MultimodalVAE:
  """The VAE of a config; with a joint encoder for "jmvae"."""
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  make_objective(config)  # refuses what does not fit
  return MultimodalVAE(
    dict(modalities),
    m.latent,
    m.widths.to_dict(),
    m.features,
    m.blocks,
    m.scales.to_dict(),
    m.private.to_dict(),
    dtype,
    joint=config.loss.posterior == "jmvae",
  )


def _optimizers(config) -> dict:
  txs = {"vae": make_optimizer(config.optim)}
  if config.loss.posterior == "mmvae_plus":
    txs["private"] = txs["vae"]
  return txs


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "vae", for "mmvae_plus" also "private", and their averages.

  "private" has the log of the squared scale of the private latents' own priors.
  """
  vae, txs = build(config, modalities), _optimizers(config)
  params: dict[str, Any] = {"vae": init_params(vae, key, example_shapes(modalities))}
  if "private" in txs:
    params["private"] = {"logvar": jnp.zeros(vae.size - vae.latent)}
  opt_state = init_optimizers(txs, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Ascends the objective that `config.loss.posterior` names: "mvae", "mmvae", "mopoe",
  "mmjsd", "mvtcae", "mmvae_plus" or "jmvae"; see `mmgen_jax.multimodal_objectives`. For
  the two mixtures of experts `config.loss.estimator` is "elbo", "iwae" or (not with
  private latents) "dreg", from `config.loss.samples` of each expert. Encoders see
  augmented inputs (`config.augment`); targets are clean.
  """
  vae, objective = build(config, modalities), make_objective(config)
  augment, txs = make_augment(config, modalities), _optimizers(config)

  def loss(params, batch, keys):
    values, mask = blank_missing(batch, modalities)
    keys = jax.vmap(jax.random.split)(keys)
    seen = augment(keys[:, 1], values)
    means, logvars = apply(vae, params["vae"], seen, method="encode")
    p = Pass(config, vae, params, values, seen, mask, means, logvars, keys[:, 0])
    bound, kl = objective(p)
    has = mask.any(0)
    terms = {"bound": bound, "kl": kl}
    terms = {k: jnp.where(has, v, 0.0).mean() for k, v in terms.items()}
    terms["loss"] = -terms["bound"]
    return terms["loss"], {f"multimodal/{k}": v for k, v in terms.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    gradients = jax.grad(loss, has_aux=True)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_latents(config, modalities: Modalities) -> Latents:
  """The distributions of a config's model.

  q(z | x_S) is the product of experts and N(0, I) for "mvae"; of the experts alone for
  "mopoe" (from whose mixture training draws), "mvtcae" and "jmvae" (but its joint
  encoder where all is given); the mixture of the experts for "mmvae", "mmjsd" and
  "mmvae_plus", where every private latent comes from its modality, or the prior.
  """
  vae, name = build(config, modalities), config.loss.posterior
  density = DENSITIES[config.loss.get("density", "normal")]
  product = partial(posteriors.product, 0.0)
  posterior = {
    "mvae": partial(posteriors.product, 1.0),
    "mopoe": product,
    "mvtcae": product,
    "jmvae": product,
    "mmvae": partial(posteriors.mixture, density),
    "mmjsd": posteriors.mixture,
    "mmvae_plus": lambda: posteriors.with_private(
      posteriors.mixture(density), vae.latent, density
    ),
  }[name]()
  decode, log_px = latents_lib.decoding(vae)

  def encode(params, values):
    net = partial(apply, vae, params["vae"], values)
    return net(method="encode"), net(method="encode_jointly") if vae.joint else None

  def sample(params, experts, mask, keys):
    z = posterior.sample(keys, *experts[0], mask)
    if experts[1] is None:
      return z
    joint = NORMAL.draw(keys, *experts[1])
    return jnp.where(mask.all(0)[:, None], joint, z)

  def log_q(params, experts, mask, z):
    value = posterior.log_prob(z, *experts[0], mask)
    if experts[1] is None:
      return value
    joint = NORMAL.log_prob(z, *experts[1]).sum(-1)
    return jnp.where(mask.all(0), joint, value)

  def log_prior(params, z):
    return density.log_prob(z, jnp.zeros(()), jnp.zeros(())).sum(-1)

  return Latents(encode, sample, log_q, log_prior, decode, log_px)


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`steps.latents.eval_step` of a config's model."""
  return latents_lib.eval_step(make_latents(config, modalities), modalities)


def make_generate(config, modalities: Modalities) -> Callable:
  """`steps.latents.generate` of a config's model."""
  return latents_lib.generate(
    make_latents(config, modalities), build(config, modalities)
  )
