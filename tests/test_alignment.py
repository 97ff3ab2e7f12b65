"""Alignment: losses against NumPy, masks, global batches; retrieval by brute force."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from tiny_models import same_on_four_devices, tiny

from mmgen_jax import contrastive, parallel, records, retrieve
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.metrics import retrieval
from mmgen_jax.steps import alignment

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 8, 5))
A, B = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B))
ALL = np.ones(8, bool)
HAS = (np.arange(8) != 2, np.arange(8) < 6)
SAME = np.array([0, 1, 0, 2, 3, 3, 4, 0])
SOME_UNKNOWN = np.array([0, -1, 0, 2, -1, -1, 4, 0])
SCALE, BIAS = 3.0, -1.5


def by_hand(name, has, same):
  """The global loss, one pair after the other, in float64."""
  rows = [i for i in range(8)]
  logit = SCALE * A @ B.T
  total, count = {"rows": 0.0, "columns": 0.0, "pairs": 0.0}, {"rows": 0, "columns": 0}
  ids = np.arange(8) if same is None else same
  ids = np.where(ids < 0, 100 + np.arange(8), ids)  # unknown: like no other
  for way, x in (("rows", logit), ("columns", logit.T)):
    first, second = has if way == "rows" else has[::-1]
    for i in rows:
      there = [j for j in rows if second[j]]
      positive = [j for j in there if ids[i] == ids[j]] if first[i] else []
      if not positive:
        continue
      count[way] += 1
      logp = x[i] - special.logsumexp(x[i][there])
      total[way] -= np.mean([logp[j] for j in positive])
  if name == "infonce":
    return (total["rows"] / count["rows"] + total["columns"] / count["columns"]) / 2
  for i in rows:
    for j in rows:
      if has[0][i] and has[1][j]:
        sign = 1.0 if ids[i] == ids[j] else -1.0
        total["pairs"] -= special.log_expit(sign * (logit[i, j] + BIAS))
  return total["pairs"] / max(has[0].sum(), has[1].sum())


@pytest.mark.parametrize(
  "same", [None, SAME, SOME_UNKNOWN], ids=["own", "several", "some unknown"]
)
@pytest.mark.parametrize("has", [(ALL, ALL), HAS], ids=["all", "some"])
@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_losses_are_those_by_hand_on_one_device_and_on_four(name, has, same):
  want = by_hand(name, has, same)
  f32 = lambda x: jnp.asarray(x, jnp.float32)
  bias = BIAS if name == "siglip" else 0.0

  def loss(a, b, has, same, axis=None):
    nats = contrastive.pair_loss(name, a, b, has, same, SCALE, bias, axis)
    return nats.mean(), nats

  of = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (value, nats), grads = of(f32(A), f32(B), has, same)
  assert nats.shape == (8,) and float(value) == pytest.approx(want, rel=1e-5)
  cut = lambda x: x.reshape(4, 2, *x.shape[1:])
  args = jax.tree.map(cut, (f32(A), f32(B), has, same))

  def part(a, b, has, same):
    (value, _), g = of(a, b, has, same, "data")
    return parallel.pmean(value, "data"), g

  value4, grads4 = jax.pmap(part, axis_name="data")(*args)
  np.testing.assert_allclose(value4, value, rtol=1e-5)
  for g, g4 in zip(grads, grads4, strict=True):
    # A device's rows have the slope of the sum over devices: 4 times that of the mean.
    np.testing.assert_allclose(g4.reshape(8, 5) / 4, g, atol=1e-6)


@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_masked_is_absent_even_where_it_is_nan(name):
  def loss(a, b):
    a, b = contrastive.normalise(a), contrastive.normalise(b)
    return contrastive.pair_loss(name, a, b, HAS, SAME, SCALE, BIAS).mean()

  a, b = (jnp.where(h[:, None], x, 0.0) for h, x in zip(HAS, (A, B), strict=True))
  value, grads = jax.value_and_grad(loss, argnums=(0, 1))(a, b)
  assert all(np.isfinite(g).all() for g in grads)
  assert not grads[0][~HAS[0]].any() and not grads[1][~HAS[1]].any()
  nothing = contrastive.pair_loss(name, a, b, (ALL, ~ALL), SAME, SCALE, BIAS)
  assert not nothing.any()
  assert np.isfinite(value)


def test_examples_that_are_never_whole_repel_by_as_much_as_whole_ones():
  # Half have the one, half the other: every pair is negative, none is positive.
  first = np.arange(8) < 4
  loss = lambda has: contrastive.pair_loss(
    "siglip", A, B, has, None, SCALE, BIAS
  ).mean()
  logit = SCALE * A[:4] @ B[4:].T + BIAS
  want = -special.log_expit(-logit).sum() / 4
  assert float(loss((first, ~first))) == pytest.approx(want, rel=1e-5)
  assert loss((first, ~first)) < loss((ALL, ALL))


def test_every_takes_the_log_of_the_sum():
  p = contrastive.make_pairs(A, B, (ALL, ALL), SAME, SCALE)
  inside = contrastive.info_nce(p, every=True)
  logits = SCALE * A @ B.T
  good = SAME[:, None] == SAME[None]
  want = special.logsumexp(logits, axis=1) - special.logsumexp(
    np.where(good, logits, -np.inf), axis=1
  )
  np.testing.assert_allclose(inside, want, rtol=1e-5)


def test_one_device_is_four_devices():
  config, modalities, inputs = tiny("alignment")
  config.loss.objective = "infonce"  # of the two, the one whose counts are global
  moved, _ = same_on_four_devices(alignment, config, modalities, inputs)
  assert np.abs(moved["aligner"]["log_scale"]) > 0


def brute(scores, relevant, k):
  """Recall at k and rank of the first relevant one, over all orders of what is tied."""
  hits, ranks = [], []
  for order in permutations(range(len(scores))):
    ranked = sorted(order, key=lambda c: -scores[c])
    first = next(i for i, c in enumerate(ranked) if relevant[c])
    hits.append(first < k)
    ranks.append(first + 1)
  return np.mean(hits), np.mean(ranks)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 9])
def test_retrieval_is_the_mean_over_all_orders_of_ties(k):
  scores = RNG.integers(0, 3, (12, 6)).astype(float)
  relevant = RNG.random((12, 6)) < 0.35
  relevant[np.arange(12), np.arange(12) % 6] = True
  recall = retrieval.recall_at(k, scores, relevant)
  rank = retrieval.expected_rank(scores, relevant)
  want = np.array([brute(s, r, k) for s, r in zip(scores, relevant, strict=True)])
  np.testing.assert_allclose(np.stack([recall, rank], 1), want)


def test_a_network_that_says_the_same_of_everything_is_at_chance():
  scores, relevant = np.zeros((50, 50)), np.eye(50, dtype=bool)
  np.testing.assert_allclose(retrieval.recall_at(5, scores, relevant), 0.1)
  np.testing.assert_allclose(retrieval.expected_rank(scores, relevant), 25.5)
  with pytest.raises(ValueError, match="query 3 has no relevant"):
    retrieval.recall_at(1, scores, relevant & (np.arange(50) != 3))
  with pytest.raises(ValueError, match="NaN"):
    retrieval.recall_at(1, scores * np.nan, relevant)


def test_measured_entries_leave_out_what_is_missing():
  config, modalities, _ = tiny("alignment")
  config.eval.update(batch_size=8, bootstrap=10, same=("digit",))
  params = alignment.init(jax.random.key(0), config, modalities).params
  n, digit = 20, RNG.integers(0, 3, 20).astype(np.int32)
  columns = {
    "image": Column(RNG.integers(0, 256, (n, 8, 8, 3), np.uint8)),
    "sound": Column(RNG.integers(0, 256, (n, 8, 8), np.uint8), present=digit > 0),
    "word": Column(RNG.integers(2, 5, (n, 3)).astype(np.int32)),
  }
  data = Examples("x", "test", modalities, {"digit": digit}, {}, columns, "x")
  measure = retrieve.make_measure(config, modalities)
  out = measure(params, data, np.arange(n), data, say=lambda message: None)
  out = [{**entry, "data": {"split": "test"}} for entry in out]
  find = lambda metric, a, b: records.find(out, metric, [a], b)
  e = retrieve.make_embed(config, modalities)(params, data, np.arange(n))
  rows = digit > 0
  scores = e["image"][rows] @ e["sound"][rows].T
  r = find("recall_at_5", "image", "sound")
  assert r["samples"] == r["reference"]["candidates"] == rows.sum()
  want = retrieval.recall_at(5, scores, np.eye(rows.sum(), dtype=bool)).mean()
  assert r["value"] == pytest.approx(want)
  same = digit[rows][:, None] == digit[rows]
  want = np.median(retrieval.expected_rank(scores, same))
  assert find("median_rank_label", "image", "sound")["value"] == want
  assert find("recall_at_1", "word", "image")["samples"] == n
  config.eval.same = ("figure",)
  with pytest.raises(
    ValueError, match=r"eval.same names 'figure'; labels are .'digit'"
  ):
    retrieve.make_measure(config, modalities)(
      params, data, np.arange(n), data, say=lambda message: None
    )


def test_examples_mean_the_same_only_where_all_labels_are_known_and_equal():
  labels = {"a": np.array([0, 1, 1, 2, 2]), "b": np.array([1000, 0, 0, -1, -1])}
  same = alignment.meaning(jax.tree.map(jnp.asarray, labels), ("a", "b"))
  want = np.eye(5, dtype=bool)
  want[1, 2] = want[2, 1] = True
  has = (jnp.ones(5, bool),) * 2
  pairs = contrastive.make_pairs(jnp.eye(5), jnp.eye(5), has, same, 1.0)
  np.testing.assert_array_equal(pairs.positive, want)
  number = retrieve._number(labels, ("a", "b"))
  np.testing.assert_array_equal(number[:, None] == number, want)


def test_what_does_not_fit_is_refused_by_name():
  config, modalities, inputs = tiny("alignment")
  config.loss.objective = "triplet"
  with pytest.raises(ValueError, match="'triplet'"):
    alignment.build(config, modalities)
  config, _, _ = tiny("alignment", accumulate=2)
  with pytest.raises(ValueError, match="accumulate must be 1"):
    alignment.make_train_step(config, modalities)
  with pytest.raises(ValueError, match="'colour'"):
    alignment.meaning({"digit": jnp.zeros(3)}, ("colour",))


def test_a_scale_at_its_limit_comes_back():
  config, modalities, inputs = tiny("alignment")
  config.loss.objective = "infonce"
  state = alignment.init(jax.random.key(0), config, modalities)
  far = {"aligner": {**state.params["aligner"], "log_scale": jnp.float32(np.log(150))}}
  state = state.replace(params=far, ema=far)
  step = jax.jit(alignment.make_train_step(config, modalities))
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs(0, 1))
  scales = []
  for _ in range(3):  # embeddings of chance: a smaller scale is better
    state, _ = step(state, batch, jax.random.key(1))
    both = state.params["aligner"]["log_scale"], state.ema["aligner"]["log_scale"]
    assert all(np.exp(x) < 100.01 for x in both)
    scales.append(float(np.exp(both[0])))
  assert scales[0] > scales[1] > scales[2]
