"""What a GAN's noise does to its pictures: interpolation, truncation, classes."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmgen_jax import pictures
from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import to_model, to_stored
from mmgen_jax.representation import interpolate
from mmgen_jax.steps import gan

ROWS = 5  # walks shown
THRESHOLDS = (0.0, 2.0, 1.0, 0.5)  # of truncation; 0: none


def grids(
  config, params, examples: Examples, step: int, columns: int = 10, seed: int = 0
) -> Mapping[str, Image.Image]:
  """{"interpolation", "truncation" and, with classes, "classes": a picture}.

  Args:
    config: of a GAN run.
    params: of its networks, the averaged generator's among them.
    examples: held out; what the samples are conditioned on, the same in a row of
      "interpolation", in a column of "truncation".
    step: of the checkpoint, for the titles.
    columns: samples in a row.
    seed: of the noise.
  """
  name, modalities = config.model.modality, examples.modalities
  kind = modalities[name].kind
  from_noise = jax.jit(gan.make_from_noise(config, modalities))
  noise = jax.random.normal(
    jax.random.key(seed), (max(columns, ROWS) + 1, config.model.latent)
  )

  def tiles(z, at, **labels):
    batch = examples.rows(np.resize(at, len(z)) % len(examples))
    batch |= {n: to_model(m, jnp.asarray(batch[n])) for n, m in modalities.items()}
    batch["labels"] |= {k: jnp.full(len(z), v, jnp.int32) for k, v in labels.items()}
    made = from_noise(params, z, batch, jnp.ones(len(modalities), bool))[name]
    return [pictures.tile(kind, x) for x in to_stored(modalities[name], made)]

  walk = interpolate(noise[:ROWS], noise[1 : ROWS + 1], columns, spherical=True)
  rows = {
    "interpolation": [
      (f"from {i} to {i + 1}", tiles(walk[:, i], i)) for i in range(ROWS)
    ],
    "truncation": [
      (f"|z| < {t}" if t else "all z", tiles(gan.truncate(noise[:columns], t), at))
      for at in [np.arange(columns)]
      for t in THRESHOLDS
    ],
  }
  if config.model.classes:
    label = config.model.label
    names = examples.label_names.get(label) or map(str, range(config.model.classes))
    rows["classes"] = [
      (word, tiles(noise[:columns], 0, **{label: i})) for i, word in enumerate(names)
    ]
  return {k: pictures.grid(v, f"{k}, step {step}") for k, v in rows.items()}


def write(folder: Path, made: Mapping[str, Image.Image]) -> list[Path]:
  """Writes <name>.png of each picture; their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / f"{name}.png" for name in made]
  for path, picture in zip(paths, made.values(), strict=True):
    picture.save(path)
  return paths
