"""What the multimodal step ascends: `mmgen_jax.multimodal_objectives` made of networks.

One function per objective, from a `Pass`. Every pattern of missing data is a value in
its mask, so a step is compiled once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mmgen_jax import multimodal_objectives as objectives
from mmgen_jax.fusion import model as fuse
from mmgen_jax.fusion.posteriors import DENSITIES, NORMAL, Density
from mmgen_jax.losses import gaussian_kl
from mmgen_jax.models.layers import apply
from mmgen_jax.models.multimodal import MultimodalVAE

stop = jax.lax.stop_gradient


class Pass(NamedTuple):
  """One batch, encoded.

  Attributes:
    config: of the run.
    vae: the networks.
    params: a State's, by network.
    values: model-space values, blank where missing: what is decoded.
    seen: the same, augmented: what is encoded.
    mask: what each example has.
    means: of the experts.
    logvars: of the experts.
    keys: one per example.
  """

  config: Any
  vae: MultimodalVAE
  params: Any
  values: dict[str, Array]
  seen: dict[str, Array]
  mask: Bool[Array, "m b"]
  means: Float[Array, "m b z"]
  logvars: Float[Array, "m b z"]
  keys: Key[Array, "b"]

  @property
  def density(self) -> Density:
    """The family of the experts and of the prior."""
    return DENSITIES[self.config.loss.get("density", "normal")]

  @property
  def beta(self) -> float:
    """Weight of the KL."""
    return self.config.loss.beta

  def split(self, n: int) -> Key[Array, "b n"]:
    """`n` keys per example."""
    return jax.vmap(lambda key: jax.random.split(key, n))(self.keys)

  def log_px_of(self, name: str, z: Float[Array, "*s b z"], params=None) -> Array:
    """Log p(x_m | z) of one modality [*s b], times its weight."""
    params = self.params if params is None else params
    lead, b = z.shape[:-2], z.shape[-2]
    # Samples of one example side by side: a sharded batch stays where it is.
    flat = jnp.moveaxis(z, -2, 0).reshape(-1, z.shape[-1])
    x = jnp.repeat(self.values[name], len(flat) // b, axis=0)
    out = apply(self.vae, params["vae"], flat, [name], method="decode")[name]
    log_p = self.vae.likelihood(name).log_prob(out, x)
    log_p = jnp.moveaxis(log_p.reshape(b, *lead), 0, -1)
    return self.config.loss.weights.get(name, 1.0) * log_p

  def log_px(self, z: Float[Array, "*s b z"], params=None) -> Float[Array, "*s m b"]:
    """Of all modalities, of each z."""
    names = sorted(self.values)
    return jnp.stack([self.log_px_of(name, z, params) for name in names], -2)


Bound = tuple[Float[Array, "b"], Float[Array, "b"]]  # what is ascended, and its KL


def _mvae(p: Pass) -> Bound:
  m, extra = len(p.mask), p.config.loss.get("random_subsets", 1)
  keys = p.split(1 + extra)
  random = jax.vmap(fuse.random_subset, (1, None))(keys[:, 1:], p.mask)
  alone = jnp.eye(m, dtype=bool)[:, :, None] & p.mask
  given = jnp.concatenate([p.mask[None], alone, random])
  q = fuse.products(p.means, p.logvars, given, prior_precision=1.0)
  z, kl = NORMAL.draw(keys[:, 0], *q), gaussian_kl(*q)
  log_px = jnp.zeros(given.shape)
  for i, name in enumerate(sorted(p.values)):
    # Each modality only from the subsets that it may be in.
    rows = jnp.array([0, 1 + i, *range(1 + m, 1 + m + extra)])
    log_px = log_px.at[rows, i].set(p.log_px_of(name, z[rows]))
  return objectives.mvae(log_px, kl, given, beta=p.beta), kl[0]


def _strata(p: Pass, means, logvars) -> Float[Array, "m k b z"]:
  """As many samples of each expert as the config says."""
  k = p.config.loss.get("samples", 1)
  wide = lambda x: jnp.broadcast_to(x[:, None], (len(x), k, *x.shape[1:]))
  return p.density.draw(p.keys, wide(means), wide(logvars))


def _log_mixture(p: Pass, z, means, logvars) -> tuple[Array, Array]:
  """Log q(z_mk) of the mixture, and of each expert: [m k b] and [j m k b]."""
  spread = lambda x: x[:, None, None]
  each = p.density.log_prob(z[None], spread(means), spread(logvars)).sum(-1)
  return objectives.mixture_log_prob(each, p.mask), each


def _estimate(p: Pass, log_w: Float[Array, "m k b"]) -> Float[Array, "b"]:
  """Of a stratified bound, by the name of the estimator in the config."""
  if p.config.loss.get("estimator", "elbo") == "elbo":
    return objectives.stratified_elbo(log_w, p.mask)
  looser = p.config.loss.get("looser", True)
  return objectives.stratified_iwae(log_w, p.mask, looser=looser)


def _mmvae(p: Pass) -> Bound:
  # Blank experts of what is missing: their samples are decoded, and then not counted.
  means, logvars = (jnp.where(p.mask[..., None], x, 0.0) for x in (p.means, p.logvars))
  z = _strata(p, means, logvars)
  zero = jnp.zeros(())
  log_prior = lambda z: p.density.log_prob(z, zero, zero).sum(-1)

  def log_w(z, log_q, params=None):
    log_px = p.log_px(z, params)
    return objectives.log_weights(log_px, p.mask, log_prior(z), log_q, beta=p.beta)

  if p.config.loss.get("estimator", "elbo") != "dreg":
    log_q, _ = _log_mixture(p, z, means, logvars)
    kl = objectives.stratified_elbo(log_q - log_prior(z), p.mask)
    return _estimate(p, log_w(z, log_q)), kl
  log_q, each = _log_mixture(p, z, stop(means), stop(logvars))
  own = jnp.einsum("mmkb->mkb", each)
  count = jnp.maximum(p.mask.sum(0), 1)
  _, through_q = _log_mixture(p, stop(z), means, logvars)
  itself = jnp.eye(len(p.mask), dtype=bool)[:, :, None, None]
  bound = objectives.stratified_dreg(
    log_w(stop(z), stop(log_q)),
    log_w(z, log_q, stop(p.params)),
    jnp.exp(own - log_q) / count,
    objectives.mixture_log_prob(jnp.where(itself, stop(through_q), through_q), p.mask),
    p.mask,
    beta=p.beta,
    looser=p.config.loss.get("looser", True),
  )
  return bound, stop(objectives.stratified_elbo(log_q - log_prior(z), p.mask))


def _mopoe(p: Pass) -> Bound:
  keys = p.split(2)
  chosen = fuse.random_subset(keys[:, 0], p.mask)
  q = fuse.product_of_experts(p.means, p.logvars, chosen, prior_precision=0.0)
  log_px = p.log_px(NORMAL.draw(keys[:, 1], *q))
  given = fuse.all_subsets(len(p.mask))[:, :, None] & p.mask
  kl = gaussian_kl(*fuse.products(p.means, p.logvars, given))
  possible = fuse.possible_subsets(p.mask)
  bound = objectives.mopoe(log_px, kl, p.mask, possible, beta=p.beta)
  return bound, objectives.mean_over(kl, possible)


def _mmjsd(p: Pass) -> Bound:
  keys = p.split(2)
  chosen = fuse.random_expert(keys[:, 0], p.mask)
  q = fuse.product_of_experts(p.means, p.logvars, chosen, prior_precision=0.0)
  log_px = p.log_px(NORMAL.draw(keys[:, 1], *q))
  divergence = objectives.jensen_shannon(p.means, p.logvars, p.mask)
  return objectives.total(log_px, p.mask) - p.beta * divergence, divergence


def _kl_to_experts(p: Pass, q) -> Float[Array, "m b"]:
  mean, logvar = (jnp.where(p.mask[..., None], x, 0.0) for x in (p.means, p.logvars))
  q_mean, q_logvar = (jnp.broadcast_to(x, mean.shape) for x in q)
  return gaussian_kl(q_mean, q_logvar, mean, logvar)


def _mvtcae(p: Pass) -> Bound:
  q = fuse.product_of_experts(p.means, p.logvars, p.mask, prior_precision=0.0)
  log_px = p.log_px(NORMAL.draw(p.keys, *q))
  alpha, kl = p.config.loss.get("alpha", 5 / 6), gaussian_kl(*q)
  bound = objectives.mvtcae(
    log_px, kl, _kl_to_experts(p, q), p.mask, alpha=alpha, beta=p.beta
  )
  return bound, kl


def _jmvae(p: Pass) -> Bound:
  q = apply(p.vae, p.params["vae"], p.seen, method="encode_jointly")
  log_px = p.log_px(NORMAL.draw(p.keys, *q))
  alpha, kl = p.config.loss.get("alpha", 0.1), gaussian_kl(*q)
  bound = objectives.jmvae(
    log_px, kl, _kl_to_experts(p, q), p.mask, alpha=alpha, beta=p.beta
  )
  return bound, kl


def _mmvae_plus(p: Pass) -> Bound:
  """Private latents of others are drawn from their own learned priors.

  mean_m E [sum_n log p(x_n | z, w_n) + beta (log p(z) + log p(w_m) - log q(z) - log
  q(w_m | x_m))], z and w_m from q(. | x_m), w_n of N(0, s_n), s_n learned, and p(w) of
  scale one, which is what is drawn from in the end. Palumbo, Daunhawer and Vogt,
  "MMVAE+", 2023, eq. 6, https://openreview.net/forum?id=sdQGxouELX.
  """
  latent, keep = p.vae.latent, p.mask[..., None]
  learned = jnp.pad(p.params["private"]["logvar"], (latent, 0))
  own = keep & jnp.isfinite(p.logvars)  # [m b z]; the other experts' are not said
  means = jnp.where(own, p.means, 0.0)
  logvars = jnp.where(own, p.logvars, learned)
  z = _strata(p, means, logvars)
  log_q, _ = _log_mixture(
    p, z[..., :latent], means[..., :latent], logvars[..., :latent]
  )
  wide = lambda x: x[:, None]
  log_qw = p.density.log_prob(z, wide(means), wide(logvars))
  log_p = p.density.log_prob(z, jnp.zeros(()), jnp.zeros(()))
  private = wide(own) & (jnp.arange(p.vae.size) >= latent)
  ratio = jnp.where(private, log_p - log_qw, 0.0).sum(-1)
  log_prior = log_p[..., :latent].sum(-1) + ratio
  log_w = objectives.log_weights(p.log_px(z), p.mask, log_prior, log_q, beta=p.beta)
  kl = objectives.stratified_elbo(log_q - log_prior, p.mask)
  return _estimate(p, log_w), kl


OBJECTIVES: dict[str, Callable[[Pass], Bound]] = {
  "mvae": _mvae,
  "mmvae": _mmvae,
  "mopoe": _mopoe,
  "mmjsd": _mmjsd,
  "mvtcae": _mvtcae,
  "mmvae_plus": _mmvae_plus,
  "jmvae": _jmvae,
}


def make_objective(config) -> Callable[[Pass], Bound]:
  """The bound that `config.loss.posterior` names.

  Raises:
    ValueError: if there is none, or the rest of the config does not fit it.
  """
  loss, private = config.loss, any(config.model.get("private", {}).values())
  name = loss.posterior
  if name not in OBJECTIVES:
    raise ValueError(
      f"loss.posterior must be one of {sorted(OBJECTIVES)}, got {name!r}"
    )
  if private and name != "mmvae_plus":
    raise ValueError(f"loss.posterior {name!r} has no private latents; model.private")
  estimator, density = loss.get("estimator", "elbo"), loss.get("density", "normal")
  known = {"mmvae": ("elbo", "iwae", "dreg"), "mmvae_plus": ("elbo", "iwae")}
  if estimator not in known.get(name, ("elbo",)):
    raise ValueError(
      f"loss.estimator of {name!r} must be one of {known.get(name, ('elbo',))}, got"
      f" {estimator!r}"
    )
  if density not in DENSITIES or (density != "normal" and name not in known):
    raise ValueError(
      f"loss.density must be one of {sorted(DENSITIES)} ('normal' but for"
      f" {sorted(known)}), got {density!r}"
    )
  return OBJECTIVES[name]
