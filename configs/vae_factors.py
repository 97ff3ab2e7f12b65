"""Disentanglement: VAEs of binary sprites of five known factors, dSprites' construction.

Kim and Mnih, "Disentangling by Factorising", 2018, https://arxiv.org/abs/1802.05983, and
Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", 2018,
https://arxiv.org/abs/1802.04942, with nearly the latter's perceptron on dSprites (whose
decoder has a layer more): 4096-1200-1200-10 and back, tanh, Bernoulli pixels.

  python launch.py --config=configs/vae_factors.py:tc --workdir=runs/tc
  python benchmarks/disentanglement.py --out=runs/disentanglement

Variants: `:beta` (the default; beta = 4), `:tc` (beta-TC, 6 on the total correlation),
`:factor` (FactorVAE, gamma = 10), `:plain` (the ELBO); `:small` for a hidden layer of 256
and 6,000 updates, some minutes on two CPU cores. Evaluation gives MIG, DCI, SAP,
FactorVAE and beta-VAE scores on all 737,280 pictures, and traversals in the report.

Published on dSprites (not these pixels, and with convolutions, 300,000 updates): MIG
about .1 to .4, FactorVAE score .6 to .8, with a spread over seeds as large as the
differences: Locatello et al., 2019, https://arxiv.org/abs/1811.12359. Differences: 60,000
of the pictures are trained on, and 20,000 updates.
"""

from configs import common

IMAGES = 60_000


def get_config(arg=None):
  config = common.defaults("vae")
  config.batch_size = 256
  config.scan = True
  config.compiler_options = {"xla_cpu_experimental_ynn_fusion_type": ""}
  config.ema_decay = 0.99
  config.data.name = "factors"
  config.data.options = {"train_examples": IMAGES}
  config.model = {
    "modality": "image",
    "net": "mlp",
    "likelihood": "bernoulli",
    "latent": 10,
    "hidden": (1200, 1200),
    "mean": 0.054,  # of the pixels
    "scales": {"image": 1.0},
  }
  config.loss = {"objective": "elbo", "beta": 4.0, "samples": 1}
  config.optim = common.optim(1e-3, stages=())
  train_for(config, 20_000)
  config.eval.update(latents={"examples": 10_000, "votes": 10_000})
  variants = {f.__name__: f for f in (plain, tc, factor, small, smoke)}
  return common.variant(config, arg, beta=lambda config: None, **variants)


def train_for(config, steps):
  config.train_steps = steps
  config.updates_per_dispatch = 20
  config.log_steps = 200
  config.save_steps = config.sample_steps = steps // 10
  config.optim.update(decay="cosine", decay_steps=steps)


def plain(config):
  config.loss.beta = 1.0


def tc(config):
  config.loss.update(
    objective="tc",
    beta=1.0,
    tc_weights=(1.0, 6.0, 1.0),
    examples=IMAGES,
    stratified=True,
  )


def factor(config):
  config.loss.update(objective="factor", beta=1.0, gamma=10.0)
  config.model.disc_hidden = (1000,) * 6
  config.disc_optim = common.optim(1e-4, b1=0.5, b2=0.9)


def small(config):
  config.model.hidden = (256,)
  if "disc_hidden" in config.model:
    config.model.disc_hidden = (256,) * 4
  train_for(config, 6000)
  config.eval.latents.update(examples=5000, votes=1000)


def smoke(config):
  common.smoke(config)
  config.model.hidden = (16,)
  config.data.options.update(
    train_examples=64, validation_examples=16, test_examples=16
  )
  config.eval.latents.update(examples=200, votes=40)
  if "disc_hidden" in config.model:
    config.model.disc_hidden = (8, 8)
  if "examples" in config.loss:
    config.loss.examples = 64
