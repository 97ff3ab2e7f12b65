"""What a multimodal VAE says of z and of the data, and what follows for any of them.

Evaluation, generation and likelihoods need no more of a model than the functions of
`Latents`, whatever its posterior is.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.models.layers import apply
from mmgen_jax.models.multimodal import MultimodalVAE
from mmgen_jax.parallel import example_keys
from mmgen_jax.steps.inputs import blank_missing

Modalities = Mapping[str, Modality]


class Latents(NamedTuple):
  """A model's distributions; `params` are a State's, by network.

  Attributes:
    encode: (params, values) -> experts, whatever the others want of them.
    sample: (params, experts, mask [m b], keys [b]) -> z [b z] of q(z | what `mask`
      keeps); of the prior where it keeps nothing.
    log_q: (params, experts, mask, z [b z]) -> log q(z | ...) [b].
    log_prior: (params, z [b z]) -> [b].
    decode: (params, z [b z]) -> {modality: likelihood's parameters}.
    log_px: (values, decoded) -> log p(x_m | z) [m b], in sorted order, unweighted.
  """

  encode: Callable[..., Any]
  sample: Callable[..., Float[Array, "b z"]]
  log_q: Callable[..., Float[Array, "b"]]
  log_prior: Callable[..., Float[Array, "b"]]
  decode: Callable[..., dict[str, Array]]
  log_px: Callable[..., Float[Array, "m b"]]


def decoding(vae: MultimodalVAE) -> tuple[Callable, Callable]:
  """`decode` and `log_px` of `Latents`, which are the same for every posterior."""

  def decode(params, z):
    return apply(vae, params["vae"], z, method="decode")

  def log_px(values, decoded):
    each = [vae.likelihood(n).log_prob(decoded[n], values[n]) for n in sorted(decoded)]
    return jnp.stack(each)

  return decode, log_px


def eval_step(latents: Latents, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> one-sample ELBO terms per example, in nats.

  `kl`, `elbo` and `logp_<modality>`, unweighted, from the posterior of everything that
  an example has.
  """

  def step(params, batch, key):
    values, mask = blank_missing(batch, modalities)
    keys = example_keys(key, mask.shape[1], None)
    experts = latents.encode(params, values)
    z = latents.sample(params, experts, mask, keys)
    logp = latents.log_px(values, latents.decode(params, z))
    logp = jnp.where(mask, logp, 0.0)
    kl = latents.log_q(params, experts, mask, z) - latents.log_prior(params, z)
    terms = {f"logp_{name}": logp[i] for i, name in enumerate(sorted(modalities))}
    return terms | {"kl": kl, "elbo": logp.sum(0) - kl}

  return step


def generate(latents: Latents, vae: MultimodalVAE) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  Every modality is decoded from one posterior sample of the subset `given` (bool [m], in
  sorted order of names; what an example lacks is left out), or from the prior where
  nothing is given: likelihoods' modes, tokens for text.
  """

  def make(params, batch, given: Bool[Array, "m"], key):
    values, mask = blank_missing(batch, vae.modalities)
    mask &= given[:, None]
    keys = example_keys(key, mask.shape[1], None)
    z = latents.sample(params, latents.encode(params, values), mask, keys)
    outputs = latents.decode(params, z)
    return {name: vae.likelihood(name).mode(x) for name, x in outputs.items()}

  return make


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """What is given in evaluation: subsets of the modalities, none first, all last.

  `config.eval.subsets`: "all" 2^M of them, which is what there is where nothing is said;
  "ring" only what is side by side in the ring of sorted names, M of every size, so that
  each modality is given, and wanted, equally often: M (M - 1) + 2 in all.

  Raises:
    ValueError: for another word.
  """
  names, how = sorted(modalities), config.eval.get("subsets", "all")
  m = len(names)
  if how not in ("all", "ring"):
    raise ValueError(f"eval.subsets must be 'all' or 'ring', got {how!r}")
  if how == "all":
    return [c for n in range(m + 1) for c in combinations(names, n)]
  arc = lambda n, first: tuple(sorted((names * 2)[first : first + n]))
  ring = [arc(n, first) for n in range(1, m) for first in range(m)]
  return [(), *ring, tuple(names)]
