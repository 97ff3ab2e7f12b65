import numpy as np
import pytest
from scipy import special
from scipy.optimize import minimize

from mmgen_jax.metrics import disentanglement as dis
from mmgen_jax.metrics import shared_factor
from mmgen_jax.metrics.forest import random_forest

SIZES = (3, 4, 5)
FEW = {"votes": 400, "test_votes": 300}


def factors(n, seed=0):
  rng = np.random.default_rng(seed)
  return np.stack([rng.integers(0, size, n) for size in SIZES], 1)


def perfect(v):
  """Permuted, scaled and shifted, and a latent that says nothing."""
  noise = np.random.default_rng(int(v.sum())).normal(size=(len(v), 1))
  x = (v - 1.0) / np.array(SIZES) * [9.0, -6.0, 3.0]
  return np.concatenate([x[:, [2, 0, 1]], noise], 1)


Q = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


def rotated(v):
  unit = (v - (np.array(SIZES) - 1) / 2) / np.sqrt((np.array(SIZES) ** 2 - 1) / 12)
  return unit @ Q


def random(v):
  return np.random.default_rng(int(v.sum())).normal(size=(len(v), 4))


def twice(v):
  return np.concatenate([v, v], 1).astype(float)


def scores(represent):
  v, test = factors(3000), factors(1500, 1)
  codes, test_codes = represent(v), represent(test)
  d = dis.dci(codes, v, test_codes, test)
  return {
    "mig": dis.mig(codes, v),
    "sap": dis.sap(codes, v, test_codes, test),
    "sap of classes": dis.sap(codes, v, test_codes, test, categorical=(0, 1, 2)),
    "disentanglement": d.disentanglement,
    "completeness": d.completeness,
    "informativeness": d.informativeness,
    "factor": shared_factor.factor_vae_score(represent, SIZES, **FEW),
    "beta": shared_factor.beta_vae_score(represent, SIZES, points=400, test_points=300),
  }


def test_a_perfect_representation_scores_one():
  got = scores(perfect)
  # Two thirds: the best latent tells all of 3, 4, 5 values, the next one by chance.
  chance = np.mean([1 - 1 / s for s in SIZES])
  assert got.pop("sap of classes") == pytest.approx(chance, abs=0.06)
  for name, value in got.items():
    assert value > 0.97, (name, value)


def test_a_rotation_keeps_the_information_and_loses_the_axes():
  got = scores(rotated)
  assert got["informativeness"] > 0.9
  for name in ("mig", "sap", "disentanglement", "completeness"):
    assert got[name] < 0.6, (name, got[name])
  assert got["factor"] < 0.95


def test_random_codes_score_zero_or_chance():
  got = scores(random)
  for name in ("mig", "sap", "sap of classes", "disentanglement", "completeness"):
    assert got[name] < 0.07, (name, got[name])
  assert got["informativeness"] == pytest.approx(
    np.mean([1 / s for s in SIZES]), abs=0.06
  )
  for name in ("factor", "beta"):
    assert got[name] == pytest.approx(1 / 3, abs=0.1), name


def test_every_factor_told_twice_is_disentangled_and_not_complete():
  v, test = factors(2000), factors(500, 1)
  got = dis.dci(twice(v), v, twice(test), test)
  assert dis.mig(twice(v), v) == pytest.approx(0.0, abs=1e-9)
  assert dis.sap(twice(v), v, twice(test), test) == pytest.approx(0.0, abs=1e-9)
  assert got.disentanglement > 0.97 and got.informativeness > 0.99


def test_concentration_is_one_minus_the_entropy_in_base_k():
  p = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
  np.testing.assert_allclose(dis._concentration(p), [1.0, 0.5, 0.0, 0.0], atol=1e-12)


def test_mutual_information_is_that_of_the_joint_table():
  v = factors(4000)
  codes = np.stack([v[:, 0] // 2 + 0.0, (v[:, 1] + v[:, 2]) % 4], 1)
  got = dis.mutual_information(codes, v)
  for j, k in np.ndindex(2, 3):
    joint = np.zeros((4, 5))
    np.add.at(joint, (codes[:, j].astype(int), v[:, k]), 1 / len(v))
    outer = joint.sum(1)[:, None] * joint.sum(0)
    on = joint > 0
    want = (joint[on] * np.log(joint[on] / outer[on])).sum()
    np.testing.assert_allclose(got[j, k], want, atol=1e-12)


def test_the_gap_of_the_mig_by_hand():
  # One factor in latent 0 whole, in latent 1 its lowest bit: (2 - 1) bits of 2.
  a, b = np.divmod(np.arange(16), 4)
  codes = np.stack([a, a % 2, b, b // 4], 1).astype(float)
  got = dis.mig(codes, np.stack([a, b], 1))
  assert got == pytest.approx(np.mean([0.5, 1.0]))


def test_a_variance_scaled_latent_is_as_good():
  # FactorVAE's variances are relative: a latent of a tenth of the scale is still voted.
  # Noise, so that of a shared factor too something varies: a hundredth of the whole.
  noise = np.random.default_rng(0)
  represent = lambda v: (v + 0.1 * noise.normal(size=v.shape)) * [100.0, 1.0, 1.0]
  assert shared_factor.factor_vae_score(represent, SIZES, **FEW) > 0.99
  small = lambda v: 0.1 * v  # deviations of .08 to .14, variances under .02
  assert shared_factor.factor_vae_score(small, SIZES, **FEW) == 1.0
  dead = lambda v: np.zeros((len(v), 3))
  assert shared_factor.factor_vae_score(dead, SIZES, **FEW) == 0.0


def test_logistic_regression_is_scipys_minimum():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)

  def loss(w):
    w = w.reshape(3, 3)
    logits = x @ w[:2] + w[2]
    log_z = np.log(np.exp(logits).sum(1))
    return (log_z - logits[np.arange(60), y]).sum() + (w[:2] ** 2).sum() / 2

  best = minimize(loss, np.zeros(9), tol=1e-10)
  got = shared_factor.logistic_regression(x, y, 3)
  assert loss(got.ravel()) <= best.fun + 1e-5
  np.testing.assert_allclose(got[:2], best.x.reshape(3, 3)[:2], atol=1e-3)
  wide = rng.normal(size=(60, 400))  # in blocks of 27 rows
  got = shared_factor.logistic_regression(wide, y, 3)
  p = special.softmax(wide @ got[:-1] + got[-1], axis=1)
  slope = wide.T @ (p - np.eye(3)[y]) + got[:-1]
  assert abs(slope).max() < 1e-6


def test_a_stump_is_the_best_split_by_brute_force():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 3))
  y = (x[:, 1] + 0.3 * rng.normal(size=200) > 0.2).astype(int)

  def gini(part):
    p = np.bincount(part, minlength=2) / max(len(part), 1)
    return len(part) * (1 - (p**2).sum())

  best = min(
    (gini(y[x[:, j] <= t]) + gini(y[x[:, j] > t]), j) for j in range(3) for t in x[:, j]
  )
  fit = random_forest(x, y, x, trees=1, depth=1)
  assert fit.importance.argmax() == best[1] == 1
  assert (fit.predicted == y).mean() > 0.85


def test_a_forest_learns_what_no_line_can():
  rng = np.random.default_rng(0)
  x, test = rng.uniform(-1, 1, (2000, 4)), rng.uniform(-1, 1, (500, 4))
  label = lambda x: ((x[:, 0] > 0) ^ (x[:, 2] > 0)).astype(int)
  fit = random_forest(x, label(x), test)
  assert (fit.predicted == label(test)).mean() > 0.93
  assert fit.importance[[0, 2]].sum() > 0.85
  constant = random_forest(x, np.zeros(2000, int), test)
  assert (constant.predicted == 0).all() and (constant.importance == 0).all()


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"\(10, 3\)"):
    dis.mig(np.zeros((10, 3)), np.zeros((9, 2), int))
  with pytest.raises(ValueError, match="at least two"):
    dis.mig(np.zeros((10, 1)), np.zeros((10, 2), int))
  with pytest.raises(ValueError, match=r"columns \[1\]"):
    dis.mig(np.zeros((10, 2)), np.stack([np.arange(10), np.ones(10, int)], 1))
