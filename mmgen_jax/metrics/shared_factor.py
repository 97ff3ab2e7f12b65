"""Which factor does a batch share? The FactorVAE and the beta-VAE score.

Both draw factors, fix one, and guess which it was from the codes alone; `represent` is
factors [n k] -> codes [n z]. By chance they are 1 / k. Default sizes are those of
Locatello et al., 2019, https://arxiv.org/abs/1811.12359.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

Represent = Callable[[np.ndarray], np.ndarray]


def _draw(rng, sizes: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
  """Factors, uniform and independent, [*shape k]."""
  return np.stack([rng.integers(0, size, shape) for size in sizes], -1)


def _fixed(rng, sizes, count: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
  """`count` factors' numbers, and batches [count batch k] that share that factor."""
  which = rng.integers(0, len(sizes), count)
  factors = _draw(rng, sizes, (count, batch))
  rows = np.arange(count)
  factors[rows, :, which] = factors[rows, 0, which][:, None]
  return which, factors


def _parts(count: int, batch: int):
  """Numbers that add up to `count`, of about 2^14 examples each."""
  step = max(1, 2**14 // batch)
  return [min(step, count - first) for first in range(0, count, step)]


def factor_vae_score(
  represent: Represent,
  sizes: Sequence[int],
  *,
  votes: int = 10_000,
  test_votes: int = 5_000,
  batch: int = 64,
  prune: float = 0.05,
  seed: int = 0,
) -> float:
  """Accuracy of telling which factor a batch shares by the latent that varies least.

  Kim and Mnih, "Disentangling by Factorising", 2018, section 4,
  https://arxiv.org/abs/1802.05983: variances relative to those over all data, a
  majority vote; latents of a deviation under `prune` take no part (Locatello et al.,
  2019, https://arxiv.org/abs/1811.12359), and without any the score is 0.

  Args:
    represent: factors [n k] -> codes [n z].
    sizes: number of values of each factor.
    votes: batches to learn the majority from.
    test_votes: batches to score.
    batch: examples in each.
    prune: least standard deviation over 10,000 random examples.
    seed: of what is drawn.
  """
  rng = np.random.default_rng(seed)
  spread = np.asarray(represent(_draw(rng, sizes, (10_000,)))).var(0, ddof=1)
  active = np.flatnonzero(np.sqrt(spread) >= prune)
  if not len(active):
    return 0.0

  def table(count: int) -> np.ndarray:
    out = np.zeros((len(active), len(sizes)))
    for part in _parts(count, batch):
      which, factors = _fixed(rng, sizes, part, batch)
      codes = np.asarray(represent(factors.reshape(-1, len(sizes))))
      local = codes.reshape(part, batch, -1).var(1, ddof=1)
      np.add.at(out, ((local[:, active] / spread[active]).argmin(1), which), 1)
    return out

  majority = table(votes).argmax(1)
  test = table(test_votes)
  return float(test[np.arange(len(active)), majority].sum() / test.sum())


def beta_vae_score(
  represent: Represent,
  sizes: Sequence[int],
  *,
  points: int = 10_000,
  test_points: int = 5_000,
  batch: int = 64,
  seed: int = 0,
) -> float:
  """Accuracy of a linear classifier of the factor that pairs share.

  From the mean over `batch` pairs of |difference of codes|: Higgins et al., "beta-VAE",
  2017, section 3, https://openreview.net/forum?id=Sy2fzU9gl.

  Args:
    represent: factors [n k] -> codes [n z].
    sizes: number of values of each factor.
    points: to train the classifier on.
    test_points: to score.
    batch: pairs in each.
    seed: of what is drawn.
  """
  rng = np.random.default_rng(seed)

  def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    features, labels = [], []
    for part in _parts(count, 2 * batch):
      which, rows = rng.integers(0, len(sizes), part), np.arange(part)
      pairs = _draw(rng, sizes, (2, part, batch))
      pairs[1, rows, :, which] = pairs[0, rows, :, which]  # another value in every pair
      a, b = (np.asarray(represent(f.reshape(-1, len(sizes)))) for f in pairs)
      features.append(np.abs(a - b).reshape(part, batch, -1).mean(1))
      labels.append(which)
    return np.concatenate(features), np.concatenate(labels)

  weights = logistic_regression(*draw(points), len(sizes))
  x, y = draw(test_points)
  return float(((x @ weights[:-1] + weights[-1]).argmax(1) == y).mean())


def logistic_regression(
  x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "e c"]:
  """Weights [d + 1, classes], the last row a bias: multinomial, by Newton's method.

  Minimises the sum of cross-entropies + |weights|^2 / 2 (the bias has next to none).
  """
  n, d = x.shape
  x = np.concatenate([x, np.ones((n, 1))], 1)
  target = np.eye(classes)[y]
  penalty = np.repeat(np.append(np.ones(d), 1e-6), classes)
  weights = np.zeros((d + 1, classes))

  def loss(w):
    logits = x @ w
    log_z = np.logaddexp.reduce(logits, axis=1)
    return (log_z - (logits * target).sum(1)).sum() + (
      penalty * w.ravel() ** 2
    ).sum() / 2

  for _ in range(50):
    logits = x @ weights
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    gradient = (x.T @ (p - target)).ravel() + penalty * weights.ravel()
    curve = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None]
    hessian, rows = np.zeros(((d + 1) ** 2, classes**2)), 1 + 2**22 // (d + 1) ** 2
    for first in range(0, n, rows):  # bounded memory
      a, c = x[first : first + rows], curve[first : first + rows]
      products = (a[:, :, None] * a[:, None]).reshape(len(a), -1)
      hessian += products.T @ c.reshape(len(a), -1)
    hessian = hessian.reshape(d + 1, d + 1, classes, classes).swapaxes(1, 2)
    size = (d + 1) * classes
    step = np.linalg.solve(hessian.reshape(size, size) + np.diag(penalty), gradient)
    rate, before = 1.0, loss(weights)
    while rate > 1e-6 and loss(weights - rate * step.reshape(weights.shape)) > before:
      rate /= 2
    weights = weights - rate * step.reshape(weights.shape)
    if np.abs(step).max() < 1e-8:
      break
  return weights
