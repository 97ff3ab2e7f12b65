"""What the two networks of the GAN step descend: losses and penalties."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mmgen_jax.data.modality import Modality
from mmgen_jax.diffaugment import make_pipe
from mmgen_jax.losses import (
  contrast,
  cross_entropy,
  gradient_penalty,
  lecam_penalty,
  make_adversarial,
  wasserstein_penalty,
)
from mmgen_jax.models.condition import Given, Verdict
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.parallel import gather, roll
from mmgen_jax.steps.gan_networks import differ, given_of, networks
from mmgen_jax.steps.inputs import blank_missing, one_in, pair, unpair

Modalities = Mapping[str, Modality]


FIELDS = (
  "gan",
  "r1_gamma",
  "r2",
  "r1_fraction",
  "wasserstein",
  "every",
  "lecam",
  "consistency",
  "auxiliary",
  "contrastive",
  "mismatch",
)


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


def make_augment(config, modalities: Modalities) -> Callable:
  """`augment(keys, x, strength) -> x` of a batch, as `config.disc_augment` says."""
  if "disc_augment" not in config:
    return lambda keys, x, strength: x
  how, modality = config.disc_augment, modalities[config.model.modality]
  pipe = make_pipe(how.kind, how.ops.to_dict(), how.get("supersampling", 2))

  def augment(keys, x, strength):
    grids = jax.vmap(pipe, (0, 0, None))(keys, as_grid(modality, x), strength)
    return grids.reshape(x.shape)

  return augment


def make_consistency(config, modalities: Modalities) -> Callable:
  """`consistency(judge, keys, x, condition, logits, has)`: {name: weighted term}.

  weight * (D(T(x)) - D(x))^2 of real and generated examples, T the DiffAugment
  operations `config.loss.consistency.ops` at full strength: balanced consistency
  regularisation; without a weight for generated ones, the plain one. Zhao et al.,
  "Improved Consistency Regularization for GANs", 2021, eq. 1,
  https://arxiv.org/abs/2002.04724; Zhang et al., 2020, https://arxiv.org/abs/1910.12027.
  """
  how = config.loss.get("consistency", None)
  if not how or not (how.real or how.fake):
    return lambda *args: {}
  modality = modalities[config.model.modality]
  pipe = make_pipe("diffaugment", dict.fromkeys(how.ops, 1.0))

  def consistency(judge, keys, x, condition, logits, has):
    """Of real and generated examples in turn, as `pair` has them; `keys` of each."""
    grids = jax.vmap(pipe, (0, 0, None))(keys, as_grid(modality, x), 1.0)
    other = judge(grids.reshape(x.shape), condition).logits
    real, fake = unpair(jnp.square(other - logits))
    mean = lambda x: (x * has).mean()
    terms = {"consistency_real": how.real * mean(real)}
    return terms | ({"consistency_fake": how.fake * mean(fake)} if how.fake else {})

  return consistency


def make_slopes(config) -> Callable:
  """`slopes(judge, real, fake, condition, has, share, step)`: {name: mean over examples}.

  R1 and R2 (`config.loss.r1_gamma`, `r2`), from one backward pass over one in
  `r1_fraction` of the pairs; `wasserstein`, at a point between real and generated.

  With `config.loss.every` = k they are computed at every k-th update only and count k
  times as much: "lazy regularisation", Karras et al., "Analyzing and Improving the Image
  Quality of StyleGAN", 2020, section 3.1, https://arxiv.org/abs/1912.04958. Cheaper, and
  known to fail with R1 and R2 of a relativistic loss: at k = 8 it does not converge at
  all on StackedMNIST and on points in the plane (Huang et al., 2024,
  https://arxiv.org/abs/2501.05441). So k is 1 unless asked for.
  """
  loss = config.loss
  with_r2, every = loss.get("r2", False), loss.get("every", 1)
  weight, gamma = loss.get("wasserstein", 0.0), loss.r1_gamma
  if every < 1:
    raise ValueError(f"loss.every must be at least 1, got {every}")

  def now(judge, real, fake, condition, has, share):
    found = {}
    if gamma:
      part = partial(one_in, loss.r1_fraction)  # the same in expectation, and cheaper
      some = jax.tree.map(part, (real, fake, condition, has))
      x = pair(some[0], some[1]) if with_r2 else some[0]
      given = jax.tree.map(pair, some[2], some[2]) if with_r2 else some[2]
      squares = gradient_penalty(lambda x: judge(x, given).logits, x)
      each = unpair(squares) if with_r2 else (squares,)
      found |= {f"r{i}": (s * some[3]).mean() for i, s in enumerate(each, 1)}
    if weight:
      logits = lambda x: judge(x, condition).logits
      square = wasserstein_penalty(logits, real, fake, share)
      found["wasserstein"] = (square * has).mean()
    return found

  def slopes(judge, real, fake, condition, has, share, step):
    if every == 1 or not (gamma or weight):
      return now(judge, real, fake, condition, has, share)
    compute = partial(now, judge, real, fake, condition, has, share)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute))
    times = lambda: jax.tree.map(lambda x: every * x, compute())
    return jax.lax.cond(step % every == 0, times, lambda: zeros)

  return slopes


def check_fields(loss) -> None:
  """Raises ValueError for fields of `config.loss` that no term has.

  But for a fusion run's loss, which has a posterior: it may serve a GAN too.
  """
  unknown = sorted(set(loss) - set(FIELDS))
  if unknown and "posterior" not in loss:
    raise ValueError(f"a GAN's loss has no {unknown}; it has {list(FIELDS)}")


def make_losses(config, modalities: Modalities) -> tuple[Callable, Callable]:
  """`discriminator_loss` and `generator_loss`, means over examples, and their metrics.

  Real and generated examples are pairs that share a condition and an augmentation;
  missing examples count for nothing. Of `config.loss`, where they are there:

  - r1_gamma, r2, every, wasserstein: see `make_slopes`; through the augmentation, with
    respect to the example before it;
  - lecam: weight of `mmgen_jax.losses.lecam_penalty`;
  - consistency: see `make_consistency`;
  - mismatch: weight of real examples under the condition of the example before, which
    count as generated (Reed et al., "Generative Adversarial Text to Image Synthesis",
    2016, algorithm 1, https://arxiv.org/abs/1605.05396); equal conditions do not;
  - auxiliary: weight of the classifier's cross-entropy: D's of real examples (in the
    paper of generated ones too, whose classes are wrong at first), G's of its own;
  - contrastive: weight of `mmgen_jax.losses.contrast` between an example and all
    conditions of the global batch: D's of real examples, G's of its own (Zhang et al.,
    "Cross-Modal Contrastive Learning for Text-to-Image Generation", 2021, eq. 3,
    https://arxiv.org/abs/2101.04702).

  Metrics that begin with "stat/" are for the state, not for the log.

  Raises:
    ValueError: for a field of `config.loss` that is none of these; for a loss over the
      whole batch with microbatches.
  """
  check_fields(config.loss)
  average = config.loss.gan == "relativistic_average"
  if config.accumulate != 1 and (average or config.loss.get("contrastive", 0.0)):
    raise ValueError(
      "loss.gan 'relativistic_average' and loss.contrastive are over the whole batch:"
      f" accumulate must be 1, got {config.accumulate}"
    )
  net, augment = networks(config, modalities), make_augment(config, modalities)
  consistency, slopes = make_consistency(config, modalities), make_slopes(config)
  name, loss = config.model.modality, config.loss
  auxiliary, contrastive = loss.get("auxiliary", 0.0), loss.get("contrastive", 0.0)
  mismatch, lecam = loss.get("mismatch", 0.0), loss.get("lecam", 0.0)
  relative = loss.gan.startswith("relativistic")

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
      assert verdict.classes is not None and given.label is not None
      terms["auxiliary"] = auxiliary * mean(cross_entropy(verdict.classes, given.label))
    if contrastive:
      assert verdict.image is not None and verdict.given is not None
      told = jnp.stack(list(given.mask.values())).any(0) & (has > 0)
      keys, there = gather(verdict.given, axis), gather(told, axis)
      first = 0 if axis is None else jax.lax.axis_index(axis) * len(told)
      value = contrast(verdict.image, keys, first + jnp.arange(len(told)), there)
      terms["contrastive"] = contrastive * mean(jnp.where(told, value, 0.0))
    return terms

  def discriminator_loss(params, gen_params, batch, keys, now: Now):
    k = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    real, fake, given, has = real_and_fake(gen_params, batch, k)
    fake, mean = jax.lax.stop_gradient(fake), lambda x: (x * has).mean()
    condition, twice = net.embed(params, given), lambda x: jax.tree.map(pair, x, x)
    judge = partial(net.judge, params)
    under = lambda x, told: judge(augment(told[1], x, now.strength), told[0])
    seen = augment(twice(k[:, 2]), pair(real, fake), now.strength)
    both = judge(seen, twice(condition))
    on_real, on_fake = unpair(both)
    adversarial = lambda counts: make_adversarial(
      loss.gan, axis=now.axis, counts=counts
    )
    versus = lambda fake, counts: adversarial(counts).discriminator(
      on_real.logits, fake
    )
    terms = {"d_loss": mean(versus(on_fake.logits, has))}
    if mismatch:
      wrong, other = jax.tree.map(partial(roll, axis=now.axis), (condition, given))
      unlike = differ(given, other)
      value = versus(under(real, (wrong, k[:, 2])).logits, has * unlike)
      terms["mismatch"] = mismatch * mean(value * unlike)
    terms |= conditional(on_real, given, mean, now.axis, has)
    terms |= consistency(
      judge, twice(k[:, 3]), seen, twice(condition), both.logits, has
    )
    if lecam:
      a = now.averages
      value = lecam_penalty(on_real.logits, on_fake.logits, a["real"], a["fake"])
      terms["lecam"] = lecam * mean(value)
    share = jax.vmap(jax.random.uniform)(k[:, 4])
    found = slopes(under, real, fake, (condition, k[:, 2]), has, share, now.step)
    total = sum(terms.values()) + sum(
      v * (loss.wasserstein if name == "wasserstein" else 0.5 * now.gamma)
      for name, v in found.items()
    )
    above = on_real.logits - (on_fake.logits if relative else 0.0)
    return total, {f"gan/{k}": v for k, v in (terms | found).items()} | {
      "stat/above": mean(on_real.logits > on_fake.logits),
      "stat/has": has.mean(),
      "stat/real": mean(on_real.logits),
      "stat/fake": mean(on_fake.logits),
      "stat/sign": mean(jnp.sign(above)),
    }

  def generator_loss(params, disc_params, batch, keys, now: Now):
    k = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    real, fake, given, has = real_and_fake(params, batch, k)
    mean = lambda x: (x * has).mean()
    condition = net.embed(disc_params, given)
    judge = lambda x: net.judge(
      disc_params, augment(k[:, 2], x, now.strength), condition
    )
    on_fake, on_real = judge(fake), judge(real)  # the latter only if the loss looks
    adversarial = make_adversarial(loss.gan, axis=now.axis, counts=has)
    value = mean(adversarial.generator(on_fake.logits, on_real.logits))
    terms = conditional(on_fake, given, mean, now.axis, has)
    metrics = {"gan/g_loss": value} | {f"gan/g_{k}": v for k, v in terms.items()}
    return value + sum(terms.values()), metrics

  return discriminator_loss, generator_loss
