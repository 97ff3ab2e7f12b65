"""The alignment step: contrastive losses of every pair of modalities."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mmgen_jax.contrastive import START, pair_loss
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.alignment import MAX_SCALE, Aligner
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import blank_missing, example_shapes, make_augment

Modalities = Mapping[str, Modality]


def build(config, modalities: Modalities) -> Aligner:
  """The network of a config.

  Raises:
    ValueError: if the loss is unknown, or there are no two modalities.
  """
  m, name = config.model, config.loss.objective
  if name not in START:
    raise ValueError(f"loss.objective must be one of {sorted(START)}, got {name!r}")
  if len(modalities) < 2:
    raise ValueError(f"there is nothing to align with {sorted(modalities)}")
  dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
  widths = m.widths.to_dict()
  return Aligner(dict(modalities), m.size, widths, m.features, name, m.blocks, dtype)


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0; network "aligner", and its average."""
  net = build(config, modalities)
  params = {"aligner": init_params(net, key, example_shapes(modalities))}
  opt_state = init_optimizers({"aligner": make_optimizer(config.optim)}, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def meaning(labels: Mapping[str, Array], names) -> Int[Array, "b n"] | None:
  """The labels in `names` of each example, for `make_pairs`; None for no names.

  Raises:
    ValueError: if there is no such label.
  """
  if unknown := sorted(set(names) - set(labels)):
    raise ValueError(f"loss.same names {unknown[0]!r}; labels are {sorted(labels)}")
  return jnp.stack([labels[name] for name in names], -1) if names else None


def _clip_scale(networks: dict) -> dict:
  """The networks with a scale of at most `MAX_SCALE`."""
  net = networks["aligner"]
  log_scale = jnp.minimum(net["log_scale"], math.log(MAX_SCALE))
  return {**networks, "aligner": {**net, "log_scale": log_scale}}


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Descends the mean over all pairs of modalities of `mmgen_jax.contrastive.pair_loss`,
  whose pairs are those of the global batch, whatever devices it is cut over. Examples
  that are equal in all labels of `config.loss.same` mean the same: they are positives of
  each other (none named: only an example's own modalities are). Inputs are augmented
  (`config.augment`). The scale is clipped after the update, and not in the loss, where it
  would have no slope to come back by.

  Raises:
    ValueError: for `config.accumulate` above 1, which would compare within microbatches.
  """
  net, names = build(config, modalities), sorted(modalities)
  augment = make_augment(config, modalities)
  txs = {"aligner": make_optimizer(config.optim)}
  if config.accumulate > 1:
    raise ValueError(f"accumulate must be 1 for alignment, got {config.accumulate}")

  def objective(params, batch, keys, axis):
    values, mask = blank_missing(batch, modalities)
    values = augment(keys, values)
    out = apply(net, params, values)
    scale, bias = apply(net, params, method="temper")
    same = meaning(batch["labels"], config.loss.same)
    metrics, total = {"scale": scale}, jnp.zeros(())
    pairs = list(combinations(range(len(names)), 2))
    for i, j in pairs:
      a, b = names[i], names[j]
      nats = pair_loss(
        config.loss.objective,
        out[a],
        out[b],
        (mask[i], mask[j]),
        same,
        scale,
        bias,
        axis,
      )
      metrics[f"{a}_{b}"] = nats.mean()
      total += nats.mean() / len(pairs)
    metrics["loss"] = total
    return total, {f"alignment/{k}": v for k, v in metrics.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)

    def gradients(params, batch, keys):
      of = jax.grad(partial(objective, axis=axis), has_aux=True)
      grads, metrics = of(params["aligner"], batch, keys)
      return {"aligner": grads}, metrics

    mean = mean_of_microbatches(gradients, accumulate=1, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    clipped = {"params": _clip_scale(state.params), "ema": _clip_scale(state.ema)}
    state = state.replace(**clipped)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> similarity per example and pair of modalities.

  `cosine_<a>_<b>` of an example's own modalities, 0 where one of them is missing.
  """
  generate, names = make_generate(config, modalities), sorted(modalities)

  def eval_step(params, batch, key):
    out = generate(params, batch, jnp.ones(len(names), bool), key)
    pairs = combinations(names, 2)
    return {f"cosine_{a}_{b}": (out[a] * out[b]).sum(-1) for a, b in pairs}

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Each modality alone: what can be a query."""
  return [(name,) for name in sorted(modalities)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {modality: embeddings [b d]}`.

  Zero for what an example lacks, or is not given (bool [m], in sorted order of names).
  """
  net, names = build(config, modalities), sorted(modalities)

  def generate(params, batch, given, key):
    del key
    values, mask = blank_missing(batch, modalities)
    out = apply(net, params["aligner"], values)
    keep = mask & given[:, None]
    return {n: jnp.where(keep[i][:, None], out[n], 0.0) for i, n in enumerate(names)}

  return generate
