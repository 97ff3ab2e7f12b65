"""Fusion of image, caption and sound on generated sprites: the README's first command.

A multimodal VAE whose image decoder is also a generator under a discriminator, on
captioned, sounding sprites (level 3: shape, size, colour; 32 px).

  python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Of your own files (see `docs/own_data.md`), and by a posterior of the literature in place
of ours (`:mvae`, `:mmvae`, `:mopoe`, `:mmjsd`, `:mvtcae`, `:mmvae_plus`, `:jmvae`):

  python launch.py --config=configs/quickstart.py:folder=DIR --workdir=runs/mine
  python launch.py --config=configs/quickstart.py:folder=DIR,mopoe --workdir=runs/mopoe

All of them, three seeds each, on one page:

  python launch.py --mode=compare --workers=2 --config=configs/quickstart.py:folder=DIR \
    --workdir=runs/posteriors
"""

from configs import common
from mmgen_jax import data as datasets


def get_config(arg=None):
  config = common.defaults("fusion")
  config.batch_size = 16
  config.train_steps = 2000
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = 500
  config.data.options = {"level": 3, "size": 32, "train_examples": 10_000}
  config.model = common.fusion_model()
  config.model.widths.audio = 12  # these sounds are easy
  config.loss = common.fusion_loss()
  config.loss.weights = {"caption": 20.0}
  config.optim = common.optim(
    3e-3, b2=0.99, warmup_steps=20, decay="cosine", decay_steps=2000
  )
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  return common.variant(
    config,
    arg,
    ours=lambda config: None,
    **common.posteriors(),
    folder=folder,
    smoke=common.smoke,
  )


def get_sweep(arg=None):
  """Every posterior, three seeds."""
  return common.sweep_of_posteriors(__file__, arg)


def folder(config, dir):
  """The same networks, of what a listing names; a discriminator of images, if any."""
  common.of_folder(config, dir)
  found = datasets.spec("folder", **config.data.options).modalities
  if "image" not in found and "adversarial" in config.loss:
    config.loss.adversarial = ()
