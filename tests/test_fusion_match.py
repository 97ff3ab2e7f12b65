"""Units of one network found in another; statistics repaired after a merge."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from symmetries import inputs_of, random_params

from mmgen_jax.fusion.match import (
  activation_matching,
  activations,
  match_many,
  weight_matching,
)
from mmgen_jax.fusion.permute import (
  apply_permutation,
  find_symmetry,
  random_permutations,
  trace,
)
from mmgen_jax.fusion.repair import make_layer_outputs, repair
from mmgen_jax.fusion.weight import average
from mmgen_jax.models.conv import ConvDecoder
from mmgen_jax.models.layers import TransformerBlock
from mmgen_jax.models.r3gan import R3Discriminator

KEY = jax.random.key(3)


class Mlp(nn.Module):
  widths: tuple[int, ...] = (24, 24)

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.leaky_relu(nn.Dense(width)(x))  # no unit is dead
    return nn.Dense(3)(x)


class Attention(nn.Module):
  blocks: int = 1
  width: int = 12
  heads: int = 2

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width)(x)
    for _ in range(self.blocks):
      x = TransformerBlock(self.heads)(x)
    return nn.Dense(2)(x)


NETWORKS = {
  "mlp": (Mlp(), (64, 10)),
  "attention": (Attention(), (16, 5, 6)),
  "deep attention": (Attention(2, 96, 4), (2, 3, 16)),  # from the identity it is missed
  "conv decoder": (ConvDecoder((8, 8), 1, 16), (32, 6)),
  "r3 discriminator": (R3Discriminator((8, 8), 1, 4), (8, 8, 8, 2)),
}


def make(name):
  module, shape = NETWORKS[name]
  (x,) = inputs_of(shape)
  params = random_params(module, x)
  return module.apply, params, x, find_symmetry(module.apply, params, x)


def shuffled(params, symmetry, key=KEY):
  drawn = random_permutations(key, symmetry)
  drawn = {group: np.asarray(p) for group, p in drawn.items()}
  return drawn, apply_permutation(params, drawn, symmetry)


def leaves(*trees):
  return zip(*map(jax.tree.leaves, trees), strict=True)


def assert_same(got, want):
  for x, y in leaves(got, want):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("name", NETWORKS)
def test_weight_matching_finds_a_known_permutation(name, noise):
  _, params, _, symmetry = make(name)
  rng = np.random.default_rng(0)
  blur = lambda x: (
    x + np.float32(noise) * x.std() * rng.standard_normal(x.shape, x.dtype)
  )
  drawn, other = shuffled(jax.tree.map(blur, params), symmetry)
  found = weight_matching(params, other, symmetry)
  for group, p in drawn.items():
    np.testing.assert_array_equal(p[found[group]], np.arange(len(p)))
  if not noise:
    assert_same(apply_permutation(other, found, symmetry), params)


@pytest.mark.parametrize("name", ["mlp", "conv decoder"])
def test_activation_matching_finds_a_known_permutation(name):
  fn, params, x, symmetry = make(name)
  drawn, other = shuffled(params, symmetry)
  found = activation_matching(fn, params, other, x)
  for group, p in drawn.items():
    np.testing.assert_array_equal(p[found[group]], np.arange(len(p)))


def leaky(h):
  return np.maximum(h, 0.01 * h)


def inner(a, b):
  return sum(float(np.vdot(x, y)) for x, y in leaves(a, b))


def test_weight_matching_of_one_layer_is_the_best_of_all():
  module, (x,) = Mlp((5,)), inputs_of((2, 4))
  a, b = (random_params(module, x, seed=seed) for seed in (1, 2))
  symmetry = find_symmetry(module.apply, a, x)
  ((group, n),) = symmetry.groups.items()
  every = [{group: np.array(p)} for p in itertools.permutations(range(n))]
  value = lambda p: inner(a, apply_permutation(b, p, symmetry))
  found = weight_matching(a, b, symmetry)
  np.testing.assert_array_equal(found[group], max(every, key=value)[group])


def test_activation_matching_of_one_layer_is_the_best_of_all():
  module, (x,) = Mlp((5,)), inputs_of((30, 4))
  a, b = (random_params(module, x, seed=seed) for seed in (1, 2))

  def hidden(params):
    layer = params["params"]["Dense_0"]
    return leaky(x @ layer["kernel"] + layer["bias"])

  every = list(itertools.permutations(range(5)))
  best = max(every, key=lambda p: (hidden(a) * hidden(b)[:, list(p)]).sum())
  (found,) = activation_matching(module.apply, a, b, x).values()
  np.testing.assert_array_equal(found, best)


def test_activations_are_what_weights_multiply():
  fn, params, x, _ = make("mlp")
  symmetry, sites = trace(fn, params, x)
  got = activations(fn, sites, params, x)
  h, want = x, [x]
  for i in range(2):
    layer = params["params"][f"Dense_{i}"]
    h = leaky(h @ layer["kernel"] + layer["bias"])
    want.append(h)
  for y, z in zip(got, want, strict=True):
    np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-5)
  assert [[bool(f) for f in site.forms] for site in sites] == [[True, True]] * 3
  assert len(symmetry.groups) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_matching_never_makes_it_worse(name):
  _, a, x, symmetry = make(name)
  b = random_params(NETWORKS[name][0], x, seed=7)
  start, _ = shuffled(b, symmetry)
  for given in ({}, start):
    before = inner(a, apply_permutation(b, given, symmetry))
    found = weight_matching(a, b, symmetry, start=given)
    assert inner(a, apply_permutation(b, found, symmetry)) > before
    again = weight_matching(a, b, symmetry, start=found)
    for group, p in found.items():  # nothing is left to improve
      np.testing.assert_array_equal(p, again[group])


@pytest.mark.parametrize("name", ["mlp", "conv decoder"])
def test_several_networks_are_matched_to_each_other(name):
  _, params, _, symmetry = make(name)
  keys = jax.random.split(KEY, 3)
  drawn, copies = zip(*(shuffled(params, symmetry, key) for key in keys), strict=True)
  found = match_many(copies, symmetry)
  moved = [apply_permutation(*x, symmetry) for x in zip(copies, found, strict=True)]
  for other in moved[1:]:
    assert_same(other, moved[0])
  where = {g: drawn[0][g][found[0][g]] for g in drawn[0]}
  assert_same(moved[0], apply_permutation(params, where, symmetry))


def test_several_networks_come_closer_than_each_to_the_first():
  module, (x,) = Mlp(), inputs_of((2, 10))
  networks = [random_params(module, x, seed=seed) for seed in range(4)]
  symmetry = find_symmetry(module.apply, networks[0], x)

  def closeness(permutations):
    moved = zip(networks, permutations, strict=True)
    moved = [apply_permutation(*x, symmetry) for x in moved]
    return sum(inner(a, b) for a, b in itertools.combinations(moved, 2))

  to_first = [{}] + [weight_matching(networks[0], n, symmetry) for n in networks[1:]]
  assert closeness([{}] * 4) < closeness(to_first)
  assert closeness(to_first) < closeness(match_many(networks, symmetry))
  few = match_many(networks, symmetry, max_sweeps=1)
  assert closeness(few) <= closeness(match_many(networks, symmetry))


def test_a_permutation_can_be_applied_under_a_trace_and_in_part():
  _, params, _, symmetry = make("attention")
  drawn, want = shuffled(params, symmetry)
  run = jax.jit(lambda params, p: apply_permutation(params, p, symmetry))
  assert_same(run(params, drawn), want)
  part = params
  for group, p in drawn.items():  # groups do not depend on each other
    part = apply_permutation(part, {group: p}, symmetry)
  assert_same(part, want)
  assert_same(apply_permutation(params, {}, symmetry), params)


def test_what_does_not_fit_is_refused():
  _, params, _, symmetry = make("mlp")
  (x,) = inputs_of((2, 10))
  other = random_params(Mlp((24, 23)), x)
  group = next(iter(symmetry.groups))
  for call, message in [
    (
      lambda: apply_permutation(other, {}, symmetry),
      r"Dense_1/bias' has shape \(23,\)",
    ),
    (lambda: weight_matching(params, other, symmetry), "Dense_1/bias"),
    (lambda: match_many([params], symmetry), "two networks or more, got 1"),
    (lambda: match_many([params, params, other], symmetry), "Dense_1/bias"),
    (lambda: apply_permutation(params, {99: np.arange(2)}, symmetry), "no group 99"),
    (
      lambda: apply_permutation(params, {group: np.zeros(24, int)}, symmetry),
      "needs a permutation of 0 to 23",
    ),
    (
      lambda: weight_matching(params, params, symmetry, start={group: np.arange(9)}),
      "needs a permutation",
    ),
  ]:
    with pytest.raises(ValueError, match=message):
      call()


# REPAIR.


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    x = nn.relu(nn.Dense(5, name="wide")(x))
    return nn.Dense(2)(x.mean((1, 2)))


LAYERS = ["params/Conv_0", "params/wide"]


def statistics(params, x):
  """Means and deviations of the two hidden layers, with Flax's own layers."""
  p = params["params"]
  conv = nn.Conv(6, (3, 3)).apply({"params": p["Conv_0"]}, x)
  wide = np.maximum(conv, 0) @ p["wide"]["kernel"] + p["wide"]["bias"]
  return [np.stack([y.mean((0, 1, 2)), y.std((0, 1, 2))]) for y in (conv, wide)]


@pytest.mark.parametrize("weights", [None, [0.2, 0.8]])
def test_repair_gives_units_the_mean_of_the_parents_statistics(weights):
  module, (x,) = ConvNet(), inputs_of((16, 4, 4, 3))
  parents = [random_params(module, x, seed=seed) for seed in (1, 2)]
  merged = average(parents, weights)
  outputs = make_layer_outputs(module.apply)
  got = repair(outputs, merged, parents, x, layers=LAYERS, weights=weights)
  w = weights or [0.5, 0.5]
  wanted = [statistics(p, x) for p in parents]
  faded = statistics(merged, x)
  for i, stats in enumerate(statistics(got, x)):
    want = w[0] * wanted[0][i] + w[1] * wanted[1][i]
    np.testing.assert_allclose(stats, want, rtol=1e-4, atol=1e-5)
    assert np.abs(faded[i] - want).max() > 0.05
  assert_same(got["params"]["Dense_0"], merged["params"]["Dense_0"])


def test_repair_of_a_network_with_itself_changes_nothing():
  module, (x,) = ConvNet(), inputs_of((16, 4, 4, 3))
  params = random_params(module, x)
  outputs = make_layer_outputs(module.apply)
  got = repair(outputs, params, [params, params], x, layers=LAYERS)
  for a, b in leaves(got, params):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_unit_that_is_constant_is_only_shifted():
  module, (x,) = ConvNet(), inputs_of((16, 4, 4, 3))
  parent = random_params(module, x)
  dead = jax.tree.map(jnp.zeros_like, parent)
  got = repair(make_layer_outputs(module.apply), dead, [parent], x, layers=LAYERS[:1])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
  np.testing.assert_allclose(
    got["params"]["Conv_0"]["bias"], statistics(parent, x)[0][0], rtol=1e-4, atol=1e-5
  )


def test_repair_names_the_layers_there_are():
  module, (x,) = ConvNet(), inputs_of((2, 4, 4, 3))
  params = random_params(module, x)
  outputs = make_layer_outputs(module.apply)
  with pytest.raises(ValueError, match=r"no layer 'nowhere'.*'params/Conv_0'"):
    repair(outputs, params, [params], x, layers=["nowhere"])
