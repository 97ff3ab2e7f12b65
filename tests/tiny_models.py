"""Tiny configs, modalities and batches that tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from mmgen_jax import parallel
from mmgen_jax.data import modality

BATCH = 8


def tiny(family, **changes):
  """(config, modalities, inputs): SGD, 8 examples, some modalities missing."""
  modalities = {
    "image": modality.image(8, 8, 3),
    "sound": modality.audio(8, 8, 8000),
    "word": modality.text(["a", "b", "c"], 3),
  }
  config = common.defaults(family)
  config.model.update(
    latent=4,
    widths={"image": 8, "audio": 8, "text": 8},
    disc_widths={"image": 8, "audio": 8},
    features=8,
    blocks=1,
    prior_components=3,
    private={"image": 2, "audio": 1},
    scales={"image": 1.0, "audio": 1.0},
    modality="image",
    classes=3,
    label="digit",
    labels={"digit": 3},
    fusion="gated",
    size=4,
    stages=((1, 1, 2, 8, 4), (2, 1, 2, 8, 4)),
    patch=4,
    mean=0.5,
    levels=(),
    codes=5,
    code_size=2,
    source="pixels",
    grey_levels=3,
    width=6,
    layers=2,
    reach=2,
    embedded=4,
  )
  config.loss.update(
    posterior="poe",
    subset_power=1.0,
    parts=2,
    beta=1.0,
    alignment=1.0,
    cross=1.0,
    prior_rate=0.1,
    weights={"word": 5.0},
    adversarial=("image",),
    adversarial_weight=1.0,
    gan="non_saturating",
    r1_gamma=1.0,
    r1_fraction=1,
    fused=1.0,
    own={"image": 0.5, "sound": 0.5, "word": 0.5},
    dropout=0.3,
    balance=0.0,
    free_nats=0.0,
    warmup_steps=0,
    skip_norm=0.0,
    commitment=0.25,
    codebook_decay=0.9,
    dead_below=0.1,
  )
  if family == "vae":
    config.model.prior_components = 1
  if family == "alignment":
    config.loss.update(objective="siglip", same=("digit",))
  if family == "extension":
    config.extend = {"modality": "sound"}
    config.model.private = {"image": 0, "audio": 0}
  if family == "vq":
    # Several channels to a group: one alone may be the same everywhere.
    config.model.widths.image = 12
  config.optim = common.optim(1e-3, name="sgd")
  config.disc_optim = common.optim(1e-3, name="sgd")
  if family == "multimodal":
    config.loss.posterior, config.model.private = "mopoe", {"image": 0}
  with config.unlocked():
    config.update(changes)

  def inputs(first_step, updates):
    rng = np.random.default_rng(first_step)
    shape = (updates, BATCH)
    mask = rng.random((3, *shape)) > 0.3
    mask[0] |= ~mask.any(0)
    return {
      "image": rng.uniform(-1, 1, (*shape, 8, 8, 3)).astype(np.float32),
      "sound": rng.uniform(-1, 1, (*shape, 8, 8)).astype(np.float32),
      "word": rng.integers(0, 5, (*shape, 3)).astype(np.int32),
      "mask": dict(zip(sorted(modalities), mask, strict=True)),
      "labels": {"digit": rng.integers(0, 3, shape).astype(np.int32)},
      "index": np.arange(updates * BATCH, dtype=np.int32).reshape(shape),
    }

  return config, modalities, inputs


def same_on_four_devices(family, config, modalities, inputs):
  """(how far parameters moved, metrics) of two updates, by jit on one device.

  After it has seen that pmap over four moves them as far, and says the same.
  """
  result = {}
  for devices, mode in ((1, "jit"), (4, "pmap")):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = family.make_train_step(config, modalities)
    run = parallel.compile_step(step, mesh, mode, updates=2)
    state = family.init(jax.random.key(0), config, modalities)
    before = jax.device_get(state.params)
    state = parallel.put_replicated(state, mesh)
    batch = parallel.put_inputs(inputs(0, 2), mesh, mode)
    state, metrics = run(state, (), batch, jax.random.key(1))
    moved = jax.tree.map(jnp.subtract, jax.device_get(state.params), before)
    result[devices] = moved, jax.device_get(metrics)
  one, four = (jax.tree.leaves(result[n]) for n in (1, 4))
  for x, y in zip(one, four, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-3 * np.abs(x).max() + 2e-8)
  return result[1]
