"""Half a picture hidden, and what a VAE puts there: entries of records, and pictures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from mmgen_jax import representation
from mmgen_jax.data.modality import to_model, to_stored
from mmgen_jax.likelihoods import gaussian
from mmgen_jax.models.layers import apply
from mmgen_jax.parallel import example_keys
from mmgen_jax.scores import Entry
from mmgen_jax.steps import bounds, vae

EXAMPLES = 50  # imputed
GREY = 128  # stored, of what is hidden


def halves(
  config,
  params,
  modalities,
  train: np.ndarray,
  held_out: np.ndarray,
  *,
  shown: int = 8,
  seed: int = 0,
) -> tuple[list[Entry], UInt8[np.ndarray, "n 4 h w c"] | None]:
  """Lower halves from upper ones, by `representation.impute` and the model's own prior.

  Gives squared errors of the lower half, in model space, `latents/imputed_mse/*`: of the
  posterior's mean, of one sample, and of what knows nothing of the picture, the training
  pictures' mean. And tiles: each picture whole, what was seen, with the mean, with the
  sample. Nothing where values depend on each other given z.

  Args:
    config: of a VAE of one modality with a Gaussian posterior.
    params: of its networks.
    modalities: of the data set.
    train: stored pictures.
    held_out: stored pictures, which are halved.
    shown: how many of them become tiles.
    seed: of all that is drawn.
  """
  net, name = vae.build(config, modalities), config.model.modality
  if net.modalities[name].likelihood == "logistic_mixture":  # of channels together
    return [], None
  model = bounds.make_model(net, config)
  typical = to_model(modalities[name], jnp.asarray(train)).mean(0)
  seen = np.ones(held_out.shape, bool)
  seen[:, held_out.shape[1] // 2 :] = False

  @jax.jit
  def run(params, stored, key):
    def encode(x):
      means, logvars = apply(net, params["vae"], {name: x}, method="encode")
      return means[0], logvars[0]

    first, second = jax.random.split(key)
    has = jnp.ones(len(stored), bool)
    batch = {name: to_model(modalities[name], stored), "mask": {name: has}}
    x = model.posterior(params, batch, example_keys(first, len(stored), None)).x
    likelihood = net.likelihood(name)
    if "noise" in params:
      scale: Any = jnp.exp(0.5 * params["noise"]["logvar"])
      likelihood = gaussian(scale=scale)
    return x, representation.impute(
      second,
      x,
      jnp.asarray(seen),
      encode=encode,
      decode=lambda z: apply(net, params["vae"], z, method="decode")[name],
      likelihood=likelihood,
      log_prior=lambda z: model.log_pz(params, z),
      start=typical,
    )

  x, made = jax.device_get(run(params, held_out, jax.random.key(seed)))
  error = lambda filled: float(np.square(filled - x)[~seen].mean())
  found = {
    "mean": error(made.mean),
    "sample": error(made.sample),
    "training_mean": error(np.broadcast_to(typical, x.shape)),
  }
  how = {"given": None, "target": None, "samples": len(x), "interval": None}
  entries = [
    {"metric": f"latents/imputed_mse/{filled}", "value": value, **how}
    for filled, value in found.items()
  ]
  whole = to_stored(modalities[name], x)
  stored = [to_stored(modalities[name], v) for v in (made.mean, made.sample)]
  columns = [whole, np.where(seen, whole, GREY).astype(np.uint8), *stored]
  return entries, np.stack(columns, 1)[:shown]
