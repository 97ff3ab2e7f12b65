"""The networks of the GAN step, from a config, and what they are conditioned on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.models import baselines
from mmgen_jax.models.condition import (
  ConditionalDiscriminator,
  ConditionalGenerator,
  ConditionEncoder,
  Given,
  Verdict,
)
from mmgen_jax.models.gan import Discriminator, Generator
from mmgen_jax.models.layers import apply
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.models.r3gan import R3Discriminator, R3Generator
from mmgen_jax.steps.inputs import blank_missing, only

Modalities = Mapping[str, Modality]
NETS = ("conv", "r3gan", "dcgan", "resnet")


def _pair(config, modality: Modality, dtype) -> tuple[nn.Module, nn.Module]:
  """The two networks themselves, by `config.model.net`."""
  m, net = config.model, config.model.get("net", "conv")
  h, w, c = (*modality.shape, 1)[:3]
  wide, disc_wide = m.widths[modality.kind], m.disc_widths[modality.kind]
  if net == "conv":
    return (
      Generator(modality, wide, m.blocks, m.classes, dtype),
      Discriminator(modality, disc_wide, m.features, m.blocks, m.classes, dtype),
    )
  if net == "r3gan":
    shared = (m.blocks, m.group_size, m.patch, m.classes, dtype)
    return R3Generator((h, w), c, wide, *shared), R3Discriminator(disc_wide, *shared)
  if net in baselines.PAIRS:
    gen, disc = baselines.PAIRS[net]
    return (
      gen((h, w), c, wide, m.classes, dtype),
      disc(disc_wide, m.classes, dtype, m.get("spectral_norm", True)),
    )
  raise ValueError(f"model.net must be one of {NETS}, got {net!r}")


def condition_names(config) -> tuple[str, ...]:
  """The modalities of the condition, sorted."""
  return tuple(sorted(config.model.get("condition", ())))


def _encoder(config, modalities: Modalities, dtype) -> ConditionEncoder | None:
  names, m = condition_names(config), config.model
  if not names:
    return None
  if m.modality in names or set(names) - set(modalities):
    raise ValueError(
      f"model.condition is {names}; choose from"
      f" {sorted(set(modalities) - {m.modality})}"
    )
  e = m.encoder
  given = {name: modalities[name] for name in names}
  return ConditionEncoder(
    given, e.widths.to_dict(), e.features, e.blocks, e.fusion, dtype
  )


def build(
  config, modalities: Modalities
) -> tuple[ConditionalGenerator, ConditionalDiscriminator]:
  """Generator and discriminator of the modality that `config.model.modality` names.

  `config.model.net` is one of `NETS`; "conv" where it is not there. That one takes and
  gives values of the modality, the others grids. `config.model.spectral_norm`, where it
  is there, says whether discriminators of "dcgan" and "resnet" have it.
  `config.model.condition` names the
  modalities of the condition, `config.model.classes` is the number of classes; either
  may be nothing.

  Raises:
    ValueError: if the data set has no such modality, or it is text (discrete samples
      pass no gradient), or there is no such network or condition, or a loss asks for a
      condition that is not there.
  """
  m, loss = config.model, config.loss
  modality = only(modalities, m.modality)[m.modality]
  if modality.kind == "text":
    raise ValueError(
      f"model.modality {m.modality!r} is text; a GAN makes images, sounds"
    )
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  gen, disc = _pair(config, modality, dtype)
  encoder = _encoder(config, modalities, dtype)
  auxiliary, contrastive = (loss.get(k, 0.0) > 0 for k in ("auxiliary", "contrastive"))
  if auxiliary and not m.classes:
    raise ValueError("loss.auxiliary classifies labels: it needs model.classes")
  if contrastive and not encoder:
    raise ValueError("loss.contrastive compares with model.condition, which is empty")
  if loss.get("mismatch", 0.0) and not (encoder or m.classes):
    raise ValueError("loss.mismatch needs model.condition or model.classes")
  size = m.encoder.features if contrastive else 0
  return (
    ConditionalGenerator(gen, encoder, m.classes),
    ConditionalDiscriminator(
      disc, encoder, m.classes, m.get("projection", True), auxiliary, size
    ),
  )


class Networks(NamedTuple):
  """The networks as functions of values (not grids).

  Attributes:
    generate: (params, z, given) -> values.
    embed: (params of D, given) -> the condition as D sees it.
    judge: (params of D, values, condition) -> Verdict.
  """

  generate: Callable[[Any, Array, Given], Array]
  embed: Callable[[Any, Given], Any]
  judge: Callable[[Any, Array, Any], Verdict]


def networks(config, modalities: Modalities) -> Networks:
  """The functions of a config's networks."""
  gen, disc = build(config, modalities)
  modality = modalities[config.model.modality]
  shaped = config.model.get("net", "conv") == "conv"

  def generate(params, z, given):
    return apply(gen, params, z, given).reshape(len(z), *modality.shape)

  def judge(params, x, condition):
    x = x if shaped else as_grid(modality, x)
    return apply(disc, params, x, condition, method="judge")

  return Networks(generate, partial(apply, disc, method="embed"), judge)


def given_of(config, modalities: Modalities, batch: dict, keys=None) -> Given:
  """What the model is conditioned on of each example.

  Args:
    config: of the run.
    modalities: of the data set.
    batch: of it.
    keys: one per example, in training: each modality of the condition is hidden with
      probability `config.model.encoder.dropout`, so that every part of it, and nothing,
      is a condition that was trained.

  Raises:
    ValueError: if the data set has no such label.
  """
  label, m = None, config.model
  if m.classes:
    if m.label not in batch["labels"]:
      raise ValueError(
        f"model.label is {m.label!r}; the data set has {sorted(batch['labels'])}"
      )
    label = batch["labels"][m.label]
  names = condition_names(config)
  if not names:
    return Given(label, {}, {})
  values, rows = blank_missing(batch, {name: modalities[name] for name in names})
  if keys is not None and m.encoder.dropout:
    keep = lambda key: jax.random.bernoulli(key, 1 - m.encoder.dropout, (len(names),))
    rows &= jax.vmap(keep)(keys).T
  return Given(label, values, dict(zip(names, rows, strict=True)))


def differ(a: Given, b: Given) -> Float[Array, "b"]:
  """1 where the label, or a modality that both are told, is another in `b`."""
  other = [] if a.label is None else [a.label != b.label]
  for name, x in a.values.items():
    unlike = (x != b.values[name]).reshape(len(x), -1).any(1)
    other.append(unlike & a.mask[name] & b.mask[name])
  return jnp.stack(other).any(0).astype(jnp.float32)
