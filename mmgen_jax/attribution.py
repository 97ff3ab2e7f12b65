"""Who decided? Shares of modalities in a posterior or a score, of pixels in a class.

Pure functions. Set functions are dicts {subset of names: value}, over all subsets.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmgen_jax.losses import gaussian_kl

Subset = tuple[str, ...]
Values = Mapping[Subset, Any]  # of arrays [*n], or numbers


def _players(values: Values) -> tuple[str, ...]:
  """The names of a set function, sorted.

  Raises:
    ValueError: if a subset is missing.
  """
  names = tuple(sorted({name for subset in values for name in subset}))
  wanted = {frozenset(c) for k in range(len(names) + 1) for c in combinations(names, k)}
  if missing := wanted - {frozenset(s) for s in values}:
    lacking = [tuple(sorted(s)) for s in missing]
    raise ValueError(f"a set function of {names} needs all subsets; no {min(lacking)}")
  return names


def shapley(values: Values) -> dict[str, np.ndarray]:
  """Each name's Shapley value, exactly, from all 2^m subsets: {name: [*n]}.

  phi_i = sum over S without i of |S|! (m - |S| - 1)! / m! (v(S + i) - v(S)): the only
  shares that add up to v(all) - v(none), treat equals equally, give nothing to who adds
  nothing, and are linear in v. Shapley, "A Value for n-Person Games", 1953.

  Raises:
    ValueError: if a subset is missing.
  """
  names = _players(values)
  v = {frozenset(s): np.asarray(x, float) for s, x in values.items()}
  m = len(names)
  out = {}
  for name in names:
    others = [n for n in names if n != name]
    terms = [
      (v[frozenset(s) | {name}] - v[frozenset(s)]) / (m * math.comb(m - 1, k))
      for k in range(m)
      for s in combinations(others, k)
    ]
    out[name] = np.sum(terms, axis=0)
  return out


def interaction(values: Values, first: str, second: str) -> np.ndarray:
  """How much two names are worth together beyond what each is alone, on average.

  sum over S without both of |S|! (m - |S| - 2)! / (m - 1)! (v(S + i + j) - v(S + i) -
  v(S + j) + v(S)). Above zero: they complement each other; below: they say the same.
  Grabisch and Roubens, "An axiomatic approach to the concept of interaction among players
  in cooperative games", 1999.
  """
  names = _players(values)
  v = {frozenset(s): np.asarray(x, float) for s, x in values.items()}
  others, m = [n for n in names if n not in (first, second)], len(names)
  terms = []
  for k in range(m - 1):
    for s in map(frozenset, combinations(others, k)):
      both = v[s | {first, second}] - v[s | {first}] - v[s | {second}] + v[s]
      terms.append(both / ((m - 1) * math.comb(m - 2, k)))
  return np.sum(terms, axis=0)


def precision_shares_by_latent(
  logvars: Float[Array, "m b z"],
  mask: Bool[Array, "m b"],
  prior_precision: Float[Array, "z"] | float = 1.0,
) -> Float[Array, "m+1 b z"]:
  """Who decided each latent of a product of Gaussian experts; the prior comes last.

  The mean of the product is sum_m s_m mu_m + s_0 mu_0, with s_m = T_m / sum T, so the
  shares are exact: what an expert says moves the mean by its share of it. They add up
  to one; masked experts, and those with infinite log-variance, have 0.
  """
  keep = mask[..., None]
  precision = jnp.where(keep, jnp.exp(-jnp.where(keep, logvars, 0.0)), 0.0)
  prior = jnp.broadcast_to(prior_precision, precision.shape[1:])[None]
  all_of = jnp.concatenate([precision, prior])
  total = all_of.sum(0)
  return all_of / jnp.where(total > 0, total, 1.0)


def conflict(
  means: Float[Array, "m b z"], logvars: Float[Array, "m b z"], mask: Bool[Array, "m b"]
) -> Float[Array, "m b"]:
  """KL(q_joint || q_m) in nats, q_joint the product of the experts that are there.

  Large where an expert contradicts the others surely. 0 for what is masked and for who
  is alone. Latents of which an expert says nothing (infinite log-variance) do not count.
  """
  says = mask[..., None] & jnp.isfinite(logvars)
  means, logvars = jnp.where(says, means, 0.0), jnp.where(says, logvars, 0.0)
  precision = jnp.where(says, jnp.exp(-logvars), 0.0)
  total = precision.sum(0)
  total = jnp.where(total > 0, total, 1.0)
  mean, logvar = (precision * means).sum(0) / total, -jnp.log(total)
  each = jax.vmap(jax.vmap(jax.vmap(lambda *x: gaussian_kl(*(v[None] for v in x)))))
  joint = (jnp.broadcast_to(x, means.shape) for x in (mean, logvar))
  return jnp.where(says, each(*joint, means, logvars), 0.0).sum(-1)


def integrated_gradients(
  fn: Callable[[Any], Float[Array, "b"]], x: Any, baseline: Any, *, points: int = 32
) -> Any:
  """(x - x') * the mean of grad fn along the line from x' to x; of the form of `x`.

  Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", 2017, eq. 1,
  https://arxiv.org/abs/1703.01365. The values of one example add up to fn(x) - fn(x')
  ("completeness"), up to the error of the quadrature: Gauss and Legendre's, exact for
  polynomials of degree 2 points, and so for a path on which fn is smooth.

  Args:
    fn: one value per example, each from that example alone.
    x: arrays [b ...], in any tree; floats.
    baseline: what stands for nothing, of the same form.
    points: of the quadrature.
  """
  nodes, weights = np.polynomial.legendre.leggauss(points)
  total = jax.grad(lambda x: fn(x).sum())

  def one(sum_of, node):
    at, weight = node
    here = jax.tree.map(lambda a, b: b + at * (a - b), x, baseline)
    return jax.tree.map(lambda s, g: s + weight * g, sum_of, total(here)), None

  path = (jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2))
  path = jax.tree.map(lambda v: v.astype(jnp.float32), path)
  zero = jax.tree.map(jnp.zeros_like, x)
  mean, _ = jax.lax.scan(one, zero, path)
  return jax.tree.map(lambda g, a, b: g * (a - b), mean, x, baseline)


def fusion_weights(
  run: Callable[..., tuple[Any, Mapping]], m: int
) -> dict[str, Float[Array, "m b"]]:
  """How much a fusion layer looks at each modality: {where in the network: [m b]}.

  Gates, the mean over features; attention, the mean over heads and queries and the sum
  over a modality's tokens. Each adds up to one over the modalities that are there (in
  cross-attention over the others, to zero where there are none). A layer that looks at
  something else than all modalities (a bottleneck, latents at each other) is left out.
  What a layer looks at is not what it uses; compare with `shapley`.

  Args:
    run: calls `module.apply(..., mutable=["intermediates"])`.
    m: how many modalities there are.
  """
  _, sown = run()
  out = {}
  for path, x in jax.tree_util.tree_leaves_with_path(sown.get("intermediates", {})):
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    where = "/".join(map(str, keys))
    if keys[-1] == "gates":
      out[where] = x.mean(-1)
    elif keys[-1] == "weights":
      of = x.mean((1, 2))
      out[where] = of.reshape(len(of), m, -1).sum(-1).T
  return out
