"""A run that fits in a test: linear regression by SGD with noise, and a command line.

python tests/tiny.py WORKDIR [steps=40 save=4 pause=0.01 poison=-1 ...]
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.parallel import example_keys, pmean
from mmgen_jax.state import new_state

SIDE = 4


def config(**changes) -> ConfigDict:
  """A whole run's config."""
  values = {
    "family": "tiny",
    "seed": 3,
    "batch_size": 8,
    "train_steps": 40,
    "updates_per_dispatch": 2,
    "accumulate": 1,
    "parallel": "jit",
    "nonfinite": "stop",
    "max_rollbacks": 2,
    "log_steps": 4,
    "save_steps": 4,
    "sample_steps": 20,
    "keep_checkpoints": 2,
    "poison": -1,  # the step whose loss is NaN
    "poison_attempts": 1,  # in this many attempts
    "pause": 0.0,  # seconds per dispatch
    "width": 64,
    "data": {
      "name": "tiny",
      "options": {},
      "feed": "resident",
      "workers": 0,
      "missing_rate": 0.3,
    },
  }
  return ConfigDict(values | changes)


def examples(n: int = 50) -> Examples:
  """Random images and a binary label that the mean pixel decides."""
  pixels = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 1), np.uint8)
  labels = (pixels.mean((1, 2, 3)) > 127).astype(np.int32)
  columns = {"image": Column(pixels), "other": Column(pixels[::-1].copy())}
  kinds = {
    "image": modality.image(SIDE, SIDE, 1),
    "other": modality.image(SIDE, SIDE, 1),
  }
  return Examples("tiny", "train", kinds, {"y": labels}, {}, columns, "tiny")


class Family:
  """What a module of `mmgen_jax.steps` gives, as far as the loop needs it."""

  @staticmethod
  def init(key, config, modalities):
    del modalities
    w = jax.random.normal(key, (2 * SIDE * SIDE, config.width)) / 8
    params = {"net": {"w": w, "b": jnp.zeros((config.width,), jnp.bfloat16)}}
    momentum = {"net": jax.tree.map(jnp.zeros_like, params["net"])}
    return new_state(params, momentum, {"net": jax.tree.map(jnp.copy, params["net"])})

  @staticmethod
  def make_train_step(config, modalities):
    names = sorted(modalities)

    def loss(params, batch, noise, poison):
      x = [batch[n] * batch["mask"][n][:, None, None, None] for n in names]
      x = jnp.concatenate([v.reshape(len(v), -1) for v in x], -1)
      h = jnp.tanh(x @ params["w"] + params["b"].astype(jnp.float32) + noise)
      value = ((h.mean(-1) - batch["labels"]["y"]) ** 2).mean()
      return jnp.where(poison, jnp.nan, value)

    def train_step(state, batch, key, *, axis=None):
      keys = example_keys(
        jax.random.fold_in(key, state.step), len(batch["index"]), axis
      )
      noise = jax.vmap(lambda k: jax.random.normal(k, (config.width,)))(keys)
      poison = (state.step == config.poison) & (
        state.extra["attempt"] < config.poison_attempts
      )
      net = state.params["net"]
      value, grads = jax.value_and_grad(loss)(net, batch, noise, poison)
      value, grads = pmean((value, grads), axis)
      momentum = jax.tree.map(
        lambda m, g: (0.9 * m + g).astype(m.dtype), state.opt_state["net"], grads
      )
      net = jax.tree.map(lambda p, m: (p - 0.1 * m).astype(p.dtype), net, momentum)
      ema = jax.tree.map(
        lambda e, p: (0.9 * e + 0.1 * p).astype(e.dtype), state.ema["net"], net
      )
      state = state.replace(
        step=state.step + 1,
        params={"net": net},
        opt_state={"net": momentum},
        ema={"net": ema},
      )
      return state, {"tiny/loss": value, "tiny/norm": jnp.abs(grads["w"]).max()}

    return train_step


def train(workdir, **changes):
  """`loop.train` of the tiny run."""
  from mmgen_jax import loop
  from mmgen_jax.data import feeds

  c = config(**changes)
  if c.pause:  # a slow host, so that a signal finds the run under way
    resident = feeds.resident_feed

    def slow(*args, **kwargs):
      feed = resident(*args, **kwargs)

      def inputs(first, updates):
        return (time.sleep(c.pause), feed.inputs(first, updates))

      return feed._replace(inputs=lambda *a: inputs(*a)[1])

    feeds.resident_feed = slow
  return loop.train(c, workdir, examples=examples(), family=Family)


def main(argv):
  """Trains; with coordinator=, processes= and process=, as one of several."""
  workdir, pairs = argv[1], dict(pair.split("=", 1) for pair in argv[2:])

  def number(s):
    return float(s) if "." in s else int(s) if s.lstrip("-").isdigit() else s

  changes = {k: number(v) for k, v in pairs.items()}
  coordinator = changes.pop("coordinator", None)
  if coordinator:
    from mmgen_jax import process

    process.join(coordinator, changes.pop("processes"), changes.pop("process"))
  from mmgen_jax import checkpoint

  state = train(workdir, **changes)
  print("digest", checkpoint.digest(state), flush=True)


if __name__ == "__main__":
  sys.path.insert(0, ".")
  from mmgen_jax import process

  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    process.use_compile_cache("")
  process.exit_with(lambda: main(sys.argv))
