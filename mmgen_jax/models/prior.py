"""Priors p(z) that are learned with the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.models.layers import embed_init


class MixturePrior(nn.Module):
  """A mixture of `components` learned diagonal Gaussians; N(0, I) when it is one.

  With attributes that are discrete, what encoders produce is a set of clusters, and a
  single N(0, I) has most of its mass between them: samples "from the prior" then belong
  to no cluster. A learned mixture closes that gap. Compare the mixture prior of Tomczak
  and Welling, "VAE with a VampPrior", 2018, https://arxiv.org/abs/1705.07120, whose
  components are encodings of learned pseudo-inputs; here they are free.
  """

  latent: int
  components: int = 1

  def setup(self):
    k, z = self.components, self.latent
    if k > 1:
      # Broad and close together: components that start apart die before they are used.
      self.means = self.param("means", lambda *a: 0.3 * z**0.5 * embed_init(*a), (k, z))
      self.logvars = self.param("logvars", nn.initializers.zeros, (k, z))
      self.logits = self.param("logits", nn.initializers.zeros, (k,))

  def log_prob(self, z: Float[Array, "b z"]) -> Float[Array, "b"]:
    """log p(z) in nats."""
    if self.components == 1:
      return gaussian_log_prob(z, 0.0, jnp.zeros(()))
    logp = gaussian_log_prob(z[:, None], self.means, self.logvars)  # [b k]
    return jax.nn.logsumexp(logp + jax.nn.log_softmax(self.logits), axis=-1)

  def sample(self, keys: Key[Array, "b"]) -> Float[Array, "b z"]:
    """One z per key."""
    normal = lambda key: jax.random.normal(key, (self.latent,))
    if self.components == 1:
      return jax.vmap(normal)(keys)

    def one(key):
      pick, noise = jax.random.split(key)
      k = jax.random.categorical(pick, self.logits)
      return self.means[k] + jnp.exp(0.5 * self.logvars[k]) * normal(noise)

    return jax.vmap(one)(keys)
