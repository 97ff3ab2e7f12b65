"""What the GAN step descends: networks of a config, losses, penalties, conditions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen_jax.data.modality import Modality
from mmgen_jax.losses import (
  contrast,
  cross_entropy,
  gradient_penalty,
  make_adversarial,
)
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
from mmgen_jax.parallel import gather, roll
from mmgen_jax.steps.inputs import blank_missing, one_in, only, pair, unpair

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
      disc(disc_wide, m.classes, dtype),
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
  gives values of the modality, the others grids. `config.model.condition` names the
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


class Now(NamedTuple):
  """What a loss depends on besides parameters and examples.

  Attributes:
    step: updates done.
    gamma: twice the weight of R1 and R2.
    strength: of the augmentation.
    averages: {"real", "fake"}: moving averages of the logits, for LeCam.
    axis: of the devices, under pmap.
  """

  step: Int[Array, ""]
  gamma: Any
  strength: Any = 0.0
  averages: Any = None
  axis: str | None = None


def make_losses(config, modalities: Modalities) -> tuple[Callable, Callable]:
  """`discriminator_loss` and `generator_loss`, means over examples, and their metrics.

  Real and generated examples are pairs that share a condition; missing examples count
  for nothing. Of `config.loss`, where they are there:

  - r1_gamma, r2: R1, and R2 with the same weight gamma / 2, from one backward pass over
    one in `r1_fraction` of the pairs;
  - mismatch: weight of real examples under the condition of the example before, which
    count as generated (Reed et al., "Generative Adversarial Text to Image Synthesis",
    2016, algorithm 1, https://arxiv.org/abs/1605.05396); equal conditions do not;
  - auxiliary: weight of the classifier's cross-entropy: D's of real examples (in the
    paper of generated ones too, whose classes are wrong at first), G's of its own;
  - contrastive: weight of `mmgen_jax.losses.contrast` between an example and all
    conditions of the global batch: D's of real examples, G's of its own (Zhang et al.,
    "Cross-Modal Contrastive Learning for Text-to-Image Generation", 2021, eq. 3,
    https://arxiv.org/abs/2101.04702).
  """
  net = networks(config, modalities)
  name, loss = config.model.modality, config.loss
  auxiliary, contrastive = loss.get("auxiliary", 0.0), loss.get("contrastive", 0.0)
  mismatch, with_r2 = loss.get("mismatch", 0.0), loss.get("r2", False)

  def real_and_fake(params, batch, keys):
    values, mask = blank_missing(batch, {name: modalities[name]})
    given = given_of(config, modalities, batch, keys[:, 1])
    noise = lambda key: jax.random.normal(key, (config.model.latent,))
    fake = net.generate(params, jax.vmap(noise)(keys[:, 0]), given)
    return values[name], fake, given, mask[0].astype(jnp.float32)

  def conditional(verdict: Verdict, given: Given, mean, axis, has):
    """Weighted terms of how well examples are recognised as what was given."""
    terms = {}
    if auxiliary:
      terms["auxiliary"] = auxiliary * mean(cross_entropy(verdict.classes, given.label))
    if contrastive:
      told = jnp.stack(list(given.mask.values())).any(0) & (has > 0)
      keys, there = gather(verdict.given, axis), gather(told, axis)
      first = 0 if axis is None else jax.lax.axis_index(axis) * len(told)
      value = contrast(verdict.image, keys, first + jnp.arange(len(told)), there)
      terms["contrastive"] = contrastive * mean(jnp.where(told, value, 0.0))
    return terms

  def penalties(judge, real, fake, condition, has):
    if not loss.r1_gamma:
      return {}
    part = partial(one_in, loss.r1_fraction)  # the same in expectation, and cheaper
    real, fake, condition, has = jax.tree.map(part, (real, fake, condition, has))
    x = pair(real, fake) if with_r2 else real
    condition = jax.tree.map(pair, condition, condition) if with_r2 else condition
    slopes = gradient_penalty(lambda x: judge(x, condition).logits, x)
    each = unpair(slopes) if with_r2 else (slopes,)
    return {f"r{i}": (slope * has).mean() for i, slope in enumerate(each, 1)}

  def discriminator_loss(params, gen_params, batch, keys, now: Now):
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    real, fake, given, has = real_and_fake(gen_params, batch, keys)
    fake, mean = jax.lax.stop_gradient(fake), lambda x: (x * has).mean()
    condition = net.embed(params, given)
    judge = partial(net.judge, params)
    both = judge(pair(real, fake), jax.tree.map(pair, condition, condition))
    on_real, on_fake = unpair(both)
    adversarial = make_adversarial(loss.gan, axis=now.axis)
    versus = lambda fake: adversarial.discriminator(on_real.logits, fake)
    terms = {"d_loss": mean(versus(on_fake.logits))}
    if mismatch:
      other = jax.tree.map(partial(roll, axis=now.axis), (condition, given))
      wrong = versus(judge(real, other[0]).logits) * differ(given, other[1])
      terms["mismatch"] = mismatch * mean(wrong)
    terms |= conditional(on_real, given, mean, now.axis, has)
    slopes = penalties(judge, real, fake, condition, has)
    total = sum(terms.values()) + 0.5 * now.gamma * sum(slopes.values())
    metrics = {f"gan/{k}": v for k, v in (terms | slopes).items()}
    return total, metrics | {
      "gan/logits_real": mean(on_real.logits),
      "gan/logits_fake": mean(on_fake.logits),
      "gan/real_above_fake": mean(on_real.logits > on_fake.logits),
    }

  def generator_loss(params, disc_params, batch, keys, now: Now):
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    real, fake, given, has = real_and_fake(params, batch, keys)
    mean = lambda x: (x * has).mean()
    condition = net.embed(disc_params, given)
    on_fake = net.judge(disc_params, fake, condition)
    on_real = net.judge(disc_params, real, condition)  # only if the loss looks
    adversarial = make_adversarial(loss.gan, axis=now.axis)
    value = mean(adversarial.generator(on_fake.logits, on_real.logits))
    terms = conditional(on_fake, given, mean, now.axis, has)
    metrics = {"gan/g_loss": value} | {f"gan/g_{k}": v for k, v in terms.items()}
    return value + sum(terms.values()), metrics

  return discriminator_loss, generator_loss
