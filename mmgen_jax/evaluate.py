"""A checkpoint -> samples from every subset of inputs -> scores -> records, pictures.

Evaluation uses the averaged parameters ("ema") of the newest sound checkpoint, examples
of the split `config.eval.split` ("test" unless it says otherwise) that training never
saw, and the same generation for every direction in one compiled pass.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from mmgen_jax import (
  attribute,
  checkpoint,
  distances,
  latent_scores,
  manifest,
  measures,
  multimodal_scores,
  panels,
  pictures,
  provenance,
  records,
  scores,
  spread,
)
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.data.read import writable_dir
from mmgen_jax.generate import Samples, make_sampler
from mmgen_jax.metrics import coherence, judges, multimodal_likelihood, pretrained
from mmgen_jax.state import State
from mmgen_jax.steps import STEPS, recognition

# Splits that hold out something; if of one kind, what is given must have that one.
HOLDS_OUT = {"test_speaker": "audio", "test_combinations": None}

Say = Callable[[str], None]


def say_once(message: str) -> None:
  """Tells the person who waits, from process 0 only."""
  if jax.process_index() == 0:
    print(f"mmgen_jax: {message}", file=sys.stderr, flush=True)


def load_split(config, split: str, data_dir) -> Examples:
  """A split of the data set of a run: of "train" what it trains on."""
  found = datasets.load(config.data.name, split, data_dir, **config.data.options)
  first = config.data.get("first", 0) if split == "train" else 0
  return found.first(first) if first else found


def make_judges(
  config, data_dir, names, *, extract: bool = True, say: Say = say_once
) -> judges.Judges:
  """The judges of a config's data set, whichever of its modalities a run trains on.

  With `config.eval.extractor`, images' features are those of that network.
  """
  options = {k: v for k, v in config.data.options.items() if k != "modalities"}
  train = datasets.load(config.data.name, "train", data_dir, **options)
  by = judges.make(
    train, names, writable_dir(data_dir) / "judges", extract=extract, say=say
  )
  if not extract or not config.eval.get("extractor", ""):
    return by
  network = pretrained.load(config.eval.extractor, say=say)
  images = [name for name in names if train.modalities[name].kind == "image"]
  return by._replace(extractors={**by.extractors, **dict.fromkeys(images, network)})


def data_dir_of(workdir, data_dir) -> str:
  """Where a run finds data sets: <workdir>/data unless it is told; may be a bucket."""
  return str(data_dir or Path(workdir) / "data")


def load_state(config, workdir, modalities) -> tuple[State, int]:
  """The newest sound state of a workdir, and its step.

  Raises:
    FileNotFoundError: if there is none.
  """
  family: Any = STEPS[config.family]
  like = jax.eval_shape(lambda: family.init(jax.random.key(0), config, modalities))
  return checkpoint.load(Path(workdir) / "checkpoints", like)


def _entries(
  config,
  setting: scores.Setting,
  samples: Samples,
  reads: scores.Reads,
  floor,
  say: Say,
) -> list[scores.Entry]:
  """Every entry that one split of held-out examples gives."""
  judged = scores.described(setting, setting.judges.readers)
  for name, judge in judged.items():
    accuracy, count = judge["accuracy"], judge["accuracy_count"]
    say(f"judge {judge['name']}: {accuracy:.2%} of {count} real {name}s read right")
  entries = scores.coherence_entries(setting, reads, judged)
  kind = HOLDS_OUT.get(setting.examples.split)
  if kind is not None:
    modalities = setting.examples.modalities
    held = {name for name, m in modalities.items() if m.kind == kind}
    return [e for e in entries if held & set(e["given"] or ())]
  entries += multimodal_scores.count_entries(setting, reads, judged)
  entries += scores.reconstruction_entries(setting, samples)
  entries += scores.loss_entries(setting, samples, _likelihood(config, samples))
  entries += scores.mode_entries(setting, reads, judged)
  entries += spread.uniform_entries(setting, reads, judged)
  return entries + distances.distance_entries(setting, samples, floor, say)


def evaluate(
  config, workdir, data_dir=None, *, say: Say = say_once
) -> list[records.Record]:
  """The records of the newest checkpoint; also written, with pictures, to `workdir`.

  Args:
    config: of the run.
    workdir: where its checkpoints are; gets records/ and samples/.
    data_dir: where data sets and trained judges are kept; default <workdir>/data.
    say: told how it goes.

  Raises:
    FileNotFoundError: if there is no sound checkpoint.
    ValueError: for likelihoods of a family that has none.
  """
  if config.eval.get("likelihood", {}).get("samples", 0):
    multimodal_likelihood.check(config.family)
  started, data_dir = time.time(), data_dir_of(workdir, data_dir)
  split = config.eval.get("split", "test")
  train = load_split(config, "train", data_dir)
  held_out = load_split(config, split, data_dir)
  state, step = load_state(config, workdir, held_out.modalities)
  if jax.process_index() != 0:
    return []  # the others had to hear the checkpoint, and are done
  if config.family in measures.MEASURES:
    load = lambda name: load_split(config, name, data_dir)
    others = [name for name in HOLDS_OUT if name in _splits(config)]
    splits = [held_out, *map(load, others)]
    of = (config, workdir, state.ema, step, splits, load("validation"))
    return measures.evaluate(*of, say=say)
  sampler = make_sampler(config, held_out.modalities, batch_size=config.eval.batch_size)
  params = latent_scores.fit_sampler(config, state.ema, train)
  fingerprint = config_lib.fingerprint(config)
  origin = provenance.provenance(fingerprint)
  out, by = [], None
  extra = [s for s in HOLDS_OUT if s in _splits(config)]
  extra += [s for s in config.eval.get("also", ()) if s not in (split, *extra)]
  for name in (split, *extra):
    examples = held_out if name == split else load_split(config, name, data_dir)
    count = min(config.eval.num_examples, len(examples))
    say(f"evaluating step {step} on {count} examples of {examples.name}/{name}")
    indices = np.arange(count)
    samples = sampler(params, examples, indices, config.seed, say)
    if by is None:
      by = make_judges(config, data_dir, list(samples.values), say=say)
      pictured = {m.kind for m in examples.modalities.values()} & {"image"}
      if pictured and not by.extractors:
        say(records.NO_JUDGE)
    setting = scores.Setting(examples, indices, by, config.eval.bootstrap)
    floor = {} if name == "train" else _some_real(train, by.extractors, count)
    reads = scores.read_all(setting, samples)
    entries = _entries(config, setting, samples, reads, floor, say)
    if name == split:
      page = records.path(workdir, step).with_name(f"latents_step_{step:07d}.npz")
      entries += latent_scores.measure(config, params, train, examples, page, say)
      of = _likelihood(config, samples)
      entries += multimodal_scores.log_likelihoods(
        config, params, setting, samples.subsets, of, say
      )
    context = records.context(config, examples, count, step, origin)
    out += records.complete(entries, context)
    if name == split:
      panel = panels.make_panel(setting, samples, panels.shown(setting), reads)
      shares = attribute.coherence_entries(setting, reads)
      shares += attribute.expert_entries(config, state.ema, examples, indices)
      out += records.complete(shares, context)
      path = records.path(workdir, step).with_suffix(".npz")
      pictures.save_panel(path, panel, {"step": step, "split": split})
  path = records.write(workdir, step, out)
  say(f"{len(out)} records in {path}, {time.time() - started:.0f} s")
  return records.read(workdir, step)


def _likelihood(config, samples: Samples) -> str:
  """What a run's log-likelihoods are of: modalities, family, noise."""
  m, loss = config.model.to_dict(), config.loss.to_dict()
  fields = ("likelihood", "scales", "learned_scale", "source", "grey_levels")
  noise = {k: m[k] for k in fields if k in m}
  if m.get("source") == "codes":
    coder = config.coder.model.to_dict()
    noise = {"source": "codes", **{k: coder[k] for k in ("levels", "codes", "scales")}}
  noise |= {"binarise": True} if loss.get("binarise") else {}
  return json.dumps([sorted(samples.values), noise], sort_keys=True)


# Of what evaluation steps give, by the first word of its name: 1 where more is better.
_SIGNS = {"elbo": 1, "logp": 1, "correct": 1, "cosine": 1, "kl": -1, "nll": -1}
_SIGNS |= {"bits": -1}


def make_score(config, data_dir, loss: str = "elbo", split: str = "validation"):
  """`score({path: array}) -> float`: the mean of a held-out loss, or minus it.

  So that more is better: as it is for "elbo", "logp", "logp_<modality>",
  "correct_<label>" and "cosine_<a>_<b>"; minus it for "kl", "nll" and "bits_...". Of the
  averaged parameters ("ema/...") on as many examples as evaluation takes, such as
  `fuse.greedy_soup` wants. Nothing is generated.

  Raises:
    ValueError: if the family's evaluation step gives no such loss, or one of which
      neither more nor less is better (a discriminator's logits).
  """
  examples = load_split(config, split, data_dir)
  modalities, family = examples.modalities, cast(Any, STEPS[config.family])
  indices = np.arange(min(config.eval.num_examples, len(examples)))
  like = jax.eval_shape(lambda: family.init(jax.random.key(0), config, modalities))
  flat, structure = jax.tree_util.tree_flatten_with_path(like.ema)
  names = [manifest.path_name(path) for path, _ in flat]
  eval_step = family.make_eval_step(config, modalities)

  @jax.jit
  def losses(params, rows, key):
    batch = rows | {name: to_model(m, rows[name]) for name, m in modalities.items()}
    return eval_step(params, batch, jax.random.split(key)[1])  # as `make_sampler` does

  key = jax.random.key(config.seed)
  known = sorted(jax.eval_shape(losses, like.ema, examples.rows([0]), key))
  if loss not in known:
    raise ValueError(f"{config.family} has no held-out {loss!r}: {known}")
  sign = _SIGNS.get(loss.partition("_")[0])
  if sign is None:
    raise ValueError(f"neither more nor less of {loss!r} is better: no score")
  has = _scored(config, examples)
  if not has[indices].any():
    raise ValueError(
      f"no example of {examples.name}/{split} has what {loss!r} is of: nothing to score"
    )

  def score(arrays) -> float:
    ema = structure.unflatten([arrays[f"ema/{name}"] for name in names])
    values, size = [], config.eval.batch_size
    for first in range(0, len(indices), size):
      part = indices[first : first + size]
      rows = examples.rows(np.resize(part, size))  # repeats; cut off
      made = losses(ema, rows, jax.random.fold_in(key, first))
      values.append(np.asarray(made[loss])[: len(part)])
    return sign * float(np.concatenate(values)[has[indices]].mean(dtype=np.float64))

  return score


def _scored(config, examples: Examples) -> np.ndarray:
  """Bool [n]: the examples that a held-out loss is of, those that have what it takes."""
  if config.family != "recognition":
    every = np.ones(len(examples), bool)
    return examples.present.get(config.model.get("modality", ""), every)
  inputs = recognition.used(config, examples.modalities)
  labels = {label: examples.labels[label] for label in config.model.labels}
  seen = np.any([examples.present[name] for name in inputs], axis=0)
  return seen & coherence.known(labels)


def _splits(config) -> tuple[str, ...]:
  return datasets.spec(config.data.name, **config.data.options).splits


def _some_real(train: Examples, names, count: int) -> dict[str, np.ndarray]:
  """{modality: `count` real stored values of the training split}.

  Their distance to the held-out ones is what a model that gives back its training set
  would get.
  """
  present = train.present
  rows = {name: np.flatnonzero(present[name])[:count] for name in names}
  return {name: train.columns[name].take(rows[name]) for name in names}
