"""Calibration, robustness and shares against closed forms and second derivations."""

import numpy as np
import pytest
from scipy import optimize, special

from mmgen_jax.metrics import calibration, robustness

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4000, 4)) * 1.5
# Labels drawn from the probabilities themselves: calibrated by construction.
P = special.softmax(LOGITS, axis=1)
LABELS = (P.cumsum(1) < RNG.random((4000, 1))).sum(1)


def test_scores_of_single_examples():
  logits, labels = np.log([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]]), np.array([0, 2])
  np.testing.assert_allclose(calibration.nll(logits, labels), -np.log([0.7, 0.25]))
  expected = [0.3**2 + 0.2**2 + 0.1**2, 0.25**2 + 0.5**2 + 0.75**2]
  np.testing.assert_allclose(calibration.brier(logits, labels), expected)


def test_calibration_error_by_hand():
  confidence = np.array([0.6, 0.7, 0.8, 0.9])
  logits = np.log(np.stack([confidence, 1 - confidence], 1))
  labels = np.array([0, 1, 0, 0])  # right, wrong, right, right
  expected = (2 * abs(0.65 - 0.5) + 2 * abs(0.85 - 1.0)) / 4
  assert calibration.calibration_error(logits, labels, 2) == pytest.approx(expected)
  assert [k for _, _, k in calibration.reliability(logits, labels, 3)] == [2, 1, 1]


def test_a_calibrated_classifier_has_little_error_and_temperature_one():
  # Of 4,000 examples even a calibrated one has .022 (sd .004 over draws of labels): the
  # mean over 15 bins of |accuracy - confidence|, each of about 267 examples.
  assert calibration.calibration_error(LOGITS, LABELS) < 0.03
  assert calibration.fit_temperature(LOGITS, LABELS) == pytest.approx(1.0, abs=0.05)
  assert calibration.calibration_error(3 * LOGITS, LABELS) > 0.1


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_is_the_minimum_that_an_optimiser_finds(scale):
  of = lambda log_t: calibration.nll(scale * LOGITS / np.exp(log_t), LABELS).mean()
  found = optimize.minimize_scalar(of, bounds=(-3, 3), method="bounded").x
  mine = calibration.fit_temperature(scale * LOGITS, LABELS)
  assert np.log(mine) == pytest.approx(found, abs=1e-4)


def test_temperature_of_one_that_is_never_wrong_is_finite():
  logits = np.eye(3)[np.array([0, 1, 2])] * 5.0
  assert np.isfinite(calibration.fit_temperature(logits, np.array([0, 1, 2])))


def test_relative_robustness_is_the_area():
  strengths = np.linspace(0, 1, 6)
  curve = 1.0 - 0.5 * strengths
  assert robustness.relative_robustness(curve) == pytest.approx(0.75)
  assert robustness.relative_robustness(np.full(6, 0.3)) == pytest.approx(0.3)


def test_excess_is_zero_for_the_baselines_own_fall():
  baseline = np.array([0.8, 0.6, 0.3])
  assert robustness.excess_robustness(baseline - 0.1, baseline) == pytest.approx(0.0)
  better = np.array([0.7, 0.6, 0.4])
  assert robustness.excess_robustness(better, baseline) == pytest.approx(0.3 / 3)


def test_effective_robustness_is_what_the_line_of_baselines_leaves():
  standard = np.array([0.6, 0.7, 0.9])
  shifted = special.expit(0.8 * special.logit(standard) - 0.5)
  baselines = np.stack([standard, shifted], 1)
  on_the_line = special.expit(0.8 * special.logit(0.8) - 0.5)
  of = lambda shifted: robustness.effective_robustness(0.8, shifted, baselines)
  assert of(on_the_line) == pytest.approx(0.0, abs=1e-9)
  assert of(on_the_line + 0.07) == pytest.approx(0.07)
  with pytest.raises(ValueError, match="unlike"):
    robustness.effective_robustness(0.8, 0.7, baselines[[0, 0]])


def test_utilisation():
  assert robustness.utilisation(0.8, 0.6) == pytest.approx(0.25)
