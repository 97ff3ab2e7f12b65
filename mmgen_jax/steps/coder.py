"""A coder, an autoencoder and its quantiser: for the VQ step and priors over codes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen_jax import quantise as vq
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.layers import apply
from mmgen_jax.models.vq import MapAutoencoder
from mmgen_jax.steps.inputs import only, with_likelihood

Modalities = Mapping[str, Modality]
stop = jax.lax.stop_gradient


class Coder(NamedTuple):
  """An autoencoder and its quantiser, as pure functions of a State's `params`.

  Attributes:
    net: the autoencoder.
    codes: how many different ones there are.
    encode: (params, x) -> (vectors, ids, what the decoder gets), [b h w ...] each; the
      last with straight-through gradients.
    lookup: (params, ids [b h w]) -> what the decoder gets [b h w d].
  """

  net: MapAutoencoder
  codes: int
  encode: Callable[..., tuple[Array, Int[Array, "b h w"], Array]]
  lookup: Callable[..., Float[Array, "b h w d"]]


def build(config, modalities: Modalities) -> Coder:
  """The coder of the one modality that `config.model.modality` names.

  `config.model.levels`, where it is not empty, makes it FSQ with these levels; else it
  has a code book of `config.model.codes` vectors of size `config.model.code_size`.

  Raises:
    ValueError: if the data set has no such modality, it is text, or the levels are not
      at least 3.
  """
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  one = with_likelihood(config, only(modalities, m.modality))[m.modality]
  if one.kind == "text":
    raise ValueError(f"model.modality {m.modality!r} is text; choose an image or sound")
  if m.levels and min(m.levels) < 3:
    raise ValueError(f"model.levels must be at least 3 each, got {tuple(m.levels)}")
  size = len(m.levels) or m.code_size
  scale, width = m.scales.get(one.kind, 1.0), m.widths[one.kind]
  net = MapAutoencoder(one, size, width, m.blocks, m.patch, scale, dtype)
  fsq = vq.Fsq(tuple(m.levels))

  def encode(params, x):
    z = apply(net, params["vae"], x, method="encode")
    if m.levels:
      return z, *fsq.quantise(z)
    codes = stop(vq.codes_of(params["codebook"]))
    ids = vq.nearest(codes, stop(z))
    return z, ids, vq.straight_through(z, codes[ids])

  def lookup(params, ids):
    return fsq.lookup(ids) if m.levels else vq.codes_of(params["codebook"])[ids]

  return Coder(net, fsq.codes if m.levels else m.codes, encode, lookup)
