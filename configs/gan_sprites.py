"""Sprites from their captions (level 4, 32 px), by a GAN alone.

R3GAN's loss (Huang et al., 2024, https://arxiv.org/abs/2501.05441) under the embedding of
a caption: generator and discriminator have a small transformer each. The discriminator
also finds a picture's caption among those of the batch, and the generator draws pictures
whose captions are found (Zhang et al., "Cross-Modal Contrastive Learning for
Text-to-Image Generation", 2021, https://arxiv.org/abs/2101.04702).

  python launch.py --config=configs/gan_sprites.py --workdir=runs/gan_sprites

An update takes a fifteenth of a second of one CPU core; figures are in
docs/results/gan.md (bar: strict accuracy .90 within 40 minutes).

Variants: `:sound` and `:both` (from the sound, from caption and sound, each hidden at
times), `:level3`, `:r3gan` (R3GAN's networks, small), `:smoke`.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("gan")
  config.batch_size = 32
  config.train_steps = 15_000
  config.save_steps = config.sample_steps = 3000
  config.data.options = {"level": 4, "size": 32, "train_examples": 20_000}
  config.model = {
    "modality": "image",
    "condition": ("caption",),  # modalities whose embedding both networks see
    "encoder": {
      "widths": {"text": 64, "image": 24, "audio": 24},
      "features": 64,
      "blocks": 1,
      "fusion": "mean",
      "dropout": 0.1,  # share of captions that are hidden in training
    },
    "label": "shape",
    "classes": 0,  # 0: no class label besides
    "latent": 64,
    "projection": True,  # whether D's logits see the condition
    **common.conv_networks(48),
  }
  config.loss = common.gan_loss(r2=True, r1_fraction=2, contrastive=1.0)
  config.optim = common.optim(1e-3, b1=0.0)
  config.disc_optim = common.optim(1e-3, b1=0.0)
  common.burn_in(  # (start, end), half a cosine in between
    config,
    images=60_000,
    learning_rate=(1e-3, 5e-4),
    b2=(0.9, 0.99),
    gamma=(1.0, 0.3),
    half_life_images=(0.0, 2000.0),
  )
  return common.variant(
    config, arg, smoke=common.smoke, level3=level3, r3gan=r3gan, sound=sound, both=both
  )


def level3(config):
  config.data.options.level = 3


def r3gan(config):
  common.set_networks(config, common.r3gan_networks(128, 96, blocks=1, patch=4))


def sound(config):
  config.model.condition = ("sound",)


def both(config):
  config.model.condition = ("caption", "sound")
  config.model.encoder.fusion = "gated"
  config.model.encoder.dropout = 0.3
