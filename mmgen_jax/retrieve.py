"""Retrieval between modalities of held-out examples: entries for records.

What is in an entry is told in `mmgen_jax.scores`; "given" is what the query is of,
"target" what is looked for.
"""

from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.metrics import retrieval
from mmgen_jax.scores import mean_entry
from mmgen_jax.steps import alignment

Entry = dict[str, Any]
RECALLS = (1, 5, 10)


def make_embed(config, modalities) -> Callable[..., dict[str, np.ndarray]]:
  """`embed(params, examples, indices) -> {modality: embeddings [n d]}`.

  Zero where an example lacks the modality.
  """
  generate = alignment.make_generate(config, modalities)
  everything, key = jnp.ones(len(modalities), bool), jax.random.key(0)

  @jax.jit
  def run(params, rows):
    batch = rows | {n: to_model(m, rows[n]) for n, m in modalities.items()}
    return generate(params, batch, everything, key)

  def embed(params, examples: Examples, indices):
    parts, size = [], config.eval.batch_size
    for first in range(0, len(indices), size):
      part = np.asarray(indices)[first : first + size]
      made = jax.device_get(run(params, examples.rows(np.resize(part, size))))
      parts.append({name: x[: len(part)] for name, x in made.items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in modalities}

  return embed


def _number(labels: Mapping[str, np.ndarray], names) -> np.ndarray | None:
  """One integer per example, equal where all of the labels are, and known (not -1)."""
  if not names:
    return None
  if unknown := sorted(set(names) - set(labels)):
    raise ValueError(f"eval.same names {unknown[0]!r}; labels are {sorted(labels)}")
  rows = np.stack([labels[name] for name in names], axis=1)
  number = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
  return np.where((rows < 0).any(1), len(rows) + np.arange(len(rows)), number)


def direction_entries(
  scores: np.ndarray, relevant: np.ndarray, suffix: str, resamples: int, **direction
) -> list[Entry]:
  """R@1, R@5, R@10, mean rank and median rank of queries against candidates."""
  entries = []
  rank = retrieval.expected_rank(scores, relevant)
  values = {
    f"recall_at_{k}{suffix}": retrieval.recall_at(k, scores, relevant) for k in RECALLS
  }
  for metric, x in (values | {f"mean_rank{suffix}": rank}).items():
    entries.append(mean_entry(metric, x, resamples=resamples))
  median = float(np.median(rank))
  entries.append({"metric": f"median_rank{suffix}", "value": median, "interval": None})
  more = {"samples": len(scores), "reference": {"candidates": scores.shape[1]}}
  return [{**e, **more, **direction} for e in entries]


def make_measure(config, modalities) -> Callable[..., list[Entry]]:
  """`measure(params, examples, indices, held_out, *, say)`: every direction.

  Queries and candidates are the examples that have both modalities. With `_label`, any
  candidate that is equal in all labels of `config.eval.same` is right.
  """
  embed = make_embed(config, modalities)

  def measure(params, examples: Examples, indices, held_out: Examples, *, say):
    del held_out
    indices = np.asarray(indices)
    embedded = embed(params, examples, indices)
    labels = {name: x[indices] for name, x in examples.labels.items()}
    number, entries = _number(labels, config.eval.get("same", ())), []
    for query, target in permutations(sorted(embedded), 2):
      rows = examples.present[query][indices] & examples.present[target][indices]
      if not rows.any():
        continue
      scores = embedded[query][rows] @ embedded[target][rows].T
      direction = {"given": [query], "target": target}
      resamples = config.eval.bootstrap
      own = np.eye(len(scores), dtype=bool)
      entries += direction_entries(scores, own, "", resamples, **direction)
      if number is not None:
        same = number[rows][:, None] == number[rows][None]
        entries += direction_entries(scores, same, "_label", resamples, **direction)
      say(f"{query} -> {target}: {len(scores)} queries and candidates")
    return entries

  return measure
