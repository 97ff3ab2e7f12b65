"""Bounds on log p(x) that weigh the total correlation of the latents by itself.

Notation as in `mmgen_jax.objectives`; q(z) is the mean of q(z | x) over the training
set, and its total correlation KL(q(z) || prod_j q(z_j)). Both ways of estimating it here
need the global batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.objectives import elbo


class Decomposition(NamedTuple):
  """A sampled KL(q(z | x) || p(z)) as a sum of three terms, per example."""

  mutual_information: Float[Array, "b"]  # log q(z | x) - log q(z)
  total_correlation: Float[Array, "b"]  # log q(z) - log prod_j q(z_j)
  dimension_kl: Float[Array, "b"]  # log prod_j q(z_j) - log p(z)


def stratified_log_weights(
  own: Int[Array, "b"], batch: int, examples: int
) -> Float[Array, "b n"]:
  """Logs of the weights with which minibatch stratified sampling averages q(z | x_n).

  With M = batch - 1: 1 / N for the example that z is from, (N - M) / (N M) for one
  other, 1 / M for the rest. Unbiased for q(z) over minibatches drawn without
  replacement. Chen et al., 2018, appendix C.2, https://arxiv.org/abs/1802.04942.

  Args:
    own: each z's example, by its place in the global batch.
    batch: the size of the global batch, 2 at least, `examples` at most.
    examples: N, the size of the training set.

  Raises:
    ValueError: if the sizes are not such.
  """
  if not 2 <= batch <= examples:
    raise ValueError(
      f"stratified sampling takes a batch of 2 to {examples} examples, got {batch}"
    )
  m = batch - 1
  offset = (jnp.arange(batch) - own[:, None]) % batch
  other = (examples - m) / (examples * m)
  weights = jnp.where(offset == 0, 1 / examples, jnp.where(offset == 1, other, 1 / m))
  return jnp.log(weights)


def decompose_kl(
  z: Float[Array, "b z"],
  means: Float[Array, "n z"],
  logvars: Float[Array, "n z"],
  own: Int[Array, "b"],
  *,
  examples: int,
  stratified: bool = True,
) -> Decomposition:
  """Mutual information, total correlation and dimension-wise KL of z ~ q(z | x).

  Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", 2018,
  eqs. 2 and S6, https://arxiv.org/abs/1802.04942. q(z) and q(z_j) are estimated from
  the minibatch. Under data parallelism `means` and `logvars` are those of the *global*
  batch (`parallel.gather`), z and `own` a device's: an estimate from a device's part
  alone would depend on the number of devices.

  Args:
    z: one sample per example.
    means: of q(z | x) of the global batch.
    logvars: of q(z | x) of the global batch.
    own: where `means` holds each z's own posterior.
    examples: N, the size of the training set.
    stratified: stratified sampling, else weighted: log q(z) =
      log 1 / (N n) sum_i q(z | x_i), low by up to log N.
  """
  n = len(means)
  # Each latent is a Gaussian of one dimension: [b n z].
  each = gaussian_log_prob(z[:, None, :, None], means[..., None], logvars[..., None])
  if stratified:
    log_weight = stratified_log_weights(own, n, examples)
  else:
    log_weight = jnp.full((len(z), n), -jnp.log(float(examples * n)))
  log_qz = jax.nn.logsumexp(log_weight + each.sum(-1), axis=1)
  log_product = jax.nn.logsumexp(log_weight[..., None] + each, axis=1).sum(-1)
  log_conditional = jnp.take_along_axis(each.sum(-1), own[:, None], axis=1)[:, 0]
  return Decomposition(
    log_conditional - log_qz,
    log_qz - log_product,
    log_product - gaussian_log_prob(z, 0.0, 0.0),
  )


def beta_tc(
  log_px: Float[Array, "b"],
  parts: Decomposition,
  *,
  weights: Sequence[float] = (1.0, 6.0, 1.0),
) -> Float[Array, "b"]:
  """Log p(x | z) - alpha MI - beta TC - gamma KL_dimensions; at (1, 1, 1) the ELBO.

  Chen et al., 2018, eq. 4, https://arxiv.org/abs/1802.04942.
  """
  pull = sum(w * part for w, part in zip(weights, parts, strict=True))
  return log_px.astype(jnp.float32) - pull


def factor(
  log_px: Float[Array, "b"],
  kl: Float[Array, "b"],
  ratio_logits: Float[Array, "b"],
  *,
  gamma: float,
) -> Float[Array, "b"]:
  """Log p(x | z) - KL - gamma log (D(z) / (1 - D(z))), the last estimating the TC.

  Kim and Mnih, "Disentangling by Factorising", 2018, eqs. 2 and 3,
  https://arxiv.org/abs/1802.05983. `ratio_logits` are the logits of D, which
  `density_ratio_loss` trains.
  """
  return elbo(log_px, kl) - gamma * ratio_logits


def permute_latents(key: Key[Array, ""], z: Float[Array, "n z"]) -> Float[Array, "n z"]:
  """Each latent shuffled over the global batch by itself: z ~ prod_j q(z_j).

  Kim and Mnih, 2018, algorithm 1. The same key gives the same shuffle on every device,
  so under data parallelism: gather z, permute, keep one's own rows.
  """
  keys = jax.random.split(key, z.shape[1])
  return jax.vmap(jax.random.permutation, in_axes=(0, 1), out_axes=1)(keys, z)


def density_ratio_loss(
  joint_logits: Float[Array, "b"], permuted_logits: Float[Array, "b"]
) -> Float[Array, "b"]:
  """-(log D(z) + log (1 - D(z permuted))) / 2, which the discriminator descends.

  Kim and Mnih, 2018, algorithm 2, with one logit in the place of two.
  """
  joint, permuted = (x.astype(jnp.float32) for x in (joint_logits, permuted_logits))
  return 0.5 * (jax.nn.softplus(-joint) + jax.nn.softplus(permuted))
