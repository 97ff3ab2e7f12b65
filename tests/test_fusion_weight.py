"""Merged parameters against NumPy, entry by entry, and what is refused."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mmgen_jax.fusion import fisher, weight
from mmgen_jax.fusion import task_vectors as tv
from mmgen_jax.fusion.weight import by_path

KEY = jax.random.key(0)


def tree(seed, dtype: type = np.float32):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
  return {
    "encoder": {"kernel": draw(3, 4), "bias": draw(4)},
    "decoder": [draw(4, 2), {"scale": draw()}],
  }


TREES = [tree(i) for i in range(4)]


def flat(x):
  return np.concatenate([np.ravel(a).astype(np.float64) for a in jax.tree.leaves(x)])


def assert_close(got, want, rtol=1e-6):
  assert jax.tree.structure(got) == jax.tree.structure(TREES[0])
  np.testing.assert_allclose(flat(got), flat(want), rtol=rtol, atol=1e-6)


def leafwise(f, *trees):
  return jax.tree.map(lambda *xs: f(*[np.float64(x) for x in xs]), *trees)


# Averages.


def test_ema_is_the_sum_with_exponential_weights():
  mean, decay = TREES[0], 0.9
  update = jax.jit(weight.ema_update)
  for x in TREES[1:]:
    mean = update(mean, x, decay)
  w = [0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1]
  assert_close(
    mean, leafwise(lambda *xs: sum(a * x for a, x in zip(w, xs, strict=True)), *TREES)
  )


def test_swa_is_the_mean_of_all():
  mean, update = TREES[0], jax.jit(weight.swa_update)
  for count, x in enumerate(TREES[1:], start=1):
    mean = update(mean, x, count)
  assert_close(mean, leafwise(lambda *xs: np.mean(xs, 0), *TREES))
  assert_close(mean, weight.average(TREES))


def test_average_with_weights():
  w = [1.0, 2.0, -0.5, 3.0]
  want = leafwise(
    lambda *xs: sum(a * x for a, x in zip(w, xs, strict=True)) / sum(w), *TREES
  )
  assert_close(weight.average(TREES, w), want, rtol=1e-5)
  own = {name: w if "encoder" in name else [1, 0, 0, 0] for name in by_path(TREES[0])}
  got = weight.average(TREES, own)
  np.testing.assert_allclose(
    got["encoder"]["bias"], want["encoder"]["bias"], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(got["decoder"][0], TREES[0]["decoder"][0])


def test_halves_are_summed_in_float32():
  trees = [tree(i, ml_dtypes.bfloat16) for i in range(4)]
  want = leafwise(lambda *xs: np.mean(xs, 0), *trees)
  for x, y in zip(
    jax.tree.leaves(weight.average(trees)), jax.tree.leaves(want), strict=True
  ):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(x), np.float32(y).astype(x.dtype))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_interpolation_is_linear(t):
  a, b = TREES[:2]
  want = leafwise(lambda x, y: (1 - t) * x + t * y, a, b)
  assert_close(weight.interpolate(a, b, t), want)


def test_a_layer_takes_its_own_t():
  a, b = TREES[:2]
  t = weight.layer_weights(a, {"encoder/.*bias": 1.0, "encoder": 0.25}, default=0.0)
  got = weight.interpolate(a, b, t)
  assert_close(
    got,
    {
      "encoder": {
        "kernel": 0.75 * a["encoder"]["kernel"] + 0.25 * b["encoder"]["kernel"],
        "bias": b["encoder"]["bias"],
      },
      "decoder": a["decoder"],
    },
  )


def test_patterns_must_be_found_and_cover_all():
  with pytest.raises(ValueError, match="nowhere"):
    weight.layer_weights(TREES[0], {"nowhere": 1.0, "": 0.0})
  with pytest.raises(ValueError, match="decoder/0"):
    weight.layer_weights(TREES[0], {"encoder": 1.0})


def test_slerp_goes_along_the_arc_at_constant_speed():
  rng = np.random.default_rng(0)
  a, b = (x / np.linalg.norm(x) for x in rng.standard_normal((2, 3, 5)))
  angle = np.arccos((a * b).sum())
  for t in (0.0, 0.2, 0.7, 1.0):
    got = np.asarray(weight.slerp(a, b, t))
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)
    assert np.arccos(min((got * a).sum(), 1)) == pytest.approx(t * angle, abs=1e-3)


@pytest.mark.parametrize("b", [3.0 * np.ones(4), -np.ones(4), np.zeros(4)])
def test_slerp_is_linear_where_there_is_no_arc(b):
  a = np.ones(4, np.float32)
  got = weight.slerp(a, np.float32(b), 0.25)
  np.testing.assert_allclose(got, 0.75 * a + 0.25 * b, rtol=1e-6)


def test_a_barrier_is_the_worst_above_the_mean_of_the_ends():
  assert weight.loss_barrier([1.0, 2.0, 7.0, 3.0]) == 5.0
  assert weight.loss_barrier([1.0, 0.0, 1.0]) == 0.0


# Soups.


def test_a_greedy_soup_keeps_what_raises_the_score():
  target = flat(weight.average([TREES[0], TREES[2]]))
  score = lambda p: -float(((flat(p) - target) ** 2).sum())
  soup, record = weight.greedy_soup(TREES, score)
  own = [score(x) for x in TREES]
  assert [c.index for c in record] == sorted(range(4), key=lambda i: -own[i])
  chosen, best = [], None  # the recipe again, from flat vectors
  for c in record:
    mean = np.mean([flat(TREES[i]) for i in [*chosen, c.index]], 0)
    after = -((mean - target) ** 2).sum()
    rises = best is None or after > best
    assert (c.own, c.added) == (own[c.index], rises)
    assert c.before == (None if best is None else pytest.approx(best, abs=1e-4))
    assert c.after == pytest.approx(after, abs=1e-4)
    if rises:
      chosen, best = [*chosen, c.index], after
  assert {0, 2} <= set(chosen) and not all(c.added for c in record)
  assert_close(soup, leafwise(lambda *xs: np.mean(xs, 0), *[TREES[i] for i in chosen]))


def test_what_leaves_the_score_as_it_is_is_not_added():
  soup, record = weight.greedy_soup([TREES[1]] * 3, lambda p: 1.0)
  assert [c.added for c in record] == [True, False, False]
  assert_close(soup, TREES[1])


def test_a_score_that_is_nan_is_refused():
  with pytest.raises(ValueError, match="score of ingredient 0 is NaN"):
    weight.greedy_soup(TREES, lambda p: math.nan)


# Task vectors.


@pytest.mark.parametrize("scales", [0.5, [1.0, -2.0, 0.25]])
def test_task_arithmetic(scales):
  base, *trees = TREES
  each = np.broadcast_to(scales, 3)
  want = leafwise(
    lambda b, *xs: b + sum(s * (x - b) for s, x in zip(each, xs, strict=True)),
    base,
    *trees,
  )
  assert_close(tv.task_arithmetic(base, trees, scales), want, rtol=1e-5)


def ties_by_hand(base, trees, keep, scale):
  base = flat(base)
  vectors = []
  for x in trees:
    v = flat(x) - base
    kept = np.argsort(-np.abs(v), kind="stable")[: round(keep * v.size)]
    vectors.append(np.where(np.isin(np.arange(v.size), kept), v, 0.0))
  out = base.copy()
  for i, column in enumerate(np.transpose(vectors)):
    agree = [v for v in column if v != 0 and np.sign(v) == np.sign(column.sum())]
    out[i] += scale * np.mean(agree) if agree else 0.0
  return out


@pytest.mark.parametrize("keep, scale", [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_ties(keep, scale):
  base, *trees = TREES
  got = tv.ties(base, trees, keep=keep, scale=scale)
  want = ties_by_hand(base, trees, keep, scale)
  np.testing.assert_allclose(flat(got), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_trim_threshold_is_the_one_of_a_sort(keep):
  rng = np.random.default_rng(1)
  x = {"a": rng.standard_normal((30, 7)).round(1), "b": rng.standard_normal(90)}
  x = jax.tree.map(np.float32, x)
  zero = jax.tree.map(np.zeros_like, x)
  got = float(tv.trim_threshold(zero, jax.tree.map(jnp.asarray, x), keep))
  magnitudes = np.sort(np.abs(np.concatenate([x["a"].ravel(), x["b"]])))[::-1]
  assert got == magnitudes[round(keep * 300) - 1]


def test_dare_drops_at_random_and_keeps_the_mean():
  base, x = (np.full((100, 100), v, np.float32) for v in (1.0, 3.0))
  got = np.asarray(tv.dare(base, x, drop=0.8, key=KEY))
  assert set(np.unique(got.round(3))) == {1.0, 11.0}  # 1 + 2 / (1 - 0.8)
  assert abs((got == 1).mean() - 0.8) < 4 * math.sqrt(0.8 * 0.2 / got.size)
  np.testing.assert_array_equal(got, tv.dare(base, x, drop=0.8, key=KEY))
  pair = tv.dare({"a": base, "b": base}, {"a": x, "b": x}, drop=0.5, key=KEY)
  assert (np.asarray(pair["a"]) != np.asarray(pair["b"])).any()
  np.testing.assert_array_equal(tv.dare(base, x, drop=0.0, key=KEY), x)


# Fisher.


def log_prob(params, example):
  return -0.5 * (example["y"] - params["w"] @ example["x"]) ** 2


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_diagonal_fisher_of_a_linear_model(batch):
  rng = np.random.default_rng(0)
  x, y, w = (rng.standard_normal(s).astype(np.float32) for s in ((7, 3), 7, 3))
  got = fisher.diagonal_fisher(log_prob, {"w": w}, {"x": x, "y": y}, batch=batch)
  want = (((y - x @ w)[:, None] * x) ** 2).mean(0)
  np.testing.assert_allclose(got["w"], want, rtol=1e-5)


def test_fisher_average_is_the_mode_of_the_product_of_gaussians():
  fishers = [jax.tree.map(np.square, tree(i)) for i in (10, 11)]
  w = [1.0, 3.0]
  got = fisher.fisher_average(TREES[:2], fishers, w)
  # d/dx of sum_i w_i F_i (x - theta_i)^2 vanishes there.
  terms = [
    a * flat(f) * (flat(got) - flat(t))
    for a, f, t in zip(w, fishers, TREES[:2], strict=True)
  ]
  np.testing.assert_allclose(sum(terms), 0, atol=1e-4)


def test_fisher_average_normalises_and_has_a_floor():
  zero, ones = (
    jax.tree.map(lambda x, v=v: np.full_like(x, v), TREES[0]) for v in (0, 1)
  )
  assert_close(
    fisher.fisher_average(TREES[:2], [zero, zero]), weight.average(TREES[:2])
  )
  many = jax.tree.map(lambda x: 100 * x, ones)
  got = fisher.fisher_average(TREES[:2], [ones, many], normalise=True)
  assert_close(got, weight.average(TREES[:2]), rtol=1e-5)
  got = fisher.fisher_average(TREES[:2], [ones, many])
  assert_close(got, weight.average(TREES[:2], [1, 100]), rtol=1e-5)


# Refusals.

MERGES = {
  "average": lambda a, b: weight.average([a, b]),
  "interpolate": lambda a, b: weight.interpolate(a, b, 0.5),
  "slerp": lambda a, b: weight.slerp(a, b, 0.5),
  "greedy soup": lambda a, b: weight.greedy_soup([a, b], lambda p: 0.0),
  "task arithmetic": lambda a, b: tv.task_arithmetic(a, [b]),
  "ties": lambda a, b: tv.ties(a, [b]),
  "dare": partial(tv.dare, drop=0.5, key=KEY),
  "fisher": lambda a, b: fisher.fisher_average([a, b], [a, a]),
  "fishers": lambda a, b: fisher.fisher_average([a, a], [a, b]),
}
UNLIKE = {
  "no 'w' there": ({"v": np.ones(2)}, "ingredient . has '.', ingredient . has not"),
  "one more": ({"w": np.ones(2), "x": np.ones(2)}, "1 has 'x', ingredient 0 has not"),
  "shape": ({"w": np.ones(3)}, r"'w' is float32\[2\] in ingredient 0, float32\[3\]"),
  "dtype": ({"w": np.ones(2, np.float16)}, "float16"),
  "NaN": ({"w": np.array([1, np.nan])}, "'w' of ingredient 1 .* not finite"),
  "infinity": ({"w": np.array([1, np.inf])}, "'w' of ingredient 1 .* not finite"),
}


@pytest.mark.parametrize("other", UNLIKE)
@pytest.mark.parametrize("merge", MERGES)
def test_what_is_unlike_or_not_finite_is_refused(merge, other):
  b, message = UNLIKE[other]
  b = {k: np.float32(x) if x.dtype == np.float64 else x for k, x in b.items()}
  with pytest.raises(ValueError, match=message):
    MERGES[merge]({"w": np.ones(2, np.float32)}, b)


def test_other_bad_input_is_refused():
  a = {"w": np.ones(2, np.float32)}
  one, whole = {"w": np.ones(1, np.float32)}, {"w": np.ones(2, np.int32)}
  for call, message in [
    (lambda: weight.average([]), "empty"),
    (lambda: weight.average([whole]), r"int32\[2\]: only floating-point"),
    (lambda: weight.average([a, a], [1.0]), "2 numbers"),
    (lambda: weight.average([a, a], [1.0, -1.0]), "sum not zero"),
    (lambda: tv.ties(a, [a], keep=0.0), "keep=0.0"),
    (lambda: tv.task_arithmetic(a, [a, a], [0.5]), r"one for each of 2, got \[0.5\]"),
    (lambda: tv.task_arithmetic(a, [a], {"w": [1.0, 2.0]}), "one for each of 1"),
    (lambda: tv.dare(a, a, drop=1.0, key=KEY), "drop=1.0"),
    (lambda: fisher.fisher_average([a, a], [a]), "2 trees, 1 Fishers"),
    (lambda: fisher.fisher_average([a], [one]), r"\(2,\), its Fisher \(1,\)"),
    (lambda: fisher.fisher_average([a], [a], floor=0.0), "floor=0.0"),
    (lambda: fisher.diagonal_fisher(log_prob, a, {}), "0 examples"),
  ]:
    with pytest.raises(ValueError, match=message):
      call()
