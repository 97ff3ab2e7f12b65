"""Every fusion layer: masked is absent, all learns; closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.fusion.feature import (
  FUSIONS,
  AttentionFusion,
  LatentFusion,
  MeanFusion,
  make_fusion,
)

OPTIONS = {
  "tensor": {"size": 2},
  "attention": {"heads": 2},
  "cross_attention": {"heads": 2},
  "bottleneck": {"heads": 2, "bottlenecks": 2},
  "latent_queries": {"heads": 2, "latents": 2},
}
NAMES = sorted(FUSIONS)
VECTORS = jax.random.normal(jax.random.key(0), (3, 5, 4))
TOKENS = jax.random.normal(jax.random.key(1), (3, 5, 2, 4))
MASK = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1]], bool)


def made(name, features=VECTORS):
  """A layer and parameters none of which is zero or one."""
  layer = make_fusion(name, **OPTIONS.get(name, {}))
  params = layer.init(jax.random.key(2), features, MASK)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(3), max(1, len(leaves)))
  noisy = [
    x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=False)
  ]
  return layer, jax.tree.unflatten(tree, noisy)


def masked(features, fill):
  has = MASK.reshape(*MASK.shape, *[1] * (features.ndim - 2))
  return jnp.where(has, features, fill)


@pytest.mark.parametrize("features", [VECTORS, TOKENS], ids=["vectors", "tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_masked_is_absent_and_every_parameter_learns(name, features):
  layer, params = made(name, features)

  @jax.jit
  def grad(params, features):
    def loss(params, features):
      out = layer.apply(params, features, MASK)
      return (out * jnp.arange(1.0, 5.0)).sum() + (out**2).sum(), out

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, features)

  (clean, of_input), out = grad(params, masked(features, 0.0))
  (dirty, of_dirty), out2 = grad(params, masked(features, jnp.nan))
  np.testing.assert_array_equal(out, out2)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  np.testing.assert_array_equal(of_input, of_dirty)
  assert out.shape == (5, 4) and np.isfinite(out).all()
  assert not np.any(out[3])  # nothing there
  assert np.array_equal(np.any(of_input, tuple(range(2, features.ndim))), MASK)
  for path, g in jax.tree_util.tree_leaves_with_path(clean):
    assert np.isfinite(g).all() and np.any(g), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_all_is_zero_with_finite_gradients(name):
  layer, params = made(name)
  nothing = np.zeros_like(MASK)
  f = lambda p, x: (layer.apply(p, x, nothing) ** 2).sum()
  value, grads = jax.value_and_grad(f, argnums=(0, 1))(params, VECTORS * jnp.nan)
  assert value == 0.0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_not_see_each_other(name):
  layer, params = made(name, TOKENS)
  whole = layer.apply(params, TOKENS, MASK)
  alone = [
    layer.apply(params, TOKENS[:, i : i + 1], MASK[:, i : i + 1]) for i in (0, 2)
  ]
  np.testing.assert_allclose(whole[np.array([0, 2])], jnp.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tokens_within_a_modality_does_not_matter(name):
  layer, params = made(name, TOKENS)
  out = layer.apply(params, TOKENS, MASK)
  other = layer.apply(params, TOKENS[:, :, ::-1], MASK)
  np.testing.assert_allclose(out, other, atol=1e-5)


@pytest.mark.parametrize(
  "layer",
  [MeanFusion(), AttentionFusion(2, kinds=False), LatentFusion(2, kinds=False)],
  ids=lambda x: type(x).__name__,
)
def test_the_order_of_modalities_does_not_matter_where_promised(layer):
  order = np.array([2, 0, 1])
  params = layer.init(jax.random.key(2), TOKENS, MASK)
  out = layer.apply(params, TOKENS, MASK)
  other = layer.apply(params, TOKENS[order], MASK[order])
  np.testing.assert_allclose(out, other, atol=1e-5)


# Closed forms, one example and one modality at a time, in NumPy.


def dense(p, x):
  return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0))


def silu(x):
  return x / (1.0 + np.exp(-x))


def flagged(h, has, which):
  return np.concatenate([np.append(h[m], has[m]) for m in which])


def mean_np(p, h, has):
  return h[has].mean(0)


def concat_np(p, h, has):
  return dense(p["Dense_0"], flagged(h, has, range(3)))


def gated_np(p, h, has):
  logits = dense(p["Dense_0"], np.concatenate(h)).reshape(3, 4)
  gates = np.exp(logits[has]) / np.exp(logits[has]).sum(0)
  values = [np.tanh(dense(p[f"value_{m}"], h[m])) for m in np.flatnonzero(has)]
  return (gates * values).sum(0)


def film_np(p, h, has):
  out = []
  for m in np.flatnonzero(has):
    film = dense(p[f"film_{m}"], flagged(h, has, [k for k in range(3) if k != m]))
    out.append((1 + film[:4]) * h[m] + film[4:])
  return np.mean(out, axis=0)


def tensor_np(p, h, has):
  a, b, c = (
    np.append(1.0, has[m] * silu(dense(p[f"value_{m}"], h[m]))) for m in range(3)
  )
  return dense(p["out"], np.einsum("i,j,k->ijk", a, b, c).ravel())


def low_rank_np(p, h, has):
  """A tensor fusion with W = sum_r w_r (outer product of the factors)."""
  rows = [
    np.concatenate([np.asarray(p[f"factor_{m}"][k]).reshape(-1, 16)])
    for m in range(3)
    for k in ("kernel", "bias")
  ]
  f = [np.vstack(rows[2 * m : 2 * m + 2]).reshape(5, 4, 4) for m in range(3)]
  w = np.einsum("r,ird,jrd,krd->ijkd", np.asarray(p["weights"])[:, 0], *f)
  z = [np.append(h[m], 1.0) for m in range(3)]
  return np.einsum("ijkd,i,j,k->d", w, *z) + np.asarray(p["bias"])


@pytest.mark.parametrize(
  ("name", "closed_form"),
  [
    ("mean", mean_np),
    ("concat", concat_np),
    ("gated", gated_np),
    ("film", film_np),
    ("tensor", tensor_np),
    ("low_rank", low_rank_np),
  ],
)
def test_closed_form(name, closed_form):
  layer, params = made(name, TOKENS)
  out = np.asarray(layer.apply(params, TOKENS, MASK))
  h = np.asarray(masked(TOKENS, 0.0), np.float64).mean(2)
  for i in np.flatnonzero(MASK.any(0)):
    expected = closed_form(params.get("params", {}), h[:, i], MASK[:, i])
    np.testing.assert_allclose(out[i], expected, rtol=1e-4, atol=1e-5)


# Attention by brute force: one example, query, head and token at a time.


def attend_np(p, queries, tokens, heads=2):
  """`tokens` holds only those that are there."""
  if not len(tokens):
    return np.zeros_like(queries)
  q, k, v = (
    dense(p[n], x)
    for n, x in {"query": queries, "key": tokens, "value": tokens}.items()
  )
  out, size = np.zeros_like(q), q.shape[1] // heads
  for i in range(len(q)):
    for head in range(heads):
      at = slice(head * size, (head + 1) * size)
      logits = np.array([q[i, at] @ one[at] / np.sqrt(size) for one in k])
      weights = np.exp(logits) / np.exp(logits).sum()
      out[i, at] = sum(w * one[at] for w, one in zip(weights, v, strict=True))
  return dense(p["out"], out)


def norm_np(p, x):
  centred = x - x.mean(-1, keepdims=True)
  unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return unit * np.asarray(p["scale"]) + np.asarray(p["bias"])


def block_np(p, x, context=None, own=None):
  """`own`: which rows of x may be attended to, where it is its own context."""
  h = norm_np(p["LayerNorm_0"], x)
  if context is None:
    seen, last = h[own], "LayerNorm_1"
  else:
    seen, last = norm_np(p["LayerNorm_1"], context), "LayerNorm_2"
  x = x + attend_np(p["Attention_0"], h, seen)
  return x + dense(p["Dense_1"], silu(dense(p["Dense_0"], norm_np(p[last], x))))


def with_kind(p, x):
  return x + np.asarray(p["kind"])[:, 0]


def pooling_np(p, x, has):
  tokens = np.concatenate(list(with_kind(p, x)[has]))
  return attend_np(p["Attention_0"], np.asarray(p["query"])[0], tokens)[0]


def cross_np(p, x, has):
  x, views = with_kind(p, x), []
  for m in np.flatnonzero(has):
    others = [x[k] for k in np.flatnonzero(has) if k != m]
    context = np.concatenate([*others, np.zeros((0, 4))])
    views.append(block_np(p[f"modality_{m}_block_0"], x[m], context).mean(0))
  return np.mean(views, axis=0)


def bottleneck_np(p, x, has):
  x, shared = list(x), np.asarray(p["bottleneck"])[0]
  for block in range(2):
    made = []
    for m in np.flatnonzero(has):
      one = p[f"modality_{m}_block_{block}"]
      both = block_np(one, np.concatenate([x[m], shared]), own=slice(None))
      x[m] = both[:2]
      made.append(both[2:])
    shared = np.mean(made, axis=0)
  return np.mean([x[m].mean(0) for m in np.flatnonzero(has)], axis=0)


def latent_np(p, x, has):
  tokens = np.concatenate(list(with_kind(p, x)[has]))
  h = block_np(p["read_0"], np.asarray(p["latent"])[0], tokens)
  return block_np(p["talk_0"], h, own=slice(None)).mean(0)


@pytest.mark.parametrize(
  ("name", "brute_force"),
  [
    ("attention", pooling_np),
    ("cross_attention", cross_np),
    ("bottleneck", bottleneck_np),
    ("latent_queries", latent_np),
  ],
)
def test_attention_is_its_brute_force(name, brute_force):
  layer, params = made(name, TOKENS)
  out = np.asarray(layer.apply(params, TOKENS, MASK))
  tokens = np.asarray(TOKENS, np.float64)
  for i in np.flatnonzero(MASK.any(0)):
    expected = brute_force(params["params"], tokens[:, i], MASK[:, i])
    np.testing.assert_allclose(out[i], expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused_by_name():
  with pytest.raises(ValueError, match="'sum'"):
    make_fusion("sum")
  with pytest.raises(ValueError, match="rank.*size"):
    make_fusion("tensor", rank=3)
  for layer, words in [
    (make_fusion("tensor", size=200), "size=200"),
    (make_fusion("attention", heads=3), "3 heads"),
    (make_fusion("bottleneck", blocks=1), "blocks=1"),
  ]:
    with pytest.raises(ValueError, match=words):
      layer.init(jax.random.key(0), VECTORS, MASK)
