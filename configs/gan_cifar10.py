"""CIFAR-10 by class, R3GAN with its augmentation, for one accelerator.

Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", 2024,
https://arxiv.org/abs/2501.05441. Published: FID 1.96 after 250 million images on 8 GPUs,
4 days; that is `:published`.

  export MMGEN_DATA_DIR=...   # holds CIFAR-10, prepared by TFDS (see the README)
  python launch.py --config=configs/gan_cifar10.py --workdir=runs/gan_cifar10

The default is a third of the width, one block per stage and 5 million images; it trains
on the first 45,000 images and is evaluated on 3,000 of the test split. Variants:
`:unconditional`; `:folder=DIR`, images of your own (see `docs/own_data.md`), without
classes unless `--config.model.label=COLUMN --config.model.classes=N` names some; `:cpu`,
the networks and schedules of gan_mnist.py, twice as wide, and no augmentation, for a
quarter of an hour; `:smoke` trains on generated sprites, so that it needs no data.

`:published` trains on all 50,000 training images, and scores 50,000 samples, of their
labels, against them. Its distances are in the features of the classifier that the project
trains, which no published FID is in: for one, give Inception's weights,
`--config.eval.extractor=inception:PATH`. Not as published: real images are not mirrored
besides; a real image and its sample share an augmentation, and one batch serves both
networks.
"""

from configs import common, gan_mnist


def get_config(arg=None):
  config = common.defaults("gan")
  config.batch_size = 256
  config.updates_per_dispatch = 10
  config.train_steps = 20_000
  config.save_steps = config.sample_steps = 2000
  config.log_steps = 100
  config.bfloat16 = True
  config.data.name = "images"
  config.data.options = {"tfds": "cifar10", "size": 32}
  config.model = {
    "modality": "image",
    "label": "label",
    "classes": 10,
    "latent": 64,
    "projection": True,  # whether D's logits see the condition
    **common.r3gan_networks(*(256,) * 4, blocks=1),
  }
  config.loss = common.gan_loss(r2=True)
  config.optim = common.optim(2e-4, b1=0.0)
  config.disc_optim = common.optim(2e-4, b1=0.0)
  common.burn_in(  # (start, end), half a cosine in between
    config,
    images=1_000_000,
    learning_rate=(2e-4, 5e-5),
    b2=(0.9, 0.99),
    gamma=(0.05, 0.005),
    half_life_images=(0.0, 250_000.0),
  )
  config.disc_augment = {
    "kind": "ada",
    "ops": {"blit": 1.0, "geometry": 1.0, "colour": 0.5, "cutout": 1.0},
    "strength": (0.0, 0.55),
    "images": 1_000_000,
    "target": 0.0,  # above 0: adaptive, from where `strength` starts
  }
  return common.variant(
    config,
    arg,
    unconditional=unconditional,
    folder=folder,
    cpu=cpu,
    published=published,
    smoke=smoke,
  )


def unconditional(config):
  config.model.classes = 0


def folder(config, dir):
  common.of_folder(config, dir, size=32)
  config.model.update(label="", classes=0)


def cpu(config):
  small = gan_mnist.get_config()
  common.set_networks(config, common.conv_networks(64))
  for field in ("batch_size", "loss", "optim", "disc_optim", "ema_decay", "burn_in"):
    config[field] = small[field]
  config.train_steps, config.bfloat16 = 10_000, False
  if "disc_augment" in config:
    with config.unlocked():
      del config.disc_augment


def published(config):
  if "disc_augment" not in config:
    raise ValueError("published is for accelerators: it does not go with cpu")
  config.batch_size = 512
  config.train_steps = 488_280
  config.save_steps = config.sample_steps = 10_000
  common.set_networks(config, common.r3gan_networks(*(768,) * 4, blocks=2))
  common.burn_in(config, images=20_000_000, half_life_images=(0.0, 5_000_000.0))
  config.disc_augment.images = 20_000_000
  if config.data.name == "images":
    config.data.options.validation = "test"  # all of "train" is trained on
  config.eval.update(split="train", num_examples=50_000)


def smoke(config):
  common.smoke(config)
  config.bfloat16 = False
  if config.data.name != "folder":
    config.data.name = "sprites"
    with config.data.unlocked():
      config.data.options = {"level": 3, "size": 32}
    config.model.update(label="colour", classes=5 if config.model.classes else 0)
  if config.model.net == "r3gan":
    config.model.update(group_size=4, patch=8)
  for widths in (config.model.widths, config.model.disc_widths):
    with widths.ignore_type():
      widths.image = (8,) if config.model.net == "r3gan" else 8
  if "disc_augment" in config:
    config.disc_augment.supersampling = 1
