import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.fusion.feature import AttentionFusion, GatedFusion, MeanFusion

LAYERS = [MeanFusion(), GatedFusion(), AttentionFusion(heads=2)]
FEATURES = jax.random.normal(jax.random.key(0), (3, 5, 4))
MASK = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1]], bool)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_masked_is_absent_and_every_parameter_learns(layer):
  params = layer.init(jax.random.key(1), FEATURES, MASK)
  poison = jnp.where(MASK[..., None], FEATURES, jnp.nan)

  def f(params, features):
    out = layer.apply(params, features, MASK)
    return (out * jnp.arange(1.0, 5.0)).sum() + (out**2).sum(), out

  grad = jax.grad(f, has_aux=True)
  (clean, out), (dirty, out2) = grad(params, FEATURES), grad(params, poison)
  np.testing.assert_array_equal(out, out2)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  assert not np.any(out[3])  # nothing there
  for g in jax.tree.leaves(clean):
    assert np.isfinite(g).all()
  touched = {
    jax.tree_util.keystr(path): bool(np.any(g))
    for path, g in jax.tree_util.tree_leaves_with_path(clean)
  }
  dead = [name for name, learns in touched.items() if not learns]
  # A key's bias adds the same to every logit, which a softmax does not see.
  assert all("'key']['bias']" in name for name in dead), dead


def test_mean_is_the_mean_of_what_is_there():
  out = MeanFusion().apply({}, FEATURES, MASK)
  np.testing.assert_allclose(out[1], (FEATURES[0, 1] + FEATURES[2, 1]) / 2, rtol=1e-6)
