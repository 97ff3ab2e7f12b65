"""One device = jit over 4 = pmap over 4, for every family, and nothing is gathered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from mmgen_jax import parallel
from mmgen_jax.steps import STEPS

FAMILIES = ["gan", "vae", "hvae", "vq", "autoregressive", "fusion", "recognition"]
FAMILIES += ["multimodal", "extension"]


@functools.cache  # a compilation costs ten times the test that it serves
def updates(family, devices, mode="jit", scan=False, accumulate=1):
  """((state, metrics) after three updates, text of the compiled program if a scan)."""
  config, modalities, inputs = tiny(family, accumulate=accumulate)
  step = STEPS[family].make_train_step(config, modalities)
  mesh = parallel.make_mesh(jax.devices()[:devices])
  run = parallel.compile_step(step, mesh, mode, updates=3, scan=scan)
  state = STEPS[family].init(jax.random.key(0), config, modalities)
  state = parallel.put_replicated(state, mesh)
  args = (state, (), parallel.put_inputs(inputs(0, 3), mesh, mode), jax.random.key(1))
  if not scan:
    return jax.device_get(run(*args)), ""
  compiled = run.lower(*args).compile()
  return jax.device_get(compiled(*args)), compiled.as_text()


def close(a, b, rtol=1e-5):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    # Beside the relative bound, what float32 can say of sums of that size, and of
    # weights near 0.1: a bias that a normalisation or a softmax takes out again starts
    # at zero and has no gradient but rounding.
    scale = np.abs(x).max() if np.size(x) else 0.0
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale + 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_device_is_jit_over_four_is_pmap_over_four(family):
  (one, _), (four, _) = updates(family, 1), updates(family, 4, scan=True)
  pmapped, _ = updates(family, 4, "pmap")
  assert one[0].step == 3
  close(one[0].params, four[0].params)
  close(one[0].params, pmapped[0].params)
  close(one[1], four[1], rtol=1e-4)
  close(one[1], pmapped[1], rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulating_over_sharded_microbatches_is_the_same_update(family):
  (one, _), (cut, _) = updates(family, 1), updates(family, 4, accumulate=2)
  close(one[0].params, cut[0].params)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_compiled_step_gathers_nothing(family):
  _, text = updates(family, 4, scan=True)
  assert "all-reduce" in text
  assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_bad_update_leaves_the_state(policy):
  def step(state, batch, key, *, axis=None):
    loss = jnp.log(batch["x"].sum())
    params = jax.tree.map(lambda p: p + loss, state.params)
    return state.replace(step=state.step + 1, params=params), {"a": loss * 0, "b": loss}

  from mmgen_jax.state import new_state

  mesh = parallel.make_mesh(jax.devices()[:1])
  run = parallel.compile_step(step, mesh, updates=3, on_nonfinite=policy)
  state = new_state({"w": jnp.ones(2)}, {}, {})
  x = jnp.array([[1.0], [-1.0], [np.e]])
  state, metrics = run(state, (), {"x": x}, jax.random.key(0))
  assert metrics["guard/nonfinite"].tolist() == [0, 1, 0]
  assert parallel.guard_names(metrics) == ["a", "b"]
  np.testing.assert_allclose(state.params["w"], 2.0)
  assert state.step == (3 if policy == "skip" else 2)


def test_unknown_modes_and_batches_that_do_not_divide_are_refused():
  mesh = parallel.make_mesh(jax.devices()[:4])
  with pytest.raises(ValueError, match="'shard'"):
    parallel.compile_step(lambda *a: a, mesh, "shard")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="batch_size per process is 6"):
    parallel.put_inputs({"x": np.zeros((1, 6))}, mesh)


def test_noise_of_an_example_does_not_depend_on_the_devices():
  key = jax.random.key(3)
  draw = lambda keys: jax.vmap(jax.random.normal)(keys)
  whole = draw(parallel.example_keys(key, 8, None))
  part = jax.pmap(
    lambda _: draw(parallel.example_keys(key, 2, "data")), axis_name="data"
  )(jnp.zeros(4))
  np.testing.assert_array_equal(whole, part.reshape(-1))
