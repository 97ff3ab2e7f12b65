"""PixelCNN: what sees what, that it is a distribution, and that samples are of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmgen_jax.models.layers import apply
from mmgen_jax.models.pixelcnn import PixelCNN, sample

KEY = jax.random.key(0)


@functools.cache
def net_of(shape, levels=2, classes=0, layers=3, width=6):
  """(network, parameters larger than at the start, jitted logits)."""
  net = PixelCNN(shape, levels, width, layers, reach=1, embedded=3, classes=classes)
  x, label = jnp.zeros((1, *shape), jnp.int32), jnp.zeros(1, jnp.int32)
  params = net.init(KEY, x, label if classes else None)["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(KEY, len(leaves))
  pairs = zip(leaves, keys, strict=True)
  moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in pairs]
  params = tree.unflatten(moved)
  return net, params, jax.jit(functools.partial(apply, net, params))


@pytest.mark.parametrize("shape", [(3, 4, 1), (2, 3, 3)])
def test_a_logit_depends_on_all_that_is_before_it_and_on_nothing_else(shape):
  net, params, _ = net_of(shape, 4, layers=4, width=24)
  n, e = np.prod(shape), 3

  def logits(x):
    made = apply(net, params, x.reshape(1, *shape[:2], -1), method="logits")
    return made.reshape(n, 4).sum(-1)

  x = jax.random.normal(KEY, (8, n * e))  # a unit may rest for some of them
  slopes = jax.jit(jax.vmap(jax.jacrev(logits)))(x)
  seen = np.abs(slopes).reshape(8, n, n, e).max((0, 3))
  assert (seen[np.triu_indices(n)] == 0.0).all()
  assert (seen[np.tril_indices(n, -1)] > 0.0).all()


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)])
def test_probabilities_of_all_images_sum_to_one(shape):
  _, _, p = probabilities(shape)
  assert len(p) == 16 and p.sum() == pytest.approx(1.0, abs=1e-5)
  assert p.max() > 2 * p.min()


@functools.cache
def probabilities(shape):
  """(images [16 h w c], parameters, p of each)."""
  _, params, logits = net_of(shape)
  images = np.array(list(itertools.product((0, 1), repeat=4))).reshape(16, *shape)
  logp = jax.nn.log_softmax(logits(jnp.asarray(images)))
  logp = jnp.take_along_axis(logp, jnp.asarray(images)[..., None], -1)
  return images, params, np.exp(np.asarray(logp, np.float64).reshape(16, -1).sum(1))


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)])
def test_samples_come_as_often_as_they_are_probable(shape):
  net, params, _ = net_of(shape)
  _, _, p = probabilities(shape)
  keys = jax.random.split(jax.random.key(3), 8000)
  made = np.asarray(jax.jit(functools.partial(sample, net, params))(keys))
  which = made.reshape(len(made), 4) @ (8, 4, 2, 1)
  counts = np.bincount(which, minlength=16)
  assert stats.chisquare(counts, p / p.sum() * len(made)).pvalue > 1e-3


def test_position_by_position_is_all_at_once():
  # The likeliest integer at every position, found in one pass over what was sampled.
  net, params, logits = net_of((4, 3, 3), 5, classes=2)
  label = jnp.array([0, 1])
  draw = lambda key, logits: jnp.argmax(logits)
  keys = jax.random.split(KEY, 2)
  made = jax.jit(lambda keys: sample(net, params, keys, label, draw=draw))(keys)
  np.testing.assert_array_equal(made, jnp.argmax(logits(made, label), -1))
  assert made.dtype == jnp.int32 and len(np.unique(made)) > 1
  assert (made[0] != made[1]).any()  # the label counts


def test_channels_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match="width 64 must be a multiple of the 3 channels"):
    PixelCNN((2, 2, 3), 2).init(KEY, jnp.zeros((1, 2, 2, 3), jnp.int32))
