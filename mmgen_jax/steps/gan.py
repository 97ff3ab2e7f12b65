"""The GAN step: one modality, unconditional or by class, non-saturating or hinge, R1."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.losses import gradient_penalty, make_adversarial
from mmgen_jax.models.gan import Discriminator, Generator
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import blank_missing, example_shapes, one_in, only

Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> tuple[Generator, Discriminator]:
  """Generator and discriminator of the modality that `config.model.modality` names.

  Raises:
    ValueError: if the data set has no such modality, or it is text (discrete samples
      pass no gradient).
  """
  m = config.model
  modality = only(modalities, m.modality)[m.modality]
  if modality.kind == "text":
    raise ValueError(
      f"model.modality {m.modality!r} is text; a GAN makes images, sounds"
    )
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  kind = modality.kind
  return (
    Generator(modality, m.widths[kind], m.blocks, m.classes, dtype),
    Discriminator(
      modality, m.disc_widths[kind], m.features, m.blocks, m.classes, dtype
    ),
  )


def _optimizers(config) -> dict:
  both = {"generator": config.optim, "discriminator": config.disc_optim}
  return {name: make_optimizer(c) for name, c in both.items()}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "generator" and "discriminator", an average of the first."""
  gen, disc = build(config, modalities)
  keys = jax.random.split(key)
  z = jax.ShapeDtypeStruct((1, config.model.latent), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  x = example_shapes(only(modalities, config.model.modality))[config.model.modality]
  params = {
    "generator": init_params(gen, keys[0], z, label),
    "discriminator": init_params(disc, keys[1], x, label),
  }
  opt_state = init_optimizers(_optimizers(config), params)
  ema = {"generator": jax.tree.map(jnp.copy, params["generator"])}
  return new_state(params, opt_state, ema)


def _labels(config, batch: dict, n: int) -> Array:
  """The class of each example, zeros for an unconditional model.

  Raises:
    ValueError: if the data set has no such label.
  """
  if not config.model.classes:
    return jnp.zeros(n, jnp.int32)
  if config.model.label not in batch["labels"]:
    raise ValueError(
      f"model.label is {config.model.label!r}; the data set has"
      f" {sorted(batch['labels'])}"
    )
  return batch["labels"][config.model.label]


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Generator and discriminator move at once, from one forward pass of the generator. The
  discriminator's loss has R1 with weight gamma / 2, on 1 / r1_fraction of the batch.
  Missing examples count for nothing.
  """
  gen, disc = build(config, modalities)
  name, loss = config.model.modality, config.loss
  adversarial, txs = make_adversarial(loss.gan), _optimizers(config)

  def generator_loss(params, disc_params, label, keys):
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    fake = apply(gen, params, z, label)
    logits = apply(disc, disc_params, fake, label)
    value = adversarial.generator(logits).mean()
    return value, ({"gan/g_loss": value, "gan/logits_fake": logits.mean()}, fake)

  def discriminator_loss(params, real, fake, label, has):
    logits = lambda x, label: apply(disc, params, x, label)
    part = partial(one_in, loss.r1_fraction)  # the same in expectation, and cheaper
    on_real = logits(real, label)
    d = adversarial.discriminator(on_real, logits(fake, label))
    r1 = gradient_penalty(lambda x: logits(x, part(label)), part(real))
    d, r1 = (d * has).mean(), (r1 * part(has)).mean()
    metrics = {"gan/d_loss": d, "gan/r1": r1, "gan/logits_real": on_real.mean()}
    return d + 0.5 * loss.r1_gamma * r1, metrics

  def gradients(params, batch, keys):
    values, mask = blank_missing(batch, {name: modalities[name]})
    label = _labels(config, batch, mask.shape[1])
    g, (g_metrics, fake) = jax.grad(generator_loss, has_aux=True)(
      params["generator"], params["discriminator"], label, keys
    )
    d, d_metrics = jax.grad(discriminator_loss, has_aux=True)(
      params["discriminator"], values[name], jax.lax.stop_gradient(fake), label, mask[0]
    )
    return {"generator": g, "discriminator": d}, g_metrics | d_metrics

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


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
  gen, _ = build(config, modalities)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    label = _labels(config, batch, len(keys))
    return {config.model.modality: apply(gen, params["generator"], z, label)}

  return generate
