"""The same work in PyTorch: MoPoE on polydigits, beside `multivae` from PyPI.

Speed: samples per second of the same objective (MoPoE, Laplace pixels), networks (layer
by layer; the numbers of parameters must be equal) and batch. Quality: coherence after
the same training time, compilation included in ours; of theirs, of our MoPoE, and of our
own posterior. All are judged by the same classifiers.

  pip install multivae==1.0.3 torch==2.14.1    # for this benchmark only
  python benchmarks/multivae_compare.py --data_dir=DIR --secs=600 [--batch_size=256]
      [--peer_python=PATH] [--out=DIR]

`--peer_python` may be the interpreter of another environment, where multivae is. Theirs
trains from tensors in memory, without a data loader, which spares it that cost.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENT, WIDTH, FEATURES, SIDE, PATCH = 32, 32, 128, 28, 4
SCALE, RATE = 0.75, 1e-3
GROUPS = 8


def theirs(args):
  """Trains multivae's MoPoE for some seconds; decodes what ours will judge."""
  import numpy as np
  import torch
  from multivae.data.datasets.base import MultimodalBaseDataset
  from multivae.models import MoPoE, MoPoEConfig
  from multivae.models.nn.base_architectures import BaseDecoder, BaseEncoder
  from pythae.models.base.base_utils import ModelOutput
  from torch import nn

  torch.manual_seed(args.seed)
  if args.threads:
    torch.set_num_threads(args.threads)
  positions, pixels = (SIDE // PATCH) ** 2, 3 * PATCH**2

  class Block(nn.Module):
    """mmgen_jax.models.layers.ResidualBlock."""

    def __init__(self, width):
      super().__init__()
      conv = lambda: nn.Conv2d(width, width, 3, padding=1)
      norm = lambda: nn.GroupNorm(GROUPS, width, eps=1e-6)
      act = nn.SiLU()
      self.net = nn.Sequential(norm(), act, conv(), norm(), act, conv())
      nn.init.zeros_(self.net[-1].weight)

    def forward(self, x):
      return x + self.net(x)

  class Encoder(BaseEncoder):
    """mmgen_jax.models.multimodal.Encoder of a 28 x 28 image."""

    def __init__(self):
      super().__init__()
      self.latent_dim = LATENT
      self.net = nn.Sequential(
        nn.PixelUnshuffle(PATCH),
        nn.Conv2d(pixels, WIDTH, 1),
        Block(WIDTH),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(positions * WIDTH, FEATURES),
        nn.SiLU(),
        nn.Linear(FEATURES, 2 * LATENT),
      )

    def forward(self, x):
      mean, logvar = self.net(x).chunk(2, -1)
      return ModelOutput(embedding=mean, log_covariance=logvar.clamp(-8, 8))

  class Decoder(BaseDecoder):
    """mmgen_jax.models.multimodal.Decoder of a 28 x 28 image."""

    def __init__(self):
      super().__init__()
      self.latent_dim = LATENT
      self.net = nn.Sequential(
        nn.Linear(LATENT, positions * WIDTH),
        nn.Unflatten(1, (WIDTH, SIDE // PATCH, SIDE // PATCH)),
        Block(WIDTH),
        nn.GroupNorm(GROUPS, WIDTH, eps=1e-6),
        nn.SiLU(),
        nn.Conv2d(WIDTH, 4 * WIDTH, 1),
        nn.SiLU(),
        nn.Conv2d(4 * WIDTH, pixels, 1),
        nn.PixelShuffle(PATCH),
      )

    def forward(self, z):
      return ModelOutput(reconstruction=self.net(z))

  folder = Path(args.out)
  to_space = lambda x: torch.from_numpy(x.copy()).permute(0, 3, 1, 2) / 127.5 - 1.0
  given = json.loads((folder / "given.json").read_text())
  names = given["names"]
  split = lambda s: {n: np.load(folder / f"{s}_{n}.npy", mmap_mode="r") for n in names}
  train, test = split("train"), split("test")
  config = MoPoEConfig(
    n_modalities=len(names),
    latent_dim=LATENT,
    input_dims=dict.fromkeys(names, (3, SIDE, SIDE)),
    decoders_dist=dict.fromkeys(names, "laplace"),
    decoder_dist_params={n: {"scale": SCALE} for n in names},
    beta=given["beta"],
  )
  model = MoPoE(config, {n: Encoder() for n in names}, {n: Decoder() for n in names})
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  model = model.to(device)
  model.device = device
  optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
  stored = {n: torch.from_numpy(x.copy()).permute(0, 3, 1, 2) for n, x in train.items()}
  count = len(stored[names[0]])

  def update():
    rows = torch.randint(count, (args.batch_size,))
    values = {n: (x[rows].to(device) / 127.5 - 1.0) for n, x in stored.items()}
    loss = model(MultimodalBaseDataset(data=values)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

  for _ in range(3):
    update()
  marks, start = [], time.perf_counter()
  while time.perf_counter() - start < args.secs:
    loss = float(update())  # waits for the device
    marks.append(time.perf_counter() - start)
  half = len(marks) // 2
  speed = args.batch_size * (len(marks) - half) / (marks[-1] - marks[half - 1])
  model.eval()
  held_out = {n: to_space(x).to(device) for n, x in test.items()}
  dataset = MultimodalBaseDataset(data=held_out)
  with torch.no_grad():
    for i, subset in enumerate(given["subsets"]):
      if subset:
        made = model.predict(dataset, cond_mod=subset, gen_mod="all")
      else:
        prior = model.generate_from_prior(len(held_out[names[0]]))
        made = model.decode(prior)
      for n in names:
        x = made[n].reshape(-1, 3, SIDE, SIDE).permute(0, 2, 3, 1)
        x = ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        np.save(folder / f"made_{i}_{n}.npy", x.cpu().numpy())
  parameters = sum(p.numel() for p in model.parameters())
  told = {"samples_per_sec": speed, "updates": len(marks), "loss": loss}
  told |= {"parameters": parameters, "device": str(device), "torch": torch.__version__}
  told["threads"] = torch.get_num_threads()
  (folder / "theirs.json").write_text(json.dumps(told))


def ours(config, train, args):
  """(state, what was measured): trained for `args.secs` seconds, compilation included."""
  import jax

  from mmgen_jax import loop, parallel
  from mmgen_jax.steps import STEPS

  start = time.perf_counter()
  family, modalities = STEPS[config.family], train.modalities
  mesh = parallel.make_mesh(jax.devices()[:1])
  feed = loop.make_feed(config, train)
  step = family.make_train_step(config, modalities)
  run = parallel.compile_step(step, mesh, fetch=feed.fetch, updates=1, scan=False)
  state = family.init(jax.random.key(config.seed), config, modalities)
  parameters = sum(x.size for x in jax.tree.leaves(state.params["vae"]))
  state = parallel.put_replicated(state, mesh)
  data = parallel.put_replicated(feed.data, mesh)
  key, marks, metrics = jax.random.key(1), [], {}
  while time.perf_counter() - start < args.secs:
    inputs = parallel.put_inputs(feed.inputs(len(marks), 1), mesh)
    state, metrics = run(state, data, inputs, key)
    jax.block_until_ready(state)
    marks.append(time.perf_counter() - start)
  if len(marks) < 2:
    sys.exit(f"--secs={args.secs} is over before the second update: give more")
  half = len(marks) // 2
  speed = config.batch_size * (len(marks) - half) / (marks[-1] - marks[half - 1])
  told = {"samples_per_sec": speed, "updates": len(marks), "parameters": parameters}
  told |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
  return jax.device_get(state), told


def coherence(setting, values, subsets):
  """{inputs: mean strict coherence}, "joint" among them, of made values [s n ...]."""
  from mmgen_jax import multimodal_scores, scores
  from mmgen_jax.generate import Samples

  reads = scores.read_all(setting, Samples(subsets, values, {}, {}))
  judged = scores.described(setting, setting.judges.readers)
  entries = multimodal_scores.count_entries(setting, reads, judged)
  entries += scores.coherence_entries(setting, reads, judged)
  out = {
    e["metric"].rsplit("_", 1)[1]: round(e["value"], 4)
    for e in entries
    if e["metric"].startswith("mean_coherence/")
  }
  joint = [e for e in entries if e["metric"] == "joint_coherence/strict"]
  return out | {"joint": round(joint[0]["value"], 4)}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", default="")
  parser.add_argument("--secs", type=float, default=600)
  parser.add_argument("--batch_size", type=int, default=256)
  parser.add_argument("--examples", type=int, default=1000)
  parser.add_argument("--train_examples", type=int, default=20_000)
  parser.add_argument("--threads", type=int, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--peer_python", default=sys.executable)
  parser.add_argument("--out", default="")
  parser.add_argument("--side", default="")
  args = parser.parse_args()
  if args.side == "theirs":
    return theirs(args)
  import numpy as np

  sys.path.insert(0, str(Path(__file__).parents[1]))
  from mmgen_jax import config as config_lib
  from mmgen_jax import data as datasets
  from mmgen_jax import scores
  from mmgen_jax.generate import make_sampler
  from mmgen_jax.metrics import judges

  folder = Path(args.out or tempfile.mkdtemp())
  folder.mkdir(parents=True, exist_ok=True)
  file = Path(__file__).parents[1] / "configs/poly_digits.py"
  results, setting, subsets = {}, None, []
  for name in ("mopoe", "ours"):
    config = config_lib.load(f"{file}:{name}")
    config.seed, config.data.options.train_examples = args.seed, args.train_examples
    config.batch_size = args.batch_size if name == "mopoe" else config.batch_size
    if name == "mopoe":
      config.augment, config.ema_decay = {}, 0.0
      adam = {"name": "adam", "b2": 0.999, "warmup_steps": 0, "decay": "constant"}
      config.optim.update(learning_rate=RATE, **adam)
    options = config.data.options.to_dict()
    load = lambda split, options=options: datasets.load(
      "polydigits", split, args.data_dir, **options
    )
    train, test = load("train"), load("test")
    state, results[f"ours: {name}"] = ours(config, train, args)
    indices = np.arange(args.examples)
    sampler = make_sampler(config, train.modalities, batch_size=100)
    samples = sampler(state.ema, test, indices, args.seed)
    if setting is None:
      by = judges.make(train, list(train.modalities), Path(args.data_dir) / "judges")
      setting = scores.Setting(test, indices, by, 200)
      subsets = samples.subsets
      for n in train.modalities:
        np.save(folder / f"train_{n}.npy", train.columns[n].take(np.arange(len(train))))
        np.save(folder / f"test_{n}.npy", test.columns[n].take(indices))
      told = {"names": sorted(train.modalities), "subsets": subsets}
      told["beta"] = config.loss.beta  # of MoPoE, which is the first
      (folder / "given.json").write_text(json.dumps(told))
    found = coherence(setting, samples.values, samples.subsets)
    results[f"ours: {name}"]["coherence"] = found
    print(json.dumps({f"ours: {name}": results[f"ours: {name}"]}), flush=True)
  assert setting is not None
  command = [args.peer_python, __file__, "--side=theirs", f"--out={folder}"]
  command += [f"--{k}={getattr(args, k)}" for k in ("secs", "batch_size", "threads")]
  subprocess.run([*command, f"--seed={args.seed}"], check=True)
  peer = json.loads((folder / "theirs.json").read_text())
  made = {
    n: np.stack([np.load(folder / f"made_{i}_{n}.npy") for i in range(len(subsets))])
    for n in setting.examples.modalities
  }
  peer["coherence"] = coherence(setting, made, subsets)
  results["multivae: mopoe"] = peer
  same = results["ours: mopoe"]["parameters"], peer["parameters"]
  assert same[0] == same[1], f"not the same networks: {same} parameters"
  results["ratio"] = results["ours: mopoe"]["samples_per_sec"] / peer["samples_per_sec"]
  print(json.dumps(results, indent=2))
  (folder / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
  main()
