"""What latents are used for: probes, neighbours, anomalies, missing pixels, paths.

Codes [n z] are posterior means, labels [n] integers from 0. Probes and scores are NumPy
on the host; what needs a model takes its functions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mmgen_jax.likelihoods import Likelihood
from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.metrics.shared_factor import logistic_regression

standard_normal = partial(gaussian_log_prob, mean=0.0, logvar=0.0)
Codes = Float[np.ndarray, "n z"]
Labels = Int[np.ndarray, " n"]


def linear_probe(codes: Codes, labels: Labels, test_codes: Codes) -> Labels:
  """The labels that a linear classifier of the codes gives.

  Alain and Bengio, "Understanding intermediate layers using linear classifier probes",
  2016, https://arxiv.org/abs/1610.01644: multinomial logistic regression, here on codes
  of mean 0 and variance 1, with |weights|^2 / 2 as its only penalty.
  """
  codes, test_codes = (np.asarray(x, np.float64) for x in (codes, test_codes))
  mean, spread = codes.mean(0), np.maximum(codes.std(0), 1e-6)
  classes, at = np.unique(labels, return_inverse=True)
  weights = logistic_regression((codes - mean) / spread, at, len(classes))
  return classes[((test_codes - mean) / spread @ weights[:-1] + weights[-1]).argmax(1)]


def nearest_neighbours(
  codes: Codes, labels: Labels, test_codes: Codes, *, neighbours: int = 5
) -> Labels:
  """The labels most frequent among the `neighbours` nearest codes, by Euclid.

  Of labels that are equally frequent, that of the nearest code.

  Raises:
    ValueError: if there are not so many codes.
  """
  if not 1 <= neighbours <= len(codes):
    raise ValueError(f"neighbours must be 1 to {len(codes)} (codes), got {neighbours}")
  codes, test_codes = (np.asarray(x, np.float64) for x in (codes, test_codes))
  classes, at = np.unique(labels, return_inverse=True)
  out, norms = [], (codes**2).sum(1)
  for first in range(0, len(test_codes), 500):
    distance = norms - 2 * test_codes[first : first + 500] @ codes.T
    near = np.argpartition(distance, neighbours - 1, axis=1)[:, :neighbours]
    order = np.take_along_axis(distance, near, 1).argsort(1)
    votes = at[np.take_along_axis(near, order, 1)]
    counts = (votes[:, :, None] == votes[:, None]).sum(2)
    out.append(np.take_along_axis(votes, counts.argmax(1)[:, None], 1)[:, 0])
  return classes[np.concatenate(out)]


def auroc(normal: Float[np.ndarray, " n"], anomalous: Float[np.ndarray, " m"]) -> float:
  """P(an anomaly's score is above a normal one's) + P(they are equal) / 2.

  The area under the receiver operating characteristic: Hanley and McNeil, 1982,
  https://doi.org/10.1148/radiology.143.1.7063747. A score such as the negative ELBO.
  """
  normal = np.sort(np.asarray(normal, np.float64))
  below = np.searchsorted(normal, anomalous, "left")
  not_above = np.searchsorted(normal, anomalous, "right")
  return float((below + not_above).mean() / (2 * len(normal)))


def interpolate(
  a: Float[Array, "*b z"],
  b: Float[Array, "*b z"],
  steps: int,
  *,
  spherical: bool = False,
) -> Float[Array, "s *b z"]:
  """Latents on the way from a to b, both included.

  On the line, or on the great circle with norms in between (White, "Sampling Generative
  Networks", 2016, https://arxiv.org/abs/1609.04468), whose middle is as far from zero
  as samples of N(0, I) are.
  """
  t = jnp.linspace(0.0, 1.0, steps).reshape(-1, *[1] * a.ndim)
  if not spherical:
    return (1 - t) * a + t * b
  size = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  cosine = (a / size(a) * (b / size(b))).sum(-1, keepdims=True)
  angle = jnp.maximum(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)), 1e-4)
  turned = jnp.sin((1 - t) * angle) * a / size(a) + jnp.sin(t * angle) * b / size(b)
  return ((1 - t) * size(a) + t * size(b)) * turned / jnp.sin(angle)


class Imputed(NamedTuple):
  """What may stand where nothing was seen; what was seen stays.

  Attributes:
    mean: of the modes of p(x | z), over the posterior of z given what was seen: that of
      the second half of the sweeps.
    sample: the mode of p(x | z) of one z from that posterior, of the last sweep.
    effective: effective number of the last sweep's samples, 1 to `samples`.
  """

  mean: Float[Array, "b ..."]
  sample: Float[Array, "b ..."]
  effective: Float[Array, "b"]


def impute(
  key: Key[Array, ""],
  x: Float[Array, "b ..."],
  seen: Bool[Array, "b ..."],
  *,
  encode: Callable[[Array], tuple[Array, Array]],
  decode: Callable[[Array], Array],
  likelihood: Likelihood,
  log_prior: Callable[[Array], Array] = standard_normal,
  start: Float[Array, "..."] | float = 0.0,
  samples: int = 16,
  sweeps: int = 100,
) -> Imputed:
  """Missing pixels by importance resampling, iterated; traceable.

  Each sweep draws z_i from q(z | x as filled in so far), weighs them by
  p(seen x | z_i) p(z_i) / q(z_i), and fills in what one of them, drawn by weight,
  decodes to. q is thus only a proposal: what comes out is of p(z | seen x), where the
  chain of Rezende, Mohamed and Wierstra, "Stochastic Backpropagation", 2014, appendix F,
  https://arxiv.org/abs/1401.4082, takes q itself; the weights are those of Mattei and
  Frellsen, "Leveraging the Exact Likelihood of Deep Latent Variable Models", 2018,
  https://arxiv.org/abs/1802.04826.

  Args:
    key: for all that is drawn.
    x: in model space, of any content where not seen.
    seen: which values are known.
    encode: x -> mean and log variance of q(z | x) [b z].
    decode: z [n z] -> the likelihood's parameters [n ... outputs].
    likelihood: of values that are independent given z.
    log_prior: z [samples b z] -> log p(z) [samples b]; by default of N(0, I).
    start: what is filled in before the first sweep.
    samples: of z in each sweep.
    sweeps: how many times q looks at what was filled in. A chain starts far away: few
      sweeps of many samples stay there.
  """
  b, x = len(x), jnp.where(seen, x, start)

  def log_seen(out):
    """Log p(seen x | z): every value is an example of its own, then a masked sum."""
    each = likelihood.log_prob(out.reshape(-1, 1, out.shape[-1]), x.reshape(-1, 1))
    return jnp.where(seen, each.reshape(x.shape), 0.0).reshape(b, -1).sum(-1)

  def sweep(carry, at):
    (filled, total, _), (key, counts) = carry, at
    noise, pick = jax.random.split(key)
    mean, logvar = encode(filled)
    z = jax.random.normal(noise, (samples, *mean.shape))
    z = mean + jnp.exp(0.5 * logvar) * z
    out = decode(z.reshape(samples * b, -1))
    modes = likelihood.mode(out).reshape(samples, *x.shape)
    log_px = jax.vmap(log_seen)(out.reshape(samples, b, *out.shape[1:]))
    log_w = log_px + log_prior(z) - gaussian_log_prob(z, mean, logvar)
    chosen = jax.random.categorical(pick, log_w, axis=0)
    sample = jnp.where(seen, x, modes[chosen, jnp.arange(b)])
    weights = jax.nn.softmax(log_w, axis=0)
    mean = jnp.einsum("kb,kb...->b...", weights, modes)
    effective = 1.0 / (weights**2).sum(0)
    return (sample, total + counts * mean, effective), None

  first = sweeps // 2
  counts = jnp.where(jnp.arange(sweeps) >= first, 1.0 / (sweeps - first), 0.0)
  at = jax.random.split(key, sweeps), counts
  carry, _ = jax.lax.scan(sweep, (x, jnp.zeros_like(x), jnp.zeros(b)), at)
  sample, mean, effective = carry
  return Imputed(jnp.where(seen, x, mean), sample, effective)
