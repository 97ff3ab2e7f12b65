"""The autoregressive step: a PixelCNN of pixels, or of a trained coder's codes.

With codes, the coder's networks ("vae", "codebook") are in the State beside "prior",
which alone learns. They come from the run that `config.initial` names
(`mmgen_jax.initial`); its config is repeated as `config.coder`, so nothing else is asked
of that run afterwards.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen_jax.data.modality import Modality
from mmgen_jax.likelihoods import categorical
from mmgen_jax.models import pixelcnn
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.models.vae import binarise
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps import vq
from mmgen_jax.steps.inputs import blank_missing, only

Modalities = Mapping[str, Modality]
SOURCES = ("pixels", "codes")


class Integers(NamedTuple):
  """What is modelled: maps of integers, as pure functions of a State's `params`.

  Attributes:
    shape: (h, w, c) of the map.
    levels: integers are in [0, levels).
    read: (params, values of the modality, keys) -> integers [b h w c].
    show: (params, integers) -> values of the modality.
    log_rest: (params, values, integers) -> log p(values | integers) [b], or None where
      the integers are the values.
  """

  shape: tuple[int, int, int]
  levels: int
  read: Callable[..., Int[Array, "b h w c"]]
  show: Callable[..., Array]
  log_rest: Callable[..., Float[Array, "b"]] | None


def _pixels(config, modality: Modality) -> Integers:
  """Values cut into `config.model.grey_levels`; or black and white by chance."""
  h, w, c = (*modality.shape, 1)[:3]
  binary, levels = config.loss.get("binarise", False), config.model.grey_levels
  if not 2 <= levels <= 256 or (binary and levels != 2):
    raise ValueError(
      "model.grey_levels must be from 2 to 256, and 2 with loss.binarise, got"
      f" {config.model.grey_levels}"
    )

  def read(params, values, keys):
    x = binarise(keys, values) if binary else values
    stored = jnp.rint((x + 1.0) * 127.5)
    return as_grid(modality, (stored * levels / 256.0).astype(jnp.int32))

  def show(params, x):
    return x.reshape(len(x), *modality.shape) * (2.0 / (levels - 1)) - 1.0

  return Integers((h, w, c), levels, read, show, None)


def _codes(config, modalities: Modalities) -> Integers:
  if "coder" not in config or not config.get("initial", {}):
    raise ValueError(
      "model.source 'codes' needs config.coder, the config of a trained vq run, and"
      " config.initial, its workdir by network (--config.initial.vae=DIR)"
    )
  coder, name = vq.build(config.coder, modalities), config.model.modality
  net = coder.net

  def show(params, ids):
    to = coder.lookup(params, ids[..., 0])
    return net.likelihood.mode(apply(net, params["vae"], to, method="decode"))

  def log_rest(params, values, ids):
    to = coder.lookup(params, ids[..., 0])
    outputs = apply(net, params["vae"], to, method="decode")
    return net.likelihood.log_prob(outputs, values)

  if config.coder.model.modality != name:
    raise ValueError(
      f"model.modality is {name!r}, the coder's {config.coder.model.modality!r}"
    )
  read = lambda params, values, keys: coder.encode(params, values)[1][..., None]
  return Integers((*net.grid, 1), coder.codes, read, show, log_rest)


def build(config, modalities: Modalities) -> tuple[pixelcnn.PixelCNN, Integers]:
  """The network, and what it models of the modality that `config.model.modality` names.

  Raises:
    ValueError: if the data set has no such modality, it is text, or there is no such
      `config.model.source`.
  """
  m, dtype = config.model, jnp.bfloat16 if config.bfloat16 else jnp.float32
  modality = only(modalities, m.modality)[m.modality]
  if modality.kind == "text":
    raise ValueError(f"model.modality {m.modality!r} is text; choose an image or sound")
  if m.source not in SOURCES:
    raise ValueError(f"model.source must be one of {SOURCES}, got {m.source!r}")
  of = _codes(config, modalities) if m.source == "codes" else _pixels(config, modality)
  net = pixelcnn.PixelCNN(
    of.shape,
    of.levels,
    m.width,
    m.layers,
    m.reach,
    m.embedded,
    m.classes,
    dtype,
  )
  return net, of


def _optimizers(config) -> dict:
  return {"prior": make_optimizer(config.optim)}


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0: "prior" and its average; the coder's networks beside them."""
  net, of = build(config, modalities)
  keys = jax.random.split(key)
  x = jax.ShapeDtypeStruct((1, *of.shape), jnp.int32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32) if config.model.classes else None
  params: dict[str, Any] = {"prior": init_params(net, keys[0], x, label)}
  opt_state = init_optimizers(_optimizers(config), params)
  if config.model.source == "codes":
    params |= vq.init(keys[1], config.coder, modalities).ema
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def _labels(config, batch: dict) -> Array | None:
  """The class of each example, None for an unconditional model.

  Raises:
    ValueError: if the data set has no such label.
  """
  if not config.model.classes:
    return None
  if config.model.label not in batch["labels"]:
    raise ValueError(
      f"model.label is {config.model.label!r}; the data set has"
      f" {sorted(batch['labels'])}"
    )
  return batch["labels"][config.model.label]


def _make_log_prob(config, modalities: Modalities) -> Callable:
  """`log_prob(params, batch, keys)` -> (values, integers, has [b], log p [b])."""
  (net, of), name = build(config, modalities), config.model.modality
  log_prob_of = categorical(classes=of.levels).log_prob

  def log_prob(params, batch, keys):
    values, mask = blank_missing(batch, {name: modalities[name]})
    x = jax.lax.stop_gradient(of.read(params, values[name], keys))
    logits = apply(net, params["prior"], x, _labels(config, batch))
    return values[name], x, mask[0], log_prob_of(logits, x)

  return log_prob


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Ascends log p(integers), exactly: the sum of the log probabilities of each, given
  those before it. The loss is in bits per integer.
  """
  log_prob, txs = _make_log_prob(config, modalities), _optimizers(config)
  _, of = build(config, modalities)
  bits = 1.0 / (math.prod(of.shape) * math.log(2))

  def loss(prior, params, batch, keys):
    _, _, has, logp = log_prob(params | {"prior": prior}, batch, keys)
    logp = jnp.where(has, logp, 0.0)
    metrics = {"logp": logp.mean(), "loss": -logp.mean() * bits}
    return metrics["loss"], {f"autoregressive/{k}": v for k, v in metrics.items()}

  def gradients(params, batch, keys):
    g, metrics = jax.grad(loss, has_aux=True)(params["prior"], params, batch, keys)
    return {"prior": g}, metrics

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)
    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `logp`, `bits_per_dimension` per example.

  Of the integers. With codes, `bits_per_code` in its place, and `elbo`: log p(codes) +
  log p(x | codes), a bound on log p(x) as the coder is deterministic.
  """
  log_prob = _make_log_prob(config, modalities)
  _, of = build(config, modalities)

  def eval_step(params, batch, key):
    keys = example_keys(key, len(batch["index"]), None)
    values, x, has, logp = log_prob(params, batch, keys)
    bits = -logp / (math.prod(of.shape) * math.log(2))
    if of.log_rest is None:
      terms = {"logp": logp, "bits_per_dimension": bits}
    else:
      elbo = logp + of.log_rest(params, values, x)
      terms = {"logp": logp, "bits_per_code": bits, "elbo": elbo}
    return {k: jnp.where(has, v, 0.0) for k, v in terms.items()}

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Only the prior: nothing can be given."""
  return [()]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: values in model space}`.

  Samples, of the batch's labels where the model has classes.
  """
  net, of = build(config, modalities)

  def generate(params, batch, given, key):
    keys = example_keys(key, len(batch["index"]), None)
    draw = partial(pixelcnn.sample, net, params["prior"])
    return {config.model.modality: of.show(params, draw(keys, _labels(config, batch)))}

  return generate
