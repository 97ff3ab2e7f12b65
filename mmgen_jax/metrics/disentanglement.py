"""Do single latents stand for single factors? MIG, DCI and SAP of codes and factors.

Codes [n z] are posterior means of random examples, factors [n k] integers from 0. Scores
that choose their own examples are in `metrics.shared_factor`. NumPy on the host, nothing
else. Sizes named below are those of Locatello et al., "Challenging Common Assumptions in
the Unsupervised Learning of Disentangled Representations", 2019,
https://arxiv.org/abs/1811.12359. Scores of one name differ between public
implementations by orders of magnitude, so each says what it is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mmgen_jax.metrics.forest import Fit, random_forest

Codes = Float[np.ndarray, "n z"]
Factors = Int[np.ndarray, "n k"]


def _checked(codes, factors) -> tuple[np.ndarray, np.ndarray]:
  codes, factors = np.asarray(codes, np.float64), np.asarray(factors)
  if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
    raise ValueError(
      f"codes must be [n z] and factors [n k], got {codes.shape} and {factors.shape}"
    )
  if factors.shape[1] < 2 or codes.shape[1] < 2:
    raise ValueError("disentanglement takes at least two factors and two latents")
  constant = np.flatnonzero((factors == factors[0]).all(0))
  if len(constant):
    raise ValueError(f"every factor must vary; those of columns {constant} do not")
  return codes, factors


def entropy(values: Int[np.ndarray, " n"]) -> float:
  """Of the empirical distribution of integers, in nats."""
  p = np.unique(values, return_counts=True)[1] / len(values)
  return float(-(p * np.log(p)).sum())


def _in_bins(values: np.ndarray, bins: int) -> np.ndarray:
  """Integers: which of `bins` equal intervals from the least to the largest value."""
  edges = np.histogram_bin_edges(values, bins)
  return np.digitize(values, edges[1:-1])


def mutual_information(
  codes: Codes, factors: Factors, *, bins: int = 20
) -> Float[np.ndarray, "z k"]:
  """I(z_j; v_k) in nats, codes cut into `bins` intervals of equal width."""
  codes, factors = _checked(codes, factors)
  cut = [_in_bins(column, bins) for column in codes.T]
  values = [np.unique(column, return_inverse=True)[1] for column in factors.T]
  both = lambda a, b: entropy(a * (b.max() + 1) + b)
  return np.array([[entropy(a) + entropy(b) - both(a, b) for b in values] for a in cut])


def _gap(scores: Float[np.ndarray, "z k"]) -> Float[np.ndarray, " k"]:
  """The best latent's score minus the second best's, by factor."""
  second, first = np.sort(scores, axis=0)[-2:]
  return first - second


def mig(codes: Codes, factors: Factors, *, bins: int = 20) -> float:
  """Mutual information gap: mean over k of (I(z_1; v_k) - I(z_2; v_k)) / H(v_k).

  Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", 2018,
  eq. 6, https://arxiv.org/abs/1802.04942, on posterior means in 20 bins of equal width
  as in Locatello et al. (Chen et al. integrate over q(z | x), which gives other values).
  10,000 examples.
  """
  information = mutual_information(codes, factors, bins=bins)
  h = [entropy(column) for column in np.asarray(factors).T]
  return float(np.mean(_gap(information) / h))


class Dci(NamedTuple):
  """Each from 0 to 1.

  Attributes:
    disentanglement: does a latent tell of one factor only?
    completeness: is a factor told by one latent only?
    informativeness: accuracy of the predicted factors, mean over factors.
    importance: which they follow from.
  """

  disentanglement: float
  completeness: float
  informativeness: float
  importance: Float[np.ndarray, "z k"]


def _concentration(p: Float[np.ndarray, "a b"]) -> Float[np.ndarray, " a"]:
  """1 - entropy of each row in base b; 0 for a row of nothing."""
  total = p.sum(1, keepdims=True)
  p = np.where(total > 0, p / np.maximum(total, 1e-12), 1 / p.shape[1])
  return 1 + (p * np.log(np.where(p > 0, p, 1.0))).sum(1) / np.log(p.shape[1])


def dci(
  codes: Codes,
  factors: Factors,
  test_codes: Codes,
  test_factors: Factors,
  *,
  fit: Callable[..., Fit] = random_forest,
) -> Dci:
  """Disentanglement, completeness, informativeness.

  Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled
  Representations", 2018, section 2, https://openreview.net/forum?id=By-7dz-AZ, with the
  paper's second choice of predictor, a random forest (Locatello et al. boost trees,
  which gives other importances). 10,000 and 5,000 examples.

  Args:
    codes: to learn from.
    factors: of these.
    test_codes: to be predicted.
    test_factors: of these.
    fit: (codes, classes, test codes) -> Fit; say which where it is not the default.
  """
  codes, factors = _checked(codes, factors)
  test_codes, test_factors = _checked(test_codes, test_factors)
  columns = zip(factors.T, test_factors.T, strict=True)
  fits = [(fit(codes, column, test_codes), truth) for column, truth in columns]
  importance = np.stack([f.importance for f, _ in fits], 1)
  by_latent = importance.sum(1) / max(importance.sum(), 1e-12)
  return Dci(
    float(by_latent @ _concentration(importance)),
    float(_concentration(importance.T).mean()),
    float(np.mean([(f.predicted == truth).mean() for f, truth in fits])),
    importance,
  )


def _correlation_scores(codes, values) -> np.ndarray:
  """Squared correlation of each latent with one factor; 0 for a constant latent."""
  codes, values = codes - codes.mean(0), values - values.mean()
  product = (codes**2).sum(0) * (values**2).sum()
  return (codes * values[:, None]).sum(0) ** 2 / np.maximum(product, 1e-12)


def _threshold_scores(codes, values, test_codes, test_values, bins=20) -> np.ndarray:
  """Balanced accuracy of each latent alone, through thresholds on it."""
  classes, values = np.unique(values, return_inverse=True)
  tested, scores = np.unique(test_values), []
  for column, test in zip(codes.T, test_codes.T, strict=True):
    edges = np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1])
    table = np.zeros((bins, len(classes)))
    np.add.at(table, (np.searchsorted(edges, column), values), 1)
    best = classes[(table / np.maximum(table.sum(0), 1)).argmax(1)]
    right = best[np.searchsorted(edges, test)] == test_values
    scores.append(np.mean([right[test_values == c].mean() for c in tested]))
  return np.array(scores)


def sap(
  codes: Codes,
  factors: Factors,
  test_codes: Codes,
  test_factors: Factors,
  *,
  categorical: Sequence[int] = (),
) -> float:
  """Separated attribute predictability: the mean gap between the two best latents.

  Kumar, Sattigeri and Balakrishnan, "Variational Inference of Disentangled Latent
  Concepts from Unlabeled Observations", 2018, section 3,
  https://arxiv.org/abs/1711.00848: squared correlation for factors with an order, and
  for the others the balanced accuracy of thresholds on one latent (here at quantiles,
  20 intervals; Locatello et al. fit a linear SVM to all). 10,000 and 5,000 examples.

  Args:
    codes: to learn from.
    factors: of these.
    test_codes: for the accuracy of categorical factors.
    test_factors: of these.
    categorical: which factors have no order, e.g. dSprites' shape.
  """
  codes, factors = _checked(codes, factors)
  test_codes, test_factors = _checked(test_codes, test_factors)
  scores = [
    _threshold_scores(codes, factors[:, k], test_codes, test_factors[:, k])
    if k in categorical
    else _correlation_scores(codes, factors[:, k])
    for k in range(factors.shape[1])
  ]
  return float(_gap(np.stack(scores, 1)).mean())
