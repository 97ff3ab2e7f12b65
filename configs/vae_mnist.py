"""VAE and IWAE of MNIST, binarised at every use: the one-layer network of the IWAE paper.

Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016,
https://arxiv.org/abs/1509.00519: 784-200-200-50, tanh, batches of 20, Adam with
epsilon 1e-4, eight stages of 3^i epochs at a rate of 1e-3 10^(-i / 7).

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/vae_mnist.py:iwae5 --workdir=runs/iwae5
  python benchmarks/vae_nll.py --workdir=runs/iwae5 --weights=ema

Variants: `:vae` (the default; one sample), `:iwae5` (40 minutes on one CPU core, NLL
85.1), `:iwae50` and `:dreg50` (not run to their ends so); `:short` for 250 epochs, some
minutes for the VAE, `:hour` for 1,592, an hour for the VAE (NLL 86.7); `:published`,
after the others, for the schedule of the paper; `:continued` from the networks of
another run. `--config.loss.backward_samples=5` of 50 samples makes 1.7 times as many
updates in the same time. Other objectives on the same network, with no published number
to meet: `:beta4`, `:capacity`, `:free_bits`, `:tc`, `:factor`, `:vamp`, `:flow` (a
coupling flow as the prior), `:sigma` (grey values, not binarised); `:conv` for residual
convolutions on 32 x 32. Several go together, as in `:conv,vamp`.

Published test NLL after all epochs, K = 5,000: 86.76 (VAE), 85.54 (IWAE-5), 84.78
(IWAE-50). Differences, beside `:published`: batches of 250 (100 for 50 samples), whose
matrix products are many times as fast per image on a CPU; Adam at 3e-3, with an epsilon
of 1e-8 (1e-4 slows batches as quiet as these), or Muon (IWAEs), and a half-cosine of the
rate; an average of the weights is evaluated; 3,280 epochs (VAE, of which no figure is
given), 389 (IWAE-5), 190 (IWAE-50). `:short` and `:hour`: batches of 200, Adam at 4e-3.
In all: 54,000 images are trained on, 6,000 kept for validation (there 59,600 and 400);
Adam's b1 is 0.9 as in the paper (0.99, and second moments that start at one, in its
code); one bias for all pixels at the start.
"""

from configs import common

EPOCHS = [3**i for i in range(8)]  # of the stages; 3,280 in all
FACTORS = [round(10 * 10 ** (-i / 7), 1) / 10 for i in range(8)]  # 1, .72, .52, ...
IMAGES = 54_000


def get_config(arg=None):
  config = common.defaults("vae")
  config.scan = True  # no convolution here: one dispatch for many updates, on CPUs too
  # XLA's CPU fusion of matrix products with the sum over pixels is three times slower.
  config.compiler_options = {"xla_cpu_experimental_ynn_fusion_type": ""}
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
  config.loss = {
    "objective": "elbo",
    "beta": 1.0,
    "warmup_steps": 0,  # of the KL's weight, in the ELBO
    "samples": 1,
    "backward_samples": 0,  # of these the IWAE's gradient; 0: of all
    "binarise": True,
  }
  config.optim = common.optim(3e-3, stages=())
  train_for(config, epochs=3280)
  config.eval.update(latents={"examples": 5000, "votes": 0})
  config.eval.update(sampler="prior", sampler_examples=10_000, sampler_components=50)
  variants = [iwae5, iwae50, dreg50, beta4, capacity, free_bits, tc, factor, vamp]
  variants += [flow, sigma, conv, common.continued, short, hour, published, smoke]
  named = {variant.__name__: variant for variant in variants}
  return common.variant(config, arg, vae=lambda config: None, **named)


def train_for(config, epochs, batch_size=250):
  """So many epochs, at a rate that falls by a half-cosine."""
  steps = round(epochs * IMAGES / batch_size / 500) * 500
  config.batch_size, config.train_steps = batch_size, steps
  config.updates_per_dispatch = 50
  config.save_steps = config.sample_steps = steps // 10
  config.log_steps = 1000
  config.optim.update(
    decay="cosine", decay_steps=steps, end_factor=0.01, warmup_steps=500, stages=()
  )


def muon(config):
  """Fewer epochs for the same bound; dear where an update is as cheap as a VAE's."""
  config.optim.name, config.optim.learning_rate = "muon", 4e-3
  config.ema_decay = 0.9995


def iwae5(config):
  config.loss.objective, config.loss.samples = "iwae", 5
  train_for(config, epochs=389)
  muon(config)


def iwae50(config):
  config.loss.objective, config.loss.samples = "iwae", 50
  train_for(config, epochs=190, batch_size=100)
  muon(config)


def dreg50(config):
  iwae50(config)
  config.loss.objective = "dreg"


def beta4(config):
  config.loss.beta = 4.0


def capacity(config):
  config.loss.update(
    objective="capacity",
    gamma=1000.0,
    capacity_nats=25.0,
    capacity_share=1 / 3,  # of the updates, until all of them are let through
  )


def free_bits(config):
  config.loss.update(objective="free_bits", free_nats=0.1)


def tc(config):
  train_for(config, epochs=200)
  config.loss.update(
    objective="tc", tc_weights=(1.0, 6.0, 1.0), examples=IMAGES, stratified=True
  )


def factor(config):
  train_for(config, epochs=200)
  config.loss.update(objective="factor", gamma=10.0)
  config.model.disc_hidden = (1000,) * 6
  config.disc_optim = common.optim(1e-4, b1=0.5, b2=0.9)


def vamp(config):
  config.model.pseudo_inputs = 500


def flow(config):
  config.model.update(flow_layers=6, flow_hidden=64)


def sigma(config):
  config.model.likelihood, config.model.learned_scale = "gaussian", True
  config.loss.binarise = False


def conv(config):
  train_for(config, epochs=100, batch_size=100)
  config.scan, config.compiler_options = None, {}
  config.data.options.size = 32  # padded: convolutions halve it to 4
  config.model.update(net="conv", widths={"image": 32}, features=128, blocks=1)


def short(config):
  train_for(config, epochs=250, batch_size=200)
  config.optim.learning_rate, config.ema_decay = 4e-3, 0.9995


def hour(config):
  short(config)
  train_for(config, epochs=1592, batch_size=200)


def published(config):
  """Eight stages of 3^i epochs, in batches of 20."""
  train_for(config, sum(EPOCHS), batch_size=20)
  steps = config.train_steps
  starts = [sum(EPOCHS[:i]) * steps // sum(EPOCHS) for i in range(len(EPOCHS))]
  config.optim.update(name="adam", learning_rate=1e-3, eps=1e-4)
  config.optim.update(decay="constant", warmup_steps=0)
  config.optim.stages = tuple(zip(starts, FACTORS, strict=True))


def smoke(config):
  common.smoke(config)
  config.eval.latents.examples = 64
  config.loss.samples = min(config.loss.samples, 2)
  if "disc_hidden" in config.model:
    config.model.disc_hidden = (8, 8)
