"""The GAN step: one modality, unconditional or by class, any loss, R1 and R2."""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.losses import gradient_penalty, make_adversarial
from mmgen_jax.models import baselines
from mmgen_jax.models.gan import Discriminator, Generator
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.models.r3gan import R3Discriminator, R3Generator
from mmgen_jax.optim import (
  apply_updates,
  ema_decay_at,
  init_optimizers,
  make_optimizer,
)
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.schedules import half_life_decay, make_burn_in, scheduled_adam
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import (
  blank_missing,
  example_shapes,
  one_in,
  only,
  pair,
  unpair,
)

Modalities = Mapping[str, Modality]
NETS = ("conv", "r3gan", "dcgan", "resnet")


def build(config, modalities: Modalities) -> tuple[nn.Module, nn.Module]:
  """Generator and discriminator of the modality that `config.model.modality` names.

  `config.model.net` is one of `NETS`; "conv" where it is not there. That one takes and
  gives values of the modality, the others grids.

  Raises:
    ValueError: if the data set has no such modality, or it is text (discrete samples
      pass no gradient), or there is no such network.
  """
  m, net = config.model, config.model.get("net", "conv")
  modality = only(modalities, m.modality)[m.modality]
  if modality.kind == "text":
    raise ValueError(
      f"model.modality {m.modality!r} is text; a GAN makes images, sounds"
    )
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  h, w, c = (*modality.shape, 1)[:3]
  wide, disc_wide = m.widths[modality.kind], m.disc_widths[modality.kind]
  if net == "conv":
    return (
      Generator(modality, wide, m.blocks, m.classes, dtype),
      Discriminator(modality, disc_wide, m.features, m.blocks, m.classes, dtype),
    )
  if net == "r3gan":
    shared = (m.blocks, m.group_size, m.patch, m.classes, dtype)
    return R3Generator((h, w), c, wide, *shared), R3Discriminator(disc_wide, *shared)
  if net in baselines.PAIRS:
    gen, disc = baselines.PAIRS[net]
    return (
      gen((h, w), c, wide, m.classes, dtype),
      disc(disc_wide, m.classes, dtype),
    )
  raise ValueError(f"model.net must be one of {NETS}, got {net!r}")


def _networks(config, modalities: Modalities) -> tuple[Callable, Callable]:
  """`generate(params, z, label)` and `logits(params, x, label)`, of values."""
  gen, disc = build(config, modalities)
  modality = modalities[config.model.modality]
  shaped = config.model.get("net", "conv") == "conv"

  def generate(params, z, label):
    return apply(gen, params, z, label).reshape(len(z), *modality.shape)

  def logits(params, x, label):
    return apply(disc, params, x if shaped else as_grid(modality, x), label)

  return generate, logits


def _optimizers(config) -> dict:
  both = {"generator": config.optim, "discriminator": config.disc_optim}
  if "burn_in" not in config:
    return {name: make_optimizer(c) for name, c in both.items()}
  s, n = make_burn_in(config.burn_in), config.batch_size
  return {name: scheduled_adam(c, *s[:2], n) for name, c in both.items()}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "generator" and "discriminator", an average of the first."""
  gen, disc = build(config, modalities)
  keys = jax.random.split(key)
  z = jax.ShapeDtypeStruct((1, config.model.latent), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32) if config.model.classes else None
  x = example_shapes(only(modalities, config.model.modality))[config.model.modality]
  if config.model.get("net", "conv") != "conv":
    x = jax.eval_shape(partial(as_grid, modalities[config.model.modality]), x)
  params = {
    "generator": init_params(gen, keys[0], z, label),
    "discriminator": init_params(disc, keys[1], x, label),
  }
  opt_state = init_optimizers(_optimizers(config), params)
  ema = {"generator": jax.tree.map(jnp.copy, params["generator"])}
  return new_state(params, opt_state, ema)


def _labels(config, batch: dict) -> Array | None:
  """The class of each example, None for an unconditional model.

  Raises:
    ValueError: if the data set has no such label.
  """
  if not config.model.classes:
    return None
  if config.model.label not in batch["labels"]:
    raise ValueError(
      f"model.label is {config.model.label!r}; the data set has"
      f" {sorted(batch['labels'])}"
    )
  return batch["labels"][config.model.label]


def make_losses(config, modalities: Modalities) -> tuple[Callable, Callable]:
  """`discriminator_loss` and `generator_loss`, means over examples, and their metrics.

  Real and generated examples are pairs that share a label; missing examples count for
  nothing. The weight of R1 is gamma / 2, that of R2 the same with `config.loss.r2`; both
  come from one backward pass, over one in `config.loss.r1_fraction` of the pairs.
  """
  generate, logits = _networks(config, modalities)
  name, loss = config.model.modality, config.loss
  adversarial, with_r2 = make_adversarial(loss.gan), loss.get("r2", False)

  def real_and_fake(params, batch, keys):
    values, mask = blank_missing(batch, {name: modalities[name]})
    label = _labels(config, batch)
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    fake = generate(params, z, label)
    return values[name], fake, label, mask[0].astype(jnp.float32)

  def penalties(params, real, fake, label, has):
    if not loss.r1_gamma:
      return {}
    part = partial(one_in, loss.r1_fraction)  # the same in expectation, and cheaper
    real, fake, label, has = jax.tree.map(part, (real, fake, label, has))
    x = pair(real, fake) if with_r2 else real
    label = jax.tree.map(pair, label, label) if with_r2 else label
    slopes = gradient_penalty(lambda x: logits(params, x, label), x)
    each = unpair(slopes) if with_r2 else (slopes,)
    return {f"gan/r{i}": (slope * has).mean() for i, slope in enumerate(each, 1)}

  def discriminator_loss(params, gen_params, batch, keys, gamma):
    real, fake, label, has = real_and_fake(gen_params, batch, keys)
    fake = jax.lax.stop_gradient(fake)
    both = logits(params, pair(real, fake), jax.tree.map(pair, label, label))
    on_real, on_fake = unpair(both)
    d = (adversarial.discriminator(on_real, on_fake) * has).mean()
    metrics = penalties(params, real, fake, label, has)
    total = d + 0.5 * gamma * sum(metrics.values())
    return total, metrics | {
      "gan/d_loss": d,
      "gan/logits_real": (on_real * has).mean(),
      "gan/logits_fake": (on_fake * has).mean(),
      "gan/real_above_fake": ((on_real > on_fake) * has).mean(),
    }

  def generator_loss(params, disc_params, batch, keys):
    real, fake, label, has = real_and_fake(params, batch, keys)
    on_fake = logits(disc_params, fake, label)
    on_real = logits(disc_params, real, label)  # not computed unless the loss looks
    value = (adversarial.generator(on_fake, on_real) * has).mean()
    return value, {"gan/g_loss": value}

  return discriminator_loss, generator_loss


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  The discriminator moves, then, with new noise, the generator under the new
  discriminator. The same real examples serve both. With `config.burn_in`, rates, decays
  and the penalties' weight follow the images seen (`mmgen_jax.schedules`).
  """
  d_loss, g_loss = make_losses(config, modalities)
  txs, n = _optimizers(config), config.batch_size
  schedules = make_burn_in(config.burn_in) if "burn_in" in config else None

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
    of_d = partial(d_loss, gamma=gamma)
    state, d_metrics = move(state, "discriminator", of_d, batch, keys[0], axis)
    state, g_metrics = move(state, "generator", g_loss, batch, keys[1], axis)
    ema = {"generator": _average(state.ema, state.params, decay)}
    metrics = logged | d_metrics | g_metrics
    if "gan/r2" in metrics:  # near 1 in health; Huang et al., 2024, section 2.4
      metrics["gan/r2_over_r1"] = metrics["gan/r2"] / jnp.maximum(
        metrics["gan/r1"], 1e-12
      )
    return state.replace(step=state.step + 1, ema=ema), metrics

  return train_step


def _average(ema: dict, params: dict, decay: Array) -> dict:
  """The generator's moving average after an update, as one vector (see `optim`)."""
  average, unravel = ravel_pytree(ema["generator"])
  new, _ = ravel_pytree(params["generator"])
  return unravel(decay * average + (1.0 - decay) * new)  # a copy at a decay of 0


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> nothing: a GAN has no held-out likelihood."""
  return lambda params, batch, key: {}


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Only the prior: nothing can be given."""
  return [()]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  From noise, and from the batch's labels where the model has classes.
  """
  make, _ = _networks(config, modalities)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    return {config.model.modality: make(params["generator"], z, _labels(config, batch))}

  return generate
