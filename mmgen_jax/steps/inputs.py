"""What every step does with a batch before its networks see it."""

import dataclasses
import zlib
from collections.abc import Mapping
from functools import partial

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


def check_binarise(config, name: str, modality: Modality) -> None:
  """Raises ValueError if what is not binary is to be binarised."""
  if config.loss.get("binarise", False) and modality.likelihood != "bernoulli":
    raise ValueError(
      f"loss.binarise is for a 'bernoulli' likelihood, {name!r} has"
      f" {modality.likelihood!r} (model.likelihood)"
    )


def check_fields(config, why: str, *fields: str) -> None:
  """Raises ValueError if the config lacks a field that another field's value asks for."""
  for field in fields:
    place = config
    for part in field.split("."):
      if part not in place:
        raise ValueError(f"{why} needs {field}, which this config has not")
      place = place[part]


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
  mask = jnp.stack([batch["mask"][name].astype(bool) for name in sorted(modalities)])
  values = {}
  for name in modalities:
    x, has = batch[name], batch["mask"][name].astype(bool)
    values[name] = jnp.where(has.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
  return values, mask


def make_augment(config, modalities: Mapping[str, Modality]):
  """`augment(keys, values) -> values`: what encoders see in training.

  `config.augment` is {modality: {field of `Augmentation`: value}}. Random numbers are a
  modality's own (a shift that two share would tell that they are a pair) and the same
  whatever is beside it: they follow from its name.

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
      own = partial(jax.random.fold_in, data=zlib.crc32(name.encode()))
      one = lambda key, x, own=own, how=how: augment(own(key), x, how)
      changed[name] = jax.vmap(one)(keys, grid).reshape(values[name].shape)
    return {**values, **changed}

  return augment_values


def one_in(k: int, x: Array, field: str = "loss.r1_fraction") -> Array:
  """Every k-th example, [b / k ...]; cut so that a sharded batch needs no communication.

  Raises:
    ValueError: if the batch (of one device, under pmap) is not a multiple of k, which
      `field` of the config says.
  """
  if len(x) % k:
    raise ValueError(
      f"{field} = {k} does not divide a batch of {len(x)} (per device and microbatch)"
    )
  return x.reshape(-1, k, *x.shape[1:])[:, 0]


def pair(a: Array, b: Array) -> Array:
  """Two batches as one, to go through a network together; a is k times as long as b.

  For k = 1: a[0], b[0], a[1], b[1], ...; else k of the one before each of the other: what
  is sharded over devices stays where it is.
  """
  groups = a.reshape(len(b), -1, *a.shape[1:])
  return jnp.concatenate([groups, b[:, None]], 1).reshape(-1, *a.shape[1:])


def unpair(tree, k: int = 1):
  """Both parts of every array that was made from a `pair`, the first k times as long."""
  cut = lambda x: x.reshape(-1, k + 1, *x.shape[1:])
  first = lambda x: cut(x)[:, :k].reshape(-1, *x.shape[1:])
  return jax.tree.map(first, tree), jax.tree.map(lambda x: cut(x)[:, k], tree)
