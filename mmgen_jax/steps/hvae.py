"""The hierarchical VAE step: one image or sound, groups of latents, coarsest first."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmgen_jax import objectives
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.hvae import HierarchicalVAE, Stage
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.vae import binarise
from mmgen_jax.optim import (
  apply_updates,
  init_optimizers,
  make_optimizer,
  skip_above,
)
from mmgen_jax.parallel import example_keys, mean_of_microbatches, pmean
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import (
  blank_missing,
  check_binarise,
  example_shapes,
  only,
  with_likelihood,
)

Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> HierarchicalVAE:
  """The VAE of the one modality that `config.model.modality` names.

  Raises:
    ValueError: if the data set has no such modality, or it is text; if stages are no
      pyramid, or what is not binary is to be binarised.
  """
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  named = with_likelihood(config, only(modalities, m.modality))
  one = named[m.modality]
  if one.kind == "text":
    raise ValueError(f"model.modality {m.modality!r} is text; choose an image or sound")
  check_binarise(config, m.modality, one)
  scale = m.scales.get(one.kind, 1.0)
  stages = tuple(Stage(*stage) for stage in m.stages)
  sides = [s.side for s in stages]
  if sides != sorted(set(sides)) or not any(s.latent for s in stages):
    raise ValueError(
      "model.stages must be coarsest first, of sides that grow, one with latents at"
      f" least; got sides {sides}, latents {[s.latent for s in stages]}"
    )
  return HierarchicalVAE(named, stages, m.patch, m.mean, scale, dtype)


def _optimizers(config) -> dict:
  return {"vae": make_optimizer(config.optim)}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: network "vae" and its average."""
  vae = build(config, modalities)
  noise = jax.ShapeDtypeStruct((1, vae.size), jnp.float32)
  params = {"vae": init_params(vae, key, example_shapes(vae.modalities), noise)}
  opt_state = init_optimizers(_optimizers(config), params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def _make_inputs(vae: HierarchicalVAE, config) -> Callable:
  """`inputs(batch, keys) -> (values, has [b])`: blank where missing, or binarised."""
  binary = config.loss.get("binarise", False)

  def inputs(batch, keys):
    values, mask = blank_missing(batch, vae.modalities)
    if binary:
      values = {name: binarise(keys, x) for name, x in values.items()}
    return values, mask[0]

  return inputs


def _noise(keys: Key[Array, "b"], size: int) -> Float[Array, "b n"]:
  return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Ascends log p(x | z) - beta sum_g KL_g, where beta rises to 1 over
  `config.loss.warmup_steps` (`objectives.warm_up`), and a group whose mean KL is below
  `config.loss.free_nats` feels no pull (then the bound is over the batch). An update
  whose gradient norm is above `config.loss.skip_norm` is left out (Child, 2021, section
  3.1, https://arxiv.org/abs/2011.10650).

  Raises:
    ValueError: for free nats with microbatches.
  """
  vae, txs, options = build(config, modalities), _optimizers(config), config.loss
  inputs, name = _make_inputs(vae, config), config.model.modality
  if options.free_nats and config.accumulate != 1:
    raise ValueError(
      "loss.free_nats is over the whole batch: accumulate must be 1, got"
      f" {config.accumulate}"
    )

  def loss(params, batch, keys, step, axis):
    keys = jax.vmap(jax.random.split)(keys)
    values, has = inputs(batch, keys[:, 0])
    made = apply(vae, params["vae"], values, _noise(keys[:, 1], vae.size))
    log_px = vae.likelihood(name).log_prob(made.outputs, values[name])
    log_px, groups = jnp.where(has, log_px, 0.0), jnp.where(has, made.kl, 0.0)
    kl = groups.sum(0)
    pulled = kl
    if options.free_nats:
      total, count = pmean((groups.mean(1), has.mean()), axis)
      floor = jnp.maximum(total / jnp.maximum(count, 1e-9), options.free_nats)
      pulled = jnp.where(has, floor.sum(), 0.0)
    beta = objectives.warm_up(step, steps=options.warmup_steps)
    bound = objectives.elbo(log_px, pulled, beta=beta)
    terms = {"bound": bound, "logp": log_px, "kl": kl, "elbo": log_px - kl}
    terms |= {f"kl_{side}": groups[at].sum(0) for side, at in vae.places().items()}
    terms = {k: v.mean() for k, v in terms.items()} | {"beta": beta}
    terms["loss"] = -terms["bound"]
    return terms["loss"], {f"hvae/{k}": v for k, v in terms.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    gradients = jax.grad(partial(loss, step=state.step, axis=axis), has_aux=True)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    moved, norms = apply_updates(state, grads, txs, config.ema_decay)
    moved, skipped = skip_above(options.skip_norm, state, moved, norms["norm/vae_grad"])
    return moved, metrics | norms | {"hvae/skipped": skipped}

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logp`, `kl`, `elbo` per example, in nats.

  From one sample of all latents; log p(x | z) - sum_g KL_g is the ELBO in expectation.
  For tighter bounds see `make_log_weights`.
  """
  vae, name = build(config, modalities), config.model.modality
  inputs = _make_inputs(vae, config)

  def eval_step(params, batch, key):
    keys = jax.vmap(jax.random.split)(example_keys(key, len(batch["index"]), None))
    values, has = inputs(batch, keys[:, 0])
    made = apply(vae, params["vae"], values, _noise(keys[:, 1], vae.size))
    log_px = vae.likelihood(name).log_prob(made.outputs, values[name])
    terms = {"logp": log_px, "kl": made.kl.sum(0)}
    terms["elbo"] = terms["logp"] - terms["kl"]
    return {k: jnp.where(has, v, 0.0) for k, v in terms.items()}

  return eval_step


def make_log_weights(config, modalities: Modalities) -> Callable:
  """`prepare(params, batch, keys) -> weigh`; `weigh(keys, samples)` -> log w [k b].

  log w = log p(x, z) - log q(z | x) of `samples` draws of all latents, for
  `metrics.likelihood.importance_bounds`. Values are binarised once, by the first keys,
  and go up once.
  """
  vae, name = build(config, modalities), config.model.modality
  inputs = _make_inputs(vae, config)

  def prepare(params, batch, keys):
    values, _ = inputs(batch, keys)
    seen = apply(vae, params["vae"], values, method="bottom_up")

    def weigh(keys, samples: int) -> Float[Array, "k b"]:
      many = lambda x: jnp.repeat(x, samples, axis=0)  # of one example side by side
      draw = lambda key: jax.random.normal(key, (samples, vae.size))
      noise = jax.vmap(draw)(keys).reshape(-1, vae.size)
      args = noise, jax.tree.map(many, seen)
      made = apply(vae, params["vae"], *args, method="top_down")
      log_px = vae.likelihood(name).log_prob(made.outputs, many(values[name]))
      return (log_px + made.log_ratio).reshape(-1, samples).T

    return weigh

  return prepare


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Nothing given (the prior), and the modality itself (reconstruction)."""
  return [(), (config.model.modality,)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  `given` (bool [m], in sorted order of all the data set's names) says whether latents
  come from the posterior of the example or from the prior.
  """
  vae, name = build(config, modalities), config.model.modality
  inputs, place = _make_inputs(vae, config), sorted(modalities).index(name)

  def generate(params, batch, given, key):
    keys = jax.vmap(jax.random.split)(example_keys(key, len(batch["index"]), None))
    values, has = inputs(batch, keys[:, 0])
    seen = apply(vae, params["vae"], values, method="bottom_up")
    args: Any = _noise(keys[:, 1], vae.size), seen, has & given[place]
    made = apply(vae, params["vae"], *args, method="top_down")
    return {name: vae.likelihood(name).mode(made.outputs)}

  return generate
