"""The recognition step: which class a label has, from any subset of the modalities.

Every modality's encoder and own heads are a network by its name, what fuses them is the
network "fusion" (none in late fusion): so each can come from another run
(`mmgen_jax.initial`), and those that `config.frozen` names stay as they are.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mmgen_jax.balance import modality_dropout, modulation, scale_gradient
from mmgen_jax.data.corrupt import corrupt
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.layers import apply, init_params
from mmgen_jax.models.recognition import LATE, Recognizer
from mmgen_jax.optim import apply_updates, init_optimizers, make_optimizer
from mmgen_jax.parallel import example_keys, mean_of_microbatches
from mmgen_jax.state import State, new_state
from mmgen_jax.steps.inputs import blank_missing, example_shapes, make_augment

Modalities = Mapping[str, Modality]
FUSION = "fusion"  # the network of the fusion layer and its heads
_EXPERT = "experts_"  # before a modality's name, in the parameters of a Recognizer


def used(config, modalities: Modalities) -> dict[str, Modality]:
  """Those that `config.model.inputs` names, or all if it names none, sorted.

  Raises:
    ValueError: if the data set lacks one, or one has the name of the fusing network.
  """
  names = config.model.get("inputs", ()) or modalities
  if FUSION in names:
    raise ValueError(f"no modality to recognise from can be called {FUSION!r}")
  if unknown := sorted(set(names) - set(modalities)):
    raise ValueError(
      f"model.inputs names {unknown[0]!r}; the data set has {sorted(modalities)}"
    )
  return {name: modalities[name] for name in sorted(names)}


def build(config, modalities: Modalities) -> Recognizer:
  """The network of a config.

  Raises:
    ValueError: if an input, the fusion layer or a frozen network is unknown, no label is
      named, nothing learns, or the loss trains no encoder that should, or balances what
      tells them nothing.
  """
  m = config.model
  _check_loss(config, set(used(config, modalities)) & set(learned(config, modalities)))
  if not m.labels:
    raise ValueError("model.labels names no label to recognise: {label: classes}")
  if m.fusion == LATE and not config.loss.own:
    raise ValueError(
      "model.fusion = 'late' is of own heads, and loss.own = {} has none"
    )
  return Recognizer(
    used(config, modalities),
    m.labels.to_dict(),
    m.widths.to_dict(),
    m.features,
    m.fusion,
    m.get("fusion_options", {}),
    m.blocks,
    bool(config.loss.own),
    jnp.bfloat16 if config.bfloat16 else jnp.float32,
  )


def _check_loss(config, encoders: set[str]) -> None:
  """`encoders`: the names of those that learn."""
  loss = config.loss
  factor = loss.get("fused_to_encoders", 1.0)
  if encoders and loss.fused * factor:
    return
  silent = (
    f"loss.fused = {loss.fused} and loss.fused_to_encoders = {factor}: the fused loss"
    " tells the encoders nothing"
  )
  if not encoders:
    silent = f"frozen = {tuple(config.frozen)}: no loss tells the encoders anything"
  if loss.balance:
    raise ValueError(
      f"{silent} that loss.balance = {loss.balance} could scale; let encoders learn from"
      " it, or set loss.balance to 0"
    )
  if encoders and not loss.own:
    raise ValueError(
      f"{silent}, and with loss.own = {{}} nothing else does; set both above 0, or"
      " loss.own to a weight of each input"
    )


def learned(config, modalities: Modalities) -> list[str]:
  """The networks that learn: inputs, sorted, and any "fusion", but for `config.frozen`.

  Raises:
    ValueError: if that names a network that there is not, or all of them.
  """
  networks, frozen = list(used(config, modalities)), config.get("frozen", ())
  networks += [FUSION] if config.model.fusion != LATE else []
  if unknown := sorted(set(frozen) - set(networks)):
    raise ValueError(f"frozen names network {unknown[0]!r}; there are {networks}")
  if not set(networks) - set(frozen):
    raise ValueError(f"frozen = {tuple(frozen)} is every network: nothing would learn")
  return [name for name in networks if name not in frozen]


def split(params: Mapping) -> dict:
  """By network, the parameters of a Recognizer."""
  experts = {k: v for k, v in params.items() if k.startswith(_EXPERT)}
  rest = {k: v for k, v in params.items() if k not in experts}
  networks = {k.removeprefix(_EXPERT): v for k, v in experts.items()}
  return networks | ({FUSION: rest} if rest else {})


def merged(params: Mapping) -> dict:
  """The parameters of a Recognizer, of those by network."""
  experts = {_EXPERT + k: v for k, v in params.items() if k != FUSION}
  return experts | params.get(FUSION, {})


def make_damage(config, modalities: Modalities) -> Callable:
  """`damage(keys, values) -> values`: what all inputs suffer, at training and at test.

  `config.corrupt` is {modality: {kind of damage: strength}}, see
  `mmgen_jax.data.corrupt`.

  A modality's is the same whatever else is an input: the i-th of the data set's
  `modalities`, sorted, takes the i-th key.

  Raises:
    ValueError: if it names a modality that is not an input.
  """
  hows = {name: dict(how) for name, how in config.get("corrupt", {}).items()}
  inputs = used(config, modalities)
  if unknown := sorted(set(hows) - set(inputs)):
    raise ValueError(f"corrupt names {unknown[0]!r}; there are {sorted(inputs)}")

  def damage(keys, values):
    changed = {}
    for i, name in enumerate(sorted(modalities)):
      if how := hows.get(name):
        one = lambda key, x, name=name, how=how, i=i: corrupt(
          jax.random.fold_in(key, i), x, modalities[name], how
        )
        changed[name] = jax.vmap(one)(keys, values[name])
    return {**values, **changed}

  return damage


def keys_of_index(index: Array) -> Array:
  """Keys of damage at test: of the example's index alone, so the same for all runs."""
  return jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(index)


def init(key: Array, config, modalities: Modalities) -> State:
  """A State at step 0, by network, and averages."""
  net = build(config, modalities)
  shapes = example_shapes(net.modalities)
  mask = jax.ShapeDtypeStruct((len(shapes), 1), jnp.bool_)
  params = split(init_params(net, key, shapes, mask))
  txs = {name: make_optimizer(config.optim) for name in learned(config, modalities)}
  opt_state = init_optimizers(txs, params)
  return new_state(params, opt_state, jax.tree.map(jnp.copy, params))


def _cross_entropy(logits: Mapping[str, Array], labels: Mapping[str, Array]) -> Array:
  """-log p(class), summed over the labels; [... b] of logits [... b c].

  Raises:
    ValueError: if there is no such label.
  """
  if unknown := sorted(set(logits) - set(labels)):
    raise ValueError(f"model.labels names {unknown[0]!r}; labels are {sorted(labels)}")
  return sum(
    optax.softmax_cross_entropy_with_integer_labels(
      x, jnp.broadcast_to(labels[label], x.shape[:-1])
    )
    for label, x in logits.items()
  )  # type: ignore[return-value]


def only_one(mask: Array) -> Array:
  """For each modality the mask that keeps it alone, [m m b]."""
  return mask & jnp.eye(len(mask), dtype=bool)[:, :, None]


def make_train_step(config, modalities: Modalities) -> Callable:
  """`train_step(state, batch, key, *, axis=None) -> (state, metrics)`.

  Descends fused * CE(fused features of what modality dropout leaves) + sum_m own_m *
  CE(the own head of m), CE summed over the labels; an example counts for the modalities
  that it has. `config.loss.dropout`: see `mmgen_jax.balance.modality_dropout`;
  `config.loss.balance`: strength of its `modulation` (0: none) of what the fused loss
  tells the encoders; `config.loss.fused_to_encoders`: factor of all of that, 0 for
  encoders that learn from their own heads alone, so that none rests on another (Du et
  al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning", 2023,
  https://arxiv.org/abs/2305.01233); `config.loss.own` {modality: weight}, of all or none,
  and `config.loss.fused`: fixed blending of losses, as in Wang et al., 2020 (its
  `blending_weights`). Inputs are augmented (`config.augment`), then damaged
  (`config.corrupt`). The networks that `config.frozen` names do not move.

  Raises:
    ValueError: if `loss.own` has some of the inputs, or others; for balance with
      accumulation.
  """
  net, names = build(config, modalities), sorted(used(config, modalities))
  inputs = used(config, modalities)
  augment, damage = make_augment(config, inputs), make_damage(config, modalities)
  txs = {name: make_optimizer(config.optim) for name in learned(config, modalities)}
  loss = config.loss
  if loss.balance and config.accumulate > 1:
    raise ValueError("loss.balance is of a whole batch: accumulate must be 1")
  if loss.own and sorted(loss.own) != names:
    raise ValueError(f"loss.own must weigh {names}, or none; it has {sorted(loss.own)}")
  own = jnp.array([loss.own[name] for name in names] if loss.own else [])

  def objective(learns, params, batch, keys, axis):
    values, mask = blank_missing(batch, inputs)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    values = damage(keys[:, 1], augment(keys[:, 0], values))
    run = partial(apply, net, merged({**params, **learns}))
    h, labels = run(values, method="encode"), batch["labels"]
    told, metrics = scale_gradient(h, loss.get("fused_to_encoders", 1.0)), {}
    if loss.balance:
      each = jax.vmap(lambda kept: run(h, kept, method="fuse"))(only_one(mask))
      nats = jax.lax.stop_gradient(_cross_entropy(each, labels))
      factors = modulation(jnp.exp(-nats), mask, loss.balance, axis)
      metrics |= {f"balance_{n}": factors[i] for i, n in enumerate(names)}
      told = scale_gradient(told, factors[:, None, None])
    kept = modality_dropout(keys[:, 2], mask, loss.dropout)
    logits = run(told, kept, method="fuse")
    has = mask.any(0)
    fused = jnp.where(has, _cross_entropy(logits, labels), 0.0)
    total = loss.fused * fused.mean()
    metrics |= {"fused": fused.mean()}
    for label, x in logits.items():
      right = has & (x.argmax(-1) == labels[label])
      metrics[f"accuracy_{label}"] = right.astype(jnp.float32).mean()
    if loss.own:
      nats = jnp.where(mask, _cross_entropy(run(h, method="alone"), labels), 0.0)
      nats = nats.mean(1)
      total += (own * nats).sum()
      metrics |= {f"own_{name}": nats[i] for i, name in enumerate(names)}
    metrics["loss"] = total
    return total, {f"recognition/{k}": v for k, v in metrics.items()}

  def train_step(state: State, batch: dict, key: Array, *, axis: str | None = None):
    key = jax.random.fold_in(key, state.step)
    keys = example_keys(key, len(batch["index"]), axis)

    def gradients(params, batch, keys):
      of = jax.grad(partial(objective, axis=axis), has_aux=True)
      return of({name: params[name] for name in txs}, params, batch, keys)

    mean = mean_of_microbatches(gradients, accumulate=config.accumulate, axis=axis)
    grads, metrics = mean(state.params, batch, keys)
    state, norms = apply_updates(state, grads, txs, config.ema_decay)
    return state, metrics | norms

  return train_step


def make_eval_step(config, modalities: Modalities) -> Callable:
  """`eval_step(params, batch, key)` -> `nll` and `correct_<label>` per example.

  From everything that an example has; `nll` in nats, summed over the labels.
  """
  generate, names = make_generate(config, modalities), sorted(modalities)

  def eval_step(params, batch, key):
    logits = generate(params, batch, jnp.ones(len(names), bool), key)
    labels = batch["labels"]
    nll = _cross_entropy(logits, labels)
    correct = {
      f"correct_{label}": (x.argmax(-1) == labels[label]).astype(jnp.float32)
      for label, x in logits.items()
    }
    return correct | {"nll": nll}

  return eval_step


def subsets(config, modalities: Modalities) -> list[tuple[str, ...]]:
  """Every subset of the inputs, none first, all last."""
  names = sorted(used(config, modalities))
  return [c for n in range(len(names) + 1) for c in combinations(names, n)]


def make_generate(config, modalities: Modalities) -> Callable:
  """`generate(params, batch, given, key) -> {label: logits [b c]}`.

  `given` is bool [m], in sorted order of all the data set's names. Inputs are damaged as
  in training (`config.corrupt`), by keys of their index: `key` has no part in it.
  """
  net, inputs = build(config, modalities), used(config, modalities)
  places = [sorted(modalities).index(name) for name in inputs]
  damage = make_damage(config, modalities)

  def generate(params, batch, given, key):
    del key
    run = partial(apply, net, merged(params))
    values, mask = blank_missing(batch, inputs)
    values = damage(keys_of_index(batch["index"]), values)
    mask &= given[jnp.array(places)][:, None]
    return run(run(values, method="encode"), mask, method="decide")

  return generate
