"""The fusion step: a multimodal VAE whose decoders are generators under discriminators.

One joint latent z, an expert q(z | x_m) per modality, a posterior fused from the experts
that an example really has, and a discriminator for each adversarial modality that sees
what the decoders make of z from the prior and from a subset of the modalities.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmgen_jax.fusion import model as fuse
from mmgen_jax.losses import (
  gradient_penalty,
  make_adversarial,
)
from mmgen_jax.models import prior as prior_lib
from mmgen_jax.models.gan import Discriminators
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps import latents as latents_lib
from mmgen_jax.steps.inputs import (
  blank_missing,
  example_shapes,
  make_augment,
  one_in,
  pair,
  unpair,
)
from mmgen_jax.steps.latents import Latents, Modalities, subsets

__all__ = ["build", "init", "make_eval_step", "make_generate", "make_latents"]
__all__ += ["make_losses", "make_train_step", "subsets"]


def build(config, modalities: Modalities) -> tuple[MultimodalVAE, Discriminators]:
  """The VAE and the discriminators of a config.

  `config.model.r3_decoder`, where it is there, has the attributes of the R3GAN generators
  that decode images and sounds.

  Raises:
    ValueError: if an adversarial modality is unknown, or is text (its samples are
      discrete: no gradient passes), or `loss.posterior` or `loss.real` is unknown, or
      `loss.prior_share` is no share, or `loss.adversarial_fraction` or `loss.parts` is
      below 1.
  """
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  for name in config.loss.adversarial:
    if name not in modalities or modalities[name].kind == "text":
      raise ValueError(
        f"loss.adversarial names {name!r}; choose from images and sounds among"
        f" {sorted(modalities)}"
      )
  choices = {"posterior": ("poe", "mopoe"), "real": ("data", "reconstructions")}
  for field, known in choices.items():
    chosen = config.loss.get(field, known[0])
    if chosen not in known:
      raise ValueError(f"loss.{field} must be one of {known}, got {chosen!r}")
  if not 0.0 <= (share := config.loss.get("prior_share", 0.5)) <= 1.0:
    raise ValueError(f"loss.prior_share must be between 0 and 1, got {share}")
  for field in ("adversarial_fraction", "parts"):
    if (count := config.loss.get(field, 1)) < 1:
      raise ValueError(f"loss.{field} must be at least 1, got {count}")
  vae = MultimodalVAE(
    dict(modalities),
    m.latent,
    m.widths.to_dict(),
    m.features,
    m.blocks,
    m.scales.to_dict(),
    m.private.to_dict(),
    dtype,
    dict(m.get("r3_decoder", {})),
  )
  judged = {name: modalities[name] for name in config.loss.adversarial}
  return vae, Discriminators(judged, m.disc_widths.to_dict(), dtype=dtype)


def _optimizers(config) -> dict:
  both = {"vae": config.optim, "discriminator": config.disc_optim}
  return {name: make_optimizer(c) for name, c in both.items()}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "vae" and its average, "discriminator", "prior"."""
  vae, disc = build(config, modalities)
  example = example_shapes(modalities)
  keys = jax.random.split(key, 3)
  params: dict[str, Any] = {
    "vae": init_params(vae, keys[0], example),
    "discriminator": init_params(disc, keys[1], example),
  }
  opt_state = init_optimizers(_optimizers(config), params)
  components = config.model.prior_components
  params["prior"] = prior_lib.init_mixture(keys[2], components, vae.size)
  ema = {name: jax.tree.map(jnp.copy, params[name]) for name in ("vae", "prior")}
  return new_state(params, opt_state, ema)


def make_losses(config, modalities: Modalities) -> tuple[Callable, Callable]:
  """`vae_loss` and `discriminator_loss`, means over a batch with their metrics.

  The first also gives z, and what the discriminators are to tell apart: (generated, real)
  values by modality.
  """
  vae, disc = build(config, modalities)
  loss, names = config.loss, sorted(modalities)
  adversarial = make_adversarial(loss.gan, paired=False)
  weights = {name: loss.weights.get(name, 1.0) for name in names}
  augment = make_augment(config, modalities)
  plain = [name for name in names if name not in loss.adversarial]
  rows = jnp.array([names.index(name) for name in plain], int)
  kinds = [modalities[name] for name in plain]
  reconstructed = loss.get("real", "data") == "reconstructions"
  one_judged, parts = loss.get("adversarial_fraction", 1), loss.get("parts", 1)
  judged = partial(one_in, one_judged, field="loss.adversarial_fraction")

  def reconstruction(outputs, values, mask):
    """Weighted log p(x_m | z) [b] of every modality that an example has."""
    terms = {}
    for name, output in outputs.items():
      logp = vae.likelihood(name).log_prob(output, values[name])
      terms[name] = jnp.where(mask[names.index(name)], weights[name] * logp, 0.0)
    return terms

  def modes(outputs):
    return {name: vae.likelihood(name).mode(outputs[name]) for name in loss.adversarial}

  def told(outputs, subset, values, mask):
    """Weighted log p(x_m | z_part) [b], of the modalities that are decoded for it."""
    counts = fuse.stand_ins(subset[rows], mask[rows], kinds)
    counts = dict(zip(plain, counts, strict=True))
    logps = reconstruction(outputs, values, mask)
    return sum((counts[n] * x for n, x in logps.items()), jnp.zeros(mask.shape[1]))

  def elbo_terms(params, prior, values, mask, keys):
    """Everything that one pass gives: terms {name: [b]}, z, and (generated, real) values.

    Generated: decoded from the prior for a share of the examples, at random, and from a
    random subset's posterior for the others.
    """
    k = jax.vmap(lambda key: jax.random.split(key, 4 + 2 * parts))(keys)
    more = range(6, 4 + 2 * parts, 2)  # keys of parts after the first
    of_subsets, of_parts = k[:, [0, *more]].T, k[:, [2, *(i + 1 for i in more)]].T
    net = partial(apply, vae, params)
    means, logvars = net(augment(k[:, 4], values), method="encode")
    draw = partial(fuse.random_subset, present=mask, power=loss.subset_power)
    subsets = jax.vmap(draw)(of_subsets)
    # Of everything, of nothing (which is the prior), of parts: one draw for all of them.
    masks = jnp.concatenate([jnp.stack([mask, jnp.zeros_like(mask)]), subsets])
    posteriors = jax.vmap(partial(prior_lib.posterior, prior, means, logvars))(masks)
    draws = jnp.concatenate([k[:, [1, 3]].T, of_parts])
    z_full, z_prior, *z_parts = jax.vmap(prior_lib.sample_mixture)(draws, posteriors)
    full, _, part = (jax.tree.map(lambda x, i=i: x[i], posteriors) for i in range(3))
    q, z = (full, z_full) if loss.posterior == "poe" else (part, z_parts[0])
    # By the example's key, not its place: microbatches cut the batch differently.
    pick = partial(jax.random.bernoulli, p=loss.get("prior_share", 0.5))
    from_prior = jax.vmap(pick)(k[:, 5])[:, None]
    z_fake = judged(jnp.where(from_prior, z_prior, z_parts[0]))
    both = net(pair(z, z_fake), loss.adversarial, method="decode")
    outputs, others = unpair(both, one_judged)
    # An example's side by side: what is sharded over devices stays where it is.
    zs = jnp.stack([z, *z_parts] if loss.cross else [z], 1)
    decoded = net(zs.reshape(-1, z.shape[-1]), plain, method="decode")
    decoded = jax.tree.map(lambda x: x.reshape(*zs.shape[:2], *x.shape[1:]), decoded)
    outputs |= jax.tree.map(lambda x: x[:, 0], decoded)
    logps = reconstruction(outputs, values, mask)
    kl = prior_lib.log_prob_mixture(q, z) - prior_lib.log_prob(prior, z)
    terms = {f"logp_{name}": logp for name, logp in logps.items()}
    terms |= {"kl": kl, "elbo": sum(logps.values()) - kl}
    shares = fuse.precision_shares(jax.lax.stop_gradient(logvars), mask)
    terms |= {f"share_{name}": share for name, share in zip(names, shares, strict=True)}
    target, at = jax.lax.stop_gradient((full, z_full))
    logq = partial(prior_lib.log_prob_mixture, z=at)
    of_each = jax.tree.map(lambda x: x[2:], posteriors)
    apart = logq(target) - jax.vmap(logq)(of_each)
    counts = jax.vmap(partial(fuse.beside, present=mask))(subsets)
    terms["alignment"] = (counts * apart).mean(0)
    terms["cross"] = jnp.zeros(len(keys))
    if loss.cross:
      tell = jax.vmap(partial(told, values=values, mask=mask), (1, 0))
      crossed = jax.tree.map(lambda x: x[:, 1:], decoded)
      terms["cross"] = tell(crossed, subsets).mean(0)
    reals = modes(outputs) if reconstructed else values
    reals = {name: judged(reals[name]) for name in others}
    return terms, z, (modes(others), reals)

  def fool(disc_params, fakes):
    """What the decoders descend to look real, of each that is judged."""
    logits = apply(disc, disc_params, fakes)
    return sum((adversarial.generator(x) for x in logits.values()), jnp.zeros(()))

  def vae_loss(params, disc_params, prior, values, mask, keys):
    terms, z, (fakes, reals) = elbo_terms(params, prior, values, mask, keys)
    total = -sum((v for k, v in terms.items() if k[:5] == "logp_"), jnp.zeros(()))
    total += loss.beta * terms["kl"] + loss.alignment * terms["alignment"]
    total -= loss.cross * terms["cross"]
    total = total.mean()
    if loss.adversarial:
      terms["fool"] = fool(disc_params, fakes)
      total += loss.adversarial_weight * terms["fool"].mean()
    metrics = {f"fusion/{k}": v.mean() for k, v in terms.items()}
    return total, (metrics | {"fusion/loss": total}, z, (fakes, reals))

  def discriminator_loss(disc_params, reals, fakes, mask):
    """Mean over examples; an example counts for the modalities that it has."""
    total, metrics = jnp.zeros(()), {}
    part = partial(one_in, loss.r1_fraction)  # for R1: the same in expectation
    logits = lambda values: apply(disc, disc_params, values)
    real, fake = unpair(logits(jax.tree.map(pair, reals, fakes)))
    for name in loss.adversarial:
      has = judged(mask[names.index(name)]).astype(jnp.float32)
      d = adversarial.discriminator(real[name], fake[name])
      rest = jax.tree.map(part, reals)
      alone = lambda x, name=name, rest=rest: logits(rest | {name: x})[name]
      r1 = gradient_penalty(alone, rest[name])
      d, r1 = (d * has).mean(), (r1 * part(has)).mean()
      total += d + 0.5 * loss.r1_gamma * r1
      metrics |= {f"fusion/d_{name}": d, f"fusion/r1_{name}": r1}
      metrics[f"fusion/d_{name}_real"] = (real[name] * has).mean()
      metrics[f"fusion/d_{name}_fake"] = fake[name].mean()
    return total, metrics

  return vae_loss, discriminator_loss


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  VAE and discriminators move at once, from one forward pass of the decoders. The VAE
  descends -sum_m w_m log p(x_m | z) + beta KL(q || p) + alignment KL(q_all || q_part) -
  cross sum_m w_m s_m log p(x_m | z_part) + adversarial_weight * (the generator's loss
  of samples from the prior and from q_part). Every q is the prior times the experts of
  some modalities (`models.prior.posterior`): q_all of those that an example has, q_part
  of a random subset of them (`loss.parts` subsets are drawn: the alignment and cross
  terms are means over them, all else takes the first). The alignment term moves q_part
  only: it learns where q_all is, and q_all is not asked to forget what a part cannot
  tell. The cross term is over the modalities that have no discriminator: given a part,
  a likelihood wants the mean of all that fits, which is right for a word and a blur for
  a picture, and there the discriminator asks for one that is real. Where modalities are
  missing, those that are there count for them: the divergence of a part as
  `fusion.model.beside` says, and its targets as `fusion.model.stand_ins`, among those
  that are alike; s_m is 1 in complete examples. What is real to a discriminator: the
  data; or, with `loss.real` "reconstructions", what is decoded from z, where data have
  what no z tells (the grain of a background): asked for it, decoders put noise wherever
  no likelihood holds them. What they judge beside it: for a share `loss.prior_share` of
  the examples a sample from the prior, else one from q_part. They judge one example in
  `loss.adversarial_fraction`: the same in expectation, for less. The prior moves by a
  step of EM (`models.prior.rate`). Encoders see augmented inputs (`config.augment`);
  targets are clean.

  Of a mixture, gradients follow the component that z was drawn from. That the experts
  also move the components' probabilities adds a score term to the gradient of the ELBO;
  it is left out, so what is descended is the KL with those probabilities held. The
  alignment term has no such gap: its z is fixed.

  posterior "poe": z ~ q_all, so the alignment term is what teaches q_part to cover
  q_all: after Hwang et al., "Multi-View Representation Learning via Total Correlation
  Objective", 2021, https://openreview.net/forum?id=1lCR45NBvJB (there with all
  single-modality subsets and N(0, I) besides, and with both sides moving).
  posterior "mopoe": z ~ q_part, the mixture of Sutter et al., 2021.
  With VAE and GAN in one step: Larsen et al., "Autoencoding beyond pixels using a
  learned similarity metric", 2016, https://arxiv.org/abs/1512.09300.
  """
  vae_loss, discriminator_loss = make_losses(config, modalities)
  txs = _optimizers(config)

  def gradients(params, batch, keys):
    values, mask = blank_missing(batch, modalities)
    (_, (metrics, z, judged)), g = jax.value_and_grad(vae_loss, has_aux=True)(
      params["vae"], params["discriminator"], params["prior"], values, mask, keys
    )
    statistics = prior_lib.expectation(params["prior"], z)
    fakes, reals = jax.lax.stop_gradient(judged)
    d, d_metrics = jax.grad(discriminator_loss, has_aux=True)(
      params["discriminator"], reals, fakes, mask
    )
    return {"vae": g, "discriminator": d}, statistics, metrics | d_metrics

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, statistics, metrics = mean(state.params, batch, keys)
    rate = prior_lib.rate(state.step, config.loss.prior_rate)
    prior = prior_lib.maximisation(state.params["prior"], statistics, rate, key)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    state = state.replace(
      params=state.params | {"prior": prior}, ema=state.ema | {"prior": prior}
    )
    return state, metrics | norms

  return train_step


def make_latents(config, modalities: Modalities) -> Latents:
  """The distributions of a config's model: every posterior is the prior, sharpened."""
  vae, _ = build(config, modalities)
  decode, log_px = latents_lib.decoding(vae)

  def of(params, experts, mask):
    means, logvars = experts
    return prior_lib.posterior(params["prior"], means, logvars, mask)

  def sample(params, experts, mask, keys):
    return prior_lib.sample_mixture(keys, of(params, experts, mask))

  def log_q(params, experts, mask, z):
    return prior_lib.log_prob_mixture(of(params, experts, mask), z)

  return Latents(
    lambda params, values: apply(vae, params["vae"], values, method="encode"),
    sample,
    log_q,
    lambda params, z: prior_lib.log_prob(params["prior"], z),
    decode,
    log_px,
  )


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`steps.latents.eval_step` of a config's model."""
  return latents_lib.eval_step(make_latents(config, modalities), modalities)


def make_generate(config, modalities: Modalities) -> Callable:
  """`steps.latents.generate` of a config's model."""
  vae, _ = build(config, modalities)
  return latents_lib.generate(make_latents(config, modalities), vae)
