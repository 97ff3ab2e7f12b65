"""Densities of latents: coupling flows, Gaussian mixtures, and how to fit them.

As a prior that is trained with a VAE (the flow), or fitted to what a trained VAE's
encoder gives and sampled from in the prior's place: the mean of the posteriors is
seldom N(0, I), and what lies between decodes to nothing (Ghosh et al., "From Variational
to Deterministic Autoencoders", 2020, section 4, https://arxiv.org/abs/1903.12436).

A density is a dict of arrays, so that it travels with a model's parameters: a mixture's
"logits" [k], "means" [k z] and "factors", lower triangles [k z z] or standard
deviations [k z]; a flow's "flow", and "shift" and "scale" [z] where it was fitted.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Key

from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.models.layers import apply, init_params

SAMPLERS = ("prior", "mixture", "diagonal_mixture", "flow", "vamp")


class Coupling(nn.Module):
  """Shift and log scale [... outputs] each, as the other half of z sets them."""

  hidden: int
  outputs: int

  @nn.compact
  def __call__(self, kept: Float[Array, "*b half"]) -> tuple[Array, Array]:
    h = jnp.tanh(nn.Dense(self.hidden)(kept))
    h = jnp.tanh(nn.Dense(self.hidden)(h))
    # Zero: the flow starts as the identity, and p(z) as N(0, I).
    out = nn.Dense(2 * self.outputs, kernel_init=nn.initializers.zeros)(h)
    shift, log_scale = jnp.split(out, 2, axis=-1)
    return shift, 2.0 * jnp.tanh(log_scale / 2.0)


class CouplingFlow(nn.Module):
  """Real NVP: z -> u ~ N(0, I), by affine maps of one half set by the other.

  Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2017, section
  3.2, https://arxiv.org/abs/1605.08803. Log scales stay between -2 and 2, and the order
  of z is reversed after each layer, so that the halves trade places.

  Attributes:
    size: of z, 2 at least.
    layers: couplings.
    hidden: units of both hidden layers of each.
  """

  size: int
  layers: int = 6
  hidden: int = 64

  def setup(self):
    if self.size < 2:
      raise ValueError(f"a coupling flow takes 2 latents or more, got {self.size}")
    moved = self.size - self.size // 2
    self.couplings = [Coupling(self.hidden, moved) for _ in range(self.layers)]

  def __call__(self, z: Float[Array, "*b z"]) -> tuple[Array, Float[Array, "*b"]]:
    """U, and log |det du / dz|."""
    half, log_det = self.size // 2, jnp.zeros(z.shape[:-1])
    for coupling in self.couplings:
      shift, log_scale = coupling(z[..., :half])
      moved = z[..., half:] * jnp.exp(log_scale) + shift
      z = jnp.concatenate([z[..., :half], moved], -1)[..., ::-1]
      log_det += log_scale.sum(-1)
    return z, log_det

  def inverse(self, u: Float[Array, "*b z"]) -> Float[Array, "*b z"]:
    """The z that gives u."""
    half = self.size // 2
    for coupling in reversed(self.couplings):
      u = u[..., ::-1]
      shift, log_scale = coupling(u[..., :half])
      moved = (u[..., half:] - shift) * jnp.exp(-log_scale)
      u = jnp.concatenate([u[..., :half], moved], -1)
    return u


def init_flow(key: Key[Array, ""], size: int, layers: int, hidden: int) -> dict:
  """Parameters of a flow that is still the identity."""
  z = jax.ShapeDtypeStruct((1, size), jnp.float32)
  return {"flow": init_params(CouplingFlow(size, layers, hidden), key, z)}


def _flow_of(p: dict) -> CouplingFlow:
  """The module that parameters belong to, by their shapes."""
  first = p["flow"]["couplings_0"]
  half, hidden = first["Dense_0"]["kernel"].shape
  moved = first["Dense_2"]["bias"].shape[0] // 2
  return CouplingFlow(half + moved, len(p["flow"]), hidden)


def log_prob(p: dict, z: Float[Array, "*b z"]) -> Float[Array, "*b"]:
  """Log p(z) in nats."""
  if "flow" in p:
    scale = p.get("scale", jnp.ones(z.shape[-1]))
    z = (z - p.get("shift", 0.0)) / scale
    u, log_det = apply(_flow_of(p), p["flow"], z)
    return gaussian_log_prob(u, 0.0, 0.0) + log_det - jnp.log(scale).sum()
  away = z[..., None, :] - p["means"]
  if p["factors"].ndim == 2:
    u, log_det = away / p["factors"], jnp.log(p["factors"]).sum(-1)
  else:
    solve = lambda f, v: solve_triangular(f, v.reshape(-1, len(f)).T, lower=True).T
    u = jax.vmap(solve, (0, -2), -2)(p["factors"], away).reshape(away.shape)
    log_det = jnp.log(jnp.diagonal(p["factors"], axis1=1, axis2=2)).sum(-1)
  each = jax.nn.log_softmax(p["logits"]) + gaussian_log_prob(u, 0.0, 0.0) - log_det
  return jax.nn.logsumexp(each, axis=-1)


def sample(p: dict, keys: Key[Array, "b"]) -> Float[Array, "b z"]:
  """One z per key."""
  if "flow" in p:
    flow = _flow_of(p)
    u = jax.vmap(lambda key: jax.random.normal(key, (flow.size,)))(keys)
    z = apply(flow, p["flow"], u, method="inverse")
    return z * p.get("scale", 1.0) + p.get("shift", 0.0)

  def one(key):
    pick, noise = jax.random.split(key)
    k = jax.random.categorical(pick, p["logits"])
    u = jax.random.normal(noise, p["means"].shape[1:])
    factor = p["factors"][k]
    return p["means"][k] + (factor * u if factor.ndim == 1 else factor @ u)

  return jax.vmap(one)(keys)


def fit_mixture(
  z: Float[np.ndarray, "n z"],
  *,
  components: int = 50,
  full: bool = True,
  iterations: int = 50,
  least_variance: float = 1e-4,
  seed: int = 0,
) -> dict:
  """A Gaussian mixture, by expectation and maximisation in float64 on the host.

  Dempster, Laird and Rubin, 1977. It starts from random examples as means and the
  covariance of all; `least_variance` is added to every variance.

  Args:
    z: to fit.
    components: how many.
    full: whole covariances, else diagonal ones.
    iterations: of EM.
    least_variance: keeps a component from closing in on one example.
    seed: of the start.

  Raises:
    ValueError: if there are fewer examples than components.
  """
  z = np.asarray(z, np.float64)
  n, d = z.shape
  if not 1 <= components <= n:
    raise ValueError(f"components must be 1 to {n} (examples), got {components}")
  means = z[np.random.default_rng(seed).choice(n, components, replace=False)]
  weights, eye = np.full(components, 1 / components), np.eye(d)
  shape = lambda c: c if full else c * eye
  whole = shape(np.atleast_2d(np.cov(z.T, bias=True))) + least_variance * eye
  factors = np.repeat(np.linalg.cholesky(whole)[None], components, 0)
  for _ in range(iterations):
    joint = np.empty((n, components))
    for k in range(components):
      u = np.linalg.solve(factors[k], (z - means[k]).T)
      log_det = np.log(np.diagonal(factors[k])).sum()
      joint[:, k] = np.log(weights[k]) - 0.5 * (u**2).sum(0) - log_det
    r = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    count = np.maximum(r.sum(0), 1e-9)
    weights, means = count / n, r.T @ z / count[:, None]
    for k in range(components):
      away = z - means[k]
      cov = shape((r[:, k, None] * away).T @ away / count[k])
      factors[k] = np.linalg.cholesky(cov + least_variance * eye)
  if not full:
    factors = np.diagonal(factors, axis1=1, axis2=2)
  made = {"logits": np.log(weights), "means": means, "factors": factors}
  return {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}


def fit_flow(
  z: Float[np.ndarray, "n z"],
  *,
  layers: int = 6,
  hidden: int = 64,
  steps: int = 2000,
  batch_size: int = 256,
  learning_rate: float = 2e-3,
  seed: int = 0,
) -> dict:
  """A coupling flow of largest likelihood, by Adam, the rate falling by a half-cosine."""
  data = jnp.asarray(z, jnp.float32)
  fixed = {"shift": data.mean(0), "scale": jnp.maximum(data.std(0), 1e-3)}
  key, start = jax.random.split(jax.random.key(seed))
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  @jax.jit
  def fit(params):
    def loss(params, key):
      rows = jax.random.randint(key, (batch_size,), 0, len(data))
      return -log_prob(params | fixed, data[rows]).mean()

    def update(state, key):
      params, opt_state = state
      change, opt_state = tx.update(jax.grad(loss)(params, key), opt_state)
      return (optax.apply_updates(params, change), opt_state), None

    state = params, tx.init(params)
    return jax.lax.scan(update, state, jax.random.split(key, steps))[0][0]

  return fit(init_flow(start, data.shape[1], layers, hidden)) | fixed


def fit(
  name: str,
  means: Float[np.ndarray, "n z"],
  logvars: Float[np.ndarray, "n z"],
  *,
  components: int = 50,
  seed: int = 0,
) -> dict[str, Any]:
  """The density that `name` of `SAMPLERS` says, of posteriors q(z | x) of n examples.

  "vamp": the mixture of the posteriors of `components` examples, with nothing fitted:
  Tomczak and Welling, "VAE with a VampPrior", 2018, section 3.1,
  https://arxiv.org/abs/1705.07120, with real examples as pseudo-inputs. The others are
  fitted to one z of each posterior.

  Raises:
    ValueError: for another name, and "prior", which needs no fit.
  """
  rng = np.random.default_rng(seed)
  spread = np.exp(0.5 * np.asarray(logvars, np.float64))
  if name == "vamp":
    rows = rng.choice(len(means), min(components, len(means)), replace=False)
    made = {"logits": np.zeros(len(rows)), "means": np.asarray(means)[rows]}
    made["factors"] = spread[rows]
    return {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}
  z = means + spread * rng.normal(size=spread.shape)
  if name in ("mixture", "diagonal_mixture"):
    return fit_mixture(z, components=components, full=name == "mixture", seed=seed)
  if name == "flow":
    return fit_flow(z, seed=seed)
  raise ValueError(f"eval.sampler must be one of {SAMPLERS}, got {name!r}")
