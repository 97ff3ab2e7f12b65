"""The permutations of a program, read off its jaxpr, against maps written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from symmetries import assert_unchanged, inputs_of, random_like, random_params, words

from mmgen_jax.fusion import permute
from mmgen_jax.models.layers import TransformerBlock

# Maps written by hand.


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(5)(x))
    x = nn.gelu(nn.Dense(6)(x))
    return nn.Dense(2)(x)


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.Conv(7, (3, 3))(x)
    x = nn.silu(nn.LayerNorm()(x))
    return nn.Dense(3)(x.reshape(len(x), -1))


class Residual(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(x)
    for _ in range(2):
      h = nn.relu(nn.Dense(5)(x))
      x = x + nn.Dense(4)(h)
    return nn.Dense(2)(x)


class Grouped(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6)(x)
    x = nn.relu(nn.GroupNorm(2)(x)).mean((1, 2))
    return nn.Dense(2)(x)


class Attention(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6)(x)
    x = TransformerBlock(2)(x)
    return nn.Dense(2)(x)


BY_HAND = {
  "mlp": (
    Mlp(),
    (3, 4),
    {
      "Dense_0/bias": "a",
      "Dense_0/kernel": "4, a",
      "Dense_1/bias": "b",
      "Dense_1/kernel": "a, b",
      "Dense_2/bias": "2",
      "Dense_2/kernel": "b, 2",
    },
  ),
  "conv": (
    ConvNet(),
    (2, 4, 4, 1),
    {
      "Conv_0/bias": "a",
      "Conv_0/kernel": "3, 3, 1, a",
      "Conv_1/bias": "b",
      "Conv_1/kernel": "3, 3, a, b",
      "Dense_0/bias": "3",
      "Dense_0/kernel": "2*2*b, 3",
      "LayerNorm_0/bias": "b",
      "LayerNorm_0/scale": "b",
    },
  ),
  "residual": (
    Residual(),
    (3, 4),
    {
      "Dense_0/bias": "a",
      "Dense_0/kernel": "4, a",
      "Dense_1/bias": "b",
      "Dense_1/kernel": "a, b",
      "Dense_2/bias": "a",
      "Dense_2/kernel": "b, a",
      "Dense_3/bias": "c",
      "Dense_3/kernel": "a, c",
      "Dense_4/bias": "a",
      "Dense_4/kernel": "c, a",
      "Dense_5/bias": "2",
      "Dense_5/kernel": "a, 2",
    },
  ),
  "group norm": (
    Grouped(),
    (2, 3, 3, 4),
    {
      "Dense_0/bias": "a*b",
      "Dense_0/kernel": "4, a*b",
      "Dense_1/bias": "2",
      "Dense_1/kernel": "a*b, 2",
      "GroupNorm_0/bias": "a*b",
      "GroupNorm_0/scale": "a*b",
    },
  ),
  "attention": (
    Attention(),
    (2, 3, 4),
    {
      "Dense_0/bias": "a",
      "Dense_0/kernel": "4, a",
      "Dense_1/bias": "2",
      "Dense_1/kernel": "a, 2",
      "TransformerBlock_0/Dense_0/bias": "b",
      "TransformerBlock_0/Dense_0/kernel": "a, b",
      "TransformerBlock_0/Dense_1/bias": "a",
      "TransformerBlock_0/Dense_1/kernel": "b, a",
      **{
        f"TransformerBlock_0/LayerNorm_{i}/{p}": "a"
        for i in (0, 1)
        for p in ("bias", "scale")
      },
      **{
        f"TransformerBlock_0/MultiHeadDotProductAttention_0/{name}/{p}": axes
        for name, p, axes in (
          ("key", "bias", "c, d"),  # heads, and what a query and a key share
          ("key", "kernel", "a, c, d"),
          ("out", "bias", "a"),
          ("out", "kernel", "c, e, a"),
          ("query", "bias", "c, d"),
          ("query", "kernel", "a, c, d"),
          ("value", "bias", "c, e"),
          ("value", "kernel", "a, c, e"),
        )
      },
    },
  ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_map_is_the_one_written_by_hand(name):
  module, shape, want = BY_HAND[name]
  inputs = inputs_of(shape)
  params = random_params(module, *inputs)
  assert words(assert_unchanged(module.apply, params, *inputs)) == want


# One operation after another: (function, shapes of parameters, shape of x, groups).


def conv(x, w, **kwargs):
  dims = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=dims, **kwargs
  )


def scan(p, x):
  step = lambda h, x: (jnp.tanh(x @ p[0] + h @ p[1]), h)
  last, all_h = jax.lax.scan(step, jnp.zeros((len(x), 5)), x.transpose(1, 0, 2))
  return last @ p[2] + all_h.sum(0) @ p[2]


def unet(p, x):
  a, b = x @ p[0], x @ p[1]  # 8 and 4 channels, then 3 groups of 4
  h = jnp.concatenate([a, b], -1).reshape(len(x), 3, 4)
  h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
  return h.reshape(len(x), 12) @ p[2]


@jax.custom_vjp
def custom(x):
  return jnp.tanh(x)


custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g,))

OPERATIONS = {
  "grouped convolution": (
    lambda p, x: conv(conv(conv(x, p[0]), p[1], feature_group_count=2), p[2]).sum(
      (1, 2)
    ),
    [(1, 1, 3, 8), (3, 3, 4, 6), (1, 1, 6, 2)],
    (2, 4, 4, 3),
    [2, 3, 4],
  ),
  "depthwise convolution": (
    lambda p, x: conv(conv(conv(x, p[0]), p[1], feature_group_count=8), p[2]),
    [(1, 1, 3, 8), (3, 3, 1, 8), (1, 1, 8, 2)],
    (2, 4, 4, 3),
    [8],
  ),
  "scan": (scan, [(3, 5), (5, 5), (5, 2)], (2, 4, 3), [5]),
  "concatenation, then groups": (unet, [(3, 8), (3, 4), (12, 2)], (5, 3), [2, 4]),
  "one kernel for three": (
    lambda p, x: (lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v @ p[1])(
      *jnp.split(x @ p[0], 3, -1)
    ),
    [(3, 12), (4, 2)],
    (2, 5, 3),
    [4, 4],
  ),
  "a stack of three": (
    lambda p, x: jnp.einsum("btd,dsh->sbth", x, p[0].reshape(3, 3, 4)).sum(0) @ p[1],
    [(3, 12), (4, 2)],
    (2, 5, 3),
    [3, 4],
  ),
  "rows looked up": (
    lambda p, x: p[0][jnp.argmax(x, -1)] @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [5],
  ),
  "pads and slices": (
    lambda p, x: jnp.pad(x @ p[0], ((0, 0), (2, 0)))[:, 1:] @ p[1],
    [(3, 5), (6, 2)],
    (4, 3),
    [5],
  ),
  "half of it": (
    lambda p, x: ((h := x @ p[0])[:, :3] * jax.nn.sigmoid(h[:, 3:])) @ p[1],
    [(3, 6), (3, 2)],
    (4, 3),
    [3],
  ),
  "every second": (lambda p, x: (x @ p[0])[:, ::2], [(3, 6)], (4, 3), []),
  "running sum": (
    lambda p, x: jnp.cumsum(x @ p[0], 1) @ p[1],
    [(3, 5), (5, 2)],
    (2, 4, 3),
    [5],
  ),
  "running sum of units": (
    lambda p, x: jnp.cumsum(x @ p[0], 1) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [],
  ),
  "sorted units": (lambda p, x: jnp.sort(x @ p[0], 1), [(3, 5)], (4, 3), []),
  "largest unit": (lambda p, x: jnp.argmax(x @ p[0], 1), [(3, 5)], (4, 3), []),
  "places": (
    lambda p, x: (x @ p[0] * jnp.arange(5.0)) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [],
  ),
  "a constant": (
    lambda p, x: (x @ p[0] + np.arange(5.0, dtype=np.float32)) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [],
  ),
  "a constant that is the same for all": (
    lambda p, x: (x @ p[0] + np.ones(5, np.float32)) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [5],
  ),
  "an uneven reshape": (
    lambda p, x: jnp.einsum("bi,ijkc->bjkc", x, p[0]).reshape(4, 3, 2, 5).sum(1) @ p[1],
    [(3, 2, 3, 5), (5, 2)],
    (4, 3),
    [5],
  ),
  "no rule": (
    lambda p, x: jnp.fft.rfft(x @ p[0]).real @ p[1],
    [(3, 4), (3, 2)],
    (4, 3),
    [],
  ),
  "branches": (
    lambda p, x: jax.lax.cond(x.sum() > 0, jnp.tanh, lambda h: 2 * h, x @ p[0]) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [5],
  ),
  "calls": (
    lambda p, x: jax.checkpoint(lambda h: custom(jax.nn.relu(h)))(x @ p[0]) @ p[1],
    [(3, 5), (5, 2)],
    (4, 3),
    [5],
  ),
  "a tied kernel": (
    lambda p, x: jax.nn.relu(x @ p[0]) @ p[0].T,
    [(3, 5)],
    (4, 3),
    [5],
  ),
  "a square kernel used twice": (
    lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[1] @ p[2],
    [(3, 5), (5, 5), (5, 2)],
    (4, 3),
    [5],
  ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_an_operation_permits(name):
  fn, shapes, shape, groups = OPERATIONS[name]
  params = random_like([jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes])
  symmetry = assert_unchanged(fn, params, *inputs_of(shape))
  assert sorted(symmetry.groups.values()) == groups, permute.describe(symmetry)
