"""The VQ step: an autoencoder over a code book, or FSQ; with a discriminator, a VQGAN."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmgen_jax import quantise as vq
from mmgen_jax.data.modality import Modality
from mmgen_jax.losses import gradient_penalty, make_adversarial
from mmgen_jax.metrics.pretrained import load, make_feature_distance
from mmgen_jax.models.gan import Discriminator
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches, pmean
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.coder import Coder, build
from mmgen_jax.steps.inputs import (
  blank_missing,
  check_fields,
  example_shapes,
  one_in,
  pair,
  unpair,
)

Modalities = Mapping[str, Modality]
Perceptual = Callable[[Array, Array], Float[Array, "b"]]
stop = jax.lax.stop_gradient

__all__ = [
  "adaptive_weight",
  "build",
  "init",
  "make_eval_step",
  "make_generate",
  "make_losses",
  "make_step",
  "make_train_step",
  "subsets",
]


def _adversarial(config) -> bool:
  weight = config.loss.get("gan_weight", 0.0)
  if weight > 0.0:
    of_loss = [f"loss.{x}" for x in ("gan", "r1_gamma", "r1_fraction", "start_share")]
    check_fields(config, f"loss.gan_weight = {weight}", "disc_optim", *of_loss)
  return weight > 0.0


def _discriminator(config, coder: Coder) -> Discriminator:
  m, modality = config.model, coder.net.modality
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  return Discriminator(modality, m.disc_widths[modality.kind], m.features, dtype=dtype)


def _optimizers(config) -> dict:
  txs = {"vae": make_optimizer(config.optim)}
  if _adversarial(config):
    txs["discriminator"] = make_optimizer(config.disc_optim)
  return txs


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "vae", its average, and what else the config asks for.

  That is "codebook" unless it is FSQ, and "discriminator" where
  `config.loss.gan_weight` is above 0.
  """
  coder, keys = build(config, modalities), jax.random.split(key, 3)
  example = example_shapes({"x": coder.net.modality})["x"]
  params: dict[str, Any] = {"vae": init_params(coder.net, keys[0], example)}
  if _adversarial(config):
    disc = _discriminator(config, coder)
    params["discriminator"] = init_params(disc, keys[1], example)
  opt_state = init_optimizers(_optimizers(config), params)
  if not config.model.levels:
    book = vq.init_codebook(keys[2], coder.codes, coder.net.size)
    params["codebook"] = book
  kept = {name: p for name, p in params.items() if name != "discriminator"}
  return new_state(params, opt_state, jax.tree.map(jnp.copy, kept))


def adaptive_weight(
  of_likelihood: Any, of_adversary: Any, *, largest: float = 1e4
) -> Float[Array, ""]:
  """||g_rec|| / (||g_gan|| + 1e-4), at most `largest`: gradients of the last layer.

  So that the adversary pulls at the decoder as much as the likelihood does. Esser,
  Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis", 2021,
  eq. 7, https://arxiv.org/abs/2012.09841 (there delta is 1e-6; 1e-4 in their code).
  """
  norm = lambda tree: jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(tree)))
  weight = norm(of_likelihood) / (norm(of_adversary) + 1e-4)
  return stop(jnp.clip(weight, 0.0, largest))


def make_losses(
  config, modalities: Modalities, perceptual: Perceptual | None = None
) -> tuple[Callable, Callable]:
  """`coder_loss` and `discriminator_loss`, means over examples, and what they saw."""
  coder, loss = build(config, modalities), config.loss
  net, likelihood, name = coder.net, coder.net.likelihood, config.model.modality
  with_gan = _adversarial(config)
  adversarial: Any = make_adversarial(loss.gan, paired=False) if with_gan else None
  disc: Any = _discriminator(config, coder) if with_gan else None

  def reconstruction(outputs, x, has):
    """-log p(x | codes), and the perceptual distance, of the examples that are there."""
    terms = {"logp": likelihood.log_prob(outputs, x)}
    total = -terms["logp"]
    if perceptual is not None:
      terms["perceptual"] = perceptual(x, likelihood.mode(outputs))
      total += loss.perceptual_weight * terms["perceptual"]
    mean = lambda v: jnp.where(has, v, 0.0).mean()
    return mean(total), {k: mean(v) for k, v in terms.items()}

  def fool(disc_params, outputs, has):
    logits = apply(disc, disc_params, likelihood.mode(outputs))
    return jnp.where(has, adversarial.generator(logits), 0.0).mean()

  def balance(params, disc_params, features, x, has, axis):
    """`adaptive_weight`, of the global batch."""
    features = stop(features)

    def pull(of):
      last = lambda w: apply(net, params | {"last": w}, features, method="outputs")
      return pmean(jax.grad(lambda w: of(last(w)))(params["last"]), axis)

    return adaptive_weight(
      pull(lambda outputs: reconstruction(outputs, x, has)[0]),
      pull(lambda outputs: fool(disc_params, outputs, has)),
    )

  def coder_loss(params, rest, batch, step, axis):
    values, mask = blank_missing(batch, {name: modalities[name]})
    x, has = values[name], mask[0]
    z, ids, to = coder.encode(rest | {"vae": params}, x)
    features = apply(net, params, to, method="features")
    outputs = apply(net, params, features, method="outputs")
    total, terms = reconstruction(outputs, x, has)
    if not config.model.levels:
      gap = jnp.square(z - stop(to)).sum((1, 2, 3))
      terms["commitment"] = jnp.where(has, gap, 0.0).mean()
      total += loss.commitment * terms["commitment"]
    if with_gan:
      d = rest["discriminator"]
      weight = balance(params, d, features, x, has, axis)
      weight *= loss.gan_weight * (step >= loss.start_share * config.train_steps)
      terms |= {"fool": fool(d, outputs, has), "gan_weight": weight}
      total += weight * terms["fool"]
    used = jnp.where(has[:, None, None], ids, coder.codes)  # past the end: none
    seen = vq.assignments(
      used, jnp.where(has[:, None, None, None], stop(z), 0.0), coder.codes
    )
    metrics = {f"vq/{k}": v for k, v in terms.items()} | {"vq/loss": total}
    return total, (metrics, seen, stop(likelihood.mode(outputs)))

  def discriminator_loss(params, batch, fake):
    values, mask = blank_missing(batch, {name: modalities[name]})
    real, has = values[name], mask[0].astype(jnp.float32)
    on_real, on_fake = unpair(apply(disc, params, pair(real, fake)))
    d = (adversarial.discriminator(on_real, on_fake) * has).mean()
    part = partial(one_in, loss.r1_fraction)
    r1 = gradient_penalty(lambda x: apply(disc, params, x), part(real))
    r1 = (r1 * part(has)).mean()
    metrics = {"vq/d_loss": d, "vq/r1": r1}
    metrics["vq/logits_real"] = (on_real * has).mean()
    metrics["vq/logits_fake"] = (on_fake * has).mean()
    return d + 0.5 * loss.r1_gamma * r1, metrics

  return coder_loss, discriminator_loss


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  As `make_step`; where `config.loss.perceptual_weight` is above 0, with the distance of
  features of the network that `config.loss.perceptual` names.

  Raises:
    FileNotFoundError: if the weights of that network are not installed.
    ValueError: if it has no such distance, or examples are too small for it.
  """
  if not config.loss.get("perceptual_weight", 0.0):
    return make_step(config, modalities)
  name, shape = config.model.modality, modalities[config.model.modality].shape
  if modalities[name].kind != "image" or min(shape[:2]) < 32:
    raise ValueError(
      f"loss.perceptual_weight is of images of 32 x 32 or more; {name} is"
      f" {modalities[name].kind} {shape}: leave it at 0"
    )
  distance = make_feature_distance(load(config.loss.perceptual))
  return make_step(config, modalities, distance)


def make_step(
  config, modalities: Modalities, perceptual: Perceptual | None = None
) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  The autoencoder descends -log p(x | codes) + commitment ||z - sg(code)||^2 (van den
  Oord et al., 2017, eq. 3, in nats and sums over positions); the code book moves by
  averages (`quantise.move`) and its dead codes are revived. FSQ has neither. With
  `config.loss.gan_weight` a discriminator learns from the first step on what is
  reconstructed, and pulls at the decoder after the share `config.loss.start_share` of
  the updates, by the `adaptive_weight` (Esser et al., 2021).

  Args:
    config: of the run.
    modalities: of the data set.
    perceptual: (x, y [b ...]) -> [b], a distance of images in model space that is added
      with `config.loss.perceptual_weight`.

  Raises:
    ValueError: for the adaptive weight, which is over the batch, with microbatches.
  """
  coder_loss, discriminator_loss = make_losses(config, modalities, perceptual)
  txs, loss, with_gan = _optimizers(config), config.loss, _adversarial(config)
  if with_gan and config.accumulate != 1:
    raise ValueError(
      "loss.gan_weight is balanced over the whole batch: accumulate must be 1,"
      f" got {config.accumulate}"
    )

  def gradients(params, batch, keys, step, axis):
    del keys
    of_coder = jax.grad(coder_loss, has_aux=True)
    g, (metrics, seen, fake) = of_coder(params["vae"], params, batch, step, axis)
    grads = {"vae": g}
    if with_gan:
      of_disc = jax.grad(discriminator_loss, has_aux=True)
      grads["discriminator"], more = of_disc(params["discriminator"], batch, fake)
      metrics |= more
    return grads, seen, metrics

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    of_step = partial(gradients, step=state.step, axis=axis)
    mean = mean_of_microbatches(of_step, accumulate=config.accumulate, axis=axis)
    grads, seen, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    metrics["vq/perplexity"] = vq.perplexity(seen["count"])
    if "codebook" in state.params:
      book = vq.move(state.params["codebook"], seen, loss.codebook_decay)
      alive = vq.shares(book) * len(book["count"]) >= loss.dead_below
      metrics["vq/used_codes"] = alive.sum().astype(jnp.float32)
      book = vq.revive(book, key, threshold=loss.dead_below)
      moved = {"codebook": book}
      state = state.replace(params=state.params | moved, ema=state.ema | moved)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logp` per example: log p(x | codes), in nats."""
  coder, name = build(config, modalities), config.model.modality

  def eval_step(params, batch, key):
    values, mask = blank_missing(batch, {name: modalities[name]})
    _, _, to = coder.encode(params, values[name])
    outputs = apply(coder.net, params["vae"], to, method="decode")
    log_px = coder.net.likelihood.log_prob(outputs, values[name])
    return {"logp": jnp.where(mask[0], log_px, 0.0)}

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """The modality itself: without a prior over codes there is nothing else."""
  return [(config.model.modality,)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  Reconstructions; of blanks where the modality is not given.
  """
  coder, name = build(config, modalities), config.model.modality
  place = sorted(modalities).index(name)

  def generate(params, batch, given, key):
    values, _ = blank_missing(batch, {name: modalities[name]})
    x = jnp.where(given[place], values[name], 0.0)
    _, _, to = coder.encode(params, x)
    outputs = apply(coder.net, params["vae"], to, method="decode")
    return {name: coder.net.likelihood.mode(outputs)}

  return generate
