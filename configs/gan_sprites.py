"""A GAN of sprite images (level 3, 32 px): non-saturating loss with R1.

The small baseline: residual convolutions, no class label.

  python launch.py --config=configs/gan_sprites.py --workdir=runs/gan_sprites
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("gan")
  config.batch_size = 64
  config.train_steps = 2000
  config.save_steps = config.sample_steps = 500
  config.data.options = {"level": 3, "size": 32, "train_examples": 10_000}
  config.model = {
    "modality": "image",
    "label": "shape",
    "classes": 0,  # 0: unconditional; else the number of classes of `label`
    "latent": 32,
    "widths": {"image": 32, "audio": 24},
    "disc_widths": {"image": 32, "audio": 24},
    "features": 128,
    "blocks": 1,
  }
  config.loss = {"gan": "non_saturating", "r1_gamma": 1.0, "r1_fraction": 1}
  config.optim = common.optim(5e-4, b1=0.0, b2=0.99)
  config.disc_optim = common.optim(5e-4, b1=0.0, b2=0.99)
  return common.variant(config, arg, smoke=common.smoke, hinge=hinge)


def hinge(config):
  config.loss.gan = "hinge"
