"""What every step does with a batch before its networks see it."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmgen_jax.data.augment import Augmentation, augment
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.multimodal import as_grid


def only(modalities: Mapping[str, Modality], name: str) -> dict[str, Modality]:
  """One modality of a data set, as a dict.

  Raises:
    ValueError: if the data set has no such modality.
  """
  if name not in modalities:
    raise ValueError(
      f"model.modality is {name!r}; the data set has {sorted(modalities)}"
    )
  return {name: modalities[name]}


def with_likelihood(config, modalities: Mapping[str, Modality]) -> dict[str, Modality]:
  """Modalities whose likelihood is `config.model.likelihood`, where that is there."""
  change = lambda m: dataclasses.replace(
    m, likelihood=config.model.get("likelihood", m.likelihood)
  )
  return {name: change(m) for name, m in modalities.items()}


def example_shapes(modalities: Mapping[str, Modality]) -> dict:
  """Shapes and dtypes of a batch of one, for `init_params`."""
  dtype = {"text": jnp.int32}
  return {
    name: jax.ShapeDtypeStruct((1, *m.shape), dtype.get(m.kind, jnp.float32))
    for name, m in modalities.items()
  }


def blank_missing(
  batch: dict, modalities: Mapping[str, Modality]
) -> tuple[dict[str, Array], Bool[Array, "m b"]]:
  """The modalities with zeros where they are missing, and the mask, in sorted order.

  So that not even a NaN in a missing modality can reach a gradient.
  """
  mask = jnp.stack([batch["mask"][name] for name in sorted(modalities)])
  values = {}
  for name in modalities:
    x, has = batch[name], batch["mask"][name]
    values[name] = jnp.where(has.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
  return values, mask


def make_augment(config, modalities: Mapping[str, Modality]):
  """`augment(keys, values) -> values`: what encoders see in training.

  `config.augment` is {modality: {field of `Augmentation`: value}}.

  Raises:
    ValueError: for a modality that is unknown or text, or a field that there is not.
  """
  hows = {}
  for name, fields in config.get("augment", {}).items():
    if name not in modalities or modalities[name].kind == "text":
      raise ValueError(f"augment names {name!r}; images and sounds can be augmented")
    try:
      hows[name] = Augmentation(**fields)
    except TypeError as e:
      raise ValueError(f"augment.{name}: {e}") from e

  def augment_values(keys, values):
    changed = {}
    for name, how in hows.items():
      grid = as_grid(modalities[name], values[name])
      one = lambda key, x, how=how: augment(key, x, how)
      changed[name] = jax.vmap(one)(keys, grid).reshape(values[name].shape)
    return {**values, **changed}

  return augment_values


def one_in(k: int, x: Array) -> Array:
  """Every k-th example, [b / k ...]; cut so that a sharded batch needs no communication.

  Raises:
    ValueError: if the batch (of one device, under pmap) is not a multiple of k.
  """
  if len(x) % k:
    raise ValueError(
      f"loss.r1_fraction = {k} does not divide a batch of {len(x)} (per device and"
      " microbatch)"
    )
  return x.reshape(-1, k, *x.shape[1:])[:, 0]


def pair(a: Array, b: Array) -> Array:
  """Two batches as one of twice the size, [2b ...], to go through a network together.

  a[0], b[0], a[1], b[1], ...: what is sharded over devices stays where it is.
  """
  return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def unpair(tree):
  """Both halves of every array that was made from a `pair`."""
  cut = lambda x: x.reshape(-1, 2, *x.shape[1:])
  return tuple(jax.tree.map(lambda x, i=i: cut(x)[:, i], tree) for i in (0, 1))
