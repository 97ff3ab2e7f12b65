"""A VAE of sprite images (level 3, 32 px), ELBO with beta = 1.

python launch.py --config=configs/vae_sprites.py --workdir=runs/vae_sprites
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("vae")
  config.batch_size = 32
  config.train_steps = 1600
  config.save_steps = config.sample_steps = 400
  config.data.options = {"level": 3, "size": 32, "train_examples": 10_000}
  config.model = common.fusion_model()
  del config.model.prior_components
  config.model.modality = "image"
  config.loss.beta = 1.0
  config.optim = common.optim(
    4e-3, b2=0.99, warmup_steps=20, decay="cosine", decay_steps=1600
  )
  return common.variant(config, arg, smoke=common.smoke)
