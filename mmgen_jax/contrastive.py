"""Contrastive alignment: the same thing in two modalities lies in the same place.

Losses see the global batch: under pmap each device compares its own examples with those
of all devices. A pair is (row, column) of two modalities' embeddings. A missing modality
makes no pairs; pairs of unlike examples that mean the same are no negatives, where
`same` says so.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mmgen_jax.parallel import gather

Rows = Float[Array, "b d"]


class Pairs(NamedTuple):
  """All pairs of this device's rows with the global batch's columns.

  Attributes:
    logits: scale * <row, column> + bias, [b B].
    positive: which pairs mean the same thing, [b B].
    there: which pairs have both modalities, [b B].
    share: B / the number of rows of the global batch that have a positive pair.
    share_there: B / the number of those that have the modality, the one of the two that
      more have.
  """

  logits: Float[Array, "b B"]
  positive: Bool[Array, "b B"]
  there: Bool[Array, "b B"]
  share: Float[Array, ""]
  share_there: Float[Array, ""]


def normalise(x: Rows) -> Rows:
  """Rows of length one; zero rows stay zero, with a finite gradient."""
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * lax.rsqrt(jnp.maximum(square, 1e-12))


def _place(n: int, axis: str | None) -> Int[Array, "b"]:
  """Where this device's examples are in the global batch."""
  first = 0 if axis is None else lax.axis_index(axis) * n
  return first + jnp.arange(n)


def make_pairs(
  rows: Rows,
  columns: Rows,
  has: tuple[Bool[Array, "b"], Bool[Array, "b"]],
  same: Int[Array, "b"] | Int[Array, "b n"] | None,
  scale: Array | float,
  bias: Array | float = 0.0,
  axis: str | None = None,
) -> Pairs:
  """The pairs of two modalities of one batch, from this device's part of it.

  Args:
    rows: this device's embeddings of the first modality, of length one.
    columns: of the second.
    has: which examples have the first, and the second.
    same: numbers of each example; all equal mean the same thing (a caption that two
      pictures share). None, or a number below 0 (unknown): only an example itself does.
    scale: exp of the learned temperature's negative logarithm.
    bias: of the logits.
    axis: of the devices that share the batch, if any.
  """
  n = len(rows)
  logits = scale * rows @ gather(columns, axis).T + bias
  place = _place(n, axis)
  positive = place[:, None] == gather(place, axis)[None]
  if same is not None:
    ids = same.reshape(n, -1)
    equal = (ids[:, None] == gather(ids, axis)[None]).all(-1)
    positive |= equal & (ids >= 0).all(-1)[:, None]
  there = has[0][:, None] & gather(has[1], axis)[None]
  positive &= there
  in_batch = lambda which: gather(which, axis).sum()
  share = lambda count: logits.shape[1] / jnp.maximum(count, 1)
  most = jnp.maximum(in_batch(has[0]), in_batch(has[1]))
  paired = in_batch(positive.any(1))
  return Pairs(logits, positive, there, share(paired), share(most))


def info_nce(p: Pairs, *, every: bool = False) -> Float[Array, "b"]:
  """-log softmax over the columns of the positive one, per row.

  CLIP's half: Radford et al., "Learning Transferable Visual Models From Natural Language
  Supervision", 2021, figure 3, https://arxiv.org/abs/2103.00020; its loss is the mean of
  this and of the same with the modalities swapped.

  With several positives in a row: minus the mean of their log probabilities (Khosla et
  al., "Supervised Contrastive Learning", 2020, eq. 2, https://arxiv.org/abs/2004.11362),
  or with `every` minus the log of their sum (eq. 3's inside of the log).

  Rows without a positive have 0, others are multiplied by `p.share`, so that the mean of
  what all devices return is the mean over the rows that count.
  """
  logits = jnp.where(p.there, p.logits, -1e9)
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  count = p.positive.sum(1)
  if every:
    nats = -jax.nn.logsumexp(jnp.where(p.positive, logp, -1e9), axis=1)
  else:
    nats = -jnp.where(p.positive, logp, 0.0).sum(1) / jnp.maximum(count, 1)
  return jnp.where(count > 0, nats, 0.0) * p.share


def siglip(p: Pairs) -> Float[Array, "b"]:
  """The sum over columns of -log sigmoid(+-logit), + for positive pairs, per row.

  Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, eq. 1,
  https://arxiv.org/abs/2303.15343. It needs no swapped half: every pair counts once.
  Multiplied by `p.share_there`, so that the mean is over the examples that can be in
  pairs: also where few or none have both modalities, and nearly all pairs are negative.
  """
  sign = jnp.where(p.positive, 1.0, -1.0)
  nats = -jax.nn.log_sigmoid(sign * p.logits.astype(jnp.float32))
  return jnp.where(p.there, nats, 0.0).sum(1) * p.share_there


LOSSES: dict[str, Callable[[Pairs], Array]] = {"infonce": info_nce, "siglip": siglip}
START = {"infonce": (1 / 0.07, 0.0), "siglip": (10.0, -10.0)}
"""Published starts of scale and bias: Radford et al., section 2.5; Zhai et al., 3.2."""


def pair_loss(
  name: str,
  a: Rows,
  b: Rows,
  has: tuple[Bool[Array, "b"], Bool[Array, "b"]],
  same: Int[Array, "b"] | None,
  scale: Array | float,
  bias: Array | float,
  axis: str | None = None,
) -> Float[Array, "b"]:
  """One value per example of two modalities; their mean over the global batch descends.

  Args:
    name: "infonce", which compares both ways, or "siglip".
    a: embeddings of the first modality, of length one.
    b: of the second.
    has: which examples have each.
    same: see `make_pairs`.
    scale: of the logits.
    bias: of the logits; "infonce" does not see it.
    axis: of the devices that share the batch, if any.

  Raises:
    ValueError: for an unknown loss.
  """
  if name not in LOSSES:
    raise ValueError(f"loss.contrastive must be one of {sorted(LOSSES)}, got {name!r}")
  there = make_pairs(a, b, has, same, scale, bias, axis)
  if name == "siglip":
    return siglip(there)
  back = make_pairs(b, a, (has[1], has[0]), same, scale, bias, axis)
  return 0.5 * (info_nce(there) + info_nce(back))
