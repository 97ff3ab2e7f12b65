"""A linear-Gaussian model with the interface of a MultimodalVAE, and exact answers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from configs import common
from mmgen_jax.likelihoods import Likelihood
from mmgen_jax.steps.multimodal_bounds import Pass, make_objective

Z, N = 2, 4000
_RNG = np.random.default_rng(7)


def _orthogonal(rows):
  return np.linalg.qr(_RNG.normal(size=(rows, Z)))[0] * _RNG.uniform(0.5, 1.2, Z)


# (W, c, s) of each modality.
LINEAR = [
  (_orthogonal(k), _RNG.normal(size=k), s) for k, s in ((3, 0.8), (4, 1), (2, 0.6))
]


def experts(b, seed):
  """(means, logvars, x): what the likelihoods say of z of data drawn from the model."""
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(b, Z))
  x, means, logvars = [], [], []
  for w, c, s in LINEAR:
    x.append(z @ w.T + c + s * rng.normal(size=(b, len(c))))
    precision = (w**2).sum(0) / s**2
    means.append((x[-1] - c) @ w / s**2 / precision)
    logvars.append(np.broadcast_to(-np.log(precision), (b, Z)))
  return np.stack(means), np.stack(logvars), x


def exact_log_p(x, b, subset, private=0.0):
  """Log p(x_S) of example `b`; a private latent adds `private` times itself to x_m."""
  if not len(subset):
    return 0.0
  w, c = (np.concatenate([LINEAR[m][i] for m in subset]) for i in (0, 1))
  s = np.concatenate([np.full(len(LINEAR[m][1]), LINEAR[m][2]) for m in subset])
  of = np.repeat(np.arange(len(subset)), [len(LINEAR[m][1]) for m in subset])
  cov = w @ w.T + np.diag(s**2) + private**2 * (of[:, None] == of)
  return stats.multivariate_normal(c, cov).logpdf(
    np.concatenate([x[m][b] for m in subset])
  )


class LinearVAE(NamedTuple):
  """Modalities of LINEAR; a name is its place and number.

  A modality's private latent, the one of its place, adds `private` times itself.
  """

  names: tuple[str, ...] = ("00", "11", "22")
  latent: int = Z
  size: int = Z
  private: float = 0.0

  def likelihood(self, name):
    _, _, s = LINEAR[int(name[1:])]

    def log_prob(params, x):
      error = (x - params[..., 0]) / s
      return (-0.5 * error**2 - jnp.log(s) - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)

    return Likelihood(1, log_prob, lambda params: params[..., 0])

  def apply(self, variables, *args, method):
    del variables
    if method == "encode_jointly":  # says nothing: N(0, I)
      b = len(next(iter(args[0].values())))
      return jnp.zeros((b, Z)), jnp.zeros((b, Z))
    assert method == "decode"
    z, names = args[0], args[1] if len(args) > 1 else self.names
    out = {}
    for name in names:
      w, c, _ = LINEAR[int(name[1:])]
      out[name] = (z[:, : self.latent] @ jnp.asarray(w).T + c)[..., None]
      if self.private:
        out[name] += self.private * z[:, self.latent + int(name[0]), None, None]
    return out


def linear_pass(
  name,
  means,
  logvars,
  x,
  mask,
  *,
  copies=N,
  which=(0, 1, 2),
  private=0.0,
  learned=0.0,
  **changes,
):
  """A function -> the objective [b copies] of `copies` draws of each example.

  `learned`: the log of the squared scale of private latents' own priors.
  """
  config = common.defaults("multimodal")
  config.loss.update({"posterior": name, "beta": 1.0, "weights": {}, **changes})
  b = mask.shape[1]
  many = lambda a: jnp.repeat(jnp.asarray(a), copies, axis=1)
  names = [f"{i}{m}" for i, m in enumerate(which)]  # sorted, whatever the order
  values = {n: many(np.asarray(v)[None])[0] for n, v in zip(names, x, strict=True)}
  mask, means, logvars = many(mask), many(means), many(logvars)
  vae, params = LinearVAE(tuple(names)), {"vae": {}}
  if name == "mmvae_plus":  # one private latent each
    vae = vae._replace(size=Z + len(names), private=private)
    params["private"] = {"logvar": learned + jnp.zeros(len(names))}
    own = jnp.eye(len(names), dtype=bool)[:, None]
    wide = lambda v: jnp.broadcast_to(v, (*means.shape[:2], len(names)))
    logvars = jnp.concatenate([logvars, wide(jnp.where(own, -1.0, jnp.inf))], -1)
    means = jnp.concatenate([means, wide(jnp.where(own, 0.3, 0.0))], -1)
  keys = jax.random.split(jax.random.key(0), b * copies)
  p = Pass(config, vae, params, values, values, mask, means, logvars, keys)  # type: ignore
  return lambda: make_objective(config)(p)[0].reshape(b, copies)


class Moments(NamedTuple):
  """Mean and standard error of each example's objective over its copies."""

  mean: np.ndarray
  error: np.ndarray

  def check(self, b, want, slack=1e-3):
    got, error = self.mean[b], self.error[b]
    assert abs(got - want) < 4 * error + slack, (b, got, want, error)


def moments(objective) -> Moments:
  """Of what `linear_pass` gives."""
  values = np.asarray(jax.jit(objective)(), np.float64)
  return Moments(values.mean(1), values.std(1) / np.sqrt(values.shape[1]))
