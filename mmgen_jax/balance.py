"""Against modality collapse: a network that learns from one modality and no other.

Masks [m b] say which modalities an example has; what is masked has no part in anything.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mmgen_jax.parallel import pmean


def modality_dropout(
  keys: Key[Array, "b"], mask: Bool[Array, "m b"], rate: float
) -> Bool[Array, "m b"]:
  """The mask with each modality of each example gone with probability `rate`.

  An example that would lose all that it has keeps all. Neverova et al., "ModDrop", 2015,
  section 3.4, https://arxiv.org/abs/1501.00102.
  """
  drop = jax.vmap(lambda k: jax.random.uniform(k, (len(mask),)) < rate)(keys).T
  kept = mask & ~drop
  return jnp.where(kept.any(0), kept, mask)


def scale_gradient(x: Array, factor: Array | float) -> Array:
  """`x`, whose gradient is multiplied by `factor`."""
  still = jax.lax.stop_gradient(x)
  return still + factor * (x - still)


def modulation(
  right: Float[Array, "m b"],
  mask: Bool[Array, "m b"],
  strength: float,
  axis: str | None = None,
) -> Float[Array, "m"]:
  """Factors [m] for the encoders' gradients: small for those that are far ahead.

  k_m = 1 - tanh(strength * r_m) where r_m > 1, else 1; r_m is the mean probability of
  the right class given modality m alone, over the mean of the other modalities'. Peng et
  al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", 2022, eq. 9-10,
  https://arxiv.org/abs/2203.15332; there for two modalities, with sums over a batch that
  has both, the output split by the rows of a concatenation's last layer where we mask the
  others, and with noise added to the gradient, which is left out.

  Args:
    right: probability of the right class given each modality alone.
    mask: which are there.
    strength: alpha of the paper; 0 leaves every gradient as it is.
    axis: of the devices that share the batch, if any.
  """
  kept = jnp.where(mask, jax.lax.stop_gradient(right), 0.0).sum(1)
  total, count = pmean((kept, mask.sum(1).astype(jnp.float32)), axis)
  score = total / jnp.maximum(count, 1e-9)
  there = (count > 0).astype(jnp.float32)
  others = (score.sum() - score) / jnp.maximum(there.sum() - there, 1.0)
  ratio = score / jnp.maximum(others, 1e-9)
  ahead = (ratio > 1.0) & (others > 0.0)
  return jnp.where(ahead, 1.0 - jnp.tanh(strength * ratio), 1.0)


def blending_weights(
  train: Float[np.ndarray, "2 k"], held_out: Float[np.ndarray, "2 k"]
) -> Float[np.ndarray, "k"]:
  """Weights of k losses, of single modalities and of their fusion, that sum to one.

  w_k ~ G_k / O_k^2, with G_k the fall of the held-out loss from the first to the second
  time, and O_k the growth of the gap between held-out and training loss: Wang, Tran and
  Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", 2020, prop. 1,
  https://arxiv.org/abs/1905.12681. A loss that did not fall gets 0.

  Args:
    train: losses at two times.
    held_out: likewise, on held-out examples.

  Raises:
    ValueError: if no held-out loss fell.
  """
  train, held_out = np.asarray(train, float), np.asarray(held_out, float)
  gain = held_out[0] - held_out[1]
  gap = (held_out - train)[1] - (held_out - train)[0]
  if not (gain > 0).any():
    raise ValueError(f"no held-out loss fell: {held_out.tolist()}")
  weights = np.maximum(gain, 0.0) / np.maximum(gap**2, 1e-8)
  return weights / weights.sum()
