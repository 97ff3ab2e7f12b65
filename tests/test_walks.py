"""Walks through a GAN's noise, and the pictures of them."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from tiny_models import tiny

from mmgen_jax import walks
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.steps import gan


def test_truncated_noise_has_the_quantiles_of_the_cut_normal():
  z = jnp.linspace(-3, 3, 13)
  np.testing.assert_array_equal(gan.truncate(z, 0.0), z)
  for t in (2.0, 0.5):
    want = scipy.stats.truncnorm.ppf(scipy.stats.norm.cdf(np.asarray(z)), -t, t)
    np.testing.assert_allclose(gan.truncate(z, t), want, atol=1e-4)


def test_the_pictures_show_every_class_and_walk(tmp_path):
  config, modalities, inputs = tiny("gan")
  state = jax.eval_shape(lambda: gan.init(jax.random.key(0), config, modalities))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.float32(0.1 * rng.normal(size=x.shape)), state.params
  )
  one = {name: m for name, m in modalities.items() if name == "image"}
  pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
  labels, names = {"digit": np.arange(6) % 3}, {"digit": ("a", "b", "c")}
  columns = {"image": Column(pixels)}
  examples = Examples("tiny", "test", one, labels, names, columns, "tiny")
  made = walks.grids(config, params, examples, 7, columns=4)
  assert sorted(made) == ["classes", "interpolation", "truncation"]
  few = examples.first(2)  # fewer than samples in a row
  assert sorted(walks.grids(config, params, few, 7, columns=4)) == sorted(made)
  paths = walks.write(tmp_path, made)
  assert sorted(path.name for path in paths) == sorted(f"{k}.png" for k in made)
  wide = made["classes"].width
  assert all(picture.width == wide for picture in made.values())
  high = [made[k].height for k in ("classes", "truncation", "interpolation")]
  assert high == sorted(high) and len(set(high)) == 3  # 3, 4 and 5 rows
