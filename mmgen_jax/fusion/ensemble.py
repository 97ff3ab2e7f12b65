"""Ensembles of trained networks: generators, discriminators, classifiers, posteriors.

Members are alike and stacked: `stack` puts their parameters on a first axis, over which
`jax.vmap` runs them. What they say ([k b ...]) is then combined by pure functions, and an
ensemble can be distilled into one network. None of it averages weights: see `weight`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mmgen_jax.fusion.model import Gaussian, pool
from mmgen_jax.fusion.weight import check_alike


def stack(trees: Sequence[PyTree]) -> PyTree:
  """One tree with members on a first axis, for `jax.vmap`.

  Raises:
    ValueError: if the trees are unlike, or not finite.
  """
  check_alike(trees)
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def members(apply: Callable, stacked: PyTree, *inputs) -> PyTree:
  """What every member makes of the same inputs, [k b ...]."""
  return jax.vmap(lambda params: apply(params, *inputs))(stacked)


def mixture_sample(
  generate: Callable[..., Array],
  stacked: PyTree,
  keys: Key[Array, "b"],
  z: Float[Array, "b z"],
  weights: Float[Array, "k"] | None = None,
) -> tuple[Float[Array, "b ..."], Int[Array, "b"]]:
  """Samples of the mixture sum_k w_k p_k(x), and which member each is from.

  A member is drawn per example, at random; every member computes every example, so that
  it is one compiled program. Ensembles of GANs cover modes that single ones miss (Wang
  et al., "Ensembles of Generative Adversarial Networks", 2016,
  https://arxiv.org/abs/1612.00991).

  Args:
    generate: (params, z) -> [b ...].
    stacked: from `stack`.
    keys: one per example.
    z: noise.
    weights: of the members, of sum 1; equal if None.
  """
  made = members(generate, stacked, z)
  k = len(made)
  logits = jnp.zeros(k) if weights is None else jnp.log(jnp.asarray(weights))
  choice = jax.vmap(lambda key: jax.random.categorical(key, logits))(keys)
  return made[choice, jnp.arange(len(keys))], choice


def average_logits(logits: Float[Array, "k b ..."]) -> Float[Array, "b ..."]:
  """The mean logit: of classifiers, the normalised geometric mean of probabilities.

  Of discriminators, the mean of log density ratios. Hinton, "Training products of
  experts by minimizing contrastive divergence", 2002.
  """
  return logits.mean(0)


def average_probabilities(logits: Float[Array, "k b c"]) -> Float[Array, "b c"]:
  """Log of the mean of members' probabilities: the mixture of classifiers.

  Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
  Deep Ensembles", 2017, https://arxiv.org/abs/1612.01474.
  """
  log_p = jax.nn.log_softmax(logits, axis=-1)
  return jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(logits))


def average_discriminators(
  logits: Float[Array, "k b"], *, kind: str = "logit"
) -> Float[Array, "b"]:
  """One logit from several discriminators.

  "logit": the mean. "probability": the logit of the mean probability of being real,
  computed from softplus alone, so that it is exact where probabilities round to 0 or 1:
  log sum_k sigmoid(l_k) - log sum_k sigmoid(-l_k). "hardest": a soft maximum over
  members, log mean_k exp(l_k) (Durugkar et al., "Generative Multi-Adversarial Networks",
  2017, https://arxiv.org/abs/1611.01673, have softmax-weighted means).

  Raises:
    ValueError: for another kind.
  """
  if kind == "logit":
    return average_logits(logits)
  if kind == "probability":
    real, fake = -jax.nn.softplus(-logits), -jax.nn.softplus(logits)
    return jax.nn.logsumexp(real, axis=0) - jax.nn.logsumexp(fake, axis=0)
  if kind == "hardest":
    return jax.nn.logsumexp(logits, axis=0) - jnp.log(len(logits))
  raise ValueError(f"kind must be 'logit', 'probability' or 'hardest', got {kind!r}")


def product_of_posteriors(
  means: Float[Array, "k b z"],
  logvars: Float[Array, "k b z"],
  mask: Bool[Array, "k b"] | None = None,
) -> Gaussian:
  """q(z) ~ p(z)^(1 - n) prod_k q_k(z), p(z) = N(0, I): posteriors of separate models.

  Each posterior holds the prior once, so the product of n of them holds it n - 1 times
  too often: in natural parameters T = 1 + sum_k (T_k - 1). It is Bayes' rule where what
  the models see is independent given z, for models that share p(z) and the meaning of
  z. Where a T_k below 1 (a posterior broader than the prior) would leave no precision,
  T is held at 1e-3.
  Cao and Fleet, "Generalized Product of Experts", 2014, https://arxiv.org/abs/1410.7827;
  Wu and Goodman, 2018, section 2.2, https://arxiv.org/abs/1802.05335, there with q_k
  divided by the prior beforehand.

  Args:
    means: of the posteriors.
    logvars: of the posteriors.
    mask: which of them count, per example; all if None.
  """
  mask = jnp.ones(means.shape[:2], bool) if mask is None else mask
  precision, weighted = pool(means, logvars, mask)
  count = mask.sum(0)[:, None]
  total = jnp.maximum(1.0 + precision - count, 1e-3)
  return weighted / total, -jnp.log(total)


def mixture_of_posteriors(
  keys: Key[Array, "b"],
  means: Float[Array, "k b z"],
  logvars: Float[Array, "k b z"],
  mask: Bool[Array, "k b"] | None = None,
) -> tuple[Gaussian, Int[Array, "b"]]:
  """One component of (1 / n) sum_k q_k(z), and whose it is; N(0, I) where n = 0.

  Shi et al., "Variational Mixture-of-Experts Autoencoders", 2019, section 3,
  https://arxiv.org/abs/1911.03393.
  """
  mask = jnp.ones(means.shape[:2], bool) if mask is None else mask
  logits = jnp.where(mask, 0.0, -jnp.inf).T
  none = ~mask.any(0)
  logits = jnp.where(none[:, None], 0.0, logits)
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  rows = jnp.arange(len(choice))
  pick = lambda x: jnp.where(none[:, None], 0.0, x[choice, rows])
  return (pick(means), pick(logvars)), choice


def distillation_loss(
  student: Float[Array, "b c"],
  teachers: Float[Array, "k b c"],
  *,
  temperature: float = 1.0,
) -> Float[Array, "b"]:
  """T^2 KL(mean_k p_k^(1/T) || q^(1/T)), of classifiers, in nats.

  Both sides are softened by the temperature, the teachers' probabilities are averaged.
  Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
  https://arxiv.org/abs/1503.02531 (there the cross-entropy, which differs by a
  constant; T^2 keeps gradients in scale).
  """
  target = jax.lax.stop_gradient(average_probabilities(teachers / temperature))
  log_q = jax.nn.log_softmax(student / temperature, axis=-1)
  return temperature**2 * (jnp.exp(target) * (target - log_q)).sum(-1)


def posterior_distillation_loss(
  student: Gaussian,
  means: Float[Array, "k b z"],
  logvars: Float[Array, "k b z"],
) -> Float[Array, "b"]:
  """KL(mixture of q_k || student) up to the mixture's entropy: moments are matched.

  Of all Gaussians the one with the mixture's mean and variance has the least KL from
  it, so this is KL(N(m, v) || student), m and v the mixture's moments, by dimension
  (Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.7).
  """
  mean = means.mean(0)
  variance = jnp.exp(logvars).mean(0) + means.var(0)
  mean, variance = jax.lax.stop_gradient((mean, variance))
  s_mean, s_logvar = student
  ratio = (variance + (mean - s_mean) ** 2) * jnp.exp(-s_logvar)
  return 0.5 * (ratio - 1.0 - jnp.log(variance) + s_logvar).sum(-1)
