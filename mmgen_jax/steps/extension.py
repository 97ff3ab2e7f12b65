"""The extension step: one more modality for a trained fusion model, the rest frozen.

The new modality's encoder learns to say what the frozen ones say of the same examples,
its decoder to draw from where they put them. The frozen part comes from the run that
`config.initial` names (`mmgen_jax.initial`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmgen_jax.data.modality import Modality
from mmgen_jax.models import prior as prior_lib
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps import fusion
from mmgen_jax.steps.fusion import subsets
from mmgen_jax.steps.inputs import (
  blank_missing,
  example_shapes,
  make_augment,
  pair,
  unpair,
)

__all__ = ["build", "init", "make_eval_step", "make_generate", "make_train_step"]
__all__ += ["merged", "parts", "subsets"]
Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> MultimodalVAE:
  """The VAE of all modalities, the new one (`config.extend.modality`) among them.

  Raises:
    ValueError: if there is no such modality, nothing else, or there are private latents,
      whose places in z would not be those of the frozen part.
  """
  name = config.extend.modality
  if name not in modalities or len(modalities) < 2:
    raise ValueError(
      f"extend.modality is {name!r}; it must be one of several: {sorted(modalities)}"
    )
  if any(config.model.private.values()):
    raise ValueError(
      f"model.private must be 0 to extend a model, got {config.model.private.to_dict()}"
    )
  return fusion.build(config, modalities)[0]


def parts(params: Mapping[str, Any], name: str) -> tuple[dict, dict]:
  """A multimodal VAE's parameters: those of one modality, and those of all others."""
  mine = {f"encoders_{name}", f"decoders_{name}"}
  return (
    {k: v for k, v in params.items() if k in mine},
    {k: v for k, v in params.items() if k not in mine},
  )


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
  """What a fusion run has: "vae", old and new, and "prior"."""
  return {"vae": params["vae"] | params["new"], "prior": params["prior"]}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "new", and "vae" and "prior", which never change, still untrained.

  Their trained values are those of `config.initial`.
  """
  vae = build(config, modalities)
  keys = jax.random.split(key)
  all_of = init_params(vae, keys[0], example_shapes(modalities))
  new, old = parts(all_of, config.extend.modality)
  prior = prior_lib.init_mixture(keys[1], config.model.prior_components, vae.size)
  params = {"new": new, "vae": old, "prior": prior}
  opt_state = init_optimizers({"new": make_optimizer(config.optim)}, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Descends -w log p(x_new | z) + alignment KL(q_old || q_new) - cross sum_m w_m log
  p(x_m | z_new) by the parameters of the new modality alone. q_old is the frozen
  posterior of what else an example has, z a sample of it; q_new is the prior times the
  new expert, z_new a sample of it. An example counts if it has the new modality and
  another one. The weights are those of a fusion run (`mmgen_jax.steps.fusion`).
  """
  vae, names = build(config, modalities), sorted(modalities)
  loss, name = config.loss, config.extend.modality
  augment = make_augment(config, modalities)
  txs = {"new": make_optimizer(config.optim)}
  mine = jnp.array([n == name for n in names])[:, None]

  def objective(new, params, batch, keys):
    values, mask = blank_missing(batch, modalities)
    k = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    net, prior = partial(apply, vae, params["vae"] | new), params["prior"]
    means, logvars = net(augment(k[:, 0], values), method="encode")
    teacher = prior_lib.posterior(prior, means, logvars, mask & ~mine)
    student = prior_lib.posterior(prior, means, logvars, mask & mine)
    z = jax.lax.stop_gradient(prior_lib.sample_mixture(k[:, 1], teacher))
    z_new = prior_lib.sample_mixture(k[:, 2], student)
    old, own = unpair(net(pair(z, z_new), method="decode"))
    counts = (mask & mine).any(0) & (mask & ~mine).any(0)

    def logp(outputs, n):
      value = vae.likelihood(n).log_prob(outputs[n], values[n])
      return loss.weights.get(n, 1.0) * jnp.where(mask[names.index(n)], value, 0.0)

    log_old = prior_lib.log_prob_mixture(teacher, z)
    terms = {
      f"logp_{name}": logp(old, name),
      "alignment": log_old - prior_lib.log_prob_mixture(student, z),
      "cross": sum(logp(own, n) for n in names),
    }
    terms = {k: jnp.where(counts, v, 0.0).mean() for k, v in terms.items()}
    total = loss.alignment * terms["alignment"] - loss.cross * terms["cross"]
    total -= terms[f"logp_{name}"]
    terms["loss"] = total
    return total, {f"extension/{k}": v for k, v in terms.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)

    def gradients(params, batch, keys):
      of = jax.grad(objective, has_aux=True)
      grads, metrics = of(params["new"], params, batch, keys)
      return {"new": grads}, metrics

    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)`: that of a fusion run, of the whole model."""
  of = fusion.make_eval_step(config, modalities)
  return lambda params, batch, key: of(merged(params), batch, key)


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key)`: that of a fusion run, of the whole model."""
  of = fusion.make_generate(config, modalities)
  return lambda params, batch, given, key: of(merged(params), batch, given, key)
