"""Optimisers and averages: optax transforms from plain config values."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

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


def ema_decay_at(step: Int[Array, ""], decay: float) -> Array:
  """min(decay, (1 + step) / (10 + step)): an early average forgets the initialisation.

  The warm-up of TensorFlow's ExponentialMovingAverage.
  """
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def apply_updates(
  state: State, grads: dict, txs: dict, ema_decay: float
) -> tuple[State, dict]:
  """The next State, and the norms of gradients, updates and parameters by network.

  Each network's parameters are handled as one vector: its optimizer state, average and
  norms are then a few large operations instead of several for every tensor, most of
  what there would be to compile.
  """
  params, ema = dict(state.params), dict(state.ema)
  opt_state, metrics = {}, {}
  for name, tx in txs.items():
    old, unravel = ravel_pytree(state.params[name])
    grad, _ = ravel_pytree(grads[name])
    update, opt_state[name] = tx.update(grad, state.opt_state[name], old)
    new = old + update
    params[name] = unravel(new)
    if name in ema:
      average, _ = ravel_pytree(ema[name])
      d = ema_decay_at(state.step, ema_decay)
      ema[name] = unravel(average + (1.0 - d) * (new - average))
    norms = {"grad": grad, "update": update, "param": new}
    metrics |= {f"norm/{name}_{k}": jnp.linalg.norm(v) for k, v in norms.items()}
  new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
  return new, metrics


def skip_above(
  limit: float, old: State, new: State, norm: Float[Array, ""]
) -> tuple[State, Float[Array, ""]]:
  """`new`, but `old` one step on where a gradient's `norm` is above `limit`; and if so.

  A limit of 0 is none. A norm that is not finite is left to the guard on losses.
  """
  if not limit:
    return new, jnp.zeros(())
  skip = norm > limit
  kept = old.replace(step=new.step)
  # One conditional, not a select per leaf, is quicker to compile.
  new = jax.lax.cond(skip, lambda old, new: old, lambda old, new: new, kept, new)
  return new, skip.astype(jnp.float32)


def init_optimizers(txs: dict, params: dict) -> dict:
  """Optimizer states by network, of parameters as one vector (see `apply_updates`)."""
  zeros = lambda p: jnp.zeros(sum(x.size for x in jax.tree.leaves(p)))
  return {name: tx.init(zeros(params[name])) for name, tx in txs.items()}
