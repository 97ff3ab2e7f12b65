"""Which digit is it? A degraded image, a noisy voice never heard, and their fusion.

MNIST images of half the contrast, a fifth hidden, with noise; spoken digits in noise.
One of the six speakers is never heard in training. Every layer of
`mmgen_jax.fusion.feature`:

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  export MMGEN_RAW_AUDIO=...  # the Free Spoken Digit Dataset, zip or folder
  python launch.py --config=configs/recognition_digits.py --workdir=runs/recognition
  python benchmarks/recognition_digits.py --workdir=runs/recognition_digits

Every layer beside each modality alone, three seeds, compared on one page:

  python launch.py --mode=compare --workers=2 --config=configs/recognition_digits.py \
    --workdir=runs/layers

Variants: `:image`, `:sound` (one modality alone); the name of any fusion layer (`:gated`,
`:concat`, ...); `:late` (opinions fused, not features); `:balance` (gradient modulation);
`:fused` (no own heads, no modality dropout: what fusion is without them). `:experts`
fuses networks that were trained alone as they are; what each says alone stays the same:

  python launch.py --config=configs/recognition_digits.py:image --workdir=runs/image
  python launch.py --config=configs/recognition_digits.py:sound --workdir=runs/sound
  python launch.py --config=configs/recognition_digits.py:experts --workdir=runs/experts \
    --config.initial.image=runs/image --config.initial.sound=runs/sound
"""

from configs import common

LAYERS = (
  "mean",
  "concat",
  "gated",
  "film",
  "tensor",
  "low_rank",
  "attention",
  "cross_attention",
  "bottleneck",
  "latent_queries",
)


def get_config(arg=None):
  config = common.defaults("recognition")
  config.batch_size = 32
  config.train_steps = 1200
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = 600
  config.ema_decay = 0.995
  config.data.name = "digits"
  config.augment = {
    "image": {"shift": (2.0, 2.0), "scale": (0.1, 0.1)},
    "sound": {
      "shift": (4.0, 2.0),
      "scale": (0.15, 0.1),
      "gain": 0.15,
      "tilt": 0.15,
      "erase": 4,
    },
  }
  config.corrupt = {
    "image": {"contrast": 0.5, "occlusion": 0.2, "noise": 0.2},
    "sound": {"snr": 5.0},
  }
  config.model = common.recognition_model()
  config.model.inputs = ("image", "sound")
  config.model.labels = {"digit": 10}
  config.loss = {
    "fused": 1.0,  # weight of the fused features' loss
    "own": {"image": 1.0, "sound": 1.0},  # of each modality's own head; {}: no heads
    "fused_to_encoders": 0.0,  # factor of what the fused loss tells the encoders
    "dropout": 0.5,  # of each modality, per example
    "balance": 0.0,  # strength of gradient modulation
  }
  config.optim = common.optim(
    3e-3, name="adamw", weight_decay=0.05, warmup_steps=50, decay="cosine"
  )
  config.optim.decay_steps = config.train_steps
  config.eval.num_examples = 5000
  config.eval.corrupted_examples = 500
  layers = {name: lambda config, name=name: fusion(config, name) for name in LAYERS}
  return common.variant(
    config,
    arg,
    **layers,
    image=lambda config: alone(config, "image"),
    sound=lambda config: alone(config, "sound"),
    late=late,
    experts=experts,
    balance=balance,
    fused=fused,
    smoke=smoke,
  )


def get_sweep(arg=None):
  """Every layer, and as baselines each modality alone; three seeds."""
  return [
    {
      "name": name,
      "seed": seed,
      "config": f"{__file__}:{','.join(filter(None, [name, arg]))}",
      "baseline": name in ("image", "sound"),
    }
    for seed in range(3)
    for name in ("image", "sound", *LAYERS)
  ]


def fusion(config, name):
  config.model.fusion = name


def alone(config, name):
  """One modality: what its own head says."""
  late(config)
  config.model.inputs = (name,)
  other = {"image": "sound", "sound": "image"}[name]
  del config.augment[other], config.corrupt[other]
  config.loss.own = {name: 1.0} if config.loss.own else {}


def late(config):
  """Own heads alone learn, and the product of what they say is the answer."""
  config.model.fusion = "late"
  config.loss.fused = 0.0


def experts(config):
  """What `:image` and `:sound` made, as it is; how to fuse it is all that is learned."""
  config.initial = {"image": "", "sound": ""}
  config.frozen = ("image", "sound")


def fused(config):
  config.loss.own = {}
  config.loss.fused_to_encoders = 1.0
  config.loss.dropout = 0.0


def balance(config):
  config.loss.balance = 0.5
  config.loss.fused_to_encoders = 1.0


def smoke(config):
  common.smoke(config)
  config.eval.corrupted_examples = 16
