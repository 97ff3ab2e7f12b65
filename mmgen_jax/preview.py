"""Pictures of a run: while it trains, and of its newest checkpoint."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mmgen_jax import evaluate, latent_scores, measures, panels, pictures, scores, walks
from mmgen_jax.generate import make_sampler
from mmgen_jax.metrics import judges
from mmgen_jax.state import State


def make_on_samples(
  config, workdir, data_dir=None, *, say: evaluate.Say = evaluate.say_once
) -> Callable[[State, int], dict[str, float] | None]:
  """`on_samples(state, step)`: writes pictures, from the same noise at every step.

  From validation examples, to <workdir>/samples/step_<step>/: grids, and panel.npz with
  the coherence of one batch. Pictures are of the averaged parameters and of the model's
  own prior, whatever `config.eval.sampler` says: that is fitted to a trained model.
  Returns the means of what the family's evaluation step says, as "held_out/<name>": an
  ELBO, of the averaged parameters; a GAN's logits, of examples and of samples of the
  generator as it is, as training logs them. The data, the judges and the compiled
  generation are made at its first call. It uses this process's devices only, and does
  nothing on processes other than 0.
  """
  data_dir = evaluate.data_dir_of(workdir, data_dir)
  prepared: list = []

  def on_samples(state: State, step: int) -> dict[str, float] | None:
    if jax.process_index() != 0 or config.family in measures.MEASURES:
      return None
    if not prepared:
      examples = evaluate.load_split(config, "validation", data_dir)
      count = min(config.eval.batch_size, len(examples))
      sampler = make_sampler(config, examples.modalities, batch_size=count)
      prepared.append((examples, np.arange(count), sampler))
    examples, indices, sampler = prepared[0]
    # Of what is not averaged, a discriminator, the parameters themselves.
    params = jax.tree.map(_local, {**state.params, **state.ema})
    raw = jax.tree.map(_local, state.params) if config.family == "gan" else None
    samples = sampler(params, examples, indices, config.seed, judged=raw)
    if len(prepared) == 1:
      names = list(samples.values)
      prepared.append(
        evaluate.make_judges(config, data_dir, names, extract=False, say=say)
      )
    setting = scores.Setting(examples, indices, prepared[1])
    reads = scores.read_all(setting, samples)
    coherent = {
      f"{'+'.join(given)} -> {target}": float(
        right["strict"][setting.labelled(reads[given, target])].mean()
      )
      for (given, target), right in scores.right_of_made(setting, reads).items()
      if target not in given
    }
    panel = panels.make_panel(setting, samples, panels.shown(setting), reads)
    folder = Path(workdir) / "samples" / f"step_{step:07d}"
    pictures.write_grids(folder, panel, step)
    extra = {"step": step, "coherence": coherent, "count": len(setting.indices)}
    pictures.save_panel(folder / "panel.npz", panel, extra)
    return {f"held_out/{name}": float(x.mean()) for name, x in samples.losses.items()}

  return on_samples


def _local(x) -> np.ndarray:
  """This process's copy of a replicated array."""
  return np.asarray(x.addressable_data(0)) if isinstance(x, jax.Array) else x


def sample(
  config,
  workdir,
  data_dir=None,
  *,
  count: int = 16,
  say: evaluate.Say = evaluate.say_once,
):
  """Writes grids of every direction of the newest checkpoint; the files' paths.

  Samples are such as evaluation scores: of the averaged parameters, with
  `config.eval.sampler` in the prior's place. Of a GAN also what its noise does: see
  `mmgen_jax.walks`.

  Raises:
    FileNotFoundError: if there is no sound checkpoint.
    ValueError: if the family makes nothing.
  """
  if config.family in measures.MEASURES:
    raise ValueError(f"the family {config.family!r} makes no samples")
  data_dir = evaluate.data_dir_of(workdir, data_dir)
  examples = evaluate.load_split(config, config.eval.get("split", "test"), data_dir)
  state, step = evaluate.load_state(config, workdir, examples.modalities)
  if jax.process_index() != 0:
    return []
  setting = scores.Setting(examples, np.arange(len(examples)), judges.Judges({}, {}))
  indices = panels.shown(setting, count)
  setting = setting._replace(indices=indices)
  sampler = make_sampler(config, examples.modalities, batch_size=len(indices))
  params = state.ema
  if config.eval.get("sampler", "prior") != "prior":
    train = evaluate.load_split(config, "train", data_dir)
    params = latent_scores.fit_sampler(config, params, train)
  samples = sampler(params, examples, indices, config.seed)
  panel = panels.make_panel(setting, samples, np.arange(len(indices)), {})
  folder = Path(workdir) / "samples" / f"step_{step:07d}_{count}"
  paths = pictures.write_grids(folder, panel, step, columns=count)
  if config.family == "gan":
    made = walks.grids(config, state.ema, examples, step, count, config.seed)
    paths += walks.write(folder, made)
  for path in paths:
    say(f"wrote {path}")
  return paths
