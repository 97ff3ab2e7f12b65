"""A VAE-GAN of MNIST at 32 px, and its VAE: the fusion step with one modality.

Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", 2016,
https://arxiv.org/abs/1512.09300: the decoder is a generator under a discriminator. Here
the reconstruction error stays in pixels, and the prior is a learned mixture.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/vaegan_mnist.py --workdir=runs/vaegan
  python launch.py --config=configs/vaegan_mnist.py:vae --workdir=runs/vaegan_vae

Variants: `:vae`, the same encoder, decoder and prior with no discriminator; it makes
more updates, for about the same time. `:standard`, where the prior is N(0, I) and the
discriminator has only samples of it to judge, beside reconstructions; `:standard,vae`.
`:continued` from a VAE trained before. Expected of `:standard`, after 6 minutes on a CPU
core: Frechet distance 5 to 6 and an error of .0145, its VAE's 27 to 30 and .0133.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("fusion")
  config.batch_size = 32
  config.ema_decay = 0.998
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 32}
  config.model = common.fusion_model()
  config.model.latent = 24
  config.model.scales = {"image": 0.3, "audio": 0.3}
  config.loss = common.fusion_loss()
  config.loss.update(adversarial_weight=20.0, r1_gamma=1.0, cross=0.0)
  config.loss.adversarial_fraction = 4
  config.optim = common.optim(4e-3, name="muon", b2=0.99, warmup_steps=50)
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  train_for(config, 5000)
  variants = {"standard": standard, "vae": vae, "continued": common.continued}
  return common.variant(config, arg, **variants, smoke=smoke)


def train_for(config, steps):
  config.train_steps = steps = 100 * max(steps // 100, 1)
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = steps // 5
  config.optim.decay, config.optim.decay_steps = "cosine", steps


def standard(config):
  config.model.prior_components = 1
  config.loss.update(real="reconstructions", prior_share=1.0)
  config.loss.update(adversarial_weight=30.0, r1_gamma=0.1)
  config.disc_optim.learning_rate = 2e-3
  train_for(config, config.train_steps * 12 // 5)


def vae(config):
  config.loss.adversarial = ()
  train_for(config, config.train_steps * 6 // 5)  # in about the same time


def smoke(config):
  common.smoke(config)
  config.loss.adversarial_fraction = 1  # of eight, a quarter would be too few for R1
