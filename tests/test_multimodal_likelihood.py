"""Joint, marginal and conditional likelihoods against the exact ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tiny_linear import LinearVAE, exact_log_p, experts
from tiny_models import tiny

from mmgen_jax.data import modality
from mmgen_jax.data.examples import Column, Examples
from mmgen_jax.data.modality import to_model
from mmgen_jax.fusion import posteriors
from mmgen_jax.metrics import multimodal_likelihood as ml
from mmgen_jax.steps import STEPS, latents

MEANS, LOGVARS, X = experts(5, seed=3)
NAMES = LinearVAE().names
SHAPES = {n: modality.audio(1, v.shape[1], 1) for n, v in zip(NAMES, X, strict=True)}
SUBSETS = [c for n in range(4) for c in itertools.combinations(range(3), n)]


def linear_latents(posterior, widen=0.0):
  """The linear-Gaussian model, with a proposal that is wider than it should be."""
  decode, log_px = latents.decoding(LinearVAE())
  normal = posteriors.NORMAL.log_prob
  return latents.Latents(
    lambda params, values: (jnp.asarray(MEANS), jnp.asarray(LOGVARS) + widen),
    lambda params, q, mask, keys: posterior.sample(keys, *q, mask),
    lambda params, q, mask, z: posterior.log_prob(z, *q, mask),
    lambda params, z: normal(z, 0.0, 0.0).sum(-1),
    decode,
    log_px,
  )


def batch():
  mask = {n: np.ones(5, bool) for n in NAMES}
  values = {n: np.asarray(v, np.float32) for n, v in zip(NAMES, X, strict=True)}
  return values | {"mask": mask, "labels": {}, "index": np.arange(5)}


def standard_error(bounds, samples):
  """Of log (1/K) sum w, to first order: the relative one of the mean of w."""
  return np.sqrt(np.maximum(1 / np.asarray(bounds.effective) - 1 / samples, 0))


@pytest.mark.parametrize(
  ("posterior", "samples"),  # the mixture's proposal is broader
  [(posteriors.product(1.0), 20_000), (posteriors.mixture_of_products(1.0), 200_000)],
)
def test_every_subset_is_within_a_hundredth_of_a_nat(posterior, samples):
  f = ml.make_log_likelihood(
    linear_latents(posterior, widen=0.3), SHAPES, samples=samples, chunk=2000
  )
  f = jax.jit(f)
  found, errors = {}, {}
  for subset in SUBSETS:
    given = np.isin(np.arange(3), subset)
    found[subset] = f({"vae": {}}, batch(), given, jax.random.key(0))
    errors[subset] = standard_error(found[subset], samples)
    assert errors[subset].max() < 0.01
    off = found[subset].log_px - np.array([exact_log_p(X, b, subset) for b in range(5)])
    assert (abs(off) < 4 * errors[subset] + 1e-4).all(), (subset, off)
    assert abs(off).max() < 0.01, (subset, off)
  assert f._cache_size() == 1
  disjoint = [(a, b) for a in SUBSETS for b in SUBSETS if not set(a) & set(b)]
  for a, b in disjoint:
    both = tuple(sorted(a + b))
    got = ml.conditional(found[both], found[a])
    want = [exact_log_p(X, i, both) - exact_log_p(X, i, a) for i in range(5)]
    off = abs(got - np.array(want))
    assert (off < 4 * (errors[both] + errors[a]) + 2e-4).all()
    assert off.max() < 0.01
  np.testing.assert_allclose(found[()].log_px, 0, atol=1e-5)  # of nothing


def test_the_elbo_of_the_exact_posterior_is_log_p_at_every_draw():
  lacking = batch()
  lacking["mask"][NAMES[1]][2] = False
  step = latents.eval_step(linear_latents(posteriors.product(1.0)), SHAPES)
  terms = step({"vae": {}}, lacking, jax.random.key(5))
  want = [exact_log_p(X, b, (0, 2) if b == 2 else (0, 1, 2)) for b in range(5)]
  np.testing.assert_allclose(terms["elbo"], want, atol=2e-3)
  logp = sum(terms[f"logp_{name}"] for name in NAMES)
  np.testing.assert_allclose(logp - terms["kl"], terms["elbo"], atol=1e-3)


def test_what_an_example_lacks_does_not_count():
  f = ml.make_log_likelihood(
    linear_latents(posteriors.product()), SHAPES, samples=4000, chunk=500
  )
  poisoned = batch()
  poisoned["mask"][NAMES[1]][2] = False
  poisoned[NAMES[1]][2] = np.nan
  got = f({"vae": {}}, poisoned, np.ones(3, bool), jax.random.key(0)).log_px
  want = [exact_log_p(X, b, (0, 2) if b == 2 else (0, 1, 2)) for b in range(5)]
  np.testing.assert_allclose(got, want, atol=0.03)


def test_a_table_of_a_network():
  family = "multimodal"
  config, _, _ = tiny(family)
  kinds = {name: modality.image(4, 4, 1) for name in "ab"}
  rng = np.random.default_rng(0)
  columns = {n: Column(rng.integers(0, 256, (7, 4, 4, 1), np.uint8)) for n in "ab"}
  examples = Examples("x", "test", kinds, {}, {}, columns, "x")
  params = STEPS[family].init(jax.random.key(0), config, kinds).ema
  subsets = [("a",), ("a", "b")]
  made = ml.table(
    config, params, examples, range(7), subsets, samples=4, chunk=2, batch_size=4
  )
  assert made["a",].log_px.shape == (7,) and np.isfinite(made["a", "b"].log_px).all()
  again = ml.table(
    config, params, examples, range(4), subsets, samples=4, chunk=2, batch_size=4
  )
  np.testing.assert_array_equal(again["a",].log_px, made["a",].log_px[:4])
  for wrong in ("a", ("c",), ("a", "c")):
    with pytest.raises(ValueError, match=r"subsets are tuples of \['a', 'b'\], got"):
      ml.table(config, params, examples, range(4), [wrong], samples=4, chunk=2)
  with pytest.raises(ValueError, match="'gan' has no"):
    config.family = "gan"
    ml.table(config, params, examples, range(4), subsets, samples=4, chunk=2)


@pytest.mark.parametrize("family", ["vae", "hvae"])
def test_of_one_modality_the_bound_is_the_steps_own_and_above_the_elbo(family):
  config, _, _ = tiny(family)
  kinds = {"image": modality.image(8, 8, 3)}
  config.loss.binarise = False
  rng = np.random.default_rng(0)
  columns = {"image": Column(rng.integers(0, 256, (6, 8, 8, 3), np.uint8))}
  examples = Examples("x", "test", kinds, {}, {}, columns, "x")
  params = STEPS[family].init(jax.random.key(0), config, kinds).ema
  subset, how = ("image",), {"samples": 40, "chunk": 20}
  found = ml.table(config, params, examples, range(6), [subset], **how)[subset]
  key = jax.random.fold_in(jax.random.key(0), 0)
  rows = examples.rows(np.arange(50) % 6)
  batch = rows | {"image": to_model(kinds["image"], rows["image"])}
  keys = jax.vmap(jax.random.split)(jax.random.split(key, 50))
  weigh = STEPS[family].make_log_weights(config, kinds)(params, batch, keys[:, 0])
  parts = [jax.vmap(jax.random.fold_in, (0, None))(keys[:, 1], i) for i in (0, 1)]
  log_w = np.concatenate([np.asarray(weigh(k, 20)) for k in parts])[:, :6]
  want = scipy.special.logsumexp(log_w, 0) - np.log(40)
  np.testing.assert_allclose(found.log_px, want, rtol=1e-4)
  assert (found.log_px > found.elbo).all()
