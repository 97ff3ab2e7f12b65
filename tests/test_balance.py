"""Against modality collapse: dropout, modulation, blending."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import balance

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(3), 20_000)


def test_modality_dropout_has_its_probabilities_and_never_leaves_nothing():
  mask = np.ones((2, len(KEYS)), bool)
  mask[0, ::2] = False  # of these, the second one always stays
  out = np.asarray(balance.modality_dropout(KEYS, mask, 0.3))
  assert out[1, ::2].all() and not out[0, ::2].any()
  both, first, second = (
    (out[:, 1::2] == np.array(s)[:, None]).all(0).mean()
    for s in ([1, 1], [1, 0], [0, 1])
  )
  # All is kept where nothing is dropped, or everything would be.
  np.testing.assert_allclose([both, first, second], [0.58, 0.21, 0.21], atol=0.015)
  np.testing.assert_array_equal(balance.modality_dropout(KEYS, mask, 0.0), mask)
  nothing = np.zeros_like(mask)
  assert not balance.modality_dropout(KEYS, nothing, 0.5).any()


def test_scaled_gradients_leave_the_value():
  x = jnp.array([0.1, 3.7])
  value, grad = jax.value_and_grad(
    lambda x: jnp.sin(balance.scale_gradient(x, 0.25)).sum()
  )(x)
  assert value == jnp.sin(x).sum()
  np.testing.assert_allclose(grad, 0.25 * jnp.cos(x))


def test_modulation_slows_who_is_ahead_by_the_papers_formula():
  right = RNG.uniform(0.1, 0.9, (2, 6)).astype(np.float32)
  right[0] = np.minimum(right[0] + 0.5, 1.0)
  mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1]], bool)
  ratio = right[0][mask[0]].mean() / right[1][mask[1]].mean()
  out = balance.modulation(right, mask, 0.4)
  np.testing.assert_allclose(out, [1 - np.tanh(0.4 * ratio), 1.0], rtol=1e-5)
  dirty = np.where(mask, right, np.nan)
  np.testing.assert_array_equal(balance.modulation(dirty, mask, 0.4), out)
  np.testing.assert_array_equal(balance.modulation(right, mask, 0.0), [1.0, 1.0])
  never = mask & np.array([[True], [False]])
  np.testing.assert_array_equal(balance.modulation(right, never, 0.4), [1.0, 1.0])


def test_modulation_is_that_of_the_global_batch():
  right, mask = RNG.uniform(size=(3, 8)).astype(np.float32), RNG.random((3, 8)) > 0.4
  whole = balance.modulation(right, mask, 0.5)
  cut = lambda x: np.moveaxis(x.reshape(3, 4, 2), 1, 0)
  of = jax.pmap(
    lambda r, m: balance.modulation(r, m, 0.5, "data"), axis_name="data", out_axes=None
  )
  np.testing.assert_allclose(of(cut(right), cut(mask)), whole, rtol=1e-6)


def test_blending_weights_maximise_gain_over_expected_overfitting():
  train = np.array([[2.0, 2.1, 2.2], [0.5, 1.0, 0.3]])
  held_out = np.array([[2.1, 2.2, 2.2], [1.1, 1.4, 1.5]])
  w = balance.blending_weights(train, held_out)
  assert w.sum() == pytest.approx(1.0)
  gain = held_out[0] - held_out[1]
  gap = (held_out - train)[1] - (held_out - train)[0]
  # Uncorrelated gradients: overfitting's expected square is sum (w_k O_k)^2, for a gain
  # that is held fixed.
  ratio = lambda w: ((w * gap) ** 2).sum() / (w @ gain) ** 2
  others = RNG.dirichlet(np.ones(3), 5000)
  assert ratio(w) <= min(map(ratio, others)) + 1e-12
  worse = held_out.copy()
  worse[1, 0] = 3.0
  assert balance.blending_weights(train, worse)[0] == 0.0
  with pytest.raises(ValueError, match="no held-out loss fell"):
    balance.blending_weights(train, worse[::-1] * np.array([0, 1, 1]))
