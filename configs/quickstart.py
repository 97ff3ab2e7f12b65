"""Fusion of image, caption and sound on generated sprites: the README's first command.

A multimodal VAE whose image decoder is also a generator under a discriminator, on
captioned, sounding sprites (level 3: shape, size, colour; 32 px).

  python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Of your own files, listed in a CSV or JSONL file (see `mmgen_jax/data/folder.py`):

  python launch.py --config=configs/quickstart.py:folder=DIR --workdir=runs/mine
"""

from configs import common
from mmgen_jax import data as datasets


def get_config(arg=None):
  words = [word for word in (arg or "").split(",") if word]
  folders = [word for word in words if word.startswith("folder=")]
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
  if folders:
    of_folder(config, folders[-1].removeprefix("folder="))
  rest = ",".join(word for word in words if word not in folders)
  return common.variant(config, rest, smoke=common.smoke)


def of_folder(config, path):
  """The same networks, of what a listing names; a discriminator of images, if any."""
  config.data.name = "folder"
  with config.data.unlocked():
    config.data.options = {"folder": path}
  found = datasets.spec("folder", **config.data.options).modalities
  if "image" not in found:
    config.loss.adversarial = ()
