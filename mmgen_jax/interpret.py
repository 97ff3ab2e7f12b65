"""What latents do: traversals, paths, what each knows; as arrays for pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmgen_jax.data.modality import to_stored
from mmgen_jax.metrics import disentanglement, likelihood
from mmgen_jax.models.layers import apply
from mmgen_jax.representation import interpolate
from mmgen_jax.steps import vae

SHOWN = 10  # latents whose traversal is shown
PATHS = 4  # from example to example
VALUES = (-2.0, -1.33, -0.67, 0.0, 0.67, 1.33, 2.0)  # in standard deviations of N(0, 1)


class Interpretation(NamedTuple):
  """Of one trained VAE.

  Attributes:
    kl: KL(q(z_j | x) || N(0, 1)) of each latent, mean over examples, in nats.
    latents: which are traversed, those of most KL first.
    values: that each is set to.
    tiles: stored pictures: one example's mean, with one latent set.
    factors: what the examples are known to differ in; may be empty.
    information: I(z_j; factor) / H(factor), from posterior means in 20 bins.
    paths: stored pictures, from one example's mean to the next one's.
    imputed: stored pictures, see `imputation.halves`; or None.
  """

  kl: Float[np.ndarray, " z"]
  latents: Int[np.ndarray, " l"]
  values: Float[np.ndarray, " s"]
  tiles: np.ndarray
  factors: tuple[str, ...]
  information: Float[np.ndarray, "z f"]
  paths: np.ndarray | None = None
  imputed: np.ndarray | None = None


def traversals(
  mean: Float[np.ndarray, " z"],
  latents: Sequence[int] | np.ndarray,
  values: Sequence[float],
) -> Float[np.ndarray, "l s z"]:
  """Latents with one of them at a time set to each value, the others as in `mean`."""
  at = np.asarray(latents)[:, None]
  z = np.tile(np.asarray(mean, np.float32), (len(at), len(values), 1))
  z[np.arange(len(at))[:, None], np.arange(len(values)), at] = values
  return z


def make_decode(config, modalities) -> Callable[..., np.ndarray]:
  """`decode(params, z [n z]) -> stored pictures [n ...]`: the modes of p(x | z)."""
  net, name = vae.build(config, modalities), config.model.modality

  @jax.jit
  def run(params, z):
    out = apply(net, params["vae"], z, method="decode")[name]
    return net.likelihood(name).mode(out)

  return lambda params, z: to_stored(modalities[name], np.asarray(run(params, z)))


def _information(
  means: Float[np.ndarray, "n z"], factor: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " z"]:
  """I(z_j; factor) / H(factor) of the examples whose factor is known."""
  known = factor >= 0
  means, factor = means[known], factor[known]
  twice = np.stack([factor, factor], 1)  # it takes two at least
  both = disentanglement.mutual_information(means, twice)
  return both[:, 0] / disentanglement.entropy(factor)


def interpret(
  decode: Callable[[np.ndarray], np.ndarray],
  means: Float[np.ndarray, "n z"],
  logvars: Float[np.ndarray, "n z"],
  labels: Mapping[str, np.ndarray],
) -> Interpretation:
  """From posteriors of n examples: the first is traversed, some are ends of paths.

  Args:
    decode: z [n z] -> stored pictures.
    means: of q(z | x).
    logvars: of q(z | x).
    labels: {factor: integers [n], -1 where it is not known}; needed are two that vary,
      or none is looked at. An example without one does not count for it.
  """
  kl = likelihood.mean_kl_by_dimension(means, logvars)
  order = np.argsort(-kl, kind="stable")[:SHOWN]
  z = traversals(means[0], order, VALUES)
  tiles = decode(z.reshape(-1, z.shape[-1]))
  ends = jnp.asarray(means[: PATHS + 1])
  path = interpolate(ends[:-1], ends[1:], len(VALUES) + 2, spherical=True)
  path = np.swapaxes(np.asarray(path), 0, 1)
  on_paths = decode(path.reshape(-1, path.shape[-1]))
  names = tuple(k for k, v in labels.items() if len(np.unique(v[v >= 0])) > 1)
  information = np.zeros((len(kl), 0))
  if len(names) > 1:
    information = np.stack([_information(means, labels[k]) for k in names], 1)
  return Interpretation(
    kl,
    order,
    np.array(VALUES),
    tiles.reshape(*z.shape[:2], *tiles.shape[1:]),
    names if information.size else (),
    information,
    on_paths.reshape(*path.shape[:2], *on_paths.shape[1:]),
  )


def save(path: Path, x: Interpretation) -> None:
  """Writes npz, without pickle."""
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = x._asdict() | {"factors": np.array(json.dumps(x.factors))}
  arrays = {name: value for name, value in arrays.items() if value is not None}
  with open(path.with_suffix(".tmp"), "wb") as file:
    np.savez_compressed(file, **arrays)
  path.with_suffix(".tmp").replace(path)


def load(path: Path) -> Interpretation:
  """What `save` wrote."""
  with np.load(path, allow_pickle=False) as kept:
    fields = {name: np.asarray(kept[name]) for name in kept.files}
  names = tuple(json.loads(str(fields.pop("factors"))))
  return Interpretation(factors=names, **fields)
