"""What tests of permutations share: random parameters, maps as text, the invariance."""

import jax
import numpy as np

from mmgen_jax.fusion.permute import (
  Fixed,
  Free,
  Symmetry,
  apply_permutation,
  find_symmetry,
  random_permutations,
)

KEY = jax.random.key(0)


def inputs_of(*shapes):
  """Normal arrays."""
  rng = np.random.default_rng(0)
  return [rng.standard_normal(s, np.float32) for s in shapes]


def random_like(shapes, seed=1):
  """Normal arrays of about unit output; not one entry zero or equal to another."""
  rng = np.random.default_rng(seed)
  scale = lambda x: np.float32(1.5 / max(np.prod(x.shape[:-1]), 1) ** 0.5)
  return jax.tree.map(
    lambda x: scale(x) * rng.standard_normal(x.shape, np.float32), shapes
  )


def random_params(module, *inputs, seed=1):
  """Random parameters of a Linen module, all of float32."""
  return random_like(jax.eval_shape(lambda: module.init(KEY, *inputs)), seed)


def words(symmetry: Symmetry) -> dict[str, str]:
  """{path: "3, 3, a, b*c"}: sizes of what is fixed, letters of groups as they come."""
  letters = {}

  def word(form):
    out = []
    for f in form:
      if isinstance(f, Free):
        out.append(letters.setdefault(f.group, "abcdefghijklmn"[len(letters)]))
      elif isinstance(f, Fixed):
        out.append(str(f.size))
      else:
        out.append("(" + "+".join(map(word, f.axes)) + ")")
    return "*".join(out) or "1"

  return {
    name.removeprefix("params/"): ", ".join(map(word, forms))
    for name, forms in symmetry.forms.items()
  }


def assert_unchanged(fn, params, *inputs, seeds=3) -> Symmetry:
  """Random permutations change no output of `fn`; returns the symmetry found."""
  symmetry = find_symmetry(fn, params, *inputs)
  run = jax.jit(fn)
  want = jax.tree.leaves(run(params, *inputs))
  reordered = not symmetry.groups
  for seed in range(seeds):
    drawn = random_permutations(jax.random.key(seed), symmetry)
    drawn = {group: np.asarray(p) for group, p in drawn.items()}
    moved = apply_permutation(params, drawn, symmetry)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True)
    reordered |= any((x != y).any() for x, y in pairs)
    for x, y in zip(want, jax.tree.leaves(run(moved, *inputs)), strict=True):
      largest = np.abs(x, where=np.isfinite(x), out=np.zeros(x.shape)).max()
      np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * max(1.0, largest))
  assert reordered
  return symmetry
