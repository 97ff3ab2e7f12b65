"""A modality added to a trained model: nothing old moves, and the new one fits in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import MODALITIES, examples
from tiny_models import tiny

from configs import common
from mmgen_jax import checkpoint, initial, log, loop
from mmgen_jax.data import modality
from mmgen_jax.steps import extension, fusion

OLD = ("image", "word")


def config(family, steps):
  c, _, _ = tiny(family)
  c.model.update(private={"image": 0, "audio": 0, "text": 0}, prior_components=8)
  c.model.update(widths={"image": 16, "audio": 16, "text": 16}, features=32)
  c.loss.update(adversarial=(), alignment=1.0, cross=1.0, prior_rate=0.02)
  c.loss.weights = {"word": 10.0}
  c.model.scales = {"image": 0.5, "audio": 0.5}
  c.optim = common.optim(4e-3)
  c.batch_size, c.train_steps, c.ema_decay = 32, steps, 0.98
  c.updates_per_dispatch = c.log_steps = 10
  c.save_steps = c.sample_steps = steps
  return c


def of(generate, params, data, given, target):
  """What is made of one modality from others, stored."""
  rows = data.rows(np.arange(len(data)))
  batch = rows | {k: modality.to_model(m, rows[k]) for k, m in data.modalities.items()}
  keep = jnp.array([name in given for name in sorted(data.modalities)])
  out = generate(params, batch, keep, jax.random.key(2))[target]
  return modality.to_stored(data.modalities[target], out)


def test_old_parameters_stay_bit_identical_and_the_new_modality_is_understood(tmp_path):
  train, test = examples("train", 200), examples("test", 200)
  c = config("fusion", 100)
  c.data.options = {"modalities": OLD}
  old = loop.train(c, tmp_path / "old", examples=train.select(OLD))
  new = config("extension", 80)
  new.extend = {"modality": "sound"}
  new.initial = dict.fromkeys(("vae", "prior"), str(tmp_path / "old"))
  after = loop.train(new, tmp_path / "new", examples=train)
  assert int(after.step) == 80
  # Far from what the frozen experts say at first (2.6 nats), close to it then (0.4).
  far = [m["extension/alignment"] for m in log.read_metrics(tmp_path / "new")]
  assert far[0] > 1.0 > 0.8 > far[-1]
  for network in ("vae", "prior"):
    same = old.ema[network]
    jax.tree.map(np.testing.assert_array_equal, after.params[network], same)
    jax.tree.map(np.testing.assert_array_equal, after.ema[network], same)
  before = checkpoint.load(tmp_path / "old/checkpoints", jax.eval_shape(lambda: old))
  assert checkpoint.digest(before[0]) == checkpoint.digest(old)
  generate = jax.jit(extension.make_generate(new, MODALITIES))
  words = of(generate, after.ema, test, ("sound",), "word")
  has = test.present["sound"]
  right = (words == test.rows(np.arange(200))["word"]).all(1)
  sounds = of(generate, after.ema, test, ("word",), "sound")
  said = sounds.reshape(200, 8, 4, 2).mean((1, 3)).argmax(1)
  # Chance is a quarter; measured: 1.0 and 1.0.
  assert right[has].mean() > 0.9
  assert (said == test.labels["digit"]).mean() > 0.9
  # And what the old model did, it does still.
  before = jax.jit(fusion.make_generate(c, train.select(OLD).modalities))
  a = of(before, old.ema, test.select(OLD), ("word",), "image")
  b = of(generate, after.ema, test, ("word",), "image")
  np.testing.assert_allclose(a, b, atol=1)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
  c, modalities, _ = tiny("extension")
  c.extend.modality = "video"
  with pytest.raises(ValueError, match="'video'"):
    extension.build(c, modalities)
  c, _, _ = tiny("extension")
  c.model.private = {"image": 2}
  with pytest.raises(ValueError, match=r"model\.private"):
    extension.build(c, modalities)
  c, _, _ = tiny("extension")
  state = extension.init(jax.random.key(0), c, modalities)
  c.initial = {"vae": str(tmp_path)}
  with pytest.raises(FileNotFoundError, match="no sound checkpoint"):
    initial.fill(state, c, tmp_path)
  c.model.latent += 1
  other = fusion.init(jax.random.key(0), c, modalities)
  checkpoint.save(tmp_path / "checkpoints", other, 3)
  with pytest.raises(ValueError, match=r"ema/vae/.* this run wants"):
    initial.fill(state, c, tmp_path)
