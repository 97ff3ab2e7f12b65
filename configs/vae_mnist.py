"""VAE and IWAE of MNIST, binarised at every use: the one-layer network of the IWAE paper.

Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016,
https://arxiv.org/abs/1509.00519: 784-200-200-50, tanh, batches of 20, Adam with
epsilon 1e-4, eight stages of 3^i epochs at a rate of 1e-3 10^(-i / 7).

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/vae_mnist.py:iwae5 --workdir=runs/iwae5
  python benchmarks/vae_nll.py --workdir=runs/iwae5

Variants: `:vae` (the default; one sample), `:iwae5`, `:iwae50`, `:dreg50`; `:published`
for all 3,280 epochs; else about an hour on two CPU cores, with the stages in the same
proportion. Other objectives on the same network, with no published number to meet:
`:beta4`, `:capacity`, `:free_bits`, `:tc`, `:factor`, `:vamp`, `:sigma` (grey values,
not binarised); `:conv` for residual convolutions on 32 x 32. Several go together, as in
`:conv,vamp`.

Published test NLL after all epochs, K = 5,000: 86.76 (VAE), 85.54 (IWAE-5), 84.78
(IWAE-50). Differences: 54,000 images are trained on, 6,000 kept for validation (there
59,600 and 400); Adam's b1 is 0.9 as in the paper (0.99, and second moments that start
at one, in its code); one bias for all pixels at the start.
"""

from configs import common

EPOCHS = [3**i for i in range(8)]  # of the stages; 3,280 in all
FACTORS = [round(10 * 10 ** (-i / 7), 1) / 10 for i in range(8)]  # 1, .72, .52, ...
IMAGES = 54_000


def get_config(arg=None):
  config = common.defaults("vae")
  config.batch_size = 20
  config.updates_per_dispatch = 100
  config.ema_decay = 0.999
  config.data.name = "images"
  config.data.options = {"tfds": "mnist", "size": 28}
  config.model = {
    "modality": "image",
    "net": "mlp",
    "likelihood": "bernoulli",
    "latent": 50,
    "hidden": (200, 200),
    "mean": 0.1307,  # of MNIST's pixels
    "scales": {"image": 1.0},
  }
  config.loss = {"objective": "elbo", "beta": 1.0, "samples": 1, "binarise": True}
  config.optim = common.optim(1e-3, eps=1e-4, stages=())
  train_for(config, 300_000)
  variants = [iwae5, iwae50, dreg50, beta4, capacity, free_bits, tc, factor, vamp]
  variants += [sigma, conv, published, smoke]
  named = {variant.__name__: variant for variant in variants}
  return common.variant(config, arg, vae=lambda config: None, **named)


def train_for(config, steps):
  """`steps` updates, cut into stages like the paper's epochs."""
  config.train_steps = steps
  config.save_steps = config.sample_steps = steps // 10
  config.log_steps = 1000
  starts = [sum(EPOCHS[:i]) * steps // sum(EPOCHS) for i in range(len(EPOCHS))]
  config.optim.stages = tuple(zip(starts, FACTORS, strict=True))


def iwae5(config):
  config.loss.objective, config.loss.samples = "iwae", 5
  train_for(config, 200_000)


def iwae50(config):
  config.loss.objective, config.loss.samples = "iwae", 50
  train_for(config, 50_000)


def dreg50(config):
  iwae50(config)
  config.loss.objective = "dreg"


def beta4(config):
  config.loss.beta = 4.0


def capacity(config):
  steps = config.train_steps // 3
  config.loss.update(
    objective="capacity", gamma=1000.0, capacity_nats=25.0, capacity_steps=steps
  )


def free_bits(config):
  config.loss.update(objective="free_bits", free_nats=0.1)


def tc(config):
  config.loss.update(
    objective="tc", tc_weights=(1.0, 6.0, 1.0), examples=IMAGES, stratified=True
  )


def factor(config):
  config.loss.update(objective="factor", gamma=10.0)
  config.model.disc_hidden = (1000,) * 6
  config.disc_optim = common.optim(1e-4, b1=0.5, b2=0.9)


def vamp(config):
  config.model.pseudo_inputs = 500


def sigma(config):
  config.model.likelihood, config.model.learned_scale = "gaussian", True
  config.loss.binarise = False


def conv(config):
  config.data.options.size = 32  # padded: convolutions halve it to 4
  config.model.update(net="conv", widths={"image": 32}, features=128, blocks=1)


def published(config):
  train_for(config, sum(EPOCHS) * IMAGES // config.batch_size)


def smoke(config):
  common.smoke(config)
  config.loss.samples = min(config.loss.samples, 2)
  if "disc_hidden" in config.model:
    config.model.disc_hidden = (8, 8)
