"""What the VAE step ascends: a model's densities, and bounds on log p(x) made of them.

Here the arrays of `mmgen_jax.objectives` come from networks: `params` are the State's,
by network. "vae" is always there; "noise" where the likelihood's scale is learned,
"pseudo" where the prior is a VampPrior, "flow" where it is a coupling flow,
"discriminator" for FactorVAE; and "sampler" where something fitted later is to be sampled
from in the prior's place (see `mmgen_jax.models.latents`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mmgen_jax import objectives
from mmgen_jax import total_correlation as tc
from mmgen_jax.losses import gaussian_kl, gaussian_log_prob
from mmgen_jax.models import latents
from mmgen_jax.models.layers import apply, leaky_relu
from mmgen_jax.models.vae import MLP, binarise
from mmgen_jax.parallel import gather, pmean
from mmgen_jax.steps.inputs import blank_missing, check_binarise, check_fields

stop = jax.lax.stop_gradient


class Posterior(NamedTuple):
  """q(z | x) of some examples.

  Attributes:
    x: what the model sees: blank where missing, binarised if the config says so.
    has: which examples are there.
    mean: of the Gaussian.
    logvar: of the Gaussian.
  """

  x: Float[Array, "b ..."]
  has: Bool[Array, "b"]
  mean: Float[Array, "b z"]
  logvar: Float[Array, "b z"]


class Model(NamedTuple):
  """A VAE's distributions, as pure functions of `params` and arrays.

  Attributes:
    posterior: (params, batch, keys) -> Posterior.
    log_px: (params, x [b ...], z [k b z]) -> log p(x | z) [k b].
    log_pz: (params, z [k b z]) -> [k b].
    sample_prior: (params, keys [b]) -> z [b z].
  """

  posterior: Callable[..., Posterior]
  log_px: Callable[..., Float[Array, "k b"]]
  log_pz: Callable[..., Float[Array, "k b"]]
  sample_prior: Callable[..., Float[Array, "b z"]]


def make_model(vae, config) -> Model:
  """The distributions of a one-modality VAE (see `steps.vae.build`).

  Raises:
    ValueError: if the config gives it two priors, or binarises what is not binary.
  """
  if config.model.get("pseudo_inputs", 0) and config.model.get("flow_layers", 0):
    raise ValueError("one prior: model.pseudo_inputs or model.flow_layers must be 0")
  ((name, modality),) = vae.modalities.items()
  binary = config.loss.get("binarise", False)
  check_binarise(config, name, modality)

  def encode(params, values):
    means, logvars = apply(vae, params["vae"], values, method="encode")
    return means[0], logvars[0]

  def posterior(params, batch, keys):
    values, mask = blank_missing(batch, vae.modalities)
    if binary:
      values = {name: binarise(keys, values[name])}
    return Posterior(values[name], mask[0], *encode(params, values))

  def log_px(params, x, z):
    # Samples of one example side by side: a sharded batch stays where it is.
    k, b = z.shape[:2]
    flat = jnp.swapaxes(z, 0, 1).reshape(b * k, -1)
    out = apply(vae, params["vae"], flat, method="decode")[name]
    # One example and its samples at a time: x is not repeated, nothing is transposed.
    out = out.reshape(b, k, *out.shape[1:])
    return jax.vmap(lambda out, x: log_prob(params, out, x))(out, x).T

  def log_prob(params, out, x):
    """Log p(x | z) [k] of one example, from what its k samples decode to."""
    x = jnp.broadcast_to(x, (len(out), *x.shape))
    if "noise" in params:
      variance = jnp.exp(params["noise"]["logvar"])
      return objectives.calibrated_log_prob(x, out[..., 0], variance)
    return vae.likelihood(name).log_prob(out, x)

  def components(params):
    """Of the VampPrior: posteriors of inputs that are parameters, kept in [-1, 1]."""
    return encode(params, {name: jnp.clip(params["pseudo"]["inputs"], -1.0, 1.0)})

  def log_pz(params, z):
    if "pseudo" in params:
      return objectives.vamp_log_prob(z, *components(params))
    if "flow" in params:
      return latents.log_prob(params["flow"], z)
    return gaussian_log_prob(z, 0.0, 0.0)

  def sample_prior(params, keys):
    for fitted in ("sampler", "flow"):
      if fitted in params:
        return latents.sample(params[fitted], keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, (vae.size,)))
    if "pseudo" not in params:
      return noise(keys)
    mean, logvar = components(params)
    keys = jax.vmap(jax.random.split)(keys)
    pick = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(mean)))(keys[:, 0])
    return mean[pick] + jnp.exp(0.5 * logvar[pick]) * noise(keys[:, 1])

  return Model(posterior, log_px, log_pz, sample_prior)


def draw(keys: Key[Array, "b"], q: Posterior, samples: int) -> Float[Array, "k b z"]:
  """Reparametrised samples of each example's posterior."""
  normal = lambda key: jax.random.normal(key, (samples, q.mean.shape[-1]))
  noise = jax.vmap(normal, out_axes=1)(keys)
  return q.mean + jnp.exp(0.5 * q.logvar) * noise


def kl(model: Model, params, q: Posterior, z) -> Float[Array, "b"]:
  """KL(q(z | x) || p(z)): exact for N(0, I), the mean over z [k b z] for other priors."""
  if not {"pseudo", "flow"} & set(params):
    return gaussian_kl(q.mean, q.logvar)
  log_q = gaussian_log_prob(z, q.mean, q.logvar)
  return (log_q - model.log_pz(params, z)).mean(0)


class Pass(NamedTuple):
  """One pass of a batch, of which every objective is made."""

  config: Any
  model: Model
  params: Any
  q: Posterior
  z: Float[Array, "k b z"]
  log_px: Float[Array, "k b"]
  kl: Float[Array, "b"]
  step: Array
  axis: str | None
  keys: Key[Array, "b"]


def _elbo(p: Pass):
  loss = p.config.loss
  beta = loss.beta * objectives.warm_up(p.step, steps=loss.get("warmup_steps", 0))
  return objectives.elbo(p.log_px.mean(0), p.kl, beta=beta)


def _capacity(p: Pass):
  loss = p.config.loss
  target = objectives.capacity_at(
    p.step,
    final_nats=loss.capacity_nats,
    ramp_steps=round(loss.capacity_share * p.config.train_steps),
  )
  return objectives.capacity(
    p.log_px.mean(0), p.kl, gamma=loss.gamma, target_nats=target
  )


def _free_bits(p: Pass):
  has = p.q.has[:, None]
  each = jnp.where(has, objectives.kl_by_dimension(p.q.mean, p.q.logvar), 0.0)
  total, count = pmean((each.mean(0), has.mean()), p.axis)
  mean_kl = total / jnp.maximum(count, 1e-9)
  return objectives.free_bits(p.log_px.mean(0), mean_kl, nats=p.config.loss.free_nats)


def log_weights(
  model: Model, params, q: Posterior, z: Float[Array, "k b z"]
) -> Float[Array, "k b"]:
  """Log p(x, z) - log q(z | x)."""
  log_px, log_pz = model.log_px(params, q.x, z), model.log_pz(params, z)
  return objectives.log_weights(log_px, z, q.mean, q.logvar, log_pz=log_pz)


def _iwae(p: Pass):
  log_pz = p.model.log_pz(p.params, p.z)
  q = p.q.mean, p.q.logvar
  log_w = objectives.log_weights(p.log_px, p.z, *q, log_pz=log_pz)
  if not (backward := p.config.loss.get("backward_samples", 0)):
    return objectives.iwae(log_w)
  z = objectives.resample(p.keys, log_w, p.z, backward)
  return objectives.resampled_iwae(log_w, log_weights(p.model, p.params, p.q, z))


def _dreg(p: Pass):
  fixed = stop(p.q)
  on_model = log_weights(p.model, p.params, fixed, stop(p.z))
  on_latent = log_weights(p.model, stop(p.params), fixed, p.z)
  return objectives.dreg(on_model, on_latent)


def _own_rows(n: int, axis: str | None) -> Array:
  """Where the global batch holds this device's examples."""
  first = 0 if axis is None else jax.lax.axis_index(axis) * n
  return first + jnp.arange(n)


def _tc(p: Pass):
  loss = p.config.loss
  parts = tc.decompose_kl(
    p.z[0],
    gather(p.q.mean, p.axis),
    gather(p.q.logvar, p.axis),
    _own_rows(len(p.q.mean), p.axis),
    examples=loss.examples,
    stratified=loss.stratified,
  )
  return tc.beta_tc(p.log_px.mean(0), parts, weights=loss.tc_weights)


def build_discriminator(config) -> MLP:
  """FactorVAE's, of z: Kim and Mnih, 2018, have six layers of 1000, leaky ReLU."""
  return MLP(tuple(config.model.disc_hidden), 1, act=leaky_relu)


def _ratio_logits(p: Pass, params, z: Float[Array, "b z"]) -> Float[Array, "b"]:
  return apply(build_discriminator(p.config), params["discriminator"], z)[:, 0]


def _factor(p: Pass):
  logits = _ratio_logits(p, stop(p.params), p.z[0])
  return tc.factor(p.log_px.mean(0), p.kl, logits, gamma=p.config.loss.gamma)


def discriminator_loss(p: Pass, key: Key[Array, ""]) -> Float[Array, "b"]:
  """What FactorVAE's discriminator descends; no gradient reaches the VAE.

  Its latents are those of the batch that the VAE moves on, of which Kim and Mnih, 2018,
  draw two. `key` is the same on every device.
  """
  z = stop(p.z[0])
  permuted = tc.permute_latents(key, gather(z, p.axis))[_own_rows(len(z), p.axis)]
  logits = (_ratio_logits(p, p.params, v) for v in (z, permuted))
  return tc.density_ratio_loss(*logits)


OBJECTIVES: dict[str, Callable[[Pass], Float[Array, "b"]]] = {
  "elbo": _elbo,
  "capacity": _capacity,
  "free_bits": _free_bits,
  "iwae": _iwae,
  "dreg": _dreg,
  "tc": _tc,
  "factor": _factor,
}
OVER_THE_BATCH = ("free_bits", "tc", "factor")
OF_THE_STANDARD_PRIOR = ("capacity", "free_bits", "tc")


def make_objective(config) -> Callable[[Pass], Float[Array, "b"]]:
  """The bound that `config.loss.objective` names, "elbo" where it names none.

  Raises:
    ValueError: if there is none, or what it takes is not what the config gives.
  """
  name = config.loss.get("objective", "elbo")
  if name not in OBJECTIVES:
    raise ValueError(
      f"loss.objective must be one of {sorted(OBJECTIVES)}, got {name!r}"
    )
  if name in OVER_THE_BATCH and config.accumulate != 1:
    raise ValueError(
      f"loss.objective {name!r} is over the whole batch: accumulate must be 1, got"
      f" {config.accumulate}"
    )
  samples = config.loss.get("samples", 1)
  missing = config.data.missing_rate or dict(config.data.get("missing", {}))
  if name in ("tc", "factor") and (samples != 1 or missing):
    raise ValueError(
      f"loss.objective {name!r} takes loss.samples = 1 and nothing missing from"
      f" `data`, got {samples} and {missing}"
    )
  if name == "tc":
    check_fields(config, "loss.objective 'tc'", "loss.examples", "loss.tc_weights")
  if (backward := config.loss.get("backward_samples", 0)) and name != "iwae":
    raise ValueError(
      f"loss.backward_samples is of the 'iwae': with {name!r} it must be 0, got"
      f" {backward}"
    )
  beta, warmup = config.loss.get("beta", 1.0), config.loss.get("warmup_steps", 0)
  if name != "elbo" and (beta != 1.0 or warmup):
    raise ValueError(
      f"loss.beta and loss.warmup_steps are of the 'elbo': with {name!r} they must be 1"
      f" and 0, got {beta} and {warmup}"
    )
  for prior in ("pseudo_inputs", "flow_layers"):
    if name in OF_THE_STANDARD_PRIOR and config.model.get(prior, 0):
      raise ValueError(
        f"loss.objective {name!r} is of the prior N(0, I): model.{prior} must be 0,"
        f" got {config.model[prior]}"
      )
  return OBJECTIVES[name]
