"""A modality added to a trained model: sound, to one of image and caption of sprites.

The trained model stays as it is, bit for bit; the new encoder and decoder learn to say
and to draw what it says (`mmgen_jax.steps.extension`).

  python launch.py --config=configs/extension_sprites.py:pair --workdir=runs/pair
  python launch.py --config=configs/extension_sprites.py --workdir=runs/extended \
    --config.initial.vae=runs/pair --config.initial.prior=runs/pair

`:pair` is the quickstart without sound. Of your own files (see `docs/own_data.md`), the
same with `:folder=DIR,pair` and `:folder=DIR`: audio is added.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg=None):
  config = quickstart.get_config()
  config.family = "extension"
  config.train_steps = 1000
  config.optim.decay_steps = 1000
  config.extend = {"modality": "sound"}
  config.initial = {"vae": "", "prior": ""}
  return common.variant(config, arg, pair=pair, folder=folder, smoke=smoke)


def pair(config):
  config.family = "fusion"
  config.train_steps = config.optim.decay_steps = 2000
  config.data.options.modalities = ("image", "caption")
  del config.extend, config.initial


def folder(config, dir):
  quickstart.folder(config, dir)
  if "extend" in config:
    config.extend.modality = "audio"


def smoke(config):
  """Of networks that nothing was taught yet."""
  common.smoke(config)
  config.initial = ConfigDict()
