"""What several trained classifiers are worth: as an ensemble, or merged into one network.

  python benchmarks/ensemble.py --data_dir=DIR

DIR holds TFDS's prepared mnist/3.0.1. Perceptrons of 10,000 images, each from initial
weights and an order of its own, fused in every way that the library has:

- an ensemble, by the mean of their probabilities or of their logits;
- one network that learns what the ensemble says and no label (distillation): of the
  members' images, or of all 60,000, of which 50,000 never had a label;
- the mean of their weights: as they are, and after their units are matched.

Beside them one network with as many parameters as all members, and one that learns what
one member says of all 60,000 images. Measured on the 10,000 test images, and on the same
damaged (blur, contrast, occlusion, noise, each at the middle of its strengths). Groups
have seeds of their own; means and 95 % intervals of Student's t over groups, in brackets
of a group's difference to the mean of its own members.

Members that learn under strong decay are alike but for the order of their units, and can
be merged; under weak decay (`--weight_decay=0.1`) they differ, which is what an ensemble
lives on.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from barrier_mnist import DEVIATION, MEAN, Perceptron, mnist, train  # noqa: E402

from mmgen_jax.comparison import summary  # noqa: E402
from mmgen_jax.data import corrupt, modality  # noqa: E402
from mmgen_jax.fusion import ensemble  # noqa: E402
from mmgen_jax.fusion.match import match_many  # noqa: E402
from mmgen_jax.fusion.permute import apply_permutation, find_symmetry  # noqa: E402
from mmgen_jax.fusion.weight import average  # noqa: E402
from mmgen_jax.metrics.calibration import calibration_error, nll  # noqa: E402

IMAGE = modality.image(28, 28, 1)
MEMBERS = "one member, on average"


def damaged(images: np.ndarray, kind: str) -> np.ndarray:
  """The same images [n 784], each damaged in a way that its place decides."""
  strength = corrupt.SEVERITIES[kind][2]

  @jax.jit
  @jax.vmap
  def damage(i, x):
    pixels = 2.0 * (x.reshape(IMAGE.shape) * DEVIATION + MEAN) - 1.0
    key = jax.random.fold_in(jax.random.key(0), i)
    pixels = corrupt.corrupt(key, pixels, IMAGE, {kind: strength})
    return (((pixels + 1.0) / 2.0 - MEAN) / DEVIATION).ravel()

  return np.asarray(damage(jnp.arange(len(images)), images))


def fuse(model, trees) -> dict[str, tuple]:
  """{way: (compute, in networks; images -> logits)}, of what takes no training."""
  x = jnp.zeros((1, 784))
  symmetry = find_symmetry(model.apply, trees[0], x)
  permutations = match_many(trees, symmetry)
  matched = [
    apply_permutation(tree, p, symmetry)
    for tree, p in zip(trees, permutations, strict=True)
  ]
  k, every = len(trees), all_of(model, trees)
  return {
    "ensemble, probabilities": (k, lambda x: ensemble.average_probabilities(every(x))),
    "ensemble, logits": (k, lambda x: ensemble.average_logits(every(x))),
    "weights averaged": (1, of(model, average(trees))),
    "weights matched and averaged": (1, of(model, average(matched))),
    **{f"member {i}": (1, of(model, tree)) for i, tree in enumerate(trees)},
  }


def of(model, params):
  """Images -> logits."""
  return jax.jit(lambda x: model.apply(params, x))


def all_of(model, trees):
  """Images -> logits [k b c] of several networks."""
  stacked = ensemble.stack(trees)
  return jax.jit(lambda x: ensemble.members(model.apply, stacked, x))


def distil(model, trees, images, seed: int, args):
  """A network that learned what others say of images."""
  teachers = np.asarray(all_of(model, trees)(images)).swapaxes(0, 1)  # by example
  loss = lambda student, teachers: ensemble.distillation_loss(
    student, teachers.swapaxes(0, 1), temperature=args.temperature
  )
  return train(model, (images, teachers), seed, args, loss)


def measure(logits, sets, labels) -> dict[str, float]:
  """Percent right, nats, percent of calibration error; the first two where damaged."""
  found = {name: np.asarray(logits(x), np.float64) for name, x in sets.items()}
  right = {name: 100.0 * (x.argmax(-1) == labels).mean() for name, x in found.items()}
  loss = {name: nll(x, labels).mean() for name, x in found.items()}
  kinds = [name for name in sets if name]
  return {
    "right": right[""],
    "loss": loss[""],
    "calibration": 100.0 * calibration_error(found[""], labels),
    "damaged right": float(np.mean([right[kind] for kind in kinds])),
    "damaged loss": float(np.mean([loss[kind] for kind in kinds])),
  }


def group(number: int, data, everything, sets, labels, args):
  """{way: (compute, in networks; {measure: value})} of one group.

  Args:
    number: of the group; its seeds follow.
    data: images and labels.
    everything: these images and others.
    sets: {damage: test images}.
    labels: of the test images.
    args: the command's.
  """
  model, first = Perceptron(args.width), number * args.members
  seeds = range(first, first + args.members)
  trees = [train(model, data, seed, args) for seed in seeds]
  wide = Perceptron(as_wide(args.width, args.members))
  large = train(wide, data, 2000 + number, args)
  ways = fuse(model, trees)
  for name, teachers, images in [
    ("distilled into one", trees, data[0]),
    ("distilled into one, of 60,000 images", trees, everything),
    ("one member distilled, of 60,000 images", trees[:1], everything),
  ]:
    ways[name] = 1, of(model, distil(model, teachers, images, 1000 + number, args))
  ways["one network as large as all"] = args.members, of(wide, large)
  found = {
    way: (count, measure(logits, sets, labels)) for way, (count, logits) in ways.items()
  }
  members = [found.pop(f"member {i}")[1] for i in range(args.members)]
  mean = {name: float(np.mean([m[name] for m in members])) for name in members[0]}
  return {MEMBERS: (1, mean), **found}


def table(groups: list[dict]) -> None:
  """A row for each way: mean +- half an interval, and the same of the difference."""
  names = list(groups[0][MEMBERS][1])
  print(f"| | compute | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
  for way, (count, _) in groups[0].items():
    cells = []
    for name in names:
      digits = 3 if name.endswith("loss") else 2
      values = [g[way][1][name] for g in groups]
      gain = [g[way][1][name] - g[MEMBERS][1][name] for g in groups]
      cell = words(values, digits)
      cells.append(cell if way == MEMBERS else f"{cell} ({words(gain, digits, '+')})")
    print(f"| {way} | {count} | {' | '.join(cells)} |")


def words(values: list[float], digits: int, sign: str = "") -> str:
  """Mean +- half the interval; of one group, the value."""
  if len(values) < 2:
    return f"{values[0]:{sign}.{digits}f}"
  s = summary(values)
  return f"{s.mean:{sign}.{digits}f} ± {(s.high - s.low) / 2:.{digits}f}"


def main() -> None:
  """Trains, fuses and measures."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--groups", type=int, default=5)
  parser.add_argument("--members", type=int, default=5)
  parser.add_argument("--examples", type=int, default=10_000)
  parser.add_argument("--epochs", type=int, default=20)
  parser.add_argument("--batch", type=int, default=250)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--learning_rate", type=float, default=3e-3)
  parser.add_argument("--weight_decay", type=float, default=2.0)
  parser.add_argument("--temperature", type=float, default=2.0, help="of teaching")
  args = parser.parse_args()
  since = time.time()
  everything, labels = mnist(args.data_dir, "train")
  data = everything[: args.examples], labels[: args.examples]
  images, labels = mnist(args.data_dir, "test")
  kinds = corrupt.KINDS[IMAGE.kind]
  sets = {"": images} | {kind: damaged(images, kind) for kind in kinds}
  groups = [group(i, data, everything, sets, labels, args) for i in range(args.groups)]
  table(groups)
  print(f"{time.time() - since:.0f} s")


def as_wide(width: int, members: int) -> int:
  """The width whose perceptron has at least as many parameters as all members."""
  count = lambda w: 784 * w + 2 * w * w + 10 * w + 3 * w + 10  # kernels, biases
  wanted = members * count(width)
  return next(w for w in itertools.count(width) if count(w) >= wanted)


if __name__ == "__main__":
  main()
