"""Attribution of tiny networks: complete maps, exact shares, gates; and their page."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_report import parse, record, start
from tiny_models import tiny

from mmgen_jax import attribute, attribution, multimodal_scores, records, report
from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.fusion.feature import make_fusion
from mmgen_jax.metrics import judges
from mmgen_jax.metrics.likelihood import Bounds
from mmgen_jax.scores import Setting
from mmgen_jax.steps import STEPS, recognition

RNG = np.random.default_rng(0)


def examples(n=6) -> Examples:
  _, modalities, _ = tiny("recognition")
  digit = RNG.integers(0, 3, n).astype(np.int32)
  columns = {
    "image": Column(RNG.integers(0, 256, (n, 8, 8, 3), np.uint8)),
    "sound": Column(RNG.integers(0, 256, (n, 8, 8), np.uint8)),
    "word": Column(RNG.integers(2, 5, (n, 3)).astype(np.int32)),
  }
  names = {"digit": ("a", "b", "c")}
  return Examples("x", "test", modalities, {"digit": digit}, names, columns, "x")


@functools.cache
def explained():
  config, _, _ = tiny("recognition")
  data = examples()
  params = recognition.init(jax.random.key(0), config, data.modalities).params
  return config, data, params, attribute.explain(config, params, data, np.arange(6))


def test_maps_and_the_baseline_add_up_to_the_log_odds():
  config, data, params, s = explained()
  generate = recognition.make_generate(config, data.modalities)
  rows = data.rows(np.arange(6))
  odds = []
  for black in (False, True):
    batch = {k: modality.to_model(m, rows[k]) for k, m in data.modalities.items()}
    if black:
      batch |= {k: jnp.full_like(batch[k], -1.0) for k in ("image", "sound")}
    batch |= {"mask": rows["mask"], "index": rows["index"]}
    out = generate(params, batch, jnp.ones(3, bool), jax.random.key(0))["digit"]
    if not black:
      np.testing.assert_array_equal(out.argmax(-1), s.said)
    p = np.take_along_axis(jax.nn.softmax(out), s.said[:, None], 1)[:, 0]
    odds.append(np.log(p / (1 - p)))
  total = sum(x.sum((1, 2)) for x in s.maps.values())
  np.testing.assert_allclose(s.rest + total, odds[0], atol=1e-4)
  np.testing.assert_allclose(s.rest, odds[1], atol=2e-2)
  assert s.maps["image"].shape == (6, 8, 8) and set(s.kinds) == {"image", "sound"}


def test_gates_and_attention_add_up_to_one_over_what_is_there():
  _, _, _, s = explained()
  (gates,) = s.looks.values()
  np.testing.assert_allclose(gates.sum(0), 1.0, rtol=1e-5)
  features = jnp.asarray(RNG.normal(size=(3, 4, 2, 8)), jnp.float32)
  mask = jnp.array([[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]], bool)
  for name in ("attention", "latent_queries"):
    layer = make_fusion(name)
    params = layer.init(jax.random.key(0), features, mask)
    run = lambda layer=layer, params=params: layer.apply(
      params, features, mask, mutable=["intermediates"]
    )
    looks = attribution.fusion_weights(run, 3)
    first = next(iter(looks.values()))
    np.testing.assert_allclose(first.sum(0), 1.0, rtol=1e-5)
    assert not np.asarray(first)[~np.asarray(mask)].any() and first[0, 3] > 0.99


def test_saliency_survives_saving(tmp_path):
  *_, s = explained()
  attribute.save(tmp_path / "x.npz", s)
  jax.tree.map(np.testing.assert_array_equal, attribute.load(tmp_path / "x.npz"), s)


@pytest.mark.parametrize("family", ["fusion", "multimodal"])
def test_experts_of_a_vae_share_what_is_decided(family):
  config, modalities, _ = tiny(family)
  config.eval.update(batch_size=4, bootstrap=10)
  data = examples()
  params = STEPS[family].init(jax.random.key(0), config, modalities).params
  out = attribute.expert_entries(config, params, data, np.arange(6))
  by = {(r["metric"], r["given"][0]): r for r in out}
  shares = [by["precision_share", name] for name in sorted(modalities)]
  total = np.sum([r["by_latent"] for r in shares], axis=0)
  np.testing.assert_allclose(total, 1.0, atol=1e-4)
  assert shares[0]["samples"] == 6
  assert all(by["conflict", name]["value"] > 0 for name in modalities)
  if family == "fusion":  # what is private to one modality is decided by it alone
    assert shares[0]["by_latent"][4] == 1.0
  else:
    config.loss.posterior = "mmvae"  # a mixture: nobody's share of a product
    assert not attribute.expert_entries(config, params, data, np.arange(6))


def test_shapley_values_of_coherence_add_up():
  data = examples(40)
  given = [(), ("image",), ("sound",), ("image", "sound")]
  right = {g: RNG.random(40) < 0.2 + 0.3 * len(g) for g in given}
  truth = data.labels["digit"]
  reads = {
    (g, "word"): {"digit": np.where(ok, truth, (truth + 1) % 3)}
    for g, ok in right.items()
  }
  setting = Setting(data, np.arange(40), judges.Judges({}, {}), resamples=10)
  out = attribute.coherence_entries(setting, reads)
  assert [(r["given"], r["target"]) for r in out] == [
    (["image"], "word"),
    (["sound"], "word"),
  ]
  total = right["image", "sound"].mean() - right[()].mean()
  assert sum(r["value"] for r in out) == pytest.approx(total)


def test_shapley_values_of_log_likelihood_add_up():
  data, n = examples(40), 20
  names = sorted(data.modalities)
  subsets = [c for k in (1, 2, 3) for c in itertools.combinations(names, k)]
  log_px = {s: RNG.normal(size=n) - 9.0 * len(s) for s in subsets}
  bounds = {s: Bounds(x - 1.0, x, np.ones(n)) for s, x in log_px.items()}
  setting = Setting(data, np.arange(40), judges.Judges({}, {}), resamples=10)
  out = multimodal_scores.shapley_entries(setting, bounds, np.arange(n), 64)
  has = setting.has(names)[:n]
  for target in names:
    others = tuple(name for name in names if name != target)
    shares = [r for r in out if r["target"] == target]
    assert [r["given"] for r in shares] == [[name] for name in others]
    alone, all_of = log_px[target,], log_px[tuple(names)] - log_px[others]
    total = sum(r["value"] for r in shares)
    assert total == pytest.approx((all_of - alone)[has].mean(), rel=1e-6)
    assert shares[0]["samples"] == has.sum()
  del bounds[tuple(names)[:2]]
  assert not multimodal_scores.shapley_entries(setting, bounds, np.arange(n), 64)


def test_the_page_shows_who_decided(tmp_path):
  start(tmp_path)
  out = [
    record("precision_share", 0.75, ["image"], None, by_latent=[0.9, 0.6]),
    record("conflict", 2.5, ["image"], None),
    record("shapley/coherence", 0.31, ["image"], "word"),
    record("shapley/log_likelihood/k64", 7.75, ["image"], "word"),
  ]
  records.write(tmp_path, 20, out)
  path = records.path(tmp_path, 20).with_suffix(".saliency.npz")
  attribute.save(path, explained()[-1])
  page = report.write(tmp_path).read_text()
  text = parse(page).text
  for said in ("90", "75.0", "2.5", "31.0", "7.8", "says ", "gates", "nats"):
    assert said in text, said
  assert page.count("data:image/png;base64,") == 6 * 4
