"""PixelCNN of MNIST, binarised at every use: exact likelihood, sampled pixel by pixel.

Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016,
https://arxiv.org/abs/1606.05328.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/pixelcnn_mnist.py --workdir=runs/pixelcnn

Variants: `:grey` (256 values), `:conditional` (by digit); `:codes`, a prior over the
codes of a trained configs/vq_mnist.py, `:codes_fsq` of its `:fsq`:

  python launch.py --config=configs/pixelcnn_mnist.py:codes --workdir=runs/vq_prior \
      --config.initial.vae=runs/vq --config.initial.codebook=runs/vq
"""

from configs import common, vq_mnist


def get_config(arg=None):
  config = common.defaults("autoregressive")
  config.batch_size = 32
  config.updates_per_dispatch = config.log_steps = 20
  config.ema_decay = 0.999
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 28}
  config.model = {
    "modality": "image",
    "source": "pixels",
    "grey_levels": 2,
    "width": 32,
    "layers": 6,
    "reach": 3,
    "embedded": 8,
    "label": "label",
    "classes": 0,  # 0: unconditional; else the number of classes of `label`
  }
  config.loss = {"binarise": True}
  config.optim = common.optim(2e-3, b2=0.99, clip_norm=1.0, warmup_steps=50)
  train_for(config, 5000)
  return common.variant(
    config,
    arg,
    grey=grey,
    conditional=conditional,
    codes=codes,
    codes_fsq=codes_fsq,
    smoke=smoke,
  )


def train_for(config, steps):
  config.train_steps = steps
  config.save_steps = config.sample_steps = steps // 5
  config.optim.decay, config.optim.decay_steps = "cosine", steps


def grey(config):
  config.loss.binarise = False
  config.model.update(grey_levels=256, embedded=16)


def conditional(config):
  config.model.classes = 10


def codes(config, coder=""):
  config.coder = vq_mnist.get_config(coder)
  config.data.options.size = config.coder.data.options.size
  config.loss.binarise = False
  config.model.update(source="codes", width=64, embedded=32)
  config.initial = {"vae": "", "codebook": ""}
  config.batch_size = 64
  config.optim.update(name="muon", learning_rate=4e-3)
  train_for(config, 3000)


def codes_fsq(config):
  codes(config, "fsq")
  config.initial = {"vae": ""}


def smoke(config):
  common.smoke(config)
  config.model.update(width=8, layers=2)
