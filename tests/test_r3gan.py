"""R3GAN's networks against its published sizes and XLA's convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmgen_jax import parallel
from mmgen_jax.data.modality import image
from mmgen_jax.losses import gradient_penalty
from mmgen_jax.models import r3gan
from mmgen_jax.models.layers import init_params
from mmgen_jax.models.multimodal import MultimodalVAE

NHWC = ("NHWC", "HWIO", "NHWC")
key = jax.random.key


def normal(seed, *shape):
  return jax.random.normal(key(seed), shape)


def count(module, *shapes):
  init = lambda: init_params(module, key(0), *shapes)
  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init)))


@pytest.mark.parametrize(
  "widths, group_size, classes, g, d",
  [
    ((768,) * 4, 16, 0, 20_732_160, 20_683_776),  # StackedMNIST
    ((768,) * 4, 16, 10, 20_781_952, 21_280_512),  # CIFAR-10
    ((768,) * 4 + (384,), 16, 0, 22_429_824, 22_381_440),  # FFHQ-64
    ((1536,) * 4, 32, 1000, 82_914_304, 86_548_992),  # ImageNet-32
  ],
)
def test_parameter_counts_are_the_published_ones(widths, group_size, classes, g, d):
  size = 4 * 2 ** (len(widths) - 1)
  z = jax.ShapeDtypeStruct((1, 64), jnp.float32)
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32) if classes else None
  shared = {"widths": widths, "group_size": group_size, "classes": classes}
  assert count(r3gan.R3Generator((size, size), 3, **shared), z, label) == g
  assert count(r3gan.R3Discriminator(**shared), x, label) == d


def xla_grouped(x, kernel):
  groups = x.shape[-1] // kernel.shape[2]
  return lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=groups
  )


def test_grouped_convolution_is_xlas_with_first_and_second_derivatives():
  x, kernel = normal(0, 2, 4, 6, 12), normal(1, 3, 3, 4, 24) / 6

  def all_orders(conv):
    logits = lambda k, x: jnp.tanh(conv(x, k)).sum((1, 2, 3))
    penalty = lambda k: gradient_penalty(lambda x: logits(k, x), x).mean()
    first = jax.grad(lambda k, x: logits(k, x).sum(), (0, 1))(kernel, x)
    return conv(x, kernel), *first, jax.grad(penalty)(kernel)

  pairs = zip(all_orders(r3gan.grouped_conv), all_orders(xla_grouped), strict=True)
  for got, want in pairs:
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_sharded_batch_is_not_gathered():
  mesh = parallel.make_mesh()
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(parallel.AXIS))
  disc = r3gan.R3Discriminator((16, 16), blocks=1, group_size=8)
  x = jax.device_put(normal(0, 8, 8, 8, 1), split)
  params = jax.device_put(disc.init(key(1), x), whole)

  def loss(params, x):
    return gradient_penalty(lambda x: disc.apply(params, x), x).mean()

  text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
  assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text


def by_xla(x, kernel_scale, **how):
  """A depthwise convolution with [1 3 3 1] x [1 3 3 1]."""
  k = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) * kernel_scale
  k = jnp.tile(jnp.float32(k)[:, :, None, None], (1, 1, 1, x.shape[-1]))
  groups = x.shape[-1]
  return lax.conv_general_dilated(
    x, k, dimension_numbers=NHWC, feature_group_count=groups, **how
  )


def test_resampling_is_the_strided_and_the_dilated_convolution():
  x = normal(0, 2, 6, 8, 3)
  down = by_xla(x, 1 / 64, window_strides=(2, 2), padding=[(1, 1)] * 2)
  np.testing.assert_allclose(r3gan.downsample(x), down, atol=1e-6)
  up = by_xla(
    x, 1 / 16, window_strides=(1, 1), padding=[(2, 2)] * 2, lhs_dilation=(2, 2)
  )
  np.testing.assert_allclose(r3gan.upsample(x), up, atol=1e-6)


def test_upsampling_is_bilinear_inside_and_the_transpose_of_downsampling():
  x = normal(0, 1, 4, 4, 2)
  bilinear = jax.image.resize(x, (1, 8, 8, 2), "bilinear")
  up = r3gan.upsample(x)
  np.testing.assert_allclose(up[:, 1:-1, 1:-1], bilinear[:, 1:-1, 1:-1], atol=1e-6)
  transposed = jax.linear_transpose(r3gan.downsample, up)(x)[0]
  np.testing.assert_allclose(up, 4 * transposed, atol=1e-6)


def test_a_block_starts_as_the_identity_with_the_stated_scales():
  block, x = r3gan.Block(total=8, group_size=16), normal(0, 1, 4, 4, 64)
  params = block.init(key(1), x)["params"]
  np.testing.assert_array_equal(block.apply({"params": params}, x), x)
  gain = np.sqrt(2 / 1.04) * 8**-0.25
  assert gain == pytest.approx(0.8246, abs=1e-4)
  np.testing.assert_allclose(
    params["Linear_0"]["kernel"].std(), gain / 8, rtol=0.05
  )  # fan-in 64
  np.testing.assert_allclose(params["grouped"].std(), gain / 12, rtol=0.05)  # 9 * 16
  assert not params["bias_1"].any() and not params["Linear_1"]["kernel"].any()


def test_other_scales_are_the_stated_ones():
  z, x, label = normal(0, 2, 64), normal(1, 2, 8, 8, 3), jnp.array([0, 9])
  shared = {"widths": (256, 256), "blocks": 0, "classes": 10}
  g = r3gan.R3Generator((8, 8), 3, **shared).init(key(2), z, label)["params"]
  d = r3gan.R3Discriminator(**shared).init(key(3), x, label)["params"]
  stds = [
    (g["basis"].std(), 1.0),
    (g["embed"]["kernel"].std(), 10**-0.5),
    (g["modulate"]["kernel"].std(), 128**-0.5),
    (g["pixels"]["kernel"].std(), 256**-0.5),
    (d["pixels"]["kernel"].std(), 3**-0.5),
    (d["basis"].std(), 1 / 4),
    (d["logit"]["kernel"].std(), 256**-0.5),
    (d["embed"]["kernel"].std(), 2560**-0.5),
  ]
  for got, want in stds:
    assert float(got) == pytest.approx(want, rel=0.1)


def awake(params):
  """Parameters with noise, so that zeros at the start hide nothing."""
  leaves, tree = jax.tree.flatten(params)
  noisy = [x + 0.1 * normal(i, *x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize(
  "condition",
  [None, jnp.array([0, 1, 2]), normal(7, 3, 5)],
  ids=["", "class", "vector"],
)
def test_examples_are_independent_and_conditions_matter(condition):
  shared = {"widths": (24, 16), "blocks": 1, "group_size": 8, "classes": 3}
  gen = r3gan.R3Generator((8, 12), 2, **shared)
  disc = r3gan.R3Discriminator(**shared)
  z = normal(0, 3, 4)
  g = awake(gen.init(key(1), z, condition))
  x = gen.apply(g, z, condition)
  d = awake(disc.init(key(2), x, condition))
  y = disc.apply(d, x, condition)
  assert x.shape == (3, 8, 12, 2) and y.shape == (3,)
  one = None if condition is None else condition[1:2]
  np.testing.assert_allclose(gen.apply(g, z[1:2], one)[0], x[1], atol=1e-5)
  np.testing.assert_allclose(disc.apply(d, x[1:2], one)[0], y[1], atol=1e-4)
  if condition is not None:
    other = condition[::-1]
    assert not np.allclose(gen.apply(g, z, other)[0], x[0])
    assert not np.allclose(disc.apply(d, x, other)[0], y[0])


def test_patches_are_positions_of_the_finest_stage():
  gen = r3gan.R3Generator((16, 24), 1, (16, 16), 1, 8, patch=4)
  disc = r3gan.R3Discriminator((16, 16), 1, 8, patch=4)
  z = normal(0, 2, 4)
  g = gen.init(key(1), z)
  x = gen.apply(g, z)
  assert x.shape == (2, 16, 24, 1)
  assert g["params"]["basis"].shape == (2, 3, 16)
  assert disc.init(key(2), x)["params"]["pixels"]["kernel"].shape == (16, 16)
  # The first output of each position is the upper left pixel of its patch.
  rest = jax.tree.map(lambda p: p, g)
  rest["params"]["pixels"]["kernel"] *= jnp.arange(16) == 0
  y = gen.apply(rest, z)
  np.testing.assert_allclose(y[:, ::4, ::4], x[:, ::4, ::4], atol=1e-6)
  assert jnp.abs(y).sum() == pytest.approx(jnp.abs(y[:, ::4, ::4]).sum())


def test_bfloat16_is_near_and_only_at_the_finest_stages():
  gen = r3gan.R3Generator((32, 32), 1, (16,) * 4, 1, 8)
  z = normal(0, 2, 8)
  params = awake(gen.init(key(1), z))
  half = gen.clone(dtype=jnp.bfloat16)
  exact, near = gen.apply(params, z), half.apply(params, z)
  assert near.dtype == jnp.float32
  np.testing.assert_allclose(near, exact, atol=0.05 * np.abs(exact).max())
  program = str(jax.make_jaxpr(half.apply)(params, z))
  assert "f32[2,4,4,16]" in program and "bf16[2,8,8,16]" in program
  assert "bf16[2,4,4,32]" not in program  # the inner width of the coarsest blocks


def test_a_generator_is_a_vaes_decoder():
  shape = {"widths": (16,), "blocks": 1, "group_size": 8, "patch": 2}
  gen, z = r3gan.R3Generator((8, 8), 3, **shape), normal(0, 2, 4)
  params = awake(gen.init(key(1), z))["params"]
  one, scale = {"image": image(8, 8, 3)}, {"image": 1.0}
  vae = MultimodalVAE(one, 4, {"image": 8}, 8, 1, scale, r3=shape)
  whole = init_params(vae, key(2), {"image": jnp.zeros((1, 8, 8, 3))})
  whole["decoders_image"] = {"R3Generator_0": params}
  made = vae.apply({"params": whole}, z, method="decode")["image"]
  np.testing.assert_allclose(made[..., 0], gen.apply({"params": params}, z), atol=1e-6)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="multiples of 8"):
    r3gan.R3Generator((28, 28), 1).init(key(0), jnp.ones((1, 4)))
  with pytest.raises(ValueError, match="classes >= 1"):
    r3gan.R3Generator((8, 8), 1, (16, 16)).init(
      key(0), jnp.ones((1, 4)), jnp.zeros(1, jnp.int32)
    )
  with pytest.raises(ValueError, match="group_size 16"):
    r3gan.R3Generator((8, 8), 1, (12, 12)).init(key(0), jnp.ones((1, 4)))
