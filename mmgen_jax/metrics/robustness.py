"""Robustness: how accuracy falls with damage, and whether it falls less than expected."""

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, " s"]


def relative_robustness(accuracy: Curve) -> float:
  """The area under accuracy over levels of damage, none first, each step as wide.

  By the trapezoid rule, over levels as they are numbered, not over their strengths.
  Liang et al., "MultiBench", 2021, appendix D, https://arxiv.org/abs/2107.07502;
  there then scaled between the best and the worst of all methods, which would make one
  method's value depend on the others.
  """
  accuracy = np.asarray(accuracy, float)
  return float(((accuracy[1:] + accuracy[:-1]) / 2).mean())


def excess_robustness(accuracy: Curve, baseline: Curve) -> float:
  """Mean of a - (a'_0 moved to a_0): accuracy over what the baseline loses would leave.

  Liang et al., 2021: "effective robustness", with late fusion as the baseline; there
  the sum over strengths, likewise scaled afterwards.
  """
  accuracy, baseline = np.asarray(accuracy, float), np.asarray(baseline, float)
  return float((accuracy - (baseline + accuracy[0] - baseline[0])).mean())


def logit(p):
  """Log p / (1 - p), of p kept a little inside (0, 1)."""
  p = np.clip(np.asarray(p, float), 1e-4, 1 - 1e-4)
  return np.log(p) - np.log1p(-p)


def effective_robustness(
  standard: float, shifted: float, baselines: Float[np.ndarray, "k 2"]
) -> float:
  """Shifted - beta(standard): accuracy beyond what accuracy elsewhere predicts.

  beta is the line through the baselines' (standard, shifted) accuracies after `logit`
  on both axes, by least squares. Taori et al., "Measuring Robustness to Natural
  Distribution Shifts in Image Classification", 2020, section 3.1,
  https://arxiv.org/abs/2007.00644.

  Raises:
    ValueError: if the baselines' standard accuracies do not differ.
  """
  x, y = logit(np.asarray(baselines, float)).T
  if len(x) < 2 or np.ptp(x) < 1e-9:
    raise ValueError("effective robustness needs baselines of unlike standard accuracy")
  slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
  predicted = y.mean() + slope * (logit(standard) - x.mean())
  return float(shifted - 1.0 / (1.0 + np.exp(-predicted)))


def utilisation(everything: float, without: float) -> float:
  """(A(all) - A(all but m)) / A(all): how much of the accuracy modality m is needed for.

  The conditional utilisation rate of Wu et al., "Characterizing and Overcoming the
  Greedy Nature of Learning in Multi-modal Deep Neural Networks", 2022, eq. 2,
  https://arxiv.org/abs/2202.05306. One that is far below another's says that the network
  leans on the other.
  """
  return (everything - without) / everything if everything else float("nan")
