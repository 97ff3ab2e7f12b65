"""The autoregressive step: of pixels, and of the codes of a coder trained before."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from mmgen_jax import checkpoint, initial, manifest
from mmgen_jax import config as config_lib
from mmgen_jax.steps import autoregressive, vq

KEY = jax.random.key(0)


def first(inputs):
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  batch["mask"] = jax.tree.map(jnp.ones_like, batch["mask"])
  return batch


def of_codes():
  """(config, modalities, batch) of a prior over codes."""
  config, modalities, inputs = tiny("autoregressive")
  config.coder = tiny("vq")[0]
  config.model.source = "codes"
  config.initial = {"vae": "elsewhere", "codebook": "elsewhere"}
  return config, modalities, first(inputs)


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_pixels_become_integers_and_come_back(levels):
  config, modalities, _ = tiny("autoregressive")
  config.model.grey_levels = levels
  _, of = autoregressive.build(config, modalities)
  stored = np.arange(192).reshape(1, 8, 8, 3) * 255 // 191
  ids = of.read({}, jnp.asarray(stored / 127.5 - 1.0, jnp.float32), None)
  np.testing.assert_array_equal(ids, stored * levels // 256)
  shown = np.asarray(of.show({}, ids))
  assert shown.min() == -1.0 and shown.max() == 1.0
  if levels == 256:
    np.testing.assert_allclose(shown, stored / 127.5 - 1.0, atol=1e-6)


def test_a_prior_over_codes_learns_and_leaves_its_coder_alone(tmp_path):
  config, modalities, batch = of_codes()
  # A coder's run, as the loop would leave it.
  coder = vq.init(jax.random.key(7), config.coder, modalities)
  checkpoint.save(tmp_path / "coder" / "checkpoints", coder, 3)
  config.initial = {n: str(tmp_path / "coder") for n in ("vae", "codebook")}
  state = autoregressive.init(KEY, config, modalities)
  state = initial.fill(state, config, tmp_path)
  trained = config_lib.to_json(config.coder)
  (tmp_path / "coder" / "config.json").write_text(trained)
  initial.fill(state, config, tmp_path)
  config.coder.model.scales.image = 0.5  # which no shape tells
  with pytest.raises(
    ValueError, match=r"coder.model.scales is .*0.5.*trained with .*1.0"
  ):
    initial.fill(state, config, tmp_path)
  config.coder = config_lib.from_json(trained)
  told = json.loads((tmp_path / "initial.json").read_text())
  assert told["vae"]["step"] == 3
  assert told["codebook"]["digest"] == manifest.digest(coder.ema["codebook"])
  jax.tree.map(np.testing.assert_array_equal, state.params["vae"], coder.ema["vae"])

  step = jax.jit(autoregressive.make_train_step(config, modalities))
  after, metrics = step(state, batch, KEY)
  for name in ("vae", "codebook"):
    for tree in (after.params, after.ema):
      jax.tree.map(np.testing.assert_array_equal, tree[name], coder.ema[name])
  kernel = lambda s: s.params["prior"]["head_1"]["kernel"]
  assert not np.array_equal(kernel(state), kernel(after))
  # Four codes out of five: near uniform at the start.
  np.testing.assert_allclose(metrics["autoregressive/logp"], -4 * math.log(5), rtol=0.5)

  terms = autoregressive.make_eval_step(config, modalities)(state.ema, batch, KEY)
  rest = vq.make_eval_step(config.coder, modalities)(state.ema, batch, KEY)["logp"]
  np.testing.assert_allclose(terms["elbo"], terms["logp"] + rest, rtol=1e-5)
  bits = -terms["logp"] / (4 * math.log(2))
  np.testing.assert_allclose(terms["bits_per_code"], bits, rtol=1e-5)

  generate = jax.jit(autoregressive.make_generate(config, modalities))
  made = generate(state.ema, batch, jnp.zeros(3, bool), KEY)["image"]
  assert made.shape == (8, 8, 8, 3)
  # All that it can show is what the coder decodes of its 5^4 codes.
  _, of = autoregressive.build(config, modalities)
  all_ids = np.stack(np.meshgrid(*[np.arange(5)] * 4, indexing="ij"), -1)
  shown = np.asarray(of.show(state.ema, jnp.asarray(all_ids.reshape(-1, 2, 2, 1))))
  distance = np.abs(np.asarray(made)[:, None] - shown).max((2, 3, 4)).min(1)
  assert distance.max() < 1e-4


def test_a_network_that_does_not_fit_is_refused(tmp_path):
  config, modalities, _ = of_codes()
  other = config.coder.copy_and_resolve_references()
  other.model.codes = 6
  coder = vq.init(KEY, other, modalities)
  checkpoint.save(tmp_path / "checkpoints", coder, 1)
  state = autoregressive.init(KEY, config, modalities)
  config.initial = {"codebook": str(tmp_path)}
  with pytest.raises(ValueError, match=r"codebook/count of .* is float32 \(6,\)"):
    initial.fill(state, config, tmp_path)
  config.initial = {"decoder": str(tmp_path)}
  with pytest.raises(ValueError, match="network 'decoder'"):
    initial.fill(state, config, tmp_path)
  assert not (tmp_path / "initial.json").exists()


def test_what_does_not_fit_is_refused():
  def refused(match, **model):
    config, modalities, _ = tiny("autoregressive")
    config.model.update(model)
    with pytest.raises(ValueError, match=match):
      autoregressive.build(config, modalities)

  refused("needs config.coder", source="codes")
  refused("model.source must be one of", source="words")
  refused("2 to 256, .* got 257", grey_levels=257)
  refused("'word' is text", modality="word")
  config, modalities, inputs = tiny("autoregressive")
  config.model.label = "colour"
  with pytest.raises(ValueError, match="'colour'"):
    step = autoregressive.make_train_step(config, modalities)
    step(autoregressive.init(KEY, config, modalities), first(inputs), KEY)
