"""StackedMNIST: 1000 modes, counted; R3GAN and the ablation of its loss.

Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", 2024, tables 1
and 3, https://arxiv.org/abs/2501.05441.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/gan_stacked_mnist.py --workdir=runs/stacked
  python benchmarks/stacked_mnist.py --folder=runs/stacked_mnist --base=gpu

Expected, by the paper, with `:published` (10 million images, 8 L40 for 7 hours): 1000
modes, KL 0.029. Of its ablation, by a smaller network: relativistic, R1 and R2: 1000
modes, KL 0.078; `:nonsaturating`: 693, 0.927; `:r1` and `:nonsaturating,r1` diverge. A
perfect sampler has a KL of 0.019 at 26,000 samples and of 0.0019 at 260,000.

Variants: of the loss, `:nonsaturating` (not relativistic) and `:r1` (without R2); of the
size, `:gpu` (width 192, one accelerator, 5 million images) and `:published`. The default
is for a CPU: residual convolutions as in gan_mnist.py, and 288,000 images; `:r3gan` has
R3GAN's networks at that size.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("gan")
  config.batch_size = 32
  config.data.name = "stacked_mnist"
  config.data.options = {"size": 32}
  config.model = {
    "modality": "image",
    "label": "red",
    "classes": 0,  # 0: unconditional; else the number of classes of `label`
    "latent": 64,
    "projection": True,  # whether D's logits see the condition
    **common.conv_networks(64),
  }
  # R2 has the weight of R1: gamma / 2.
  config.loss = common.gan_loss(r2=True)
  config.optim = common.optim(1e-3, b1=0.0)
  config.disc_optim = common.optim(1e-3, b1=0.0)
  common.burn_in(  # (start, end), half a cosine in between
    config,
    images=60_000,
    learning_rate=(1e-3, 5e-4),
    b2=(0.9, 0.99),
    gamma=(1.0, 0.1),
    half_life_images=(0.0, 5000.0),
  )
  config.train_steps, config.save_steps, config.sample_steps = 9000, 1000, 3000
  config.eval.num_examples = 26_000
  return common.variant(
    config,
    arg,
    nonsaturating=nonsaturating,
    r1=r1,
    r3gan=r3gan,
    gpu=gpu,
    published=published,
    smoke=smoke,
  )


def nonsaturating(config):
  config.loss.gan = "non_saturating"


def r1(config):
  config.loss.r2 = False


def r3gan(config):
  common.set_networks(config, common.r3gan_networks(128, 96, blocks=1, patch=4))


def _full(config, *, width: int, batch_size: int, images: int, burn_in: int):
  """The paper's networks and schedules, at a width and for a number of images."""
  config.batch_size = batch_size
  config.train_steps = images // batch_size
  config.save_steps = config.sample_steps = 1000
  config.updates_per_dispatch = 1
  config.bfloat16 = True
  common.set_networks(config, common.r3gan_networks(*(width,) * 4, blocks=2))
  common.burn_in(
    config,
    images=burn_in,
    learning_rate=(2e-4, 2e-4),
    half_life_images=(0.0, burn_in / 4),
  )


def gpu(config):
  _full(config, width=192, batch_size=256, images=5_000_000, burn_in=1_000_000)


def published(config):
  _full(config, width=768, batch_size=512, images=10_000_000, burn_in=2_000_000)


def smoke(config):
  common.smoke(config)
  config.data.options.update(
    train_examples=200, validation_examples=20, test_examples=20
  )
