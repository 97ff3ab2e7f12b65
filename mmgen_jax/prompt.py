"""Samples of a trained model from what somebody gives it.

On the command line: `--mode=sample --given=...`; as a function: `load_trained`, `sample`.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax import evaluate, measures, pictures
from mmgen_jax.data import own, waves
from mmgen_jax.data.audio import wave_of
from mmgen_jax.data.examples import Spec
from mmgen_jax.data.modality import Modality, detokenise, to_model, to_stored
from mmgen_jax.data.read import fingerprint
from mmgen_jax.steps import STEPS, class_label


class Trained(NamedTuple):
  """A trained model.

  Attributes:
    config: of its run.
    about: its data set: modalities, names of labels.
    params: of its networks, the averaged ones.
    step: how many updates made them.
  """

  config: Any
  about: Spec
  params: Any
  step: int


class Given(NamedTuple):
  """What a model is given.

  Attributes:
    values: {modality: stored [*shape]}.
    labels: {label: its integer}.
  """

  values: dict[str, np.ndarray]
  labels: dict[str, int]


def load_trained(workdir) -> Trained:
  """The model of a workdir, of its newest sound checkpoint.

  Raises:
    FileNotFoundError: if there is no config.json, or no sound checkpoint.
  """
  kept = Path(workdir) / "config.json"
  if not kept.is_file():
    raise FileNotFoundError(f"there is no {kept}: {workdir} is not the folder of a run")
  config: Any = config_lib.from_json(kept.read_text())
  about = datasets.spec(config.data.name, **config.data.options)
  state, step = evaluate.load_state(config, workdir, about.modalities)
  return Trained(config, about, state.ema, step)


def sample(
  model: Trained, given: Sequence[str] = (), *, count: int = 16, seed: int = 0
) -> dict[str, np.ndarray]:
  """{modality: [count, ...]}: as many samples of what goes with what is given.

  Images are uint8 [count, h, w, c], sounds log-mel spectrograms, uint8 [count, frames,
  mels] (`data.audio.wave_of` makes a wave of one), texts strings. With nothing given,
  samples of the prior.

  Args:
    model: from `load_trained`.
    given: words "name=value" (see `parse`), such as "caption=big red heart".
    count: how many.
    seed: of what is drawn at random.

  Raises:
    ValueError, FileNotFoundError: see `parse`; ValueError if `count` is below 1.
  """
  words = parse(given, model.config, model.about)
  modalities = model.about.modalities
  made = generate(model.config, model.params, modalities, words, count, seed)
  return {name: _plain(modalities[name], x) for name, x in made.items()}


def accepted(config, about: Spec) -> tuple[list[str], list[str]]:
  """What the model of a config can be given: modalities, labels; what it must be given.

  Raises:
    ValueError: if its family makes nothing.
  """
  if config.family in measures.MEASURES:
    raise ValueError(f"the family {config.family!r} makes no samples")
  family: Any = STEPS[config.family]
  given = [set(subset) for subset in family.subsets(config, about.modalities)]
  can = sorted(set.union(*given))
  if label := class_label(config):
    can.append(label)
  return can, sorted(set.intersection(*given))


def parse(words: Sequence[str], config, about: Spec) -> Given:
  """What is given, from words "name=value"; for values see `data.own.stored`.

  A label's value is one of its names, or a number.

  Raises:
    ValueError: for a name that the model does not take, a value that is no good, or if
      what the model is always given is not there.
    FileNotFoundError: for a file that is not there.
  """
  values, labels = {}, {}
  can, must = accepted(config, about)
  for word in words:
    name, _, value = word.partition("=")
    if name not in can:
      what = f"takes {can}" if can else "makes samples from nothing only"
      raise ValueError(f"--given={word}: there is no {name!r}; this model {what}")
    if name in about.modalities:
      values[name] = own.stored(about, config.data.options, name, value)
    else:
      labels[name] = _label(name, value, about.label_names.get(name, ()), config)
  for name in must:
    if name not in values:
      raise ValueError(
        f"this model is always given {must}: there is no --given={name}="
      )
  return Given(values, labels)


def _label(name: str, value: str, names: Sequence[str], config) -> int:
  known = [str(x) for x in names] or [str(i) for i in range(config.model.classes)]
  if value in known:
    return known.index(value)
  if value.isdecimal() and int(value) < len(known):
    return int(value)
  raise ValueError(f"--given={name}={value}: {name} is one of {', '.join(known)}")


def generate(
  config, params, modalities: Mapping[str, Modality], given: Given, count: int, seed=0
) -> dict[str, np.ndarray]:
  """{modality: stored [count, *shape]}: as many samples of what `given` goes with.

  Args:
    config: of the run.
    params: of its networks, the averaged ones where there are any.
    modalities: of its data set.
    given: what they are made from; with nothing, samples of the prior. Classes that are
      not given take their turns.
    count: how many.
    seed: of what is drawn at random.

  Raises:
    ValueError: if `count` is below 1.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  family: Any = STEPS[config.family]
  names, classes = sorted(modalities), config.model.get("classes", 0)
  batch: dict[str, Any] = {
    "mask": {n: np.full(count, n in given.values) for n in names},
    "labels": {n: np.full(count, i, np.int32) for n, i in given.labels.items()},
    "index": np.arange(count, dtype=np.int32),
  }
  if classes:
    turns = np.arange(count, dtype=np.int32) % classes
    batch["labels"].setdefault(config.model.label, turns)
  for name, m in modalities.items():
    value = given.values.get(name, np.zeros(m.shape, np.int32))
    batch[name] = to_model(m, jnp.asarray(np.broadcast_to(value, (count, *m.shape))))
  has = np.array([name in given.values for name in names])
  make = jax.jit(family.make_generate(config, modalities))
  made = make(params, batch, has, jax.random.key(seed))
  return {name: to_stored(modalities[name], x) for name, x in made.items()}


def _plain(m: Modality, x: np.ndarray) -> np.ndarray:
  """Stored values [n, ...] as they are, of a text strings."""
  return np.array(detokenise(m, x)) if m.kind == "text" else x


def _file(m: Modality, value: np.ndarray) -> bytes:
  """The content of a PNG or wav file."""
  if m.kind == "image":
    return pictures.png(pictures.pixels("image", value))
  rate_hz = m.sample_rate_hz
  samples = round(m.seconds * rate_hz)
  return waves.wav(wave_of(value, sample_rate_hz=rate_hz, samples=samples), rate_hz)


def _short(word: str) -> str:
  """A word, of a path its last part."""
  name, _, value = word.partition("=")
  return f"{name}={Path(value).name}"


def _slug(words: Sequence[str]) -> str:
  """A name for a folder, another one for other words."""
  readable = re.sub(r"[^\w=.-]+", "-", "+".join(map(_short, words)))[:60]
  return f"{readable}_{fingerprint(words=list(words))[:8]}"


def write(
  config,
  workdir,
  words: Sequence[str],
  *,
  count: int = 16,
  say: evaluate.Say = evaluate.say_once,
) -> list[Path]:
  """Writes what the newest checkpoint makes of what is given; the files' paths.

  To <workdir>/samples/given_step_<step>_<what>/: grid.png; every image as a PNG file of
  its own size, every sound as a wav file; made.npz with all in stored form (texts as
  strings). Says what texts were made, and how often.

  Raises:
    FileNotFoundError: if there is no sound checkpoint, or a file is not there.
    ValueError: see `parse`; if `count` is below 1.
  """
  about = datasets.spec(config.data.name, **config.data.options)
  given = parse(words, config, about)
  modalities = about.modalities
  state, step = evaluate.load_state(config, workdir, modalities)
  if jax.process_index() != 0:
    return []
  made = generate(config, state.ema, modalities, given, count, config.seed)
  shown = {name: x for name, x in made.items() if name not in given.values} or made
  folder = Path(workdir) / "samples" / f"given_step_{step:07d}_{_slug(words)}"
  folder.mkdir(parents=True, exist_ok=True)
  plain = lambda name, x: _plain(modalities[name], x)
  tiles = lambda name, x: [
    pictures.tile(modalities[name].kind, value) for value in plain(name, x)
  ]
  rows = [(f"given {name}", tiles(name, x[None])) for name, x in given.values.items()]
  rows += [(f"generated {name}", tiles(name, x)) for name, x in shown.items()]
  title = f"{', '.join(map(_short, words)) or 'from the prior'}, step {step}"
  paths = [folder / "grid.png", folder / "made.npz"]
  pictures.grid(rows, title).save(paths[0])
  arrays: Any = {name: plain(name, x) for name, x in made.items()}
  np.savez_compressed(paths[1], **arrays)
  for name, x in shown.items():
    if modalities[name].kind == "text":
      for text, times in collections.Counter(plain(name, x)).most_common():
        say(f"{name}, {times} of {count}: {text}")
      continue
    end = "png" if modalities[name].kind == "image" else "wav"
    for i, value in enumerate(x):
      paths.append(folder / f"{name}_{i:02d}.{end}")
      paths[-1].write_bytes(_file(modalities[name], value))
  say(f"wrote {paths[0]}")
  return paths
