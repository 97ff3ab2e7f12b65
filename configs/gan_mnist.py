"""GANs of MNIST at 32 px: R3GAN's loss, small enough for a CPU, and what came before.

Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", 2024,
https://arxiv.org/abs/2501.05441: relativistic loss, R1 and R2 at every update.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/gan_mnist.py --workdir=runs/gan_mnist
  python benchmarks/gan_mnist.py --workdir=runs/gan_mnist

Variants: `:conditional` (by digit); `:dcgan` (DCGAN with spectral normalisation and the
hinge loss; as many updates as take about the same time on a CPU; without it:
`--config.model.spectral_norm=false`); `:resnet` (SNGAN's
networks, same loss; slow on a CPU); `:r3gan` (R3GAN's networks, small); `:limited` (the
first 1,000 images only, 20,000 updates) and `:limited_ada` (the same, with the
augmentation of Karras et al., 2020, https://arxiv.org/abs/2006.06676, less its colours);
`:published` (the paper's networks, batch and schedules for StackedMNIST, 10 million
images: for accelerators).

Differences of the small one: residual convolutions on patches of 4 x 4 pixels, a
generator with group normalisation and tanh, a larger rate, a short burn-in. R3GAN's own
networks take five times as long for an update on a CPU and learn less by it.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("gan")
  config.batch_size = 32
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 32}
  config.model = {
    "modality": "image",
    "label": "label",
    "classes": 0,  # 0: unconditional; else the number of classes of `label`
    "latent": 64,
    "projection": True,  # whether D's logits see the condition
    **common.conv_networks(32),
  }
  # R2 has the weight of R1: gamma / 2.
  config.loss = common.gan_loss(r2=True)
  config.optim = common.optim(1e-3, b1=0.0)
  config.disc_optim = common.optim(1e-3, b1=0.0)
  common.burn_in(  # (start, end), half a cosine in between
    config,
    images=30_000,
    learning_rate=(1e-3, 5e-4),
    b2=(0.9, 0.99),
    gamma=(1.0, 0.1),
    half_life_images=(0.0, 2000.0),
  )
  config.train_steps, config.save_steps, config.sample_steps = 6000, 2000, 2000
  return common.variant(
    config,
    arg,
    conditional=conditional,
    dcgan=dcgan,
    resnet=resnet,
    r3gan=r3gan,
    limited=limited,
    limited_ada=limited_ada,
    published=published,
    smoke=smoke,
  )


def conditional(config):
  config.model.classes = 10


def dcgan(config):
  """Published rates of DCGAN: Adam at 2e-4 with b1 = 0.5."""
  networks = {"net": "dcgan", "spectral_norm": True}  # of the discriminator
  common.set_networks(config, common.conv_networks(32) | networks)
  config.train_steps = config.save_steps = config.sample_steps = 1000
  config.loss.update(gan="hinge", r1_gamma=0.0, r2=False)
  config.ema_decay = 0.99
  if "burn_in" in config:
    with config.unlocked():
      del config.burn_in
  config.optim = common.optim(2e-4, b1=0.5)
  config.disc_optim = common.optim(2e-4, b1=0.5)


def resnet(config):
  dcgan(config)
  config.model.net = "resnet"


def r3gan(config):
  common.set_networks(config, common.r3gan_networks(128, 96, blocks=1, patch=4))


def limited(config):
  config.data.first = 1000
  config.train_steps, config.save_steps, config.sample_steps = 20_000, 4000, 4000


def limited_ada(config):
  limited(config)
  config.disc_augment = {
    "kind": "ada",
    "ops": {"blit": 1.0, "geometry": 1.0, "cutout": 1.0},
    "strength": (0.0, 0.4),  # over so many images, half a cosine
    "images": 30_000,
    "target": 0.0,  # above 0: adaptive, from where `strength` starts
    "supersampling": 1,  # 2 as published costs more than the networks, on a CPU
  }


def published(config):
  if "burn_in" not in config:
    raise ValueError("published is R3GAN's: it does not go with dcgan or resnet")
  config.batch_size = 512
  config.updates_per_dispatch = 1
  config.train_steps = 10_000_000 // config.batch_size
  config.save_steps = config.sample_steps = 1000
  config.bfloat16 = True
  common.set_networks(config, common.r3gan_networks(*(768,) * 4, blocks=2))
  common.burn_in(
    config,
    images=2_000_000,
    learning_rate=(2e-4, 2e-4),
    half_life_images=(0.0, 500_000.0),
  )


def smoke(config):
  common.smoke(config)
