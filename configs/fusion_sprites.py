"""Captioned, sounding sprites, levels 1 to 5: every posterior, same networks and budget.

The task of CdSprites+ (Sejnova, Vavrecka and Stepanova, "Bridging Language and Vision
through Multimodal VAEs: CdSprites+", 2024, https://arxiv.org/abs/2209.03048) with sprites
drawn here: level 1 shape; 2 and size; 3 and colour; 4 and quadrant; 5 and background.

  python launch.py --config=configs/fusion_sprites.py:level5 --workdir=runs/sprites5
  python launch.py --config=configs/fusion_sprites.py:level5,mopoe --workdir=runs/s5mopoe

Three seeds of each posterior, compared on one page:

  python launch.py --mode=compare --workers=2 --config=configs/fusion_sprites.py:level5 \
    --workdir=runs/sprites5

Variants: `:level1` to `:level5` (the default); `:px64` (else 32); `:wide` (more of
everything, for accelerators); posteriors `:ours` (the default), `:mvae`, `:mmvae`,
`:mopoe`, `:mmjsd`, `:mvtcae`, `:mmvae_plus`, `:jmvae`.

Published at level 5, 64 px, all attributes right, caption to image / image to caption /
joint: 0 / 0 / 0 by MVAE, MMVAE, MoPoE and DMVAE. Expected at 32 px: .99 / .99 / .98 of
ours, after 14 minutes on one CPU core; .90 / .95 / .07 of MMVAE. At 64 px: .97 / .99 /
.95 of ours, after 51.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("fusion")
  config.batch_size = 16
  config.train_steps = 16_000
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = 4000
  config.ema_decay = 0.998
  config.data.options = {"level": 5, "size": 32, "train_examples": 30_000}
  config.model = common.fusion_model()
  config.model.latent, config.model.features = 24, 192
  config.model.prior_components = 256
  config.model.widths.image, config.model.widths.audio = 48, 12
  config.loss = common.fusion_loss()
  config.loss.cross, config.loss.prior_rate = 2.0, 0.001
  config.loss.weights = {"caption": 100.0}  # else a picture's own tells little of shape
  config.loss.real = "reconstructions"  # no latent tells a background's grain
  config.optim = common.optim(
    2e-3, b2=0.99, warmup_steps=300, decay="cosine", decay_steps=16_000
  )
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  levels = {f"level{n}": level(n) for n in range(1, 6)}
  return common.variant(
    config,
    arg,
    ours=lambda config: None,
    **common.posteriors(),
    **levels,
    px64=px64,
    wide=wide,
    smoke=common.smoke,
  )


def get_sweep(arg=None):
  """Every posterior, three seeds."""
  return common.sweep_of_posteriors(__file__, arg)


def level(number):
  """A variant with the attributes up to this level."""

  def change(config):
    config.data.options.level = number

  return change


def px64(config):
  config.data.options.size = 64


def wide(config):
  """For accelerators."""
  config.data.options.train_examples = 60_000
  config.batch_size = 64
  config.model.widths.image = 64
  config.model.disc_widths.image = 48
