"""The multimodal step with every posterior, on networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from tiny_models import tiny

from mmgen_jax.data import modality
from mmgen_jax.models import multimodal as multimodal_lib
from mmgen_jax.steps import STEPS, multimodal
from mmgen_jax.steps.multimodal_bounds import OBJECTIVES

SMALL = {name: modality.image(4, 4, 1) for name in "abc"}


def small(posterior, **loss):
  config, _, _ = tiny("multimodal")
  config.loss.update(posterior=posterior, **loss)
  if posterior == "mmvae_plus":
    config.model.private = {"image": 2}
  return config


def batch(mask, seed=0):
  values = np.random.default_rng(seed).uniform(-1, 1, (3, 4, 4, 4, 1))
  values = dict(zip("abc", values.astype(np.float32), strict=True))
  mask = dict(zip("abc", np.asarray(mask, bool), strict=True))
  return values | {"mask": mask, "labels": {}, "index": np.arange(4)}


ALL = np.ones((3, 4))
NEVER = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]])  # "b" is nowhere
MIXED = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0]])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_mask_is_one_program_with_finite_gradients_and_no_leak(name):
  config = small(name)
  state = multimodal.init(jax.random.key(0), config, SMALL)
  step = jax.jit(multimodal.make_train_step(config, SMALL))
  key = jax.random.key(1)
  after = {}
  for label, mask in (("all", ALL), ("never", NEVER), ("mixed", MIXED)):
    after[label], metrics = step(state, batch(mask), key)
    assert all(np.isfinite(v) for v in metrics.values()), (label, metrics)
    poisoned = batch(mask)
    for n in "abc":
      poisoned[n][~poisoned["mask"][n]] = np.nan
    dirty, _ = step(state, poisoned, key)
    jax.tree.map(np.testing.assert_array_equal, dirty.params, after[label].params)
  assert step._cache_size() == 1  # the pattern of what is missing compiles nothing
  moved = lambda part, label: jax.tree.map(
    lambda x, y: np.abs(x - y).max(),
    state.params["vae"][part],
    after[label].params["vae"][part],
  )
  assert max(jax.tree.leaves(moved("decoders_b", "all"))) > 0
  assert max(jax.tree.leaves(moved("decoders_b", "never"))) == 0
  assert max(jax.tree.leaves(moved("encoders_b", "never"))) == 0
  incomplete = max(jax.tree.leaves(moved("decoders_a", "never")))
  assert incomplete == 0 if name == "jmvae" else incomplete > 0


def by_hand(name, z, means, logvars, mask, joint, shared):
  """Log q(z | what `mask` keeps) of one example."""
  normal = lambda z, m, v: stats.norm(m, np.exp(v / 2)).logpdf(z).sum()
  have = np.flatnonzero(mask)
  own = slice(0, shared)
  if name == "jmvae" and mask.all():
    return normal(z, *joint)
  if name in ("mvae", "mopoe", "mvtcae", "jmvae"):
    t = np.exp(-logvars[have]).sum(0) + (name == "mvae" or not len(have))
    return normal(z, (np.exp(-logvars[have]) * means[have]).sum(0) / t, -np.log(t))
  each = [normal(z[own], means[m, own], logvars[m, own]) for m in have]
  each = each or [normal(z[own], 0.0, 0.0)]
  rest = 0.0
  for j in range(shared, len(z)):  # a private latent is its modality's, or the prior's
    m = int(np.flatnonzero(np.isfinite(logvars[:, j]))[0])
    rest += normal(z[j], means[m, j], logvars[m, j]) if mask[m] else normal(z[j], 0, 0)
  return special.logsumexp(each) - np.log(len(each)) + rest


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_evaluation_takes_for_q_is_each_posteriors_own(name):
  config = small(name)
  state = multimodal.init(jax.random.key(0), config, SMALL)
  latents = multimodal.make_latents(config, SMALL)
  mask = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]], bool)
  values = {n: jnp.asarray(batch(ALL)[n]) for n in "abc"}
  (means, logvars), _ = latents.encode(state.params, values)
  rng = np.random.default_rng(1)  # networks at their start all say the same
  means = rng.normal(size=means.shape).astype(np.float32)
  logvars = np.where(np.isfinite(logvars), rng.normal(size=logvars.shape), np.inf)
  b, size = means.shape[1:]
  joint = tuple(rng.normal(size=(2, b, size)).astype(np.float32))
  experts = (means, logvars.astype(np.float32)), joint if name == "jmvae" else None
  z = rng.normal(size=(b, size)).astype(np.float32)
  got = latents.log_q(state.params, experts, mask, z)
  shared = config.model.latent
  want = [
    by_hand(
      name, z[i], means[:, i], logvars[:, i], mask[:, i], [x[i] for x in joint], shared
    )
    for i in range(b)
  ]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_dreg_changes_the_gradient_of_the_encoders_only():
  after, bounds = {}, {}
  for estimator in ("iwae", "dreg"):
    config = small("mmvae", estimator=estimator, samples=3)
    state = multimodal.init(jax.random.key(0), config, SMALL)
    step = jax.jit(multimodal.make_train_step(config, SMALL))
    state, metrics = step(state, batch(MIXED), jax.random.key(1))
    after[estimator], bounds[estimator] = (
      state.params["vae"],
      metrics["multimodal/bound"],
    )
  assert float(bounds["dreg"]) == pytest.approx(float(bounds["iwae"]), rel=1e-5)
  start = multimodal.init(jax.random.key(0), config, SMALL).params["vae"]
  for part in start:
    moved, other = (
      np.concatenate(
        [
          np.ravel(a - b)
          for a, b in zip(
            *map(jax.tree.leaves, (after[e][part], start[part])), strict=True
          )
        ]
      )
      for e in ("iwae", "dreg")
    )
    same = np.allclose(moved, other, rtol=1e-3, atol=1e-6 + 1e-3 * abs(moved).max())
    assert same == part.startswith("decoders"), part


def test_what_does_not_fit_is_refused():
  refusals = {
    "'moe'": {"posterior": "moe"},
    "no private": {"posterior": "mopoe"},
    "estimator of 'mopoe'": {"posterior": "mopoe", "estimator": "iwae"},
    "density must": {"posterior": "mvtcae", "density": "laplace"},
  }
  for match, loss in refusals.items():
    config = small(**loss)
    if match == "no private":
      config.model.private = {"image": 1}
    with pytest.raises(ValueError, match=match):
      multimodal.build(config, SMALL)


@pytest.mark.parametrize("how", ["all", "ring"])
def test_subsets_in_evaluation(how):
  config, _, _ = tiny("multimodal")
  config.eval.subsets = how
  five = {name: modality.image(4, 4) for name in "abcde"}
  subsets = STEPS["multimodal"].subsets(config, five)
  assert len(set(subsets)) == len(subsets) == (32 if how == "all" else 22)
  assert subsets[0] == () and subsets[-1] == tuple("abcde")
  for n in range(1, 5):
    of_size = [s for s in subsets if len(s) == n]
    often = [sum(name in s for s in of_size) for name in "abcde"]
    assert len(set(often)) == 1
  two = {name: five[name] for name in "ab"}
  assert sorted(STEPS["multimodal"].subsets(config, two)) == sorted(
    [(), ("a",), ("b",), ("a", "b")]
  )


def test_generation_uses_what_is_given_only():
  config = small("mmvae_plus")
  params = multimodal.init(jax.random.key(0), config, SMALL).params
  generate = jax.jit(multimodal.make_generate(config, SMALL))
  given = jnp.array([True, False, False])
  whole, other = batch(ALL), batch(ALL)
  other["b"], other["c"] = other["c"], np.full_like(other["b"], np.nan)
  key = jax.random.key(2)
  a, b = (generate(params, x, given, key) for x in (whole, other))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_given_changes_what_is_decoded():
  config, larger = small("mopoe"), {n: modality.image(8, 8, 1) for n in "abc"}
  params = multimodal.init(jax.random.key(0), config, larger).params
  latents = multimodal.make_latents(config, larger)
  keys = jax.random.split(jax.random.key(2), 4)
  given = jnp.broadcast_to(jnp.array([[True], [False], [False]]), (3, 4))

  @jax.jit
  def decoded(values):
    z = latents.sample(params, latents.encode(params, values), given, keys)
    return z, latents.decode(params, z)

  values = np.random.default_rng(0).uniform(-1, 1, (3, 4, 8, 8, 1))
  values = dict(zip("abc", values.astype(np.float32), strict=True))
  z, outputs = decoded(values)
  other_z, others = decoded(values | {"a": -values["a"]})
  assert (z != other_z).any(1).all()
  for n in "abc":
    assert (outputs[n] != others[n]).any((1, 2, 3, 4)).all()
  same_z, _ = decoded(values | {"b": -values["b"], "c": values["a"]})
  np.testing.assert_array_equal(same_z, z)


def test_a_log_variance_beyond_its_bound_finds_the_way_back():
  x = jnp.array([-9.0, -1.0, 8.0, 9.0])
  np.testing.assert_array_equal(multimodal_lib.bounded(x), [-8.0, -1.0, 8.0, 8.0])
  slope = lambda sign: jax.grad(lambda x: sign * multimodal_lib.bounded(x).sum())(x)
  np.testing.assert_array_equal(slope(1.0), [0, 1, 1, 1])  # descent: down
  np.testing.assert_array_equal(slope(-1.0), [-1, -1, -1, 0])
  # Through the head of an encoder that says nothing: to where it says something.
  head = multimodal_lib.Encoder(modality.text(["a"], 1), 2, 4, 4)
  tokens = jnp.ones((3, 1), int)
  params = head.init(jax.random.key(0), tokens)
  params["params"]["head"]["bias"] = jnp.array([0.0, 0.0, 20.0, 20.0])
  loss = lambda p: (head.apply(p, tokens)[1] ** 2).mean()
  for _ in range(60):
    params = jax.tree.map(lambda a, g: a - 0.3 * g, params, jax.grad(loss)(params))
  assert loss(params) < 1.0


def test_the_joint_encoder_sees_what_the_experts_see():
  kl = {}
  for noise in (0.0, 0.5):
    config = small("jmvae")
    config.augment = {"a": {"noise": noise}}
    state = multimodal.init(jax.random.key(0), config, SMALL)
    step = multimodal.make_train_step(config, SMALL)
    of = jax.jit(lambda *x, step=step: step(*x)[1]["multimodal/kl"])  # compiles no more
    kl[noise] = float(of(state, batch(ALL), jax.random.key(1)))  # of the joint encoder
  assert kl[0.5] != pytest.approx(kl[0.0], rel=1e-4)
