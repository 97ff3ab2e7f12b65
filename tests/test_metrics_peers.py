"""Metrics beside the packages that people use: the same numbers, where installed."""

import numpy as np
import pytest

from mmgen_jax.metrics import frechet
from mmgen_jax.metrics.manifold import manifold
from mmgen_jax.metrics.modes import inception_score

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(300, 16)).astype(np.float32)
FAKE = (0.3 + 1.2 * RNG.normal(size=(260, 16))).astype(np.float32)


def fidelity(module: str):
  pytest.importorskip("torch", reason="PyTorch is not installed")
  return pytest.importorskip(f"torch_fidelity.{module}")


def test_precision_recall_density_coverage_are_prdcs():
  prdc = pytest.importorskip("prdc", reason="prdc is not installed")
  theirs = prdc.compute_prdc(REAL, FAKE, nearest_k=5)
  got = manifold(REAL, FAKE, k=5, k_density=5)._asdict()
  assert got == pytest.approx({name: float(v) for name, v in theirs.items()})


def test_frechet_is_torch_fidelitys():
  fid = fidelity("metric_fid")
  import torch

  sets = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (REAL, FAKE)]
  theirs = fid.fid_statistics_to_metric(*sets, verbose=False)
  got = frechet.frechet_distance(frechet.moments(REAL), frechet.moments(FAKE))
  assert got == pytest.approx(next(iter(theirs.values())), rel=1e-6)


def test_mmd_is_torch_fidelitys():
  kid = fidelity("metric_kid")
  of = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None)
  theirs = kid.kernel_mmd(
    REAL[:250].astype(np.float64),
    FAKE[:250].astype(np.float64),
    kid_kernel_poly_coef0=1,
    **of,
  )
  got = frechet.kid(REAL, FAKE, block_size=250)
  assert got.value == pytest.approx(float(theirs), rel=1e-6)


def test_inception_score_is_torch_fidelitys():
  isc = fidelity("metric_isc")
  import torch

  logits = 3 * REAL
  theirs = isc.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
  p = np.exp(logits.astype(np.float64))
  mean, deviation = inception_score(p / p.sum(1, keepdims=True), splits=10)
  assert [mean, deviation] == pytest.approx(list(theirs.values()), rel=1e-6)
