"""The one training state of every family: arrays only, in dicts by network name."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int


class State(flax.struct.PyTreeNode):
  """All that training changes, and so all that a checkpoint holds.

  Attributes:
    step: number of updates done, int32.
    params: {network: parameters}.
    opt_state: {network: optax state}.
    ema: {network: averaged parameters}, for the networks that are evaluated.
    extra: anything else, as arrays; `extra["attempt"]` (int32) counts roll-backs and is
      folded into the run's randomness, so that a second attempt is not the first again.
  """

  step: Int[Array, ""]
  params: dict[str, Any]
  opt_state: dict[str, Any]
  ema: dict[str, Any]
  extra: dict[str, Any]


def new_state(params, opt_state, ema, extra=None) -> State:
  """A State at step 0."""
  extra = {"attempt": jnp.zeros((), jnp.int32), **(extra or {})}
  return State(jnp.zeros((), jnp.int32), params, opt_state, ema, extra)
