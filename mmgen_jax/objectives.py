"""Bounds on log p(x) that VAEs ascend: arrays in, one value per example out, float32.

Notation: log_px = log p(x | z) of one sample [b], kl = KL(q(z | x) || p(z)) [b], and
log_w = log p(x | z_i) + log p(z_i) - log q(z_i | x) of K samples [k b]. All in nats, all
to be maximised. What needs the whole batch (`free_bits`, `optimal_variance`) says so:
under data parallelism it takes means of the global batch. Bounds that weigh the total
correlation are in `mmgen_jax.total_correlation`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmgen_jax.losses import gaussian_log_prob


def kl_by_dimension(
  mean: Float[Array, "b z"], logvar: Float[Array, "b z"]
) -> Float[Array, "b z"]:
  """KL(N(mean, exp logvar) || N(0, 1)) of each latent: `losses.gaussian_kl`, unsummed.

  Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B,
  https://arxiv.org/abs/1312.6114.
  """
  mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
  return 0.5 * (jnp.expm1(logvar) - logvar + mean**2)


def log_weights(
  log_px: Float[Array, "*k b"],
  z: Float[Array, "*k b z"],
  mean: Float[Array, "b z"],
  logvar: Float[Array, "b z"],
  *,
  log_pz: Float[Array, "*k b"] | None = None,
) -> Float[Array, "*k b"]:
  """Log p(x | z) + log p(z) - log q(z | x) for q = N(mean, exp logvar).

  p(z) is N(0, I), but where `log_pz` says what else.

  With one sample this is the ELBO with a sampled KL: unbiased like the one with the
  analytic KL, and noisier, but where q is the exact posterior it is log p(x) for every
  z (Roeder, Wu and Duvenaud, "Sticking the Landing", 2017,
  https://arxiv.org/abs/1703.09194).
  """
  if log_pz is None:
    log_pz = gaussian_log_prob(z, 0.0, 0.0)
  return log_px.astype(jnp.float32) + log_pz - gaussian_log_prob(z, mean, logvar)


def elbo(
  log_px: Float[Array, "b"], kl: Float[Array, "b"], *, beta: float | Array = 1.0
) -> Float[Array, "b"]:
  """Log p(x | z) - beta KL: the ELBO at beta = 1, where `kl` may be sampled or exact.

  Kingma and Welling, 2014, eq. 10, https://arxiv.org/abs/1312.6114; Higgins et al.,
  "beta-VAE", 2017, eq. 4, https://openreview.net/forum?id=Sy2fzU9gl.
  """
  return log_px.astype(jnp.float32) - beta * kl


def warm_up(step: Int[Array, ""], *, steps: int) -> Float[Array, ""]:
  """A weight of the KL: linear up to 1 over so many updates; 1 throughout for 0.

  Latents that the KL would switch off before the decoder uses them stay active: Bowman
  et al., 2016, section 3.1, https://arxiv.org/abs/1511.06349; Sonderby et al., "Ladder
  Variational Autoencoders", 2016, section 2.2, https://arxiv.org/abs/1602.02282.
  """
  return jnp.minimum((step + 1.0) / max(steps, 1), 1.0)


def capacity(
  log_px: Float[Array, "b"],
  kl: Float[Array, "b"],
  *,
  gamma: float,
  target_nats: float | Array,
) -> Float[Array, "b"]:
  """Log p(x | z) - gamma |KL - C|.

  Burgess et al., "Understanding disentangling in beta-VAE", 2018, eq. 8,
  https://arxiv.org/abs/1804.03599. |.| is taken of each example's KL.
  """
  return log_px.astype(jnp.float32) - gamma * jnp.abs(kl - target_nats)


def capacity_at(
  step: Int[Array, ""], *, final_nats: float, ramp_steps: int
) -> Float[Array, ""]:
  """C of `capacity`, linear from 0 to `final_nats` over `ramp_steps`, then constant."""
  return final_nats * jnp.minimum(step / max(ramp_steps, 1), 1.0)


def free_bits(
  log_px: Float[Array, "b"], mean_kl: Float[Array, "z"], *, nats: float
) -> Float[Array, "b"]:
  """Log p(x | z) - sum_j max(nats, mean of KL_j): latents under `nats` feel no pull.

  Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow",
  2016, eq. 15, https://arxiv.org/abs/1606.04934, with one group per latent.

  Args:
    log_px: [b].
    mean_kl: of `kl_by_dimension`, over the global batch: the bound is on the mean, so
      that single examples may use less.
    nats: lambda, per latent.
  """
  return log_px.astype(jnp.float32) - jnp.maximum(mean_kl, nats).sum()


def iwae(log_w: Float[Array, "k b"]) -> Float[Array, "b"]:
  """Log (1/K) sum_i w_i: the K-sample bound; its K = 1 is the ELBO.

  Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8,
  https://arxiv.org/abs/1509.00519. The mean is over axis 0, which holds the samples of
  one example (public code has taken it over examples).
  """
  log_w = log_w.astype(jnp.float32)
  return jax.nn.logsumexp(log_w, axis=0) - jnp.log(len(log_w))


def resampled_iwae(
  log_w: Float[Array, "k b"], resampled: Float[Array, "s b"]
) -> Float[Array, "b"]:
  """A surrogate that has `iwae`'s value, and its gradient from S of the K samples.

  The gradient is the mean of d log w_i over S draws of i with probability
  v_i = w_i / sum_j w_j, whose expectation is `iwae`'s, sum_i v_i d log w_i. Backward
  passes, which cost twice what forward passes do, are then S and not K: Burda, Grosse
  and Salakhutdinov, 2016, section 3, https://arxiv.org/abs/1509.00519.

  Args:
    log_w: of all samples; no gradient is taken of it.
    resampled: log weights of the drawn ones (see `resample`), computed again so that
      gradients pass.
  """
  gradient = resampled.astype(jnp.float32).mean(0)
  return jax.lax.stop_gradient(iwae(log_w) - gradient) + gradient


def resample(
  keys: Key[Array, "b"],
  log_w: Float[Array, "k b"],
  z: Float[Array, "k b z"],
  samples: int,
) -> Float[Array, "s b z"]:
  """So many of each example's z, drawn in proportion to w, with replacement."""
  log_w = jax.lax.stop_gradient(log_w)
  draw = lambda key, w: jax.random.categorical(key, w, shape=(samples,))
  picks = jax.vmap(draw, in_axes=(0, 1), out_axes=1)(keys, log_w)
  return jnp.take_along_axis(z, picks[..., None], axis=0)


def dreg(
  log_w_model: Float[Array, "k b"], log_w_latent: Float[Array, "k b"]
) -> Float[Array, "b"]:
  """A surrogate that has `iwae`'s value and the doubly reparametrised gradient.

  With v_i = w_i / sum_j w_j: sum_i v_i d log w_i / d theta for the model, and
  sum_i v_i^2 (d log w_i / d z_i) (d z_i / d phi) for the encoder. Tucker et al.,
  "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019, eq. 8,
  https://arxiv.org/abs/1810.04152. The same expectation as `iwae`'s gradient, without
  the score function's noise, whose share grows with K.

  Args:
    log_w_model: log weights that depend on the model's (decoder's, prior's) parameters
      alone: z and q's parameters behind `stop_gradient`.
    log_w_latent: the same numbers, depending on z alone: the model's and q's parameters
      behind `stop_gradient`, z reparametrised.
  """
  log_w_model, log_w_latent = (
    x.astype(jnp.float32) for x in (log_w_model, log_w_latent)
  )
  v = jax.lax.stop_gradient(jax.nn.softmax(log_w_model, axis=0))
  gradient = (v * log_w_model + v**2 * log_w_latent).sum(0)
  value = jax.lax.stop_gradient(iwae(log_w_model) - gradient)
  return value + gradient


def vamp_log_prob(
  z: Float[Array, "*b z"], means: Float[Array, "n z"], logvars: Float[Array, "n z"]
) -> Float[Array, "*b"]:
  """Log (1/N) sum_n q(z | u_n): the mixture of the posteriors of N pseudo-inputs.

  Tomczak and Welling, "VAE with a VampPrior", 2018, eq. 9,
  https://arxiv.org/abs/1705.07120. The u_n are parameters: gradients reach them, and the
  encoder, through `means` and `logvars`.
  """
  each = gaussian_log_prob(z[..., None, :], means, logvars)
  return jax.nn.logsumexp(each, axis=-1) - jnp.log(len(means))


def optimal_variance(
  x: Float[Array, "b ..."], mean: Float[Array, "b ..."]
) -> Float[Array, ""]:
  """The variance shared by all values at which N(x; mean, variance) is most likely.

  The mean squared error, of the global batch if `parallel.pmean` is taken of it:
  Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated
  Decoders", 2021, eq. 7, https://arxiv.org/abs/2006.13202.
  """
  return jnp.square(x - mean.astype(jnp.float32)).mean()


def calibrated_log_prob(
  x: Float[Array, "b ..."],
  mean: Float[Array, "b ..."],
  variance: Float[Array, ""] | float,
  *,
  least_variance: float = 1e-6,
) -> Float[Array, "b"]:
  """Log N(x; mean, variance) per example: the decoder of a sigma-VAE.

  Rybkin et al., 2021, either learn the variance or take `optimal_variance`. Whether a
  gradient passes through the latter makes no difference: there d log p / d variance is
  zero.
  """
  shape = (len(x), -1)
  logvar = jnp.log(jnp.maximum(variance, least_variance))
  return gaussian_log_prob(
    x.reshape(shape), mean.astype(jnp.float32).reshape(shape), logvar
  )
