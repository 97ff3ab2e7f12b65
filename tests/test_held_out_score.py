"""A held-out loss as what is to be high: of every family, with its sign."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from mmgen_jax import evaluate, manifest
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.generate import make_sampler
from mmgen_jax.steps import STEPS


def examples(modalities, n=22):
  rng = np.random.default_rng(0)
  digit = rng.integers(0, 3, n).astype(np.int32)
  columns = {
    "image": Column(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), present=digit < 2),
    "sound": Column(rng.integers(0, 256, (n, 8, 8), np.uint8), present=digit > 0),
    "word": Column(rng.integers(2, 5, (n, 3)).astype(np.int32)),
  }
  return Examples("x", "test", modalities, {"digit": digit}, {}, columns, "x")


def scored(family, monkeypatch, *, draw=True, **model):
  """(config, averages, the same by path, examples) for `evaluate.make_score`."""
  config, modalities, _ = tiny(family)
  config.model.update(**model)
  config.eval.update(num_examples=20, batch_size=8)
  data = examples(modalities)
  monkeypatch.setattr(evaluate, "load_split", lambda *_: data)
  init = lambda: STEPS[family].init(jax.random.key(0), config, modalities).ema
  zeros = lambda x: np.zeros(x.shape, x.dtype)
  ema = init() if draw else jax.tree.map(zeros, jax.eval_shape(init))
  return config, ema, {f"ema/{k}": x for k, x in manifest.leaves(ema).items()}, data


HIGHER = {
  "fusion": ["elbo", "logp_image", "logp_sound", "logp_word"],
  "recognition": ["correct_digit"],
  "alignment": ["cosine_image_sound", "cosine_image_word", "cosine_sound_word"],
  "vq": ["logp"],
  "autoregressive": ["logp"],
}
HIGHER |= dict.fromkeys(("vae", "hvae"), ["elbo", "logp"])
HIGHER |= dict.fromkeys(("multimodal", "extension"), HIGHER["fusion"])


@pytest.mark.parametrize("family", sorted(set(STEPS) - {"gan"}))
def test_a_held_out_score_is_higher_where_it_is_better(family, monkeypatch):
  config, ema, named, data = scored(family, monkeypatch, draw=False)
  eval_step = STEPS[family].make_eval_step(config, data.modalities)
  rows = data.rows(np.arange(8))
  batch = rows | {k: to_model(m, rows[k]) for k, m in data.modalities.items()}
  names = sorted(jax.eval_shape(eval_step, ema, batch, jax.random.key(0)))
  two = lambda params, batch, key: {name: jnp.full(8, 2.0) for name in names}
  monkeypatch.setattr(STEPS[family], "make_eval_step", lambda *_: two)
  signs = {name: evaluate.make_score(config, "", name)(named) / 2 for name in names}
  assert signs == {name: 1 if name in HIGHER[family] else -1 for name in names}


def test_examples_without_their_label_or_any_input_have_no_part_in_it(monkeypatch):
  config, _, named, data = scored("recognition", monkeypatch, inputs=("image",))
  monkeypatch.setattr(evaluate, "load_split", lambda *_: data)
  rows = np.flatnonzero(data.present["image"][:20] & (np.arange(20) % 3 > 0))
  gaps = np.where(np.arange(22) % 3 > 0, data.labels["digit"], -1).astype(np.int32)
  cut = lambda x: x if x is None else x[rows]
  columns = {
    k: Column(c.values[rows], None, cut(c.present)) for k, c in data.columns.items()
  }
  few = dataclasses.replace(data, labels={"digit": gaps[rows]}, columns=columns)
  of_some = evaluate.make_score(config, "", "nll")(named)
  data = dataclasses.replace(data, labels={"digit": gaps})
  assert evaluate.make_score(config, "", "nll")(named) != pytest.approx(of_some)
  got, data = evaluate.make_score(config, "", "nll")(named), few
  assert got == pytest.approx(evaluate.make_score(config, "", "nll")(named), rel=1e-5)
  data = dataclasses.replace(few, labels={"digit": np.full(len(few), -1, np.int32)})
  with pytest.raises(
    ValueError, match="no example of x/validation has what 'nll' is of"
  ):
    evaluate.make_score(config, "", "nll")


def test_what_is_no_score_is_refused(monkeypatch):
  config, *_ = scored("gan", monkeypatch, draw=False)
  with pytest.raises(ValueError, match=r"gan has no held-out 'elbo': \[\]"):
    evaluate.make_score(config, "")
  logits = lambda params, batch, key: {"logits_real": jnp.zeros(8)}
  monkeypatch.setattr(STEPS["gan"], "make_eval_step", lambda *_: logits)
  with pytest.raises(ValueError, match="neither more nor less of 'logits_real'"):
    evaluate.make_score(config, "", "logits_real")


def test_a_held_out_score_is_the_mean_of_evaluation(monkeypatch):
  config, ema, named, data = scored("vae", monkeypatch)
  sampler = make_sampler(config, data.modalities, batch_size=8)
  losses = sampler(ema, data, np.arange(20), config.seed).losses
  got = evaluate.make_score(config, "", "elbo")(named)
  assert got == pytest.approx(losses["elbo"].mean(), rel=1e-4)


@pytest.mark.parametrize(
  ("family", "loss"), [("recognition", "nll"), ("alignment", "cosine_image_word")]
)
def test_families_that_generate_nothing_have_a_score(family, loss, monkeypatch):
  config, ema, named, data = scored(family, monkeypatch)
  config.model.modality = ""
  rows = data.rows(np.arange(20))
  batch = rows | {k: to_model(m, rows[k]) for k, m in data.modalities.items()}
  eval_step = jax.jit(STEPS[family].make_eval_step(config, data.modalities))
  want = float(eval_step(ema, batch, jax.random.key(0))[loss].mean())
  got = evaluate.make_score(config, "", loss)(named)
  assert got == pytest.approx(-want if loss == "nll" else want, rel=1e-4)
