"""What the latents of a trained VAE are worth: entries of records, as in `scores`.

For VAEs of one modality with a Gaussian posterior: how many latents are used; where
there are labels, what a linear probe and neighbours read from them; how well the ELBO
tells pictures from the same turned by a quarter; how well a hidden half is imputed; on
the data set `factors`, whose every picture can be drawn, the disentanglement scores.
`config.eval.latents` says how many examples each takes; without it nothing is measured.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from mmgen_jax import imputation, interpret, representation
from mmgen_jax.data import factors
from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.metrics import disentanglement, likelihood, shared_factor
from mmgen_jax.models import latents
from mmgen_jax.parallel import example_keys
from mmgen_jax.scores import Entry
from mmgen_jax.steps import bounds, vae


class Codes(NamedTuple):
  """Posteriors q(z | x) of n examples, and one-sample ELBOs.

  Attributes:
    mean: of the Gaussian.
    logvar: of the Gaussian.
    elbo: in nats.
  """

  mean: Float[np.ndarray, "n z"]
  logvar: Float[np.ndarray, "n z"]
  elbo: Float[np.ndarray, " n"]


def applies(config) -> bool:
  """Whether a config is of a VAE whose latents are what this module is about."""
  gaussian = config.model.get("net", "conv") in ("conv", "mlp")
  return config.family == "vae" and gaussian


def make_encode(config, modalities, *, batch_size: int = 500) -> Callable[..., Codes]:
  """`encode(params, stored, seed=0) -> Codes` of stored values [n ...] of any number.

  Binarisation, where the config asks for it, and z follow from the seed.
  """
  name = config.model.modality
  model = bounds.make_model(vae.build(config, modalities), config)

  def run(params, stored, key):
    pairs = jax.vmap(jax.random.split)(example_keys(key, len(stored), None))
    has = np.ones(len(stored), bool)
    batch = {name: to_model(modalities[name], stored), "mask": {name: has}}
    q = model.posterior(params, batch, pairs[:, 0])
    z = bounds.draw(pairs[:, 1], q, 1)
    elbo = model.log_px(params, q.x, z)[0] - bounds.kl(model, params, q, z)
    return q.mean, q.logvar, elbo

  compiled = jax.jit(run, compiler_options=dict(config.get("compiler_options", {})))

  def encode(params, stored, seed: int = 0) -> Codes:
    parts, key = [], jax.random.key(seed)
    for first in range(0, len(stored), batch_size):
      part = stored[first : first + batch_size]
      rows = np.resize(part, (batch_size, *part.shape[1:]))  # repeats; cut off below
      made = compiled(params, rows, jax.random.fold_in(key, first))
      parts.append([np.asarray(x)[: len(part)] for x in made])
    return Codes(*map(np.concatenate, zip(*parts, strict=True)))

  return encode


def _entry(metric: str, value: float, count: int, **how) -> Entry:
  more = {"given": None, "target": None, "samples": count, "interval": None}
  return {"metric": metric, "value": float(value), **more, **how}


def use_entries(codes: Codes) -> list[Entry]:
  """Active units, and the KL of all latents."""
  n, kl = len(codes.mean), likelihood.mean_kl_by_dimension(codes.mean, codes.logvar)
  active = likelihood.active_units(codes.mean).sum()
  return [
    _entry("latents/active_units", active, n),
    _entry("latents/kl", kl.sum(), n),
  ]


NEIGHBOURS = 5


def probe_entries(train: Codes, labels, test: Codes, test_labels) -> list[Entry]:
  """Accuracy of a linear probe and of five neighbours, by label."""
  out = []
  for name, values in labels.items():
    # A folder's labels are -1 where a cell is empty.
    known, asked = values >= 0, test_labels[name] >= 0
    if not known.any() or not asked.any():
      continue
    data = train.mean[known], values[known], test.mean[asked]
    truth, n = test_labels[name][asked], int(asked.sum())
    how = {"target": name, "learned_from": int(known.sum())}
    probes = {"linear_probe": representation.linear_probe(*data)}
    if known.sum() >= NEIGHBOURS:
      near = representation.nearest_neighbours(*data, neighbours=NEIGHBOURS)
      probes["neighbours"] = near
    for metric, read in probes.items():
      right = (read == truth).mean()
      out.append(_entry(f"latents/{metric}", right, n, **how))
  return out


def anomaly_entries(encode, params, stored: np.ndarray, codes: Codes) -> list[Entry]:
  """AUROC of the negative ELBO, of pictures against the same turned by a quarter."""
  if stored.ndim != 4 or stored.shape[1] != stored.shape[2]:
    return []
  turned = encode(params, np.rot90(stored, axes=(1, 2)).copy())
  value = representation.auroc(-codes.elbo, -turned.elbo)
  return [_entry("latents/anomaly_auroc", value, len(stored), anomaly="quarter turn")]


def make_represent(encode, params) -> Callable[[np.ndarray], np.ndarray]:
  """`represent(factors [n 5]) -> codes [n z]`; no picture is encoded twice."""
  known: dict[str, np.ndarray] = {"at": np.full(factors.TOTAL, -1, np.int32)}

  def represent(values: Int[np.ndarray, "n 5"]) -> np.ndarray:
    index = factors.index_of(values)
    new = np.unique(index[known["at"][index] < 0])
    if len(new):
      start = len(known["codes"]) if "codes" in known else 0
      made = encode(params, factors.render(factors.factors_of(new))).mean
      old = [known["codes"]] if start else []
      known["codes"] = np.concatenate([*old, made])
      known["at"][new] = start + np.arange(len(new))
    return known["codes"][known["at"][index]]

  return represent


def disentanglement_entries(
  represent, *, examples: int, votes: int, seed: int = 0
) -> list[Entry]:
  """MIG, DCI, SAP, FactorVAE and beta-VAE scores on all combinations of factors.

  Args:
    represent: factors [n 5] -> codes [n z].
    examples: to learn from; half as many to test. Published: 10,000.
    votes: of the FactorVAE and beta-VAE scores; half as many to test. Published: 10,000.
    seed: of which pictures.
  """
  rng, sizes = np.random.default_rng(seed), tuple(factors.SIZES.values())
  index = rng.integers(0, factors.TOTAL, examples + examples // 2)
  truth = factors.factors_of(index)
  codes = represent(truth)
  data = codes[:examples], truth[:examples], codes[examples:], truth[examples:]
  d = disentanglement.dci(*data)
  shared = {"votes": votes, "test_votes": votes // 2, "seed": seed}
  higgins = {"points": votes, "test_points": votes // 2, "seed": seed}
  found = {
    "mig": (disentanglement.mig(*data[:2]), examples),
    "dci_disentanglement": (d.disentanglement, examples),
    "dci_completeness": (d.completeness, examples),
    "dci_informativeness": (d.informativeness, examples),
    "sap": (disentanglement.sap(*data, categorical=(0,)), examples),
    "factor_vae_score": (
      shared_factor.factor_vae_score(represent, sizes, **shared),
      votes // 2,
    ),
    "beta_vae_score": (
      shared_factor.beta_vae_score(represent, sizes, **higgins),
      votes // 2,
    ),
  }
  return [_entry(f"disentanglement/{name}", v, n) for name, (v, n) in found.items()]


def measure(
  config, params, train: Examples, held_out: Examples, path: Path, say
) -> list[Entry]:
  """All that `config.eval.latents` asks for: {"examples": .., "votes": ..}.

  What the report shows of single latents is written to `path`.
  """
  asked: Any = config.eval.get("latents")
  if not asked or not applies(config):
    return []
  name = config.model.modality
  encode = make_encode(config, held_out.modalities)
  decode = interpret.make_decode(config, held_out.modalities)
  rows, test_rows = (there(x, name, asked.examples) for x in (train, held_out))
  stored = held_out.columns[name].take(test_rows)
  test_labels = {k: v[test_rows] for k, v in held_out.labels.items()}
  codes = encode(params, stored)
  out = use_entries(codes)
  if config.model.get("pseudo_inputs", 0) or config.model.get("flow_layers", 0):
    out = [e for e in out if e["metric"] != "latents/kl"]  # that is KL to N(0, I)
  out += anomaly_entries(encode, params, stored, codes)
  if held_out.modalities[name].kind == "image":
    decode = partial(decode, params)
    shown = interpret.interpret(decode, codes.mean, codes.logvar, test_labels)
    pair = train.columns[name].take(rows), stored[: imputation.EXAMPLES]
    entries, tiles = imputation.halves(config, params, held_out.modalities, *pair)
    interpret.save(path, shown._replace(imputed=tiles))
    out += entries
  if held_out.name == "factors":
    represent = make_represent(encode, params)
    how = {"examples": asked.examples, "votes": asked.votes, "seed": config.seed}
    out += disentanglement_entries(represent, **how)
  elif test_labels:
    learned = encode(params, train.columns[name].take(rows))
    labels = {k: v[rows] for k, v in train.labels.items()}
    out += probe_entries(learned, labels, codes, test_labels)
  for entry in out:
    say(f"{entry['metric']}: {entry['value']:.3f}")
  return out


def there(examples: Examples, name: str, count: int) -> Int[np.ndarray, " n"]:
  """The first `count` examples that have the modality."""
  return np.flatnonzero(examples.present[name])[:count]


def fit_sampler(config, params, train: Examples) -> dict:
  """`params`, and what `config.eval.sampler` says is sampled in the prior's place.

  Fitted to the posteriors of the first `config.eval.sampler_examples` (10,000) of the
  training split, of `config.eval.sampler_components` (50); "prior": nothing.

  Raises:
    ValueError: for a name that `latents.SAMPLERS` lacks, or another kind of model.
  """
  name = config.eval.get("sampler", "prior")
  if name == "prior":
    return params
  if not applies(config):
    raise ValueError(f"eval.sampler = {name!r} is for VAEs of Gaussian posteriors")
  modality = config.model.modality
  rows = there(train, modality, config.eval.get("sampler_examples", 10_000))
  codes = make_encode(config, train.modalities)(
    params, train.columns[modality].take(rows)
  )
  components = config.eval.get("sampler_components", 50)
  fitted = latents.fit(
    name,
    codes.mean,
    codes.logvar,
    components=min(components, len(rows)),
    seed=config.seed,
  )
  return {**params, "sampler": fitted}
