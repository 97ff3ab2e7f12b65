"""Optimisers and averages: optax transforms from plain config values."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mmgen_jax.state import State

OPTIMIZERS = {
  "adam": lambda lr, c: optax.adam(lr, b1=c.b1, b2=c.b2, eps=c.eps),
  "adamw": lambda lr, c: optax.adamw(
    lr, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay
  ),
  "sgd": lambda lr, c: optax.sgd(lr),
}


def schedule(config) -> optax.Schedule:
  """The learning rate by step: linear warm-up, then constant or half-cosine to `end`.

  Args:
    config: learning_rate, warmup_steps, decay ("constant" or "cosine"), decay_steps,
      end_factor (what is left of the rate after `decay_steps`).
  """
  if config.decay == "constant":
    after = optax.constant_schedule(config.learning_rate)
  elif config.decay == "cosine":
    after = optax.cosine_decay_schedule(
      config.learning_rate, config.decay_steps, alpha=config.end_factor
    )
  else:
    raise ValueError(f"decay must be 'constant' or 'cosine', got {config.decay!r}")
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  # Both count from step 0, so that warm-up does not shift the decay.
  return lambda step: jnp.where(step < config.warmup_steps, warmup(step), after(step))


def make_optimizer(config) -> optax.GradientTransformation:
  """An optax transform: global-norm clipping (0 for none), then the optimiser.

  Raises:
    ValueError: for an unknown optimiser.
  """
  if config.name not in OPTIMIZERS:
    raise ValueError(
      f"optimizer must be one of {sorted(OPTIMIZERS)}, got {config.name!r}"
    )
  tx = OPTIMIZERS[config.name](schedule(config), config)
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
  return optax.chain(clip, tx) if clip else tx


def update_ema(ema: Any, params: Any, step: Int[Array, ""], decay: float):
  """The exponential moving average, ema + (1 - d) (params - ema).

  d = min(decay, (1 + step) / (10 + step)), so that the early average is not the
  initialisation (the warm-up of TensorFlow's ExponentialMovingAverage).
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1.0 - d).astype(e.dtype) * (p - e), ema, params)


def apply_updates(
  state: State, grads: dict, txs: dict, ema_decay: float
) -> tuple[State, dict]:
  """The next State, and the norms of gradients and updates of every network."""
  params, opt_state, metrics = {}, {}, {}
  for name, tx in txs.items():
    updates, opt_state[name] = tx.update(
      grads[name], state.opt_state[name], state.params[name]
    )
    params[name] = optax.apply_updates(state.params[name], updates)
    metrics[f"norm/{name}_grad"] = optax.global_norm(grads[name])
    metrics[f"norm/{name}_update"] = optax.global_norm(updates)
    metrics[f"norm/{name}_param"] = optax.global_norm(params[name])
  ema = {
    name: update_ema(ema, params[name], state.step, ema_decay)
    for name, ema in state.ema.items()
  }
  new = state.replace(
    step=state.step + 1, params=params, opt_state=opt_state, ema=ema
  )
  return new, metrics
