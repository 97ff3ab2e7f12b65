"""Attribution: the axioms of Shapley, exact shares, completeness, conflict."""

from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import attribution
from mmgen_jax.fusion.feature import make_fusion
from mmgen_jax.fusion.model import precision_shares, product_of_experts

RNG = np.random.default_rng(0)
NAMES = ("a", "b", "c")
SUBSETS = [c for k in range(4) for c in combinations(NAMES, k)]


def game(n=5):
  return {s: RNG.normal(size=n) for s in SUBSETS}


def by_orders(v):
  """A second derivation: the mean gain over all orders of arrival."""
  out = {name: 0.0 for name in NAMES}
  for order in permutations(NAMES):
    for i, name in enumerate(order):
      before, after = sorted(order[:i]), sorted(order[: i + 1])
      out[name] = out[name] + (v[tuple(after)] - v[tuple(before)]) / 6
  return out


def test_shapley_is_the_mean_over_orders_and_efficient():
  v = game()
  mine, other = attribution.shapley(v), by_orders(v)
  for name in NAMES:
    np.testing.assert_allclose(mine[name], other[name])
  total = sum(mine.values())
  np.testing.assert_allclose(total, v[NAMES] - v[()])


def test_shapley_is_symmetric_linear_and_gives_a_dummy_nothing():
  v, w = game(), game()
  swap = {"a": "b", "b": "a", "c": "c"}
  symmetric = {s: v[s] + v[tuple(sorted(swap[n] for n in s))] for s in SUBSETS}
  mine = attribution.shapley(symmetric)
  np.testing.assert_allclose(mine["a"], mine["b"])
  dummy = {s: v[tuple(n for n in s if n != "c")] + 2.0 * ("c" in s) for s in SUBSETS}
  np.testing.assert_allclose(attribution.shapley(dummy)["c"], 2.0)
  both = attribution.shapley({s: v[s] + 3 * w[s] for s in SUBSETS})
  a, b = attribution.shapley(v), attribution.shapley(w)
  for name in NAMES:
    np.testing.assert_allclose(both[name], a[name] + 3 * b[name])
  with pytest.raises(ValueError, match="'a', 'b'"):
    attribution.shapley({s: v[s] for s in SUBSETS if s != ("a", "b")})


def test_interaction_is_what_two_are_worth_beyond_each():
  both_needed = {s: float({"a", "b"} <= set(s)) for s in SUBSETS}
  redundant = {s: float(bool({"a", "b"} & set(s))) for s in SUBSETS}
  additive = {s: float(len(s)) for s in SUBSETS}
  of = lambda v: float(attribution.interaction(v, "a", "b"))
  assert (of(both_needed), of(redundant), of(additive)) == (1.0, -1.0, 0.0)


MEANS, LOGVARS = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
MASK = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]], bool)


def test_precision_shares_add_up_and_are_what_moves_the_mean():
  shares = attribution.precision_shares_by_latent(LOGVARS, MASK, 0.5)
  np.testing.assert_allclose(shares.sum(0), 1.0, rtol=1e-6)
  assert not shares[:3][~MASK].any() and (shares[3][3] == 1.0).all()
  # The derivative of the product's mean by an expert's mean.
  of = lambda m: product_of_experts(m, LOGVARS, MASK, prior_precision=0.5)[0]
  moved = of(MEANS + np.eye(3)[1][:, None, None]) - of(jnp.asarray(MEANS))
  np.testing.assert_allclose(moved, shares[1], atol=1e-6)
  mean_share = precision_shares(
    jnp.asarray(LOGVARS), jnp.asarray(MASK), prior_precision=0.5
  )
  np.testing.assert_allclose(shares[:3].mean(-1), mean_share, rtol=1e-5)
  silent = np.where(np.arange(3)[:, None, None] == 0, np.inf, LOGVARS)
  assert not attribution.precision_shares_by_latent(silent, MASK)[0].any()


def test_conflict_is_the_divergence_of_the_joint_from_each():
  out = np.asarray(attribution.conflict(MEANS, LOGVARS, MASK))
  assert not out[~MASK].any()
  t = np.exp(-LOGVARS[:, 0].astype(np.float64))
  var = 1 / t.sum(0)
  mean = var * (t * MEANS[:, 0]).sum(0)
  for m in range(3):
    kl = 0.5 * (t[m] * (var + (mean - MEANS[m, 0]) ** 2) - 1 - np.log(t[m] * var))
    assert out[m, 0] == pytest.approx(kl.sum(), rel=1e-4)
  alone = attribution.conflict(MEANS, LOGVARS, MASK & (np.arange(3) == 0)[:, None])
  np.testing.assert_allclose(alone, 0.0, atol=1e-5)
  dirty = np.where(MASK[..., None], MEANS, np.nan)
  np.testing.assert_array_equal(attribution.conflict(dirty, LOGVARS, MASK), out)
  grad = jax.grad(lambda m: attribution.conflict(m, LOGVARS, MASK).sum())(dirty)
  assert np.isfinite(grad).all()
  far = MEANS + 5.0 * np.eye(3)[0][:, None, None]  # the first says something else
  assert attribution.conflict(far, LOGVARS, MASK)[0, 0] > out[0, 0]


def test_integrated_gradients_are_complete_and_exact_for_a_product():
  x = {"a": jnp.array([[2.0, 3.0], [1.0, -1.0]]), "b": jnp.array([[1.0], [4.0]])}
  zero = jax.tree.map(jnp.zeros_like, x)
  product = lambda x: x["a"][:, 0] * x["a"][:, 1] + 2 * x["b"][:, 0]
  out = attribution.integrated_gradients(product, x, zero, points=2)
  np.testing.assert_allclose(out["a"], [[3.0, 3.0], [-0.5, -0.5]], rtol=1e-6)
  np.testing.assert_allclose(out["b"], [[2.0], [8.0]], rtol=1e-6)
  w = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
  net = lambda x: jnp.tanh(x @ w).sum(-1) ** 2 + jax.nn.silu(3 * x).sum(-1)
  x, start = jnp.asarray(RNG.normal(size=(2, 4, 6)), jnp.float32)
  out = attribution.integrated_gradients(net, x, start)
  np.testing.assert_allclose(out.sum(-1), net(x) - net(start), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize(
  ("name", "places"),
  [
    ("gated", 1),
    ("attention", 1),
    ("latent_queries", 1),  # its latents read all modalities once, then talk
    ("bottleneck", 0),  # each modality looks at itself and the bottleneck
    ("cross_attention", None),  # one of each modality
    ("mean", 0),
  ],
)
def test_what_a_layer_looks_at_is_of_modalities_only(name, places, m):
  mask = np.ones((m, 4), bool)
  mask[0, 1] = mask[1, 2] = False
  x = jnp.asarray(RNG.normal(size=(m, 4, 1, 8)), jnp.float32)
  layer = make_fusion(name)
  params = layer.init(jax.random.key(0), x, mask)
  params = {"params": params.get("params", {})}
  run = lambda: layer.apply(params, x, mask, mutable=["intermediates"])
  looks = attribution.fusion_weights(run, m)  # type: ignore[arg-type]
  assert len(looks) == (m if places is None else places), list(looks)
  for where, of in looks.items():
    others = mask.copy()
    if name == "cross_attention":
      others[int(where.split("_")[1])] = False
    assert of.shape == (m, 4) and not np.asarray(of)[~others].any()
    np.testing.assert_allclose(of.sum(0), others.any(0), atol=1e-5)
