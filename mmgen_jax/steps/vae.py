"""The VAE step: one modality, and one of the bounds of `mmgen_jax.objectives`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.models import latents
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.models.vae import MLPVAE
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps import bounds
from mmgen_jax.steps.inputs import (
  check_fields,
  example_shapes,
  only,
  with_likelihood,
)

Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> MultimodalVAE | MLPVAE:
  """The VAE of the one modality that `config.model.modality` names.

  `config.model.net` is "conv" (or not there) or "mlp"; `config.model.r3_decoder`, where
  it is there, has the attributes of the R3GAN generator that is the decoder;
  `config.model.likelihood`, where it is there, takes the place of what the data set says.

  Raises:
    ValueError: if the data set has no such modality, or there is no such network; for a
      mixture as the prior, which only the fusion step learns.
  """
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  if (components := m.get("prior_components", 1)) != 1:
    raise ValueError(
      f"model.prior_components = {components} is of the family 'fusion'; of a 'vae'"
      " the prior is N(0, I), model.pseudo_inputs or model.flow_layers"
    )
  named = with_likelihood(config, only(modalities, m.modality))
  net, one = m.get("net", "conv"), named[m.modality]
  if net == "mlp" and one.kind != "text":
    return MLPVAE(named, m.latent, m.hidden, m.mean, m.scales[one.kind], dtype)
  if net != "conv":
    raise ValueError(
      f"model.net must be 'conv', or 'mlp' for images and sounds, got {net!r}"
    )
  widths, scales = m.widths.to_dict(), m.scales.to_dict()
  return MultimodalVAE(
    named,
    m.latent,
    widths,
    m.features,
    m.blocks,
    scales,
    dtype=dtype,
    r3=dict(m.get("r3_decoder", {})),
  )


def _optimizer(config) -> optax.GradientTransformation:
  """`config.optim.stages` multiply its rate: ((first step, factor), ...), from step 0.

  Raises:
    ValueError: if the first stage starts later.
  """
  tx = make_optimizer(config)
  if not (stages := config.get("stages", ())):
    return tx
  starts, factors = zip(*stages, strict=True)
  if starts[0]:
    raise ValueError(f"optim.stages must start at step 0, got {starts[0]}")
  constant = [optax.constant_schedule(factor) for factor in factors]
  factor = optax.join_schedules(constant, starts[1:])
  return optax.chain(tx, optax.scale_by_schedule(factor))


def _optimizers(config) -> dict:
  """By network: those that this config has, in the order of `init`."""
  txs = {"vae": _optimizer(config.optim)}
  if config.model.get("pseudo_inputs", 0):
    txs["pseudo"] = txs["vae"]
  if config.model.get("flow_layers", 0):
    txs["flow"] = txs["vae"]
  if config.model.get("learned_scale", False):
    txs["noise"] = txs["vae"]
  if config.loss.get("objective", "elbo") == "factor":
    why = "loss.objective 'factor'"
    check_fields(config, why, "disc_optim", "model.disc_hidden", "loss.gamma")
    txs["discriminator"] = make_optimizer(config.disc_optim)
  return txs


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: network "vae", what else the config asks for, their averages.

  Beside it "pseudo", the inputs whose posteriors are the prior's components
  (`config.model.pseudo_inputs`: how many); "flow", the prior as a coupling flow
  (`config.model.flow_layers`, `.flow_hidden`); "noise", the log variance of all values
  (`config.model.learned_scale`); "discriminator", for `config.loss.objective` "factor".

  Raises:
    ValueError: if these do not fit the modality.
  """
  vae = build(config, modalities)
  txs, example = _optimizers(config), example_shapes(vae.modalities)
  params: dict[str, Any] = {"vae": init_params(vae, key, example)}
  ((name, one),) = vae.modalities.items()
  if "pseudo" in txs:
    if one.kind == "text":
      raise ValueError(f"model.pseudo_inputs must be 0 for text, which {name!r} is")
    shape = (config.model.pseudo_inputs, *one.shape)
    inputs = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), shape)
    params["pseudo"] = {"inputs": inputs}
  if "flow" in txs:
    size = vae.size, config.model.flow_layers, config.model.flow_hidden
    params["flow"] = latents.init_flow(jax.random.fold_in(key, 3), *size)
  if "noise" in txs:
    if one.likelihood != "gaussian":
      raise ValueError(
        f"model.learned_scale is of a 'gaussian' likelihood, got {one.likelihood!r}"
      )
    params["noise"] = {"logvar": jnp.zeros(())}
  if "discriminator" in txs:
    z = jax.ShapeDtypeStruct((1, vae.size), jnp.float32)
    disc = bounds.build_discriminator(config)
    params["discriminator"] = init_params(disc, jax.random.fold_in(key, 2), z)
  averaged = {name: p for name, p in params.items() if name != "discriminator"}
  opt_state = init_optimizers(txs, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, averaged))


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Ascends the bound that `config.loss.objective` names ("elbo" where it names none), from
  `config.loss.samples` samples of z per example; see `mmgen_jax.objectives`. The "iwae"
  takes its gradient from `config.loss.backward_samples` of them, drawn by weight, or from
  all (0). An example whose modality is missing counts as zero. FactorVAE's discriminator
  moves at once with the VAE, from the same pass.
  """
  model = bounds.make_model(build(config, modalities), config)
  objective, txs = bounds.make_objective(config), _optimizers(config)
  samples = config.loss.get("samples", 1)

  def loss(params, batch, keys, step, axis, shared):
    keys = jax.vmap(jax.random.split)(keys)
    q = model.posterior(params, batch, keys[:, 0])
    z = bounds.draw(keys[:, 1], q, samples)
    log_px, kl = model.log_px(params, q.x, z), bounds.kl(model, params, q, z)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys[:, 1])
    p = bounds.Pass(config, model, params, q, z, log_px, kl, step, axis, own)
    terms = {"bound": objective(p), "logp": log_px.mean(0), "kl": kl}
    terms["elbo"] = terms["logp"] - kl
    if "discriminator" in txs:
      terms["d_loss"] = bounds.discriminator_loss(p, shared)
    terms = {k: jnp.where(q.has, v, 0.0).mean() for k, v in terms.items()}
    terms["loss"] = -terms["bound"]
    total = terms["loss"] + terms.get("d_loss", 0.0)
    return total, {f"vae/{k}": v for k, v in terms.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key, shared = jax.random.split(jax.random.fold_in(key, state.step))
    keys = example_keys(key, len(batch["index"]), axis)
    of_step = partial(loss, step=state.step, axis=axis, shared=shared)
    gradients = jax.grad(of_step, has_aux=True)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logp`, `kl`, `elbo` per example, in nats.

  From one sample of z. `elbo` is the ELBO whatever the objective was; for tighter bounds
  see `mmgen_jax.metrics.likelihood`.
  """
  model = bounds.make_model(build(config, modalities), config)

  def eval_step(params, batch, key):
    keys = example_keys(key, len(batch["index"]), None)
    keys = jax.vmap(jax.random.split)(keys)
    q = model.posterior(params, batch, keys[:, 0])
    z = bounds.draw(keys[:, 1], q, 1)
    log_px, kl = model.log_px(params, q.x, z)[0], bounds.kl(model, params, q, z)
    keep = lambda x: jnp.where(q.has, x, 0.0)
    return {"logp": keep(log_px), "kl": keep(kl), "elbo": keep(log_px - kl)}

  return eval_step


def make_log_weights(config, modalities: Modalities) -> Callable:
  """`prepare(params, batch, keys) -> weigh`; `weigh(keys, samples)` -> log w [k b].

  log w = log p(x, z) - log q(z | x), for `metrics.likelihood.importance_bounds`. Values
  are binarised, where the config says so, once, by the first keys.
  """
  model = bounds.make_model(build(config, modalities), config)

  def prepare(params, batch, keys):
    q = model.posterior(params, batch, keys)
    draw = lambda keys, samples: bounds.draw(keys, q, samples)
    return lambda *args: bounds.log_weights(model, params, q, draw(*args))

  return prepare


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Nothing given (the prior), and the modality itself (reconstruction)."""
  return [(), (config.model.modality,)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  `given` (bool [m], in sorted order of all the data set's names) says whether z comes
  from the posterior of the example or from the prior.
  """
  vae, name = build(config, modalities), config.model.modality
  model, place = bounds.make_model(vae, config), sorted(modalities).index(name)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    q = model.posterior(params, batch, keys[:, 0])
    z = bounds.draw(keys[:, 1], q, 1)[0]
    prior = model.sample_prior(params, keys[:, 2])
    z = jnp.where((q.has & given[place])[:, None], z, prior)
    outputs = apply(vae, params["vae"], z, method="decode")[name]
    return {name: vae.likelihood(name).mode(outputs)}

  return generate
