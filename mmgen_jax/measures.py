"""Families that make nothing to be judged: what is measured of them, as records."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import attribute, provenance, recognise, records, retrieve
from mmgen_jax import config as config_lib
from mmgen_jax.data.examples import Examples

MEASURES: dict[str, Any] = {"recognition": recognise, "alignment": retrieve}
SHOWN = 12  # examples in pictures


def evaluate(
  config,
  workdir: Path | str,
  params,
  step: int,
  splits: Iterable[Examples],
  validation: Examples,
  *,
  say: Callable[[str], None],
) -> list[records.Record]:
  """The records of one checkpoint, also written to `workdir`, as is its saliency.

  Args:
    config: of the run.
    workdir: of the run.
    params: averaged.
    step: of the checkpoint.
    splits: held-out examples, the main split first.
    validation: other held-out examples, for what has to be fitted.
    say: told how it goes.
  """
  origin, out = provenance.provenance(config_lib.fingerprint(config)), []
  measure = MEASURES[config.family].make_measure(config, validation.modalities)
  for i, examples in enumerate(splits):
    count = min(config.eval.num_examples, len(examples))
    of = f"{examples.name}/{examples.split}"
    say(f"evaluating step {step} on {count} examples of {of}")
    entries = measure(params, examples, np.arange(count), validation, say=say)
    context = records.context(config, examples, count, step, origin)
    out += records.complete(entries, context)
    if i == 0 and config.family == "recognition":
      shown = np.arange(min(SHOWN, len(examples)))
      path = records.path(workdir, step).with_suffix(".saliency.npz")
      attribute.save(path, attribute.explain(config, params, examples, shown))
  say(f"{len(out)} records in {records.write(workdir, step, out)}")
  return records.read(workdir, step)
