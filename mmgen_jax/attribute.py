"""Attribution of a trained network on held-out examples: for records and for pictures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax import attribution
from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model, to_stored
from mmgen_jax.metrics import coherence
from mmgen_jax.models.layers import apply
from mmgen_jax.scores import Entry, Reads, Setting, mean_entry
from mmgen_jax.steps import STEPS, recognition
from mmgen_jax.steps.inputs import blank_missing


class Saliency(NamedTuple):
  """Why a recogniser said what it said of k examples, for one label.

  Attributes:
    label: what was recognised.
    kinds: {modality: "image" or "audio"}, the inputs that have gradients.
    seen: {modality: stored [k ...]}, as the network saw them.
    maps: {modality: float32 [k h w]}: integrated gradients of the log odds of the class
      that was said, from an input of -1 (black, silent); channels added up.
    rest: float32 [k]: log odds less all of the maps: those of the baseline.
    looks: {where: float32 [m k]}: `attribution.fusion_weights`; m in sorted order.
    names: the inputs, sorted.
    said: int32 [k].
    truth: int32 [k].
  """

  label: str
  kinds: dict[str, str]
  seen: dict[str, np.ndarray]
  maps: dict[str, np.ndarray]
  rest: np.ndarray
  looks: dict[str, np.ndarray]
  names: list[str]
  said: np.ndarray
  truth: np.ndarray


def log_odds(logits, classes):
  """Log p_c - log(1 - p_c) of one class per example, [b]."""
  chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
  others = jax.nn.logsumexp(jnp.where(chosen, -1e9, logits), axis=-1)
  return jnp.where(chosen, logits, 0.0).sum(-1) - others


def explain(config, params, examples: Examples, indices, points: int = 24) -> Saliency:
  """Saliency of some examples, for the first label of `config.model.labels`."""
  net = recognition.build(config, examples.modalities)
  inputs, label = net.modalities, sorted(net.labels)[0]
  grids = [name for name, m in inputs.items() if m.kind != "text"]
  damage = recognition.make_damage(config, examples.modalities)
  params = recognition.merged(params)
  run = partial(apply, net, params)

  @jax.jit
  def of(rows):
    batch = rows | {n: to_model(m, rows[n]) for n, m in inputs.items()}
    values, mask = blank_missing(batch, inputs)
    values = damage(recognition.keys_of_index(rows["index"]), values)

    def logits(x):
      features = run(values | x, method="encode")
      return run(features, mask, method="decide")[label]

    x = {name: values[name] for name in grids}
    said = logits(x).argmax(-1)
    odds = lambda x: log_odds(logits(x), said)
    nothing = jax.tree.map(lambda v: jnp.full_like(v, -1.0), x)
    maps = attribution.integrated_gradients(odds, x, nothing, points=points)
    flat = {n: v.reshape(*v.shape[:3], -1).sum(-1) for n, v in maps.items()}
    rest = odds(x) - sum(v.sum((1, 2)) for v in flat.values())
    features = run(values, method="encode")
    look = lambda: net.apply(
      {"params": params},
      features,
      mask,
      method="fuse",
      mutable=["intermediates"],
    )
    looks = attribution.fusion_weights(look, len(inputs))  # type: ignore[arg-type]
    return x, flat, rest, looks, said

  seen, maps, rest, looks, said = jax.device_get(of(examples.rows(indices)))
  seen = {name: to_stored(inputs[name], x) for name, x in seen.items()}
  kinds = {name: inputs[name].kind for name in grids}
  truth = examples.labels[label][np.asarray(indices)]
  return Saliency(
    label, kinds, seen, maps, rest, looks, sorted(inputs), said.astype(np.int32), truth
  )


def save(path: Path, s: Saliency) -> None:
  """Writes one to a .npz file."""
  arrays: dict[str, Any] = {"rest": s.rest, "said": s.said, "truth": s.truth}
  arrays |= {f"seen/{n}": x for n, x in s.seen.items()}
  arrays |= {f"maps/{n}": x for n, x in s.maps.items()}
  arrays |= {f"looks/{n}": x for n, x in s.looks.items()}
  arrays |= {f"kind/{n}": np.array(kind) for n, kind in s.kinds.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(path, label=np.array(s.label), names=np.array(s.names), **arrays)


def load(path: Path) -> Saliency:
  """What `save` wrote."""
  with np.load(path, allow_pickle=False) as file:
    of = lambda kind: {
      key.split("/", 1)[1]: file[key] for key in file.files if key.startswith(kind)
    }
    return Saliency(
      str(file["label"]),
      {name: str(kind) for name, kind in of("kind/").items()},
      of("seen/"),
      of("maps/"),
      file["rest"],
      of("looks/"),
      file["names"].tolist(),
      file["said"],
      file["truth"],
    )


PRODUCTS = ("mvae", "mopoe", "mvtcae")  # posteriors of the family "multimodal"


def expert_entries(config, params, examples: Examples, indices) -> list[Entry]:
  """What each expert of a multimodal VAE decides, and how it contradicts the others.

  Of models whose posterior is a product of experts, and of examples that have
  everything. `precision_share`: of the product of the experts alone, no prior, with
  `by_latent`; `conflict`: KL(product || expert) in nats.
  """
  multiplies = config.family == "multimodal" and config.loss.posterior in PRODUCTS
  if not (multiplies or config.family == "fusion"):
    return []
  vae: Any = STEPS[config.family].build(config, examples.modalities)
  vae = vae[0] if config.family == "fusion" else vae
  params = params["vae"]
  modalities, names = examples.modalities, sorted(examples.modalities)
  present, indices = examples.present, np.asarray(indices)
  everything = np.all([present[n][indices] for n in names], axis=0)
  if len(names) < 2 or not everything.any():
    return []

  @jax.jit
  def of(params, rows):
    batch = rows | {n: to_model(m, rows[n]) for n, m in modalities.items()}
    values, mask = blank_missing(batch, modalities)
    means, logvars = apply(vae, params, values, method="encode")
    shares = attribution.precision_shares_by_latent(logvars, mask, 0.0)[:-1]
    return shares, attribution.conflict(means, logvars, mask)

  parts, size = [], config.eval.batch_size
  kept = indices[everything]
  for first in range(0, len(kept), size):
    part = kept[first : first + size]
    made = jax.device_get(of(params, examples.rows(np.resize(part, size))))
    parts.append([x[:, : len(part)] for x in made])
  shares, conflict = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
  entries = []
  for i, name in enumerate(names):
    more = {"given": [name], "target": None, "resamples": config.eval.bootstrap}
    by = [round(float(x), 5) for x in shares[i].mean(0)]
    mean = shares[i].mean(1)
    entries.append(mean_entry("precision_share", mean, by_latent=by, **more))
    entries.append(mean_entry("conflict", conflict[i], **more))
  return entries


def coherence_entries(s: Setting, reads: Reads) -> list[Entry]:
  """Shapley values of strict coherence: what each given modality adds, per target.

  They add up to the coherence given all others less that of samples of the prior with
  the example. `shapley/coherence`, of examples that have all others.
  """
  entries = []
  for target in dict.fromkeys(t for _, t in reads):
    others = sorted({n for given, t in reads if t == target for n in given} - {target})
    values: dict[tuple[str, ...], Any] = {}
    for (given, t), read in reads.items():
      if t == target and target not in given:
        right = coherence.correct(read, s.truth(read))["strict"]
        values[tuple(sorted(given))] = right.astype(float)
    known = next(read for (_, t), read in reads.items() if t == target)
    rows = s.has(others) & s.labelled(known)
    if len(others) < 2 or len(values) < 2 ** len(others) or not rows.any():
      continue
    shares: Mapping[str, np.ndarray] = attribution.shapley(values)
    for name, x in shares.items():
      more = {"given": [name], "target": target, "resamples": s.resamples}
      entries.append(mean_entry("shapley/coherence", x[rows], **more))
  return entries
