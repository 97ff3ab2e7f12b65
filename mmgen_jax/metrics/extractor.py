"""Small classifiers that the project trains itself, on real data, to judge generated.

One network gives both what coherence needs (the labels it reads) and what Frechet
distance and KID need (the features before its last layer). It shares no weight with the
model that it judges. Scores made with it carry its name, the digest of its weights and
its accuracy on held-out real examples; they are comparable under the same digest only,
and are never plain "FID", which means one Inception network.
"""

import dataclasses
import functools
import hashlib
import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float, Int, UInt8

from mmgen_jax.data.augment import Augmentation, augment
from mmgen_jax.data.examples import Examples
from mmgen_jax.models.conv import ConvEncoder
from mmgen_jax.models.layers import Dense, init_params

VERSION = 2  # of what follows: raise it when the same recipe gives other weights
_BATCH = 500  # of inference


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a classifier is built and trained; part of its identity.

  Attributes:
    steps: updates.
    batch_size: examples per update.
    learning_rate: peak of a one-cycle schedule, of AdamW.
    width: channels of the first layer.
    features: size of the penultimate layer.
    dropout: of the features, in training.
    augment: what is done to its inputs in training.
    seed: of all of it.
  """

  steps: int = 300
  batch_size: int = 128
  learning_rate: float = 2e-3
  width: int = 32
  features: int = 64
  dropout: float = 0.25
  augment: Augmentation = Augmentation(shift=(2.0, 2.0), scale=(0.1, 0.1))
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A trained classifier.

  Attributes:
    name: e.g. "mmgen-digits-image-v1".
    sha256: digest of its parameters.
    labels: (label, number of classes), for each label that it reads.
    recipe: how it was trained.
    params: its parameters, as NumPy arrays.
  """

  name: str
  sha256: str
  labels: tuple[tuple[str, int], ...]
  recipe: Recipe
  params: dict

  def __call__(
    self, values: UInt8[np.ndarray, "n ..."]
  ) -> tuple[Float[np.ndarray, "n d"], dict[str, Int[np.ndarray, " n"]]]:
    """Features, and the likeliest class of each label, of stored values."""
    apply = _compiled(self.labels, self.recipe)
    features, read = [], []
    for first in range(0, len(values), _BATCH):
      part = values[first : first + _BATCH]
      short = _BATCH - len(part)  # one shape, one compilation
      padded = np.pad(part, ((0, short), *((0, 0),) * (values.ndim - 1)))
      f, labels = jax.device_get(apply(self.params, padded))
      features.append(f[: len(part)])
      read.append({k: v[: len(part)] for k, v in labels.items()})
    together = {k: np.concatenate([r[k] for r in read]) for k, _ in self.labels}
    return np.concatenate(features), together

  @property
  def classes(self) -> int:
    """Of `probabilities`: the combinations of labels."""
    return math.prod(count for _, count in self.labels)

  def probabilities(
    self, features: Float[np.ndarray, "n d"]
  ) -> Float[np.ndarray, "n k"]:
    """The distribution over all combinations of labels, each label by itself."""
    heads = [self.params[name] for name, _ in self.labels]
    return joint([softmax(features @ h["kernel"] + h["bias"]) for h in heads])


def softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
  """exp(logits), scaled to sum to 1, in float64."""
  return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def joint(parts: Sequence[Float[np.ndarray, "n k"]]) -> Float[np.ndarray, "n k"]:
  """The distribution over combinations of independent labels, the last one fastest."""
  out = np.ones((len(parts[0]), 1))
  for part in parts:
    out = (out[:, :, None] * part[:, None]).reshape(len(out), -1)
  return out


class Classifier(nn.Module):
  """Features [b, d] and {label: logits [b, k]} of a grid in [-1, 1]."""

  labels: tuple[tuple[str, int], ...]
  recipe: Recipe

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], train: bool = False):
    r = self.recipe
    features = nn.silu(ConvEncoder(r.width, r.features)(x))
    kept = nn.Dropout(r.dropout, deterministic=not train)(features)
    return features, {name: Dense(k, name=name)(kept) for name, k in self.labels}


def as_grid(stored: UInt8[ArrayLike, "b ..."]) -> Float[Array, "b h w c"]:
  """Stored images or log-mels in [-1, 1], with a channel axis."""
  x = jnp.asarray(stored, jnp.float32) / 127.5 - 1.0
  return x if x.ndim == 4 else x[..., None]


@functools.lru_cache(maxsize=32)
def _compiled(labels, recipe) -> Callable:
  net = Classifier(labels, recipe)

  def apply(params, stored):
    # Else a product of float32 is one of bfloat16 on a TPU, of TF32 on a GPU.
    with jax.default_matmul_precision("highest"):
      features, logits = cast(tuple, net.apply({"params": params}, as_grid(stored)))
    read = {name: jnp.argmax(x, -1).astype(jnp.int32) for name, x in logits.items()}
    return features, read

  return jax.jit(apply)


def learnable(
  examples: Examples, modality: str, labels: Sequence[str]
) -> Int[np.ndarray, " k"]:
  """The examples that have the modality and all of the labels (-1: not known)."""
  known = [np.asarray(examples.labels[name]) >= 0 for name in labels]
  return np.flatnonzero(np.all([examples.present[modality], *known], axis=0))


def train(
  examples: Examples,
  modality: str,
  labels: Sequence[str],
  recipe: Recipe,
  *,
  say: Callable[[str], None] = lambda message: None,
) -> tuple[tuple[tuple[str, int], ...], dict]:
  """(labels with their numbers of classes, parameters) of a classifier of `labels`.

  Learns from the examples that are `learnable`.

  Raises:
    ValueError: if there is none.
  """
  column, usable = examples.columns[modality], learnable(examples, modality, labels)
  if not len(usable):
    raise ValueError(
      f"{examples.name}/{examples.split}: no example has {modality!r} and all of"
      f" {sorted(labels)}"
    )
  heads = tuple((name, int(examples.labels[name].max()) + 1) for name in sorted(labels))
  net = Classifier(heads, recipe)
  schedule = optax.cosine_onecycle_schedule(recipe.steps, recipe.learning_rate, 0.15)
  # On one vector: less to compile than a few operations for every tensor.
  tx = optax.flatten(optax.adamw(schedule, weight_decay=1e-2))
  init_key, key = jax.random.split(jax.random.key(recipe.seed))
  shape = jax.eval_shape(as_grid, column.take(usable[:1]))
  params = jax.jit(lambda: init_params(net, init_key, shape))()

  def loss(params, x, truth, key):
    rngs = {"dropout": key}
    _, logits = cast(tuple, net.apply({"params": params}, x, train=True, rngs=rngs))
    terms = [
      optax.softmax_cross_entropy_with_integer_labels(logits[name], truth[name])
      for name in truth
    ]
    return jnp.mean(jnp.stack(terms))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, opt_state, stored, truth, i):
    a, b = jax.random.split(jax.random.fold_in(key, i))
    change_one = functools.partial(augment, how=recipe.augment)
    x = jax.vmap(change_one)(jax.random.split(a, len(stored)), as_grid(stored))
    value, grads = jax.value_and_grad(loss)(params, x, truth, b)
    change, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, change), opt_state, value

  # One dispatch per update: XLA on CPU makes convolutions' kernel gradients tens of
  # times slower inside a loop (jax-ml/jax#12868).
  rng, opt_state, queue = (
    np.random.default_rng(recipe.seed),
    tx.init(params),
    usable[:0],
  )
  value, started = jnp.nan, time.time()
  for i in range(recipe.steps):
    while len(queue) < recipe.batch_size:
      queue = np.concatenate([queue, rng.permutation(usable)])
    rows, queue = queue[: recipe.batch_size], queue[recipe.batch_size :]
    truth = {name: examples.labels[name][rows] for name, _ in heads}
    params, opt_state, value = update(params, opt_state, column.take(rows), truth, i)
    if (i + 1) % 100 == 0 or i + 1 == recipe.steps:
      spent = time.time() - started
      say(f"  update {i + 1}/{recipe.steps}, loss {float(value):.4f}, {spent:.0f} s")
  return heads, jax.device_get(params)


def _flat(params: dict) -> dict[str, Any]:
  return {"/".join(k): v for k, v in traverse_util.flatten_dict(params).items()}


def digest(params: dict) -> str:
  """The sha256 of a parameter tree: names, dtypes, shapes and values."""
  out = hashlib.sha256()
  for path, x in sorted(_flat(params).items()):
    x = np.ascontiguousarray(x)
    out.update(f"{path} {x.dtype} {x.shape}".encode() + x.tobytes())
  return out.hexdigest()


def load_or_train(
  name: str,
  examples: Examples,
  modality: str,
  labels: Sequence[str],
  recipe: Recipe,
  directory: Path | str,
  *,
  say: Callable[[str], None] = lambda message: None,
) -> Extractor:
  """The classifier of `labels` from `modality`, from `directory` if it is there.

  Args:
    name: what scores made with it will call it.
    examples: real training data.
    modality: an image or an audio modality of theirs.
    labels: which of their labels it is to read.
    recipe: how to train it.
    directory: where trained ones are kept, by name and a fingerprint of all arguments.
    say: told how training goes.

  Raises:
    ValueError: if what is kept there is damaged.
  """
  identity = {
    "version": VERSION,
    "name": name,
    "data": examples.fingerprint,
    "modality": modality,
    "labels": sorted(labels),
    "recipe": dataclasses.asdict(recipe),
  }
  rows = len(learnable(examples, modality, labels))
  if rows < examples.present[modality].sum():  # once it learned from the others too
    identity["learned_from"] = rows
  text = json.dumps(identity, sort_keys=True)
  fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
  folder = Path(directory) / f"{name}-{fingerprint}"
  if not folder.exists():
    say(f"training judge {name} ({', '.join(sorted(labels))}), kept for later runs")
    heads, params = train(examples, modality, labels, recipe, say=say)
    _save(folder, {**identity, "heads": heads, "sha256": digest(params)}, params)
  described = json.loads((folder / "judge.json").read_text())
  with np.load(folder / "params.npz", allow_pickle=False) as kept:
    params = traverse_util.unflatten_dict(
      {tuple(k.split("/")): kept[k] for k in kept.files}
    )
  if digest(params) != described["sha256"]:
    raise ValueError(f"{folder} is damaged: delete it, and it will be trained again")
  heads = tuple((label, count) for label, count in described["heads"])
  return Extractor(name, described["sha256"], heads, recipe, params)


def _save(folder: Path, described: dict, params: dict) -> None:
  """Writes a judge so that a kill leaves none, or all of it."""
  partial = folder.with_name(f"{folder.name}.tmp{secrets.token_hex(8)}")
  partial.mkdir(parents=True)
  np.savez(partial / "params.npz", **_flat(params))
  (partial / "judge.json").write_text(json.dumps(described, indent=2, sort_keys=True))
  try:
    partial.rename(folder)
  except OSError:  # another process was first
    shutil.rmtree(partial)
