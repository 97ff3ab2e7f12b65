"""Barriers between generative networks trained apart, before and after matching units.

  python benchmarks/barrier_generative.py --workdir=runs/barriers

On sprites (generated; no download), small convolutional networks:

  vae        two VAEs from two seeds, whole: encoder and decoder move together
  decoder    two decoders of the first VAE's latents: its own, and one trained from
             another seed on the same posteriors
  generator  two GAN generators from two seeds; noise is theirs to reorder too

On points of the line between the two: ELBO, Frechet distance of samples from the prior
(features of the project's sprites classifier), the share of samples that the sprites'
checker can read, and coherence: the share of reconstructions with every attribute right.
Naive, after `weight_matching`, after `activation_matching`; each matched one also with
REPAIR of the statistics, at every point. A barrier is the worst value on the line less
the mean of its ends (Frankle et al., 2020, https://arxiv.org/abs/1912.05671). What is
matched: units, by permutation. Signs and rotations of latents are not, though a N(0, I)
does not know them. Writes <workdir>/barriers.json and barriers.html. Exit code 1 unless
the best matched barrier is at most half of the naive one for all three.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax import evaluate, loop, scores, steps  # noqa: E402
from mmgen_jax.fusion.match import activation_matching, weight_matching  # noqa: E402
from mmgen_jax.fusion.permute import apply_permutation, find_symmetry  # noqa: E402
from mmgen_jax.fusion.repair import make_layer_outputs, repair  # noqa: E402
from mmgen_jax.fusion.weight import interpolate, loss_barrier  # noqa: E402
from mmgen_jax.generate import make_sampler  # noqa: E402
from mmgen_jax.metrics import coherence, frechet  # noqa: E402
from mmgen_jax.models.condition import Given  # noqa: E402
from mmgen_jax.models.layers import apply  # noqa: E402
from mmgen_jax.report import barriers as page  # noqa: E402

STUDY = str(ROOT / "configs/study_fusion.py")


def settings(method: str, seed: int, args):
  """The study's config of a method, as wide as is asked."""
  config = config_lib.load(f"{STUDY}:sprites,{method}")
  config.seed = seed
  config.train_steps = config.save_steps = config.sample_steps = args.steps
  config.optim.decay_steps = args.steps
  config.optim.name = "adamw"
  config.optim.weight_decay = args.weight_decay
  config.model.widths.image = args.width
  config.eval.num_examples = args.examples
  return config


def make_measure(config, data_dir, examples, judges, args):
  """{measure: value} of averaged parameters, lower is better in every one."""
  sampler = make_sampler(config, examples.modalities, batch_size=250)
  indices = np.arange(args.examples)
  setting = scores.Setting(examples, indices, judges, resamples=10)
  extractor = judges.extractors["image"]
  real = frechet.moments(extractor(setting.real("image"))[0])

  def measure(ema) -> dict[str, float]:
    samples = sampler(ema, examples, indices, 0)
    prior = samples.values["image"][samples.subsets.index(())]
    made = frechet.moments(extractor(prior)[0])
    out = {"frechet": float(frechet.frechet_distance(made, real))}
    read = judges.readers["image"].read(prior)
    out["unreadable"] = 1.0 - float(coherence.readable(read).mean())
    if "elbo" in samples.losses:
      out["elbo"] = -float(samples.losses["elbo"].mean())
      right = scores.right_of_made(setting, scores.read_all(setting, samples))
      out["wrong"] = 1.0 - float(right[("image",), "image"]["strict"].mean())
    return out

  return measure


def decoder_from(seed: int, config, vae, ema, examples, args):
  """A decoder from another seed, trained on the posteriors of a trained VAE."""
  fresh = steps.vae.init(jax.random.key(seed), config, examples.modalities)
  own = {k: v for k, v in fresh.params["vae"].items() if k.startswith("decoders")}
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, args.steps), b2=0.99)
  opt_state, likelihood = tx.init(own), vae.likelihood("image")
  pixels = jnp.asarray(examples.columns["image"].take(np.arange(len(examples))))

  @jax.jit
  def update(own, opt_state, key):
    rows, noise = jax.random.split(key)
    at = jax.random.randint(rows, (16,), 0, len(pixels))
    x = pixels[at].astype(jnp.float32) / 127.5 - 1.0
    means, logvars = apply(vae, ema["vae"], {"image": x}, method="encode")
    z = jax.random.normal(noise, means[0].shape) * jnp.exp(0.5 * logvars[0]) + means[0]

    def loss(own):
      out = apply(vae, ema["vae"] | own, z, method="decode")["image"]
      return -likelihood.log_prob(out, x).mean()

    updates, opt_state = tx.update(jax.grad(loss)(own), opt_state)
    return optax.apply_updates(own, updates), opt_state

  for i in range(args.steps):
    key = jax.random.fold_in(jax.random.key(seed), i)
    own, opt_state = update(own, opt_state, key)
  return {"vae": ema["vae"] | own}


def curves(name, fn, outputs, wrap, a, b, inputs, measure, args):
  """{kind of merge: {measure: values on the line}}.

  Args:
    name: of the pair.
    fn: (params, *inputs) -> what the network does, for its symmetries.
    outputs: (params, *inputs) -> outputs of its layers, by path, for REPAIR.
    wrap: params of `fn` -> averaged parameters as `measure` wants them.
    a: parameters of the first, as `fn` wants them.
    b: of the second.
    inputs: one batch.
    measure: from `make_measure`.
    args: the command line's.
  """
  symmetry = find_symmetry(fn, a, *inputs)
  # The order of noise is not to be kept for its own sake.
  faint = [p | {"mix": 1e-6 * p["mix"]} if "mix" in p else p for p in (a, b)]
  found = {"weights": weight_matching(*faint, symmetry)}
  found["activations"] = activation_matching(fn, a, b, *inputs)
  seconds = {"naive": b}
  for how, permutations in found.items():
    seconds[f"{how} matched"] = apply_permutation(b, permutations, symmetry)
  ends = [measure(wrap(p)) for p in (a, b)]
  layers = [path for path in outputs(a, *inputs) if path in _with_bias(a)]
  out = {}
  for how, second in seconds.items():
    kinds = [how] if how == "naive" else [how, f"{how}, REPAIR"]
    for kind in kinds:
      values = [ends[0]]
      for t in np.linspace(0, 1, args.points)[1:-1]:
        merged = interpolate(a, second, float(t))
        if kind.endswith("REPAIR"):
          weights = [1.0 - float(t), float(t)]
          merged = repair(
            outputs, merged, [a, second], *inputs, layers=layers, weights=weights
          )
        values.append(measure(wrap(merged)))
      values.append(ends[1])
      out[kind] = {m: [v[m] for v in values] for m in ends[0]}
      told = {m: round(loss_barrier(v), 3) for m, v in out[kind].items()}
      print(f"{name}, {kind}: barriers {told}", flush=True)
  return out


def _with_bias(params) -> set[str]:
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  paths = {"/".join(str(k.key) for k in path) for path, _ in flat}
  return {p.removesuffix("/bias") for p in paths if p.endswith("/bias")}


def vae_functions(vae):
  """What a whole VAE does with images, and its layers' outputs."""

  def reconstruct(module, batch):
    means, logvars = module.encode(batch)
    return module.decode(means[0]), logvars

  run = lambda params, x, **kw: vae.apply(
    params, {"image": x}, method=reconstruct, **kw
  )
  return run, make_layer_outputs(run)


def main() -> int:
  """Trains, matches and measures."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data_dir", default="")
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--weight_decay", type=float, default=0.01)
  parser.add_argument("--points", type=int, default=7)
  parser.add_argument("--examples", type=int, default=500)
  parser.add_argument("--pairs", nargs="+", default=["vae", "decoder", "generator"])
  args = parser.parse_args()
  since, workdir = time.time(), Path(args.workdir)
  data_dir = Path(args.data_dir or workdir / "data")
  config = settings("vae", 0, args)
  load = partial(datasets.load, config.data.name, data_dir=data_dir)
  train, test = (load(s, **config.data.options) for s in ("train", "test"))
  judges = evaluate.make_judges(config, data_dir, ["image"])
  images = jnp.asarray(train.columns["image"].take(np.arange(200))) / 127.5 - 1.0

  def trained(method, seed):
    c = settings(method, seed, args)
    return loop.train(c, workdir / f"{method}{seed}", data_dir=data_dir).ema

  found = {}
  if {"vae", "decoder"} & set(args.pairs):
    vae, emas = steps.vae.build(config, train.modalities), [trained("vae", 0)]
    measure = make_measure(config, data_dir, test, judges, args)
    run, outputs = vae_functions(vae)
    pack = lambda ema: {"params": ema["vae"]}
    unpack = lambda params: {"vae": params["params"]}
  if "vae" in args.pairs:
    emas.append(trained("vae", 1))
    found["vae"] = curves(
      "vae", run, outputs, unpack, *map(pack, emas), (images,), measure, args
    )
  if "decoder" in args.pairs:
    other = decoder_from(7, config, vae, emas[0], train, args)
    means, _ = apply(vae, emas[0]["vae"], {"image": images}, method="encode")
    decode = lambda params, z, **kw: vae.apply(params, z, method="decode", **kw)
    part = lambda ema: {
      "params": {k: v for k, v in ema["vae"].items() if k.startswith("decoders")}
    }
    whole = lambda params: {"vae": emas[0]["vae"] | params["params"]}
    found["decoder"] = curves(
      *("decoder", decode, make_layer_outputs(decode), whole),
      *(part(emas[0]), part(other), (means[0],), measure, args),
    )
  if "generator" in args.pairs:
    c = settings("gan", 0, args)
    generator, _ = steps.gan.build(c, train.modalities)
    measure = make_measure(c, data_dir, test, judges, args)
    noise = jax.random.normal(jax.random.key(3), (200, c.model.latent))
    run = lambda params, z, **kw: generator.apply(params, z, Given(None, {}, {}), **kw)
    make = lambda params, z: run(params["net"], z @ params["mix"])
    layers = make_layer_outputs(run)
    outputs = lambda params, z: {
      f"net/{k}": v for k, v in layers(params["net"], z @ params["mix"]).items()
    }

    def pack(ema):  # the order of the noise is a unit's like any other
      return {
        "net": {"params": ema["generator"]},
        "mix": jnp.eye(c.model.latent),
      }

    found["generator"] = curves(
      *("generator", make, outputs),
      lambda params: {"generator": params["net"]["params"]},
      *(pack(trained("gan", seed)) for seed in (0, 1)),
      *((noise,), measure, args),
    )
  return finish(found, workdir, args, time.time() - since)


def finish(found, workdir: Path, args, secs: float) -> int:
  """Writes what was found, and says whether it is good enough."""
  about = {"points": args.points, "examples": args.examples, "steps": args.steps}
  about |= {"width": args.width, "weight_decay": args.weight_decay}
  kept = workdir / "barriers.json"
  before = json.loads(kept.read_text())["curves"] if kept.exists() else {}
  every = before | found
  kept.write_text(json.dumps({"about": about, "curves": every}, indent=1))
  (workdir / "barriers.html").write_text(page.document(workdir.name, every))
  good = True
  for pair, kinds in found.items():
    measure = "elbo" if "elbo" in kinds["naive"] else "frechet"
    naive = loss_barrier(kinds["naive"][measure])
    best = min(kinds, key=lambda k: loss_barrier(kinds[k][measure]))
    matched = loss_barrier(kinds[best][measure])
    here = matched <= 0.5 * naive
    good &= here
    print(
      f"{'reached' if here else 'MISSED'}: {pair}, {measure}: {best} {matched:.3f},"
      f" naive {naive:.3f} (at most half)"
    )
  print(f"{secs:.0f} s")
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
