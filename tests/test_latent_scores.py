"""Scores of latents, traversals and fitted samplers, on a model that fits in a test."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from mmgen_jax import generate, interpret, latent_scores, report
from mmgen_jax.data import factors, modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.losses import gaussian_log_prob
from mmgen_jax.models import latents
from mmgen_jax.report.latents import latents as section
from mmgen_jax.steps import vae

RNG = np.random.default_rng(0)
OF = {"image": modality.image(8, 8, 1, likelihood="bernoulli")}


@pytest.fixture(scope="module")
def trained():
  """(config, params, train, held out): codes that follow the pictures, as initialised."""
  config, _, _ = tiny("vae")
  config.model.update(net="mlp", hidden=(8,), mean=0.5)
  config.eval.update(latents={"examples": 90, "votes": 20})
  params = vae.init(jax.random.key(0), config, OF).params

  def some(split, n):
    label = RNG.integers(0, 2, n).astype(np.int32)
    ink = RNG.integers(0, 90, (n, 8, 8, 1), np.uint8)
    ink[:, :, 0] += (150 * label[:, None, None]).astype(np.uint8)
    labels = {"bar": label, "nothing": RNG.integers(0, 3, n).astype(np.int32)}
    names = {"bar": ("no", "yes"), "nothing": ("a", "b", "c")}
    columns = {"image": Column(ink)}
    return Examples("pictures", split, OF, labels, names, columns, split)

  return config, params, some("train", 2000), some("test", 90)


def test_what_is_measured_is_read_from_the_codes(trained, tmp_path):
  config, params, train, held_out = trained
  said, path = [], tmp_path / "latents.npz"
  found = latent_scores.measure(config, params, train, held_out, path, said.append)
  by = {(e["metric"].split("/")[1], e["target"]): e for e in found}
  assert by["linear_probe", "bar"]["value"] > 0.95
  assert by["linear_probe", "nothing"]["value"] < 0.6
  assert by["neighbours", "bar"]["learned_from"] == 90
  assert by["active_units", None]["value"] in (2, 3, 4)
  assert 0 <= by["anomaly_auroc", None]["value"] <= 1
  assert len(said) == len(found)
  shown = interpret.load(path)
  assert shown.factors == ("bar", "nothing") and shown.information.shape == (4, 2)
  assert shown.information[:, 0].max() > shown.information[:, 1].max()
  assert shown.tiles.shape == (4, len(interpret.VALUES), 8, 8, 1)
  entries = [e | {"interval": None} for e in found]
  run = report.Run("x", {}, {}, [], entries, [], None, shown)
  page = section(run)
  assert shown.imputed.shape == (8, 4, 8, 8, 1)
  whole, seen, mean, sample = np.moveaxis(shown.imputed, 1, 0)
  for half in (seen, mean, sample):
    np.testing.assert_array_equal(half[:, :4], whole[:, :4])
  assert (seen[:, 4:] == 128).all() and not np.array_equal(mean, sample)
  assert shown.paths.shape == (interpret.PATHS, 9, 8, 8, 1)
  # A path ends where the next one starts.
  np.testing.assert_array_equal(shown.paths[:-1, -1], shown.paths[1:, 0])
  tiles = sum(np.prod(x.shape[:2]) for x in (shown.tiles, shown.paths, shown.imputed))
  assert page.count("<img") == tiles and "mean imputed" in page
  assert "linear probe" in page and "anomaly auroc" in page


def test_rows_without_a_picture_or_a_label_do_not_count(trained, tmp_path):
  config, params, *whole = trained

  def with_gaps(x):
    """Every third row has no picture, every fifth of the others no label."""
    there = np.arange(len(x)) % 3 > 0
    blank = np.where(there[:, None, None, None], x.columns["image"].values, 0)
    labels = dict(x.labels)
    labels["bar"] = np.where(np.arange(len(x)) % 5 > 0, x.labels["bar"], -1)
    columns = {"image": Column(blank, present=there)}
    return dataclasses.replace(x, columns=columns, labels=labels)

  def without(x):
    rows = np.flatnonzero(x.present["image"])
    columns = {"image": Column(x.columns["image"].take(rows))}
    labels = {k: v[rows] for k, v in x.labels.items()}
    return dataclasses.replace(x, columns=columns, labels=labels)

  path, say = tmp_path / "latents.npz", lambda message: None
  gaps = [with_gaps(x) for x in whole]
  found = latent_scores.measure(config, params, *gaps, path, say)
  want = latent_scores.measure(config, params, *map(without, gaps), path, say)
  assert found == want
  by = {(e["metric"].split("/")[1], e["target"]): e for e in found}
  assert by["kl", None]["samples"] == 60
  assert by["linear_probe", "bar"]["samples"] == 48
  assert by["linear_probe", "bar"]["value"] > 0.9
  sampler = generate.make_sampler(config, OF, batch_size=50)
  losses = [
    sampler(params, x, np.arange(len(x)), 0).losses["elbo"] for x in (gaps[1], whole[1])
  ]
  np.testing.assert_array_equal(losses[0], losses[1][np.arange(90) % 3 > 0])


def test_a_probe_of_few_labels_has_no_neighbours():
  rng = np.random.default_rng(0)
  codes = SimpleNamespace(mean=rng.normal(size=(9, 2)))
  labels = {"bar": np.where(np.arange(9) < 4, np.arange(9) % 2, -1)}
  found = latent_scores.probe_entries(codes, labels, codes, labels)
  assert [e["metric"] for e in found] == ["latents/linear_probe"]
  assert found[0]["learned_from"] == 4


def test_codes_do_not_depend_on_the_batch(trained):
  config, params, train, _ = trained
  stored = train.columns["image"].take(np.arange(30))
  a, b = (
    latent_scores.make_encode(config, OF, batch_size=n)(params, stored)
    for n in (30, 16)
  )
  np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4, atol=1e-5)
  assert a.elbo.shape == b.elbo.shape == (30,)


def test_traversals_set_one_latent_and_keep_the_others():
  mean = RNG.normal(size=5).astype(np.float32)
  z = interpret.traversals(mean, [3, 0], [-2.0, 7.0])
  np.testing.assert_array_equal(z[0, :, 3], [-2.0, 7.0])
  np.testing.assert_array_equal(z[1, :, 0], [-2.0, 7.0])
  np.testing.assert_array_equal(z[0, :, :3], np.tile(mean[:3], (2, 1)))


def test_a_picture_is_encoded_once():
  drawn = []

  def encode(params, stored):
    drawn.append(len(stored))
    return latent_scores.Codes(stored.mean((1, 2)) @ np.ones((1, 2)), None, None)

  represent = latent_scores.make_represent(encode, None)
  values = factors.factors_of(np.array([5, 700_000, 5, 9]))
  first, again = represent(values), represent(values[::-1])
  np.testing.assert_array_equal(first, again[::-1])
  want = factors.render(values).mean((1, 2)) @ np.ones((1, 2))
  np.testing.assert_array_equal(first, want)
  represent(factors.factors_of(np.array([9, 11])))
  assert drawn == [3, 1]


def test_disentanglement_entries_tell_factors_from_mixtures():
  sizes = np.array(list(factors.SIZES.values()))
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
  score = lambda represent: {
    e["metric"].split("/")[1]: e["value"]
    for e in latent_scores.disentanglement_entries(represent, examples=600, votes=100)
  }
  perfect = score(lambda values: values / sizes)
  rotated = score(lambda values: values / sizes @ turn)
  assert perfect["factor_vae_score"] == perfect["beta_vae_score"] == 1.0
  for name, value in perfect.items():
    assert value > rotated[name] or name.startswith(("beta", "factor")), name
  assert rotated["factor_vae_score"] < 1.0 and perfect["mig"] > 0.5


@pytest.mark.parametrize("name", ["vamp", "mixture", "flow"])
def test_a_fitted_sampler_takes_the_priors_place(trained, name):
  config, params, train, held_out = trained
  config = config.copy_and_resolve_references()
  config.eval.update(sampler=name, sampler_components=3)
  fitted = latent_scores.fit_sampler(config, params, train)
  generate = vae.make_generate(config, OF)
  batch = {
    "image": jnp.zeros((64, 8, 8, 1)),
    "mask": {"image": jnp.ones(64, bool)},
    "index": jnp.arange(64),
  }
  make = lambda p: generate(p, batch, jnp.array([False]), jax.random.key(0))["image"]
  assert set(fitted) == {*params, "sampler"}
  p = fitted["sampler"]
  z = latents.sample(p, jax.random.split(jax.random.key(1), 4000))
  if name != "flow":
    weights = np.exp(p["logits"]) / np.exp(p["logits"]).sum()
    np.testing.assert_allclose(z.mean(0), weights @ p["means"], atol=0.15)
  stored = held_out.columns["image"].take(np.arange(len(held_out)))
  codes = latent_scores.make_encode(config, OF)(params, stored)
  noise = np.random.default_rng(0).normal(size=(50, *codes.mean.shape))
  new = codes.mean + np.exp(0.5 * codes.logvar) * noise
  gain = latents.log_prob(p, new).mean() - gaussian_log_prob(new, 0.0, 0.0).mean()
  assert gain > 0.1
  assert not np.allclose(make(fitted), make(params))


def test_a_sampler_needs_a_gaussian_posterior(trained):
  config, params, train, _ = trained
  config = config.copy_and_resolve_references()
  config.eval.update(sampler="flow")
  config.family = "gan"
  with pytest.raises(ValueError, match="Gaussian posteriors"):
    latent_scores.fit_sampler(config, params, train)
