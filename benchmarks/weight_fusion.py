"""Time and memory of merging two networks of 100 million parameters.

  python benchmarks/weight_fusion.py

A stack of transformer blocks, twice, float32, in safetensors files. Each method runs in
its own process, on mapped files; "memory" is the most that this process held beyond what
it held before it opened them, over the bytes of one network: private memory, and
together with the pages of the files (which the system takes back when it needs them).
What every method starts from: two networks; TIES also their base, Fisher averaging also a
diagonal Fisher of each. "re-basin" finds the permutation by `weight_matching`, applies
it, averages, and has to find back the permutation that the second network was given.
Exit code 1 if a method's private memory is more than 4 networks.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from mmgen_jax import safetensors  # noqa: E402
from mmgen_jax.fusion.fisher import fisher_average  # noqa: E402
from mmgen_jax.fusion.match import weight_matching  # noqa: E402
from mmgen_jax.fusion.permute import (  # noqa: E402
  apply_permutation,
  find_symmetry,
  random_permutations,
)
from mmgen_jax.fusion.task_vectors import ties  # noqa: E402
from mmgen_jax.fusion.weight import average, by_path  # noqa: E402
from mmgen_jax.models.layers import TransformerBlock  # noqa: E402

INPUTS = {
  "average": ("a", "b"),
  "TIES": ("base", "a", "b"),
  "Fisher": ("a", "b", "fisher_a", "fisher_b"),
  "re-basin": ("a", "shuffled"),
}
BAR = 4.0  # networks


class Stack(nn.Module):
  """Numbers from tokens [b t d]."""

  blocks: int
  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width)(x)
    for _ in range(self.blocks):
      x = TransformerBlock(12)(x)
    return nn.Dense(10)(x)


def symmetry_of(args):
  """Shapes of the parameters, by path, and the permutations they admit."""
  model, x = Stack(args.blocks, args.width), jax.ShapeDtypeStruct((1, 8, 64), "float32")
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  named = by_path(shapes)
  # By path, as they are in a file.
  restore = lambda flat: jax.tree.unflatten(
    jax.tree.structure(shapes), [flat[n] for n in named]
  )
  fn = lambda flat, x: model.apply(restore(flat), x)
  return named, find_symmetry(fn, named, x)


def write_networks(folder: Path, args) -> int:
  """Files of all that INPUTS names; the number of parameters of one network."""
  shapes, symmetry = symmetry_of(args)
  rng = np.random.default_rng(0)
  noise = lambda x, scale: (
    scale / max(x.shape[0], 1) ** 0.5 * rng.standard_normal(x.shape, np.float32)
  )
  base = {name: noise(x, 1.0) for name, x in shapes.items()}
  save = lambda name, tree: safetensors.save(folder / f"{name}.safetensors", tree)
  save("base", base)
  for name in ("a", "b"):
    save(name, {n: x + noise(x, 0.05) for n, x in base.items()})
    save(f"fisher_{name}", {n: noise(x, 1.0) ** 2 for n, x in base.items()})
  drawn = random_permutations(jax.random.key(1), symmetry)
  drawn = {g: np.asarray(p) for g, p in drawn.items()}
  b, _ = safetensors.load(folder / "b.safetensors")
  save("shuffled", apply_permutation(b, drawn, symmetry))
  save("drawn", {str(g): p for g, p in drawn.items()})
  return sum(x.size for x in base.values())


def merge(method: str, trees, folder: Path, args):
  """The merged network."""
  if method == "average":
    return average(trees)
  if method == "TIES":
    return ties(trees[0], trees[1:])
  if method == "Fisher":
    return fisher_average(trees[:2], trees[2:])
  a, b = trees
  _, symmetry = symmetry_of(args)
  found = weight_matching(a, b, symmetry)
  drawn, _ = safetensors.load(folder / "drawn.safetensors")
  back = [np.array_equal(drawn[str(g)][p], np.arange(len(p))) for g, p in found.items()]
  if not all(back):
    raise RuntimeError(f"{back.count(False)} of {len(back)} groups were not found back")
  return average([a, apply_permutation(b, found, symmetry)])


def memory() -> dict[str, int]:
  """Bytes that this process holds: its own, and with what it has mapped."""
  lines = Path("/proc/self/status").read_text().splitlines()
  kb = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
  return {
    "private": 1024 * int(kb["RssAnon"]),
    "all": 1024 * sum(map(int, kb.values())),
  }


class Peak:
  """The largest `memory` while it is open."""

  def __enter__(self):
    self.least = memory()
    self.most, self.done = self.least, threading.Event()
    self.thread = threading.Thread(target=self._watch)
    self.thread.start()
    return self

  def _watch(self):
    while not self.done.wait(0.005):
      now = memory()
      self.most = {k: max(now[k], x) for k, x in self.most.items()}

  def __exit__(self, *_):
    self.done.set()
    self.thread.join()


def measure(folder: Path, args) -> None:
  """Runs one method and prints what it took, as JSON."""
  jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(3)))  # start the backend
  with Peak() as peak:
    since = time.time()
    files = [folder / f"{name}.safetensors" for name in INPUTS[args.method]]
    merged = merge(args.method, [safetensors.load(f)[0] for f in files], folder, args)
    jax.block_until_ready(merged)
    secs = time.time() - since
  one = sum(x.nbytes for x in merged.values())
  ratios = {k: (x - peak.least[k]) / one for k, x in peak.most.items()}
  print(json.dumps({"secs": secs, **ratios}))


def main() -> int:
  """Makes the networks, then measures every method in its own process."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--blocks", type=int, default=21)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--method", choices=list(INPUTS), help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.method:
    measure(args.folder, args)
    return 0
  worst = 0.0
  with tempfile.TemporaryDirectory() as folder:
    count = write_networks(Path(folder), args)
    print(f"{count / 1e6:.1f} million parameters, {4 * count / 2**20:.0f} MiB each")
    for method in INPUTS:
      command = [sys.executable, __file__, f"--method={method}", f"--folder={folder}"]
      command += [f"--blocks={args.blocks}", f"--width={args.width}"]
      done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
      found = json.loads(done.stdout.splitlines()[-1])
      worst = max(worst, found["private"])
      print(
        f"{method:9} {found['secs']:6.1f} s, memory {found['private']:.2f} x one network,"
        f" {found['all']:.2f} x with the files' pages",
        flush=True,
      )
  print(
    f"{'reached' if worst <= BAR else 'MISSED'}: at most {worst:.2f} (<= {BAR:.0f})"
  )
  return 0 if worst <= BAR else 1


if __name__ == "__main__":
  sys.exit(main())
