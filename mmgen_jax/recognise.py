"""What a recogniser says of held-out examples: every subset, damaged inputs, trust.

`make_measure` gives entries for records; what is in one is told in `mmgen_jax.scores`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmgen_jax.attribution import shapley
from mmgen_jax.data.corrupt import KINDS, SEVERITIES, corrupt
from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.metrics import calibration, coherence, robustness
from mmgen_jax.models.layers import apply
from mmgen_jax.parallel import AXIS, make_mesh
from mmgen_jax.scores import mean_entry
from mmgen_jax.steps import recognition
from mmgen_jax.steps.inputs import blank_missing

Entry = dict[str, Any]
Subset = tuple[str, ...]
Damage = tuple[str, str, float]  # modality, kind, strength


class Predictions(NamedTuple):
  """What was said of n examples, given each of s subsets of the inputs.

  Attributes:
    subsets: of the inputs, () first.
    logits: {label: [s n c]}.
    truth: {label: int32 [n]}.
    has: {subset: bool [n]}, which examples have all of it.
  """

  subsets: list[Subset]
  logits: dict[str, np.ndarray]
  truth: dict[str, np.ndarray]
  has: dict[Subset, np.ndarray]

  def right(self, label: str) -> np.ndarray:
    """Whether the likeliest class is the right one, bool [s n]."""
    return self.logits[label].argmax(-1) == self.truth[label]


def make_predict(
  config, modalities, *, batch_size: int
) -> Callable[..., list[Predictions]]:
  """`predict(params, examples, indices, damages=()) -> [Predictions]`.

  One for the examples as they are, then one for each damage. Every modality is encoded
  once, and once more for each damage of it; all subsets are then fused in one pass.
  """
  net = recognition.build(config, modalities)
  inputs = recognition.used(config, modalities)
  subsets = recognition.subsets(config, modalities)
  suffer = recognition.make_damage(config, modalities)
  names = sorted(inputs)
  givens = np.array([[name in s for name in names] for s in subsets], bool)
  mesh = make_mesh(jax.local_devices())
  batch_size = -(-batch_size // mesh.size) * mesh.size
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

  @jax.jit
  def observe(rows):
    values = {name: to_model(m, rows[name]) for name, m in inputs.items()}
    values, mask = blank_missing(rows | values, inputs)
    return suffer(recognition.keys_of_index(rows["index"]), values), mask

  def encode(name):
    of = lambda params, x: apply(net, params, name, x, method="encode_one")
    return jax.jit(of)

  def worse(name, kind):
    def one(index, x, strength):
      key = jax.random.fold_in(jax.random.key(1), index)
      return corrupt(key, x, inputs[name], {kind: strength})

    return jax.jit(jax.vmap(one, (0, 0, None)))

  @jax.jit
  def fuse(params, features, mask):
    of = lambda given: apply(
      net, params, features, mask & given[:, None], method="decide"
    )
    return jax.vmap(of)(givens)

  encoders = {name: encode(name) for name in names}
  damagers = {(n, k): worse(n, k) for n in names for k in KINDS[inputs[n].kind]}

  def predict(params, examples: Examples, indices, damages: Sequence[Damage] = ()):
    params = jax.device_put(recognition.merged(params), whole)
    indices, parts = np.asarray(indices), []
    labels = {label: examples.labels[label][indices] for label in net.labels}
    indices = indices[coherence.known(labels)]  # of others nothing can be right
    for first in range(0, len(indices), batch_size):
      part = indices[first : first + batch_size]
      rows = jax.device_put(examples.rows(np.resize(part, batch_size)), split)
      values, mask = observe(rows)
      features = {n: encoders[n](params, values[n]) for n in names}
      made = [fuse(params, jnp.stack([features[n] for n in names]), mask)]
      for name, kind, strength in damages:
        x = damagers[name, kind](rows["index"], values[name], strength)
        changed = features | {name: encoders[name](params, x)}
        made.append(fuse(params, jnp.stack([changed[n] for n in names]), mask))
      cut = lambda x, count: np.asarray(x)[:, :count]
      parts.append(jax.tree.map(partial(cut, count=len(part)), made))
    truth = {label: examples.labels[label][indices] for label in net.labels}
    present = examples.present
    every = np.ones(len(indices), bool)
    has = {
      s: np.all([every, *(present[name][indices] for name in s)], axis=0)
      for s in subsets
    }
    none = {
      x: np.zeros((len(subsets), 0, k), np.float32) for x, k in net.labels.items()
    }
    join = lambda i, label: np.concatenate(
      [none[label], *(p[i][label] for p in parts)], 1
    )
    return [
      Predictions(subsets, {label: join(i, label) for label in truth}, truth, has)
      for i in range(1 + len(damages))
    ]

  return predict


def damages(inputs: Mapping[str, Any]) -> list[Damage]:
  """Every kind of damage of every input at every strength that is tested."""
  return [
    (name, kind, strength)
    for name, modality in inputs.items()
    for kind in KINDS[modality.kind]
    for strength in SEVERITIES[kind]
  ]


def suffered(config, names: Iterable[str]) -> str:
  """What these inputs suffer at test (`config.corrupt`), as JSON; "" if nothing."""
  how = {n: dict(x) for n, x in config.get("corrupt", {}).items() if n in names and x}
  return json.dumps(how, sort_keys=True) if how else ""


def _mean(metric: str, values, config, **more) -> Entry:
  return mean_entry(metric, values, resamples=config.eval.bootstrap, **more)


def subset_entries(config, p: Predictions, held_out: Predictions) -> list[Entry]:
  """Accuracy and calibration of every subset; temperatures come from `held_out`.

  `accuracy_of_all/<label>` is that of whatever inputs a recogniser has, without their
  names: what recognisers of other modalities are compared by. All others name in `of`
  what their inputs suffered; this one only tells it, for other inputs suffer otherwise.
  """
  entries = []
  for label in p.truth:
    if (rows := p.has[p.subsets[-1]]).any():
      right = p.right(label)[-1][rows]
      of = {"given": None, "target": label, "damage": suffered(config, p.subsets[-1])}
      entries.append(_mean(f"accuracy_of_all/{label}", right, config, **of))
    for i, given in enumerate(p.subsets):
      rows, fit = p.has[given], held_out.has[given]
      if not given or not rows.any():
        continue
      direction = {"given": list(given), "target": label}
      direction["of"] = suffered(config, given)
      logits, truth = p.logits[label][i][rows], p.truth[label][rows]
      mean = lambda metric, x, d=direction: _mean(metric, x, config, **d)
      entries.append(mean(f"accuracy/{label}", p.right(label)[i][rows]))
      entries.append(mean(f"nll/{label}", calibration.nll(logits, truth)))
      entries.append(mean(f"brier/{label}", calibration.brier(logits, truth)))
      plain = {"interval": None, "samples": len(truth), **direction}
      error = calibration.calibration_error(logits, truth)
      bins = calibration.reliability(logits, truth)
      of = {"metric": f"ece/{label}", "value": error, "reliability": bins}
      entries.append({**of, **plain})
      if fit.any():
        fitted = held_out.logits[label][i][fit], held_out.truth[label][fit]
        t = calibration.fit_temperature(*fitted)
        entries.append({"metric": f"temperature/{label}", "value": t, **plain})
        scaled = calibration.nll(logits / t, truth)
        entries.append(mean(f"nll_scaled/{label}", scaled))
        error = calibration.calibration_error(logits / t, truth)
        entries.append({"metric": f"ece_scaled/{label}", "value": error, **plain})
  return entries


def share_entries(config, p: Predictions) -> list[Entry]:
  """What each modality gives to the accuracy: Shapley values, utilisation rates.

  Of examples that have every input. `shapley/<label>`: the values of the modality in
  `given` add up to the accuracy from all less that from none.
  """
  everything = p.subsets[-1]
  rows, entries = p.has[everything], []
  if len(everything) < 2 or not rows.any():
    return []
  for label in p.truth:
    right = p.right(label)[:, rows]
    by_subset = {s: right[i].astype(float) for i, s in enumerate(p.subsets)}
    values = shapley(by_subset)
    full = by_subset[everything].mean()
    for name in everything:
      direction = {"given": [name], "target": label, "of": suffered(config, everything)}
      entries.append(_mean(f"shapley/{label}", values[name], config, **direction))
      rest = tuple(n for n in everything if n != name)
      rate = robustness.utilisation(full, by_subset[rest].mean())
      plain = {"interval": None, "samples": int(rows.sum()), **direction}
      entries.append({"metric": f"utilisation/{label}", "value": rate, **plain})
  return entries


def damage_entries(
  config, clean: Predictions, found: Mapping[Damage, Predictions]
) -> list[Entry]:
  """Accuracy under each damage, for the subsets that have the damaged modality.

  `damaged/<label>/<modality>/<kind>/<strength>`, and the area under each curve,
  `robustness/<label>/<modality>/<kind>`.
  """
  entries = []
  for label in clean.truth:
    for i, given in enumerate(clean.subsets):
      rows, curves = clean.has[given], {}
      if not rows.any():
        continue
      direction = {"given": list(given), "target": label}
      direction["of"] = suffered(config, given)
      for (name, kind, strength), p in found.items():
        if name not in given:
          continue
        right, where = p.right(label)[i][rows], f"{label}/{name}/{kind}"
        metric = f"damaged/{where}/{strength:g}"
        entries.append(_mean(metric, right, config, strength=strength, **direction))
        start = [clean.right(label)[i][rows].mean()]
        curves.setdefault(where, start).append(right.mean())
      for where, curve in curves.items():
        entries.append(
          {
            "metric": f"robustness/{where}",
            "value": robustness.relative_robustness(np.array(curve)),
            "interval": None,
            "samples": int(rows.sum()),
            "curve": [float(x) for x in curve],
            "reference": {"strengths": [0.0, *SEVERITIES[where.rsplit("/", 1)[1]]]},
            **direction,
          }
        )
  return entries


def make_measure(config, modalities) -> Callable[..., list[Entry]]:
  """`measure(params, examples, indices, held_out, *, say)`: all entries of one split.

  Temperatures are fitted on `held_out`; damage is measured on the first
  `config.eval.corrupted_examples` of the indices.
  """
  predict = make_predict(config, modalities, batch_size=config.eval.batch_size)
  todo = damages(recognition.used(config, modalities))

  def measure(params, examples: Examples, indices, held_out: Examples, *, say):
    (clean,) = predict(params, examples, indices)
    count = min(config.eval.num_examples, len(held_out))
    (fitted,) = predict(params, held_out, np.arange(count))
    entries = subset_entries(config, clean, fitted) + share_entries(config, clean)
    few = np.asarray(indices)[: config.eval.get("corrupted_examples", len(indices))]
    if len(few):
      say(f"damage of {len(todo)} kinds and strengths on {len(few)} examples")
      clean, *made = predict(params, examples, few, todo)
      entries += damage_entries(config, clean, dict(zip(todo, made, strict=True)))
    return entries

  return measure
