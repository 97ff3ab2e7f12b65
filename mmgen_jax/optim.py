"""Optimisers and averages: optax transforms from plain config values."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from mmgen_jax.state import State


def _kernels(params) -> Any:
  """Of every Dense or Conv kernel: which axes are inputs, which outputs; else None."""

  def axes(path, x):
    *inputs, output = range(x.ndim)
    named = getattr(path[-1], "key", "") == "kernel"
    return optax.contrib.MuonDimensionNumbers(inputs, output) if named else None

  return jax.tree.map_with_path(axes, params)


def muon(learning_rate: optax.Schedule, config: Any) -> optax.GradientTransformation:
  """Muon for kernels, AdamW (with Nesterov's momentum) for all else, at one rate.

  The momentum of a kernel, as a matrix of inputs by outputs, is replaced by a near
  orthogonal one (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) and
  scaled to the root mean square of Adam's updates, .2 (Liu et al., "Muon is Scalable for
  LLM Training", 2025, https://arxiv.org/abs/2502.16982).
  """
  return optax.contrib.muon(
    learning_rate,
    eps=config.eps,
    weight_decay=config.weight_decay,
    adam_b1=config.b1,
    adam_b2=config.b2,
    adam_weight_decay=config.weight_decay,
    muon_weight_dimension_numbers=_kernels,
    consistent_rms=0.2,
  )


OPTIMIZERS = {
  "adam": lambda lr, c: optax.adam(lr, b1=c.b1, b2=c.b2, eps=c.eps),
  "adamw": lambda lr, c: optax.adamw(
    lr, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay
  ),
  "sgd": lambda lr, c: optax.sgd(lr),
  "muon": muon,
}


def as_vector(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same of all parameters as one vector, for a `tx` to which shapes mean nothing.

  A few large operations instead of several for every tensor are most of what there
  would be to compile.
  """

  def init(params):
    return tx.init(jnp.zeros(sum(x.size for x in jax.tree.leaves(params))))

  def update(updates, state, params=None):
    vector: Any
    vector, unravel = ravel_pytree(updates)
    of = None if params is None else ravel_pytree(params)[0]
    vector, state = tx.update(vector, state, of)
    return unravel(vector), state

  return optax.GradientTransformation(init, update)


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
  if config.clip_norm:
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
  return tx if config.name == "muon" else as_vector(tx)


def ema_decay_at(step: Int[Array, ""], decay: float) -> Array:
  """min(decay, (1 + step) / (10 + step)): an early average forgets the initialisation.

  The warm-up of TensorFlow's ExponentialMovingAverage.
  """
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _length(x: Float[Array, "n"]) -> Float[Array, ""]:
  """||x||, mostly by a matrix product: XLA's sums add one number at a time on CPUs."""
  squares, width = jnp.square(x), 512
  rest = len(x) % width
  rows = squares[: len(x) - rest].reshape(-1, width)
  sums = jnp.dot(jnp.ones(len(rows)), rows, precision="highest")
  return jnp.sqrt(sums.sum() + squares[len(x) - rest :].sum())


def apply_updates(
  state: State, grads: dict, txs: dict, ema_decay: float
) -> tuple[State, dict]:
  """The next State, and the norms of gradients, updates and parameters by network.

  Each network's average and norms are of its parameters as one vector (see `as_vector`).
  """
  params, ema = dict(state.params), dict(state.ema)
  opt_state, metrics = {}, {}
  for name, tx in txs.items():
    of = state.params[name]
    update, opt_state[name] = tx.update(grads[name], state.opt_state[name], of)
    old, unravel = ravel_pytree(of)
    grad, update = (ravel_pytree(tree)[0] for tree in (grads[name], update))
    new = old + update
    params[name] = unravel(new)
    if name in ema:
      average, _ = ravel_pytree(ema[name])
      d = ema_decay_at(state.step, ema_decay)
      ema[name] = unravel(average + (1.0 - d) * (new - average))
    norms = {"grad": grad, "update": update, "param": new}
    metrics |= {f"norm/{name}_{k}": _length(v) for k, v in norms.items()}
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
  """Optimizer states by network."""
  return {name: tx.init(params[name]) for name, tx in txs.items()}
