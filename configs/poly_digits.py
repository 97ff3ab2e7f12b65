"""Five images of one digit on five backgrounds: every posterior, same networks, budget.

The construction of PolyMNIST (Sutter, Daunhawer and Vogt, "Generalized Multimodal ELBO",
2021, https://arxiv.org/abs/2105.02470) with procedural backgrounds, so no figure here is
one of PolyMNIST. `--config.data.options.photos=DIR`: five pictures of your own instead
(docs/results/polydigits.md has figures of photographs, with `--config.model.latent=128`).

  export MMGEN_DATA_DIR=...   # holds MNIST, prepared by TFDS (see the README)
  python launch.py --config=configs/poly_digits.py --workdir=runs/poly/ours
  python launch.py --config=configs/poly_digits.py:mopoe --workdir=runs/poly/mopoe

Three seeds of each posterior, compared on one page:

  python launch.py --mode=compare --workers=2 --config=configs/poly_digits.py \
    --workdir=runs/poly

Posteriors: `:ours` (the default), `:mvae`, `:mmvae`, `:mopoe`, `:mmjsd`, `:mvtcae`,
`:mmvae_plus`, `:jmvae`; with them `:missing` (half of all modalities hidden in
training; not jmvae, which only learns from whole examples; ours then draws three parts
of each, and its divergences weigh four times as much), `:published` (all examples, the
widths and the number of updates for an accelerator) and `:likelihood` (joint, marginal
and conditional log-likelihoods too).
Evaluation gives the conditional coherence for 1 to 4 inputs, the joint coherence, and
Frechet distances in features of the judges.

Published on PolyMNIST, coherence for 1 to 4 inputs: MVAE .29 .42 .48 .52, MMVAE .71 at
each, mmJSD .69 .57 .64 .67, MoPoE .63 .75 .79 .81, MVTCAE .59 .77 .83 .86 (as in Hwang
et al., 2021); MMVAE+ .87 for one (Palumbo et al., 2023); joint at best .34. Expected of
ours: .95 .98 .99 .98, joint .82 to .87, after 25 to 40 minutes on one CPU core; with
`:missing --config.batch_size=64` .94 .97 .98 .99, joint .89, after 45.
"""

from configs import common


def get_config(arg=None):
  config = common.defaults("fusion")
  config.batch_size = 32
  config.train_steps = 10_000
  config.updates_per_dispatch = config.log_steps = 20
  config.save_steps = config.sample_steps = 2500
  config.ema_decay = 0.998
  config.data.name = "polydigits"
  config.data.options = {"backgrounds": 5, "train_examples": 20_000}
  for m in range(5):
    config.augment[f"m{m}"] = {"shift": (2.0, 2.0)}
  config.model = common.fusion_model()
  config.model.latent = 32
  # Laplace, as in the literature, where .75 is of pixels in [0, 1] (see `on_our_range`).
  config.model.scales.image = 0.75
  config.loss = common.fusion_loss()
  config.loss.adversarial = ()
  config.loss.cross, config.loss.prior_rate = 4.0, 0.001
  config.optim = common.optim(
    4e-3, name="muon", b2=0.99, warmup_steps=100, decay="cosine", decay_steps=10_000
  )
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  config.eval.update(num_examples=1000, batch_size=100, subsets="ring")
  config.eval.likelihood.examples = 100
  return common.variant(
    config,
    arg,
    ours=lambda config: None,
    **{name: on_our_range(f) for name, f in common.posteriors().items()},
    missing=missing,
    likelihood=likelihood,
    published=published,
    smoke=smoke,
  )


def get_sweep(arg=None):
  """Every posterior, three seeds."""
  return common.sweep_of_posteriors(__file__, arg)


def on_our_range(posterior):
  """Twice the published weight of the KL: pixels go from -1 to 1, errors count twice."""

  def change(config):
    posterior(config)
    config.loss.beta *= 2.0

  return change


def missing(config):
  config.data.missing_rate = 0.5
  if config.family == "fusion":
    config.loss.parts = 3
    # Else images' own looks are told at the cost of the digit.
    config.loss.beta = config.loss.alignment = 4.0


def likelihood(config):
  """Log-likelihoods too: joint, marginal and conditional, from 1,000 samples each."""
  config.eval.likelihood.samples = 1000


def published(config):
  config.batch_size = 256
  config.data.options.train_examples = 55_000
  config.train_steps = config.optim.decay_steps = 70_000
  config.save_steps = config.sample_steps = 10_000
  config.updates_per_dispatch = config.log_steps = 100
  config.model.widths.image, config.model.features = 128, 512
  config.eval.num_examples = 10_000


def smoke(config):
  common.smoke(config)
  config.data.options.update(
    backgrounds=3, train_examples=200, validation_examples=50, test_examples=50
  )
  for m in (3, 4):
    del config.augment[f"m{m}"]
  config.model.widths.image = config.model.latent = 8
