"""Entries of records on features: distances to real examples, and what covers what.

As in `mmgen_jax.scores`. All are taken in the features of one extractor, which the
entry names with the digest of its weights, and come with a floor: what as many real
training examples get.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mmgen_jax.generate import Samples
from mmgen_jax.metrics import frechet
from mmgen_jax.metrics.judges import Reader, as_judge
from mmgen_jax.metrics.manifold import manifold
from mmgen_jax.metrics.modes import inception_score
from mmgen_jax.scores import Entry, Setting, described, directions

MANIFOLD_EXAMPLES = 10_000  # at most: memory and time grow with the square
SCORED_CLASSES = 1008  # at most


def _extractors(s: Setting) -> dict[str, dict]:
  """{modality: what a record says of its extractor}."""
  ours = {}
  for name, extractor in s.judges.extractors.items():
    if extractor(s.real(name)[:1])[1]:  # it reads labels of the data set
      ours[name] = as_judge(extractor)
  known = described(s, ours)
  return {
    name: known.get(name, {"name": e.name, "sha256": e.sha256})
    for name, e in s.judges.extractors.items()
  }


def _distances(fake: np.ndarray, real: np.ndarray) -> list[Entry]:
  value = frechet.frechet_distance(frechet.moments(fake), frechet.moments(real))
  k = frechet.kid(fake, real)
  interval = [k.value - 1.96 * k.standard_error, k.value + 1.96 * k.standard_error]
  return [
    {"metric": "frechet", "value": value, "interval": None},
    {
      "metric": "kid",
      "value": k.value,
      "interval": interval if math.isfinite(k.standard_error) else None,
      "interval_kind": f"1.96 standard errors over {k.blocks} blocks",
    },
  ]


def _coverage(fake: np.ndarray, real: np.ndarray, say) -> list[Entry]:
  k, k_density = 3, 5
  fake, real = fake[:MANIFOLD_EXAMPLES], real[:MANIFOLD_EXAMPLES]
  if min(len(fake), len(real)) <= max(k, k_density):
    return []
  found = manifold(real, fake, k=k, k_density=k_density, say=say)
  near = {"precision": k, "recall": k, "density": k_density, "coverage": k_density}
  return [
    {"metric": name, "value": value, "interval": None, "k": near[name]}
    | {"of": f"{len(fake)} against {len(real)} examples, {near[name]} nearest"}
    for name, value in found._asdict().items()
  ]


def _sharpness(fake: Float[np.ndarray, "n d"], extractor: Reader) -> list[Entry]:
  if extractor.classes > SCORED_CLASSES:
    return []
  splits = min(10, len(fake))
  mean, deviation = inception_score(extractor.probabilities(fake), splits=splits)
  return [
    {
      "metric": "inception_score",
      "value": mean,
      "interval": [mean - deviation, mean + deviation],
      "interval_kind": f"standard deviation over {splits} parts",
    }
  ]


def distance_entries(
  s: Setting, samples: Samples, others: Mapping[str, np.ndarray], say
) -> list[Entry]:
  """Frechet distance, KID, precision to coverage, and a score by an extractor's classes.

  Args:
    s: the setting; its examples are the reference.
    samples: what was made.
    others: {modality: real stored values of the training split}, for the floor.
    say: told how it goes.
  """
  entries, about = [], _extractors(s)
  for target, extractor in s.judges.extractors.items():
    if target not in samples.values:
      continue
    real = extractor(s.real(target)[s.has([target])])[0]
    reference = {
      "data": s.examples.name,
      "split": s.examples.split,
      "samples": len(real),
    }
    shared = {"target": target, "extractor": about[target], "reference": reference}

    def measure(values, prefix, given, real=real, shared=shared, extractor=extractor):
      if min(len(values), len(real)) < 2:
        return []
      fake = extractor(values)[0]
      found = _distances(fake, real) + _coverage(fake, real, say)
      found += _sharpness(fake, extractor)
      more = {"given": given, "samples": len(fake), **shared}
      return [e | more | {"metric": prefix + e["metric"]} for e in found]

    if target in others:
      entries += measure(others[target], "floor/", None)
      say(f"distances of {target}: floor measured in features of {extractor.name}")
    for given in directions(samples.subsets, target):
      rows = s.has(given)
      values = samples.values[target][samples.subsets.index(given)][rows]
      entries += measure(values, "", list(given))
    say(f"distances of {target}: {len(real)} real examples, {extractor.name}")
  return entries
