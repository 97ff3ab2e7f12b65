"""A top-down hierarchical VAE of MNIST, binarised at every use, small enough for a CPU.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on
Images", 2021, https://arxiv.org/abs/2011.10650: groups of latents on maps of 1 x 1, 4 x
4 and 7 x 7, where a position of the finest stands for 4 x 4 pixels.

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/hvae_mnist.py --workdir=runs/hvae
  python benchmarks/vae_nll.py --workdir=runs/hvae --samples=64 --chunk=8 --batch=50

Expected: NLL 79.9, by Muon, in 78 minutes on one CPU core.

Variants: `:grey` for 256 grey values under a mixture of ten discretised logistics, with
bits per dimension; `:free_bits`.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("hvae")
  config.batch_size = 200
  config.updates_per_dispatch = config.log_steps = 50
  config.ema_decay = 0.998
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 28}
  config.model = {
    "modality": "image",
    "likelihood": "bernoulli",
    "stages": (  # side, groups, latent, width, inner; coarsest first
      (1, 4, 16, 128, 128),
      (4, 3, 4, 96, 48),
      (7, 3, 4, 64, 48),
    ),
    "patch": 4,
    "mean": 0.1307,  # of MNIST's pixels
    "scales": {},
  }
  config.loss = {
    "binarise": True,
    "free_nats": 0.0,  # per group
    "warmup_steps": 500,  # of the KL's weight
    "skip_norm": 1000.0,  # updates with a larger gradient are left out; 0: none is
  }
  config.train_steps = 11_500
  config.save_steps = 1000
  config.sample_steps = config.train_steps // 2
  config.optim = common.optim(
    5e-3,
    name="muon",
    b2=0.99,
    weight_decay=0.01,
    clip_norm=200.0,
    warmup_steps=100,
    decay="cosine",
    decay_steps=config.train_steps,
    end_factor=0.01,
  )
  return common.variant(config, arg, smoke=smoke, grey=grey, free_bits=free_bits)


def grey(config):
  config.model.likelihood = "logistic_mixture"
  config.loss.binarise = False


def free_bits(config):
  config.loss.free_nats = 0.5


def smoke(config):
  common.smoke(config)
  config.model.stages = ((1, 1, 4, 16, 8), (7, 1, 2, 16, 8))
