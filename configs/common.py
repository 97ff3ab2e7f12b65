"""What configs share: defaults, and the argument after the colon. No run of its own."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from mmgen_jax import data as datasets


def defaults(family: str) -> Any:
  """Every field that any run has, with values that suit a laptop."""
  return ConfigDict(
    {
      "family": family,
      "seed": 0,
      "batch_size": 64,  # global
      "train_steps": 1000,
      "updates_per_dispatch": 10,
      "accumulate": 1,  # microbatches per update
      "parallel": "jit",  # or "pmap"
      "bfloat16": False,  # compute; parameters stay float32
      "ema_decay": 0.99,
      "nonfinite": "stop",  # or "skip", "rollback"
      "max_rollbacks": 3,
      "log_steps": 10,
      "save_steps": 200,
      "sample_steps": 200,
      "keep_checkpoints": 2,
      "data": {
        "name": "sprites",
        "options": {},
        "feed": "resident",  # or "streamed"
        "workers": 0,  # processes of the streamed feed
        "first": 0,  # train on so many examples only; 0: on all
        "missing_rate": 0.0,  # share of modalities hidden at training
        "missing": {},  # instead: {modality: rate, or a tuple of one rate per class}
        "missing_label": "",  # the label whose classes these are
      },
      "augment": {},  # {modality: fields of mmgen_jax.data.augment.Augmentation}
      "model": {},
      "loss": {},
      "optim": optim(1e-3),
      "eval": {
        "split": "test",  # or "validation", "train", another that the data set has
        "num_examples": 3000,
        "batch_size": 500,
        "bootstrap": 1000,
        "extractor": "",  # of images' features; or "efficientnet_lite0",
        # "inception:PATH"; "": the classifier that the project trains
        # Log-likelihoods by K importance samples (0: none), `chunk` of them in memory.
        "likelihood": {"samples": 0, "chunk": 50, "examples": 1000},
        "truncation": 0.0,  # of a GAN's noise, to +- so much; 0: none
      },
    }
  )


def fusion_model() -> Any:
  """Networks of a fusion run, small enough for a CPU."""
  return ConfigDict(
    {
      "latent": 16,  # shared by all modalities
      "private": {"image": 0, "audio": 0, "text": 0},  # besides, of each alone
      "widths": {"image": 32, "audio": 24, "text": 64},  # channels; embedding size
      "features": 128,  # last hidden layer of every encoder
      "blocks": 1,  # residual blocks per resolution, transformer blocks
      "prior_components": 64,  # 1: N(0, I); more: a mixture, by EM
      "scales": {"image": 0.15, "audio": 0.2},  # of Gaussian and Laplace likelihoods
      "disc_widths": {"image": 24, "audio": 24},
    }
  )


def fusion_loss() -> Any:
  """Weights of a fusion run; see `mmgen_jax.steps.fusion.make_train_step`."""
  return ConfigDict(
    {
      "posterior": "poe",  # or "mopoe"
      "subset_power": 3.0,  # a part of k modalities is drawn with p ~ k^-power
      "parts": 1,  # drawn of each example
      "beta": 1.0,
      "alignment": 1.0,
      "cross": 1.0,
      "weights": {},  # of log p(x_m | z), by modality name; 1 where not given
      "adversarial": ("image",),  # modalities that have a discriminator
      "adversarial_weight": 40.0,
      "gan": "non_saturating",  # or "hinge"
      "real": "data",  # what discriminators take for real; or "reconstructions"
      "adversarial_fraction": 1,  # they judge one example in so many
      "prior_share": 0.5,  # of what they judge: from the prior, not from a part
      "prior_rate": 0.005,  # of the prior's EM; it falls from update 10 / rate on
      "r1_gamma": 0.2,
      "r1_fraction": 4,  # R1 on one of these in so many
    }
  )


def gan_loss(**changes) -> Any:
  """Weights of a GAN, all off unless `changes` say otherwise.

  See `mmgen_jax.steps.gan_losses.make_losses`.
  """
  return ConfigDict(
    {
      "gan": "relativistic",  # a name in mmgen_jax.losses.ADVERSARIAL
      "r1_gamma": 0.0,  # twice the weight of R1; with burn_in, as burn_in.gamma starts
      "r2": False,  # R2 too, at the weight of R1
      "r1_fraction": 1,  # R1 and R2 on one pair in so many
      "wasserstein": 0.0,  # weight of (slope - 1)^2
      "every": 1,  # penalties at every so many-th update only
      "lecam": 0.0,
      "consistency": {"real": 0.0, "fake": 0.0, "ops": ("mirror", "translation")},
      "auxiliary": 0.0,  # of the classifier of model.label
      "contrastive": 0.0,  # of pictures and model.condition
      "mismatch": 0.0,  # of real examples under wrong conditions
      **changes,
    }
  )


def burn_in(config: Any, **changes) -> None:
  """A GAN's schedules: `images`, and a (start, end) each, half a cosine in between.

  The rates and decays that they replace are 0, `loss.r1_gamma` is as gamma starts:
  anything else there is refused (`mmgen_jax.schedules.check_replaced`).
  """
  now: Any = ConfigDict({**config.get("burn_in", {}), **changes})
  config.burn_in = now
  for optimizer in (config.optim, config.disc_optim):
    optimizer.learning_rate = optimizer.b2 = 0.0
  config.loss.r1_gamma, config.ema_decay = now.gamma[0], 0.0


def conv_networks(width: int, features: int = 128) -> dict:
  """A GAN's residual convolutions, as a fusion run's decoders and discriminators have."""
  widths = {"widths": {"image": width}, "disc_widths": {"image": width}}
  return {"net": "conv", **widths, "blocks": 1, "features": features}


def r3gan_networks(*widths: int, blocks: int, patch: int = 1) -> dict:
  """R3GAN's, of these widths, coarsest first; one position is `patch` pixels a side."""
  of = {"widths": {"image": widths}, "disc_widths": {"image": widths}}
  return {"net": "r3gan", **of, "blocks": blocks, "group_size": 16, "patch": patch}


def set_networks(config: Any, networks: dict) -> None:
  """Other networks for a GAN; all else that `config.model` says stays."""
  theirs = {*conv_networks(0), *r3gan_networks(blocks=0), "spectral_norm"}
  rest = {k: v for k, v in config.model.items() if k not in theirs}
  config.model = ConfigDict({**rest, **networks})


PUBLISHED = {  # weights of the KL, and what else the papers of the posteriors chose
  "mvae": {"beta": 1.0, "random_subsets": 1},
  "mmvae": {"beta": 1.0, "estimator": "elbo", "samples": 1},
  "mopoe": {"beta": 2.5},
  "mmjsd": {"beta": 2.5},
  "mvtcae": {"beta": 2.5, "alpha": 5 / 6},
  "mmvae_plus": {"beta": 2.5, "density": "laplace", "estimator": "elbo", "samples": 1},
  "jmvae": {"beta": 1.0, "alpha": 0.1},
}


def posterior(name: str) -> Any:
  """A variant: a posterior of the literature in the place of a fusion run's own.

  Same networks, data, updates and optimiser; no discriminator, N(0, I) as the prior. For
  "mmvae_plus" a third of the latents, at least, are private to each modality.
  """

  def change(config):
    config.family = "multimodal"
    config.loss = ConfigDict(
      {"posterior": name, "weights": config.loss.weights, **PUBLISHED[name]}
    )
    if name == "mmvae_plus":
      own = max(2, config.model.latent // 3)
      config.model.private = dict.fromkeys(("image", "audio", "text"), own)

  return change


def posteriors() -> dict:
  """`posterior` of all of them, by name."""
  return {name: posterior(name) for name in PUBLISHED}


def sweep_of_posteriors(file: str, arg: str | None, seeds=(0, 1, 2)) -> list[dict]:
  """A sweep: `file` with every posterior and seed; `arg` is put before each name."""
  return [
    {
      "name": name,
      "seed": seed,
      "config": f"{file}:{','.join(filter(None, [arg, name]))}",
    }
    for seed in seeds
    for name in ("ours", *PUBLISHED)
  ]


def recognition_model() -> Any:
  """Networks of a recognition run, small enough for a CPU."""
  return ConfigDict(
    {
      "inputs": (),  # names of modalities; none: all
      "labels": {},  # {label: number of classes}
      "fusion": "gated",  # a layer of mmgen_jax.fusion.feature, or "late"
      "fusion_options": {},
      "widths": {"image": 32, "audio": 24, "text": 64},  # channels; embedding size
      "features": 64,
      "blocks": 1,  # residual blocks per resolution, transformer blocks
    }
  )


def optim(learning_rate: float, **changes) -> Any:
  """An optimiser's fields: Adam, unless `changes` say otherwise."""
  return ConfigDict(
    {
      "name": "adam",  # adam, adamw, muon, sgd
      "learning_rate": learning_rate,
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 0.0,  # adamw, muon
      "clip_norm": 0.0,  # 0: none
      "warmup_steps": 0,
      "decay": "constant",  # or "cosine", over decay_steps to end_factor of the rate
      "decay_steps": 1000,
      "end_factor": 0.05,
      **changes,
    }
  )


def variant(config: Any, arg: str | None, **variants) -> Any:
  """`config`, changed by the comma-separated words in `arg`, each by a function of it.

  A word is a name, or name=value where the function takes a value besides. The config
  then names every option of its data set, so that a flag can give any of them.

  Raises:
    ValueError: for a name that is no variant, or a value too many or too few.
  """
  takes = {n: _required(f)[1:] for n, f in variants.items()}
  forms = {n: "=".join([n, *(x.upper() for x in more)]) for n, more in takes.items()}
  for word in filter(None, (arg or "").split(",")):
    name, *value = word.split("=", 1)
    if name not in variants or len(value) != len(takes[name]) or "" in value:
      raise ValueError(f"no variant {word!r}; there are {sorted(forms.values())}")
    variants[name](config, *value)
  with config.data.unlocked():
    config.data.options = datasets.options(config.data.name) | {**config.data.options}
  return config


def _required(function) -> list[str]:
  """The names of a function's parameters that have no default."""
  of = inspect.signature(function).parameters.values()
  return [p.name for p in of if p.default is p.empty]


def of_folder(config: Any, dir: str, **options) -> None:
  """The user's folder in a data set's place, of the modalities already asked for."""
  kept = config.data.options.get("modalities", ())
  config.data.name = "folder"
  with config.data.unlocked():
    config.data.options = {"folder": dir, "modalities": kept, **options}


def continued(config: Any) -> None:
  """From the networks of another run: --config.initial.vae=DIR or DIR:STEP."""
  config.initial = {"vae": ""}


def smoke(config: Any) -> None:
  """Four updates of eight examples, for tests."""
  config.batch_size = 8
  config.train_steps = config.save_steps = config.sample_steps = 4
  config.updates_per_dispatch = config.log_steps = 2
  config.eval.num_examples = config.eval.batch_size = 16
  config.eval.bootstrap = 20
