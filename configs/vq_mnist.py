"""VQ-VAE of MNIST at 32 px: 8 x 8 codes, each of 4 x 4 pixels; or FSQ, or a VQGAN.

Van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017,
https://arxiv.org/abs/1711.00937; code book by moving averages, dead codes revived.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/vq_mnist.py --workdir=runs/vq
  python launch.py --config=configs/pixelcnn_mnist.py:codes --workdir=runs/vq_prior \
      --config.initial.vae=runs/vq --config.initial.codebook=runs/vq

The second is a prior over the codes, which samples and gives bits per code.

Variants: `:fsq` (Mentzer et al., 2023, https://arxiv.org/abs/2309.15505; levels 8, 5,
5); `:vqgan` (Esser et al., 2021, https://arxiv.org/abs/2012.09841: a discriminator that
learns from the start and pulls from half of the run on). A perceptual loss beside any:
`--config.loss.perceptual_weight=100`, with the extra `efficientnet`.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("vq")
  config.batch_size = 32
  config.train_steps = 3000
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = 1000
  config.ema_decay = 0.998
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 32}
  config.model = {
    "modality": "image",
    "widths": {"image": 64},
    "blocks": 2,
    "patch": 4,
    "codes": 128,
    "code_size": 16,
    "levels": (),  # FSQ, if there are any
    "scales": {"image": 0.15},
    "disc_widths": {"image": 24},
    "features": 128,
  }
  config.loss = {
    "commitment": 10.0,
    "codebook_decay": 0.99,
    "dead_below": 0.05,  # of the mean share of a code
    "gan_weight": 0.0,
    "perceptual": "efficientnet_lite0",  # whose features tell images apart
    "perceptual_weight": 0.0,  # of that distance, in nats
  }
  config.optim = common.optim(
    2e-3, b2=0.99, warmup_steps=50, decay="cosine", decay_steps=3000
  )
  return common.variant(config, arg, smoke=common.smoke, fsq=fsq, vqgan=vqgan)


def fsq(config):
  config.model.levels = (8, 5, 5)


def vqgan(config):
  config.loss.update(
    gan_weight=0.8,
    start_share=0.5,  # of the updates, before the discriminator pulls
    gan="hinge",
    r1_gamma=1.0,
    r1_fraction=4,
  )
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
