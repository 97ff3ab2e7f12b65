"""Loss barrier between two MNIST networks, before and after matching their units.

  python benchmarks/barrier_mnist.py --data_dir=DIR

DIR holds TFDS's prepared mnist/3.0.1 (`configs/` read it too). Two perceptrons with three
hidden layers of 512 are trained from different seeds; on 25 points of the line between
them, loss and accuracy on the training and the test set, as they are and with the second
one's units permuted by `weight_matching`: Git Re-Basin (Ainsworth, Hayase and Srinivasa,
2023, https://arxiv.org/abs/2209.04836), figure 1. A barrier is the worst value on the
line less the mean of its ends. Exit code 1 unless the matched test barrier is at most
0.01 nat and 0.2 points of accuracy, and the naive one at least 0.1 nat. That takes a
large rate and decay: with 1e-3 and 1e-4 the matched test barrier was 0.13 nat.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from mmgen_jax.fusion.match import activation_matching, weight_matching  # noqa: E402
from mmgen_jax.fusion.permute import apply_permutation, find_symmetry  # noqa: E402
from mmgen_jax.fusion.weight import interpolate, loss_barrier  # noqa: E402

POINTS = 25
MEAN, DEVIATION = 0.1307, 0.3081  # of the training set's pixels in [0, 1]


class Perceptron(nn.Module):
  """Logits of ten digits."""

  width: int

  @nn.compact
  def __call__(self, x):
    for _ in range(3):
      x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(10)(x)


def mnist(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images [n 784], standardised by MEAN and DEVIATION; labels."""
  import tensorflow_datasets as tfds

  from mmgen_jax.data.read import image_array, source

  records = source(tfds.builder("mnist:3.0.1", data_dir=data_dir), split)
  records = records.__getitems__(list(range(len(records))))
  images = np.stack([image_array(r["image"], 1) for r in records])
  labels = np.array([r["label"] for r in records], np.int32)
  images = images.reshape(len(images), -1) / np.float32(255)
  return (images - MEAN) / DEVIATION, labels


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def train(model, data, seed: int, args, loss=cross_entropy):
  """Parameters after some epochs of Adam with a linear warm-up and a cosine decay.

  Args:
    model: a module of images [b 784].
    data: images and what the loss of the logits is given with them, by example.
    seed: of the initial parameters and of the order of the examples.
    args: epochs, batch, learning_rate, weight_decay.
    loss: (logits, targets) -> [b].
  """
  images, targets = data
  steps = len(images) // args.batch * args.epochs
  rate = optax.warmup_cosine_decay_schedule(
    1e-6, args.learning_rate, steps // 20, steps
  )
  tx = optax.adamw(rate, weight_decay=args.weight_decay)
  params = model.init(jax.random.key(seed), images[:1])
  opt_state = tx.init(params)

  @jax.jit
  def step(params, opt_state, x, y):
    grads = jax.grad(lambda p: loss(model.apply(p, x), y).mean())(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  rng = np.random.default_rng(seed)
  since = time.time()
  for _ in range(args.epochs):
    order = rng.permutation(len(images))
    for i in range(len(images) // args.batch):
      rows = order[i * args.batch : (i + 1) * args.batch]
      params, opt_state = step(params, opt_state, images[rows], targets[rows])
  secs = time.time() - since
  print(f"seed {seed}: {args.epochs} epochs in {secs:.0f} s", flush=True)
  return params


def make_evaluate(model):
  """(params, data) -> mean loss in nats, accuracy in points."""

  @jax.jit
  def evaluate(params, images, labels):
    logits = model.apply(params, images)
    loss = cross_entropy(logits, labels).mean()
    return loss, 100 * (logits.argmax(-1) == labels).mean()

  return lambda params, data: tuple(map(float, evaluate(params, *data)))


def barriers(evaluate, a, b, sets) -> dict[str, tuple[float, float]]:
  """Of loss and of accuracy, for each set of data."""
  line = [interpolate(a, b, t) for t in np.linspace(0, 1, POINTS)]
  found = {}
  for name, data in sets.items():
    loss, accuracy = zip(*(evaluate(p, data) for p in line), strict=True)
    found[name] = loss_barrier(loss), loss_barrier([-x for x in accuracy])
    print(
      f"  {name:5}: loss {loss[0]:.4f} {loss[POINTS // 2]:.4f} {loss[-1]:.4f}, accuracy"
      f" {accuracy[0]:.2f} {accuracy[POINTS // 2]:.2f} {accuracy[-1]:.2f}; barrier"
      f" {found[name][0]:.4f} nat, {found[name][1]:.2f} points",
      flush=True,
    )
  return found


def main() -> int:
  """Trains, matches and measures."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--epochs", type=int, default=16)
  parser.add_argument("--batch", type=int, default=500)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--learning_rate", type=float, default=3e-3)
  parser.add_argument("--weight_decay", type=float, default=2.0)
  parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1))
  args = parser.parse_args()
  sets = {name: mnist(args.data_dir, name) for name in ("train", "test")}
  training = sets["train"]
  sets["train"] = training[0][:10_000], training[1][:10_000]  # to measure on
  model = Perceptron(args.width)
  since = time.time()
  a, b = (train(model, training, seed, args) for seed in args.seeds)
  print(f"trained two networks in {time.time() - since:.0f} s", flush=True)
  images = training[0][:2000]
  symmetry = find_symmetry(model.apply, a, images)
  evaluate = make_evaluate(model)
  print("naive (at 0, 0.5 and 1):")
  naive = barriers(evaluate, a, b, sets)
  since = time.time()
  found = weight_matching(a, b, symmetry)
  print(f"weights matched in {time.time() - since:.1f} s:")
  matched = barriers(evaluate, a, apply_permutation(b, found, symmetry), sets)
  since = time.time()
  found = activation_matching(model.apply, a, b, images)
  print(f"activations matched in {time.time() - since:.1f} s:")
  barriers(evaluate, a, apply_permutation(b, found, symmetry), sets)
  (loss, accuracy), (naive_loss, _) = matched["test"], naive["test"]
  good = loss <= 0.01 and accuracy <= 0.2 and naive_loss >= 0.1
  print(
    f"{'reached' if good else 'MISSED'}: matched {loss:.4f} nat (<= 0.01) and"
    f" {accuracy:.2f} points (<= 0.2), naive {naive_loss:.4f} nat (>= 0.1)"
  )
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
