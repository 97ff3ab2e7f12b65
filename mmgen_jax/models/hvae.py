"""A top-down hierarchical VAE: groups of latents on maps, coarsest first.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on
Images", 2021, https://arxiv.org/abs/2011.10650. A bottom-up network leaves activations at
every resolution; a top-down one, which generates as well, asks them for each group's
posterior in turn. Small enough for a CPU: the finest map is of patches of pixels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.likelihoods import Likelihood
from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.models.layers import (
  Conv,
  Dense,
  depth_to_space,
  kernel_init,
  space_to_depth,
)
from mmgen_jax.models.multimodal import as_grid, modality_likelihood


class Pass(NamedTuple):
  """What one way down gives.

  Attributes:
    outputs: the likelihood's parameters.
    kl: KL(q(z_g | z_<g, x) || p(z_g | z_<g)) of each group, in nats.
    log_ratio: log p(z) - log q(z | x) of the latents that were drawn.
  """

  outputs: Float[Array, "b ..."]
  kl: Float[Array, "g b"]
  log_ratio: Float[Array, "b"]


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions, an activation before each; `out` channels.

  On maps of one position there is nothing to mix, so the middle is 1x1 too.
  """

  inner: int
  out: int
  zero: bool = False  # the last one, at initialisation
  scale: float = 1.0  # of the last one's initialisation
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
    side = min(3, x.shape[1])
    last = lambda key, shape, dtype: self.scale * kernel_init(key, shape, dtype)
    last = nn.initializers.zeros if self.zero else last
    x = Dense(self.inner, dtype=self.dtype)(nn.relu(x))
    x = Conv(self.inner, (side, side), dtype=self.dtype)(nn.relu(x))
    return Dense(self.out, dtype=self.dtype, kernel_init=last)(nn.relu(x))


def shrink(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b s s d"]:
  """Means of patches; to side 1, all positions side by side.

  A map that does not divide is padded with zeros.

  Raises:
    ValueError: if no patch size leads from one side to the other.
  """
  n = x.shape[1]
  if n == side:
    return x
  if side == 1:
    return x.reshape(len(x), 1, 1, -1)
  factor = -(-n // side)
  if -(-n // factor) != side:
    raise ValueError(f"a map of side {n} cannot be pooled to side {side}")
  x = jnp.pad(x, [(0, 0), *[(0, factor * side - n)] * 2, (0, 0)])
  return x.reshape(len(x), side, factor, side, factor, -1).mean((2, 4))


def grow(x: Float[Array, "b s s c"], side: int) -> Float[Array, "b h w c"]:
  """Every position repeated: the transpose of `shrink`, up to a factor."""
  factor = -(-side // x.shape[1])
  return x.repeat(factor, 1).repeat(factor, 2)[:, :side, :side]


class Group(nn.Module):
  """One group of latents on a map, and what it adds to the map.

  Attributes:
    latent: channels of z.
    inner: channels inside the bottlenecks.
    scale: of what is added, at initialisation: 1 / sqrt(groups), after Child, 2021.
  """

  latent: int
  inner: int
  scale: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    noise: Float[Array, "b h w z"],
    seen: Float[Array, "b h w c"] | None,
    given: Bool[Array, "b"] | None,
  ) -> tuple[Array, Float[Array, "b"], Float[Array, "b"]]:
    """The map below, KL [b], log p(z) - log q(z) [b].

    z is drawn from q, which moves p's mean and log variance by what `seen` says (Vahdat
    and Kautz, "NVAE", 2020, eq. 3, https://arxiv.org/abs/2007.03898), or from p where
    `given` is False or nothing is seen.
    """
    b, width, dtype = len(x), x.shape[-1], self.dtype
    p = Bottleneck(self.inner, width + 2 * self.latent, True, dtype=dtype, name="p")(x)
    h, mean, logvar = jnp.split(p, [width, width + self.latent], -1)
    mean, logvar = (v.astype(jnp.float32) for v in (mean, logvar))
    logvar = jnp.clip(logvar, -8.0, 8.0)
    kl, log_ratio, q_mean, q_logvar = jnp.zeros(b), jnp.zeros(b), mean, logvar
    if seen is not None:
      both = jnp.concatenate([x, seen], -1)
      q = Bottleneck(self.inner, 2 * self.latent, True, dtype=dtype, name="q")(both)
      by, by_log = jnp.split(q.astype(jnp.float32), 2, -1)
      if given is not None:
        by, by_log = (
          jnp.where(given[:, None, None, None], v, 0.0) for v in (by, by_log)
        )
      by_log = jnp.clip(by_log, -8.0, 8.0)
      # In units of p's deviation, so that KL does not depend on p.
      q_mean, q_logvar = mean + jnp.exp(0.5 * logvar) * by, logvar + by_log
      kl = 0.5 * (jnp.expm1(by_log) - by_log + jnp.square(by)).sum((1, 2, 3))
    z = q_mean + jnp.exp(0.5 * q_logvar) * noise
    if seen is not None:
      flat = lambda v: v.reshape(b, -1)
      z_, m, v, qm, qv = map(flat, (z, mean, logvar, q_mean, q_logvar))
      log_ratio = gaussian_log_prob(z_, m, v) - gaussian_log_prob(z_, qm, qv)
    scaled = lambda key, shape, dtype: self.scale * kernel_init(key, shape, dtype)
    x = x + h + Dense(width, dtype=dtype, kernel_init=scaled, name="z")(z.astype(dtype))
    x = x + Bottleneck(self.inner, width, scale=self.scale, dtype=dtype, name="after")(
      x
    )
    return x, kl, log_ratio


class Stage(NamedTuple):
  """A resolution of both networks.

  Attributes:
    side: of the map.
    groups: of latents, and residual blocks on the way up.
    latent: channels of each group's z; 0 for plain blocks on the way down.
    width: channels of the map.
    inner: channels inside the bottlenecks.
  """

  side: int
  groups: int
  latent: int
  width: int
  inner: int


class HierarchicalVAE(nn.Module):
  """Bottom-up and top-down networks of one image or sound.

  Between a map of one position and the next finer one stands a dense layer: what is
  global may be laid out anywhere at once.

  Attributes:
    modalities: the one modality, by name; its grid is square.
    stages: coarsest first; the finest side times `patch` is the side of the grid.
    patch: pixels a side that one position of the finest map stands for.
    mean: of a value, (x + 1) / 2, over the data; for Bernoulli outputs only.
    scale: of Gaussian and Laplace likelihoods.
    dtype: of the computation; parameters and latents stay float32.
  """

  modalities: Mapping[str, Modality]
  stages: Sequence[Stage]
  patch: int = 4
  mean: float = 0.5
  scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @property
  def size(self) -> int:
    """Of all latents together."""
    return sum(s.side**2 * s.groups * s.latent for s in self.stages)

  def places(self) -> dict[int, slice]:
    """Where the groups of each stage that has latents are among all, by its side."""
    at, places = 0, {}
    for s in self.stages:
      if s.latent:
        places[s.side] = slice(at, at + s.groups)
        at += s.groups
    return places

  def likelihood(self, name: str) -> Likelihood:
    """The observation model."""
    return modality_likelihood(self.modalities[name], self.scale)

  def setup(self):
    ((name, modality),) = self.modalities.items()
    h, w, channels = (*modality.shape, 1)[:3]
    finest = self.stages[-1]
    if not h == w == finest.side * self.patch:
      raise ValueError(
        f"grid {h} x {w}: the finest stage has side {finest.side}, and a patch is"
        f" {self.patch} a side"
      )
    net: dict[str, Any] = {"dtype": self.dtype}
    scale = 1 / math.sqrt(sum(s.groups for s in self.stages))
    self.fold = [Dense(s.width, **net) for s in self.stages]
    self.up = [
      [Bottleneck(s.inner, s.width, scale=scale, **net) for _ in range(s.groups)]
      for s in self.stages
    ]
    self.start = self.param(
      "start",
      nn.initializers.normal(0.1),
      (self.stages[0].side, self.stages[0].side, self.stages[0].width),
    )
    self.spread = [
      Dense(s.width * (s.side**2 if above.side == 1 else 1), **net)
      for above, s in itertools.pairwise(self.stages)
    ]
    self.place = [
      self.param(f"place_{s.side}", nn.initializers.zeros, (s.side, s.side, s.width))
      for s in self.stages[1:]
    ]
    self.down: list[list[Any]] = [
      [
        Group(s.latent, s.inner, scale, **net)
        if s.latent
        else Bottleneck(s.inner, s.width, scale=scale, **net)
        for _ in range(s.groups)
      ]
      for s in self.stages
    ]
    outputs = self.patch**2 * channels * self.likelihood(name).outputs
    bernoulli = modality.likelihood == "bernoulli"
    bias = math.log(self.mean / (1 - self.mean)) if bernoulli else 0.0
    self.wide = Dense(4 * finest.width, **net)
    # In float32: means of grey levels lie closer than bfloat16 tells them apart.
    self.unfold = Dense(outputs, bias_init=nn.initializers.constant(bias))

  def bottom_up(self, values: Mapping[str, Array]) -> list[Float[Array, "b s s c"]]:
    """What is seen of a value at every stage, coarsest first."""
    ((name, modality),) = self.modalities.items()
    grid = as_grid(modality, values[name]).astype(self.dtype)
    x, seen = space_to_depth(grid, self.patch), []
    for i in reversed(range(len(self.stages))):
      x = self.fold[i](shrink(x, self.stages[i].side))
      for block in self.up[i]:
        x = x + block(x)
      seen.append(x)
    return seen[::-1]

  def _finer(self, x: Float[Array, "b s s c"], i: int) -> Float[Array, "b h w c"]:
    """The map of stage i from that of the coarser one."""
    side, spread = self.stages[i].side, self.spread[i - 1]
    if x.shape[1] == 1:
      return spread(x).reshape(len(x), side, side, -1)
    return grow(spread(x), side)

  def top_down(
    self,
    noise: Float[Array, "b n"],
    seen: Sequence[Float[Array, "b s s c"]] | None = None,
    given: Bool[Array, "b"] | None = None,
  ) -> Pass:
    """One way down, on standard normal noise for all latents.

    Args:
      noise: [b size].
      seen: of `bottom_up`; without it, latents come from the prior.
      given: which examples' latents come from the posterior; without it, all.
    """
    ((name, modality),) = self.modalities.items()
    x = jnp.zeros((len(noise), *self.start.shape), self.dtype)
    x, at, kls, ratios = x + self.start.astype(self.dtype), 0, [], []
    for i, stage in enumerate(self.stages):
      if i:
        x = self._finer(x, i) + self.place[i - 1].astype(self.dtype)
      for group in self.down[i]:
        if not stage.latent:
          x = x + group(x)
          continue
        shape = (stage.side, stage.side, stage.latent)
        n = math.prod(shape)
        part = noise[:, at : at + n].reshape(-1, *shape)
        x, kl, ratio = group(x, part, None if seen is None else seen[i], given)
        at, kls, ratios = at + n, [*kls, kl], [*ratios, ratio]
    x = self.unfold(nn.relu(self.wide(nn.relu(x))))
    x = depth_to_space(x.astype(jnp.float32), self.patch)
    outputs = x.reshape(len(x), *modality.shape, self.likelihood(name).outputs)
    return Pass(outputs, jnp.stack(kls), jnp.stack(ratios).sum(0))

  def __call__(self, values: Mapping[str, Array], noise: Float[Array, "b n"]) -> Pass:
    """Up and down again."""
    return self.top_down(noise, self.bottom_up(values))
