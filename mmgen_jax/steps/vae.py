"""The VAE step: one modality, the negative ELBO with a weight on its KL term."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.fusion.model import sample_gaussian
from mmgen_jax.losses import gaussian_kl
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import blank_missing, example_shapes, only

Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> MultimodalVAE:
  """The VAE of the one modality that `config.model.modality` names.

  Raises:
    ValueError: if the data set has no such modality.
  """
  m = config.model
  return MultimodalVAE(
    only(modalities, m.modality),
    m.latent,
    m.widths.to_dict(),
    m.features,
    m.blocks,
    m.scales.to_dict(),
    dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
  )


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: network "vae" and its average."""
  vae = build(config, modalities)
  params = {"vae": init_params(vae, key, example_shapes(vae.modalities))}
  opt_state = init_optimizers({"vae": make_optimizer(config.optim)}, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def _make_terms(config, modalities: Modalities) -> Callable:
  vae, name = build(config, modalities), config.model.modality

  def terms(params, batch, keys):
    """One-sample log p(x | z), KL(q || p) and ELBO in nats, 0 where x is missing."""
    net = partial(apply, vae, params)
    values, mask = blank_missing(batch, vae.modalities)
    means, logvars = net(values, method="encode")
    q = means[0], logvars[0]
    z = sample_gaussian(keys, q)
    logp = vae.likelihood(name).log_prob(net(z, method="decode")[name], values[name])
    kl = gaussian_kl(*q)
    keep = lambda x: jnp.where(mask[0], x, 0.0)
    return {"logp": keep(logp), "kl": keep(kl), "elbo": keep(logp - kl)}

  return terms


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Descends -log p(x | z) + beta KL(q(z | x) || p(z)): Kingma and Welling, 2014,
  https://arxiv.org/abs/1312.6114; Higgins et al., "beta-VAE", 2017,
  https://openreview.net/forum?id=Sy2fzU9gl. The prior is N(0, I), so its KL is analytic.
  """
  terms, txs = _make_terms(config, modalities), {"vae": make_optimizer(config.optim)}

  def loss(params, batch, keys):
    t = terms(params, batch, keys)
    total = (-t["logp"] + config.loss.beta * t["kl"]).mean()
    return total, {f"vae/{k}": v.mean() for k, v in t.items()} | {"vae/loss": total}

  def gradients(params, batch, keys):
    grads, metrics = jax.grad(loss, has_aux=True)(params["vae"], batch, keys)
    return {"vae": grads}, metrics

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logp`, `kl`, `elbo` per example, in nats."""
  terms = _make_terms(config, modalities)

  def eval_step(params, batch, key):
    keys = example_keys(key, len(batch["index"]), None)
    return terms(params["vae"], batch, keys)

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Nothing given (the prior), and the modality itself (reconstruction)."""
  return [(), (config.model.modality,)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  `given` (bool [m], in sorted order of all the data set's names) says whether z comes
  from the posterior of the example or from the prior.
  """
  vae, name = build(config, modalities), config.model.modality
  place = sorted(modalities).index(name)

  def generate(params, batch, given, key):
    net = partial(apply, vae, params["vae"])
    values, mask = blank_missing(batch, vae.modalities)
    keys = jax.vmap(jax.random.split)(example_keys(key, mask.shape[1], None))
    means, logvars = net(values, method="encode")
    z = sample_gaussian(keys[:, 0], (means[0], logvars[0]))
    prior = jax.vmap(lambda k: jax.random.normal(k, z.shape[1:]))(keys[:, 1])
    z = jnp.where((mask[0] & given[place])[:, None], z, prior)
    return {name: vae.likelihood(name).mode(net(z, method="decode")[name])}

  return generate
