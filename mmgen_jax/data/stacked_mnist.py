"""StackedMNIST: three MNIST digits as the colours of one image, 1000 modes.

Metz et al., "Unrolled Generative Adversarial Networks", 2017,
https://arxiv.org/abs/1611.02163. Only which digits are stacked is stored (a TFDS set of
row numbers); the digits are MNIST's own, and meet when a batch is made.
"""

import numpy as np
from jaxtyping import Int

from mmgen_jax.data import images, modality, order, read
from mmgen_jax.data.examples import Column, Examples, Spec

CHANNELS = ("red", "green", "blue")
MODES = 1000
SIZES = (28, 32)
SPLITS: tuple[str, ...] = ("train", "validation", "test")
VERSION = 1  # of what `load` makes of the stored records


def spec(
  *,
  size: int = 32,
  seed: int = 0,
  train_examples: int = 128_000,
  validation_examples: int = 5_000,
  test_examples: int = 26_000,
) -> Spec:
  """Image size x size x 3; a label, the digit, for each of `CHANNELS`.

  Training and test digits are those of the MNIST splits, as `images` has them. 128,000
  fixed triples is the number of Lin et al., "PacGAN", 2018,
  https://arxiv.org/abs/1712.04086.

  Args:
    size: 28, or 32: black borders.
    seed: of the triples.
    train_examples: how many; the first ones are the same however many there are.
    validation_examples: how many.
    test_examples: how many.

  Raises:
    ValueError: if an option is none of these.
  """
  if size not in SIZES:
    raise ValueError(f"stacked_mnist has the sizes {SIZES}, got size={size!r}")
  if seed < 0:
    raise ValueError(f"the seed of stacked_mnist is at least 0, got {seed}")
  for count in (train_examples, validation_examples, test_examples):
    if not 1 <= count < 2**31:
      raise ValueError(f"a split has from 1 to 2^31 - 1 examples, got {count!r}")
  digits = tuple(map(str, range(10)))
  return Spec(
    "stacked_mnist",
    {"image": modality.image(size, size, 3)},
    dict.fromkeys(CHANNELS, digits),
    SPLITS,
  )


def triples(seed: int, split: str, count: int, singles: int) -> Int[np.ndarray, "n 3"]:
  """Row numbers of the digits of examples 0 .. count - 1.

  Each channel deals all digits once in random order, then again in another: example i
  has digit i mod `singles` of deal i // `singles`. So no digit is left out, and each
  channel has exactly the frequencies of the single digits after every deal.

  Args:
    seed: of the data set.
    split: one of `SPLITS`.
    count: of examples.
    singles: how many digits there are in the split.
  """
  deals = -(-count // singles)
  of = lambda channel, deal: order.permutation(
    (seed, SPLITS.index(split), channel, deal), singles
  )
  channels = range(len(CHANNELS))
  dealt = [np.stack([of(c, d) for c in channels], 1) for d in range(deals)]
  return np.concatenate(dealt)[:count]


def load(
  split: str,
  data_dir,
  *,
  size: int = 32,
  seed: int = 0,
  train_examples: int = 128_000,
  validation_examples: int = 5_000,
  test_examples: int = 26_000,
) -> Examples:
  """The examples of one split; see `spec` for the options.

  Raises:
    FileNotFoundError: if MNIST is not prepared in `data_dir`; says how to.
    ValueError: if there is no such split, or an option is none that `spec` takes.
  """
  numbers = (train_examples, validation_examples, test_examples)
  counts: dict[str, int] = dict(zip(SPLITS, numbers, strict=True))
  about = spec(size=size, seed=seed, **{f"{k}_examples": n for k, n in counts.items()})
  about.check_split(split)
  of = lambda split: images.load(split, data_dir, tfds="mnist", size=size)
  singles = of(split)
  what = {"name": "stacked_mnist", "version": VERSION, "seed": seed}
  what |= {"examples": counts[split], "singles": singles.fingerprint}

  def open_builder():
    from mmgen_jax.data import stacked_mnist_builder as builder  # imports TFDS

    digits = {s: of(s).labels["label"] for s in SPLITS}
    config = builder.config(seed=seed, counts=counts)
    return read.prepare(builder.StackedMnist, data_dir, config=config, digits=digits)

  columns = read.read(open_builder, split, _decode, what=what, data_dir=data_dir)
  return Examples(
    "stacked_mnist",
    split,
    about.modalities,
    {name: np.asarray(columns[name]) for name in CHANNELS},
    about.label_names,
    {"image": Column(singles.columns["image"].values, np.asarray(columns["rows"]))},
    read.fingerprint(**what, split=split),
  )


def _decode(records) -> dict[str, np.ndarray]:
  digits = {
    name: np.array([record[name] for record in records], np.int32) for name in CHANNELS
  }
  return digits | {"rows": np.stack([record["rows"] for record in records])}
