"""Soups of classifiers that were fine-tuned from one start, against the best single one.

  python benchmarks/soup.py --data_dir=DIR

DIR holds TFDS's prepared mnist/3.0.1. A perceptron is trained briefly on 54,000 images;
from there it is fine-tuned several times with other rates, weight decays, noise and
seeds, at constant rates. The best single one and the greedy soup are chosen by the loss
on the 6,000 images kept for validation; scores are of the 10,000 test images, the
difference of soup and single with a bootstrap interval over test images, in pairs.
Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482. Exit code 1 unless
a soup is at least as good as the best single one in test loss and in test accuracy.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from barrier_mnist import Perceptron, mnist  # noqa: E402

from mmgen_jax.fusion.weight import average, greedy_soup  # noqa: E402
from mmgen_jax.metrics.bootstrap import mean_interval  # noqa: E402

KEPT = 6000  # for validation


class Recipe(NamedTuple):
  """How one network is fine-tuned."""

  learning_rate: float
  weight_decay: float = 1e-2
  noise: float = 0.0
  seed: int = 0


RECIPES = [
  Recipe(3e-4, seed=1),
  Recipe(1e-3, seed=2),
  Recipe(1e-3, noise=0.3, seed=3),
  Recipe(1e-3, weight_decay=0.1, seed=4),
  Recipe(2e-3, weight_decay=0.1, noise=0.3, seed=5),
  Recipe(5e-4, noise=0.6, seed=6),
]


def train(model, params, data, recipe: Recipe, epochs: int, batch: int):
  """Parameters after some epochs of AdamW."""
  images, labels = data
  tx = optax.adamw(recipe.learning_rate, weight_decay=recipe.weight_decay)
  opt_state = tx.init(params)

  @jax.jit
  def step(params, opt_state, x, y, key):
    def loss(p):
      seen = x + recipe.noise * jax.random.normal(key, x.shape)
      logits = model.apply(p, seen)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  rng, key = np.random.default_rng(recipe.seed), jax.random.key(recipe.seed)
  for epoch in range(epochs):
    order = rng.permutation(len(images))
    for i in range(len(images) // batch):
      rows = order[i * batch : (i + 1) * batch]
      k = jax.random.fold_in(key, epoch * len(images) + i)
      params, opt_state = step(params, opt_state, images[rows], labels[rows], k)
  return params


def main() -> int:
  """Trains, merges and measures."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--batch", type=int, default=250)
  parser.add_argument("--start_epochs", type=int, default=2)
  parser.add_argument("--epochs", type=int, default=4)
  args = parser.parse_args()
  since = time.time()
  images, labels = mnist(args.data_dir, "train")
  training = images[:-KEPT], labels[:-KEPT]
  held_out, test = (images[-KEPT:], labels[-KEPT:]), mnist(args.data_dir, "test")
  model = Perceptron(args.width)
  start = model.init(jax.random.key(0), images[:1])
  start = train(model, start, training, Recipe(1e-3), args.start_epochs, args.batch)

  @jax.jit
  def right_and_loss(params, x, y):
    logits = model.apply(params, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return logits.argmax(-1) == y, loss

  def score(params) -> float:
    """Minus the loss on validation images, in nats."""
    return -float(right_and_loss(params, *held_out)[1].mean())

  trees = []
  for recipe in RECIPES:
    trees.append(train(model, start, training, recipe, args.epochs, args.batch))
    print(f"{recipe}: validation {score(trees[-1]):.4f}", flush=True)
  greedy, candidates = greedy_soup(trees, score)
  for c in candidates:
    before = "" if c.before is None else f" {c.before:.5f} ->"
    print(
      f"candidate {c.index}: own {c.own:.5f};{before} {c.after:.5f}, added {c.added}"
    )
  best = max(trees, key=score)
  networks = {
    "best single": best,
    "uniform soup": average(trees),
    "greedy soup": greedy,
  }
  found = {
    name: [np.asarray(x, float) for x in right_and_loss(params, *test)]
    for name, params in networks.items()
  }
  single, reached = found.pop("best single"), False
  print(f"best single: test {100 * single[0].mean():.2f} %, {single[1].mean():.4f} nat")
  for name, (right, loss) in found.items():
    more, *bounds = (100 * x for x in mean_interval(right - single[0]))
    less, *lower = mean_interval(single[1] - loss)
    reached |= more >= 0 and less >= 0
    print(
      f"{name}: test {100 * right.mean():.2f} %, {loss.mean():.4f} nat; better than the"
      f" best single by {more:+.2f} points ({bounds[0]:+.2f} to {bounds[1]:+.2f}) and"
      f" {less:+.4f} nat ({lower[0]:+.4f} to {lower[1]:+.4f})"
    )
  print(f"{'reached' if reached else 'MISSED'}; {time.time() - since:.0f} s")
  return 0 if reached else 1


if __name__ == "__main__":
  sys.exit(main())
