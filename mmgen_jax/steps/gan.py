"""The GAN step: one modality, from noise, a class or any other modalities."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.diffaugment import adapt
from mmgen_jax.models.condition import Given
from mmgen_jax.models.layers import init_params
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.optim import (
  apply_updates,
  as_vector,
  ema_decay_at,
  init_optimizers,
  make_optimizer,
)
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.schedules import (
  burn_in,
  check_replaced,
  half_life_decay,
  make_burn_in,
  scheduled_adam,
)
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.gan_losses import Now, make_losses
from mmgen_jax.steps.gan_networks import build, condition_names, given_of, networks
from mmgen_jax.steps.inputs import blank_missing, example_shapes

Modalities = Mapping[str, Modality]

__all__ = [
  "build",
  "init",
  "make_eval_step",
  "make_from_noise",
  "make_generate",
  "make_losses",
  "make_train_step",
  "subsets",
  "truncate",
]


def _optimizers(config) -> dict:
  both = {"generator": config.optim, "discriminator": config.disc_optim}
  if "burn_in" not in config:
    return {name: make_optimizer(c) for name, c in both.items()}
  s, n = make_burn_in(config.burn_in), config.batch_size
  return {name: as_vector(scheduled_adam(c, *s[:2], n)) for name, c in both.items()}


def _adaptive(config) -> bool:
  return "disc_augment" in config and config.disc_augment.get("target", 0.0) > 0


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "generator" and "discriminator", an average of the first.

  `extra` has, where the config asks for them, "lecam": moving averages of the logits;
  "augment": the adaptive strength and its statistics.
  """
  gen, disc = build(config, modalities)
  keys, m = jax.random.split(key), config.model
  array, names = jax.ShapeDtypeStruct, condition_names(config)
  shapes = example_shapes({n: modalities[n] for n in (*names, m.modality)})
  x = shapes.pop(m.modality)
  if m.get("net", "conv") != "conv":
    x = jax.eval_shape(partial(as_grid, modalities[m.modality]), x)
  label: Any = array((1,), jnp.int32) if m.classes else None
  mask: Any = {name: array((1,), jnp.bool_) for name in names}
  given = Given(label, shapes, mask)
  params = {
    "generator": init_params(gen, keys[0], array((1, m.latent), jnp.float32), given),
    "discriminator": init_params(disc, keys[1], x, given),
  }
  opt_state = init_optimizers(_optimizers(config), params)
  ema = {"generator": jax.tree.map(jnp.copy, params["generator"])}
  zero, extra = jnp.zeros(()), {}
  if config.loss.get("lecam", 0.0):
    extra["lecam"] = {"real": zero, "fake": zero}
  if _adaptive(config):
    strength = jnp.float32(config.disc_augment.strength[0])
    extra["augment"] = {"strength": strength, "signs": zero}
  return new_state(params, opt_state, ema, extra)


def _follow(config, state: State, has, real, fake, sign) -> dict:
  """`extra` after an update, of sums over all examples divided by their number."""
  extra, total = dict(state.extra), jnp.maximum(has, 1e-6)
  if "lecam" in extra:
    decay = ema_decay_at(state.step, 0.99)  # the paper's code has 0.99
    new, old = {"real": real, "fake": fake}, extra["lecam"]
    average = lambda old, new: decay * old + (1.0 - decay) * new / total
    kept = lambda old, new: jnp.where(has > 0, average(old, new), old)
    extra["lecam"] = jax.tree.map(kept, old, new)
  if "augment" in extra:
    how, now = config.disc_augment, extra["augment"]
    shared = {"batch_size": config.batch_size, "images": how.images}
    extra["augment"] = adapt(now, sign / total, state.step, target=how.target, **shared)
  return extra


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  The discriminator moves, then, with new noise, the generator under the new
  discriminator. The same real examples serve both. With `config.burn_in`, rates, decays
  and the penalties' weight follow the images seen (`mmgen_jax.schedules`).

  `config.disc_augment` (see `mmgen_jax.diffaugment`): its `strength` (start, end) goes
  along half a cosine in `images`; with a `target`, it starts at `start` and adapts.

  Raises:
    ValueError: for a field that `burn_in` replaces and that says otherwise, or one of
      the loss that there is not.
  """
  check_replaced(config)
  d_loss, g_loss = make_losses(config, modalities)
  txs, n = _optimizers(config), config.batch_size
  schedules = make_burn_in(config.burn_in) if "burn_in" in config else None

  how = config.get("disc_augment", None)
  strength = burn_in(how.strength[0], how.strength[1], how.images) if how else None

  def augmentation(state):
    """What is logged of the strength of the augmentation, and the strength."""
    if strength is None:
      return {}, 0.0
    if _adaptive(config):
      now = state.extra["augment"]["strength"]
    else:
      now = strength(state.step.astype(jnp.float32) * n)
    return {"schedule/strength": now}, now

  def scheduled(step):
    """What is logged of the schedules, gamma, and what the average keeps."""
    if schedules is None:
      return {}, config.loss.r1_gamma, ema_decay_at(step, config.ema_decay)
    s = {k: f(step.astype(jnp.float32) * n) for k, f in schedules._asdict().items()}
    decay = half_life_decay(n, s["half_life_images"])
    return {f"schedule/{k}": v for k, v in s.items()}, s["gamma"], decay

  def move(state, name, loss, batch, keys, axis):
    """One update of one network; the step and the average wait for both."""

    def gradients(params, batch, keys):
      others = params["generator" if name == "discriminator" else "discriminator"]
      return jax.grad(loss, has_aux=True)(params[name], others, batch, keys)

    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    moved, norms = apply_updates(
      state.replace(ema={}), {name: grads}, {name: txs[name]}, 0.0
    )
    opt_state = state.opt_state | moved.opt_state
    return state.replace(params=moved.params, opt_state=opt_state), metrics | norms

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    keys = jax.random.split(jax.random.fold_in(key, state.step))
    keys = [example_keys(key, len(batch["index"]), axis) for key in keys]
    logged, gamma, decay = scheduled(state.step)
    told, p = augmentation(state)
    now = Now(state.step, gamma, p, state.extra.get("lecam"), axis)
    d, g = partial(d_loss, now=now), partial(g_loss, now=now)
    state, d_metrics = move(state, "discriminator", d, batch, keys[0], axis)
    state, g_metrics = move(state, "generator", g, batch, keys[1], axis)
    ema = {"generator": _average(state.ema, state.params, decay)}
    stats = {k[5:]: d_metrics.pop(k) for k in sorted(d_metrics) if k[:5] == "stat/"}
    total = jnp.maximum(stats["has"], 1e-6)
    metrics = logged | told | d_metrics | g_metrics
    metrics["gan/real_above_fake"] = stats.pop("above") / total
    metrics |= {f"gan/logits_{side}": stats[side] / total for side in ("real", "fake")}
    extra = _follow(config, state, **stats)
    if "gan/r2" in metrics and config.loss.get("every", 1) == 1:
      # Near 1 in health; Huang et al., 2024, section 2.4.
      metrics["gan/r2_over_r1"] = metrics["gan/r2"] / jnp.maximum(
        metrics["gan/r1"], 1e-12
      )
    return state.replace(step=state.step + 1, ema=ema, extra=extra), metrics

  return train_step


def _average(ema: dict, params: dict, decay: Array) -> dict:
  """The generator's moving average after an update, as one vector (see `optim`)."""
  average, unravel = ravel_pytree(ema["generator"])
  new, _ = ravel_pytree(params["generator"])
  return unravel(decay * average + (1.0 - decay) * new)  # a copy at a decay of 0


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logits_real` and `logits_fake`, per example.

  The discriminator's, of the examples and of samples under their condition, as in
  training but without augmentation: whatever `config.eval.truncation` says, all of the
  noise. Nothing where `params` has no discriminator: a GAN has no likelihood.
  """
  net, name = networks(config, modalities), config.model.modality
  generate = _generate(config, modalities, truncation=0.0)

  def eval_step(params, batch, key):
    if "discriminator" not in params:
      return {}
    everything = jnp.ones(len(modalities), bool)
    fake = generate(params, batch, everything, key)[name]
    values, mask = blank_missing(batch, {name: modalities[name]})
    given = given_of(config, modalities, batch)
    condition = net.embed(params["discriminator"], given)
    judge = lambda x: net.judge(params["discriminator"], x, condition).logits
    keep = lambda x: jnp.where(mask[0], x, 0.0)
    return {"logits_real": keep(judge(values[name])), "logits_fake": keep(judge(fake))}

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """What can be given: every part of the condition that training has seen.

  Nothing, the prior, for a model without such a condition; all of it, where no part is
  ever missing. With `config.data.missing`, only what has a rate above 0 is at times.
  """
  names = condition_names(config)
  if not names:
    return [()]
  rates = config.data.get("missing") or dict.fromkeys(names, config.data.missing_rate)
  varies = lambda n: config.model.encoder.dropout or np.any(np.array(rates.get(n, 0.0)))
  varying = [name for name in names if varies(name)]
  fixed = set(names) - set(varying)
  parts = [c for n in range(len(varying) + 1) for c in combinations(varying, n)]
  return [tuple(sorted(fixed.union(part))) for part in parts]


def truncate(z: Array, threshold: float) -> Array:
  """Normal z as draws of the normal distribution cut off at +-threshold; 0: as it is.

  By the quantiles, so that near noise stays near. Brock, Donahue and Simonyan, "Large
  Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, section 3.1,
  https://arxiv.org/abs/1809.11096 (there by drawing again): sharper and less varied.
  """
  if not threshold:
    return z
  least = jax.scipy.stats.norm.cdf(-threshold)
  share = least + jax.scipy.stats.norm.cdf(z) * (1 - 2 * least)
  return jax.scipy.stats.norm.ppf(share)


def make_from_noise(config, modalities: Modalities) -> Callable:
  """`from_noise(params, z, batch, given) -> {modality: values in model space}`.

  From z [b z], from what `given` (bool [m], in sorted order of all the data set's names)
  has of the condition, and from the batch's labels where the model has classes.
  """
  net, order = networks(config, modalities), sorted(modalities)

  def from_noise(params, z, batch, given):
    condition = given_of(config, modalities, batch)
    mask = {k: m & given[order.index(k)] for k, m in condition.mask.items()}
    made = net.generate(params["generator"], z, condition._replace(mask=mask))
    return {config.model.modality: made}

  return from_noise


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  `make_from_noise` of normal noise, cut off at +-`config.eval.truncation` if that is
  there and not 0.
  """
  return _generate(config, modalities, config.eval.get("truncation", 0.0))


def _generate(config, modalities: Modalities, truncation: float) -> Callable:
  from_noise = make_from_noise(config, modalities)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    return from_noise(params, truncate(z, truncation), batch, given)

  return generate
