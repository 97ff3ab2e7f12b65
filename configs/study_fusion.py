"""Does fusion help? GAN, VAE, and fusion of features, of models, of weights, compared.

  export MMGEN_DATA_DIR=...   # digits only: holds MNIST (see the README)
  export MMGEN_RAW_AUDIO=...  # digits only: the Free Spoken Digit Dataset
  python launch.py --mode=compare --workers=2 --config=configs/study_fusion.py:sprites \
    --workdir=runs/study_sprites
  python launch.py --mode=compare --workers=2 --config=configs/study_fusion.py:digits \
    --workdir=runs/study_digits
  python launch.py --mode=compare --workers=2 --config=configs/study_fusion.py:folder=D \
    --workdir=runs/mine

Three seeds of each method, 48 short runs of small nets; with `:long` about half an hour
a data set on two CPU cores. Of sprites one combination of attributes in five is never
trained on.

| method | networks | weights |
|---|---|---|
| GAN, VAE | of images alone | of the last update |
| GAN + EMA, VAE + EMA | the same runs | averaged over updates |
| VAE, mixture prior | the encoder, decoder and prior of model fusion, no GAN | last |
| VAE soup | mean of three continuations of a VAE, at three rates | averaged |
| feature fusion | encoders of all modalities, one posterior | last |
| model fusion | VAE and GAN in one, of images alone | last |
| all three | VAE and GAN in one, of all modalities | averaged |

`:sprites,recognition` and `:digits,recognition` ask what fusion does for recognition
instead: degraded images alone, noisy sounds alone, both with their features fused, and
both with their opinions fused (late fusion).

`:sprites,long` makes three times as many updates. As a config of one run:
`:sprites,all` (the default), `:digits,vae`, ...
"""

from configs import common

UPDATES, MORE = 600, 160  # of a run; of each continuation
LONGER = 3  # times, in `:long`
SEEDS = (0, 1, 2)
RATES = (2e-4, 5e-4, 1e-3)  # of the continuations


def get_config(arg=None):
  """The config of one method on one data set."""
  words = [word for word in (arg or "").split(",") if word]
  data = next((w for w in words if w in DATA or w.startswith("folder=")), "sprites")
  method = next((w for w in words if w in METHODS), "all")
  config = METHODS[method](data)
  config.batch_size = 16
  config.train_steps = config.save_steps = config.sample_steps = UPDATES
  config.updates_per_dispatch = config.log_steps = 20
  config.eval.update(num_examples=1000, batch_size=250, bootstrap=200)
  with config.unlocked():
    config.eval.also = ("train",)
  rest = ",".join(word for word in words if word != data)
  known = {name: lambda config: None for name in (*DATA, *METHODS, "recognition")}
  return common.variant(config, rest, **known, smoke=smoke, long=long)


def get_sweep(arg=None):
  """Every run of the study on one data set; `,smoke` makes all of them tiny."""
  from mmgen_jax.sweep import trial_id

  words = [word for word in (arg or "sprites").split(",") if word]
  times = LONGER if "long" in words else 1
  updates, more = (4, 2) if "smoke" in words else (times * UPDATES, times * MORE)
  seeds = SEEDS[:2] if "smoke" in words else SEEDS
  several = len(_spec(words[0]).modalities) > 1
  out = []
  for seed in seeds:

    def trial(name, method="", seed=seed, **fields):
      config = f"{__file__}:{','.join([words[0], method, *words[1:]])}"
      out.append({"name": name, "seed": seed, **fields})
      if method:
        out[-1].setdefault("budget", updates)
        out[-1]["config"] = config
      return trial_id(name, seed, out[-1].get("budget"))

    def last(name, of, **fields):
      trial(name, fuse={"method": "last", "of": [of]}, **fields)

    if "recognition" in words:
      trial("image alone", "see", baseline=True)
      trial("sound alone", "hear", baseline=True)
      trial("image and sound, features fused", "recognise")
      trial("image and sound, opinions fused", "agree")
      continue
    last("GAN", trial("GAN + EMA", "gan"), baseline=True)
    vae = trial("VAE + EMA", "vae")
    last("VAE", vae, baseline=True)
    mixture = trial("VAE, mixture prior + EMA", "mixture")
    last("VAE, mixture prior", mixture, baseline=True)
    rates = [
      trial(
        f"VAE + EMA, {more} more at {rate:g}",
        "vae",
        budget=more,
        start=vae,
        overrides={"optim.learning_rate": rate, "optim.decay_steps": 10**6},
      )
      for rate in RATES
    ]
    trial("VAE soup", fuse={"method": "average", "of": rates})
    last("model fusion", trial("model fusion + EMA", "models"))
    if several:
      last("feature fusion", trial("feature fusion + EMA", "features"))
      every = trial("all three", "all")
      last("feature + model fusion", every)
  return out


def _spec(data):
  """What is in the data set."""
  from mmgen_jax import data as datasets

  d = get_config(data).data
  return datasets.spec(d.name, **d.options)


def _sprites():
  options = {"level": 3, "size": 32, "hold_out": 5, "train_examples": 5000}
  return "sprites", {**options, "validation_examples": 1250, "test_examples": 2500}


DATA = {"sprites": _sprites, "digits": lambda: ("digits", {"repeats": 1})}


def _base(family, data):
  config = common.defaults(family)
  folder = data.removeprefix("folder=")
  named = DATA.get(data, lambda: ("folder", {"folder": folder}))
  config.data.name, config.data.options = named()
  return config


def _picture(data):
  """The modality that GAN and VAE are of."""
  if data in DATA:
    return "image"
  from mmgen_jax import data as datasets

  spec = datasets.spec("folder", folder=data.removeprefix("folder="))
  pictured = [name for name, m in spec.modalities.items() if m.kind == "image"]
  if not pictured:
    raise ValueError(f"the study compares models of images; {data} has none")
  return pictured[0]


def _networks(config, data):
  """Small ones, the same for every method that has them."""
  config.model = common.fusion_model()
  config.model.update(
    latent=16,
    widths={"image": 16, "audio": 12, "text": 32},
    disc_widths={"image": 16, "audio": 12},
    features=64,
    prior_components=32,
  )
  config.optim = common.optim(
    3e-3, b2=0.99, warmup_steps=20, decay="cosine", decay_steps=UPDATES
  )
  if data == "digits":
    config.model.scales = {"image": 0.3, "audio": 0.3}


def gan(data):
  """Non-saturating loss with R1, residual convolutions."""
  config = _base("gan", data)
  _networks(config, data)
  config.model.update(modality=_picture(data), label="", classes=0, latent=32)
  config.loss = {"gan": "non_saturating", "r1_gamma": 1.0, "r1_fraction": 1}
  config.optim = common.optim(1e-3, b1=0.0, b2=0.99)
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  return config


def vae(data):
  """ELBO of images, N(0, I)."""
  config = _base("vae", data)
  _networks(config, data)
  del config.model.prior_components
  config.model.modality = _picture(data)
  config.loss.beta = 1.0
  return config


def every(data):
  """VAE and GAN in one step, of all modalities."""
  config = _base("fusion", data)
  _networks(config, data)
  config.loss = common.fusion_loss()
  config.disc_optim = common.optim(1e-3, b1=0.0, b2=0.99)
  config.loss.adversarial = (_picture(data),)
  if data == "digits":
    config.loss.update(cross=2.0, adversarial_weight=20.0, r1_gamma=1.0)
  with config.loss.unlocked():
    config.loss.weights.update({"caption": 20.0, "word": 50.0})
  return config


def features(data):
  """Without discriminators."""
  config = every(data)
  config.loss.adversarial = ()
  return config


def models(data):
  """Of images alone."""
  config = every(data)
  with config.data.options.unlocked():
    config.data.options.modalities = config.loss.adversarial
  return config


def mixture(data):
  """A VAE of images alone, with fusion's learned prior."""
  config = models(data)
  config.loss.adversarial = ()
  return config


def recognise(data, inputs=("image", "sound"), fusion="gated"):
  """What a label says, from degraded inputs: a head per modality, and one of both."""
  config = _base("recognition", data)
  config.model = common.recognition_model()
  config.model.update(inputs=inputs, fusion=fusion)
  config.model.widths = {"image": 16, "audio": 12, "text": 32}
  labels = {"sprites": ("colour", "shape", "size"), "digits": ("digit",)}
  if data not in labels:
    raise ValueError(f"recognition is studied on {sorted(labels)}, got {data!r}")
  names = _spec(data).label_names
  config.model.labels = {label: len(names[label]) for label in labels[data]}
  damage = {
    "image": {"contrast": 0.5, "occlusion": 0.2, "noise": 0.2},
    "sound": {"snr": 5.0},
  }
  config.corrupt = {name: damage[name] for name in inputs}
  config.loss = {
    "fused": float(fusion != "late"),
    "own": dict.fromkeys(inputs, 1.0),
    "fused_to_encoders": 0.0,
    "dropout": 0.5,
    "balance": 0.0,
  }
  config.optim = common.optim(
    3e-3, warmup_steps=20, decay="cosine", decay_steps=UPDATES
  )
  config.eval.corrupted_examples = 0
  return config


def agree(data):
  """Recognition by the product of what the heads of both say."""
  return recognise(data, fusion="late")


def see(data):
  """Recognition from images alone."""
  return recognise(data, ("image",), "late")


def hear(data):
  """Recognition from sounds alone."""
  return recognise(data, ("sound",), "late")


METHODS = {"gan": gan, "vae": vae, "features": features, "models": models, "all": every}
METHODS |= {"mixture": mixture, "recognise": recognise, "agree": agree}
METHODS |= {"see": see, "hear": hear}


def long(config):
  config.train_steps = config.save_steps = config.sample_steps = LONGER * UPDATES
  config.optim.decay_steps = config.train_steps


def smoke(config):
  common.smoke(config)
  config.model.widths.update({"image": 8, "audio": 8, "text": 8})
  config.model.features = 8
  if "disc_widths" in config.model:
    config.model.disc_widths.update({"image": 8, "audio": 8})
  if "prior_components" in config.model:
    config.model.prior_components = 4
  if config.data.name == "sprites":
    config.data.options.update(
      train_examples=300, validation_examples=60, test_examples=100
    )
