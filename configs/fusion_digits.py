"""Fusion of MNIST images, spoken digits and the digit's name.

Pairs share the digit only; one of the six speakers is never heard in training.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  export MMGEN_RAW_AUDIO=...  # the Free Spoken Digit Dataset, zip or folder
  python launch.py --config=configs/fusion_digits.py --workdir=runs/digits

Variants: `:missing` hides half of all modalities in training, which leaves a quarter of
the pairs: it makes more updates, weighs the cross terms more, and decays the weights.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("fusion")
  config.batch_size = 16
  config.train_steps = 5000
  config.updates_per_dispatch = 20
  config.log_steps = 20
  config.save_steps = config.sample_steps = 1000
  config.ema_decay = 0.998
  config.data.name = "digits"
  config.augment = {
    "sound": {
      "shift": (4.0, 2.0),
      "scale": (0.15, 0.1),
      "gain": 0.15,
      "tilt": 0.15,
      "noise": 0.05,
      "erase": 4,
    }
  }
  config.model = common.fusion_model()
  config.model.latent = 24
  config.model.scales = {"image": 0.3, "audio": 0.3}
  config.loss = common.fusion_loss()
  config.loss.weights = {"word": 50.0}
  config.loss.cross = 2.0
  config.loss.adversarial_weight = 20.0
  config.loss.r1_gamma = 1.0
  config.optim = common.optim(
    3e-3, b2=0.99, warmup_steps=50, decay="cosine", decay_steps=5000
  )
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  return common.variant(config, arg, smoke=common.smoke, missing=missing)


def missing(config):
  config.data.missing_rate = 0.5
  config.train_steps = config.optim.decay_steps = 14_000
  config.save_steps = config.sample_steps = 2000
  config.loss.cross = 6.0
  config.optim.name = "adamw"
  config.optim.weight_decay = 0.05
