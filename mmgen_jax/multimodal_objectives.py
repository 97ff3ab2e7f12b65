"""Objectives of multimodal VAEs: arrays in, nats per example out, to be maximised.

Notation: m modalities, b examples, s subsets, k samples of z. `present` [m b] says what
an example has; log_px is log p(x_m | z), and of a modality that is not there it may hold
anything, NaN too. Every objective of an example that lacks a modality is the objective
of the paper for the modalities that it has, as if the others did not exist (JMVAE alone
is not defined for it: zero). An example that has nothing counts zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmgen_jax.losses import gaussian_kl

stop = jax.lax.stop_gradient
NEVER = -1e9  # a log-probability; -inf has no gradient


def total(
  log_px: Float[Array, "*s m b"], present: Bool[Array, "*s m b"]
) -> Float[Array, "*s b"]:
  """Sum over the modalities that are there."""
  return jnp.where(present, log_px, 0.0).astype(jnp.float32).sum(-2)


def mean_over(x: Float[Array, "s *k b"], valid: Bool[Array, "s b"]):
  """Mean over the first axis of what is valid, [*k b]; zero where nothing is."""
  valid = valid.reshape(len(x), *[1] * (x.ndim - 2), -1)
  count = jnp.maximum(valid.sum(0), 1)
  return jnp.where(valid, x, 0.0).astype(jnp.float32).sum(0) / count


def mixture_log_prob(
  log_q: Float[Array, "s *k b"], valid: Bool[Array, "s b"]
) -> Float[Array, "*k b"]:
  """Log (1/|S|) sum_s q_s(z) over the components that are valid."""
  valid = valid.reshape(len(log_q), *[1] * (log_q.ndim - 2), -1)
  summed = jax.nn.logsumexp(jnp.where(valid, log_q, NEVER), axis=0)
  return summed - jnp.log(jnp.maximum(valid.sum(0), 1))


def mvae(
  log_px: Float[Array, "s m b"],
  kl: Float[Array, "s b"],
  given: Bool[Array, "s m b"],
  *,
  beta: float = 1.0,
) -> Float[Array, "b"]:
  """sum_s (sum_{m in s} log p(x_m | z_s) - beta KL(q_s || p)): sub-sampled ELBOs.

  Wu and Goodman, "Multimodal Generative Models for Scalable Weakly-Supervised
  Learning", 2018, eq. 5, https://arxiv.org/abs/1802.05335: the subsets are everything,
  every modality alone, and some at random.

  Args:
    log_px: from the z of each subset.
    kl: of each subset's product of experts, N(0, I) among them.
    given: the subsets, cut down to what each example has; one that is empty counts zero.
    beta: weight of the KL.
  """
  return jnp.where(given.any(1), total(log_px, given) - beta * kl, 0.0).sum(0)


def log_weights(
  log_px: Float[Array, "*s m b"],
  present: Bool[Array, "m b"],
  log_prior: Float[Array, "*s b"],
  log_q: Float[Array, "*s b"],
  *,
  beta: float = 1.0,
) -> Float[Array, "*s b"]:
  """sum_m log p(x_m | z) + beta (log p(z) - log q(z)), of samples of z."""
  return total(log_px, present) + beta * (log_prior - log_q)


def stratified_elbo(
  log_w: Float[Array, "m k b"], present: Bool[Array, "m b"]
) -> Float[Array, "b"]:
  """(1/M) sum_m (1/K) sum_k log w_mk, z_mk ~ q(z | x_m), log q that of the mixture.

  Shi et al., "Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
  Generative Models", 2019, eq. 4, https://arxiv.org/abs/1911.03393.
  """
  return mean_over(log_w.mean(1), present)


def stratified_iwae(
  log_w: Float[Array, "m k b"], present: Bool[Array, "m b"], *, looser: bool = True
) -> Float[Array, "b"]:
  """(1/M) sum_m log (1/K) sum_k w_mk; or, not `looser`, log of the mean of all M K.

  Shi et al., 2019, eq. 5; they train on the looser one, which makes every expert answer
  for itself.
  """
  k = log_w.shape[1]
  if looser:
    return mean_over(jax.nn.logsumexp(log_w, axis=1) - jnp.log(k), present)
  value = mixture_log_prob(jax.nn.logsumexp(log_w, axis=1), present) - jnp.log(k)
  return jnp.where(present.any(0), value, 0.0)


def stratified_dreg(
  log_w_model: Float[Array, "m k b"],
  log_w_latent: Float[Array, "m k b"],
  responsibility: Float[Array, "m k b"],
  log_q_others: Float[Array, "m k b"],
  present: Bool[Array, "m b"],
  *,
  beta: float = 1.0,
  looser: bool = True,
) -> Float[Array, "b"]:
  """A surrogate: the value of `stratified_iwae`, a doubly reparametrised gradient.

  With the normalised weights v, log w = A + beta (log p - log q), q = (1/M) sum_j q_j and
  r = q_m / (M q), the gradient for expert m of the sample z_mk that it drew has a score
  function, -beta v r d log q_m; in expectation that is -beta d(v r)/dz dz_mk, which
  leaves (v - beta r (v - v^2)) d log w/dz - beta v dr/dz. The scores of the other
  experts cannot be taken away like this, since it was not they who drew z_mk, and stay:
  after Tucker et al., 2019, https://arxiv.org/abs/1810.04152, and Bauer and Mnih,
  "Generalized Doubly Reparameterized Gradient Estimators", 2021,
  https://arxiv.org/abs/2101.11046. With one expert it is `objectives.dreg`. (Shi et al.
  use v^2 for a mixture too and drop the others' scores, which is biased.)

  Args:
    log_w_model: log weights that depend on the model alone: z and q behind a stop.
    log_w_latent: that depend on z alone: the model and q's parameters behind a stop.
    responsibility: r, that depends on z alone.
    log_q_others: log q(z_mk), through all experts but m alone: z behind a stop.
    present: [m b].
    beta: in the weights.
    looser: see `stratified_iwae`.
  """
  keep = present[:, None]
  if looser:
    v = jax.nn.softmax(log_w_model, axis=1) / jnp.maximum(present.sum(0), 1)
    within = jax.nn.softmax(log_w_model, axis=1)
  else:
    v = jax.nn.softmax(jnp.where(keep, log_w_model, NEVER), axis=(0, 1))
    within = v
  v, within = stop(jnp.where(keep, v, 0.0)), stop(within)
  on_z = v * (1.0 - beta * stop(responsibility) * (1.0 - within))
  gradient = v * (log_w_model - beta * (responsibility + log_q_others))
  gradient += on_z * log_w_latent
  gradient = jnp.where(keep, gradient, 0.0).sum((0, 1))
  value = stratified_iwae(stop(log_w_model), present, looser=looser)
  return stop(value - gradient) + gradient


def mopoe(
  log_px: Float[Array, "m b"],
  kl: Float[Array, "s b"],
  present: Bool[Array, "m b"],
  possible: Bool[Array, "s b"],
  *,
  beta: float = 1.0,
) -> Float[Array, "b"]:
  """sum_m log p(x_m | z) - beta mean_s KL(q_s || p), z from a random subset's q_s.

  The KLs are of all `possible` subsets: those of what an example has. Sutter, Daunhawer
  and Vogt, "Generalized Multimodal ELBO", 2021, eq. 8, https://arxiv.org/abs/2105.02470.
  """
  return total(log_px, present) - beta * mean_over(kl, possible)


def jensen_shannon(
  means: Float[Array, "m b z"], logvars: Float[Array, "m b z"], present
) -> Float[Array, "b"]:
  """sum_m pi KL(q_m || f) + pi KL(p || f), f ~ (p prod_m q_m)^pi, pi = 1 / (M + 1).

  The divergence of mmJSD, with the geometric mean f of the experts and p = N(0, I) as
  its dynamic prior: Sutter, Daunhawer and Vogt, "Multimodal Generative Learning
  Utilizing Jensen-Shannon-Divergence", 2020, eqs. 6 and 10,
  https://arxiv.org/abs/2006.08242. The objective is the reconstruction less this: no
  bound on log p(x) with N(0, I) as the prior, whose divergence may be larger.
  """
  keep = present[..., None]
  means, logvars = (jnp.where(keep, x, 0.0) for x in (means, logvars))
  precision = jnp.where(keep, jnp.exp(-logvars), 0.0)
  share = 1.0 / (1.0 + present.sum(0))  # [b]
  whole = 1.0 + precision.sum(0)
  mean, logvar = (precision * means).sum(0) / whole, -jnp.log(whole * share[:, None])
  each = jnp.where(present, gaussian_kl(means, logvars, mean, logvar), 0.0)
  of_prior = gaussian_kl(jnp.zeros_like(mean), jnp.zeros_like(mean), mean, logvar)
  return share * (each.sum(0) + of_prior)


def mvtcae(
  log_px: Float[Array, "m b"],
  kl_prior: Float[Array, "b"],
  kl_experts: Float[Array, "m b"],
  present: Bool[Array, "m b"],
  *,
  alpha: float = 5 / 6,
  beta: float = 1.0,
) -> Float[Array, "b"]:
  """(M - a)/M log p(x | z) - beta (a/M sum_m KL(q || q_m) + (1 - a) KL(q || p)).

  q is the product of the experts with no prior among them. Hwang et al., "Multi-View
  Representation Learning via Total Correlation Objective", 2021, eq. 10,
  https://openreview.net/forum?id=1lCR45NBvJB. M counts what an example has.
  """
  m = jnp.maximum(present.sum(0), 1)
  kls = alpha / m * total(kl_experts, present) + (1 - alpha) * kl_prior
  bound = (m - alpha) / m * total(log_px, present) - beta * kls
  return jnp.where(present.any(0), bound, 0.0)


def jmvae(
  log_px: Float[Array, "m b"],
  kl_prior: Float[Array, "b"],
  kl_experts: Float[Array, "m b"],
  present: Bool[Array, "m b"],
  *,
  alpha: float = 0.1,
  beta: float = 1.0,
) -> Float[Array, "b"]:
  """Log p(x | z) - beta (KL(q || p) + alpha sum_m KL(q || q_m)), q by a joint encoder.

  Suzuki, Nakayama and Matsuo, "Joint Multimodal Learning with Deep Generative Models",
  2016, eq. 9 (JMVAE-kl), https://arxiv.org/abs/1611.01891. The joint encoder is of whole
  examples, so one that lacks a modality counts zero.
  """
  kls = kl_prior + alpha * total(kl_experts, present)
  bound = total(log_px, present) - beta * kls
  return jnp.where(present.all(0), bound, 0.0)
