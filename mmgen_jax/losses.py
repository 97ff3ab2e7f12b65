"""Losses: arrays in, one value per example out, in float32."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "b"]
softplus, relu = jax.nn.softplus, jax.nn.relu


class AdversarialLoss(NamedTuple):
  """A GAN objective as two functions of discriminator logits.

  Attributes:
    discriminator: (real logits [b], fake logits [b]) -> [b], which D descends.
    generator: (fake logits [b], real logits [b]) -> [b], which G descends. Only the
      relativistic losses look at the real ones; the others take the fake ones alone too.
  """

  discriminator: Callable[[Array, Array], Logits]
  generator: Callable[..., Logits]


def _not_relative(
  d: Callable[[Array, Array], Array], g: Callable[[Array], Array]
) -> AdversarialLoss:
  """A loss whose generator does not look at the real logits."""
  return AdversarialLoss(d, lambda fake, real=None: g(fake))


NON_SATURATING = _not_relative(
  lambda real, fake: softplus(-real) + softplus(fake), lambda fake: softplus(-fake)
)
"""softplus(-D(x)) + softplus(D(G(z))), and softplus(-D(G(z))) for G.

Goodfellow et al., "Generative Adversarial Nets", 2014, section 3,
https://arxiv.org/abs/1406.2661.
"""

HINGE = _not_relative(
  lambda real, fake: relu(1.0 - real) + relu(1.0 + fake), lambda fake: -fake
)
"""relu(1 - D(x)) + relu(1 + D(G(z))), and -D(G(z)) for G.

Lim and Ye, "Geometric GAN", 2017, https://arxiv.org/abs/1705.02894.
"""

LEAST_SQUARES = _not_relative(
  lambda real, fake: 0.5 * (jnp.square(real - 1.0) + jnp.square(fake)),
  lambda fake: 0.5 * jnp.square(fake - 1.0),
)
"""(D(x) - 1)^2 / 2 + D(G(z))^2 / 2, and (D(G(z)) - 1)^2 / 2 for G.

Mao et al., "Least Squares Generative Adversarial Networks", 2017, eq. 9,
https://arxiv.org/abs/1611.04076.
"""

WASSERSTEIN = _not_relative(lambda real, fake: fake - real, lambda fake: -fake)
"""D(G(z)) - D(x), and -D(G(z)) for G; D must be kept Lipschitz by a penalty.

Arjovsky, Chintala and Bottou, "Wasserstein GAN", 2017, https://arxiv.org/abs/1701.07875.
"""

RELATIVISTIC = AdversarialLoss(
  lambda real, fake: softplus(fake - real), lambda fake, real: softplus(real - fake)
)
"""softplus(-(D(x) - D(G(z)))), and softplus(-(D(G(z)) - D(x))) for G: RpGAN.

Each example is paired with one sample. Jolicoeur-Martineau, "The relativistic
discriminator", 2018, section 4.1, https://arxiv.org/abs/1807.00734; Huang et al., "The
GAN is dead; long live the GAN!", 2024, eq. 2, https://arxiv.org/abs/2501.05441.
"""


def _average(
  better: Array, worse: Array, axis: str | None = None, counts: Array | None = None
) -> Logits:
  counts = jnp.ones_like(better) if counts is None else counts
  total = lambda x: x.sum() if axis is None else jax.lax.psum(x.sum(), axis)
  mean = lambda x: total(x * counts) / jnp.maximum(total(counts), 1.0)
  return softplus(mean(worse) - better) + softplus(worse - mean(better))


RELATIVISTIC_AVERAGE = AdversarialLoss(_average, _average)
"""softplus(-(D(x) - E D(G(z)))) + softplus(D(G(z)) - E D(x)), the converse for G: RaGAN.

Jolicoeur-Martineau, 2018, section 4.2, https://arxiv.org/abs/1807.00734. The means are
those of the logits given, of all devices' where `make_adversarial` is told the axis,
and only of the pairs that count where it is told which do.
"""

ADVERSARIAL = {
  "non_saturating": NON_SATURATING,
  "hinge": HINGE,
  "least_squares": LEAST_SQUARES,
  "wasserstein": WASSERSTEIN,
  "relativistic": RELATIVISTIC,
  "relativistic_average": RELATIVISTIC_AVERAGE,
}
RELATIVE = ("relativistic", "relativistic_average")


def make_adversarial(
  name: str,
  *,
  axis: str | None = None,
  counts: Float[Array, "b"] | None = None,
  paired: bool = True,
) -> AdversarialLoss:
  """A GAN objective by name.

  Args:
    name: of `ADVERSARIAL`.
    axis: that of the devices, under pmap.
    counts: 1 or 0, the pairs of which a loss takes means; None: all.
    paired: whether the generator is told the logits of real examples.

  Raises:
    ValueError: for an unknown name, or for a relativistic loss where the generator is
      not told the logits of real examples (`paired` is false).
  """
  names = [n for n in sorted(ADVERSARIAL) if paired or n not in RELATIVE]
  if name not in names:
    raise ValueError(f"GAN loss must be one of {names} here, got {name!r}")
  if name == "relativistic_average":
    return AdversarialLoss(*[partial(_average, axis=axis, counts=counts)] * 2)
  return ADVERSARIAL[name]


def cross_entropy(
  logits: Float[Array, "b k"], label: Int[Array, "b"]
) -> Float[Array, "b"]:
  """-log softmax(logits)[label]."""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(logp, label[:, None], 1)[:, 0]


def contrast(
  queries: Float[Array, "b d"],
  keys: Float[Array, "n d"],
  own: Int[Array, "b"],
  there: Bool[Array, "n"],
  *,
  temperature: float = 0.1,
) -> Float[Array, "b"]:
  """-log softmax_j(cos(q_i, k_j) / temperature) at j = own_i, over the j that are there.

  van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive
  Coding", 2018, eq. 4, https://arxiv.org/abs/1807.03748; of unit vectors, as in Zhang et
  al., "Cross-Modal Contrastive Learning for Text-to-Image Generation", 2021, eq. 3,
  https://arxiv.org/abs/2101.04702. Keys are those of all devices; two that are equal
  are each other's negatives.
  """

  def unit(x):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)

  logits = unit(queries) @ unit(keys).T / temperature
  mine = jnp.arange(len(keys)) == own[:, None]
  return cross_entropy(jnp.where(there | mine, logits, -jnp.inf), own)


def gradient_penalty(
  logits: Callable[[Array], Logits], x: Float[Array, "b ..."]
) -> Float[Array, "b"]:
  """||grad_x D(x)||^2 per example: R1 on real, R2 on generated examples.

  Mescheder et al., "Which Training Methods for GANs do actually Converge?", 2018,
  eq. 9, https://arxiv.org/abs/1801.04406 (there with a factor gamma / 2, left to the
  caller). `logits` must treat examples independently.
  """
  return logits_and_penalty(logits, x)[1]


def logits_and_penalty(
  logits: Callable[[Array], Logits], x: Float[Array, "b ..."]
) -> tuple[Logits, Float[Array, "b"]]:
  """`logits(x)`, and `gradient_penalty(logits, x)` from the same forward pass.

  With real and generated examples together in x, R1 and R2 cost one backward pass.
  """
  value, pullback = jax.vjp(lambda x: logits(x).astype(jnp.float32), x)
  (slope,) = pullback(jnp.ones_like(value))
  return value, jnp.square(slope.astype(jnp.float32)).reshape(len(x), -1).sum(-1)


def wasserstein_penalty(
  logits: Callable[[Array], Logits],
  real: Float[Array, "b ..."],
  fake: Float[Array, "b ..."],
  share: Float[Array, "b"],
) -> Float[Array, "b"]:
  """(||grad D(s x + (1 - s) G(z))|| - 1)^2 per example, with s = `share` ~ U(0, 1).

  Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, eq. 3,
  https://arxiv.org/abs/1704.00028.
  """
  share = share.reshape(-1, *[1] * (real.ndim - 1))
  square = gradient_penalty(logits, share * real + (1.0 - share) * fake)
  # The root has no gradient at 0, where a discriminator that starts at zero is.
  return jnp.square(jnp.sqrt(jnp.maximum(square, 1e-12)) - 1.0)


def lecam_penalty(
  real: Logits, fake: Logits, mean_real: Array | float, mean_fake: Array | float
) -> Float[Array, "b"]:
  """(D(x) - mean_fake)^2 + (D(G(z)) - mean_real)^2, of moving averages of the logits.

  Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data", 2021,
  eq. 5, https://arxiv.org/abs/2104.03310.
  """
  return jnp.square(real - mean_fake) + jnp.square(fake - mean_real)


def gaussian_kl(
  mean: Float[Array, "b z"],
  logvar: Float[Array, "b z"],
  other_mean: Float[Array, "b z"] | float = 0.0,
  other_logvar: Float[Array, "b z"] | float = 0.0,
) -> Float[Array, "b"]:
  """KL(N(mean, exp logvar) || N(other_mean, exp other_logvar)) in nats, per example.

  Diagonal Gaussians; the default other is N(0, I): Kingma and Welling, "Auto-Encoding
  Variational Bayes", 2014, appendix B, https://arxiv.org/abs/1312.6114.
  """
  mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
  square = jnp.square(mean - other_mean) * jnp.exp(-jnp.asarray(other_logvar))
  ratio = logvar - other_logvar
  return 0.5 * (jnp.exp(ratio) - 1.0 - ratio + square).sum(-1)


def gaussian_log_prob(
  z: Float[Array, "*b z"],
  mean: Float[Array, "*b z"] | float,
  logvar: Float[Array, "*b z"] | float,
) -> Float[Array, "*b"]:
  """Log N(z; mean, exp logvar), diagonal, in nats."""
  logvar = jnp.asarray(logvar, jnp.float32)
  square = jnp.square(z - mean) * jnp.exp(-logvar)
  return -0.5 * (square + logvar + jnp.log(2 * jnp.pi)).sum(-1)
