"""The project's models keep their function under every permutation that is found."""

import importlib
import inspect
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from symmetries import assert_unchanged, inputs_of, random_params

from mmgen_jax import models
from mmgen_jax.fusion import permute
from mmgen_jax.fusion.feature import FUSIONS, make_fusion
from mmgen_jax.fusion.model import product_of_experts
from mmgen_jax.metrics.extractor import Classifier, Recipe
from mmgen_jax.models import baselines
from mmgen_jax.models.alignment import Aligner
from mmgen_jax.models.condition import (
  ConditionalDiscriminator,
  ConditionalGenerator,
  ConditionEncoder,
  Given,
)
from mmgen_jax.models.conv import ConvDecoder, ConvEncoder
from mmgen_jax.models.gan import Discriminator, Discriminators, Generator
from mmgen_jax.models.hvae import HierarchicalVAE, Stage
from mmgen_jax.models.latents import CouplingFlow
from mmgen_jax.models.multimodal import JointEncoder, MultimodalVAE
from mmgen_jax.models.pixelcnn import PixelCNN
from mmgen_jax.models.r3gan import R3Discriminator, R3Generator
from mmgen_jax.models.recognition import Recognizer
from mmgen_jax.models.text import TextDecoder, TextEncoder
from mmgen_jax.models.vae import MLPVAE
from mmgen_jax.models.vq import MapAutoencoder

MODALITIES = tiny_models.tiny("vae")[1]
MULTIMODAL = MultimodalVAE(
  MODALITIES,
  latent=4,
  widths={"image": 16, "audio": 16, "text": 8},
  features=8,
  blocks=1,
  scales={},
  private={"image": 2, "audio": 3},
)
IMAGE, SOUND = inputs_of((2, 8, 8, 3), (2, 8, 8))
TOKENS = np.array([[1, 2, 3], [4, 2, 0]])
LABEL = np.array([0, 2])
BATCH = {"image": IMAGE, "sound": SOUND, "word": TOKENS}
MODELS = {  # module, inputs, least number of groups, least part of parameters moved
  "encoder": (ConvEncoder(16, 6), inputs_of((2, 32, 32, 1)), 8, 0.99),
  "decoder": (ConvDecoder((32, 32), 1, 16), inputs_of((2, 3)), 9, 0.98),
  "generator": (
    Generator(MODALITIES["image"], 16, classes=3),
    [*inputs_of((2, 4)), LABEL],
    6,
    0.95,
  ),
  "discriminator": (
    Discriminator(MODALITIES["image"], 16, features=8, classes=3),
    [IMAGE, LABEL],
    3,
    0.99,
  ),
  "discriminators": (
    Discriminators(
      {k: MODALITIES[k] for k in ("image", "sound")}, {"image": 8, "audio": 8}, 8
    ),
    [{"image": IMAGE, "sound": SOUND}],
    6,
    0.99,
  ),
  "r3 generator": (
    R3Generator((8, 8), 3, (16, 8), blocks=1, group_size=4, classes=3),
    [*inputs_of((2, 4)), LABEL],
    8,
    0.9,
  ),
  "r3 discriminator": (
    R3Discriminator((16, 8), blocks=1, group_size=4, classes=3),
    [IMAGE, LABEL],
    8,
    0.9,
  ),
  "r3 discriminator without classes": (
    R3Discriminator((8, 8), blocks=1, group_size=4),
    [IMAGE],
    5,
    0.9,
  ),
  "text encoder": (TextEncoder(5, 8, 8), [TOKENS], 5, 0.98),
  "text decoder": (TextDecoder(3, 5, 8), inputs_of((2, 3)), 5, 0.98),
  "mlp vae": (
    MLPVAE({"image": MODALITIES["image"]}, 4, (12, 10)),
    [{"image": IMAGE}],
    4,
    0.96,
  ),
  "multimodal vae": (MULTIMODAL, [BATCH], 25, 0.97),
  "joint encoder": (
    JointEncoder(
      {name: MODALITIES[name] for name in ("image", "word")},
      4,
      {"image": 8, "text": 8},
      features=8,
      blocks=1,
    ),
    [BATCH],
    5,
    0.95,
  ),
  "coupling flow": (CouplingFlow(4, layers=1, hidden=6), inputs_of((2, 4)), 2, 0.9),
  "dcgan generator": (
    baselines.DCGenerator((8, 8), 3, 8, classes=3),
    [*inputs_of((2, 4)), LABEL],
    1,
    0.9,
  ),
  "resnet generator": (
    baselines.ResGenerator((8, 8), 3, 8),
    inputs_of((2, 4)),
    2,
    0.9,
  ),
  "dcgan discriminator": (
    baselines.DCDiscriminator(8, classes=3),
    [IMAGE, LABEL],
    1,
    0.9,
  ),
  "resnet discriminator": (
    baselines.ResDiscriminator(8, classes=3),
    [IMAGE, LABEL],
    2,
    0.9,
  ),
  "judge": (Classifier((("digit", 3),), Recipe(width=16)), [IMAGE], 3, 0.9),
}
FEATURES, PRESENT = inputs_of((3, 2, 8))[0], np.array([[1, 0], [1, 1], [1, 1]], bool)
MODELS |= {
  f"{name} fusion": (make_fusion(name), [FEATURES, PRESENT], 0, 0.0)
  for name in FUSIONS
  if name != "mean"  # it has no parameters
}
CONDITION = ConditionEncoder(
  {name: MODALITIES[name] for name in ("sound", "word")}, {"audio": 8, "text": 8}, 8
)
GIVEN = Given(
  LABEL,
  {"sound": SOUND, "word": TOKENS},
  {"sound": np.array([True, False]), "word": np.array([True, True])},
)
MODELS |= {
  "conditional generator": (
    ConditionalGenerator(Generator(MODALITIES["image"], 16), CONDITION, 3),
    [*inputs_of((2, 4)), GIVEN],
    6,
    0.9,
  ),
  "conditional discriminator": (
    ConditionalDiscriminator(
      Discriminator(MODALITIES["image"], 16, features=8), CONDITION, 3, contrast=4
    ),
    [IMAGE, GIVEN],
    6,
    0.9,
  ),
}
WIDTHS = {"image": 16, "audio": 16, "text": 8}
HIERARCHY = HierarchicalVAE(
  {"image": MODALITIES["image"]}, (Stage(1, 1, 2, 8, 4), Stage(2, 2, 2, 8, 4)), 4
)
MODELS |= {
  "recognizer": (
    Recognizer(MODALITIES, {"digit": 3}, WIDTHS, 8, "gated", own_heads=True),
    [BATCH, np.array([[1, 0], [1, 1], [1, 1]], bool)],
    6,
    0.9,
  ),
  "aligner": (Aligner(MODALITIES, 4, WIDTHS, 8, "siglip"), [BATCH], 6, 0.9),
  "hierarchy": (
    HIERARCHY,
    [{"image": IMAGE}, *inputs_of((2, HIERARCHY.size))],
    2,
    0.5,
  ),
  "map autoencoder": (
    MapAutoencoder(MODALITIES["image"], 4, 16, blocks=1),
    [IMAGE],
    2,
    0.9,
  ),
  "pixelcnn": (
    PixelCNN((3, 3, 1), 4, 8, 2, 1, 3),
    [np.arange(18).reshape(2, 3, 3, 1) % 4],
    1,
    0.3,
  ),
}


def two_halves(module):
  """What a VAE is used for: encoding and decoding, latents in their order."""

  def fn(params, batch):
    z = jnp.linspace(-1.0, 1.0, 2 * module.size).reshape(2, -1)
    return (
      module.apply(params, batch, method="encode"),
      module.apply(params, z, method="decode"),
    )

  return fn


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_unchanged_under_its_permutations(name):
  module, inputs, groups, part = MODELS[name]
  params = random_params(module, *inputs)
  fn = two_halves(module) if "vae" in name else module.apply
  symmetry = assert_unchanged(fn, params, *inputs)
  found = len(symmetry.groups), permute.permutable_fraction(symmetry, params)
  assert found[0] >= groups and found[1] >= part, (found, permute.describe(symmetry))


def test_no_model_of_the_project_is_left_out():
  """What a module is made of is covered with it."""
  seen = set()

  def note(call, args, kwargs, context):
    seen.add(type(context.module))
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    for module, inputs, *_ in MODELS.values():
      jax.eval_shape(lambda m=module, x=inputs: m.init(jax.random.key(0), *x))
  pretrained = {"efficientnet", "inception"}  # read from files, never merged
  names = {m.name for m in pkgutil.iter_modules(models.__path__)} - pretrained
  files = [f"models.{name}" for name in sorted(names)]
  files += ["fusion.attention", "fusion.feature", "metrics.extractor"]
  found = [importlib.import_module(f"mmgen_jax.{name}") for name in files]
  ours = {
    x
    for module in found
    for x in vars(module).values()
    if inspect.isclass(x)
    and issubclass(x, nn.Module)
    and x.__module__ == module.__name__
  }
  assert {x.__name__ for x in ours - seen} <= {"MeanFusion"}


def reconstruct(params, batch):
  means, logvars = MULTIMODAL.apply(params, batch, method="encode")
  z, _ = product_of_experts(means, logvars, jnp.ones(means.shape[:2], bool))
  return MULTIMODAL.apply(params, z, method="decode")


def test_latents_that_stay_inside_are_units_too():
  params = random_params(MULTIMODAL, BATCH)
  outside = permute.find_symmetry(two_halves(MULTIMODAL), params, BATCH)
  inside = assert_unchanged(reconstruct, params, BATCH, seeds=1)
  sizes = [sorted(s.groups.values()) for s in (inside, outside)]
  # The shared four, and those private to image and sound.
  assert sizes[0] == sorted([*sizes[1], 4, 2, 3]), permute.describe(inside)
