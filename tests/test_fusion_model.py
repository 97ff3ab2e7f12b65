import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.fusion import model as fuse

RNG = np.random.default_rng(0)
MEANS, LOGVARS = (RNG.normal(size=(3, 4, 2)).astype(np.float32) for _ in range(2))
MASK = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], bool)


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def test_product_is_the_normalised_product_of_densities():
  x = np.linspace(-15, 15, 60_001)
  mean, logvar = fuse.product_of_experts(MEANS, LOGVARS, MASK)
  for b in range(4):
    logp = -0.5 * x**2
    for m in range(3):
      if MASK[m, b]:
        logp = logp - 0.5 * (x - MEANS[m, b, 0]) ** 2 / np.exp(LOGVARS[m, b, 0])
    p = np.exp(logp - logp.max())
    p /= p.sum()
    centre = (p * x).sum()
    assert mean[b, 0] == pytest.approx(centre, abs=1e-4)
    assert np.exp(logvar[b, 0]) == pytest.approx(
      (p * (x - centre) ** 2).sum(), rel=1e-3
    )


def test_a_product_of_one_expert_is_that_expert():
  one = np.array([[True] * 4, [False] * 4, [False] * 4])
  mean, logvar = fuse.product_of_experts(MEANS, LOGVARS, one, prior_precision=0.0)
  np.testing.assert_allclose(mean, MEANS[0], rtol=1e-5)
  np.testing.assert_allclose(logvar, LOGVARS[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior_precision", [0.0, 1.0])
def test_no_expert_is_the_prior(prior_precision):
  mean, logvar = fuse.product_of_experts(
    MEANS, LOGVARS, np.zeros((3, 4), bool), prior_precision=prior_precision
  )
  assert not np.any(mean) and not np.any(logvar)


def test_masked_is_absent_whatever_it_holds_and_in_gradients_too():
  poison = np.where(MASK[..., None], 0.0, np.nan).astype(np.float32)

  def f(means, logvars):
    q = fuse.product_of_experts(means, logvars, MASK)
    return sum(jnp.sin(x).sum() for x in q), q

  grad = jax.grad(f, argnums=(0, 1), has_aux=True)
  (clean, q), (dirty, q2) = grad(MEANS, LOGVARS), grad(MEANS + poison, LOGVARS + poison)
  jax.tree.map(np.testing.assert_array_equal, q, q2)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  assert not np.any(clean[0][~MASK])
  sub = fuse.product_of_experts(MEANS[:2, :1], LOGVARS[:2, :1], MASK[:2, :1])
  np.testing.assert_allclose(sub[0], q[0][:1], rtol=1e-6)


def test_subsets_are_uniform_over_those_that_are_present():
  present = np.zeros((3, 20_000), bool)
  present[[0, 2]] = True
  got = np.asarray(fuse.random_subset(keys(20_000), present))
  assert not got[1].any() and got.any(0).all()
  share = [(got[0] & ~got[2]).mean(), (~got[0] & got[2]).mean(), got.all(0).mean()]
  assert share[2] == 0.0
  both = (got[0] & got[2]).mean()
  np.testing.assert_allclose([share[0], share[1], both], 1 / 3, atol=0.02)


def test_nothing_present_gives_the_empty_subset():
  assert not fuse.random_subset(keys(5), np.zeros((3, 5), bool)).any()


def test_those_that_are_there_stand_in_for_those_that_are_not():
  present = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool).T
  part = np.zeros_like(present)
  part[3] = True
  got = np.asarray(fuse.stand_ins(part, present, "iiii")).T
  want = [[1, 1, 1, 1], [1.5, 1.5, 0, 1], [0, 3, 0, 1], [0, 0, 0, 0]]
  np.testing.assert_allclose(got, want)
  nothing = np.zeros((4, 1), bool)
  assert not np.any(fuse.stand_ins(nothing, nothing, "iiii"))
  # Of two kinds, "i" for "i" only.
  of_two = np.asarray(fuse.stand_ins(part, present, "iiai")).T
  np.testing.assert_allclose(of_two, [*want[:1], [1, 1, 0, 1], [0, 2, 0, 1], want[3]])


def test_a_part_counts_by_itself_only_where_none_of_its_kind_is_missing():
  present = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool).T
  alike = np.asarray(fuse.stand_ins(present, present, "iiii"))
  np.testing.assert_array_equal(alike, present & [True, False])
  np.testing.assert_array_equal(fuse.stand_ins(present, present, "iiai"), present)
  part, present = np.eye(4, dtype=bool)[:, :1], np.array([[1, 1, 0, 0]], bool).T
  got = np.asarray(fuse.stand_ins(part, present, "iaii"))[:, 0]
  np.testing.assert_array_equal(got, [0, 1, 0, 0])


def test_what_is_beside_a_part_counts_for_what_is_missing():
  present = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool).T
  part = np.zeros_like(present)
  part[3] = True
  np.testing.assert_allclose(fuse.beside(part, present), [1, 1.5, 3, 0])
  assert not np.any(fuse.beside(present[:, :1], present[:, :1]))


def test_over_patterns_that_leave_a_target_stand_ins_count_as_complete_data_do():
  m, weights = 4, []
  for pattern in itertools.product([False, True], repeat=m - 1):
    present = np.array([True, *pattern])[:, None]
    part = np.eye(m, dtype=bool)[:, :1]
    weights.append(np.asarray(fuse.stand_ins(part, present, "iiii"))[:, 0])
  # The first pattern leaves none beside the part; the others are as complete data.
  np.testing.assert_array_equal(weights[0], np.zeros(m))
  np.testing.assert_allclose(np.mean(weights[1:], axis=0), np.ones(m), rtol=1e-6)


def test_mixture_draws_products_of_the_subset_that_it_names():
  q, subset = fuse.mixture_of_products(keys(4), MEANS, LOGVARS, MASK)
  want = fuse.product_of_experts(MEANS, LOGVARS, subset)
  jax.tree.map(np.testing.assert_array_equal, q, want)
  assert not (np.asarray(subset) & ~MASK).any()


def test_precision_shares_are_right_for_two_equal_experts():
  shares = fuse.precision_shares(jnp.zeros((2, 1, 3)), jnp.ones((2, 1), bool))
  np.testing.assert_allclose(shares, 1 / 3, rtol=1e-6)


def test_a_power_prefers_small_subsets():
  present = jnp.ones((3, 6000), bool)
  sizes = fuse.random_subset(keys(6000), present, power=2.0).sum(0)
  share = np.bincount(np.asarray(sizes), minlength=4) / 6000
  weight = np.array([0, 3 / 1, 3 / 4, 1 / 9])  # 3 singles, 3 pairs, all
  np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)
