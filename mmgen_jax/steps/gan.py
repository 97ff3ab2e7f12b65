"""The GAN step: one modality, from noise, a class or any other modalities."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.models.condition import Given
from mmgen_jax.models.layers import init_params
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.optim import (
  apply_updates,
  ema_decay_at,
  init_optimizers,
  make_optimizer,
)
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.schedules import half_life_decay, make_burn_in, scheduled_adam
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.adversarial import (
  Now,
  build,
  condition_names,
  given_of,
  make_losses,
  networks,
)
from mmgen_jax.steps.inputs import example_shapes

Modalities = Mapping[str, Modality]

__all__ = [
  "build",
  "init",
  "make_eval_step",
  "make_generate",
  "make_losses",
  "make_train_step",
  "subsets",
]


def _optimizers(config) -> dict:
  both = {"generator": config.optim, "discriminator": config.disc_optim}
  if "burn_in" not in config:
    return {name: make_optimizer(c) for name, c in both.items()}
  s, n = make_burn_in(config.burn_in), config.batch_size
  return {name: scheduled_adam(c, *s[:2], n) for name, c in both.items()}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "generator" and "discriminator", an average of the first."""
  gen, disc = build(config, modalities)
  keys, m = jax.random.split(key), config.model
  array, names = jax.ShapeDtypeStruct, condition_names(config)
  shapes = example_shapes({n: modalities[n] for n in (*names, m.modality)})
  x = shapes.pop(m.modality)
  if m.get("net", "conv") != "conv":
    x = jax.eval_shape(partial(as_grid, modalities[m.modality]), x)
  label = array((1,), jnp.int32) if m.classes else None
  given = Given(label, shapes, {name: array((1,), jnp.bool_) for name in names})
  params = {
    "generator": init_params(gen, keys[0], array((1, m.latent), jnp.float32), given),
    "discriminator": init_params(disc, keys[1], x, given),
  }
  opt_state = init_optimizers(_optimizers(config), params)
  ema = {"generator": jax.tree.map(jnp.copy, params["generator"])}
  return new_state(params, opt_state, ema)


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
    now = Now(state.step, gamma, axis=axis)
    d, g = partial(d_loss, now=now), partial(g_loss, now=now)
    state, d_metrics = move(state, "discriminator", d, batch, keys[0], axis)
    state, g_metrics = move(state, "generator", g, batch, keys[1], axis)
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
  """What can be given: every part of the condition that training has seen.

  Nothing, the prior, for a model without such a condition; all of it, where no part is
  ever missing.
  """
  names = condition_names(config)
  if names and not (config.model.encoder.dropout or config.data.missing_rate):
    return [names]
  return [c for n in range(len(names) + 1) for c in combinations(names, n)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  From noise, from what `given` (bool [m], in sorted order of all the data set's names)
  has of the condition, and from the batch's labels where the model has classes.
  """
  net, order = networks(config, modalities), sorted(modalities)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    z = jax.vmap(lambda key: jax.random.normal(key, (config.model.latent,)))(keys)
    condition = given_of(config, modalities, batch)
    mask = {k: m & given[order.index(k)] for k, m in condition.mask.items()}
    made = net.generate(params["generator"], z, condition._replace(mask=mask))
    return {config.model.modality: made}

  return generate
