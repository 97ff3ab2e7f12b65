"""Gated PixelCNN: integers on a map, each given those above, and left in its row.

Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016,
https://arxiv.org/abs/1606.05328: a vertical stack sees the rows above, a horizontal one
what is left in the row, so there is no blind spot. Channels of a pixel come in their
order: features are cut into as many groups, and a group sees the groups before it.

Sampling makes every position once (Ramachandran et al., "Fast Generation for
Convolutional Autoregressive Models", 2017, https://arxiv.org/abs/1704.06001): a stack
keeps what it will need again, which is one row, or one position. What is left are
matrix products, which are as fast inside a compiled loop as outside.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmgen_jax.models.layers import Dense, Embed, apply, kernel_init

Maps = Sequence[Float[Array, "b h w f"]]


def tap_mask(
  inputs: Int[np.ndarray, " i"], outputs: Int[np.ndarray, " o"], *, own: bool
) -> Bool[np.ndarray, "i o"]:
  """Which inputs an output may see: of channels before its own, and of its if `own`."""
  before, at = inputs[:, None], outputs[None]
  return before <= at if own else before < at


class CausalConv(nn.Module):
  """A convolution without padding whose last tap, the position itself, may be masked.

  Attributes:
    features: outputs.
    kernel: (height, width).
    mask: of the last tap [i o]; None for all.
  """

  features: int
  kernel: tuple[int, int]
  mask: Bool[np.ndarray, "i o"] | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b k l o"]:
    (height, width), inputs = self.kernel, x.shape[-1]
    shape = (height, width, inputs, self.features)
    kernel = self.param("kernel", kernel_init, shape)
    if self.mask is not None:
      kernel = kernel.at[-1, -1].multiply(self.mask)
    kernel = kernel.astype(self.dtype)
    if x.shape[1] > height:
      dims = ("NHWC", "HWIO", "NHWC")
      y = jax.lax.conv_general_dilated(
        x.astype(self.dtype), kernel, (1, 1), "VALID", dimension_numbers=dims
      )
    else:  # one row: a matrix product
      n = x.shape[2] - width + 1
      taps = [x[:, i : i + 1, j : j + n] for i in range(height) for j in range(width)]
      y = jnp.concatenate(taps, -1).astype(self.dtype) @ kernel.reshape(
        -1, self.features
      )
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return y + bias.astype(self.dtype)


def pad(x: Float[Array, "b h w f"], top: int, left: int, right: int) -> Array:
  """Zeros at three of the sides."""
  return jnp.pad(x, [(0, 0), (top, 0), (left, right), (0, 0)])


def gate(x: Float[Array, "*b f"]) -> Float[Array, "*b f/2"]:
  """tanh(a) sigmoid(b) of both halves: van den Oord et al., 2016, eq. 2."""
  a, b = jnp.split(x, 2, -1)
  return jnp.tanh(a) * jax.nn.sigmoid(b)


class Kept(NamedTuple):
  """What sampling keeps of the rows above.

  Attributes:
    pixels: the last `reach` rows of embedded integers, with their margins.
    rows: the last row that each later layer of the vertical stack has seen.
  """

  pixels: Float[Array, "b k v e"]
  rows: Maps


class PixelCNN(nn.Module):
  """Logits of every integer of a map, given those before it.

  Attributes:
    shape: (h, w, c) of the map.
    levels: integers are in [0, levels).
    width: features; a multiple of c.
    layers: of both stacks.
    reach: how far the first layer sees, up and to both sides.
    embedded: features of one integer.
    classes: how many labels there are, where it is conditional; else 0.
    dtype: of the computation; parameters and logits stay float32.
  """

  shape: tuple[int, int, int]
  levels: int
  width: int = 64
  layers: int = 6
  reach: int = 3
  embedded: int = 16
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  def setup(self):
    (h, w, c), f, k = self.shape, self.width, self.reach
    net: dict[str, Any] = {"dtype": self.dtype}
    if f % c:
      raise ValueError(f"width {f} must be a multiple of the {c} channels")
    of = lambda size: np.repeat(np.arange(c), size)  # the channel of each feature
    inner, twice = of(f // c), np.tile(of(f // c), 2)
    first = tap_mask(of(self.embedded), twice, own=False)
    rest, own = tap_mask(inner, twice, own=True), tap_mask(inner, inner, own=True)
    logits = tap_mask(inner, of(self.levels), own=True)
    later = range(self.layers - 1)
    self.table = Embed(self.levels, self.embedded)
    self.down = [
      CausalConv(2 * f, (k, 2 * k + 1), **net),
      *[CausalConv(2 * f, (2, 3), **net) for _ in later],
    ]
    self.right = [
      CausalConv(2 * f, (1, k + 1), first, **net),
      *[CausalConv(2 * f, (1, 2), rest, **net) for _ in later],
    ]
    self.link = [Dense(2 * f, **net) for _ in range(self.layers)]
    self.out = [CausalConv(f, (1, 1), own, **net) for _ in range(self.layers)]
    self.place = self.param("place", nn.initializers.zeros, (h, w, f))
    self.head = [
      CausalConv(f, (1, 1), own),
      CausalConv(c * self.levels, (1, 1), logits),
    ]
    if self.classes:
      self.by_label = [Dense(4 * f, use_bias=False, **net) for _ in range(self.layers)]

  def embed(self, x: Int[Array, "b h w c"]) -> Float[Array, "b h w e"]:
    """Integers as vectors, channel by channel."""
    return self.table(x).reshape(*x.shape[:3], -1)

  def _condition(self, layer: int, label: Int[Array, "b"] | None):
    """What a label adds in the two stacks."""
    if not self.classes:
      return 0.0, 0.0
    both = self.by_label[layer](jax.nn.one_hot(label, self.classes))
    return jnp.split(both[:, None, None], 2, -1)

  def _place(self) -> Float[Array, "h w f"]:
    return self.place.astype(self.dtype)

  def _vertical(self, layer: int, window: Array, label) -> Array:
    return gate(self.down[layer](window) + self._condition(layer, label)[0])

  def _horizontal(self, layer: int, window: Array, v: Array, label) -> Array:
    x = self.right[layer](window) + self.link[layer](v)
    return self.out[layer](gate(x + self._condition(layer, label)[1]))

  def _logits(self, x: Array) -> Float[Array, "b h w c k"]:
    x = self.head[0](nn.relu(x.astype(jnp.float32)))
    x = self.head[1](nn.relu(x))
    return x.reshape(*x.shape[:3], self.shape[2], self.levels)

  def __call__(
    self, x: Int[Array, "b h w c"], label: Int[Array, "b"] | None = None
  ) -> Float[Array, "b h w c k"]:
    """All logits at once."""
    return self.logits(self.embed(x), label)

  def logits(
    self, e: Float[Array, "b h w e"], label: Int[Array, "b"] | None = None
  ) -> Float[Array, "b h w c k"]:
    """All logits, of embedded integers."""
    k = self.reach
    v = self._vertical(0, pad(e[:, :-1], k, k, k), label) + self._place()
    h = self._horizontal(0, pad(e, 0, k, 0), v, label)
    for layer in range(1, self.layers):
      v = v + self._vertical(layer, pad(v, 1, 1, 1), label)
      h = h + self._horizontal(layer, pad(h, 0, 1, 0), v, label)
    return self._logits(h)

  def begin(self, count: int) -> Kept:
    """Nothing above the first row of `count` maps."""
    (_, w, c), k = self.shape, self.reach
    row = jnp.zeros((count, 1, w + 2, self.width), self.dtype)
    pixels = jnp.zeros((count, k, w + 2 * k, c * self.embedded))
    return Kept(pixels, [row] * (self.layers - 1))

  def above(
    self, kept: Kept, i: Int[Array, ""], label: Int[Array, "b"] | None = None
  ) -> tuple[Maps, Maps]:
    """The vertical stack at row i: its layers [b 1 w f], and the rows to be kept."""
    v = self._vertical(0, kept.pixels, label) + self._place()[i]
    layers, rows = [v], []
    for layer in range(1, self.layers):
      rows.append(pad(v, 0, 1, 1))
      both = jnp.concatenate([kept.rows[layer - 1], rows[-1]], 1)
      v = v + self._vertical(layer, both, label)
      layers.append(v)
    return layers, rows

  def here(
    self, e: Float[Array, "b 1 k e"], before: Maps, above: Maps, label=None
  ) -> tuple[Float[Array, "b c k"], Maps]:
    """The logits of one position, and what the next one needs.

    Args:
      e: embedded integers of the `reach` positions to the left, and of this one.
      before: each later layer's input at the position to the left [b 1 1 f].
      above: the vertical stack's layers at this position [b 1 1 f].
      label: of each map.
    """
    h, kept = self._horizontal(0, e, above[0], label), []
    for layer in range(1, self.layers):
      kept.append(h)
      both = jnp.concatenate([before[layer - 1], h], 2)
      h = h + self._horizontal(layer, both, above[layer], label)
    return self._logits(h)[:, 0, 0], kept


def sample(
  net: PixelCNN,
  params,
  keys: Key[Array, "b"],
  label: Int[Array, "b"] | None = None,
  *,
  draw: Callable[[Array, Array], Int[Array, ""]] = jax.random.categorical,
) -> Int[Array, "b h w c"]:
  """One map for each key: position by position in one loop of matrix products.

  Args:
    net: the network.
    params: of it.
    keys: of the maps; what is drawn follows from a map's key alone.
    label: of each map.
    draw: (key, logits [k]) -> an integer.
  """
  (h, w, c), k, b = net.shape, net.reach, len(keys)
  at = lambda x, j, n=1: jax.lax.dynamic_slice_in_dim(x, j, n, 2)

  def position(carry, j, above, i):
    e, before = carry  # e [b 1 k+w e], with a margin of k at the left
    v = [at(x, j) for x in above]
    x, next_before = jnp.zeros((b, 1, 1, c), jnp.int32), before
    for channel in range(c):
      seen = at(e, j, k + 1)
      logits, next_before = apply(net, params, seen, before, v, label, method="here")
      fold = jax.vmap(jax.random.fold_in, (0, None))
      drawn = jax.vmap(draw)(fold(keys, (i * w + j) * c + channel), logits[:, channel])
      x = x.at[:, 0, 0, channel].set(drawn)
      one = apply(net, params, x, method="embed")
      e = jax.lax.dynamic_update_slice_in_dim(e, one, j + k, 2)
    return (e, next_before), x[:, 0, 0]

  def row(kept: Kept, i):
    above, rows = apply(net, params, kept, i, label, method="above")
    e = jnp.zeros((b, 1, k + w, c * net.embedded))
    before = [jnp.zeros((b, 1, 1, net.width), net.dtype)] * (net.layers - 1)
    step = lambda carry, j: position(carry, j, above, i)
    (e, _), x = jax.lax.scan(step, (e, before), jnp.arange(w))
    pixels = jnp.concatenate([kept.pixels[:, 1:], pad(e, 0, 0, k)], 1)
    return Kept(pixels, rows), x

  start = apply(net, params, b, method="begin")
  _, x = jax.lax.scan(row, start, jnp.arange(h))
  return x.transpose(2, 0, 1, 3)
