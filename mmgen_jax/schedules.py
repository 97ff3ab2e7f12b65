"""What changes during training, as functions of how many images were seen.

So a run that is resumed, or that has another batch size, is at the same place. R3GAN:
every value goes from its start to its end along half a cosine during the burn-in, and
stays there. Huang et al., "The GAN is dead; long live the GAN!", 2024, appendix D,
https://arxiv.org/abs/2501.05441.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Images = Int[Array, ""] | Float[Array, ""] | float
Schedule = Callable[[Images], Float[Array, ""]]


def burn_in(start: float, end: float, images: float) -> Schedule:
  """`value(n)`: `start` at n = 0, half a cosine to `end` at n = `images`, then `end`.

  Raises:
    ValueError: if `images` is not positive.
  """
  if images <= 0:
    raise ValueError(f"burn_in.images must be positive, got {images}")

  def value(n: Images) -> Float[Array, ""]:
    done = jnp.clip(jnp.asarray(n, jnp.float32) / images, 0.0, 1.0)
    # Of both ends, so that each is met exactly.
    share = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
    return (1.0 - share) * start + share * end

  return value


class BurnIn(NamedTuple):
  """The schedules of a GAN run.

  Attributes:
    learning_rate: of generator and discriminator.
    b2: Adam's, of both.
    gamma: weight of the gradient penalties.
    half_life_images: of the generator's moving average.
  """

  learning_rate: Schedule
  b2: Schedule
  gamma: Schedule
  half_life_images: Schedule


def make_burn_in(config) -> BurnIn:
  """From `images` and a (start, end) pair for each schedule.

  Raises:
    ValueError: if a schedule is missing, unknown, or not a pair.
  """
  given = {k: v for k, v in config.items() if k != "images"}
  if set(given) != set(BurnIn._fields) or any(len(v) != 2 for v in given.values()):
    raise ValueError(
      f"burn_in must have images and a (start, end) of each of {BurnIn._fields}, got"
      f" {dict(config.items())}"
    )
  make = lambda pair: burn_in(pair[0], pair[1], config.images)
  return BurnIn(**{name: make(pair) for name, pair in given.items()})


def check_replaced(config) -> None:
  """Raises ValueError, naming them, where fields that burn_in replaces say otherwise.

  With `burn_in`, the rate and b2 of `optim` and `disc_optim`, `loss.r1_gamma` and
  `ema_decay` do nothing, so each must be 0 or the value that its schedule starts from.
  r1_gamma of 0 means no penalty at all.
  """
  if "burn_in" not in config:
    return
  start = {name: config.burn_in[name][0] for name in BurnIn._fields}
  kept = float(half_life_decay(config.batch_size, start["half_life_images"]))
  replaced = [("ema_decay", config.ema_decay, "half_life_images", kept)]
  for name in ("optim", "disc_optim"):
    for field in ("learning_rate", "b2"):
      replaced.append((f"{name}.{field}", config[name][field], field, start[field]))
  replaced.append(("loss.r1_gamma", config.loss.r1_gamma, "gamma", start["gamma"]))
  wrong = [
    f"{field} = {value:g} does nothing under burn_in: set burn_in.{by} instead (and"
    f" {field} to {want:g}, where that starts)"
    for field, value, by, want in replaced
    if value and not math.isclose(value, want, rel_tol=1e-5)
  ]
  if wrong:
    raise ValueError("; ".join(wrong))


def scheduled_adam(
  config, learning_rate: Schedule, b2: Schedule, batch_size: int
) -> optax.GradientTransformation:
  """Adam whose rate and second decay follow the images seen: updates x batch_size.

  The bias correction takes the present b2 for all of the past.

  Raises:
    ValueError: if `config` asks for anything but plain Adam at a constant rate.
  """
  plain = {"name": "adam", "clip_norm": 0.0, "warmup_steps": 0, "decay": "constant"}
  if wrong := {k: config[k] for k, v in plain.items() if config[k] != v}:
    raise ValueError(f"with burn_in, the optimizer must have {plain}, got {wrong}")
  of_images = lambda f: lambda updates: f(jnp.float32(updates) * batch_size)
  make: Any = optax.inject_hyperparams(optax.adam, static_args=("b1", "eps"))
  return make(
    learning_rate=of_images(learning_rate),
    b1=config.b1,
    b2=of_images(b2),
    eps=config.eps,
  )


def half_life_decay(
  batch_size: int, half_life_images: Float[Array, ""] | float
) -> Float[Array, ""]:
  """What an average keeps at one update: 2^-(batch / half-life); 0 for no half-life."""
  return jnp.exp2(-batch_size / jnp.asarray(half_life_images, jnp.float32))
