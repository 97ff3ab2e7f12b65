"""Losses: arrays in, one value per example out, in float32."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AdversarialLoss(NamedTuple):
  """A GAN objective as two functions of discriminator logits.

  Attributes:
    discriminator: (real logits [b], fake logits [b]) -> [b], which D descends.
    generator: (fake logits [b]) -> [b], which G descends.
  """

  discriminator: Callable[[Array, Array], Float[Array, "b"]]
  generator: Callable[[Array], Float[Array, "b"]]


def _non_saturating_d(real, fake):
  return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def _hinge_d(real, fake):
  return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)


NON_SATURATING = AdversarialLoss(_non_saturating_d, lambda fake: jax.nn.softplus(-fake))
"""softplus(-D(x)) + softplus(D(G(z))), and softplus(-D(G(z))) for G.

Goodfellow et al., "Generative Adversarial Nets", 2014, section 3,
https://arxiv.org/abs/1406.2661.
"""

HINGE = AdversarialLoss(_hinge_d, lambda fake: -fake)
"""relu(1 - D(x)) + relu(1 + D(G(z))), and -D(G(z)) for G.

Lim and Ye, "Geometric GAN", 2017, https://arxiv.org/abs/1705.02894.
"""

ADVERSARIAL = {"non_saturating": NON_SATURATING, "hinge": HINGE}


def make_adversarial(name: str) -> AdversarialLoss:
  """A GAN objective by name.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in ADVERSARIAL:
    raise ValueError(f"GAN loss must be one of {sorted(ADVERSARIAL)}, got {name!r}")
  return ADVERSARIAL[name]


def gradient_penalty(
  logits: Callable[[Array], Float[Array, "b"]], x: Float[Array, "b ..."]
) -> Float[Array, "b"]:
  """||grad_x D(x)||^2 per example: R1 on real, R2 on generated examples.

  Mescheder et al., "Which Training Methods for GANs do actually Converge?", 2018,
  eq. 9, https://arxiv.org/abs/1801.04406 (there with a factor gamma / 2, left to the
  caller). `logits` must treat examples independently.
  """
  grads = jax.grad(lambda x: logits(x).astype(jnp.float32).sum())(x)
  return jnp.square(grads.astype(jnp.float32)).reshape(len(x), -1).sum(-1)


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
