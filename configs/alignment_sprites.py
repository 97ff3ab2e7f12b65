"""Contrastive alignment of image, caption and sound of sprites (level 3, 32 px).

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, https://arxiv.org/abs/2103.00020 (InfoNCE); Zhai et al., "Sigmoid Loss for Language
Image Pre-Training", 2023, https://arxiv.org/abs/2303.15343 (`:siglip`).

  python launch.py --config=configs/alignment_sprites.py --workdir=runs/alignment

A caption here is that of a thirtieth of all sprites: sprites of one caption are positives
of each other. `:single` takes an example's own caption for the only right one.
"""

from configs import common

LABELS = ("colour", "shape", "size")


def get_config(arg=None):
  config = common.defaults("alignment")
  config.batch_size = 64
  config.train_steps = 400
  config.save_steps = config.sample_steps = 200
  config.data.options = {"level": 3, "size": 32, "train_examples": 10_000}
  config.model = {
    "size": 32,  # of the embeddings
    "features": 64,
    "widths": {"image": 24, "audio": 12, "text": 32},
    "blocks": 1,
  }
  config.loss = {"objective": "infonce", "same": LABELS}
  config.optim = common.optim(
    2e-3, b2=0.99, warmup_steps=20, decay="cosine", decay_steps=400
  )
  config.eval.num_examples = 1000
  config.eval.same = LABELS
  return common.variant(config, arg, siglip=siglip, single=single, smoke=common.smoke)


def siglip(config):
  config.loss.objective = "siglip"


def single(config):
  config.loss.same = ()
